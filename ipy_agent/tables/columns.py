"""The columns of each table that people look at, and how their cells say a value.

Rule: a cell has a few characters, whatever number or word an endpoint made up.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from ipy_agent import rendering

__all__ = [
    "CACHED",
    "CALLS",
    "CELLS",
    "COLUMNS",
    "MODEL",
    "NBSP",
    "TOOLS",
    "WAITING",
    "Column",
    "count",
    "excerpt",
    "rate",
]

MODEL, TOOLS, WAITING, CACHED = "#38d", "#e90", "#999", "#1a7"
UNKNOWN = "\N{EN DASH}"
NBSP = "\N{NO-BREAK SPACE}"
WIDTH = 40


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


def state(value: str) -> str:
    """Return how something ended, in a short word that needs no escaping."""
    return word(f"ok{value[len(_WELL) :]}" if value.startswith(_WELL) else value)


def excerpt(value: str) -> str:
    """Return the beginning of a text, on one line; it is not yet fit for HTML."""
    if not value:
        return UNKNOWN
    said = rendering.plain(" ".join(value[: 2 * WIDTH].split()))
    whole = len(said) <= WIDTH and len(value) <= 2 * WIDTH
    return said if whole else f"{said[: WIDTH - 1]}…"


_WELL = "completed"
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

    def text(self, line: Any) -> str:
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
    Column("", "status", "status", state),
)
"""Of a turn."""

_TIMES = ("model_ms", "tool_ms", "waiting_ms")
_TOKENS = ("input_tokens", "hit_rate", "output_tokens")
CELLS = (
    Column("", "cell", "turn", word),
    Column("", "prompt", "said", excerpt),
    Column("", "turns", "turns", count),
    *(column for column in COLUMNS[1:] if column.field in {*_TIMES, *_TOKENS, "status"}),
)
"""Of a cell run."""

CALLS = (
    Column("", "turn", "turn", word),
    Column("", "tool", "name", excerpt),
    Column("", "ms", "tool_ms", count, TOOLS),
    Column("", "characters", "output_chars", count, hint="of its output"),
    Column("", "approval", "approval", word),
    Column("", "status", "status", state),
)
"""Of a tool call."""
