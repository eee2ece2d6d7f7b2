"""The live table of turns: a picture of the recorder's rows, below the cell that runs.

Rule 1: a refresh costs the same at turn 1,000 as at turn 20: it draws the last turns, and the
totals are told each turn that ended once.
Rule 2: rows are only read, and each at one moment: the loop's thread may be writing the last.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ipy_agent.records import Recorder, TurnRecord
from ipy_agent.tables.lines import Line, Totals
from ipy_agent.tables.picture import turns_html, turns_text

__all__ = ["Panel"]

LAST = 20
ROOM = 8_192


class Panel:
    """A widget that shows a recorder's turns while they happen.

    Args:
        recorder: whose turns.
        clock: seconds, monotonic.
        every: how many seconds are between two refreshes, at least.
        since: how many turns to leave out, from the first.

    Attributes:
        widget: the `ipywidgets.HTML` to display; dead when the kernel is, so show `static()`
            in its place at the end.
    """

    def __init__(
        self,
        recorder: Recorder,
        *,
        clock: Callable[[], float] = time.monotonic,
        every: float = 0.1,
        since: int = 0,
    ) -> None:
        from ipywidgets import HTML  # noqa: PLC0415 (slow to load; a panel comes with a run)

        self.widget = HTML()
        self._recorder = recorder
        self._clock = clock
        self._every = every
        self._since = self._told = since
        self._open: list[TurnRecord] = []
        self._totals = Totals()
        self._due = clock()
        self._seen: dict[int, float] = {}

    def refresh(self, *, force: bool = False) -> bool:
        """Draw the turns anew, if it is time; return whether it was."""
        now = self._clock()
        if now < self._due and not force:
            return False
        self._due = now + self._every
        self.widget.value = turns_html(self._lines(now), self._totals, ROOM)
        return True

    def static(self) -> dict[str, str]:
        """Return the turns as a mime bundle that needs no kernel."""
        lines = self._lines(self._clock())
        return {
            "text/html": turns_html(lines, self._totals, ROOM),
            "text/plain": turns_text(lines, self._totals),
        }

    def close(self) -> None:
        """Let go of the widget."""
        self.widget.close()

    def _lines(self, now: float) -> list[Line]:
        """Return the last turns, after telling the totals of those that ended."""
        turns = self._recorder.turns
        count = len(turns)
        self._open += turns[self._told : count]
        self._told = count
        for row in [row for row in self._open if row.status != "running"]:
            self._totals.add(row)
            self._open.remove(row)
        begin = max(self._since, count - LAST)
        return [Line.of(row, self._elapsed(row, now)) for row in turns[begin:count]]

    def _elapsed(self, row: TurnRecord, now: float) -> float | None:
        """Return the milliseconds since a running turn was first seen."""
        if row.status != "running":
            self._seen.pop(row.turn, None)
            return None
        return (now - self._seen.setdefault(row.turn, now)) * 1000
