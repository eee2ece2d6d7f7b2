"""Token ids, kept small: those of every response that a connection holds are held with it.

Turns of one conversation share what they have in common, and an id takes four bytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

__all__ = ["Tokens", "ids_of", "shared"]


def ids_of(tokens: Iterable[int] = ()) -> array[int]:
    """Return ids in the form in which they are kept."""
    return array("i", tokens)


def shared(one: array[int], other: array[int]) -> int:
    """Return how many ids two lists have in common at their beginning.

    Found by halving: slices are compared at the speed of memory, ids one by one are not.
    """
    same, differs = 0, min(len(one), len(other)) + 1
    while differs - same > 1:
        middle = (same + differs) // 2
        if one[same:middle] == other[same:middle]:
            same = middle
        else:
            differs = middle
    return same


class Tokens:
    """Token ids as they came, chunk by chunk, each with a link to those before it."""

    __slots__ = ("chunk", "length", "parent")

    def __init__(self, parent: Tokens | None = None, chunk: Iterable[int] = ()) -> None:
        self.parent = parent
        self.chunk = ids_of(chunk)
        self.length: int = len(self.chunk) + (parent.length if parent else 0)

    def ids(self) -> array[int]:
        """Return all of them in order."""
        chunks: list[array[int]] = []
        node: Tokens | None = self
        while node is not None:
            chunks.append(node.chunk)
            node = node.parent
        whole = ids_of()
        for chunk in reversed(chunks):
            whole += chunk
        return whole
