"""What has been said: the items of the conversation, always in a state that can be sent.

Rule 1: every function call has exactly one output. `settle` gives one to those that a
failure or an interrupt left open.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ipy_agent.protocol.items import CALLS, EMPTY, Chain, Item, calls, output_of
from ipy_agent.protocol.requests import Fields, Request

__all__ = ["MAIN", "Compacts", "Conversation", "compacted"]

MAIN = "main"
"""The branch that is there from the beginning."""

_OUTPUTS = frozenset(f"{kind}_output" for kind in CALLS)


class Compacts(Protocol):
    """A way to an endpoint that can put a conversation into fewer items."""

    async def compact(self, request: Request) -> list[Item]:
        """Return the items that stand for a whole request's input."""


class Conversation:
    """One branch: a line of items that grows at its end.

    Args:
        branch: its name.
        items: what it begins with; it shares them with the branch that it was forked from.

    Attributes:
        tokens: how many its last turn had, as its endpoint counted; `None` before.
    """

    def __init__(self, branch: str = MAIN, items: Chain = EMPTY) -> None:
        self.branch = branch
        self.items = items
        self.tokens: int | None = None
        self._open: dict[str, Item] = {}

    @property
    def stream_id(self) -> str | None:
        """The lane that it asks for: the default lane, or one of its own name."""
        return None if self.branch == MAIN else self.branch

    def add(self, items: Iterable[Item]) -> None:
        """Put items at the end."""
        added = list(items)
        self.items = self.items.extend(added)
        self._open.update((call["call_id"], call) for call in calls(added))
        for item in added:
            if item["type"] in _OUTPUTS:
                self._open.pop(item["call_id"], None)

    def settle(self, why: str) -> list[Item]:
        """Answer the open calls with `why`, and return those answers."""
        answers = [output_of(name, why, call["type"]) for name, call in self._open.items()]
        self.add(answers)
        return answers

    def back_to(self, items: Chain) -> None:
        """Take back what was said since the conversation was `items`."""
        self.items = items
        self._open = {}


async def compacted(conversation: Conversation, fields: Fields, way: Compacts) -> None:
    """Put what the endpoint makes of a conversation into its place.

    Raises:
        AgentError: the endpoint cannot, or did not; the conversation is as it was.
    """
    request = Request(fields=fields, input=conversation.items)
    conversation.back_to(EMPTY.extend(await way.compact(request)))
    conversation.tokens = None
