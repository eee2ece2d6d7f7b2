"""An event loop on a thread of its own, so that sockets live while the main thread computes.

Rule 1: work begins in an empty context; a cell's own would keep its output alive for ever.
Rule 2: nothing here prints, or calls into the user's code.
Rule 3: a forked child has the object but not the thread, and touches neither it nor its sockets.
Rule 4: an error that leaves the loop leaves the variables of its frames behind. There are requests
with a key in their headers among them, and IPython's verbose tracebacks print variables. Nor does
an error behind it come along that no traceback shows.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import os
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ipy_agent.errors import UsageError

__all__ = ["Background", "Work"]

T = TypeVar("T")
STOP_SECONDS = 2.0
PAUSE_SECONDS = 0.02


class Work:
    """Something under way on the loop, as the thread that began it sees it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        coroutine: Coroutine[Any, Any, Any],
        done: Callable[[concurrent.futures.Future[Any]], None],
    ) -> None:
        self.result: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self.result.add_done_callback(done)
        self._loop = loop
        self._coroutine = coroutine
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False
        loop.call_soon_threadsafe(self._begin, context=contextvars.Context())

    def cancel(self) -> None:
        """Ask it to end; its result follows when it did. To ask again changes nothing."""
        if not (self._cancelled or self.result.done()):
            self._cancelled = True
            self._loop.call_soon_threadsafe(lambda: self._task and self._task.cancel())

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._coroutine)
        self._task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self.result.set_exception(asyncio.CancelledError())
        elif error := task.exception():
            _forget_variables(error, set())
            self.result.set_exception(error)
        else:
            self.result.set_result(task.result())


class Background:
    """The loop and its daemon thread."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="ipy_agent loop", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        """Run the loop until it is stopped, also past what breaks the loop itself.

        While a user's code keeps `len` or another built-in for itself, asyncio cannot work.
        """
        while not self._stopped:
            with contextlib.suppress(Exception):
                self.loop.run_forever()
                return
            time.sleep(PAUSE_SECONDS)

    def start(
        self,
        coroutine: Coroutine[Any, Any, Any],
        done: Callable[[concurrent.futures.Future[Any]], None] = lambda _: None,
    ) -> Work:
        """Begin work; `done` is called on the loop's thread when it ended."""
        return Work(self.loop, coroutine, done)

    def call(self, coroutine: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
        """Do work and wait for its result; an exception here ends the work."""
        work = self.start(coroutine)
        try:
            result: T = work.result.result(seconds)
        except BaseException:
            work.cancel()
            raise
        return result

    @property
    def ours(self) -> bool:
        """Whether this process has the thread; a forked child has not."""
        return os.getpid() == self.pid

    def check(self) -> None:
        """Raise `UsageError` in a forked child."""
        if not self.ours:
            raise UsageError(
                "this process was forked, and its session stays with the parent: "
                "make an ipy_agent.Session() of its own"
            )

    def stop(self) -> None:
        """End what is under way, and the thread. In a forked child nothing is touched."""
        if not self.ours or self.loop.is_closed():
            return
        with contextlib.suppress(TimeoutError):
            self.call(_end_the_rest(), STOP_SECONDS)
        self._stopped = True
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(STOP_SECONDS)
        if not self._thread.is_alive():
            self.loop.close()


def _forget_variables(error: BaseException | None, seen: set[int]) -> None:
    """Clear the frames that an error came through, and those of the errors behind it."""
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    traceback.clear_frames(error.__traceback__)
    if (
        error.__suppress_context__
    ):  # no traceback shows it, but who pickles the error takes it along
        error.__context__ = None
    for behind in (error.__cause__, error.__context__, *getattr(error, "exceptions", ())):
        _forget_variables(behind, seen)


async def _end_the_rest() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    if rest:
        await asyncio.wait(rest)
