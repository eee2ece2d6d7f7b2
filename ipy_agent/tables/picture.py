"""The turns at a glance: one table, as HTML to look at and as aligned text for the rest.

`COLUMNS` says once, for every form, what a line shows. A line is read from its row at one
moment, so that the row may grow on another thread; the totals are a fold, so that they cost
the same at any length.

Rule 1: readable without colour and without styles: what a bar shows also stands as text.
Rule 2: twenty lines and the totals take less than 8 kB, whatever is in them. That is why
cells and rows are not closed, which HTML does not ask for, and bars are backgrounds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ipy_agent.records import TurnRecord
from ipy_agent.rendering import escape, plain, stripes
from ipy_agent.tables.frames import model_ms, share

__all__ = ["COLUMNS", "Line", "Totals", "summary", "turns_html", "turns_text"]

MODEL, TOOLS, WAITING, CACHED = "#38d", "#e90", "#999", "#1a78"
UNKNOWN = "–"


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
            status = f"running {elapsed_ms / 1000:,.1f} s"
            latency = elapsed_ms if latency is None else latency
        waited = [ms for ms in (row.connect_ms, row.approval_ms) if ms is not None]
        same = {name: _number(getattr(row, name)) for name in _SAME}
        return cls(
            turn=str(row.turn),
            model_ms=_number(latency),
            waiting_ms=_number(sum(waited)) if waited else None,
            hit_rate=share(row.cached_tokens, row.input_tokens),
            status=status,
            **same,
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


def _number(value: float | None) -> float | None:
    """Return a number that can be drawn, or `None`."""
    return value if value is not None and abs(value) < 2**63 else None


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
        rate = self._sums["cached"] / self._sums["asked"] if "asked" in self._sums else None
        failed = self.turns - self._completed
        return Line(
            turn="all",
            hit_rate=rate,
            status=f"{failed:,} not completed" if failed else "",
            **{name: self._sums.get(name) for name in _SUMMED},
        )


_SUMMED = ("model_ms", "waiting_ms", *(name for name in _SAME if name != "ttft_ms"))


def _count(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.2e}"


def _size(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.5:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def _rate(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:.1%}" if 0 <= value <= 1 else "over 100%" if value > 1 else "under 0%"


def _word(value: str) -> str:
    return plain(value)[:22]


class _Column(NamedTuple):
    """One column: its heading, what its cells say, and the colour it has in a bar."""

    group: str
    name: str
    field: str
    says: Callable[..., str]
    colour: str = ""

    @property
    def title(self) -> str:
        """The heading where there is only one line for it."""
        return f"{self.name} {self.group}".strip()

    def text(self, line: Line) -> str:
        """Return what the column's cell of a line says."""
        return self.says(getattr(line, self.field))


COLUMNS = (
    _Column("", "turn", "turn", _word),
    _Column("ms", "model", "model_ms", _count, MODEL),
    _Column("ms", "tools", "tool_ms", _count, TOOLS),
    _Column("ms", "waiting", "waiting_ms", _count, WAITING),
    _Column("ms", "first token", "ttft_ms", _count),
    _Column("items", "sent", "sent_items", _count),
    _Column("items", "held", "held_items", _count),
    _Column("bytes", "sent", "sent_bytes", _size),
    _Column("bytes", "in full", "full_bytes", _size),
    _Column("tokens", "input", "input_tokens", _count),
    _Column("tokens", "cached", "hit_rate", _rate, CACHED),
    _Column("tokens", "output", "output_tokens", _count),
    _Column("", "status", "status", _word),
)


def summary(totals: Totals, shown: int) -> str:
    """Return what the totals come to, in one line."""
    line = totals.line
    count = f"{totals.turns:,} turn{'' if totals.turns == 1 else 's'}"
    parts = [f"last {shown:,} of {count}" if shown < totals.turns else count]
    if line.hit_rate is not None:
        parts.append(f"{_rate(line.hit_rate)} of the input tokens came from the cache")
    if line.sent_bytes is not None and line.full_bytes:
        saved = 1 - line.sent_bytes / line.full_bytes
        parts.append(f"{_rate(max(0.0, saved))} of the bytes need not be sent")
    return " · ".join(parts)


def turns_text(lines: Sequence[Line], totals: Totals) -> str:
    """Return the table as aligned plain text."""
    shown = [[column.text(line) for column in COLUMNS] for line in [*lines, totals.line]]
    rows = [[column.title for column in COLUMNS], *shown]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    drawn = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([summary(totals, len(lines)), "", *drawn])


def turns_html(lines: Sequence[Line], totals: Totals) -> str:
    """Return the table as HTML with bars, styled inline."""
    longest = max((sum(line.times) for line in lines), default=0.0)
    everything = totals.line
    return "".join(
        [
            f'<table cellpadding=3 style="{_TABLE}"><caption style="{_CAPTION}">',
            f"{escape(summary(totals, len(lines)))}</caption>{_HEAD}<tbody align=right>",
            *(_row(line, longest) for line in lines),
            f'<tfoot align=right style="border-top:{_RULE}">{_row(everything, sum(everything.times))}</table>',
        ]
    )


def _row(line: Line, longest: float) -> str:
    times = stripes(
        (time / longest if longest else 0.0, colour)
        for time, colour in zip(line.times, (MODEL, TOOLS, WAITING), strict=True)
    )
    turn, *others = COLUMNS
    cells = [f"<tr><th>{escape(turn.text(line))}<td style=\"background:{times}{_BAND}\">"]
    for column in others:
        style = ""
        if column.field == "hit_rate" and line.hit_rate is not None:
            style = f' style="background:{stripes([(line.hit_rate, CACHED)])}{_LINE}"'
        cells.append(f"<td{style}>{escape(column.text(line))}")
    return "".join(cells)


_BAND = " 0 50%/100% 10px no-repeat"
_LINE = " 0 50%/100% 16px no-repeat"
_RULE = "1px solid #8885"
_TABLE = "border-collapse:collapse;font-size:12px;line-height:1.4;white-space:nowrap"
_CAPTION = "caption-side:top;text-align:left;padding:4px;font-size:13px"


def _head() -> str:
    """Return the two rows of headings: what is counted, and of what."""
    above, below, spans = [], [], []
    for group, columns in itertools.groupby(COLUMNS, lambda column: column.group):
        names = [_heading(column) for column in columns]
        if not group:
            above.append(f"<th scope=col rowspan=2>{names[0]}")
        else:
            if group == "ms":
                names.insert(0, '<th scope=col style="min-width:120px">time')
            above.append(f'<th scope=colgroup colspan={len(names)} style="text-align:center">{group}')
            below += names
        spans.append(f'<colgroup span={len(names)} style="min-width:50px;border-left:{_RULE}">')
    return f"{''.join(spans)}<thead><tr>{''.join(above)}<tr>{''.join(below)}"


def _heading(column: _Column) -> str:
    if not column.group: return column.name
    mark = f'<span style="color:{column.colour[:4]}">■</span> ' if column.colour else ""
    return f"<th scope=col>{mark}{column.name}"


_HEAD = _head()
