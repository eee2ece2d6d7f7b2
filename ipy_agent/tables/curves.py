"""Loops in several modes as a figure: time, first token and bytes, turn by turn.

Rule 1: readable in grey: modes differ in their lines and marks, not in colour alone.
Rule 2: no global state of matplotlib is touched: no pyplot, no style that stays.
"""

from __future__ import annotations

import statistics
import textwrap
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ipy_agent.errors import MissingExtra, UsageError
from ipy_agent.records import TurnRecord
from ipy_agent.tables.columns import CACHED, MODEL, TOOLS
from ipy_agent.tables.comparison import Loop

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot"]

WIDTH = 130
"""How many characters of the facts have room below the figure."""


class _Panel(NamedTuple):
    """What is drawn of each turn."""

    title: str
    unit: str
    value: Callable[[TurnRecord], float | None]


_PANELS = (
    _Panel("Time of a turn", "seconds", lambda row: _thousands(row.latency_ms)),
    _Panel("Time to its first token", "seconds", lambda row: _thousands(row.ttft_ms)),
    _Panel("Bytes sent for it", "kB", lambda row: _thousands(row.sent_bytes)),
)
_LOOKS = (
    {"color": "#777", "linestyle": "-", "marker": "o"},
    {"color": TOOLS, "linestyle": "--", "marker": "s"},
    {"color": CACHED, "linestyle": ":", "marker": "^"},
    {"color": MODEL, "linestyle": "-", "marker": "D"},
)


def plot(loops: Sequence[Loop], modes: Sequence[str], facts: str) -> Figure:
    """Return a figure of loops: of each mode the median of its rounds, in their whole range.

    Args:
        loops: what is drawn.
        modes: the names of all modes that there may be; each has looks of its own.
        facts: what stands below it.

    Raises:
        MissingExtra: matplotlib is not installed.
        UsageError: there are no turns.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 (an extra, and slow to load)
        from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 (as above)
    except ImportError:
        raise MissingExtra("a plot", "plot") from None
    looks = dict(zip(modes, _LOOKS, strict=True))
    drawn = [mode for mode in modes if any(loop.turns for loop in loops if loop.mode == mode)]
    if not drawn:
        raise UsageError("there are no turns to draw: no mode was measured")
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    for panel, axes in zip(_PANELS, figure.subplots(1, len(_PANELS)), strict=True):
        for mode in drawn:
            own = [loop for loop in loops if loop.mode == mode]
            _draw(axes, own, panel, {**looks[mode], "label": mode if panel is _PANELS[0] else ""})
        axes.set(title=panel.title, xlabel="turn", ylabel=panel.unit)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=len(drawn), frameon=False)
    figure.supxlabel(
        "\n".join(textwrap.wrap(facts, WIDTH, break_on_hyphens=False)),
        fontsize="small",
        color="#555",
    )
    return figure


def _draw(axes: Any, loops: Sequence[Loop], panel: _Panel, looks: dict[str, Any]) -> None:
    """Draw the line of a mode, and behind it a band from the least to the most of its rounds."""
    values: dict[int, list[float]] = defaultdict(list)
    for loop in loops:
        for row in loop.turns:
            value = panel.value(row)
            if value is not None:
                values[row.turn].append(value)
    turns = sorted(values)
    middle = [statistics.median(values[turn]) for turn in turns]
    axes.plot(turns, middle, markersize=3.5, linewidth=1.5, **looks)
    low, high = ([end(values[turn]) for turn in turns] for end in (min, max))
    if low != high:
        axes.fill_between(turns, low, high, color=looks["color"], alpha=0.15, linewidth=0)


def _thousands(value: float | None) -> float | None:
    return None if value is None else value / 1_000
