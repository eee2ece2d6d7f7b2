"""The turns at a glance: one table, as HTML to look at and as aligned text for the rest.

Rule 1: readable without colour and without styles: what a bar shows also stands as text.
Rule 2: twenty lines and the totals fit into 8 kB. That is why cells and rows are not closed,
which HTML does not ask for, and bars are backgrounds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from ipy_agent.rendering import stripes
from ipy_agent.tables.lines import (
    CACHED,
    COLUMNS,
    MODEL,
    NBSP,
    TOOLS,
    WAITING,
    Column,
    Line,
    Totals,
    rate,
)

__all__ = ["summary", "turns_html", "turns_text"]


def summary(totals: Totals, shown: int) -> str:
    """Return what the totals come to, in one line."""
    return " · ".join(f"{number} {words}" for number, words in _facts(totals, shown))


def turns_text(lines: Sequence[Line], totals: Totals) -> str:
    """Return the table as aligned plain text."""
    rows = [[column.title for column in COLUMNS]]
    shown = [*lines, totals.line]
    rows += [[column.text(line).replace(NBSP, " ") for column in COLUMNS] for line in shown]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    drawn = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([summary(totals, len(lines)), "", *drawn])


def turns_html(lines: Sequence[Line], totals: Totals, room: int | None = None) -> str:
    """Return the table as HTML with bars, styled inline.

    Args:
        lines: the turns to show.
        totals: the sums to show below them.
        room: how many bytes there are; if need be, the earliest lines are left out.
    """
    longest = max((sum(line.times) for line in lines), default=0.0)
    rows = [_row(line, longest) for line in lines]
    everything = totals.line
    below = _row(everything, sum(everything.times))
    while True:
        html = f"{_above(totals, len(rows))}{''.join(rows)}{_FOOT}{below}</table>"
        if room is None or not rows or len(html.encode()) <= room:
            return html
        del rows[0]


def _facts(totals: Totals, shown: int) -> Iterator[tuple[str, str]]:
    """Yield the numbers to remember, and what each one counts."""
    line, noun = totals.line, "turn" if totals.turns == 1 else "turns"
    left_out = f", the last {shown:,} shown" if shown < totals.turns else ""
    yield f"{totals.turns:,}", f"{noun}{left_out}"
    if line.hit_rate is not None:
        yield rate(line.hit_rate), "of the input tokens came from the cache"
    if line.sent_bytes is not None and line.full_bytes:
        saved = max(0.0, 1 - line.sent_bytes / line.full_bytes)
        yield rate(saved), "of the bytes did not have to be sent"


def _above(totals: Totals, shown: int) -> str:
    facts = " · ".join(f"<b>{number}</b> {words}" for number, words in _facts(totals, shown))
    return (
        f'<table cellpadding=3 style="{_TABLE}"><caption style="{_CAPTION}">{facts}</caption>'
        f"{_HEAD}<tbody align=right>"
    )


def _row(line: Line, longest: float) -> str:
    times = stripes(
        (time / longest if longest else 0.0, colour)
        for time, colour in zip(line.times, (MODEL, TOOLS, WAITING), strict=True)
    )
    turn, *others = COLUMNS
    cells = [f'<tr><th>{turn.text(line)}<td style="background:{times}{_BAND}">']
    cells += [f"<td{_style(column, line)}>{column.text(line)}" for column in others]
    return "".join(cells)


def _style(column: Column, line: Line) -> str:
    if column.field == "hit_rate" and line.hit_rate is not None:
        cached = stripes([(line.hit_rate, f"{CACHED}8")])
        return f' style="background:{cached}{_BEHIND}"'
    if column.field == "status" and line.status.partition(" ")[0] not in _GOOD:
        return ' style="color:#d44"'
    return ""


_GOOD = frozenset({"", "completed", "running"})
_BAND = " 0/100% 10px no-repeat"
_BEHIND = " 0/100% 17px no-repeat"
_RULE = "1px solid #8885"
_TABLE = "border-collapse:collapse;font-size:12px;line-height:1.4;white-space:nowrap"
_CAPTION = "caption-side:top;text-align:left;padding:4px 0;font-size:13px"
_FOOT = f'<tfoot align=right style="border-top:{_RULE}">'


def _head() -> str:
    """Return the two rows of headings: of what, and what is counted."""
    spans: list[str] = []
    above: list[str] = []
    below: list[str] = []
    for group, columns in itertools.groupby(COLUMNS, lambda column: column.group):
        names = [_heading(column) for column in columns]
        if group == "ms":
            names.insert(0, '<th scope=col style="min-width:100px;text-align:left">time')
        side = f";border-left:{_RULE}" if spans else ""
        spans.append(f'<colgroup span={len(names)} style="width:56px{side}">')
        if group:
            middle = ' style="text-align:center"'
            above.append(f"<th scope=colgroup colspan={len(names)}{middle}>{group}")
            below += names
        else:
            above.append(names[0].replace("<th", "<th rowspan=2"))
    return f"{''.join(spans)}<thead><tr>{''.join(above)}<tr>{''.join(below)}"


def _heading(column: Column) -> str:
    hint = f' title="{column.hint}"' if column.hint else ""
    style = f' style="border-bottom:3px solid {column.colour}"' if column.colour else ""
    return f"<th scope=col{hint}{style}>{column.name}"


_HEAD = _head()
