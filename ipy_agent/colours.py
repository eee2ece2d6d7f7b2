"""The colours of code: which piece of a text is of which kind, and how a kind looks.

`pygments` reads the code; it comes with IPython, and is loaded when code is first shown, or while
nobody waits for anything of ours (`load_soon`).

Rule 1: the pieces, put together, are the text: nothing is left out, added or changed. Who
shows them makes each one safe.
"""

from __future__ import annotations

import functools
import threading
from typing import Literal

__all__ = ["ANSI", "CSS", "Kind", "load_soon", "pieces"]

Kind = Literal["keyword", "name", "string", "number", "comment", ""]

CSS: dict[Kind, str] = {
    "keyword": "#a24bc9",
    "name": "#2f7dd1",
    "string": "#3d8b40",
    "number": "#b8671a",
    "comment": "#7d7d7d",
}
"""Read on a light page and on a dark one."""

ANSI: dict[Kind, str] = {
    "keyword": "\x1b[35m",
    "name": "\x1b[36m",
    "string": "\x1b[32m",
    "number": "\x1b[33m",
    "comment": "\x1b[90m",
}

LIMIT = 50_000
"""How many characters are read for their colours; a longer text has none."""


@functools.lru_cache(maxsize=16)  # a cell shows the same code again and again
def pieces(text: str, language: str) -> tuple[tuple[Kind, str], ...]:
    """Return a text in pieces, each with its kind; in one piece where nothing is known of it."""
    if language != "python" or len(text) > LIMIT:
        return (("", text),)
    from pygments.lexers.python import PythonLexer  # noqa: PLC0415 (with the first code)
    from pygments.token import Token  # noqa: PLC0415 (see above)

    kinds: dict[object, Kind] = {
        Token: "",
        Token.Keyword: "keyword",
        Token.Operator.Word: "keyword",
        Token.Name.Builtin: "name",
        Token.Name.Class: "name",
        Token.Name.Decorator: "name",
        Token.Name.Exception: "name",
        Token.Name.Function: "name",
        Token.Literal.String: "string",
        Token.Literal.Number: "number",
        Token.Comment: "comment",
    }
    found: list[tuple[Kind, str]] = []
    # Unlike `get_tokens`, this leaves the text as it is.
    for _, token, piece in PythonLexer().get_tokens_unprocessed(text):
        kind = next(kinds[one] for one in reversed(token.split()) if one in kinds)
        if found and found[-1][0] == kind:
            found[-1] = kind, found[-1][1] + piece
        else:
            found.append((kind, piece))
    return tuple(found)


@functools.cache
def load_soon() -> None:
    """Load what reads code on another thread: between a call and its output there is no time."""
    threading.Thread(target=pieces, args=("pass", "python"), daemon=True).start()
