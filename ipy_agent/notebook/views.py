"""What a panel shows: a recorder's turns, cell runs and tool calls, each as a picture.

Rule 1: a look costs the same at turn 1,000 as at turn 60: it draws the last rows, of those only
what changed since the last look, and the totals are told each row once.
Rule 2: rows are only read, and each at one moment: the loop's thread may be writing the last.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable

from ipy_agent import rendering
from ipy_agent.records import Recorder, TurnRecord
from ipy_agent.tables import picture
from ipy_agent.tables.lines import CallLine, CallTotals, Line, Totals
from ipy_agent.tables.picture import Picture

__all__ = ["Views"]

LAST = 50


class Views:
    """The pictures of a recorder.

    Args:
        recorder: whose rows.
        clock: seconds, monotonic; a running turn shows its time by it.
        fresh: leave out the rows that are there already.
    """

    def __init__(
        self,
        recorder: Recorder,
        clock: Callable[[], float] = time.monotonic,
        *,
        fresh: bool = False,
    ) -> None:
        self._recorder = recorder
        self._clock = clock
        self._since = self._told = len(recorder.turns) if fresh else 0
        self._since_call = self._told_calls = len(recorder.tools) if fresh else 0
        self._open: list[TurnRecord] = []
        self._totals = Totals()
        self._cells: dict[int, Totals] = {}
        self._calls = CallTotals()
        self._seen: dict[int, float] = {}
        # The lines that were shown last, with what they were read from where that may change.
        self._turn_lines: dict[int, Line] = {}
        self._cell_lines: dict[int, tuple[object, Line]] = {}
        self._call_lines: deque[CallLine] = deque(maxlen=LAST)

    def turns(self) -> Picture:
        """Return the picture of the last turns."""
        self._count()
        now, first = self._clock(), max(self._since, self._told - LAST)
        lines: list[Line] = []
        ended: dict[int, Line] = {}
        for row in self._recorder.turns[first : self._told]:
            line = self._turn_lines.get(row.turn)
            if line is None and row.status == "running":
                line = Line.of(row, self._elapsed(row, now))
            else:
                line = ended[row.turn] = line or Line.of(row)
            lines.append(line)
        self._turn_lines = ended
        return picture.turns(lines, self._totals)

    def cells(self) -> Picture:
        """Return the picture of the last cell runs that have made a turn."""
        self._count()
        shown: dict[int, tuple[object, Line]] = {}
        for number in reversed(list(itertools.islice(reversed(self._cells), LAST))):
            totals, row = self._cells[number], self._recorder.cells[number - 1]
            told = (totals.turns, row.status, row.standing)
            kept = self._cell_lines.get(number)
            if kept is None or kept[0] != told:
                kept = (told, totals.of(row))
            shown[number] = kept
        self._cell_lines = shown
        lines = [line for _, line in shown.values()]
        return picture.cells(lines, self._totals, len(self._cells))

    def calls(self) -> Picture:
        """Return the picture of the last tool calls."""
        tools = self._recorder.tools
        count = len(tools)
        for row in tools[self._told_calls : count]:
            self._calls.add(row)
        new = tools[max(self._told_calls, count - LAST) : count]
        self._call_lines += map(CallLine.of, new)
        self._told_calls = count
        return picture.calls([*self._call_lines], self._calls)

    def static(self) -> dict[str, str]:
        """Return what there is as a mime bundle that needs no kernel: the turns, the rest folded.

        Of one cell run its turns tell all, and where no tool was called there are no calls.
        """
        turns, folded = self.turns(), []
        if len(self._cells) > 1:
            folded.append(self.cells())
        if self._recorder.tools[self._since_call :]:
            folded.append(self.calls())
        html = [turns.html()] + [rendering.fold(one.noun + "s", one.html()) for one in folded]
        return {
            "text/html": "".join(html),
            "text/plain": "\n\n".join(one.text() for one in (turns, *folded)),
        }

    def _count(self) -> None:
        """Tell the totals of the turns that ended since."""
        turns = self._recorder.turns
        count = len(turns)
        new = turns[self._told : count]
        for row in new:
            self._cells.setdefault(row.cell, Totals())
        self._open += new
        self._told = count
        for row in [row for row in self._open if row.status != "running"]:
            self._totals.add(row)
            self._cells[row.cell].add(row)
            self._open.remove(row)
            self._seen.pop(row.turn, None)

    def _elapsed(self, row: TurnRecord, now: float) -> float:
        """Return the milliseconds since a running turn was first seen."""
        return (now - self._seen.setdefault(row.turn, now)) * 1000
