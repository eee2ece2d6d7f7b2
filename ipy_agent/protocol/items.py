"""Items stay the plain dicts that the API sends; `Chain` is a conversation of them.

A chain is an immutable linked list that grows at its end, so that two turns of one
conversation share all that they have in common. "Does this input begin with what was
sent before?" is then a walk over the new items only, however long the conversation is,
and a branch costs nothing.

Rule 1: an item is never changed once it is in a chain: put another in its place.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

__all__ = [
    "CALLS",
    "EMPTY",
    "Chain",
    "Item",
    "calls",
    "image",
    "is_call",
    "output_of",
    "text",
    "user",
]

Item = dict[str, Any]

_encode = msgspec.json.Encoder().encode


class Chain:
    """A conversation up to and including its last item. `EMPTY` is the one with none.

    `length` is the number of items, `size` the bytes of all of them as JSON, commas left out.
    """

    __slots__ = ("item", "length", "parent", "size")

    def __init__(self, parent: Chain | None, item: Item) -> None:
        self.parent = parent
        self.item = item
        self.length: int = 0 if parent is None else parent.length + 1
        self.size: int = 0 if parent is None else parent.size + len(_encode(item))

    def extend(self, items: Iterable[Item]) -> Chain:
        """Return this conversation with more items behind it."""
        return functools.reduce(Chain, items, self)

    def since(self, length: int) -> list[Item]:
        """Return the items behind the first `length`; costs as much as there are of them."""
        return [node.item for node in self._nodes(self.length - length)][::-1]

    def back_to_its_beginning(self) -> Iterator[Chain]:
        """Yield the conversation as it is, and as it was item by item before, down to `EMPTY`."""
        node: Chain | None = self
        while node is not None:
            yield node
            node = node.parent

    def back(self, steps: int) -> Chain:
        """Return the conversation as it was `steps` items ago."""
        node = self
        for node in self._nodes(steps + 1):  # noqa: B007 (the last one is what we are after)
            pass
        return EMPTY if steps >= self.length else node

    def _nodes(self, count: int) -> Iterator[Chain]:
        node: Chain | None = self
        while count > 0 and node is not None and node.parent is not None:
            yield node
            node = node.parent
            count -= 1

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Item]:
        return iter(self.since(0))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Chain) or self.length != other.length:
            return False
        mine: Chain | None = self
        theirs: Chain | None = other
        while mine is not theirs and mine is not None and theirs is not None:
            if mine.item != theirs.item:
                return False
            mine, theirs = mine.parent, theirs.parent
        return True

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Chain of {self.length} items, {self.size} bytes>"


EMPTY = Chain(None, {})

CALLS = {"function_call": "arguments", "custom_tool_call": "input"}
"""The items that call a tool of ours, and where each holds what it is called with."""


def user(prompt: str, pictures: Iterable[Item] = (), before: str = "") -> Item:
    """Return a user's message: what stands before the prompt, if anything, it, and pictures."""
    texts = [{"type": "input_text", "text": text} for text in (before, prompt) if text]
    return {"type": "message", "role": "user", "content": [*texts, *pictures]}


def output_of(call_id: str, output: str | list[Item], kind: str = "function_call") -> Item:
    """Return the item that answers the call `call_id` of this type: a text, or content parts."""
    return {"type": f"{kind}_output", "call_id": call_id, "output": output}


def image(url: str) -> Item:
    """Return a content part that shows a picture to the model; `url` may be a data URL."""
    return {"type": "input_image", "image_url": url}


def is_call(item: Item) -> bool:
    """Whether an item calls a tool of ours."""
    kind = item.get("type")
    return isinstance(kind, str) and kind in CALLS


def calls(items: Iterable[Item]) -> list[Item]:
    """Return the calls among `items` that are ours; of two with one `call_id` the first."""
    found: dict[str, Item] = {}
    for item in items:
        if is_call(item):
            found.setdefault(item["call_id"], item)
    return list(found.values())


def text(item: Item) -> str:
    """Return what an item says as plain text: a message's text, a call's arguments, an output."""
    if is_call(item):
        return str(item.get(CALLS[item["type"]], ""))
    said = item.get("output") if "output" in item else item.get("content")
    if isinstance(said, str):
        return said
    parts = said if isinstance(said, list) else []
    told = (part for part in parts if isinstance(part, dict))
    return "".join(str(part.get("text") or part.get("refusal") or "") for part in told)
