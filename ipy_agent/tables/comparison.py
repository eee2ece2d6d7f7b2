"""Loops in several modes, side by side: a frame of their turns, and a summary of the modes.

Rule 1: a mode that does not exist, and a loop that came to nothing, is a row that says why, with
NA in all that was not measured.
Rule 2: a ratio is of two loops of one round, since they met the same machine; of several rounds
the median is told.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ipy_agent.records import TurnRecord
from ipy_agent.tables.columns import NBSP, count, rate, size
from ipy_agent.tables.frames import COLUMNS, framed, share, total, turn_values

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["BASES", "Loop", "shown", "summary", "turns"]

BASES = {"of_http": "http", "of_http_cache": "http-cache"}
"""The columns of a summary that are ratios, and to the loops of which mode."""

_SPREAD = ("loop_ms", "latency_ms", "ttft_ms", "sent_bytes")
"""What is told as a median, with its quartiles in `_low` and `_high`."""

TURNS = {"mode": "string", "round": "Int64", **COLUMNS["turns"], "reason": "string"}
SUMMARY = {
    "mode": "string",
    "rounds": "Int64",
    "turns": "Int64",
    **{f"{name}{end}": "Float64" for name in _SPREAD for end in ("", "_low", "_high")},
    "hit_rate": "Float64",
    **dict.fromkeys(BASES, "Float64"),
    "reason": "string",
}


class Loop(msgspec.Struct, frozen=True, kw_only=True):
    """One loop in one mode: its turns, and its time; or the reason why there is none."""

    mode: str
    round: int | None = None
    turns: Sequence[TurnRecord] = ()
    elapsed_ms: float | None = None
    reason: str | None = None


def turns(loops: Iterable[Loop]) -> DataFrame:
    """Return one row a turn, in the columns of `turns`, with its mode and round."""
    rows: list[dict[str, Any]] = []
    for loop in loops:
        about = {"mode": loop.mode, "round": loop.round, "reason": loop.reason}
        rows += [turn_values(row) | about for row in loop.turns] or [about]
    return framed(TURNS, rows)


def summary(loops: Sequence[Loop]) -> DataFrame:
    """Return one row a mode: medians over its loops and over their turns, and ratios."""
    return framed(SUMMARY, _summed(loops))


def shown(loops: Sequence[Loop]) -> DataFrame:
    """Return the summary as people read it: medians with their quartiles, in few columns."""
    rows = [{title: says(row) for title, says in _SHOWN.items()} for row in _summed(loops)]
    frame = framed(dict.fromkeys(_SHOWN, "string"), rows).fillna("NA")
    return frame.set_index("mode").rename_axis(None)


def _summed(loops: Sequence[Loop]) -> list[dict[str, Any]]:
    return [_of(mode, loops) for mode in dict.fromkeys(loop.mode for loop in loops)]


def _of(mode: str, loops: Sequence[Loop]) -> dict[str, Any]:
    own = [loop for loop in loops if loop.mode == mode]
    done = [loop for loop in own if loop.elapsed_ms is not None]
    rows = [row for loop in done for row in loop.turns]
    told = [row for row in rows if row.cached_tokens is not None and row.input_tokens]
    reason = next((loop.reason for loop in own if loop.reason), None)
    values: dict[str, Any] = {
        "mode": mode,
        "rounds": len(done) or None,
        "turns": len(rows) or None,
        "hit_rate": share(
            total(r.cached_tokens for r in told), total(r.input_tokens for r in told)
        ),
        "reason": reason,
    }
    values |= _spread("loop_ms", [loop.elapsed_ms for loop in done])
    for name in _SPREAD[1:]:
        values |= _spread(name, [getattr(row, name) for row in rows])
    for column, base in BASES.items():
        values[column] = _ratio(done, [loop for loop in loops if loop.mode == base])
    return values


def _spread(name: str, values: Iterable[float | None]) -> dict[str, float]:
    """Return the median and the quartiles; of one value there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return {}
    middle = {name: statistics.median(known)}
    if len(known) == 1:
        return middle
    low, _, high = statistics.quantiles(known, method="inclusive")
    return middle | {f"{name}_low": low, f"{name}_high": high}


def _ratio(loops: Iterable[Loop], bases: Iterable[Loop]) -> float | None:
    whole = {loop.round: loop.elapsed_ms for loop in bases if loop.elapsed_ms}
    ratios = [
        loop.elapsed_ms / base
        for loop in loops
        if loop.elapsed_ms is not None and (base := whole.get(loop.round))
    ]
    return statistics.median(ratios) if ratios else None


def _spread_of(name: str, says: Callable[[float], str], unit: float = 1.0) -> _Says:
    def text(row: Mapping[str, Any]) -> str | None:
        told = [row.get(f"{name}{end}") for end in ("", "_low", "_high")]
        said = [says(value / unit) for value in told if value is not None]
        if not said:
            return None
        middle, *ends = said
        if not ends or ends == [middle, middle]:
            return middle
        return f"{middle} ({ends[0]} to {ends[1]})".replace(NBSP, " ")

    return text


def _seconds(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.2f}"  # noqa: PLR2004 (three digits)


def _one(name: str, says: Callable[[Any], str]) -> _Says:
    return lambda row: None if row.get(name) is None else says(row[name])


_Says = Callable[[Mapping[str, Any]], str | None]
_SHOWN: dict[str, _Says] = {
    "mode": _one("mode", str),
    "loops": _one("rounds", str),
    "seconds a loop": _spread_of("loop_ms", _seconds, 1_000),
    "ms a turn": _spread_of("latency_ms", count),
    "ms to first token": _spread_of("ttft_ms", count),
    "sent a turn": _spread_of("sent_bytes", size),
    "cached": _one("hit_rate", rate),
    **{f"× {base}": _one(column, "{:.2f}".format) for column, base in BASES.items()},
}
