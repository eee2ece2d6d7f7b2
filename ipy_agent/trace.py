"""What our own side does in a run, told in the same stream as the endpoint's events.

The transport says what it sent, the agent says which tools ran; whoever listens (the
recorder, a cell's display, a program's log) folds one stream and asks nobody anything.
Times are seconds of a monotonic clock where they are differences, UTC where they are dates.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

import msgspec

__all__ = [
    "ItemsAdded",
    "Notice",
    "RequestSent",
    "ResponseEnded",
    "RowsProgress",
    "RunBegan",
    "RunEnded",
    "Throttled",
    "ToolBegan",
    "ToolEnded",
    "Trace",
    "TurnBegan",
    "TurnEnded",
]


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """Something that our side did."""

    KIND: ClassVar[str] = "trace"
    """What it is beside an endpoint's events, which have a kind each."""


class RunBegan(Trace, frozen=True):
    """A cell run began. Below `cache_minimum` tokens the endpoint's prompt cache keeps nothing.

    `cell_id` is the front end's name for its cell, `follows` the number of the run before it.
    """

    prompt: str
    endpoint: str
    branch: str = "main"
    cell_id: str | None = None
    follows: int | None = None
    cache_minimum: int = 0


class RunEnded(Trace, frozen=True):
    """A cell run ended, with one of the statuses of a turn."""

    status: str


class TurnBegan(Trace, frozen=True):
    """A turn begins; the clock of its latency starts."""

    model: str | None


class RequestSent(Trace, frozen=True):
    """The turn's request is on the wire. Told again, with a higher `attempt`, if re-sent.

    `full_bytes` is what a request with no memory on the other side would have sent. `wire_bytes`
    is what the request took on the socket, compressed and framed, before TLS; `None` where nobody
    tells. `resent` says why nothing was left out, one of `lineage.WHY`; it is `None` where
    something was, and where there was nothing to leave out.
    """

    transport: str
    connection: int | None
    reused: bool | None
    connect_ms: float | None
    previous_response_id: str | None
    sent_items: int
    held_items: int
    sent_bytes: int
    full_bytes: int
    wire_bytes: int | None = None
    resent: str | None = None
    attempt: int = 0


class ResponseEnded(Trace, frozen=True):
    """The response's terminal event was read; nothing more comes of it."""

    received_bytes: int


class ItemsAdded(Trace, frozen=True):
    """The conversation grew by these items."""

    items: list[dict[str, Any]]


class ToolBegan(Trace, frozen=True):
    """A tool call is about to be carried out."""

    call_id: str
    name: str
    arguments: str


class ToolEnded(Trace, frozen=True):
    """A tool call has its output.

    `approval` is `auto` (nobody had to be asked), `allowed` (the user had said so before),
    `yes`, `no`, or `none` where it did not come to that; `status` is `completed`, `failed`,
    `refused` or `interrupted`.
    """

    call_id: str
    name: str
    arguments: str
    output: str
    started_at: datetime
    duration_ms: float | None
    approval: str
    approval_ms: float | None
    status: str


class TurnEnded(Trace, frozen=True):
    """The turn and the tools that it called are done; `said` is the conversation by then."""

    status: str
    said: object = None


class Notice(Trace, frozen=True):
    """A line for the user: why the next thing takes a while, or goes another way.

    A `lasting` one stays to be read when the run is over; any other gives way to what it told of.
    """

    text: str
    lasting: bool = False


class RowsProgress(Trace, frozen=True):
    """How far a map came.

    Of its `rows` `done` have an outcome: `failed` ones, and such as were `held` from before. Tokens
    and price are of what was asked now; `cost_usd` is `None` where no price is known.
    """

    rows: int
    done: int
    failed: int
    held: int
    under_way: int
    seconds: float
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_usd: float | None


class Throttled(Notice, frozen=True, kw_only=True):
    """The endpoint has too much to do, and is asked again in so many `seconds`."""

    seconds: float
