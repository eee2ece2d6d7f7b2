"""What a journal holds: a fact for each thing that happened, which done again gives the same tree.

Rule 1: a fact is never changed; another `FORMAT` reads what it knows of an older one.
Rule 2: an item is written once: a run that left just what its turns told refers to that.
Rule 3: no key is in any of them, and nothing of the environment: each is redacted as it is written.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from ipy_agent.protocol.items import Item
from ipy_agent.records import CellRecord, ToolRecord, TurnRecord
from ipy_agent.secrets import holds_secret, redacted

__all__ = [
    "FORMAT",
    "Added",
    "Asked",
    "Begun",
    "Called",
    "Dropped",
    "Ended",
    "Fact",
    "Forked",
    "ForkedAt",
    "Intended",
    "Opened",
    "Said",
    "Switched",
    "Turned",
    "Undone",
    "decode",
    "encode",
]

FORMAT = 1


class Fact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="fact"):
    """Something that happened."""


class Opened(Fact, frozen=True, tag=True):
    """The session began, or went on in another process."""

    session: str
    at: datetime
    folder: str
    format: int = FORMAT


class Begun(Fact, frozen=True, tag=True):
    """A run began."""

    cell: CellRecord


class Asked(Fact, frozen=True, tag=True):
    """A turn began."""

    turn: TurnRecord


class Said(Fact, frozen=True, tag=True):
    """The conversation of a turn grew."""

    cell: int
    turn: int
    branch: str
    items: list[Item]


class Intended(Fact, frozen=True, tag=True):
    """A call was made. It may have been carried out since, or begun, or may not have been."""

    call_id: str
    name: str


class Called(Fact, frozen=True, tag=True):
    """A call has its output."""

    tool: ToolRecord


class Turned(Fact, frozen=True, tag=True):
    """A turn ended; the conversation had so many items then."""

    turn: TurnRecord
    length: int


class Ended(Fact, frozen=True, tag=True):
    """A run ended."""

    cell: CellRecord


class Added(Fact, frozen=True, tag=True):
    """A run has its place in the tree.

    `parent` and `replaced` are the places of runs in the order of the tree's `runs`. Without
    `items`, it said what its turns told.
    """

    number: int
    branch: str
    cell: str | None = None
    parent: int | None = None
    replaced: int | None = None
    items: list[Item] | None = None
    prompt: str = ""
    tokens: int | None = None
    left: int = 0


class Forked(Fact, frozen=True, tag=True):
    """A branch began with what is live on another."""

    name: str
    source: str


class ForkedAt(Fact, frozen=True, tag=True):
    """A branch began with the first items of what a run left."""

    name: str
    number: int
    length: int


class Switched(Fact, frozen=True, tag=True):
    """A branch is gone on with."""

    name: str


class Undone(Fact, frozen=True, tag=True):
    """The last run of a branch was taken back."""

    branch: str


class Dropped(Fact, frozen=True, tag=True):
    """A new conversation began."""


_ANY = (
    Opened
    | Begun
    | Asked
    | Said
    | Intended
    | Called
    | Turned
    | Ended
    | Added
    | Forked
    | ForkedAt
    | Switched
    | Undone
    | Dropped
)

_encode = msgspec.json.Encoder().encode


def encode(fact: Fact) -> bytes:
    """Return a fact as it is kept."""
    kept = _encode(fact)
    text = kept.decode()
    return redacted(text).encode() if holds_secret(text) else kept


decode = msgspec.json.Decoder(_ANY).decode
