"""The engine over a local model: a seat gets a KV slot and keeps it while slots last.

When they run out, whoever was idle longest gives way. A prompt that begins like what an idle
slot holds is not computed again so far, whoever said it: a fork, a run again, or a request
over HTTP, which has no seat to come back to. A turn runs on a thread of its own; a piece
reaches the loop in one hop.

Rule 1: where a prompt finds its beginning is for `slots` to say, and to the model: cached
tokens are what its timings tell, never what was expected.
Rule 2: a slot is free when its thread has come back, not when its reader has gone.
Rule 3: with the cache off every prompt is computed in full, and nothing is copied.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipy_agent.errors import ModelUnavailable, ResponseFailed
from ipy_agent.protocol.response import Usage
from ipy_agent.server.engine import Finish, Job, Piece, TextPiece
from ipy_agent.server.gguf import Completion, Counts, Gguf
from ipy_agent.server.prompt import Prompt, Prompts
from ipy_agent.server.reply import Reply
from ipy_agent.server.slots import Slot, Slots
from ipy_agent.server.tokens import ids_of

__all__ = ["LONGEST_ANSWER", "LlamaEngine"]

LONGEST_ANSWER = 1024
"""Tokens of an answer for which the client sets no limit: a small model may never end."""

_TIMINGS = ("prompt_n", "cache_n", "prompt_ms", "predicted_n", "predicted_ms")


@dataclass(slots=True, eq=False)
class _Turn:
    """One turn on its thread, which reaches the loop by `put` and `copied`."""

    slot: Slot
    source: Slot | None
    put: Callable[[Piece], None]
    copied: Callable[[Slot], None]
    stopped: bool = False


class LlamaEngine:
    """Answers from a GGUF model that speaks ChatML.

    Loading blocks for some seconds. It may be used from one loop at a time.

    Args:
        path: the model's file.
        name: the name that requests may ask for.
        slots: how many conversations keep their KV cache at once.
        context: tokens a slot; `None` takes what the memory allows, 8192 at most.
        cache: whether a turn may reuse what its slot holds; off to measure what that is worth.
        threads: computing threads; `None` for one a core.

    Raises:
        ModelUnavailable: no such file, no such format, or not enough memory.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        name: str,
        slots: int = 4,
        context: int | None = None,
        cache: bool = True,
        threads: int | None = None,
    ) -> None:
        self._model = Gguf(Path(path), slots=slots, context=context, threads=threads)
        start, end = (self._model.control(token) for token in ("<|im_start|>", "<|im_end|>"))
        if start is None or end is None:
            self._model.close()
            raise ModelUnavailable(f"{path} does not speak ChatML: take a model such as Qwen")
        self._prompts = Prompts(self._model.tokenise, start=start, end=end)
        self._name, self._file = name, Path(path).name
        self._cache = cache
        self._slots = Slots(slots)
        self._turns: set[_Turn] = set()
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="llama")

    @property
    def models(self) -> Sequence[str]:
        return (self._name,)

    @property
    def counts(self) -> Counts:
        """The tokens that the model has computed so far, for turns that were stopped too."""
        return self._model.counts

    @property
    def window(self) -> int:
        """The tokens that a conversation may have."""
        return self._model.window

    def _serves(self, model: Any) -> bool:
        """Whether a request may ask for this: nothing, the name, or the file as it was named."""
        return model in (None, "", self._name) or Path(str(model)).name == self._file

    async def generate(self, job: Job, seat: object) -> AsyncGenerator[Piece]:
        model = job.fields.values.get("model")
        if not self._serves(model):
            raise ResponseFailed(
                f"the model {model!r} is not served here: take {self._name!r}",
                code="model_not_found",
                status=404,
                param="model",
            )
        prompt = await asyncio.to_thread(self._prompt, job)
        known = prompt.tokens.ids() if self._cache else ids_of()
        slot, source = await self._slots.take(seat, known)
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Piece | None] = asyncio.Queue()

        def soon(act: Callable[[Any], None], it: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has gone, and its readers with it
                loop.call_soon_threadsafe(act, it)

        def over(end: asyncio.Future[Finish]) -> None:
            end.exception()  # taken note of, even if nobody reads on
            self._turns.discard(turn)
            self._slots.release(slot)
            pieces.put_nowait(None)

        turn = _Turn(
            slot,
            source,
            put=functools.partial(soon, pieces.put_nowait),
            copied=functools.partial(soon, self._slots.copied),
        )
        self._turns.add(turn)
        end = loop.run_in_executor(self._threads, self._run, job, prompt, turn)
        end.add_done_callback(over)
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            yield end.result()
        finally:
            turn.stopped = True

    async def leave(self, seat: object) -> None:
        """Free the slot of a seat, once its turn has let go of it. What it holds stays there."""
        await self._slots.leave(seat)

    async def aclose(self) -> None:
        """Stop whatever runs, and unload the model."""
        for turn in self._turns:
            turn.stopped = True
        await asyncio.to_thread(self._threads.shutdown)
        self._model.close()

    def _prompt(self, job: Job) -> Prompt:
        """Return the prompt of a job, if there is room for an answer to it."""
        prompt = self._prompts.prompt(job)
        if prompt.tokens.length < self.window:
            return prompt
        raise ResponseFailed(
            f"the conversation has {prompt.tokens.length} tokens and the context window "
            f"{self.window}: begin a new one, or serve a larger context",
            code="context_length_exceeded",
            status=400,
            param="input",
        )

    def _run(self, job: Job, prompt: Prompt, turn: _Turn) -> Finish:
        """Do a turn; this runs on its thread."""
        turn.put(TextPiece(""))
        if turn.source is not None:
            self._copy(turn.source, turn)
        if job.generate:
            return self._answer(job, turn, prompt)
        done = Completion()
        if prompt.tokens.length:
            done = self._complete(turn, prompt, max_tokens=1)
            done.timings["predicted_n"] = 0
        return self._finish(prompt, done, self._prompts.memory(prompt, None))

    def _copy(self, source: Slot, turn: _Turn) -> None:
        try:
            worked = self._model.copy(source.number, turn.slot.number)
            turn.slot.ids = source.ids if worked else ids_of()
        finally:
            turn.copied(source)

    def _answer(self, job: Job, turn: _Turn, prompt: Prompt) -> Finish:
        values = job.fields.values
        room = self.window - prompt.tokens.length
        head = prompt.head
        reply = Reply(head.answer, raw=head.schema is not None, custom=head.custom)
        texts: list[str] = []

        def take(text: str) -> None:
            texts.append(text)
            for piece in reply.feed(text) if head.calls else (TextPiece(text),):
                turn.put(piece)

        asked = values.get("max_output_tokens")
        done = self._complete(
            turn,
            prompt,
            take=take,
            max_tokens=min(asked if isinstance(asked, int) and asked > 0 else LONGEST_ANSWER, room),
            temperature=values.get("temperature") or 0,
            **({"top_p": values["top_p"]} if values.get("top_p") is not None else {}),
            schema=prompt.schema,
        )
        held = reply.done if head.calls else not prompt.schema or _is_json("".join(texts))
        if done.ended == "stop" and not held:
            raise ResponseFailed(
                "the model could not be held to the schema: simplify it",
                code="invalid_json_schema",
                status=400,
            )
        return self._finish(prompt, done, self._prompts.memory(prompt, done.ids))

    def _complete(self, turn: _Turn, prompt: Prompt, **options: Any) -> Completion:
        ids = prompt.tokens.ids()
        done = self._model.complete(
            turn.slot.number,
            ids,
            stop=lambda: turn.stopped,
            cache_prompt=self._cache,
            **options,
        )
        if done.read:
            # The last token that was said has not been read.
            turn.slot.ids = ids[: done.read] + ids_of(done.ids[:-1])
        return done

    def _finish(self, prompt: Prompt, done: Completion, memory: Any) -> Finish:
        told = done.timings.get
        return Finish(
            usage=Usage.of(
                input_tokens=prompt.tokens.length,
                cached_tokens=told("cache_n", 0),
                output_tokens=told("predicted_n", 0),
            ),
            memory=memory,
            incomplete="max_output_tokens" if done.ended == "length" else None,
            timings={name: told(name, 0) for name in _TIMINGS},
        )


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
