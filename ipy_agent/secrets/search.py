"""How values are found in a text: all ways in which they may be written, by one pattern.

Rule 1: no value is in a repr: neither a list of them nor a pattern shows one.
Rule 2: nothing here grows with anything but the text, and the number of values.
"""

from __future__ import annotations

import base64
import bisect
import html
import json
import re
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

__all__ = ["MASK", "SHORTEST", "Hidden", "Known", "cut", "raw", "spans"]

MASK = "[redacted]"
SHORTEST = 8
BEGINNING = 20


class Hidden(str):
    """A text that a traceback may print."""

    __slots__ = ()

    def __repr__(self) -> str:
        return MASK


class Known(NamedTuple):
    """What is looked for.

    Attributes:
        values: the values.
        forms: how they may be written, in order.
        longest: how long the longest of them is.
        search: finds the beginning of one that counts; `None`, if there is nothing to find.
        begins: finds the first characters of all.
    """

    values: frozenset[Hidden] = frozenset()
    forms: tuple[Hidden, ...] = ()
    longest: int = 0
    search: Callable[..., re.Match[str] | None] | None = None
    begins: Callable[..., Iterator[re.Match[str]]] | None = None

    @classmethod
    def of(cls, values: frozenset[Hidden]) -> Known:
        """Return what finds these values."""
        if not values:
            return cls()
        found = {Hidden(form) for value in values for form in _forms(value)}
        forms = tuple(sorted(form for form in found if len(form) >= SHORTEST))
        # Bound methods: the repr of a pattern shows it.
        return cls(
            values,
            forms,
            max(map(len, forms)),
            re.compile("|".join({re.escape(form[: _enough(form)]) for form in forms})).search,
            re.compile(f"[{re.escape(''.join({form[0] for form in forms}))}]").finditer,
        )

    def open_at(self, text: str) -> int:
        """Return where what may be the beginning of a form begins, at the text's end."""
        if self.begins is None:
            return len(text)
        for found in self.begins(text, max(0, len(text) - self.longest)):
            rest = text[found.start() :]
            at = bisect.bisect_right(self.forms, rest)
            if at < len(self.forms) and self.forms[at].startswith(rest):
                return found.start()
        return len(text)


def _forms(value: str) -> Iterator[str]:
    """Yield how a value may be written."""
    yield value
    yield html.escape(value)
    yield from (json.dumps(value, ensure_ascii=narrow)[1:-1] for narrow in (True, False))
    yield repr(str(value))[1:-1]
    for safe in ("", "/"):
        yield urllib.parse.quote(raw(value), safe)
    for lead in range(3):  # bytes that stand before it within a group of three
        whole = b"\0" * lead + raw(value)
        for written in (base64.b64encode(whole), base64.urlsafe_b64encode(whole)):
            yield written.decode()[(lead * 8 + 5) // 6 : len(whole) * 8 // 6]


def _enough(form: str) -> int:
    """Return how many characters of a form count as all of it."""
    return min(len(form), max(BEGINNING, (len(form) + 1) // 2))


def spans(text: str, known: Known) -> Iterator[tuple[int, int]]:
    """Yield where secrets stand in a text."""
    assert known.search is not None  # noqa: S101 (who asks has looked)
    found = known.search(text)
    while found is not None:
        start = found.start()
        end = start + max(
            _alike(form, text[start : start + len(form)])
            for form in known.forms
            if text.startswith(form[: _enough(form)], start)
        )
        yield start, end
        found = known.search(text, end)


def _alike(form: str, text: str) -> int:
    """Return how many characters at the beginning are the same."""
    pairs = enumerate(zip(form, text, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(form), len(text)))


def cut(text: str, places: Iterable[tuple[int, int]]) -> str:
    """Return a text with a mask in place of each span."""
    parts, at = [], 0
    for start, end in places:
        parts += [text[at:start], MASK]
        at = end
    return "".join([*parts, text[at:]])


def raw(value: str) -> bytes:
    """Return the bytes of a value, also of one that the environment has in no known encoding."""
    return value.encode("utf-8", "surrogatepass")
