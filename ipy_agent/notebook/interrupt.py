"""The user's interrupt: an end of the run while it waits, the tool's own while one runs.

While a run waits, SIGINT only asks it to stop, so that what is under way ends in order;
around a tool Python's own handler is back, and the tool gets a KeyboardInterrupt.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Gate", "interrupts_call", "interrupts_go_to", "interrupts_raise"]


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


def interrupts_call(stop: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
    """Within this context an interrupt calls `stop`."""
    return interrupts_go_to(lambda *_: stop())


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
