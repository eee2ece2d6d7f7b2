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

__all__ = ["interrupts_call", "interrupts_raise"]


def interrupts_call(stop: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
    """Within this context an interrupt calls `stop`."""
    return _handling(lambda *_: stop())


def interrupts_raise() -> contextlib.AbstractContextManager[None]:
    """Within this context an interrupt raises KeyboardInterrupt, as Python does."""
    return _handling(signal.default_int_handler)


@contextlib.contextmanager
def _handling(handler: Callable[..., Any]) -> Iterator[None]:
    # Signals reach the main thread only; elsewhere there is nothing to handle.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
