"""What need not be sent again: `Lineage` leaves it out, `ResponseCache` puts it back.

The two are mirror images and are tested as such: whatever is edited, whichever turn fails,
however often the socket is new, `cache.expand(lineage.shorten(full))` is `full` again.

Rule 1: neither looks at a part of the conversation that both ends already hold; the cost
of a turn does not depend on the turns before it.
Rule 2: in doubt, forget. A full request is always right, only slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from ipy_agent.protocol.items import EMPTY, Chain, Item
from ipy_agent.protocol.requests import Request

__all__ = ["Held", "Lineage", "NotHeld", "ResponseCache"]

Memory = TypeVar("Memory")


class _Known(NamedTuple):
    """A response that the peer keeps, and the request that it answered."""

    id: str
    request: Request
    output: list[Item]


class Lineage:
    """What the peer holds on one connection, as its client knows it.

    A lane continues from its own latest response, a fork from that of another lane; where the
    peer keeps all of them, from any. Only new items are looked at: from the end of the input
    back to the place where something was sent that the peer answered.

    Args:
        keeps_all: the peer keeps every response of the connection, not only each lane's latest.
    """

    def __init__(self, *, keeps_all: bool = False) -> None:
        self._keeps_all = keeps_all
        self._latest: dict[str | None, _Known] = {}
        # By the identity of the input that was sent: a place in a conversation, not its value.
        self._known: dict[int, _Known] = {}
        self._began = False

    def shorten(self, full: Request) -> Request:
        """Leave out what the peer holds.

        Returns the request unchanged when any setting but the input differs, when the input
        does not begin with what was sent and answered before, or when that was forgotten.
        """
        for known, behind in self._answered(full.input):
            if known.request.fields == full.fields:
                if known.request.stream_id != full.stream_id:
                    known = self._own(full, len(behind)) or known  # noqa: PLW2901 (as long)
                return msgspec.structs.replace(
                    full, input=EMPTY.extend(behind), previous_response_id=known.id
                )
        return full

    def holds(self, full: Request) -> bool:
        """Whether the lane of a request has been asked just that before, and said nothing to it."""
        known = self._known.get(id(full.input))
        return (
            known is not None
            and not known.output
            and known.request.stream_id == full.stream_id
            and known.request.fields == full.fields
        )

    def why(self, full: Request) -> str:
        """Return why nothing of a request can be left out: a reason for `cache_miss`."""
        for known, _ in self._answered(full.input):
            before, now = known.request.fields.values, full.fields.values
            changed = (name for name in (*_CHANGES, *now, *before) if _differ(name, before, now))
            return _CHANGES.get(next(changed, ""), "settings_changed")
        return "evicted" if self._began else "new_connection"

    def lanes_at(self, response_id: str | None) -> list[str | None]:
        """Return the lane whose latest response this is, if it is one's."""
        return [lane for lane, known in self._latest.items() if known.id == response_id]

    def keep_latest(self) -> None:
        """Take note that the peer keeps no more than each lane's latest response."""
        self._keeps_all = False
        latest = self._latest.values()
        self._known = {place: known for place, known in self._known.items() if known in latest}

    def remember(self, full: Request, response_id: str, output: list[Item]) -> None:
        """Take note that the peer answered `full` with `output` and keeps both."""
        if not self._keeps_all:
            self._drop(self._latest.get(full.stream_id))
        known = _Known(response_id, full, list(output))
        self._latest[full.stream_id] = self._known[id(full.input)] = known
        self._began = True

    def forget(self, sent: Request, *, gone: bool = False) -> None:
        """Take note that a turn failed: what its lane continued from may be gone with it.

        Args:
            sent: the turn as it was sent.
            gone: the peer says that it does not hold what `sent` continues from.
        """
        self._drop(self._latest.pop(sent.stream_id, None))
        parents = (known for known in self._known.values() if known.id == sent.previous_response_id)
        parent = next(parents, None)
        if parent is not None and (gone or parent.request.stream_id == sent.stream_id):
            self._drop(parent)

    def _answered(self, input: Chain) -> Iterator[tuple[_Known, list[Item]]]:  # noqa: A002 (the API's word)
        """Yield what the peer holds of an input, the longest first, and the items behind it."""
        for node in input.back_to_its_beginning() if self._known else ():
            known = self._known.get(id(node))
            if known is None:
                continue
            behind = input.since(node.length)
            if behind[: len(known.output)] == known.output:
                yield known, behind[len(known.output) :]

    def _own(self, full: Request, new: int) -> _Known | None:
        """Return the latest response of a request's lane, if all but so many items are in it."""
        own = self._latest.get(full.stream_id)
        if own is None or own.request.fields != full.fields:
            return None
        before, output = own.request.input, own.output
        behind = full.input.length - before.length
        if behind != len(output) + new or full.input.back(behind) is not before:
            return None
        return own if full.input.since(before.length)[: len(output)] == output else None

    def _drop(self, known: _Known | None) -> None:
        if known is not None and self._known.get(id(known.request.input)) is known:
            del self._known[id(known.request.input)]

    def __repr__(self) -> str:
        return f"<Lineage of {len(self._known)} responses>"


_CHANGES = {
    "model": "model_changed",
    "instructions": "instructions_changed",
    "tools": "tools_changed",
    "text": "text_format_changed",
    "reasoning": "reasoning_effort_changed",
    "prompt_cache_key": "prompt_cache_key_changed",
}


def _differ(name: str, one: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(one.get(name) != other.get(name))


class Held(NamedTuple, Generic[Memory]):
    """A conversation that a connection holds, and what the engine keeps for it."""

    chain: Chain
    memory: Memory | None


class NotHeld(KeyError):
    """No response of this id is held. The peer sends the whole input instead."""


class ResponseCache(Generic[Memory]):
    """What a server holds: conversations by response id, the least recently used go first.

    Conversations share the items that they have in common; those count once, and are free
    when the last conversation that has them goes. A response counts by itself too: one that
    adds nothing, as a warm-up may, would else be held for nothing and without end.

    Args:
        budget: how many bytes to hold at most; 0 for nothing. A conversation that is larger
            by itself is not held.
    """

    RESPONSE = 512
    """The bytes that a response counts for beside its conversation."""

    def __init__(self, budget: int = 64 * 2**20) -> None:
        self._budget = budget
        self._held: dict[str, Held[Memory]] = {}
        self._items = 0
        # How many hold an item: conversations that end with it, and held items behind it.
        self._holders: dict[int, int] = {}

    @property
    def size(self) -> int:
        """The bytes that are held."""
        return self._items + self.RESPONSE * len(self._held)

    def held(self, response_id: str) -> Held[Memory]:
        """Return a conversation, and take note that it is of use.

        Raises:
            NotHeld: it is not here.
        """
        if response_id not in self._held:
            raise NotHeld(response_id)
        held = self._held[response_id] = self._held.pop(response_id)
        return held

    def expand(self, request: Request) -> tuple[Request, Held[Memory]]:
        """Put back what the client left out.

        Returns the whole request, and what was held of it (empty for a new conversation).

        Raises:
            NotHeld: the request continues from what is not here.
        """
        if request.previous_response_id is None:
            return request, Held(EMPTY, None)
        held = self.held(request.previous_response_id)
        whole = held.chain.extend(request.input.since(0))
        return msgspec.structs.replace(request, input=whole, previous_response_id=None), held

    def remember(
        self, full: Request, response_id: str, output: list[Item], memory: Memory | None = None
    ) -> None:
        """Hold a conversation up to and including the response `response_id`."""
        self.forget(response_id)
        chain = full.input.extend(output)
        if chain.size + self.RESPONSE > self._budget:
            return
        self._held[response_id] = Held(chain, memory)
        self._hold(chain)
        while self.size > self._budget:
            self.forget(next(iter(self._held)))

    def forget(self, response_id: str | None) -> None:
        """Drop one conversation: the turn that continued from it failed."""
        held = self._held.pop(response_id or "", None)
        if held is not None:
            self._release(held.chain)

    def _hold(self, chain: Chain) -> None:
        """Count the items that nobody held before; those before them are counted already."""
        for node in chain.back_to_its_beginning():
            known = self._holders.get(id(node), 0)
            self._holders[id(node)] = known + 1
            if known:
                return
            self._items += node.size - (node.parent or EMPTY).size

    def _release(self, chain: Chain) -> None:
        """Free the items that nobody holds any more."""
        for node in chain.back_to_its_beginning():
            self._holders[id(node)] -= 1
            if self._holders[id(node)]:
                return
            del self._holders[id(node)]
            self._items -= node.size - (node.parent or EMPTY).size

    def __len__(self) -> int:
        return len(self._held)
