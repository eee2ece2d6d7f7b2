"""The engine over a local model: a seat gets a KV slot and keeps it while slots last.

When they run out, whoever was idle longest gives way, and pays for it with a full prefill
when it comes back. A turn runs on a thread of its own; a piece reaches the loop in one hop.

Rule 1: a slot that changes its owner reuses nothing and counts nothing as cached.
Rule 2: a slot is free when its thread has come back, not when its reader has gone.
Rule 3: what the model counts is what is told: cached tokens come from its timings alone.
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
from ipy_agent.protocol.events import Usage
from ipy_agent.server.engine import Finish, Job, Piece, TextPiece
from ipy_agent.server.gguf import Completion, Counts, Gguf
from ipy_agent.server.prompt import Prompt, Prompts
from ipy_agent.server.reply import Reply

__all__ = ["LONGEST_ANSWER", "LlamaEngine"]

LONGEST_ANSWER = 1024
"""Tokens of an answer for which the client sets no limit: a small model may never end."""

_TIMINGS = ("prompt_n", "cache_n", "prompt_ms", "predicted_n", "predicted_ms")


@dataclass(slots=True, eq=False)
class _Slot:
    """One KV cache, whose it is, and when it was last taken (0: nobody's).

    `filled` once a turn of that seat has come to its end there: until then what the cache
    holds may be somebody else's.
    """

    number: int
    seat: object = None
    busy: bool = False
    taken: int = 0
    filled: bool = False


@dataclass(slots=True, eq=False)
class _Turn:
    """One turn on its thread."""

    slot: _Slot
    put: Callable[[Piece], None]
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
        self._name = name
        self._cache = cache
        self._slots = [_Slot(number) for number in range(slots)]
        self._taken = 0
        self._waiting: list[asyncio.Future[None]] = []
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

    async def generate(self, job: Job, seat: object) -> AsyncGenerator[Piece]:
        model = job.fields.values.get("model")
        if model not in (None, "", self._name):
            raise ResponseFailed(
                f"the model {model!r} is not served here: take {self._name!r}",
                code="model_not_found",
                status=404,
                param="model",
            )
        slot = await self._take(seat)
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Piece | None] = asyncio.Queue()

        def put(piece: Piece) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has gone, and its readers with it
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def over(end: asyncio.Future[Finish]) -> None:
            end.exception()  # taken note of, even if nobody reads on
            self._turns.discard(turn)
            self._release(slot)
            pieces.put_nowait(None)

        turn = _Turn(slot, put)
        self._turns.add(turn)
        end = loop.run_in_executor(self._threads, self._run, job, turn)
        end.add_done_callback(over)
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            yield end.result()
        finally:
            turn.stopped = True

    async def leave(self, seat: object) -> None:
        """Free the slot of a seat and erase what is in it, once its turn has let go of it."""
        for slot in self._slots:
            while slot.seat is seat and slot.busy:
                await self._change()
            if slot.seat is seat:
                slot.seat, slot.taken, slot.busy = None, 0, True
                loop = asyncio.get_running_loop()
                erased = loop.run_in_executor(self._threads, self._model.erase, slot.number)
                erased.add_done_callback(functools.partial(self._release, slot))
                await asyncio.shield(erased)

    async def aclose(self) -> None:
        """Stop whatever runs, and unload the model."""
        for turn in self._turns:
            turn.stopped = True
        await asyncio.to_thread(self._threads.shutdown)
        self._model.close()

    async def _take(self, seat: object) -> _Slot:
        """Wait for a slot: the seat's own if it still has one."""
        while (slot := self._choice(seat)) is None:
            await self._change()
        self._taken += 1
        slot.filled = slot.filled and slot.seat is seat
        slot.seat, slot.taken, slot.busy = seat, self._taken, True
        return slot

    def _choice(self, seat: object) -> _Slot | None:
        """Return the seat's own slot, else nobody's, else the one that idled longest."""
        for slot in self._slots:
            if slot.seat is seat:
                return None if slot.busy else slot
        idle = (slot for slot in self._slots if not slot.busy)
        return min(idle, key=lambda slot: slot.taken, default=None)

    async def _change(self) -> None:
        """Wait until a slot is given back."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await waiter

    def _release(self, slot: _Slot, _: object = None) -> None:
        slot.busy = False
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def _run(self, job: Job, turn: _Turn) -> Finish:
        """Do a turn; this runs on its thread."""
        prompt = self._prompts.prompt(job)
        room = self.window - prompt.tokens.length
        if room < 1:
            raise ResponseFailed(
                f"the conversation has {prompt.tokens.length} tokens and the context window "
                f"{self.window}: begin a new one, or serve a larger context",
                code="context_length_exceeded",
                status=400,
                param="input",
            )
        turn.put(TextPiece(""))
        if job.generate:
            return self._answer(job, turn, prompt, room)
        done = Completion()
        if prompt.tokens.length:
            done = self._complete(turn, prompt, max_tokens=1)
            done.timings["predicted_n"] = 0
        return self._finish(prompt, done, self._prompts.memory(prompt, None))

    def _answer(self, job: Job, turn: _Turn, prompt: Prompt, room: int) -> Finish:
        values = job.fields.values
        schema = prompt.head.grammar(values.get("tool_choice"))
        reply = Reply(prompt.head.answer, raw=prompt.head.schema is not None)
        texts: list[str] = []

        def take(text: str) -> None:
            texts.append(text)
            for piece in reply.feed(text) if prompt.head.calls else (TextPiece(text),):
                turn.put(piece)

        asked = values.get("max_output_tokens")
        done = self._complete(
            turn,
            prompt,
            take=take,
            max_tokens=min(asked if isinstance(asked, int) and asked > 0 else LONGEST_ANSWER, room),
            temperature=values.get("temperature") or 0,
            **({"top_p": values["top_p"]} if values.get("top_p") is not None else {}),
            schema=schema,
        )
        held = reply.done if prompt.head.calls else not schema or _is_json("".join(texts))
        if done.ended == "stop" and not held:
            raise ResponseFailed(
                "the model could not be held to the schema: simplify it",
                code="invalid_json_schema",
                status=400,
            )
        return self._finish(prompt, done, self._prompts.memory(prompt, done.ids))

    def _complete(self, turn: _Turn, prompt: Prompt, **options: Any) -> Completion:
        done = self._model.complete(
            turn.slot.number,
            prompt.tokens.ids(),
            stop=lambda: turn.stopped,
            cache_prompt=self._cache and turn.slot.filled,
            **options,
        )
        turn.slot.filled = turn.slot.filled or done.ended is not None
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
