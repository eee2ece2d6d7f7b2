"""What need not be sent again: `Lineage` leaves it out, `ResponseCache` puts it back.

The two are mirror images and are tested as such: whatever is edited, whichever turn fails,
however often the socket is new, `cache.expand(lineage.shorten(full))` is `full` again.

Rule 1: neither looks at a part of the conversation that both ends already hold; the cost
of a turn does not depend on the turns before it.
Rule 2: in doubt, forget. A full request is always right, only slower.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

import msgspec

from ipy_agent.protocol.items import EMPTY, Chain, Item
from ipy_agent.protocol.requests import Request

__all__ = ["Held", "Lineage", "NotHeld", "ResponseCache"]

Memory = TypeVar("Memory")


class Lineage:
    """What the peer holds of one lane's conversation, as its client knows it."""

    __slots__ = ("_held", "_id", "_sent")

    def __init__(self) -> None:
        self.forget()

    def shorten(self, full: Request) -> Request:
        """Leave out what the peer holds.

        Returns the request unchanged when any setting but the input differs, when the input
        does not begin with what was sent and answered before, or when the lane forgot.
        """
        if self._id is None or self._sent is None or full.fields != self._sent.fields:
            return full
        rest = full.input.length - self._sent.input.length - len(self._held)
        if rest < 0:
            return full
        held = full.input.back(rest)
        if held.since(self._sent.input.length) != self._held:
            return full
        if held.back(len(self._held)) is not self._sent.input:
            return full
        return msgspec.structs.replace(
            full,
            input=EMPTY.extend(full.input.since(held.length)),
            previous_response_id=self._id,
        )

    def remember(self, full: Request, response_id: str, output: list[Item]) -> None:
        """Take note that the peer answered `full` with `output` and keeps both."""
        self._id: str | None = response_id
        self._sent: Request | None = full
        self._held: list[Item] = list(output)

    def forget(self) -> None:
        """Take note that the peer holds nothing: after a failure, and on a new connection."""
        self._id = None
        self._sent = None
        self._held = []

    def __repr__(self) -> str:
        return f"<Lineage after {self._id}>"


class Held(NamedTuple, Generic[Memory]):
    """A conversation that a connection holds, and what the engine keeps for it."""

    chain: Chain
    memory: Memory | None


class NotHeld(KeyError):
    """No response of this id is held. The peer sends the whole input instead."""


class ResponseCache(Generic[Memory]):
    """What a server holds for one connection: conversations by response id.

    Args:
        keep: how many conversations to hold, the least recently used go first;
            0 for none.
    """

    def __init__(self, keep: int = 1024) -> None:
        self._keep = keep
        self._held: dict[str, Held[Memory]] = {}

    def expand(self, request: Request) -> tuple[Request, Held[Memory]]:
        """Put back what the client left out.

        Returns the whole request, and what was held of it (empty for a new conversation).

        Raises:
            NotHeld: the request continues from what is not here.
        """
        parent = request.previous_response_id
        if parent is None:
            return request, Held(EMPTY, None)
        if parent not in self._held:
            raise NotHeld(parent)
        held = self._held[parent] = self._held.pop(parent)
        whole = held.chain.extend(request.input.since(0))
        return msgspec.structs.replace(request, input=whole, previous_response_id=None), held

    def remember(
        self, full: Request, response_id: str, output: list[Item], memory: Memory | None = None
    ) -> None:
        """Hold a conversation up to and including the response `response_id`."""
        self._held[response_id] = Held(full.input.extend(output), memory)
        while len(self._held) > self._keep:
            del self._held[next(iter(self._held))]

    def forget(self, response_id: str | None) -> None:
        """Drop one conversation: the turn that continued from it failed."""
        self._held.pop(response_id or "", None)

    def __len__(self) -> int:
        return len(self._held)
