"""The tree of what was said: runs of cells, each behind the one that it followed.

A branch is a line of runs. A cell keeps its place in the line: run again, it follows the live
runs before that place, takes the place of what it said there, and what came behind is stale until
it runs again too. A stale run that it passes over comes behind it: so cells that all run again
stand in the order in which they ran. Nothing is lost: what was replaced stays in the tree, and a
fork from one of its turns brings it back.

Rule 1: the live runs of a line are a chain, each following the live one before it; what is sent
is what the last of them said. A run whose chain was broken behind its back is stale from the start.
Rule 2: a line is a value: an operation makes new ones, and undo puts the old ones back.
Rule 3: a run belongs to the branch that it ran on. Replaced there, it is replaced wherever it is
shared; replaced on a branch that only shares it, it stays where it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from ipy_agent.errors import UsageError
from ipy_agent.protocol.items import EMPTY, Chain

__all__ = ["Entry", "Line", "Run", "Tree", "back", "live", "place"]

UNDOS = 100
"""How many changes can be taken back; each holds a line as it was."""

Hear = Callable[[int, str], None]
NOTHING: Mapping[int, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Run:
    """What a cell run left in the conversation. A compaction is one as well, without a cell.

    Attributes:
        number: the cell run's, as in `cells`; 0 for a compaction.
        branch: where it ran.
        cell: the cell's id, where the front end tells one.
        parent: the run that it followed.
        said: the conversation as it left it.
        prompt: what the user wrote.
        asked: all that decides what would be asked, to know the same question again.
        answer: what its caller got; `None`, if it failed.
        told: what the model had been told of the user's variables by then.
        tokens: how many the conversation had, as the endpoint counted.
        left: how many were left when it was compacted last.
    """

    number: int
    branch: str
    cell: str | None = None
    parent: Run | None = None
    said: Chain
    prompt: str = ""
    asked: object = None
    answer: Any = None
    told: Any = None
    tokens: int | None = None
    left: int = 0

    @property
    def is_compaction(self) -> bool:
        """Whether it only stands for what was said before it."""
        return not self.number

    def __repr__(self) -> str:
        return f"<Run {self.number} on {self.branch}>"


class Entry(NamedTuple):
    """A place in a line: its run, and whether what it followed was replaced since."""

    run: Run
    stale: bool = False


Line = tuple[Entry, ...]


class _Change(NamedTuple):
    """What an operation on a branch did to the lines."""

    branch: str
    run: Run
    before: dict[str, Line]
    after: dict[str, Line]


class Tree:
    """The lines of a session, by the names of their branches. Not thread-safe.

    Args:
        hear: is told a run's number and how it stands, whenever that changes: `live`, `stale`,
            `replaced`, `undone` or `reset`.

    Attributes:
        runs: every run that said something, in order; of a run that a fork took a part of, the
            part is one as well.
        cells: the ids of the cells that ever had a place.
    """

    def __init__(self, first: str, hear: Hear = lambda _number, _standing: None) -> None:
        self.runs: list[Run] = []
        self.cells: set[str] = set()
        self._hear = hear
        self._lines: dict[str, Line] = {first: ()}
        self._changes: list[_Change] = []
        self._standing: dict[int, str] = {}
        # In how many lines a run is live, and in how many it is stale.
        self._places: Counter[tuple[int, bool]] = Counter()

    @property
    def branches(self) -> tuple[str, ...]:
        """The names of the branches, in the order in which they began."""
        return tuple(self._lines)

    def line(self, branch: str) -> Line:
        """Return the places of a branch, in order."""
        return self._lines[branch]

    def tip(self, branch: str) -> Run | None:
        """Return the run that a new cell would follow."""
        return _last_live(self._lines[branch])

    def said(self, branch: str) -> Chain:
        """Return what is said on a branch: what a new cell would go on from."""
        tip = self.tip(branch)
        return EMPTY if tip is None else tip.said

    def standing(self, run: Run) -> str:
        """Return how a run stands: `live` or `stale` in some line, or why it is in none."""
        return self._standing.get(run.number, "live")

    def add(self, run: Run, *, replaced: Run | None = None) -> None:
        """Put a run that said something into its place.

        Args:
            run: the new one.
            replaced: the one whose place it takes; none, it goes to the end.
        """
        changed = {run.branch: _with(self._lines[run.branch], run, replaced)}
        if replaced is not None and replaced.branch == run.branch:
            for name, line in self._lines.items():
                if any(entry.run is replaced for entry in line):
                    changed[name] = _with(line, run, replaced)
        before = {name: self._lines[name] for name in changed}
        self.runs.append(run)
        if run.cell is not None:
            self.cells.add(run.cell)
        gone = {} if replaced is None else {replaced.number: "replaced"}
        self._put(changed, gone, "stale")
        self._changes.append(_Change(run.branch, run, before, changed))
        del self._changes[:-UNDOS]

    def undo(self, branch: str) -> Run:
        """Take back the last run on a branch, with all that it replaced and made stale.

        Raises:
            UsageError: there is none, or another branch has changed what it built on since.
        """
        own = [change for change in self._changes if change.branch == branch]
        if not own or not self._lines[branch]:
            raise UsageError(f"nothing ran on branch {branch!r} that could be taken back")
        change = own[-1]
        if self._lines[branch] is not change.after[branch]:
            later = [each for each in self._changes if branch in each.after][-1]
            raise UsageError(
                f"branch {branch!r} was changed by run {later.run.number} on {later.branch!r}: "
                "take that one back first"
            )
        self._changes.remove(change)
        untouched = {}
        for name, after in change.after.items():
            if self._lines[name] is after:
                untouched[name] = change.before[name]
            for later in self._changes:
                if later.before.get(name) is after:  # which goes back further now
                    later.before[name] = change.before[name]
        self._put(untouched, {change.run.number: "undone"})
        return change.run

    def fork(self, name: str, source: str) -> None:
        """Begin a branch that shares the live runs of another."""
        self._put({name: live(self._lines[source])})

    def fork_at(self, name: str, number: int, said: Chain) -> Run | None:
        """Begin a branch with what was said when a turn of a run ended.

        Returns:
            The part of the run that this is, if it is not all of it.

        Raises:
            UsageError: the run is not in this conversation.
        """
        found = [run for run in self.runs if run.number == number]
        if not found:
            raise UsageError(f"cell run {number} is not part of this conversation any more")
        last = run = found[0]
        if run.said.length != said.length:
            last = _part(run, name, said)
            self.runs.append(last)
        path = [last, *back(run.parent)][::-1]
        self._put({name: tuple(map(Entry, path))})
        return None if last is run else last

    def drop(self) -> None:
        """Let go of every line; what was said stands as `reset`."""
        self._put(dict.fromkeys(self._lines, ()), {}, "reset")

    def _put(
        self, lines: dict[str, Line], gone: Mapping[int, str] = NOTHING, others: str = "stale"
    ) -> None:
        """Put lines into place, and tell how the runs of the old and new ones stand now.

        Args:
            lines: the new ones, by branch.
            gone: how a run stands that is in no line any more.
            others: how any other such run stands.
        """
        touched: dict[int, None] = {}
        for name, line in lines.items():
            old = self._lines.get(name, ())
            shared = len(old) if line[: len(old)] == old else 0  # most lines only grow
            for entries, more in ((old, -1), (line, 1)):
                for run, stale in entries[shared:]:
                    touched[run.number] = None
                    self._places[run.number, stale] += more
        self._lines |= lines
        for number in touched:
            now = gone.get(number, others)
            if self._places[number, False]:
                now = "live"
            elif self._places[number, True]:
                now = "stale"
            if number and self._standing.get(number) != now:
                self._standing[number] = now
                self._hear(number, now)


def place(line: Line, cell: str | None) -> tuple[Run | None, Entry | None]:
    """Return what a run of a cell would follow in a line, and what it would replace."""
    at = len(line) if cell is None else _at(line, lambda run: run.cell == cell)
    return _last_live(line[:at]), line[at] if at < len(line) else None


def live(line: Line) -> Line:
    """Return what a fork of a line begins with."""
    return tuple(entry for entry in line if not entry.stale)


def back(run: Run | None) -> Iterator[Run]:
    """Yield a run and those that it followed, down to the first."""
    while run is not None:
        yield run
        run = run.parent


def _with(line: Line, run: Run, replaced: Run | None) -> Line:
    """Return a line with a run in the place of another, or at its end."""
    at = len(line)
    if replaced is not None:
        at = _at(line, lambda known: known is replaced)
        if at == len(line):  # it was replaced by another run of the cell meanwhile
            at = _at(line, lambda known: known.cell == run.cell)
    before, behind = line[:at], line[at + 1 :]
    while before and before[-1].stale:
        before, behind = before[:-1], (before[-1], *behind)
    # What has no cell never runs again.
    stale = tuple(Entry(entry.run, True) for entry in behind if entry.run.cell is not None)
    return (*before, Entry(run, _last_live(before) is not run.parent), *stale)


def _at(line: Line, wanted: Callable[[Run], bool]) -> int:
    """Return where the last run of this kind is, or the line's length."""
    found = (at for at in reversed(range(len(line))) if wanted(line[at].run))
    return next(found, len(line))


def _last_live(line: Line) -> Run | None:
    return next((entry.run for entry in reversed(line) if not entry.stale), None)


def _part(run: Run, branch: str, said: Chain) -> Run:
    """Return a run up to one of its turns, as another branch begins with it."""
    return Run(
        number=run.number,
        branch=branch,
        cell=run.cell,
        parent=run.parent,
        said=said,
        prompt=run.prompt,
        told=run.told,
    )
