"""A local GGUF model behind the server: llama.cpp's slots through xllamacpp.

A seat gets a slot and keeps it, with its KV cache, while slots last; then whoever was idle
longest gives way, and pays for it with a full prefill when it comes back. A turn runs on a
thread of its own; its pieces reach the loop in one hop each.

Rule 1: every request names its slot. One that does not takes somebody's cache.
Rule 2: a slot that changes its owner reuses nothing and counts nothing as cached.
Rule 3: a slot is free when its thread has come back, not when its reader has gone.
Rule 4: prompts are ids, never text: xllamacpp would read control tokens out of a text.
"""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ipy_agent.errors import MissingExtra, ModelUnavailable, ResponseFailed
from ipy_agent.protocol.events import Usage
from ipy_agent.server.engine import Finish, Job, Piece, TextPiece
from ipy_agent.server.prompt import Part, Prompt, Prompts
from ipy_agent.server.reply import Reply

try:
    import xllamacpp
except ImportError as missing:
    raise MissingExtra("the local model", "local") from missing

__all__ = ["Counts", "LlamaEngine", "memory_available"]

LONGEST_ANSWER = 1024
"""Tokens of an answer for which the client sets no limit: a small model may never end."""

_CONTEXTS = (8192, 4096, 2048)
_BATCH = 128
_KV_BYTES = 32 * 2**10
_OVERHEAD = 400 * 2**20
_TIMINGS = ("prompt_n", "cache_n", "prompt_ms", "predicted_n", "predicted_ms")


@dataclass(slots=True)
class Counts:
    """What the engine has done since it was loaded, in tokens; a test of stopping reads them."""

    prefilled: int = 0
    generated: int = 0


@dataclass(slots=True, eq=False)
class _Slot:
    """One KV cache of llama.cpp."""

    number: int
    seat: object = None
    busy: bool = False
    used: int = 0


@dataclass(slots=True, eq=False)
class _Turn:
    """One turn while it runs, on its thread."""

    slot: _Slot
    warm: bool
    put: Callable[[Piece], None]
    stop: bool = False
    said: list[tuple[str, int]] = field(default_factory=list)
    timings: dict[str, Any] = field(default_factory=dict)
    ended: str | None = None
    refusal: dict[str, Any] | None = None
    prefilled: int = 0


class LlamaEngine:
    """Answers from a GGUF model that speaks ChatML.

    Loading blocks for some seconds. One engine serves any number of loops, one at a time.

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
        file = Path(path)
        context = _context(file, slots, context, memory_available())
        self.counts = Counts()
        self._name = name
        self._cache = cache
        self._slots = [_Slot(number) for number in range(slots)]
        self._clock = 0
        self._waiting: list[asyncio.Future[None]] = []
        self._running: set[_Turn] = set()
        self._folder = tempfile.TemporaryDirectory(prefix="ipy-agent-")
        self._socket = f"{self._folder.name}/x.sock"
        params = _params(file, slots, context, threads or _cores(), self._socket)
        try:
            self._llama: Any = xllamacpp.Server(params)
        except RuntimeError:
            self._folder.cleanup()
            raise ModelUnavailable(f"{file} is no model that llama.cpp can load") from None
        self.window: int = self._ask("GET", "/props")["default_generation_settings"]["n_ctx"]
        start, end = (self._control(token) for token in ("<|im_start|>", "<|im_end|>"))
        self._prompts = Prompts(self._tokenise, start=start, end=end)
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="llama")

    @property
    def models(self) -> Sequence[str]:
        return (self._name,)

    async def generate(self, job: Job, seat: object) -> AsyncIterator[Piece]:
        model = job.fields.values.get("model")
        if model not in (None, "", self._name):
            raise ResponseFailed(
                f"the model {model!r} is not served here: take {self._name!r}",
                code="model_not_found",
                status=404,
                param="model",
            )
        slot, warm = await self._take(seat)
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
        turn = _Turn(slot, warm, lambda piece: _hop(loop, pieces, piece))
        self._running.add(turn)
        end = loop.run_in_executor(self._threads, self._run, job, turn)
        end.add_done_callback(lambda _: self._release(slot, turn))
        end.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            yield end.result()
        finally:
            turn.stop = True

    async def leave(self, seat: object) -> None:
        """Free the slot of a seat and erase what is in it, when its turn has let go of it."""
        for slot in self._slots:
            if slot.seat is seat:
                await self._until(lambda: not slot.busy)
                if slot.seat is seat:
                    slot.seat, slot.used, slot.busy = None, 0, True
                    loop = asyncio.get_running_loop()
                    erased = loop.run_in_executor(self._threads, self._erase, slot)
                    erased.add_done_callback(lambda _: self._release(slot))
                    await asyncio.shield(erased)
                return

    async def aclose(self) -> None:
        """Stop whatever runs, and unload the model."""
        for turn in self._running:
            turn.stop = True
        await asyncio.to_thread(self._threads.shutdown, wait=True)
        self._llama = None
        gc.collect()
        self._folder.cleanup()

    async def _take(self, seat: object) -> tuple[_Slot, bool]:
        """Wait for a slot; tell too whether it holds what this seat left in it."""
        await self._until(lambda: self._choice(seat) is not None)
        slot = self._choice(seat)
        assert slot is not None  # noqa: S101 (nothing was awaited in between)
        warm = slot.seat is seat
        self._clock += 1
        slot.seat, slot.busy, slot.used = seat, True, self._clock
        return slot, warm

    def _choice(self, seat: object) -> _Slot | None:
        """Return the seat's own slot, else an empty one, else that which idled longest."""
        for slot in self._slots:
            if slot.seat is seat:
                return None if slot.busy else slot
        return min((s for s in self._slots if not s.busy), key=lambda s: s.used, default=None)

    async def _until(self, true: Callable[[], bool]) -> None:
        while not true():
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter

    def _release(self, slot: _Slot, turn: _Turn | None = None) -> None:
        slot.busy = False
        if turn is not None:
            self._running.discard(turn)
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    # What follows runs on the turn's thread.

    def _run(self, job: Job, turn: _Turn) -> Finish:
        prompt = self._prompts.prompt(job)
        size = prompt.tokens.length
        room = self.window - size - 1
        if room < 0:
            raise ResponseFailed(
                f"the conversation has {size} tokens and the context window {self.window}: "
                "begin a new one, or serve a larger context",
                code="context_length_exceeded",
                status=400,
                param="input",
            )
        turn.put(TextPiece(""))
        if not size:
            return _finish(turn, size, self._prompts.memory(prompt, None), None)
        if not job.generate:
            self._complete(turn, {"prompt": prompt.tokens.ids(), "max_tokens": 1}, lambda _: None)
            turn.timings["predicted_n"] = 0
            return _finish(turn, size, self._prompts.memory(prompt, None), None)
        return self._answer(job, turn, prompt, room)

    def _answer(self, job: Job, turn: _Turn, prompt: Prompt, room: int) -> Finish:
        values = job.fields.values
        schema = _schema(prompt, values.get("tool_choice"))
        reply = Reply(prompt.head.answer, raw=prompt.head.schema is not None)
        constrained = bool(prompt.head.calls)

        def take(text: str) -> None:
            for piece in reply.feed(text) if constrained else (TextPiece(text),):
                turn.put(piece)

        asked = values.get("max_output_tokens") or LONGEST_ANSWER
        body = {
            "prompt": prompt.tokens.ids(),
            "max_tokens": max(1, min(asked, room)),
            "temperature": values.get("temperature") or 0,
            "top_p": 1.0 if values.get("top_p") is None else values["top_p"],
            **({"json_schema": schema} if schema else {}),
        }
        self._complete(turn, body, take)
        if schema and turn.ended == "stop" and not (reply.done if constrained else _is_json(turn)):
            raise ResponseFailed(
                "the model could not be held to the schema: simplify the tools' parameters",
                code="invalid_json_schema",
                status=400,
            )
        incomplete = "max_output_tokens" if turn.ended == "length" else None
        memory = self._prompts.memory(prompt, self._said(turn))
        return _finish(turn, prompt.tokens.length, memory, incomplete)

    def _complete(self, turn: _Turn, body: dict[str, Any], take: Callable[[str], None]) -> None:
        """Run one completion on the turn's slot, until it ends or its reader goes."""

        def heard(chunk: dict[str, Any]) -> bool:
            if "error" in chunk:
                turn.refusal = chunk["error"]
                return True
            progress = chunk.get("prompt_progress")
            if progress:
                done = progress["processed"] - progress.get("cache", 0)
                self.counts.prefilled += done - turn.prefilled
                turn.prefilled = done
            choice = chunk["choices"][0]
            for token in (choice.get("logprobs") or {}).get("content", ()):
                self.counts.generated += 1
                turn.said.append((choice["text"], token["id"]))
            if choice["text"] and not turn.stop:
                take(choice["text"])
            turn.ended = choice["finish_reason"] or turn.ended
            turn.timings.update(
                {name: chunk["timings"][name] for name in _TIMINGS} if "timings" in chunk else {}
            )
            return turn.stop

        options = {
            "stream": True,
            "return_progress": True,
            "logprobs": 1,
            "id_slot": turn.slot.number,
            "cache_prompt": self._cache and turn.warm,
        }
        if not turn.stop:
            self._llama.handle_completions({**options, **body}, heard)
        if turn.refusal is not None:
            raise ResponseFailed(
                str(turn.refusal.get("message")), status=turn.refusal.get("code") or 500
            )

    def _said(self, turn: _Turn) -> list[int]:
        """Return the ids that the model generated.

        Of a character that took several tokens only the last one's id comes: the others are
        found again, and if that does not add up, the whole answer is tokenised.
        """
        ids = [token for _, token in turn.said]
        if len(ids) == turn.timings.get("predicted_n"):
            return ids
        ids = []
        for text, token in turn.said:
            again = [] if text.isascii() else self._tokenise([text])
            ids += again if again[-1:] == [token] else [token]
        if len(ids) == turn.timings.get("predicted_n"):
            return ids
        return self._tokenise(["".join(text for text, _ in turn.said)])

    def _erase(self, slot: _Slot) -> None:
        turn = _Turn(slot, warm=False, put=lambda _: None)
        self._complete(turn, {"prompt": [0, 0, 0], "max_tokens": 1}, lambda _: None)

    def _tokenise(self, parts: Sequence[Part]) -> list[int]:
        body = {"content": list(parts), "add_special": False, "parse_special": False}
        return list(self._ask("POST", "/tokenize", body)["tokens"])

    def _control(self, token: str) -> int:
        body = {"content": token, "add_special": False, "parse_special": True}
        ids = self._ask("POST", "/tokenize", body)["tokens"]
        if len(ids) != 1:
            raise ModelUnavailable(
                f"the model does not know {token}: take one that speaks ChatML, such as Qwen"
            )
        return int(ids[0])

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        line = _Line(self._socket)
        try:
            said = None if body is None else json.dumps(body)
            line.request(method, path, said, {"Content-Type": "application/json"})
            return json.loads(line.getresponse().read())
        finally:
            line.close()


class _Line(http.client.HTTPConnection):
    """HTTP over a unix socket: xllamacpp's own port, which nobody else can reach."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)
