"""A pandas frame in partitions on a cluster: given out a few at a time, and put together again.

Rows travel with their places in the frame as their labels: a part that comes back tells where it
belongs, also one that was not finished, and labels that occur twice need not be told apart.

Rule: no more is with the cluster than keeps its workers busy, however long the frame is.
"""

from __future__ import annotations

import contextlib
import math
import queue
import uuid
from collections import defaultdict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from distributed import KilledWorker
from distributed.client import FutureCancelledError

from ipy_agent.agent.runs import TICK_SECONDS, Front
from ipy_agent.errors import AgentError, Interrupted
from ipy_agent.fleet.maps import Job
from ipy_agent.fleet.result import frame_of
from ipy_agent.fleet.workers import ask_rows_and_tell
from ipy_agent.trace import Notice, RowsProgress
from ipy_agent.transport.clock import Clock

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Partitions"]

PARTS = 4
"""Partitions a worker's thread, so that the last ones end at about the same time."""
ROWS = 1_000
"""Rows a partition has at most: so many are asked again where a worker is lost, at the most."""
AHEAD = 2
"""Partitions a worker's thread that are with the cluster: one that it asks, and the next."""
FETCH_SECONDS = 1.0
"""How long a partition that ended may take to come before it is looked what else there is."""


class Partitions:
    """A map over a pandas frame on a cluster.

    Args:
        client: the cluster's.
        rows: the columns that are put in.
        job: what is asked.
        parcel: the same, packed.
    """

    def __init__(self, client: Any, rows: DataFrame, job: Job, parcel: bytes) -> None:
        self._client = client
        self._rows = rows
        self._job = job
        self._parcel = parcel
        self._clock = Clock()
        self._began = self._clock.now()
        self._name = f"{ask_rows_and_tell.__name__}-{uuid.uuid4().hex}"
        self._size = self._rows_of_a_part()
        self._left = deque(range(0, len(rows), self._size))
        self._given: dict[Any, int] = {}
        self._patience: defaultdict[Any, float] = defaultdict(lambda: FETCH_SECONDS)
        self._ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._parts: list[DataFrame] = []
        self._progress: list[RowsProgress] = []
        self._told: set[str] = set()
        self._is_stopped = False

    def result(self, front: Front) -> DataFrame:
        """Have all rows asked, and return what came of them. Blocks.

        Raises:
            AgentError: what no row could get past; what was done is its `result`.
            Interrupted: the user stopped it; so it is then.
        """
        try:
            with front.waiting(self._stop):
                self._see_through(front)
        except BaseException as error:
            with contextlib.suppress(Exception):  # the cluster may be what failed
                self._client.cancel(list(self._given))
            if isinstance(error, AgentError) and error.result is not None:
                self._parts.append(error.result)
            ended = Interrupted("interrupted") if isinstance(error, KeyboardInterrupt) else error
            if not isinstance(ended, AgentError):
                raise
            ended.result = self._whole()
            raise ended from None
        return self._whole()

    def _stop(self) -> None:
        self._is_stopped = True

    def _see_through(self, front: Front) -> None:
        self._give_out()
        front.show(self._how_far())
        while self._given:
            try:
                future = self._ended.get(timeout=TICK_SECONDS)
            except queue.Empty:
                future = None
            if self._is_stopped:
                raise KeyboardInterrupt
            if future is not None:
                self._take(future, front)
                self._give_out()
                front.show(self._how_far())
            front.tick()

    def _give_out(self) -> None:
        threads = sum(self._client.nthreads().values())
        while self._left and len(self._given) < AHEAD * max(1, threads):
            begin = self._left.popleft()
            part = self._rows.iloc[begin : begin + self._size]
            future = self._client.submit(
                ask_rows_and_tell,
                part.set_axis(range(begin, begin + len(part))),
                self._parcel,
                key=f"{self._name}-{begin}",
                pure=False,
            )
            self._given[future] = len(part)
            future.add_done_callback(self._ended.put)

    def _take(self, future: Any, front: Front) -> None:
        try:
            part, progress, notices = future.result(self._patience[future])
        except TimeoutError:
            # It was lost with its worker after it had ended, and is asked again: meanwhile others
            # may end, or the user. Where it only takes long to come it has longer the next time.
            self._patience[future] *= 2
            self._ended.put(future)
            return
        except KilledWorker:
            raise AgentError(
                "workers were lost with the same rows again and again: look at the cluster; "
                "the answers so far are kept: run it again, and only the rest is asked",
                code="workers_lost",
            ) from None
        except FutureCancelledError:
            raise AgentError("the cluster gave rows up: is it closed?", code="given_up") from None
        del self._given[future], self._patience[future]
        self._parts.append(part)
        self._progress.append(progress)
        for text in notices:
            if text not in self._told:
                self._told.add(text)
                front.show(Notice(text=text, lasting=True))

    def _how_far(self) -> RowsProgress:
        def total(count: Callable[[RowsProgress], int]) -> int:
            return sum(map(count, self._progress))

        costs = [part.cost_usd for part in self._progress if part.cost_usd is not None]
        return RowsProgress(
            rows=len(self._rows),
            done=total(lambda part: part.done),
            failed=total(lambda part: part.failed),
            held=total(lambda part: part.held),
            under_way=sum(self._given.values()),
            seconds=self._clock.now() - self._began,
            input_tokens=total(lambda part: part.input_tokens),
            cached_tokens=total(lambda part: part.cached_tokens),
            output_tokens=total(lambda part: part.output_tokens),
            cost_usd=sum(costs) if costs else None,
        )

    def _whole(self) -> DataFrame:
        """Return all parts that there are, in the frame's order and with its labels."""
        import pandas as pd  # noqa: PLC0415 (slow to load)

        if not self._parts:
            return frame_of(self._rows.index[:0], [], self._job.plan.shape)
        whole = pd.concat(self._parts).sort_index()
        whole.index = self._rows.index[whole.index]
        return whole

    def _rows_of_a_part(self) -> int:
        threads: int = sum(self._client.nthreads().values())
        fair = math.ceil(len(self._rows) / (PARTS * max(1, threads)))
        return max(min(fair, ROWS), self._job.lanes)
