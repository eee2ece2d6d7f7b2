"""What has been said: the items of the conversation, always in a state that can be sent.

Rule 1: every function call has exactly one output. `settle` gives one to those that a
failure or an interrupt left open; of two open calls with one id the first counts, and an output
that answers no open call is left out, since no endpoint would take either.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ipy_agent.agent.redaction import cleaned
from ipy_agent.protocol.items import CALLS, EMPTY, Chain, Item, is_call, output_of
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
    """What is said in a run: it begins with what was said before, and grows at its end.

    Args:
        branch: whose it is.
        items: what it begins with; it shares them with every run that begins with them.
        tokens: how many they had, as their endpoint counted.
        left: how many were left when they were compacted last.

    Attributes:
        tokens: how many its last turn had; `None` before.
    """

    def __init__(
        self, branch: str = MAIN, items: Chain = EMPTY, tokens: int | None = None, left: int = 0
    ) -> None:
        self.branch = branch
        self.items = items
        self.tokens = tokens
        self.left = left
        self._open: dict[str, Item] = {}
        self._tried = False

    @property
    def stream_id(self) -> str | None:
        """The lane that it asks for: the default lane, or one of its own name."""
        return None if self.branch == MAIN else self.branch

    def is_due(self, limit: int) -> bool:
        """Whether to compact: it has so many tokens, and half as many more than last time left."""
        return (self.tokens or 0) >= max(limit, self.left * 3 // 2)

    def counted(self, tokens: int | None) -> None:
        """Take note of how many tokens a turn had."""
        self.tokens = tokens
        if self._tried:
            self._tried, self.left = False, tokens or 0

    def tried(self) -> None:
        """Take note that it was compacted, or could not be."""
        self._tried = True

    def add(self, items: Iterable[Item]) -> list[Item]:
        """Put items at the end, and return those that were put there."""
        added = [item for item in items if self._is_new(item)]
        self.items = self.items.extend(added)
        return added

    def _is_new(self, item: Item) -> bool:
        """Take note of a call or an output; return whether it has a place here."""
        if is_call(item):
            known = item["call_id"] in self._open
            self._open.setdefault(item["call_id"], item)
            return not known
        if item["type"] in _OUTPUTS:
            return self._open.pop(item.get("call_id", ""), None) is not None
        return True

    def settle(self, why: str) -> list[Item]:
        """Answer the open calls with `why`, and return those answers."""
        calls = list(self._open.items())
        return self.add(output_of(name, why, call["type"]) for name, call in calls)

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
    conversation.back_to(EMPTY.extend(cleaned(await way.compact(request))))
    conversation.tokens = None
