"""What a bench comes to: frames, a picture, and the facts without which figures say nothing."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ipy_agent import rendering
from ipy_agent.bench.course import Course
from ipy_agent.bench.modes import MODES
from ipy_agent.endpoints import Endpoint
from ipy_agent.server.machine import cores
from ipy_agent.tables import comparison, curves, files
from ipy_agent.tables.comparison import Loop

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = ["Outcome"]

_PACKAGES = ("ipy-agent-live", "websockets", "httpx2", "xllamacpp")


class Outcome:
    """What was measured.

    Attributes:
        loops: one after another, and the modes that there are not.
        facts: machine, model, versions and date, in one line.
    """

    def __init__(self, loops: Sequence[Loop], course: Course, endpoint: Endpoint) -> None:
        self.loops = loops
        rows = [row for loop in loops for row in loop.turns]
        model = next((row.model for row in rows if row.model), course.model or endpoint.model)
        self.facts = " · ".join(
            (
                f"{model or 'a model'} at {endpoint.name}",
                f"{course.turns} turns, tool outputs of {course.chars:,} characters",
                f"{cores()} cores, {_processor()}",
                f"Python {platform.python_version()}, {_versions()}",
                f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            )
        )

    @property
    def turns(self) -> DataFrame:
        """One row a turn: its mode, its round, and the columns of `turns`."""
        frame = comparison.turns(self.loops)
        frame.attrs["facts"] = self.facts
        return frame

    @property
    def summary(self) -> DataFrame:
        """One row a mode: medians, quartiles, ratios."""
        return comparison.summary(self.loops)

    @cached_property
    def notes(self) -> list[str]:
        """What there is to know beside the figures: what is missing, what is not the same."""
        said = [_absence(loop) for loop in self.loops if loop.reason]
        last = {loop.turns[-1].input_tokens for loop in self.loops if loop.turns} - {None}
        tokens = sorted(count for count in last if count is not None)
        if len(tokens) > 1:
            said.append(
                "the conversations are not the same to the token: the last turn read "
                f"{tokens[0]:,} to {tokens[-1]:,}"
            )
        return list(dict.fromkeys(said))

    def plot(self) -> Figure:
        """Return the figure: time, first token and bytes by turn.

        Raises:
            MissingExtra: matplotlib is not installed.
            UsageError: no mode was measured.
        """
        return curves.plot(self.loops, tuple(MODES), self.facts)

    def text(self) -> str:
        """Return the summary, its notes and the facts as plain text."""
        table = comparison.shown(self.loops).to_string()
        return "\n".join(
            [table, "", *map(rendering.plain, self.notes), rendering.plain(self.facts)]
        )

    def html(self) -> str:
        """Return the same as HTML."""
        table = comparison.shown(self.loops).to_html(border=0)
        lines = "<br>".join(map(rendering.escape, [*self.notes, self.facts]))
        wide = "white-space:nowrap;overflow-x:auto"
        return f'<div style="{wide}">{table}</div><p style="font-size:12px">{lines}</p>'

    def write(self, folder: Path) -> None:
        """Write frames, summary and picture into a folder, the picture last.

        Raises:
            AgentError: the disk refused.
            MissingExtra: matplotlib is not installed; the rest is there.
        """
        files.write(folder / "turns.csv", files.csv(self.turns))
        files.write(folder / "summary.csv", files.csv(self.summary))
        files.write(folder / "summary.txt", f"{self.text()}\n".encode())
        self.plot().savefig(folder / "turns.png", dpi=150)


def _absence(loop: Loop) -> str:
    place = loop.mode if loop.round is None else f"{loop.mode}, round {loop.round}"
    return f"{place}: NA, {loop.reason}"


def _processor() -> str:
    """Return what the processor calls itself, where that is told."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _versions() -> str:
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)
