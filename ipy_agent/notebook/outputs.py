"""The outputs of a cell in their order: what was said, what tools showed, and a panel below all.

An output stays where it was first displayed. So the panel makes room: what is to stand above it
takes its place, and it is displayed anew below. That leaves no empty output behind.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.display import DisplayHandle

__all__ = ["Outputs"]


class Outputs:
    """The outputs of one run.

    Args:
        below: the widget that stays below the others.
    """

    def __init__(self, below: object) -> None:
        self._below = below
        self._last: DisplayHandle | None = None

    def __bool__(self) -> bool:
        """Whether there are any."""
        return self._last is not None

    def put(self, bundle: dict[str, Any], metadata: dict[str, Any] | None = None) -> DisplayHandle:
        """Show a mime bundle below what is there and above the panel; return its handle."""
        handle, self._last = self._last, DisplayHandle()
        if handle is None:
            handle = DisplayHandle()
            handle.display(bundle, raw=True, metadata=metadata)
        else:
            handle.update(bundle, raw=True, metadata=metadata)
        self._last.display(self._below)
        return handle

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
        publisher = InteractiveShell.instance().display_pub
        publish, before = publisher.publish, dict(vars(publisher))
        taken: list[DisplayHandle] = []

        def take(data: dict[str, Any], metadata: Any = None, *rest: Any, **told: Any) -> None:
            named = told.get("transient") or told.get("update")
            if named or not _on_main_thread():
                publish(data, metadata, *rest, **told)
            else:
                taken.append(self.put(data, metadata))

        if not _on_main_thread():  # where outputs belong to no cell
            yield taken
            return
        vars(publisher)["publish"] = take  # there are hooks for it, but only a kernel's has them
        try:
            yield taken
        finally:
            del vars(publisher)["publish"]
            if "publish" in before:  # of the run whose tool this run is
                vars(publisher)["publish"] = before["publish"]


def _on_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
