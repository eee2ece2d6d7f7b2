"""What is shown of a turn: a line of numbers, the same in every picture of the turns.

`COLUMNS` says what the cells of a line say. A line is read from its row at one moment, so
that the row may grow on another thread; `Totals` is a fold, and costs the same at any length.

Rule: a cell has a few characters, whatever number or word an endpoint made up.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from ipy_agent.records import TurnRecord
from ipy_agent.tables.frames import model_ms, share

__all__ = [
    "CACHED",
    "COLUMNS",
    "MODEL",
    "NBSP",
    "TOOLS",
    "WAITING",
    "Column",
    "Line",
    "Totals",
    "rate",
]

MODEL, TOOLS, WAITING, CACHED = "#38d", "#e90", "#999", "#1a7"
UNKNOWN = "\N{EN DASH}"
NBSP = "\N{NO-BREAK SPACE}"


class Line(NamedTuple):
    """What is shown of a turn, or of all of them together."""

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

    @classmethod
    def of(cls, row: TurnRecord, elapsed_ms: float | None = None) -> Line:
        """Return the line of a row; of one that still runs, with the time it has run so far."""
        status, latency = row.status, model_ms(row)
        if status == "running" and elapsed_ms is not None:
            status = f"running {elapsed_ms / 1000:.1f} s"
            latency = elapsed_ms if latency is None else latency
        waited = [ms for ms in (row.connect_ms, row.approval_ms) if ms is not None]
        return cls(
            turn=str(row.turn),
            model_ms=_drawable(latency),
            waiting_ms=_drawable(sum(waited)) if waited else None,
            hit_rate=share(row.cached_tokens, row.input_tokens),
            status=status,
            **{name: _drawable(getattr(row, name)) for name in _SAME},
        )

    @property
    def times(self) -> tuple[float, float, float]:
        """Milliseconds with the model, in tools and waiting; a bar has no width for NA."""
        return (self.model_ms or 0.0, self.tool_ms or 0.0, self.waiting_ms or 0.0)


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
        return Line(
            turn="all",
            hit_rate=self._sums["cached"] / self._sums["asked"] if "asked" in self._sums else None,
            status="" if whole else f"{self._completed:,} of {self.turns:,}",
            **{name: self._sums.get(name) for name in _SUMMED},
        )


_SUMMED = ("model_ms", "waiting_ms", *(name for name in _SAME if name != "ttft_ms"))


def count(value: float | None) -> str:
    """Return a number to read, thousands apart; millions and more are rounded."""
    if value is None:
        return UNKNOWN
    for limit, form in _COUNTS:
        if value < limit:
            return form.format(value, value / 1e6)
    return f"{value:.1e}"


def size(value: float | None) -> str:
    """Return a number of bytes to read, in decimal units."""
    if value is None:
        return UNKNOWN
    for limit, form in _SIZES:
        if value < limit:
            return form.format(value / limit * 1000)
    return f"{value:.1e}{NBSP}B"


def rate(value: float | None) -> str:
    """Return a share to read, in percent."""
    if value is None:
        return UNKNOWN
    return f"{value:.1%}" if 0 <= value <= 1 else "?"


def word(value: str) -> str:
    """Return a short word that needs no escaping."""
    return re.sub(r"[^\w ,.-]", "?", value[:20], flags=re.ASCII)


_COUNTS = ((999_999.5, "{0:,.0f}"), (999_999_999.5, f"{{1:.2f}}{NBSP}M"))
_SIZES = tuple(
    (1000 ** (step + 1), f"{{:.{min(step, 1)}f}}{NBSP}{unit}")
    for step, unit in enumerate(("B", "kB", "MB", "GB"))
)


class Column(NamedTuple):
    """One column: its heading, what its cells say, its colour in a bar, and a hint."""

    group: str
    name: str
    field: str
    says: Callable[..., str]
    colour: str = ""
    hint: str = ""

    @property
    def title(self) -> str:
        """The heading where there is only one line for it."""
        return f"{self.name} {self.group}".strip()

    def text(self, line: Line) -> str:
        """Return what the column's cell of a line says."""
        return self.says(getattr(line, self.field))


COLUMNS = (
    Column("", "turn", "turn", word),
    Column("ms", "model", "model_ms", count, MODEL),
    Column("ms", "tools", "tool_ms", count, TOOLS),
    Column("ms", "waiting", "waiting_ms", count, WAITING, "to connect, for approval"),
    Column("ms", "first", "ttft_ms", count, hint="to the first token"),
    Column("items", "sent", "sent_items", count),
    Column("items", "held", "held_items", count, hint="by the server"),
    Column("bytes", "sent", "sent_bytes", size),
    Column("bytes", "full", "full_bytes", size, hint="if nothing were held"),
    Column("tokens", "input", "input_tokens", count),
    Column("tokens", "cached", "hit_rate", rate, CACHED),
    Column("tokens", "output", "output_tokens", count),
    Column("", "status", "status", word),
)
