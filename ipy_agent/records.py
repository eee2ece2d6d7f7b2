"""What happened, as rows: a fold over the stream of each run.

The recorder listens: leave it out and nothing else changes. It does the same work at turn
200 as at turn 2. What did not happen is `None` here and NA in the tables, never 0. Runs on
several branches may go on at a time; each is told to a listener of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, ClassVar

import msgspec

from ipy_agent.protocol.events import (
    TERMINAL,
    ArgumentsDelta,
    Event,
    ItemAdded,
    ItemDone,
    Other,
    TextDelta,
    ThoughtDelta,
)
from ipy_agent.protocol.items import Item
from ipy_agent.protocol.response import Response
from ipy_agent.trace import (
    ItemsAdded,
    RequestSent,
    ResponseEnded,
    RunBegan,
    RunEnded,
    ToolEnded,
    Trace,
    TurnBegan,
    TurnEnded,
)

__all__ = ["CellRecord", "Listener", "MessageRecord", "Recorder", "ToolRecord", "TurnRecord"]


class TurnRecord(msgspec.Struct, kw_only=True):
    """One `response.create` and the stream that answered it. Times are in milliseconds.

    `said` is the conversation as this turn left it; it is no column.
    """

    turn: int
    cell: int
    branch: str
    model: str | None = None
    endpoint: str
    transport: str | None = None
    connection: int | None = None
    reused: bool | None = None
    response_id: str | None = None
    previous_response_id: str | None = None
    started_at: datetime
    sent_items: int | None = None
    held_items: int | None = None
    sent_bytes: int | None = None
    wire_bytes: int | None = None
    full_bytes: int | None = None
    received_bytes: int | None = None
    connect_ms: float | None = None
    ttft_ms: float | None = None
    latency_ms: float | None = None
    tool_ms: float | None = None
    approval_ms: float | None = None
    input_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    cache_miss: str | None = None
    retries: int = 0
    status: str = "running"
    said: object = None

    @property
    def hit_rate(self) -> float | None:
        """Cached share of the input tokens, 0 to 1."""
        if self.cached_tokens is None or not self.input_tokens:
            return None
        return self.cached_tokens / self.input_tokens


class ToolRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a tool, and what came of it."""

    turn: int
    call_id: str
    name: str
    arguments: str
    output: str
    started_at: datetime
    duration_ms: float | None
    approval: str
    status: str


class CellRecord(msgspec.Struct, kw_only=True):
    """One run of a cell; `elapsed_ms` is from its first request to its end.

    `standing` is what became of what it said: `live` where it is sent, `stale` where a run that
    it built on was replaced, `replaced`, `undone`, `reset`; `None` where it said nothing.
    """

    cell: int
    cell_id: str | None = None
    follows: int | None = None
    branch: str
    endpoint: str
    prompt: str
    started_at: datetime
    elapsed_ms: float | None = None
    standing: str | None = None
    status: str = "running"


class MessageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One item of the conversation, and the turn that brought it."""

    cell: int
    turn: int
    branch: str
    item: Item


_FIRST_SIGNS = (TextDelta, ArgumentsDelta, ThoughtDelta)


class Recorder:
    """Holds the rows of a session. Not thread-safe: one thread tells it.

    Args:
        clock: seconds, monotonic; for differences.
        now: the date of today, in UTC; for `started_at`.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.turns: list[TurnRecord] = []
        self.tools: list[ToolRecord] = []
        self.cells: list[CellRecord] = []
        self.messages: list[MessageRecord] = []
        self.clock = clock
        self.now = now

    def listener(self) -> Listener:
        """Return what is to be told the stream of one run, from its first value to its last."""
        return Listener(self)

    def stands(self, cell: int, standing: str) -> None:
        """Take note of what became of what a run said."""
        self.cells[cell - 1].standing = standing


class Listener:
    """Folds the stream of one run into its rows. Call it with each value."""

    _cell: CellRecord
    _turn: TurnRecord

    def __init__(self, records: Recorder) -> None:
        self._records = records
        self._clock = records.clock
        self._began = 0.0
        self._run_since = 0.0
        self._item_seen: float | None = None
        self._resent: str | None = None
        self._minimum = 0

    @property
    def cell(self) -> int:
        """The number of the run, from its first value on."""
        return self._cell.cell

    @property
    def row(self) -> CellRecord:
        """The run's row."""
        return self._cell

    @property
    def turn(self) -> TurnRecord:
        """The row of the run's latest turn."""
        return self._turn

    @property
    def tool(self) -> ToolRecord:
        """The row of the tool call that ended last, of any run."""
        return self._records.tools[-1]

    def __call__(self, event: Event | Trace) -> None:
        """Take note of one value of the stream."""
        note = self._NOTES.get(type(event))
        if note is not None:
            note(self, event)

    def _run_began(self, event: RunBegan) -> None:
        self._run_since = self._clock()
        self._minimum = event.cache_minimum
        cells = self._records.cells
        self._cell = CellRecord(
            cell=len(cells) + 1,
            cell_id=event.cell_id,
            follows=event.follows,
            branch=event.branch,
            endpoint=event.endpoint,
            prompt=event.prompt,
            started_at=self._records.now(),
        )
        cells.append(self._cell)

    def _run_ended(self, event: RunEnded) -> None:
        self._cell.elapsed_ms = _ms(self._clock() - self._run_since)
        self._cell.status = event.status

    def _turn_began(self, event: TurnBegan) -> None:
        self._began = self._clock()
        self._item_seen = None
        turns, cell = self._records.turns, self._cell
        self._turn = TurnRecord(
            turn=len(turns) + 1,
            cell=cell.cell,
            branch=cell.branch,
            endpoint=cell.endpoint,
            model=event.model,
            started_at=self._records.now(),
        )
        turns.append(self._turn)

    def _request_sent(self, event: RequestSent) -> None:
        row = self._turn
        sent, wire = row.sent_bytes, row.wire_bytes
        for name in _SENT:
            setattr(row, name, getattr(event, name))
        if sent is not None:  # what a turn cost, however often it was sent
            row.sent_bytes = sent + event.sent_bytes
            row.wire_bytes = _both(wire, event.wire_bytes)
        row.retries = event.attempt
        row.ttft_ms = self._item_seen = None  # what came of an earlier try is superseded
        self._resent = event.resent

    def _first_sign(self, _event: Event) -> None:
        row = self._turn
        if row.ttft_ms is None:
            row.ttft_ms = _ms(self._clock() - self._began)

    def _unknown(self, event: Other) -> None:
        if event.type.endswith(".delta"):
            self._first_sign(event)

    def _item(self, _event: ItemAdded | ItemDone) -> None:
        if self._item_seen is None:
            self._item_seen = self._clock()

    def _terminal(self, event: Any) -> None:
        row, now = self._turn, self._clock()
        row.latency_ms = _ms(now - self._began)
        if row.ttft_ms is None:
            first = now if self._item_seen is None else self._item_seen
            row.ttft_ms = _ms(first - self._began)
        response: Response = event.response
        row.response_id = response.id
        row.model = response.model or row.model
        if response.usage is not None:
            row.input_tokens = response.usage.input_tokens
            row.output_tokens = response.usage.output_tokens
            for name in ("cached_tokens", "cache_write_tokens", "reasoning_tokens"):
                setattr(row, name, response.usage.detail(name))
        row.cache_miss = self._why_missed(row, response.prompt_cache_diagnostics)

    def _why_missed(self, row: TurnRecord, diagnosis: Any) -> str | None:
        """Return what the endpoint says of it, else what its client knows; of a hit, nothing."""
        told = diagnosis.get("type") if isinstance(diagnosis, dict) else None
        if told in ("cache_hit", "cache_miss"):
            return str(diagnosis.get("reason")) if told == "cache_miss" else None
        if row.cached_tokens != 0 or not row.input_tokens:
            return None
        return "below_minimum" if row.input_tokens < self._minimum else self._resent

    def _response_ended(self, event: ResponseEnded) -> None:
        self._turn.received_bytes = event.received_bytes

    def _items_added(self, event: ItemsAdded) -> None:
        row = self._turn
        self._records.messages += [
            MessageRecord(cell=row.cell, turn=row.turn, branch=row.branch, item=item)
            for item in event.items
        ]

    def _tool_ended(self, event: ToolEnded) -> None:
        row = self._turn
        row.tool_ms = _sum(row.tool_ms, event.duration_ms)
        row.approval_ms = _sum(row.approval_ms, event.approval_ms)
        self._records.tools.append(
            ToolRecord(
                turn=row.turn,
                call_id=event.call_id,
                name=event.name,
                arguments=event.arguments,
                output=event.output,
                started_at=event.started_at,
                duration_ms=event.duration_ms,
                approval=event.approval,
                status=event.status,
            )
        )

    def _turn_ended(self, event: TurnEnded) -> None:
        row = self._turn
        if row.latency_ms is None:
            row.latency_ms = _ms(self._clock() - self._began)
        row.said = event.said
        row.status = event.status  # last: who reads on another thread takes it for the end

    _NOTES: ClassVar[dict[type, Callable[[Listener, Any], None]]] = {
        RunBegan: _run_began,
        RunEnded: _run_ended,
        TurnBegan: _turn_began,
        RequestSent: _request_sent,
        ResponseEnded: _response_ended,
        Other: _unknown,
        ItemAdded: _item,
        ItemDone: _item,
        ItemsAdded: _items_added,
        ToolEnded: _tool_ended,
        TurnEnded: _turn_ended,
        **dict.fromkeys(_FIRST_SIGNS, _first_sign),
        **dict.fromkeys(TERMINAL, _terminal),
    }


_SENT = (
    "transport",
    "connection",
    "reused",
    "connect_ms",
    "previous_response_id",
    "sent_items",
    "held_items",
    "sent_bytes",
    "wire_bytes",
    "full_bytes",
)


def _ms(seconds: float) -> float:
    return seconds * 1_000


def _both(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


def _sum(total: float | None, more: float | None) -> float | None:
    return total if more is None else (total or 0.0) + more
