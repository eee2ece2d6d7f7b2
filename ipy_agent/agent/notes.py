"""Who is told of a conversation while it grows, so that it can be kept.

Rule 1: everything is told in the order in which it happened to the tree.
Rule 2: to be told costs the same however long the conversation is.
"""

from __future__ import annotations

from concurrent.futures import Future

from ipy_agent.agent.tree import Run
from ipy_agent.protocol.events import Event
from ipy_agent.protocol.items import Item
from ipy_agent.records import CellRecord, Listener
from ipy_agent.trace import Trace

__all__ = ["Notes"]


class Notes:
    """Is told, and forgets."""

    @property
    def trouble(self) -> str | None:
        """Why nothing is kept any more, if it should be; told to the user once."""
        return None

    def close(self) -> None:
        """Keep what was told, and let go of it."""

    def switched(self, name: str) -> None:
        """A branch is gone on with."""

    def forked(self, name: str, source: str) -> None:
        """A branch began with what is live on another."""

    def forked_at(self, name: str, number: int, length: int, part: Run | None) -> None:
        """A branch began with so many items, as a turn of a run left them; `part` if not all."""

    def added(self, run: Run, replaced: Run | None) -> None:
        """A run has its place."""

    def undone(self, branch: str) -> None:
        """The last run of a branch was taken back."""

    def dropped(self) -> None:
        """A new conversation begins."""

    def ended(self, row: CellRecord) -> None:
        """A run of an earlier process ended, when that process did."""

    def heard(self, event: Event | Trace, rows: Listener) -> None:
        """Something of a run happened, and its rows tell of it."""

    def intended(self, call: Item) -> Future[None] | None:  # noqa: ARG002 (nobody notes it)
        """A call with side effects is about to be carried out: not before this is done.

        If that cannot be kept it ends with a `JournalFailed`, and the call must not be.
        """
        return None

    async def kept(self) -> None:
        """Wait until what was told so far outlives this process; the machine, a moment later."""
