"""How tables look: the styles of one that stays, the style sheet of those that are live, headings.

Rule: a live table is sent at every refresh, so that what says nothing is left out of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from ipy_agent.rendering import TRACK
from ipy_agent.tables.columns import CACHED, CALLS, CELLS, COLUMNS, MODEL, TOOLS, WAITING, Column

__all__ = [
    "BAD",
    "BAND",
    "BEHIND",
    "CAPTION",
    "HEADS",
    "LIVE",
    "LIVE_CLASS",
    "LIVE_HEADS",
    "RULE",
    "TABLE",
    "bar_at",
]

BAND = " 0/100% 10px no-repeat"
BEHIND = " 0/100% 17px no-repeat"
RULE = "1px solid #8885"
_UNDER = "border-bottom:3px solid "
_TIME = "min-width:100px;text-align:left"
BAD = "#d44"
_KINDS = {MODEL: "model", TOOLS: "tools", WAITING: "waiting", CACHED: "cached"}
TABLE = "border-collapse:collapse;font-size:12px;line-height:1.4;white-space:nowrap"
CAPTION = "caption-side:top;text-align:left;padding:4px 0;font-size:13px"

LIVE_CLASS = "ipy-agent-live"


def _bar(stops: str, band: str) -> str:
    return f"background:linear-gradient(90deg,{stops},{TRACK} 0){band}"


_LIVE = {
    ".widget-html-content": "overflow-x:auto",
    "table": TABLE,
    "caption": CAPTION,
    "tbody,tfoot": "text-align:right",
    "th+td": "text-align:left",
    "tfoot": f"border-top:{RULE}",
    "th,td": "padding:3px",
    "col,colgroup": "width:56px",
    "colgroup+colgroup": f"border-left:{RULE}",
    "th[colspan]": "text-align:center",
    "td:nth-child(-n+4):empty": _bar(
        f"{MODEL} calc(1%*var(--a,0)),{TOOLS} 0 calc(1%*var(--b,0)),"
        f"{WAITING} 0 calc(1%*var(--c,0))",
        BAND,
    ),
    "td:nth-last-child(3)": _bar(f"{CACHED}8 calc(1%*var(--h))", BEHIND),
    ".bad td:last-child": f"color:{BAD}",
    ".time": _TIME,
    **{f".{kind}": f"{_UNDER}{colour}" for colour, kind in _KINDS.items()},
}
LIVE = "".join(
    f"{','.join(f'.{LIVE_CLASS} {one}' for one in selector.split(','))}{{{style}}}"
    for selector, style in _LIVE.items()
)
"""The style sheet of live tables, within an element of the class `LIVE_CLASS`."""


def bar_at(columns: Sequence[Column]) -> int:
    """Return which column the bar stands before: the first that is a part of it."""
    return next(at for at, column in enumerate(columns) if column.colour)


def _head(columns: tuple[Column, ...], *, live: bool) -> str:
    """Return the headings: of what, and below it what is counted; one row where that says all."""
    rows = 2 if any(column.group for column in columns) else 1
    spans: list[str] = []
    above: list[str] = []
    below: list[str] = []
    for group, members in itertools.groupby(columns, lambda column: column.group):
        names = list(itertools.chain(*(_headings(column, columns, live) for column in members)))
        side = f";border-left:{RULE}" if spans else ""
        inline = "" if live else f' style="width:56px{side}"'
        wide = "" if live and len(names) == 1 else f" span={len(names)}"
        spans.append(f"<colgroup{wide}{inline}>")
        if group:
            more = "" if live else ' scope=colgroup style="text-align:center"'
            above.append(f"<th colspan={len(names)}{more}>{group}")
            below += names
        else:
            high = "" if live and rows == 1 else f" rowspan={rows}"
            above += [name.replace("<th", f"<th{high}", 1) for name in names]
    under = f"<tr>{''.join(below)}" if below else ""
    return f"{''.join(spans)}<thead><tr>{''.join(above)}{under}"


def _headings(column: Column, columns: Sequence[Column], live: bool) -> list[str]:
    """Return a column's heading, behind that of the bar where the bar stands before it."""
    mark = "'" if live else '"'  # the other one takes two bytes in a message
    hint = f" title={mark}{column.hint}{mark}" if column.hint else ""
    if live:  # without a scope a heading above cells is theirs, and the style sheet knows colours
        kind = f" class={_KINDS[column.colour]}" if column.colour else ""
        own, time = f"<th{kind}{hint}>{column.name}", "<th class=time>time"
    else:
        style = f' style="{_UNDER}{column.colour}"' if column.colour else ""
        own = f"<th scope=col{hint}{style}>{column.name}"
        time = f'<th scope=col style="{_TIME}">time'
    return [time, own] if column is columns[bar_at(columns)] else [own]


HEADS = {columns: _head(columns, live=False) for columns in (COLUMNS, CELLS, CALLS)}
LIVE_HEADS = {columns: _head(columns, live=True) for columns in HEADS}
