"""The turns as a figure: where their time went, and below it how much came from the cache.

Rule 1: readable in grey: parts differ in brightness and hatching, not in colour alone.
Rule 2: no global state of matplotlib is touched: no pyplot, no style that stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ipy_agent.errors import MissingExtra, UsageError
from ipy_agent.records import Recorder, TurnRecord
from ipy_agent.tables.columns import CACHED, MODEL, TOOLS, WAITING
from ipy_agent.tables.frames import ended, model_ms

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot"]


class _Part(NamedTuple):
    """A part of a turn's time, and its looks."""

    name: str
    ms: Any
    colour: str
    hatch: str


_PARTS = (
    _Part("connect", lambda row: row.connect_ms, "#333", ""),
    _Part("model", model_ms, MODEL, ""),
    _Part("tools", lambda row: row.tool_ms, TOOLS, "//"),
    _Part("waiting for approval", lambda row: row.approval_ms, WAITING, ".."),
)
_HATCHED = 100
"""Up to how many turns bars are wide enough for hatching."""


def plot(records: Recorder) -> Figure:
    """Return a figure of the turns that ended.

    Raises:
        MissingExtra: matplotlib is not installed.
        UsageError: there are no turns yet.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 (an extra, and slow to load)
        from matplotlib.ticker import MaxNLocator, PercentFormatter  # noqa: PLC0415 (as above)
    except ImportError:
        raise MissingExtra("a plot", "plot") from None
    rows: list[TurnRecord] = ended(records.turns)
    if not rows:
        raise UsageError("there are no turns to draw yet: run an %%agent cell first")
    figure = Figure(figsize=(8, 5), layout="constrained")
    times, cache = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    _draw_times(times, rows)
    _draw_cache(cache, rows)
    figure.legend(loc="outside lower center", ncols=len(_PARTS), fontsize="small", frameon=False)
    cache.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    cache.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def _draw_times(axes: Any, rows: Sequence[TurnRecord]) -> None:
    """Draw a bar a turn, in which the parts of its time stand on each other."""
    turns, floor = [row.turn for row in rows], [0.0] * len(rows)
    hatched = len(rows) <= _HATCHED
    for part in _PARTS:
        seconds = [max(part.ms(row) or 0.0, 0.0) / 1000 for row in rows]
        axes.bar(
            turns,
            seconds,
            bottom=floor,
            label=part.name,
            color=part.colour,
            hatch=part.hatch if hatched else "",
            edgecolor="white" if hatched else "none",
            width=0.8 if hatched else 1.0,
        )
        floor = [below + more for below, more in zip(floor, seconds, strict=True)]
    highest = max(floor) * 1.05 or 1.0
    axes.set(title="Time by turn", ylabel="seconds", ylim=(0, highest))


def _draw_cache(axes: Any, rows: Sequence[TurnRecord]) -> None:
    """Draw the cached share of each turn that told it; where none was told the line has a gap."""
    shares = [float("nan") if row.hit_rate is None else row.hit_rate for row in rows]
    axes.plot([row.turn for row in rows], shares, color=CACHED, marker="o", markersize=4)
    axes.set(title="Input tokens from the cache", xlabel="turn", ylabel="share", ylim=(-0.05, 1.05))
    axes.grid(axis="y", alpha=0.3)
