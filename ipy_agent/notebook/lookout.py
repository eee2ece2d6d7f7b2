"""What is done about a tool that keeps the main thread busy, by a thread that looks on.

Most tools are done within milliseconds, and to bring the screen up to date before each of them
would take longer than they do. So the screen follows once a tool takes its time.

Rule 1: it acts only while a tool runs, and the tool's end waits until it has.
Rule 2: a forked child has the object but not the thread, and waits for nothing.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import threading
import time
from collections.abc import Callable, Iterator

__all__ = ["Lookout"]

EVERY_SECONDS = 0.05

Due = tuple[float, Callable[[], None]]


class Lookout:
    """Acts, each once a tool, when the tool has run for so many seconds.

    Args:
        due: the seconds and what is done then, the soonest first. It is called on a thread of its
            own, in the context of who began to watch, so that what it shows is the cell's.
        clock: seconds, monotonic.
    """

    def __init__(self, *due: Due, clock: Callable[[], float] = time.monotonic) -> None:
        self._due = due
        self._clock = clock
        self._began = 0.0
        self._left: list[Due] = []
        self._acting = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within this context a tool runs."""
        if self._thread is None:
            context = contextvars.copy_context()
            self._thread = threading.Thread(target=context.run, args=(self._look_on,), daemon=True)
            self._thread.start()
        process = os.getpid()
        self._began = self._clock()
        self._left = list(self._due)
        try:
            yield
        finally:
            self._left = []
            if os.getpid() == process:
                with self._acting:
                    pass

    def close(self) -> None:
        """End the thread."""
        self._closed.set()

    def _look_on(self) -> None:
        while not self._closed.wait(EVERY_SECONDS):
            with self._acting:
                left = self._left
                while left and self._clock() - self._began >= left[0][0]:
                    left.pop(0)[1]()
