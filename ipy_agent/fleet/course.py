"""The way of rows through a map: read, asked on lanes, written in the frame's order, told of.

Everything here runs on the loop; the thread that has the store and the sink reads and writes, one
thing after another. So rows are asked while others are read and written, and none waits on a disk.

Rule 1: memory does not grow with the frame: nothing begins that is `WINDOW` rows ahead of the
oldest one that is not done.
Rule 2: what was answered is kept at once, whatever its turn in the order is, and however it ends.
Rule 3: of rows that ask the same one is asked: also where the first was answered after it was
looked up what there is for the other.
Rule 4: what ends all rows lets those end that are under way: they are paid for. An interrupt does
not wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import NamedTuple

from ipy_agent.fleet.asking import Asking, Ended, Stopped
from ipy_agent.fleet.outcome import RowOutcome
from ipy_agent.fleet.pace import Pace
from ipy_agent.fleet.rows import Row, Rows
from ipy_agent.fleet.sink import Sink
from ipy_agent.fleet.store import Store
from ipy_agent.trace import Notice, RowsProgress, Trace
from ipy_agent.transport.clock import Clock

__all__ = ["Course", "Disk"]

WINDOW = 4_096
WRITE_SECONDS = 0.1


class Disk(NamedTuple):
    """The thread that reads and writes, and what it does that with."""

    thread: Executor
    store: Store
    sink: Sink


class Course:
    """One map under way.

    Args:
        rows: what is asked.
        disk: where outcomes go.
        asking: asks them.
        lanes: how many lanes there are to ask on.
        pace: how many of them may be in use.
        tell: is told how far it came.
        clock: seconds.
    """

    def __init__(
        self,
        rows: Rows,
        disk: Disk,
        asking: Asking,
        *,
        lanes: int,
        pace: Pace,
        tell: Callable[[Trace], None],
        clock: Clock,
    ) -> None:
        self._rows = rows
        self._disk = disk
        self._asking = asking
        self._lanes = lanes
        self._pace = pace
        self._tell = tell
        self._clock = clock
        self._piece: deque[Row] = deque()
        self._ahead: asyncio.Future[list[Row]] | None = None
        self._reading = asyncio.Lock()
        self._room = asyncio.Event()
        self._under_way: dict[bytes, list[int]] = {}
        self._done: dict[int, RowOutcome] = {}
        self._new: dict[bytes, RowOutcome] = {}
        # What came of rows since the piece at hand was looked up, and since the one ahead was.
        self._before: dict[bytes, RowOutcome] = {}
        self._since: dict[bytes, RowOutcome] = {}
        self._first = self._written = 0  # the oldest row that is not done, and not written
        self._sums = _Sums()
        self._began = self._wrote = clock.now()
        self._is_troubled = self._is_full = False
        self._later: asyncio.TimerHandle | None = None
        self._end: BaseException | None = None

    async def run(self) -> None:
        """Ask all rows. However it ends, what was answered is written or on its way.

        Raises:
            AgentError: what ended all rows.
            CancelledError: the user stopped them.
        """
        self._report()
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(1, self._lanes + 1):
                    group.create_task(self._answer_on(f"each.{number}"))
        except* Stopped:
            raise asyncio.CancelledError from None
        finally:
            if self._ahead is not None:
                self._ahead.cancel()
            # Handed over before anything is waited for, which may be cancelled once more.
            await self._write(last=True)
        if self._end is not None:
            raise self._end

    async def _answer_on(self, lane: str) -> None:
        """Answer rows on one lane until there are no more."""
        try:
            while (row := await self._next()) is not None:
                if row.outcome is not None:
                    self._take(row, row.outcome, held=row.key != b"")
                elif row.key in self._under_way:
                    self._under_way[row.key].append(row.number)
                elif (same := self._lately(row.key)) is not None:
                    self._take(row, same)
                else:
                    await self._answer(row, lane)
                if self._clock.now() - self._wrote >= WRITE_SECONDS:
                    await self._write()
        except Stopped:
            raise
        except Exception as error:  # noqa: BLE001 (raised again, when the others have ended)
            self._end = self._end or (error.error if isinstance(error, Ended) else error)
            self._room.set()

    async def _answer(self, row: Row, lane: str) -> None:
        same = self._under_way[row.key] = [row.number]
        answered = False
        try:
            await self._pace.begin()
            try:
                if self._end is not None:
                    return
                outcome = await self._asking.outcome(row.prompt, lane)
                answered = outcome.text is not None
            finally:
                self._pace.end(answered=answered)
        finally:
            del self._under_way[row.key]
        if outcome.status == "completed":
            self._new[row.key] = outcome
        self._since[row.key] = outcome
        self._sums.add(outcome)
        for number in same:
            self._take(row._replace(number=number), outcome)

    async def _next(self) -> Row | None:
        """Return the next row, once there is room for it; `None` when there are no more."""
        async with self._reading:
            if not self._piece and self._end is None:
                self._piece.extend(await (self._ahead or self._read()))
                self._ahead = self._read() if self._piece else None
            while self._piece and self._piece[0].number >= self._first + WINDOW:
                if self._end is not None:
                    return None
                self._room.clear()
                await self._room.wait()
            return self._piece.popleft() if self._piece and self._end is None else None

    def _read(self) -> asyncio.Future[list[Row]]:
        self._before, self._since = self._since, dict(self._new)
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._disk.thread, self._rows.piece)

    def _lately(self, key: bytes) -> RowOutcome | None:
        """Return what came of a row since it was looked up what there is."""
        outcome = self._since.get(key) or self._before.get(key)
        if outcome is not None:
            self._since[key] = outcome
        return outcome

    def _take(self, row: Row, outcome: RowOutcome, *, held: bool = False) -> None:
        """Take note of what came of a row."""
        self._done[row.number] = outcome
        self._sums.done += 1
        self._sums.failed += outcome.status == "failed"
        self._sums.held += held
        while self._first in self._done:
            self._first += 1
        self._room.set()
        if self._later is None:
            loop = asyncio.get_running_loop()
            self._later = loop.call_later(2 * WRITE_SECONDS, self._write_soon)

    async def _write(self, *, last: bool = False) -> None:
        """Write what is new; at last also what is done behind a row that is not."""
        if (put := self._handed_over(last=last)) is not None:
            await asyncio.shield(put)  # who is cancelled here has handed it over all the same
        self._report()

    def _write_soon(self) -> None:
        """Write what nobody has written: rows may take long, and a process may be killed."""
        if (put := self._handed_over()) is not None:
            put.add_done_callback(self._wrote_by_itself)

    def _wrote_by_itself(self, put: asyncio.Future[None]) -> None:
        self._end = self._end or (put.exception() if not put.cancelled() else None)
        self._report()

    def _handed_over(self, *, last: bool = False) -> asyncio.Future[None] | None:
        """Hand what is new to the thread that writes, if there is anything."""
        self._wrote = self._clock.now()
        if self._later is not None:
            self._later.cancel()
            self._later = None
        numbers = sorted(self._done) if last else list(range(self._written, self._first))
        outcomes = [self._done[number] for number in numbers]
        self._written = self._first
        self._done = {number: it for number, it in self._done.items() if number >= self._first}
        new, self._new = self._new, {}
        if not (outcomes or new):
            return None
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._disk.thread, self._put, numbers, outcomes, new)

    def _put(
        self, numbers: list[int], outcomes: list[RowOutcome], new: dict[bytes, RowOutcome]
    ) -> None:
        self._disk.store.keep(new)
        if outcomes and not self._is_full:
            self._is_full = True  # unless it works
            self._disk.sink.add(self._rows.index(numbers), outcomes)
            self._is_full = False

    def _report(self) -> None:
        sums, trouble = self._sums, self._disk.store.trouble
        self._tell(
            RowsProgress(
                rows=len(self._rows),
                done=sums.done,
                failed=sums.failed,
                held=sums.held,
                under_way=self._pace.under_way,
                seconds=self._clock.now() - self._began,
                input_tokens=sums.input_tokens,
                cached_tokens=sums.cached_tokens,
                output_tokens=sums.output_tokens,
                cost_usd=sums.cost_usd,
            )
        )
        if trouble is not None and not self._is_troubled:
            self._is_troubled = True
            self._tell(
                Notice(
                    text=f"these rows are not kept ({trouble}): asked again, all are asked",
                    lasting=True,
                )
            )


@dataclass(slots=True)
class _Sums:
    """How far the rows came, and what those took that were asked."""

    done: int = 0
    failed: int = 0
    held: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None

    def add(self, outcome: RowOutcome) -> None:
        """Count what one took."""
        self.input_tokens += outcome.input_tokens or 0
        self.cached_tokens += outcome.cached_tokens or 0
        self.output_tokens += outcome.output_tokens or 0
        if outcome.cost_usd is not None:
            self.cost_usd = (self.cost_usd or 0.0) + outcome.cost_usd
