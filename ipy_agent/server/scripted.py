"""An engine that answers from a list: the same server without a model.

A script is a JSON list with an entry a turn, drawn by whoever comes next on whichever
connection; a warm-up uses up none. Past its end the last user text is echoed. A token is a
word here, and what the connection's cache holds is counted like anything else.

Rule 1: a script is checked when it is loaded, so that a turn never fails for the script's sake.
Rule 2: every wait gives way to the other lanes, however fast the script is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from ipy_agent.errors import ResponseFailed, UsageError
from ipy_agent.protocol.events import Usage
from ipy_agent.protocol.items import Chain, Item, text
from ipy_agent.server.engine import CallPiece, Finish, HangUp, Job, Piece, TextPiece

__all__ = ["ScriptedEngine", "load"]

_CLOSE_CODES = frozenset({*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)})


class _Call(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function call; arguments that are a text are said as they are, well-formed or not."""

    name: str
    arguments: dict[str, Any] | str = {}

    @property
    def encoded(self) -> str:
        said = self.arguments
        return said if isinstance(said, str) else msgspec.json.encode(said).decode()


class _Failure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An error; without a text before it the turn is refused, with one it fails."""

    status: int = 500
    code: str = "server_error"
    message: str = "the script says so"
    param: str | None = None
    retry_after: float | None = None

    def __post_init__(self) -> None:
        if not 400 <= self.status < 600:  # noqa: PLR2004
            raise ValueError(f"an error's `status` is 400 to 599, not {self.status}")


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn: what is said, in pieces of `chunk_chars`, each after `delay_ms`."""

    text: str | None = None
    tool_calls: list[_Call] | None = None
    error: _Failure | None = None
    delay_ms: float = 0
    chunk_chars: int | None = None
    then: str | None = None

    def __post_init__(self) -> None:
        if self.text is None and self.tool_calls is None and self.error is None:
            raise ValueError("it needs a `text`, `tool_calls` or an `error`")
        if self.delay_ms < 0 or (self.chunk_chars is not None and self.chunk_chars < 1):
            raise ValueError("`delay_ms` is 0 or more, `chunk_chars` 1 or more")
        if self.error and self.then == "hang":
            raise ValueError("an `error` ends the turn: nothing is left to hang")
        self.hang_up()

    def hang_up(self) -> HangUp | None:
        """Return the end of the connection that the entry orders, if it does."""
        if self.then in (None, "hang"):
            return None
        if self.then == "reset":
            return HangUp(None)
        word, _, code = str(self.then).partition(":")
        if word != "close" or not code.isdecimal() or int(code) not in _CLOSE_CODES:
            raise ValueError(f"`then` is close:CODE, reset or hang, not {self.then!r}")
        return HangUp(int(code))

    def pieces(self) -> Iterator[TextPiece | CallPiece]:
        yield from (TextPiece(part) for part in self._parts(self.text or ""))
        for call in self.tool_calls or ():
            yield CallPiece(name=call.name)
            yield from (CallPiece(part) for part in self._parts(call.encoded))

    def words(self) -> int:
        calls = self.tool_calls or ()
        return sum(len(said.split()) for said in (self.text or "", *(c.encoded for c in calls)))

    def _parts(self, said: str) -> Iterator[str]:
        size = self.chunk_chars or len(said) or 1
        return (said[at : at + size] for at in range(0, len(said), size))


def load(path: Path) -> list[Any]:
    """Return the script that a file holds.

    Raises:
        UsageError: it cannot be read, or is not JSON.
    """
    try:
        script = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(f"the script {path} cannot be read: {error}") from None
    if not isinstance(script, list):
        raise UsageError(f"the script {path} is not a JSON list with an entry a turn")
    return script


class ScriptedEngine:
    """Answers from a script.

    Args:
        script: an entry a turn, as plain data.
        model: the name it goes by; it answers to any other as well.

    Raises:
        UsageError: an entry is not what an entry may be; the message has its number.
    """

    def __init__(self, script: Iterable[Any] = (), *, model: str = "scripted") -> None:
        self._entries = iter([_entry(number, said) for number, said in enumerate(script, 1)])
        self._model = model

    @property
    def models(self) -> tuple[str, ...]:
        return (self._model,)

    async def generate(self, job: Job, seat: object) -> AsyncIterator[Piece]:  # noqa: ARG002
        """Answer a job with the next entry. The memory is the number of words held."""
        cached = job.memory or 0
        asked = cached + sum(len(text(item).split()) for item in job.input.since(job.held))
        entry = _Entry(text="")
        if job.generate:
            entry = next(self._entries, None) or _Entry(text=_last_user_text(job.input))
            async with contextlib.aclosing(_played(entry)) as pieces:
                async for piece in pieces:
                    yield piece
        said = entry.words()
        usage = Usage.of(input_tokens=asked, cached_tokens=cached, output_tokens=said)
        yield Finish(usage=usage, memory=asked + said)

    async def leave(self, seat: object) -> None:
        """Do nothing: a seat holds nothing here."""

    async def aclose(self) -> None:
        """Do nothing: there is nothing to stop."""


async def _played(entry: _Entry) -> AsyncGenerator[Piece, None]:
    """Say an entry's pieces; then fail, hang or hang up where it orders that."""
    if entry.text is not None or entry.tool_calls is not None:
        yield TextPiece("")
    for piece in entry.pieces():
        await asyncio.sleep(entry.delay_ms / 1_000)
        yield piece
    if entry.error is not None:
        await asyncio.sleep(entry.delay_ms / 1_000)
        raise _failure(entry.error) from entry.hang_up()
    if entry.then == "hang":
        await asyncio.Event().wait()
    if end := entry.hang_up():
        raise end


def _failure(said: _Failure) -> ResponseFailed:
    return ResponseFailed(
        said.message,
        code=said.code,
        status=said.status,
        param=said.param,
        retry_after=said.retry_after,
    )


def _entry(number: int, said: Any) -> _Entry:
    try:
        return msgspec.convert(said, _Entry)
    except msgspec.ValidationError as error:
        raise UsageError(f"entry {number} of the script does not fit: {error}") from None


def _last_user_text(conversation: Chain) -> str:
    node: Chain | None = conversation
    while node is not None and node.parent is not None:
        if _from_user(node.item):
            return text(node.item)
        node = node.parent
    return ""


def _from_user(item: Item) -> bool:
    return item.get("role") == "user" and item.get("type", "message") == "message"
