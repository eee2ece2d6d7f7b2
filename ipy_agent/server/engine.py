"""The seam behind which tokens are made.

A connection hands an engine one `Job` at a time per seat and gets pieces back, in the order
in which they become items: text, or a call and its arguments; last comes one `Finish`. What
the engine wants to know again when a conversation goes on (token ids, say) it returns there
as `memory`: the connection keeps it beside the conversation and gives it back, unread.

Cancelling the task that reads the pieces stops the engine; it has to let go within 2 s.
An engine refuses a job by raising `ResponseFailed` before its first piece, fails it by
raising it later. One that takes a job and needs long for its first word says an empty
`TextPiece` at once: the client then hears that its turn has begun.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

import msgspec

from ipy_agent.protocol.items import Chain
from ipy_agent.protocol.requests import Fields
from ipy_agent.protocol.response import Usage

__all__ = ["CallPiece", "Engine", "Finish", "HangUp", "Job", "Piece", "TextPiece"]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One turn for an engine.

    `input` is the whole conversation. Its first `held` items are those that `memory`, the
    engine's own from an earlier turn, stands for; both are empty when nothing is held.
    `cold` says that it was stored, and that the seat's connection holds nothing of it: what
    memory tells holds for any seat, but nothing has been computed for this one.
    `generate=False` is a warm-up: take the input in, say nothing.
    """

    fields: Fields
    input: Chain
    held: int = 0
    memory: Any = None
    cold: bool = False
    generate: bool = True


class TextPiece(msgspec.Struct, frozen=True):
    """Some more of a message's text."""

    text: str


class CallPiece(msgspec.Struct, frozen=True):
    """Some more of a function call's arguments; with a `name` it begins a call."""

    arguments: str = ""
    name: str | None = None


class Finish(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a turn. `incomplete` is the reason for which it ended early, if it did."""

    usage: Usage
    memory: Any = None
    incomplete: str | None = None
    timings: dict[str, Any] | None = None


Piece = TextPiece | CallPiece | Finish


class HangUp(Exception):
    """Break the connection on purpose: with a close code, or with a reset when it is `None`.

    As the cause of a `ResponseFailed` it is carried out after the failure has been told.
    """

    def __init__(self, code: int | None) -> None:
        super().__init__(code)
        self.code = code


class Engine(Protocol):
    """What makes tokens. A seat is any object that stays the same for one lane's life."""

    @property
    def models(self) -> Sequence[str]:
        """The names that requests may ask for; the first is the default."""

    def generate(self, job: Job, seat: object) -> AsyncIterator[Piece]:
        """Answer a job."""

    async def leave(self, seat: object) -> None:
        """Free what is held for a seat: its connection is gone."""

    async def aclose(self) -> None:
        """Stop, and free everything."""
