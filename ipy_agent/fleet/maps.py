"""One prompt over the rows of a frame, from the caller's thread: asked, shown, brought back.

The maps of a session share its connections, a store, and the thread that has that. A map leaves no
rows in the session's tables, which would grow with the frame; what its turns took counts for the
session's budgets all the same.

Rule 1: what ends a map takes nothing back: its error has what was done as `result`.
"""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ipy_agent.agent.approval import Allowances
from ipy_agent.agent.budget import Spending
from ipy_agent.agent.calls import Worker
from ipy_agent.agent.early import Hear
from ipy_agent.agent.plan import Plan
from ipy_agent.agent.runs import Carry, Front, attend
from ipy_agent.connections import Connections
from ipy_agent.errors import AgentError, UsageError
from ipy_agent.fleet.asking import Asking
from ipy_agent.fleet.course import Course, Disk
from ipy_agent.fleet.pace import Pace
from ipy_agent.fleet.result import columns_of
from ipy_agent.fleet.rows import Rows, circumstances
from ipy_agent.fleet.sink import Memory, Parquet, Sink
from ipy_agent.fleet.stores import Stores, Use
from ipy_agent.fleet.template import Template
from ipy_agent.protocol.items import Chain
from ipy_agent.records import TurnRecord
from ipy_agent.trace import RowsProgress, Trace
from ipy_agent.transport.clock import Clock

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["INSTRUCTIONS", "MOST", "Job", "Maps", "template_of"]

INSTRUCTIONS = """\
You are given one item at a time, and answer for that item alone. Say the answer and nothing else: \
no greeting, no explanation, no repetition of the item."""
"""What a model is told when the user sets no instructions: those of a cell are about tools."""

MOST = 256
"""How many rows may be under way at once: 16 connections with 16 each."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A map to be done.

    Attributes:
        plan: whom it asks, and how; its prompt is the template.
        shared: what was said before, which all rows begin with.
        kept: the file in which what came of rows is kept; `None` keeps it for the session.
        concurrency: how many rows are under way at once; `None` for what suits the endpoint.
        out: the parquet file that the result goes to; `None` for a frame.
        fresh: ask all rows, whatever came of them before.
    """

    plan: Plan
    shared: Chain
    kept: Path | None = None
    concurrency: int | None = None
    out: Path | None = None
    fresh: bool = False

    @property
    def lanes(self) -> int:
        """How many rows are under way at once."""
        limits = self.plan.target.limits
        return self.concurrency or limits.at_once or limits.in_flight


class Maps:
    """The maps of a session. Made at no cost.

    Args:
        connections: what they go over.
        spending: what they count for.
        clock: seconds.
    """

    def __init__(
        self, connections: Connections, spending: Spending, clock: Clock | None = None
    ) -> None:
        self._connections = connections
        self._spending = spending
        self._clock = clock or Clock()
        self._numbers = itertools.count(1)
        self._stores = Stores()

    def run(
        self, frame: DataFrame, job: Job, front: Front, allowances: Allowances
    ) -> DataFrame | Path:
        """Ask the rows of a frame, and return what came of them. Blocks.

        Raises:
            UsageError: the template names no column, or one that there is not.
            AgentError: what no row could get past; what was done is its `result`.
            Interrupted: the user stopped it; so it is then.
        """
        template = template_of(frame, job)
        if not len(frame):
            return _sink(job, frame).finish()
        with self._stores.used(job.kept) as use:
            held = use.store.held if not job.fresh else lambda _: {}
            rows = Rows(frame, template, circumstances(job.plan, job.shared), held)
            sink = _sink(job, frame)
            try:
                self._see_through(rows, use, sink, job, front, allowances)
                return use.thread.submit(sink.finish).result()
            except AgentError as error:
                with contextlib.suppress(AgentError):  # what ended it may be the file itself
                    error.result = use.thread.submit(sink.finish).result()
                raise
            except BaseException:
                use.thread.submit(sink.abandon).result()
                raise

    def close(self) -> None:
        """End those that go on, which keep what was done, and let go of the stores."""
        stores, self._stores = self._stores, Stores()
        stores.close()

    def _see_through(
        self, rows: Rows, use: Use, sink: Sink, job: Job, front: Front, allowances: Allowances
    ) -> None:
        plan, number = job.plan, -next(self._numbers)
        account = _Account(self._spending, plan, number, self._clock)
        last: list[RowsProgress] = []
        lanes = min(job.lanes, len(rows))
        way = self._connections.to(plan.target, plan.settings.transport)

        async def begin(perform: Carry, hear: Hear) -> None:
            def tell(trace: Trace) -> None:
                if isinstance(trace, RowsProgress):
                    last[:] = [trace]
                hear(trace)

            use.begin()
            pace = Pace(lanes, self._clock)
            asking = Asking(
                plan,
                job.shared,
                way,
                perform=perform,
                approve=front.approve,
                allowances=allowances,
                pace=pace,
                check=account.check,
                charge=account.charge,
                tell=tell,
            )
            course = Course(
                rows,
                Disk(use.thread, use.store, sink),
                asking,
                lanes=lanes,
                pace=pace,
                tell=tell,
                clock=self._clock,
            )
            await course.run()

        worker = Worker(plan.tools, plan.settings.mode, front.approve, plan.target, allowances)
        try:
            attend(begin, worker, front, self._connections.loop, _nobody)
        finally:
            account.took()
            for progress in last:  # after an interrupt nobody takes it out of the inbox
                front.show(progress)


class _Account:
    """What a map takes, counted while it goes on."""

    def __init__(self, spending: Spending, plan: Plan, number: int, clock: Clock) -> None:
        self._spending, self._plan, self._number, self._clock = spending, plan, number, clock
        self._counted = clock.now()

    def check(self) -> None:
        """Raise before a turn that the limits do not allow."""
        plan = self._plan
        self.took()
        model = plan.fields.values.get("model")
        self._spending.check(plan.settings, self._number, plan.target.name, model)

    def charge(self, turn: TurnRecord) -> None:
        """Count a turn, when it begins and when it ended."""
        self._spending.charge(self._number, turn)

    def took(self) -> None:
        """Count the time that passed since the last time."""
        since, self._counted = self._counted, self._clock.now()
        self._spending.took(self._number, self._counted - since)


def template_of(frame: Any, job: Job) -> Template:
    """Return the template that a job is over a frame, which may be a lazy one.

    Raises:
        UsageError: it is no frame, has not these columns, or the job has a wrong option.
    """
    if job.concurrency is not None and not 1 <= job.concurrency <= MOST:
        raise UsageError(f"concurrency is a number from 1 to {MOST}, not {job.concurrency}")
    if not hasattr(frame, "columns"):
        raise UsageError(
            f"a map is over the rows of a DataFrame, not of a {type(frame).__name__}: "
            "make one of it, such as series.to_frame()"
        )
    columns_of(job.plan.shape)  # a field that can be none is told of now
    return Template.of(job.plan.prompt, list(frame.columns))


def _sink(job: Job, frame: DataFrame) -> Sink:
    empty = frame.index[:0]
    if job.out is None:
        return Memory(job.plan.shape, empty)
    return Parquet(job.out, job.plan.shape, empty)


def _nobody(_: Any) -> None:
    """Record nothing."""
