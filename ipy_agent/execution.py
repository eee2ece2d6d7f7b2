"""Plans carried out: a run from its place in the tree to what it leaves there.

Rule: what a run leaves is put into the tree on the loop, at its very end: whoever waits for the run
may have given up by then, and calls may still be open before.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import sys
from typing import Any

import msgspec

from ipy_agent.agent.approval import Allowances
from ipy_agent.agent.branches import Branches
from ipy_agent.agent.budget import Spending
from ipy_agent.agent.calls import Worker
from ipy_agent.agent.conversation import compacted
from ipy_agent.agent.early import Hear, Perform
from ipy_agent.agent.loop import Ask, Said, answer
from ipy_agent.agent.notes import Notes
from ipy_agent.agent.places import Place
from ipy_agent.agent.plan import Plan, Tell
from ipy_agent.agent.replay import show_again
from ipy_agent.agent.runs import Front, attend
from ipy_agent.agent.tree import Run
from ipy_agent.connections import Connections
from ipy_agent.errors import AgentError
from ipy_agent.protocol.events import Event
from ipy_agent.protocol.items import Chain, user
from ipy_agent.protocol.requests import Request
from ipy_agent.records import Recorder
from ipy_agent.tables.prices import cost_usd
from ipy_agent.trace import Notice, Trace
from ipy_agent.transport.rehearsal import Rehearsal

__all__ = ["Execution"]


class Execution:
    """Carries out plans over connections, and has them recorded.

    Attributes:
        allowances: the tools that run without a question.
        spending: what the runs took so far.
        notes: is told of what happens in a run, and before a tool with side effects begins.
    """

    def __init__(self, records: Recorder, connections: Connections, notes: Notes) -> None:
        self._records = records
        self._connections = connections
        self.notes = notes
        self._told_trouble = False
        self.allowances = Allowances()
        self.spending = Spending(records, cost_usd)

    def run(
        self, plan: Plan, branches: Branches, place: Place, background: Tell | None, front: Front
    ) -> tuple[Said, int]:
        """Carry out a plan at a place of a branch that is ours alone.

        Returns:
            The model's last words, and the run's number in `cells`.

        Raises:
            AgentError: as it happened; the tree holds what was said by then.
        """
        settings, target = plan.settings, plan.target
        model = plan.fields.values.get("model")
        told = _told(plan, place.told, background)
        worker = Worker(plan.tools, settings.mode, front.approve, target, self.allowances)
        way = self._connections.to(target, settings.transport)
        record, notes = self._records.listener(), self.notes

        def heard(event: Event | Trace) -> None:
            record(event)
            notes.heard(event, record)

        async def begin(perform: Perform, hear: Hear) -> Said:
            at = await self._compacted(plan, branches, place, hear)
            said, ended = at.begun(), None
            ask = Ask(
                prompt=plan.prompt,
                fields=plan.fields,
                endpoint=target.name,
                budget_turns=int(settings.budget_turns or sys.maxsize),
                budget_seconds=settings.budget_seconds or math.inf,
                pictures=plan.pictures,
                background=told[0],
                cell_id=plan.cell,
                follows=at.follows,
                shape=plan.shape,
                early=worker.begins_early,
                check=lambda: self.spending.check(settings, record.cell, target.name, model),
                cache_minimum=target.cache_minimum,
            )
            try:
                ended = await answer(ask, said, way, perform, hear)
            finally:
                if said.items is not at.said:
                    kept = None if worker.refused else ended
                    run = at.ended(said, plan, record.cell, answer=kept, told=told[1])
                    branches.add(run, at.held)
                await asyncio.shield(asyncio.ensure_future(notes.kept()))
                self._tell_trouble(notes, hear)
            return ended

        ended = attend(begin, worker, front, self._connections.loop, heard, notes)
        return ended, record.cell

    def _tell_trouble(self, notes: Notes, hear: Hear) -> None:
        """Say once that nothing is kept any more, and what comes of that."""
        if notes.trouble is not None and not self._told_trouble:
            self._told_trouble = True
            hear(
                Notice(
                    text=f"this session is not kept any more: {notes.trouble}. Tools with side "
                    "effects do not run until it is, or %config AgentMagics.journal = False",
                    lasting=True,
                )
            )

    def show_again(self, plan: Plan, run: Run, before: Chain, front: Front) -> tuple[Said, int]:
        """Show the stored answer of a run that would ask the same again, as `run` returns it."""
        items, turns = run.said.since(before.length), self._records.turns
        own = [tool for tool in self._records.tools if turns[tool.turn - 1].cell == run.number]
        show_again(run.number, items, own, front.show)
        text = run.answer.text
        # The value is made anew: the one of then may have been changed, or be of an older class.
        return Said(text, plan.shape.parse(text) if plan.shape else text), run.number

    def rehearsed(self, plan: Plan, place: Place, background: Tell | None) -> Rehearsal:
        """Return what a plan would send first. Sends nothing."""
        told, _ = _told(plan, place.told, background)
        request = Request(
            fields=plan.fields,
            input=place.said.extend([user(plan.prompt, plan.pictures, told)]),
            stream_id=place.begun().stream_id,
        )
        way = self._connections.to(plan.target, plan.settings.transport)
        found = self._connections.loop.call(way.rehearse(request))
        return msgspec.structs.replace(found, compacts=_is_due(plan, place))

    async def _compacted(self, plan: Plan, branches: Branches, place: Place, hear: Hear) -> Place:
        """Compact what was said before a run, if it is time; if that fails all of it is sent."""
        if not _is_due(plan, place):
            return place
        said = place.begun()
        hear(Notice(text="compacting the conversation"))
        try:
            await compacted(said, plan.fields, self._connections.compacting(plan.target))
        except AgentError as error:
            hear(Notice(text=f"the conversation could not be compacted: {error}", lasting=True))
            return dataclasses.replace(place, tried=True)
        now = f"{place.said.length} items are now {said.items.length}"
        hear(Notice(text=f"compacted: {now}", lasting=True))
        branches.add(place.compacted(said))
        return branches.place(place.branch)


def _is_due(plan: Plan, place: Place) -> bool:
    """Whether what was said before a run is to be compacted first."""
    due = plan.settings.compact_tokens or plan.target.compact_tokens
    return due is not None and place.held is None and place.begun().is_due(due)


def _told(plan: Plan, before: Any, background: Tell | None) -> tuple[str, Any]:
    """Return what stands before a prompt, and what the model knows of variables then."""
    how = plan.settings.context or plan.target.context
    if how == "off" or background is None:
        return "", before
    text, told = background(before, how)
    return (f"{text}\n\n" if text else ""), told
