"""The way from a click to the end of a run: what the kernel's interrupt does, from any thread.

A front end may have a click handled on a thread of its own while the cell runs. There it may
only ask: the run's `stop` is safe to call anywhere, and a tool that runs is interrupted by the
very signal that an interrupt of the kernel sends.

Rule 1: a signal is sent only while a tool runs, and the run does not go on before it arrived.
Rule 2: a child that a tool forked ends where the tool does: sockets and journal are the parent's.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell

from ipy_agent.notebook.interrupt import Interrupts, interrupt_main_thread

__all__ = ["Stop"]


class Stop(Interrupts):
    """Ends a run when it is called; does nothing while none goes on."""

    def __init__(self) -> None:
        super().__init__()
        self._in_tool = False

    def __call__(self, *_: object) -> None:
        """End the run, and the tool that it may be in."""
        with self._lock:
            if self._stop is not None:
                self._stop()
            if self._in_tool:
                interrupt_main_thread()

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Within this context an interrupt raises in the tool, and so does this."""
        if threading.current_thread() is not threading.main_thread():
            yield  # a signal would interrupt something else
            return
        with super().working(), _clicks_arrive():
            self._in_tool, process = True, os.getpid()
            try:
                yield
            finally:
                if os.getpid() != process:
                    # A child that the tool forked: it would go on as a second kernel.
                    os._exit(0)
                self._in_tool = False
                with self._lock:
                    pass  # a call that is under way has sent its signal by now: it is the tool's


@contextlib.contextmanager
def _clicks_arrive() -> Iterator[None]:
    """Within this context clicks are told, also while a tool's output is captured.

    Before a kernel tells of a click it tells the publisher of displays, and fails at the one that
    IPython captures with.
    """
    hear = getattr(InteractiveShell.instance().display_pub, "set_parent", None)
    if hear is None or hasattr(CapturingDisplayPublisher, "set_parent"):
        yield
        return
    CapturingDisplayPublisher.set_parent = hear  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del CapturingDisplayPublisher.set_parent  # type: ignore[attr-defined]
