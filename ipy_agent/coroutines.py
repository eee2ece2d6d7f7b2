"""Where a coroutine runs that is called from ordinary code: on the loop of the user's own clients.

In a kernel that loop already runs, further up this thread's stack, and only nest-asyncio2 can
run it from within. Where no loop runs, the coroutine has the one that the shell keeps for
`await`, else one that stays with the thread, so that what one call opens is alive in the next.

Rule 1: nest-asyncio2 is imported and applied for the first coroutine within a running loop. It
changes asyncio for the whole process, and who has no such coroutine keeps asyncio as it is.
Rule 2: only that one loop is made re-entrant, never the socket's.
Rule 3: a task does not outlive its call, and an interrupt never hits another task of the user.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from ipy_agent.errors import ToolError

__all__ = ["awaited", "settle", "settled"]

T = TypeVar("T")
Loop = asyncio.AbstractEventLoop
END_SECONDS = 1.0


def awaited(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on this thread, in a copy of this context, and return its result. Blocks.

    Other tasks of the loop go on meanwhile.

    Raises:
        ToolError: the loop that runs on this thread cannot be run from within.
        KeyboardInterrupt: the user interrupted; the coroutine was cancelled.
    """
    try:
        loop = _loop()
    except BaseException:
        coroutine.close()
        raise
    task = loop.create_task(coroutine)
    interrupt = _Interrupt(loop, task)
    try:
        with interrupt.taken():
            result = loop.run_until_complete(task)
    except BaseException:
        if not interrupt.asked:
            raise
    finally:
        _end(loop, task)
    if interrupt.asked:
        raise KeyboardInterrupt
    return result


def settled(value: Any) -> Any:
    """Return a value, or what it comes to: a coroutine's result, a future's.

    Nothing else is awaited: some have an `__await__` and are values all the same, such as Dask's
    futures outside an asynchronous client.
    """
    if asyncio.isfuture(value):
        return awaited(_outcome(value))
    return awaited(value) if isinstance(value, Coroutine) else value


async def _outcome(future: asyncio.Future[T]) -> T:
    return await future


def settle(home: Callable[[], Loop]) -> None:
    """From now on coroutines of this thread run on the loop of `home` when no loop is running."""
    _here.home = home


def _loop() -> Loop:
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        return _here.home()
    _make_reentrant(running)
    return running


def _make_reentrant(loop: Loop) -> None:
    """Let a running loop be run from within."""
    if hasattr(loop, "_nest_patched"):
        return
    # It would find out for itself, but only after it changed asyncio.
    if not isinstance(loop, asyncio.BaseEventLoop):
        raise ToolError(
            f"a coroutine cannot be awaited here: the running loop is {type(loop).__module__}'s "
            "and not asyncio's own; use an ordinary function, or code without await"
        )
    import nest_asyncio2  # noqa: PLC0415 (rule 1)

    # What it changes is the loop's class: with a class of its own, no other loop is touched.
    kind = type(loop)
    loop.__class__ = type(kind.__name__, (kind,), {})
    nest_asyncio2.apply(loop)


class _Here(threading.local):
    """What a thread's coroutines run on while no loop is running there."""

    def __init__(self) -> None:
        self.home: Callable[[], Loop] = _Home()


class _Home:
    """A loop that is made at its first use and closed with its thread."""

    def __init__(self) -> None:
        self._loop: Loop | None = None

    def __call__(self) -> Loop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            weakref.finalize(self, self._loop.close)
        return self._loop


_here = _Here()


class _Interrupt:
    """What SIGINT does while a task is awaited.

    While the task itself computes, it goes where it went before: that raises within the task,
    as in a tool that is no coroutine. While the loop waits or is at another task, it cancels
    the task, since an exception there would strike whatever happens to run. Whoever asks a
    second time need not wait for the task's end.
    """

    def __init__(self, loop: Loop, task: asyncio.Task[Any]) -> None:
        self.asked = False
        self._loop = loop
        self._task = task
        self._before: Any = None

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Take interrupts within this context."""
        self._before = signal.getsignal(signal.SIGINT)
        # Signals reach the main thread only, and who ignores this one has a reason.
        if threading.current_thread() is not threading.main_thread() or not callable(self._before):
            yield
            return
        signal.signal(signal.SIGINT, self)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, self._before)

    def __call__(self, *signalled: object) -> None:
        again, self.asked = self.asked, True
        if again:
            raise KeyboardInterrupt
        if asyncio.current_task(self._loop) is self._task:
            self._before(*signalled)
        # From a signal handler this is also what wakes a loop that waits.
        self._loop.call_soon_threadsafe(self._task.cancel)


def _end(loop: Loop, task: asyncio.Task[Any]) -> None:
    """See that a task is over, and that nobody logs an exception which was raised already."""
    if not task.done():
        task.cancel()
        loop.run_until_complete(asyncio.wait({task}, timeout=END_SECONDS))
    if task.done() and not task.cancelled():
        task.exception()
