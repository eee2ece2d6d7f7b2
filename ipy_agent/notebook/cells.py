"""Which cell is running, by the name that its front end gives it.

Rule 1: a front end that tells no id (nbclient, a terminal) has no name for it: `None`.
Rule 2: a cell may ask several times in one execution; each time has a name of its own, the same
one when the cell runs again.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Cells"]


class Cells:
    """The names of what asks in a shell."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._execution: str | None = None
        self._asked = 0  # in that execution

    def name(self, *, asks: bool = True) -> str | None:
        """Return the name of what runs now; if it `asks`, take note that it did."""
        parent: dict[str, Any] = getattr(self._shell, "get_parent", dict)() or {}
        told, execution = parent.get("metadata", {}).get("cellId"), parent.get("msg_id")
        if not isinstance(told, str) or not told:
            return None
        before = self._asked if execution == self._execution else 0
        if asks:
            self._execution, self._asked = execution, before + 1
        return told if not before else f"{told}#{before + 1}"
