"""What code prints and shows, of which head and tail are kept, so that memory stays bounded.

Rule 1: to write costs the same however much was written, and a small write costs little.
Rule 2: what is left out is counted, and said where it stood.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator
from typing import Any

__all__ = ["CHARACTERS", "Displays", "Noted", "Ring"]

Noted = dict[str, Any]

CHARACTERS = 100_000
"""How many of them the head of a stream has, and its tail."""
DISPLAYS = 50
"""How many displays are kept at the beginning, and at the end."""
SIZE = 16 * 2**20
"""How many characters the kept displays may have together, unless the last one alone has more."""


class Ring(io.TextIOBase):
    """A text stream that is written to, as `sys.stdout` is. Keeps head and tail.

    Attributes:
        written: how many characters came since it was cleared.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clear()

    def clear(self) -> None:
        """Forget all of it."""
        self.written = 0
        self._head: list[str] = []
        self._room = CHARACTERS
        self._tail: list[str] = []
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        """Take in some text."""
        if not isinstance(text, str):
            raise TypeError(f"write() takes a text, not {type(text).__name__}")
        size = len(text)
        self.written += size
        if self._room:
            self._head.append(text[: self._room])
            text = text[self._room :]
            self._room = max(0, self._room - size)
        self._tail.append(text)
        self._size += len(text)
        if self._size > 2 * CHARACTERS:  # seldom, so that a small write costs little
            self._tail = ["".join(self._tail)[-CHARACTERS:]]
            self._size = len(self._tail[0])
        return size

    def getvalue(self) -> str:
        """Return head and tail, and between them how much is missing."""
        tail = "".join(self._tail)[-CHARACTERS:]
        missing = self.written - (CHARACTERS - self._room) - len(tail)
        between = f"\n… {missing:,} characters left out …\n" if missing else ""
        return "".join(self._head) + between + tail


class Displays:
    """What code displays, as IPython's capture notes it. Keeps the first and the last ones.

    An update takes the place of what it updates, so that a bar which moves is one display.

    Attributes:
        noted: how many came since it was cleared.
    """

    def __init__(self) -> None:
        self.clear()

    def __iter__(self) -> Iterator[Noted]:
        """Yield those that are kept, and where some are missing a line that says so."""
        yield from self._head
        if self._missing:
            line = f"… {self._missing:,} outputs left out …"
            yield {"data": {"text/plain": line}, "metadata": {}}
        yield from self._tail

    def clear(self) -> None:
        """Forget all of them."""
        self.noted = self._missing = self._size = 0
        self._head: list[Noted] = []
        self._tail: deque[Noted] = deque()
        self._named: dict[str, Noted] = {}

    def append(self, noted: Noted) -> None:
        """Take in a display."""
        self.noted += 1
        name = _name(noted)
        known = self._named.get(name) if noted.get("update") else None
        self._size += _size(noted)
        if known is not None:
            self._size -= _size(known)
            known.update(data=noted["data"], metadata=noted["metadata"])
        elif not self._tail and len(self._head) < DISPLAYS and self._size < SIZE:
            self._head.append(noted)
        else:
            self._tail.append(noted)
        if name and known is None:
            self._named[name] = noted
        while len(self._tail) > DISPLAYS or (len(self._tail) > 1 and self._size > SIZE):
            self._drop(self._tail.popleft())

    def _drop(self, noted: Noted) -> None:
        self._missing += 1
        self._size -= _size(noted)
        self._named.pop(_name(noted), None)


def _name(noted: Noted) -> str:
    """Return what updates of a display call it; nothing, if it has no name."""
    return str((noted.get("transient") or {}).get("display_id") or "")


def _size(noted: Noted) -> int:
    """Return how long the texts of a display are, and its pictures."""
    return sum(len(part) for part in noted["data"].values() if isinstance(part, (str, bytes)))
