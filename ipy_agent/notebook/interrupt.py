"""The user's interrupt: an end of the run while it waits, the tool's own while one runs.

While a run waits, SIGINT only asks it to stop, so that what is under way ends in order;
around a tool it raises a KeyboardInterrupt, as Python does, and asks the run as well, in case the
tool lives through it. When the run is over it is only noted, until the cell shows how it ended, and
then it is too late: a kernel that is interrupted while it tells that a cell ended never tells.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from IPython.core.getipython import get_ipython

from ipy_agent.errors import Interrupted

__all__ = [
    "Gate",
    "Interrupts",
    "interrupt_main_thread",
    "interrupts_come_too_late",
    "interrupts_go_to",
    "interrupts_raise",
]

PATIENCE = 5
"""At which press an interrupt raises all the same while a cell is closed: something may hang."""


class Gate:
    """Holds an interrupt back until it can be raised where it is not swallowed.

    IPython swallows a KeyboardInterrupt in what it does around a cell's code; before the gate
    is open, one is only noted. Used as a signal handler.

    Attributes:
        asked: whether the user interrupted, before or after.
    """

    def __init__(self) -> None:
        self.asked = False
        self._open = False

    def open(self) -> None:
        """From now on an interrupt raises; one that was held back does so here."""
        self._open = True
        if self.asked:
            raise KeyboardInterrupt

    def __call__(self, *_: object) -> None:
        """Take an interrupt."""
        self.asked = True
        if self._open:
            raise KeyboardInterrupt


class Interrupts:
    """Whose an interrupt is, from the beginning of one run until its cell is closed."""

    def __init__(self) -> None:
        self._stop: Callable[[], None] | None = None
        self._is_working = self._waited = False
        self._noted = 0
        self._in_question = False
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within this context an interrupt that comes when the run is over ends nothing half-way.

        Before the run waits for the first time one raises at once.

        Raises:
            Interrupted: there was one, and nothing else went wrong.
        """
        with interrupts_go_to(self._note):
            try:
                yield
            except Interrupted:
                raise
            except KeyboardInterrupt:
                raise Interrupted("interrupted") from None
            if self._noted:
                raise Interrupted("interrupted")

    @contextlib.contextmanager
    def waiting(self, stop: Callable[[], None]) -> Iterator[None]:
        """Within this context an interrupt calls `stop`; while a tool works it raises, too."""
        self._stop, self._waited = stop, True
        try:
            with interrupts_go_to(self._strike):
                yield
        finally:
            self._stop = None

    def withdraw(self) -> None:
        """End the question that is open, if one is; from any thread."""
        with self._lock:
            if self._in_question:
                interrupt_main_thread()

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Within this context an interrupt raises, and a question can be withdrawn."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        with interrupts_raise():
            self._in_question = True
            try:
                yield
            finally:
                self._in_question = False
                with self._lock:
                    pass  # as in `working`: it is the question's

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Within this context an interrupt is the tool's and, if it lives through it, the run's."""
        self._is_working = True  # a tool waits: to set a handler for it takes time
        try:
            yield
        finally:
            self._is_working = False
            self._take_back()

    def _take_back(self) -> None:
        """Take interrupts again: a tool may have left another handler, or a library in it."""
        if self._stop is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._strike)

    def _note(self, *_: object) -> None:
        self._noted += 1
        if not self._waited or self._noted >= PATIENCE:
            raise KeyboardInterrupt

    def _strike(self, *_: object) -> None:
        if self._stop is not None:
            self._stop()
        if self._is_working:
            raise KeyboardInterrupt


def interrupt_main_thread() -> None:
    """Interrupt the main thread itself: only so a call that waits in C, such as a sleep, ends."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def interrupts_raise() -> contextlib.AbstractContextManager[None]:
    """Within this context an interrupt raises KeyboardInterrupt, as Python does."""
    return interrupts_go_to(signal.default_int_handler)


@contextlib.contextmanager
def interrupts_go_to(handler: Callable[..., Any]) -> Iterator[None]:
    """Within this context `handler` takes interrupts."""
    # Signals reach the main thread only; elsewhere there is nothing to handle.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def interrupts_come_too_late(result: Any) -> None:
    """Take note that a cell's code is over: an interrupt does nothing until the kernel rests.

    For `post_run_cell`. ipykernel has Python's own handler while it sends the end of a cell; the
    reply would be lost, and a front end wait for it for ever. When the kernel rests it sets its
    own handler again. It holds for the cell as the front end sent it, not for one that code runs.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    cell = getattr(getattr(result, "info", None), "raw_cell", None)
    if (
        kernel is not None
        and str(cell).startswith("%%agent")
        and kernel.get_parent().get("content", {}).get("code") == cell
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        signal.signal(signal.SIGINT, lambda *_: None)
