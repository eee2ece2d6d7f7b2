"""What is shown of a turn, a cell run or a tool call: a line, the same in every picture of it.

A line is read from its row at one moment, so that the row may grow on another thread; `Totals`
and `CallTotals` are folds, and cost the same at any length.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ipy_agent.records import CellRecord, ToolRecord, TurnRecord
from ipy_agent.tables.frames import model_ms, share

__all__ = ["CallLine", "CallTotals", "Line", "Totals"]


class Line(NamedTuple):
    """What is shown of a turn, of those of a cell run, or of all of them together.

    Of a cell run `turn` is its number, `turns` how many it made, and `said` its prompt.
    """

    turn: str
    model_ms: float | None = None
    tool_ms: float | None = None
    waiting_ms: float | None = None
    ttft_ms: float | None = None
    sent_items: float | None = None
    held_items: float | None = None
    sent_bytes: float | None = None
    full_bytes: float | None = None
    input_tokens: float | None = None
    hit_rate: float | None = None
    output_tokens: float | None = None
    status: str = ""
    turns: float | None = None
    said: str = ""

    @classmethod
    def of(cls, row: TurnRecord, elapsed_ms: float | None = None) -> Line:
        """Return the line of a row; of one that still runs, with the time it has run so far."""
        status, latency = row.status, model_ms(row)
        if status == "running" and elapsed_ms is not None:
            status = f"running {elapsed_ms / 1000:.1f} s"
            latency = elapsed_ms if latency is None else latency
        waited = [ms for ms in (row.connect_ms, row.approval_ms) if ms is not None]
        same: dict[str, Any] = {name: _drawable(getattr(row, name)) for name in _SAME}
        return cls(
            turn=str(row.turn),
            model_ms=_drawable(latency),
            waiting_ms=_drawable(sum(waited)) if waited else None,
            hit_rate=share(row.cached_tokens, row.input_tokens),
            status=status,
            **same,
        )

    @property
    def times(self) -> tuple[float, float, float]:
        """Milliseconds with the model, in tools and waiting; a bar has no width for NA."""
        return (self.model_ms or 0.0, self.tool_ms or 0.0, self.waiting_ms or 0.0)


class CallLine(NamedTuple):
    """What is shown of a tool call, or of all of them together."""

    turn: str
    name: str = ""
    approval: str = ""
    tool_ms: float | None = None
    output_chars: float | None = None
    status: str = ""
    hit_rate: None = None

    @classmethod
    def of(cls, row: ToolRecord) -> CallLine:
        """Return the line of a row."""
        return cls(
            turn=str(row.turn),
            name=row.name,
            approval=row.approval,
            tool_ms=_drawable(row.duration_ms),
            output_chars=len(row.output),
            status=row.status,
        )

    @property
    def times(self) -> tuple[float, float, float]:
        """As of a line: all of it in tools."""
        return (0.0, self.tool_ms or 0.0, 0.0)


_SAME = (
    "tool_ms",
    "ttft_ms",
    "sent_items",
    "held_items",
    "sent_bytes",
    "full_bytes",
    "input_tokens",
    "output_tokens",
)


def _drawable(value: float | None) -> float | None:
    return value if value is not None and 0 <= value < 2**63 else None


class Totals:
    """The sums of turns that ended; each is told once."""

    def __init__(self) -> None:
        self.turns = 0
        self._completed = 0
        self._sums: dict[str, float] = {}

    def add(self, row: TurnRecord) -> None:
        """Count a turn in."""
        line = Line.of(row)
        self.turns += 1
        self._completed += line.status == "completed"
        told = {name: getattr(line, name) for name in _SUMMED}
        if line.hit_rate is not None:
            told |= {"cached": row.cached_tokens, "asked": row.input_tokens}
        for name, value in told.items():
            if value is not None:
                self._sums[name] = self._sums.get(name, 0) + value

    @property
    def line(self) -> Line:
        """The totals as one more line."""
        whole = self._completed == self.turns
        sums: dict[str, Any] = {name: self._sums.get(name) for name in _SUMMED}
        return Line(
            turn="all",
            hit_rate=self._sums["cached"] / self._sums["asked"] if "asked" in self._sums else None,
            status="" if whole else f"{self._completed:,} of {self.turns:,}",
            turns=self.turns,
            **sums,
        )

    def of(self, cell: CellRecord) -> Line:
        """The totals as the line of the cell run whose turns they are."""
        standing = "" if cell.standing in (None, "live") else f", {cell.standing}"
        return self.line._replace(
            turn=str(cell.cell), status=f"{cell.status}{standing}", said=cell.prompt
        )


class CallTotals:
    """The sums of tool calls; each is told once."""

    def __init__(self) -> None:
        self.calls = 0
        self._completed = 0
        self._ms: float | None = None
        self._chars = 0.0

    def add(self, row: ToolRecord) -> None:
        """Count a call in."""
        line = CallLine.of(row)
        self.calls += 1
        self._completed += line.status == "completed"
        self._chars += line.output_chars or 0
        if line.tool_ms is not None:
            self._ms = (self._ms or 0.0) + line.tool_ms

    @property
    def line(self) -> CallLine:
        """The totals as one more line."""
        whole = self._completed == self.calls
        return CallLine(
            turn="all",
            tool_ms=self._ms,
            output_chars=self._chars,
            status="" if whole else f"{self._completed:,} of {self.calls:,}",
        )


_SUMMED = ("model_ms", "waiting_ms", *(name for name in _SAME if name != "ttft_ms"))
