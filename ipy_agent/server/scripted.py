"""An engine that answers from a list: the same server without a model.

A script is a JSON list with an entry a turn, drawn by whoever comes next on whichever
connection; a warm-up uses up none. Past its end the last user text is echoed. A token is a
word here. The words that a connection's cache holds count as cached, on a fork too; what
comes from the server's store has to be read anew.

Rule 1: every wait gives way to the other lanes, however fast the script is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from ipy_agent.errors import UsageError
from ipy_agent.protocol.items import Chain, text
from ipy_agent.protocol.response import Usage
from ipy_agent.protocol.script import Entry, entries, pieces
from ipy_agent.server.engine import CallPiece, Finish, HangUp, Job, Piece, TextPiece
from ipy_agent.server.frames import from_user

__all__ = ["ScriptedEngine", "load"]


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
        self._entries = iter(entries(script))
        self._model = model

    @property
    def models(self) -> tuple[str, ...]:
        return (self._model,)

    async def generate(self, job: Job, seat: object) -> AsyncIterator[Piece]:  # noqa: ARG002
        """Answer a job with the next entry. The memory is the number of words held."""
        held = job.memory or 0
        asked = held + sum(len(text(item).split()) for item in job.input.since(job.held))
        entry = Entry(text="")
        if job.generate:
            entry = next(self._entries, None) or Entry(text=_last_user_text(job.input))
            async with contextlib.aclosing(_played(entry)) as pieces:
                async for piece in pieces:
                    yield piece
        said = entry.words()
        cached = 0 if job.cold else held
        usage = Usage.of(input_tokens=asked, cached_tokens=cached, output_tokens=said)
        yield Finish(usage=usage, memory=asked + said)

    async def leave(self, seat: object) -> None:
        """Do nothing: a seat holds nothing here."""

    async def aclose(self) -> None:
        """Do nothing: there is nothing to stop."""


async def _played(entry: Entry) -> AsyncGenerator[Piece, None]:
    """Say an entry's pieces; then fail, hang or hang up where it orders that."""
    if not entry.delay_ms:  # give way before it begins: with its first piece it is one write
        await asyncio.sleep(0)
    if entry.text is not None or entry.tool_calls is not None:
        yield TextPiece("")
    for number, piece in enumerate(_pieces(entry)):
        if number or entry.delay_ms:
            await asyncio.sleep(entry.delay_ms / 1_000)
        yield piece
    if entry.error is not None:
        await asyncio.sleep(entry.delay_ms / 1_000)
        raise entry.error.error() from _hang_up(entry)
    if entry.then == "hang":
        await asyncio.Event().wait()
    if end := _hang_up(entry):
        raise end


def _hang_up(entry: Entry) -> HangUp | None:
    """Return the end of the connection that an entry orders, if it does."""
    ends = entry.then is not None and entry.then != "hang"
    return HangUp(entry.close_code) if ends else None


def _pieces(entry: Entry) -> Iterator[TextPiece | CallPiece]:
    yield from map(TextPiece, pieces(entry.text or "", entry.chunk_chars))
    for call in entry.tool_calls or ():
        yield CallPiece(name=call.name)
        yield from map(CallPiece, pieces(call.encoded, entry.chunk_chars))


def _last_user_text(conversation: Chain) -> str:
    node: Chain | None = conversation
    while node is not None and node.parent is not None:
        if from_user(node.item):
            return text(node.item)
        node = node.parent
    return ""
