"""What a journal holds, made into a conversation again: its facts are done once more, in order.

Rule 1: no tool runs. A run that was cut off has what was said by then; a call of it that has no
output gets one that says that nobody knows.
Rule 2: facts that do not fit what came before end it there: what is sound is before them.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import msgspec

from ipy_agent.agent.branches import Branches
from ipy_agent.agent.conversation import Conversation
from ipy_agent.agent.notes import Notes
from ipy_agent.agent.tree import Run
from ipy_agent.errors import AgentError
from ipy_agent.journal.facts import (
    Added,
    Asked,
    Begun,
    Called,
    Dropped,
    Ended,
    Fact,
    Forked,
    ForkedAt,
    Said,
    Switched,
    Turned,
    Undone,
)
from ipy_agent.protocol.items import EMPTY, Item
from ipy_agent.records import CellRecord, MessageRecord, Recorder, TurnRecord

__all__ = ["ABORTED", "Past"]

ABORTED = "aborted"
UNKNOWN = "cut off when its kernel ended; side effects unknown"


class Past:
    """A conversation and its rows, as they were.

    Args:
        facts: what happened.
        records: where the rows go.

    Attributes:
        branches: the conversation.
        done: how many of the facts could be done again.
        aborted: the rows of the runs that were cut off.
    """

    def __init__(self, facts: Sequence[Fact], records: Recorder) -> None:
        self.records = records
        self.branches = Branches(records.stands)
        self.done = 0
        self._items: defaultdict[int, list[Item]] = defaultdict(list)
        self._turns: defaultdict[int, list[tuple[TurnRecord, int]]] = defaultdict(list)
        self._left: dict[int, CellRecord] = {}
        for fact in facts:
            redo = self._REDO.get(type(fact))
            try:
                if redo is not None:
                    redo(self, fact)
            except (AgentError, LookupError, StopIteration):
                break
            self.done += 1
        self.aborted = [row for row in self._left.values() if row.status == "running"]

    @property
    def runs(self) -> list[Run]:
        """The runs in the order in which facts name them."""
        return self.branches.tree.runs

    def settle(self, notes: Notes) -> None:
        """End what was cut off, and have all that follows noted.

        A run that has no place yet gets one, if anything came of it but its prompt.
        """
        self.branches.notes = notes
        for turn in self.records.turns:
            if turn.status == "running":
                turn.status = ABORTED
        for row in self._left.values():
            if row.status == "running":
                row.status = ABORTED
                notes.ended(row)
            self._place(row, self._items[row.cell])

    def _place(self, row: CellRecord, items: list[Item]) -> None:
        name = row.branch
        if len(items) < 2 or name not in self.branches.names:  # noqa: PLR2004 (only a prompt)
            return
        place = self.branches.place(name, row.cell_id)
        if place.follows != row.follows:  # it was to be appended, or its place is another's now
            place = self.branches.place(name)
        said = Conversation(name, place.said)
        said.add(items)
        said.settle(UNKNOWN)
        run = Run(
            number=row.cell,
            branch=name,
            cell=row.cell_id,
            parent=place.parent,
            said=said.items,
            prompt=row.prompt,
        )
        self.branches.add(run, place.held)
        self._tell_turns(run)

    # what each fact does

    def _begun(self, fact: Begun) -> None:
        if fact.cell.cell != len(self.records.cells) + 1:
            raise LookupError
        row = msgspec.structs.replace(fact.cell)  # a fact stays as it is
        self.records.cells.append(row)
        self._left[row.cell] = row

    def _asked(self, fact: Asked) -> None:
        if fact.turn.turn != len(self.records.turns) + 1:
            raise LookupError
        self.records.turns.append(msgspec.structs.replace(fact.turn))

    def _said(self, fact: Said) -> None:
        self._items[fact.cell] += fact.items
        self.records.messages += [
            MessageRecord(cell=fact.cell, turn=fact.turn, branch=fact.branch, item=item)
            for item in fact.items
        ]

    def _called(self, fact: Called) -> None:
        self.records.tools.append(fact.tool)

    def _turned(self, fact: Turned) -> None:
        turn = msgspec.structs.replace(fact.turn)
        self.records.turns[turn.turn - 1] = turn
        self._turns[turn.cell].append((turn, fact.length))

    def _ended(self, fact: Ended) -> None:
        row = self.records.cells[fact.cell.cell - 1]
        row.elapsed_ms, row.status = fact.cell.elapsed_ms, fact.cell.status

    def _added(self, fact: Added) -> None:
        parent = None if fact.parent is None else self.runs[fact.parent]
        before = EMPTY if parent is None or not fact.number else parent.said
        items = self._items[fact.number] if fact.items is None else fact.items
        run = Run(
            number=fact.number,
            branch=fact.branch,
            cell=fact.cell,
            parent=parent,
            said=before.extend(items),
            prompt=fact.prompt,
            tokens=fact.tokens,
            left=fact.left,
        )
        replaced = None if fact.replaced is None else self.runs[fact.replaced]
        self.branches.add(run, replaced)
        self._left.pop(fact.number, None)
        self._tell_turns(run)

    def _tell_turns(self, run: Run) -> None:
        """Give the turns of a run back what was said when they ended."""
        for turn, length in self._turns.pop(run.number, ()):
            turn.said = run.said.back(run.said.length - length)

    def _forked(self, fact: Forked) -> None:
        with self._on(fact.source):
            self.branches.fork(fact.name)

    def _forked_at(self, fact: ForkedAt) -> None:
        run = next(one for one in self.runs if one.number == fact.number)
        said = run.said.back(run.said.length - fact.length)
        self.branches.fork(fact.name, (fact.number, said))

    def _switched(self, fact: Switched) -> None:
        self.branches.switch(fact.name)

    def _undone(self, fact: Undone) -> None:
        with self._on(fact.branch):
            self.branches.undo()

    def _dropped(self, _: Dropped) -> None:
        self.branches.drop()
        self.branches = Branches(self.records.stands)

    @contextlib.contextmanager
    def _on(self, branch: str) -> Iterator[None]:
        current, self.branches.current = self.branches.current, branch
        try:
            yield
        finally:
            self.branches.current = current

    _REDO: ClassVar[dict[type, Callable[[Past, Any], None]]] = {
        Begun: _begun,
        Asked: _asked,
        Said: _said,
        Called: _called,
        Turned: _turned,
        Ended: _ended,
        Added: _added,
        Forked: _forked,
        ForkedAt: _forked_at,
        Switched: _switched,
        Undone: _undone,
        Dropped: _dropped,
    }
