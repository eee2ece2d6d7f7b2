"""The outputs of a cell in their order: what was said, what tools showed, and a panel below all.

An output stays where it was first displayed. So the panel makes room: what is to stand above it
takes its place, and it is displayed anew below. That leaves no empty output behind.

Rule: a cell's outputs are never cleared, for the answer is one of them. A tool may clear what it
displayed itself: those outputs become empty, and what comes next takes their place.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import DisplayHandle

from ipy_agent.notebook.substitutes import replaced

__all__ = ["Outputs"]


class Outputs:
    """The outputs of one run.

    Args:
        below: the widget that stays below the others.
    """

    def __init__(self, below: object) -> None:
        self._below = below
        self._last: DisplayHandle | None = None
        self._empty: list[DisplayHandle] = []

    def __bool__(self) -> bool:
        """Whether there are any."""
        return self._last is not None

    def put(self, bundle: dict[str, Any], metadata: dict[str, Any] | None = None) -> DisplayHandle:
        """Show a mime bundle below what is there and above the panel; return its handle."""
        if self._empty:
            emptied = self._empty.pop(0)
            emptied.update(bundle, raw=True, metadata=metadata)
            return emptied
        handle, self._last = self._last, DisplayHandle()
        if handle is None:
            handle = DisplayHandle()
            handle.display(bundle, raw=True, metadata=metadata)
        else:
            handle.update(bundle, raw=True, metadata=metadata)
        self._last.display(self._below)
        return handle

    def clear(self, handles: list[DisplayHandle], *, later: int = 0) -> None:
        """Empty the last outputs, but for the first ones that get something else at once."""
        for handle in handles[later:]:
            handle.update({"text/plain": ""}, raw=True)
        self._empty = [*handles, *self._empty]

    def end(self, bundle: dict[str, str]) -> None:
        """Leave a mime bundle in the panel's place."""
        if self._last is not None:
            self._last.update(bundle, raw=True)

    @contextlib.contextmanager
    def taking(self) -> Iterator[list[DisplayHandle]]:
        """Within this context what a tool displays stands above the panel, where it arose.

        The list grows with each. What will be updated by a name of its own keeps it, and stands
        below the panel; so does what another thread displays.
        """
        taker = _Taker(self, InteractiveShell.instance().display_pub)
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

    def __init__(self, outputs: Outputs, publisher: DisplayPublisher) -> None:
        self.taken: list[DisplayHandle] = []
        self.publisher = publisher
        self._publish = publisher.publish
        self._outputs = outputs
        self._clears = False

    def publish(self, data: dict[str, Any], metadata: Any = None, *rest: Any, **told: Any) -> None:
        named = told.get("transient") or told.get("update")
        if named or not _on_main_thread():
            self._publish(data, metadata, *rest, **told)
            return
        if self._clears:
            self._clear(later=1)
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
