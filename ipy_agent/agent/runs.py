"""A run as the caller's thread sees it: an inbox of what happens, and tools to be run.

The loop puts in events and tool calls, this side takes them out: it shows the ones and
carries out the others, since output, questions and the user's variables live here. An inbox
belongs to one run; a shared one would let the end of a cancelled run end the next.

Rule: this thread is woken for what it has to do, and at most 20 times a second for what it only
has to show. Woken for each event, the two threads would spend their time on taking turns.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import queue
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import msgspec

from ipy_agent.agent.approval import Question, Reply
from ipy_agent.agent.calls import Outcome, Worker, refused
from ipy_agent.agent.early import Hear
from ipy_agent.agent.notes import Notes
from ipy_agent.background import Background, Work
from ipy_agent.errors import Interrupted, JournalFailed
from ipy_agent.protocol.events import Event
from ipy_agent.protocol.items import Item
from ipy_agent.trace import Trace

__all__ = ["Carry", "Front", "Quiet", "attend"]

T = TypeVar("T")
Begin = Callable[["Carry", Hear], Coroutine[Any, Any, T]]
STOP_SECONDS = 1.0
TICK_SECONDS = 0.05


class Carry(Protocol):
    """Has a call carried out on the caller's thread, by the run's worker or by another."""

    def __call__(self, call: Item, by: Worker = ...) -> Coroutine[Any, Any, Outcome]: ...


class Front(Protocol):
    """Who looks on while a run goes: a cell, or nobody. Called on the thread of `run`.

    Only `withdraw` is called on the loop's thread.
    """

    def show(self, event: Event | Trace) -> None:
        """Take in what happened. Several come at once: `tick` follows the last of them."""

    def tick(self) -> None:
        """Bring what is shown up to date. Comes every twentieth of a second, at least."""

    def approve(self, question: Question) -> Reply:
        """Ask the user."""

    def withdraw(self) -> None:
        """Take a question back that is open: the run is over, and its budget, say, is used up."""

    def waiting(self, stop: Callable[[], None]) -> AbstractContextManager[object]:
        """Hold while the run goes on; an interrupt then calls `stop`."""

    def working(self) -> AbstractContextManager[object]:
        """Hold while a tool runs; an interrupt then raises, and calls `stop` as well."""


class Quiet:
    """Nobody looks on, and nobody can be asked; Python's own interrupt ends the wait."""

    def show(self, event: Event | Trace) -> None:
        pass

    def tick(self) -> None:
        pass

    def approve(self, question: Question) -> Reply:  # noqa: ARG002 (nobody is there to read it)
        return Reply.NOBODY

    def withdraw(self) -> None:
        pass

    def waiting(self, stop: Callable[[], None]) -> AbstractContextManager[object]:  # noqa: ARG002 (see above)
        return nullcontext()

    def working(self) -> AbstractContextManager[object]:
        return nullcontext()


class _Job:
    """A tool call on its way to the caller's thread, and its outcome's way back.

    It must not be carried out before `noted` is done, if there is such a thing.
    """

    def __init__(
        self, call: Item, worker: Worker, noted: concurrent.futures.Future[None] | None
    ) -> None:
        self.call = call
        self.worker = worker
        self.noted = noted
        self._loop = asyncio.get_running_loop()
        self.outcome: asyncio.Future[Outcome] = self._loop.create_future()

    def done(self, outcome: Outcome) -> None:
        """Hand the outcome to the loop, unless the run is over."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, so the run is over
            self._loop.call_soon_threadsafe(self._arrived, outcome)

    def _arrived(self, outcome: Outcome) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class _Inbox:
    """What happened in a run, until the caller's thread takes it out in its order.

    Nothing here takes a lock that a signal could meet while it is held.
    """

    def __init__(self) -> None:
        self._messages: deque[Any] = deque()
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._rung = -TICK_SECONDS

    def put(self, message: object) -> None:
        """Put in what has to be acted on."""
        self._messages.append(message)
        self._bell.put(None)

    def tell(self, event: Event | Trace) -> None:
        """Put in what has to be seen some time; from one thread only."""
        self._messages.append(event)
        now = time.monotonic()
        if now - self._rung >= TICK_SECONDS:
            self._rung = now
            self._bell.put(None)

    def wait(self) -> None:
        """Wait until there is something to act on or to see, at most for a tick."""
        with contextlib.suppress(queue.Empty):
            self._bell.get(timeout=TICK_SECONDS)
            while True:
                self._bell.get_nowait()

    def __iter__(self) -> Iterator[Any]:
        """Yield what is there, the oldest first."""
        while self._messages:
            yield self._messages.popleft()


def attend(
    begin: Begin[T],
    worker: Worker,
    front: Front,
    background: Background,
    record: Hear,
    notes: Notes | None = None,
) -> T:
    """Begin a run on the loop, see it through on this thread, and return what it comes to.

    Args:
        begin: makes the run, given what performs its calls and what hears of it.
        worker: carries out its calls, here, unless `perform` is told of another.
        front: looks on, here.
        background: has the loop.
        record: is told everything, on the loop's thread.
        notes: has to know of a call with side effects before that is carried out.

    Raises:
        AgentError: what ended the run.
        Interrupted: the user did.
    """
    inbox = _Inbox()

    def hear(event: Event | Trace) -> None:
        record(event)
        inbox.tell(event)

    async def perform(call: Item, by: Worker = worker) -> Outcome:
        noted = None if notes is None or by.begins_early(call) else notes.intended(call)
        job = _Job(call, by, noted)
        inbox.put(job)
        return await job.outcome

    stops: list[None] = []

    def stop() -> None:
        # A signal may come while another is handled: nothing here takes a lock.
        stops.append(None)
        inbox.put(None)

    def ended(result: concurrent.futures.Future[T]) -> None:
        inbox.put(result)
        front.withdraw()

    with front.waiting(stop):  # also while it is ended: to ask again changes nothing
        run: Work | None = None
        try:  # from before it begins: what was begun has to be ended
            run = background.start(begin(perform, hear), done=ended)
            result: T = _see_through(inbox, stops, front, background).result()
        except BaseException as error:
            background.check()
            if run is not None:
                run.cancel()
                with contextlib.suppress(BaseException):  # its end is not the news any more
                    run.result.exception(STOP_SECONDS)
            if isinstance(error, (KeyboardInterrupt, asyncio.CancelledError)):
                raise Interrupted("interrupted") from None
            raise
        return result


def _see_through(
    inbox: _Inbox,
    stops: list[None],
    front: Front,
    background: Background,
) -> concurrent.futures.Future[Any]:
    """Take out of the inbox what happens, until the run ended or the user stopped it."""
    told = 0  # of the stops, those that the run has heard of

    def wanted(job: _Job) -> Callable[[], bool]:
        return lambda: not stops and not job.outcome.done()

    while True:
        inbox.wait()
        for message in inbox:
            if isinstance(message, (Event, Trace)):  # as nearly all are
                front.show(message)
            elif isinstance(message, _Job):
                with front.working():
                    # An interrupt from here on is the tool's; one that came before is the run's.
                    outcome = None if stops else _outcome(message, wanted(message))
                    background.check()  # a tool may fork: the run is the parent's
                    if outcome is not None:
                        told = len(stops)  # the run ends by itself, once it has taken the output
                        message.done(_as_stopped(outcome) if told else outcome)
            elif isinstance(message, concurrent.futures.Future):
                return message
            if len(stops) > told:
                raise Interrupted("interrupted")
        front.tick()


def _outcome(job: _Job, wanted: Callable[[], bool]) -> Outcome:
    """Carry a call out once it is noted, if the run still waits for it then."""
    while job.noted is not None:
        try:
            job.noted.result(TICK_SECONDS)
            break
        except JournalFailed as error:
            return refused(job.call, f"not run: {error}")
        except TimeoutError:
            if not wanted():
                return refused(job.call, "not run: the run ended before this was noted")
    return job.worker.carry_out(job.call, wanted)


def _as_stopped(outcome: Outcome) -> Outcome:
    """Return what came of a call that lived through its interrupt: it ends the run all the same."""
    ended = msgspec.structs.replace(outcome.ended, status="interrupted")
    return msgspec.structs.replace(outcome, ended=ended)
