"""Turns, cell runs and tool calls at a glance: a table each, as HTML to look at and as text.

Rule 1: readable without colour and without styles: what a bar shows also stands as text.
Rule 2: fifty usual turns and the totals fit into 8 kB while they are live. That is why cells and
rows are not closed, which HTML does not ask for, and bars are backgrounds; live, the one style
sheet `LIVE`, sent once, draws them. What stays behind has its styles inline, since a
notebook that is not trusted loses style sheets.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ipy_agent.rendering import NO_MATH, TRACK, escape, stripes
from ipy_agent.tables.columns import (
    CACHED,
    CALLS,
    CELLS,
    COLUMNS,
    MODEL,
    NBSP,
    TOOLS,
    WAITING,
    Column,
    count,
    excerpt,
    rate,
)
from ipy_agent.tables.lines import CallLine, CallTotals, Line, Totals

__all__ = [
    "LIVE",
    "LIVE_CLASS",
    "Picture",
    "calls",
    "cells",
    "summary",
    "turns",
    "turns_html",
    "turns_text",
]


class Picture(NamedTuple):
    """A table of lines: the sums below them, and what there is to remember above them.

    `number` counts the lines there are over all; the last of them are `lines`.
    """

    noun: str
    columns: tuple[Column, ...]
    number: int
    lines: Sequence[Line | CallLine]
    sums: Line | CallLine
    facts: tuple[tuple[str, str], ...] = ()

    def summary(self, shown: int) -> str:
        """Return what the sums come to, in one line."""
        return " · ".join(f"{number} {words}" for number, words in self._facts(shown))

    def text(self) -> str:
        """Return the table as aligned plain text."""
        rows = [[column.title for column in self.columns]]
        shown = [*self.lines, self.sums]
        rows += [
            [column.text(line).replace(NBSP, " ") for column in self.columns] for line in shown
        ]
        widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        drawn = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([self.summary(len(self.lines)), "", *drawn])

    def html(self, room: int | None = None, *, live: bool = False) -> str:
        """Return the table as HTML with bars.

        Args:
            room: how many bytes there are; if need be, the earliest lines are left out.
            live: short, and drawn by the style sheet `LIVE`; else styled inline.
        """
        longest = max((sum(line.times) for line in self.lines), default=0.0)
        row = self._live_row if live else self._row
        rows = [row(line, longest) for line in self.lines]
        foot = "<tfoot>" if live else f'<tfoot align=right style="border-top:{_RULE}">'
        below = f"{foot}{row(self.sums, sum(self.sums.times))}</table>"
        size = len(below.encode()) + sum(len(one.encode()) for one in rows)
        while True:
            above = self._above(len(rows), live=live)
            if room is None or not rows or size + len(above.encode()) <= room:
                return f"{above}{''.join(rows)}{below}"
            size -= len(rows.pop(0).encode())

    def _facts(self, shown: int) -> Iterator[tuple[str, str]]:
        noun = self.noun if self.number == 1 else f"{self.noun}s"
        left_out = f", the last {shown:,} shown" if shown < self.number else ""
        yield f"{self.number:,}", f"{noun}{left_out}"
        yield from self.facts

    def _above(self, shown: int, *, live: bool) -> str:
        facts = " · ".join(f"<b>{number}</b> {words}" for number, words in self._facts(shown))
        if live:
            free = any(column.says is excerpt for column in self.columns)
            words = f" class={NO_MATH.split()[0]}" if free else ""
            heads = _LIVE_HEADS[self.columns]
            return f"<table{words}><caption>{facts}</caption>{heads}<tbody>"
        return (
            f'<table class="{NO_MATH}" cellpadding=3 style="{_TABLE}">'
            f'<caption style="{_CAPTION}">{facts}</caption>'
            f"{_HEADS[self.columns]}<tbody align=right>"
        )

    def _row(self, line: Line | CallLine, longest: float) -> str:
        first, *others = self.columns
        parts = zip(_shares(line, longest), (MODEL, TOOLS, WAITING), strict=True)
        cells = [f"<td{_style(column, line)}>{_said(column, line)}" for column in others]
        cells.insert(_bar_at(others), f'<td style="background:{stripes(parts)}{_BAND}">')
        return f"<tr><th scope=row>{_said(first, line)}{''.join(cells)}"

    def _live_row(self, line: Line | CallLine, longest: float) -> str:
        first, *others = self.columns
        cells = [f"<td>{_said(column, line).replace(NBSP, ' ')}" for column in others]
        cells.insert(_bar_at(others), "<td>")
        drawn = _ends(_shares(line, longest))
        if line.hit_rate is not None:
            drawn.append(f"--h:{100 * min(max(line.hit_rate, 0), 1):.0f}")
        style = f" style={';'.join(drawn)}" if drawn else ""
        state = "" if _is_good(line) else " class=bad"
        return f"<tr{state}{style}><th>{_said(first, line)}{''.join(cells)}"


def turns(lines: Sequence[Line], totals: Totals) -> Picture:
    """Return the picture of turns, of which these are the last lines."""
    return Picture("turn", COLUMNS, totals.turns, lines, totals.line, _saved(totals.line))


def cells(lines: Sequence[Line], totals: Totals, number: int) -> Picture:
    """Return the picture of so many cell runs, of which these are the last lines."""
    return Picture("cell run", CELLS, number, lines, totals.line, _saved(totals.line))


def calls(lines: Sequence[CallLine], totals: CallTotals) -> Picture:
    """Return the picture of tool calls, of which these are the last lines."""
    sums = totals.line
    told = () if sums.tool_ms is None else ((count(sums.tool_ms), "ms in tools"),)
    return Picture("tool call", CALLS, totals.calls, lines, sums, told)


def summary(totals: Totals, shown: int) -> str:
    """Return what the totals of turns come to, in one line."""
    return turns([], totals).summary(shown)


def turns_text(lines: Sequence[Line], totals: Totals) -> str:
    """Return the turns as aligned plain text."""
    return turns(lines, totals).text()


def turns_html(lines: Sequence[Line], totals: Totals, room: int | None = None) -> str:
    """Return the turns as HTML that keeps its looks wherever it is shown."""
    return turns(lines, totals).html(room)


def _saved(line: Line) -> tuple[tuple[str, str], ...]:
    """Return the numbers to remember, and what each one counts."""
    told = []
    if line.hit_rate is not None:
        told.append((rate(line.hit_rate), "of the input tokens came from the cache"))
    if line.sent_bytes is not None and line.full_bytes:
        saved = max(0.0, 1 - line.sent_bytes / line.full_bytes)
        told.append((rate(saved), "of the bytes did not have to be sent"))
    return tuple(told)


def _bar_at(columns: Sequence[Column]) -> int:
    """Return which column the bar stands before: the first that is a part of it."""
    return next(at for at, column in enumerate(columns) if column.colour)


def _said(column: Column, line: Line | CallLine) -> str:
    return escape(column.text(line))


def _shares(line: Line | CallLine, longest: float) -> list[float]:
    return [time / longest if longest else 0.0 for time in line.times]


def _ends(shares: Sequence[float]) -> list[str]:
    """Return where each part of a live bar ends, in percent: of one that is there, one at least."""
    ends, at = [], 0
    for name, share in zip("abc", shares, strict=True):
        end = min(100, at + max(1, round(share * 100))) if share > 0 else at
        if end > at:
            ends.append(f"--{name}:{end}")
        at = end
    return ends


def _style(column: Column, line: Line | CallLine) -> str:
    if column.field == "hit_rate" and line.hit_rate is not None:
        cached = stripes([(line.hit_rate, f"{CACHED}8")])
        return f' style="background:{cached}{_BEHIND}"'
    if column.field == "status" and not _is_good(line):
        return f' style="color:{_BAD}"'
    return ' style="text-align:left"' if column.field in _WORDS else ""


def _is_good(line: Line | CallLine) -> bool:
    return line.status.partition(" ")[0].rstrip(",") in _GOOD


_WORDS = {"said", "name"}
_GOOD = frozenset({"", "completed", "running"})
_BAND = " 0/100% 10px no-repeat"
_BEHIND = " 0/100% 17px no-repeat"
_RULE = "1px solid #8885"
_UNDER = "border-bottom:3px solid "
_TIME = "min-width:100px;text-align:left"
_BAD = "#d44"
_KINDS = {MODEL: "model", TOOLS: "tools", WAITING: "waiting", CACHED: "cached"}
_TABLE = "border-collapse:collapse;font-size:12px;line-height:1.4;white-space:nowrap"
_CAPTION = "caption-side:top;text-align:left;padding:4px 0;font-size:13px"

LIVE_CLASS = "ipy-agent-live"


def _bar(stops: str, band: str) -> str:
    return f"background:linear-gradient(90deg,{stops},{TRACK} 0){band}"


_LIVE = {
    ".widget-html-content": "overflow-x:auto",
    "table": _TABLE,
    "caption": _CAPTION,
    "tbody,tfoot": "text-align:right",
    "th+td": "text-align:left",
    "tfoot": f"border-top:{_RULE}",
    "th,td": "padding:3px",
    "col,colgroup": "width:56px",
    "colgroup+colgroup": f"border-left:{_RULE}",
    "th[colspan]": "text-align:center",
    "td:nth-child(-n+4):empty": _bar(
        f"{MODEL} calc(1%*var(--a,0)),{TOOLS} 0 calc(1%*var(--b,0)),"
        f"{WAITING} 0 calc(1%*var(--c,0))",
        _BAND,
    ),
    "td:nth-last-child(3)": _bar(f"{CACHED}8 calc(1%*var(--h))", _BEHIND),
    ".bad td:last-child": f"color:{_BAD}",
    ".time": _TIME,
    **{f".{kind}": f"{_UNDER}{colour}" for colour, kind in _KINDS.items()},
}
LIVE = "".join(
    f"{','.join(f'.{LIVE_CLASS} {one}' for one in selector.split(','))}{{{style}}}"
    for selector, style in _LIVE.items()
)
"""The style sheet of live tables, within an element of the class `LIVE_CLASS`."""


def _head(columns: tuple[Column, ...], *, live: bool) -> str:
    """Return the headings: of what, and below it what is counted; one row where that says all."""
    rows = 2 if any(column.group for column in columns) else 1
    spans: list[str] = []
    above: list[str] = []
    below: list[str] = []
    for group, members in itertools.groupby(columns, lambda column: column.group):
        names = list(itertools.chain(*(_headings(column, columns, live) for column in members)))
        side = f";border-left:{_RULE}" if spans else ""
        inline = "" if live else f' style="width:56px{side}"'
        spans.append(f"<colgroup span={len(names)}{inline}>")
        if group:
            middle = "" if live else ' style="text-align:center"'
            above.append(f"<th scope=colgroup colspan={len(names)}{middle}>{group}")
            below += names
        else:
            above += [name.replace("<th", f"<th rowspan={rows}", 1) for name in names]
    under = f"<tr>{''.join(below)}" if below else ""
    return f"{''.join(spans)}<thead><tr>{''.join(above)}{under}"


def _headings(column: Column, columns: Sequence[Column], live: bool) -> list[str]:
    """Return a column's heading, behind that of the bar where the bar stands before it."""
    hint = f' title="{column.hint}"' if column.hint else ""
    if live:  # without a scope a heading above cells is theirs, and the style sheet knows colours
        kind = f" class={_KINDS[column.colour]}" if column.colour else ""
        own, time = f"<th{kind}{hint}>{column.name}", "<th class=time>time"
    else:
        style = f' style="{_UNDER}{column.colour}"' if column.colour else ""
        own = f"<th scope=col{hint}{style}>{column.name}"
        time = f'<th scope=col style="{_TIME}">time'
    return [time, own] if column is columns[_bar_at(columns)] else [own]


_HEADS = {columns: _head(columns, live=False) for columns in (COLUMNS, CELLS, CALLS)}
_LIVE_HEADS = {columns: _head(columns, live=True) for columns in _HEADS}
