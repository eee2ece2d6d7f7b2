"""Events over HTTP: a body of server-sent events, cut anywhere, and the data that it carries.

Every event of this protocol says its type in its data, so the other fields of the format
(`event`, `id`, `retry`) tell nothing new and are passed over.

Rule 1: how the bytes were cut never shows, but in when an event is known to be whole.
Rule 2: a byte is looked at once, however small the pieces are.
"""

from __future__ import annotations

__all__ = ["Parser", "encode"]

LIMIT = 16 * 2**20

_BOM = b"\xef\xbb\xbf"
_LAST = b"[DONE]"


class Parser:
    """Finds the events in a body as it arrives.

    Args:
        limit: the largest event in bytes; it bounds what is kept here.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._data: list[bytes] = []
        self._size = 0
        self._line = bytearray()
        self._begun = False
        self._returned = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take in the next bytes and return the data of each event that they make whole.

        Raises:
            ValueError: an event is larger than the limit; nothing more can be read.
        """
        if not chunk:
            return []
        # A line feed behind a return is the same end of a line, also where the two were parted.
        rest = chunk[1:] if self._returned and chunk[:1] == b"\n" else chunk
        self._returned = chunk.endswith(b"\r")
        first, *others = rest.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        whole = []
        self._grow(first)
        for piece in others:
            data = self._end_line()
            if data:
                whole.append(data)
            self._grow(piece)
        return whole

    def _grow(self, piece: bytes) -> None:
        self._line += piece
        if self._size + len(self._line) > self._limit:
            raise ValueError(f"an event of more than {self._limit:,} bytes")

    def _end_line(self) -> bytes | None:
        """Take in a whole line, and return the data of the event that it ends, if any."""
        line = bytes(self._line)
        self._line.clear()
        if not self._begun:
            self._begun, line = True, line.removeprefix(_BOM)
        if not line:
            data, self._data, self._size = b"\n".join(self._data), [], 0
            return None if data == _LAST else data
        field, _, value = line.partition(b":")
        if field == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(line) + 1
        return None


def encode(kind: str, data: bytes) -> bytes:
    """Return an event as it stands in a body."""
    lines = b"".join(b"data: %b\n" % line for line in data.splitlines() or [b""])
    return b"event: %b\n%b\n" % (kind.encode(), lines)
