"""Turns, cell runs and tool calls at a glance: a table each, as HTML to look at and as text.

Rule 1: readable without colour and without styles: what a bar shows also stands as text.
Rule 2: fifty usual turns and the totals fit into a message of 8 kB while they are live. That is
why cells and rows are not closed, which HTML does not ask for, and bars are backgrounds; live,
the one style sheet `LIVE`, sent once, draws them. What stays behind has its styles inline, since
a notebook that is not trusted loses style sheets.
Rule 3: what the cells of a live line say is worked out once, as long as it is shown; only where
its bar ends depends on the lines around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ipy_agent.rendering import NO_MATH, escape, stripes
from ipy_agent.secrets import holds_secret
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
from ipy_agent.tables.style import (
    BAD,
    BAND,
    BEHIND,
    CAPTION,
    HEADS,
    LIVE_HEADS,
    RULE,
    TABLE,
    bar_at,
)

__all__ = [
    "Kept",
    "Picture",
    "calls",
    "cells",
    "summary",
    "turns",
    "turns_html",
    "turns_text",
]

Kept = dict[Line | CallLine, tuple[str, str, str]]
"""What of live lines was drawn that no other line changes: class, cached share, and cells."""


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

    def html(self, room: int | None = None, *, live: bool = False, kept: Kept | None = None) -> str:
        """Return the table as HTML with bars.

        Args:
            room: how many bytes of JSON there are; if need be, the earliest lines are left out.
            live: short, and drawn by the style sheet `LIVE`; else styled inline.
            kept: what was drawn of the live lines before, and is then of these; an equal line is
                not drawn again.
        """
        kept = {} if kept is None else kept
        page = self._page(room, kept if live else None)
        if live and holds_secret(page):  # what became known since it was drawn is masked
            kept.clear()
            page = self._page(room, kept)
        return page

    def _page(self, room: int | None, kept: Kept | None) -> str:
        """Return it whole, live where there is something kept."""
        live, longest = kept is not None, max((sum(line.times) for line in self.lines), default=0.0)
        lines = [*((line, longest) for line in self.lines), (self.sums, sum(self.sums.times))]
        rows = self._rows(lines) if kept is None else self._live_rows(lines, kept)
        foot = "<tfoot>" if live else f'<tfoot align=right style="border-top:{RULE}">'
        below = f"{foot}{rows.pop()}{'' if live else '</table>'}"
        size = 0 if room is None else _size(below) + sum(map(_size, rows))
        first = 0
        while True:
            above = self._above(len(rows) - first, live=live)
            if room is None or first == len(rows) or size + _size(above) <= room:
                return f"{above}{''.join(rows[first:])}{below}"
            size -= _size(rows[first])
            first += 1

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
            heads = LIVE_HEADS[self.columns]
            return f"<table{words}><caption>{facts}</caption>{heads}<tbody>"
        return (
            f'<table class="{NO_MATH}" cellpadding=3 style="{TABLE}">'
            f'<caption style="{CAPTION}">{facts}</caption>'
            f"{HEADS[self.columns]}<tbody align=right>"
        )

    def _rows(self, lines: Sequence[tuple[Line | CallLine, float]]) -> list[str]:
        """Return a row a line, whose bar is drawn to the scale of the time beside it."""
        first, *others = self.columns
        rows = []
        for line, longest in lines:
            parts = zip(_shares(line, longest), (MODEL, TOOLS, WAITING), strict=True)
            cells = [f"<td{_style(column, line)}>{_said(column, line)}" for column in others]
            cells.insert(bar_at(others), f'<td style="background:{stripes(parts)}{BAND}">')
            rows.append(f"<tr><th scope=row>{_said(first, line)}{''.join(cells)}")
        return rows

    def _live_rows(self, lines: Sequence[tuple[Line | CallLine, float]], kept: Kept) -> list[str]:
        drawn = [kept.get(line) or _live_parts(self.columns, line) for line, _ in lines]
        kept.clear()
        kept.update((line, parts) for (line, _), parts in zip(lines, drawn, strict=True))
        return [
            _live_row(parts, _ends(line.times, longest))
            for (line, longest), parts in zip(lines, drawn, strict=True)
        ]


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


def _said(column: Column, line: Line | CallLine) -> str:
    return escape(column.text(line))


def _shares(line: Line | CallLine, longest: float) -> list[float]:
    return [time / longest if longest else 0.0 for time in line.times]


def _size(html: str) -> int:
    """Return how many bytes HTML takes within a message, which is JSON."""
    return len(html.encode()) + html.count('"') + html.count("\\")


def _ends(times: Sequence[float], longest: float) -> list[str]:
    """Return where each part of a live bar ends, in percent: of one that is there, one at least."""
    ends, at = [], 0
    for name, time in zip("abc", times, strict=True):
        end = min(100, at + max(1, round(time / longest * 100))) if time > 0 else at
        if end > at:
            ends.append(f"--{name}:{end}")
        at = end
    return ends


def _live_parts(columns: Sequence[Column], line: Line | CallLine) -> tuple[str, str, str]:
    first, *others = columns
    cells = [f"<td>{_said(column, line).replace(NBSP, ' ')}" for column in others]
    cells.insert(bar_at(others), "<td>")
    state = "" if _is_good(line) else " class=bad"
    cached = "" if line.hit_rate is None else f"--h:{100 * min(max(line.hit_rate, 0), 1):.0f}"
    return state, cached, f"<th>{_said(first, line)}{''.join(cells)}"


def _live_row(parts: tuple[str, str, str], ends: list[str]) -> str:
    state, cached, cells = parts
    drawn = ";".join([*ends, cached] if cached else ends)
    return f"<tr{state}{drawn and f' style={drawn}'}>{cells}"


def _style(column: Column, line: Line | CallLine) -> str:
    if column.field == "hit_rate" and line.hit_rate is not None:
        cached = stripes([(line.hit_rate, f"{CACHED}8")])
        return f' style="background:{cached}{BEHIND}"'
    if column.field == "status" and not _is_good(line):
        return f' style="color:{BAD}"'
    return ' style="text-align:left"' if column.field in _WORDS else ""


def _is_good(line: Line | CallLine) -> bool:
    return line.status.partition(" ")[0].rstrip(",") in _GOOD


_WORDS = {"said", "name"}
_GOOD = frozenset({"", "completed", "running"})
