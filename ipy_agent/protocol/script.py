"""What a script says: the one contract of the scripted engine and of `ScriptedTransport`.

A script is a list with an entry a turn: `{"text": …}`, `{"tool_calls": [{"name": …,
"arguments": {…}}]}` or `{"error": {"status": 429, "code": …}}`, each with optional `delay_ms`,
`chunk_chars` and `then`. Where the request says that a name is a custom tool's, the arguments
of its call are its input.

Rule 1: a script is checked when it is read, so that a turn never fails for the script's sake.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from ipy_agent.errors import ResponseFailed, UsageError

__all__ = ["Call", "Entry", "Failure", "entries", "pieces"]

_CLOSE_CODES = frozenset({*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)})


class Call(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tool call; arguments that are a text are said as they are, well-formed or not."""

    name: str
    arguments: dict[str, Any] | str = {}

    @property
    def encoded(self) -> str:
        """The arguments as they are said."""
        said = self.arguments
        return said if isinstance(said, str) else msgspec.json.encode(said).decode()


class Failure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An error; without a text before it the turn is refused, with one it fails."""

    status: int = 500
    code: str = "server_error"
    message: str = "the script says so"
    param: str | None = None
    retry_after: float | None = None

    def __post_init__(self) -> None:
        if not 400 <= self.status < 600:  # noqa: PLR2004 (HTTP's own numbers)
            raise ValueError(f"an error's `status` is 400 to 599, not {self.status}")

    def error(self) -> ResponseFailed:
        """Return it as the exception that it stands for."""
        return ResponseFailed(
            self.message,
            code=self.code,
            status=self.status,
            param=self.param,
            retry_after=self.retry_after,
        )


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn: what is said, in pieces of `chunk_chars`, each after `delay_ms`."""

    text: str | None = None
    tool_calls: list[Call] | None = None
    error: Failure | None = None
    delay_ms: float = 0
    chunk_chars: int | None = None
    then: str | None = None

    def __post_init__(self) -> None:
        if self.text is None and self.tool_calls is None and self.error is None:
            raise ValueError("it needs a `text`, `tool_calls` or an `error`")
        if self.delay_ms < 0 or (self.chunk_chars is not None and self.chunk_chars < 1):
            raise ValueError("`delay_ms` is 0 or more, `chunk_chars` 1 or more")
        if self.error and self.then == "hang":
            raise ValueError("an `error` ends the turn: nothing is left to hang")
        self._check_end()

    @property
    def close_code(self) -> int | None:
        """The code with which `then` closes the connection, if it does."""
        word, _, code = str(self.then).partition(":")
        return int(code) if word == "close" else None

    def words(self) -> int:
        """Return how many words it says."""
        calls = self.tool_calls or ()
        return sum(len(said.split()) for said in (self.text or "", *(c.encoded for c in calls)))

    def _check_end(self) -> None:
        if self.then in (None, "hang", "reset"):
            return
        word, _, code = str(self.then).partition(":")
        if word != "close" or not code.isdecimal() or int(code) not in _CLOSE_CODES:
            raise ValueError(f"`then` is close:CODE, reset or hang, not {self.then!r}")


def entries(script: Iterable[Any]) -> list[Entry]:
    """Return the entries of a script.

    Raises:
        UsageError: one is not what an entry may be; the message has its number.
    """
    return [_entry(number, said) for number, said in enumerate(script, 1)]


def pieces(said: str, size: int | None) -> Iterator[str]:
    """Yield a text in pieces of `size` characters; without a size, whole."""
    size = size or len(said) or 1
    return (said[at : at + size] for at in range(0, len(said), size))


def _entry(number: int, said: Any) -> Entry:
    try:
        return msgspec.convert(said, Entry)
    except msgspec.ValidationError as error:
        raise UsageError(f"entry {number} of the script does not fit: {error}") from None
