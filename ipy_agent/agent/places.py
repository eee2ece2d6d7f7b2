"""A run's place in the tree: what it begins with, and what it leaves there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ipy_agent.agent.conversation import Conversation
from ipy_agent.agent.plan import Plan
from ipy_agent.agent.tree import Line, Run, place
from ipy_agent.protocol.items import EMPTY, Chain

__all__ = ["Place"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a cell speaks on a branch.

    Attributes:
        branch: the branch's name.
        parent: the run that comes before it.
        held: the run that has this place now, and gives way to the next.
        live: whether what `held` followed is still there.
        tried: whether what comes before was to be compacted, and could not be.
    """

    branch: str
    parent: Run | None = None
    held: Run | None = None
    live: bool = False
    tried: bool = False

    @classmethod
    def of(cls, line: Line, branch: str, cell: str | None) -> Place:
        """Return a cell's place in a branch's line: where it spoke before, or the end."""
        parent, entry = place(line, cell)
        if entry is None:
            return cls(branch=branch, parent=parent)
        return cls(branch=branch, parent=parent, held=entry.run, live=not entry.stale)

    @property
    def said(self) -> Chain:
        """The conversation up to here."""
        return EMPTY if self.parent is None else self.parent.said

    @property
    def follows(self) -> int | None:
        """The number of the cell run that comes before."""
        run = self.parent
        while run is not None and run.is_compaction:
            run = run.parent
        return None if run is None else run.number

    @property
    def told(self) -> Any:
        """What the model had been told of the user's variables by here."""
        return None if self.parent is None else self.parent.told

    def answer_to(self, asked: object) -> Run | None:
        """Return the run that answered this very question here, if there is one."""
        held = self.held
        if held is None or not self.live or held.answer is None or held.asked != asked:
            return None
        return held

    def begun(self) -> Conversation:
        """Return the conversation that a run here goes on with."""
        if self.parent is None:
            return Conversation(self.branch)
        parent = self.parent
        said = Conversation(self.branch, parent.said, parent.tokens, parent.left)
        if self.tried or parent.is_compaction:
            said.tried()
        return said

    def compacted(self, said: Conversation) -> Run:
        """Return what stands for all that was said up to here."""
        return Run(
            number=0,
            branch=self.branch,
            parent=self.parent,
            said=said.items,
            told=self.told,
            left=said.left,
        )

    def ended(
        self, said: Conversation, plan: Plan, number: int, *, answer: object, told: object
    ) -> Run:
        """Return what a run left here."""
        return Run(
            number=number,
            branch=self.branch,
            cell=plan.cell,
            parent=self.parent,
            said=said.items,
            prompt=plan.prompt,
            asked=plan.asked,
            answer=answer,
            told=told,
            tokens=said.tokens,
            left=said.left,
        )
