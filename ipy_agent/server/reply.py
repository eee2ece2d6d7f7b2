"""A constrained reply, read while it is still being written.

The model writes one JSON object, `{"name": …, "arguments": {…}}`. What it calls is handed on
as it stands; the call of `answer` is no call but a message. Where there is one text and nothing
else (a message, what a custom tool takes), it is decoded on the way.

Rule 1: `feed` may be given any cut of the reply, and in all the same is said for any cuts.
Rule 2: nothing is handed on that more text could change: half an escape or half a pair waits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container

from ipy_agent.server.engine import CallPiece, TextPiece

__all__ = ["Reply"]

_NAME = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')
_OPENING = re.compile(r'\{\s*"\w+"\s*:\s*"')
_WHOLE = re.compile(
    r"""(?: [^"\\]
    | \\ [^u]
    | \\u (?![dD][89abAB]) [0-9a-fA-F]{4}
    | \\u [dD][89abAB] [0-9a-fA-F]{2} \\u [dD][c-fC-F] [0-9a-fA-F]{2}
    | \\u [dD][89abAB] [0-9a-fA-F]{2} (?= [^\\] | \\[^u] | \\u[^dD] | \\u[dD][^c-fC-F] )
    )*""",
    re.VERBOSE,
)

_Pieces = list[TextPiece | CallPiece]


class Reply:
    """One reply as it grows.

    Args:
        answer: the name that stands for a message.
        raw: the message is the arguments of `answer` as JSON, not the text in them.
        custom: the names of tools that take the text in their one argument.
    """

    def __init__(
        self, answer: str, *, raw: bool = False, custom: Container[str] = frozenset()
    ) -> None:
        self._answer = answer
        self._raw = raw
        self._custom = custom
        self._rest = ""
        self._depth = 0
        self._quoted = False
        self._escaped = False
        self._piece: Callable[[str], TextPiece | CallPiece] = CallPiece
        self._read: Callable[[], _Pieces | None] = self._read_name

    def feed(self, text: str) -> _Pieces:
        """Return what the reply says with some more text."""
        self._rest += text
        said: _Pieces = []
        while (more := self._read()) is not None:
            said += more
        return said

    @property
    def done(self) -> bool:
        """Whether the reply has said all that it had to."""
        return self._read == self._read_nothing

    def _read_name(self) -> _Pieces | None:
        found = self._cut(_NAME)
        if found is None:
            return None
        name = json.loads(found[1])
        if name == self._answer:
            self._piece = TextPiece
            self._read = self._read_value if self._raw else self._read_opening
            return []
        self._read = self._read_opening if name in self._custom else self._read_value
        return [CallPiece(name=name)]

    def _read_opening(self) -> _Pieces | None:
        if self._cut(_OPENING) is None:
            return None
        self._read = self._read_text
        return []

    def _read_text(self) -> _Pieces | None:
        found = self._cut(_WHOLE)
        if self._rest.startswith('"'):
            self._read = self._read_nothing
        if found is None or not found[0]:
            return None
        return [self._piece(_paired(json.loads(f'"{found[0]}"', strict=False)))]

    def _read_value(self) -> _Pieces | None:
        """Hand on a JSON object up to its last brace, and not the one around it."""
        for at, char in enumerate(self._rest):
            if self._quoted:
                self._quoted = self._escaped or char != '"'
                self._escaped = char == "\\" and not self._escaped
            elif char == '"':
                self._quoted = True
            else:
                self._depth += (char in "{[") - (char in "}]")
                if not self._depth:
                    self._read = self._read_nothing
                    return [self._piece(self._rest[: at + 1])]
        said, self._rest = self._rest, ""
        return [self._piece(said)] if said else None

    def _read_nothing(self) -> None:
        return None

    def _cut(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self._rest)
        if found is not None:
            self._rest = self._rest[found.end() :]
        return found


def _paired(text: str) -> str:
    """Return a text without halves of surrogate pairs: no encoding on the wire has any."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
