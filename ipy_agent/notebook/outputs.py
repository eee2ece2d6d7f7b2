"""The outputs of a cell in their order: what was said, what tools showed, and a panel below all.

An output stays where it was first displayed. So the panel makes room: what is to stand above it
takes its place, and it is displayed anew below. That leaves no empty output behind.

Rule 1: a cell's outputs are never cleared, for the answer is one of them. A tool may clear what it
displayed itself: those outputs become empty, and what comes next takes their place.
Rule 2: they are shown past whatever captures a tool's displays, and from one thread at a time.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

from IPython.core.displaypub import DisplayPublisher
from IPython.core.formatters import DisplayFormatter
from IPython.core.interactiveshell import InteractiveShell

from ipy_agent.notebook.substitutes import replaced

__all__ = ["Handle", "Outputs"]


class Handle:
    """An output that can be shown anew.

    Args:
        publish: shows a mime bundle, as a publisher of displays does.
    """

    def __init__(self, publish: Callable[..., None]) -> None:
        self._publish = publish
        self._transient = {"display_id": os.urandom(16).hex()}
        self._is_shown = False

    def show(self, bundle: dict[str, Any], metadata: dict[str, Any] | None = None) -> None:
        """Show a mime bundle, in the place of the one before."""
        shown, self._is_shown = self._is_shown, True
        self._publish(bundle, metadata or {}, transient=self._transient, update=shown)


class Outputs:
    """The outputs of one run.

    Args:
        below: the widget that stays below the others.

    Attributes:
        lock: whoever has it is the only one who shows anything.
    """

    def __init__(self, below: object) -> None:
        shell = InteractiveShell.instance()
        self.lock = threading.RLock()
        self._below = cast("DisplayFormatter", shell.display_formatter).format(below)
        self._publish = shell.display_pub.publish
        self._last: Handle | None = None
        self._empty: list[Handle] = []

    def __bool__(self) -> bool:
        """Whether there are any."""
        return self._last is not None

    def put(self, bundle: dict[str, Any], metadata: dict[str, Any] | None = None) -> Handle:
        """Show a mime bundle below what is there and above the panel; return its handle."""
        with self.lock:
            if self._empty:
                emptied = self._empty.pop(0)
                emptied.show(bundle, metadata)
                return emptied
            handle, self._last = self._last or Handle(self._publish), Handle(self._publish)
            handle.show(bundle, metadata)
            self._last.show(*self._below)
            return handle

    def clear(self, handles: list[Handle], *, later: int = 0) -> None:
        """Empty the last outputs, but for the first ones that get something else at once."""
        with self.lock:
            for handle in handles[later:]:
                handle.show({"text/plain": ""})
            self._empty = [*handles, *self._empty]

    def end(self, bundle: dict[str, str]) -> None:
        """Leave a mime bundle in the panel's place."""
        if self._last is not None:
            self._last.show(bundle)

    @contextlib.contextmanager
    def taking(self, prepare: Callable[[], None]) -> Iterator[list[Handle]]:
        """Within this context what a tool displays stands above the panel, where it arose.

        Before each, `prepare` is called: there may be something that has to stand above it.
        The list grows with each. What will be updated by a name of its own keeps it, and stands
        below the panel; so does what another thread displays.
        """
        taker = _Taker(self, InteractiveShell.instance().display_pub, prepare)
        if not _on_main_thread():  # where outputs belong to no cell
            yield taker.taken
            return
        # There are hooks for it, but only a kernel's has them.
        with replaced(taker.publisher, publish=taker.publish, clear_output=taker.clear_output):
            yield taker.taken


class _Taker:
    """Stands in for the publisher of displays while a tool runs, and clears what the tool showed.

    Another thread clears nothing meanwhile: its cell may be this one.
    """

    def __init__(
        self, outputs: Outputs, publisher: DisplayPublisher, prepare: Callable[[], None]
    ) -> None:
        self.taken: list[Handle] = []
        self.publisher = publisher
        self._publish = publisher.publish
        self._outputs = outputs
        self._prepare = prepare
        self._clears = False

    def publish(self, data: dict[str, Any], metadata: Any = None, *rest: Any, **told: Any) -> None:
        named = told.get("transient") or told.get("update")
        if named or not _on_main_thread():
            self._publish(data, metadata, *rest, **told)
            return
        if self._clears:
            self._clear(later=1)
        with self._outputs.lock:
            self._prepare()
            self.taken.append(self._outputs.put(data, metadata))

    def clear_output(self, wait: bool = False) -> None:
        if not _on_main_thread():
            return
        self._clears = wait
        if not wait:
            self._clear()

    def _clear(self, *, later: int = 0) -> None:
        self._clears = False
        self._outputs.clear(self.taken, later=later)
        self.taken.clear()


def _on_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
