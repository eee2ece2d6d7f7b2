"""A prompt with places for what a row holds: `{column}`, and nothing else.

A place is a column's name in braces, or what looks like a name, which then has to be a column.
All other braces are text, as in JSON, LaTeX or code. Doubled braces are single ones around the
name: `{{column}}` is the text `{column}`, and `{{{column}}}` is a value in braces.

Rule 1: what a row holds is text: it is put in as it is, and never looked at again.
Rule 2: what is missing is no text: a prompt never says `nan`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from ipy_agent.errors import UsageError

__all__ = ["MissingValue", "Template"]

CHARS, NAMES = 80, 5
"""How much of a name an error tells, and of how many columns."""


class MissingValue(ValueError):
    """A row has nothing to put in; the text is one line."""


class Template(msgspec.Struct, frozen=True):
    """A prompt that each row fills.

    Attributes:
        pieces: texts, and for each value its place in `columns`, in their order.
        columns: the labels of the columns that are put in, each once.
    """

    pieces: tuple[str | int, ...]
    columns: tuple[Any, ...]

    @classmethod
    def of(cls, text: str, columns: Sequence[object]) -> Template:
        """Return the template that a text is over a frame's columns.

        Raises:
            UsageError: it names no column, or one that there is not; two columns have one name.
        """
        labels = _named(columns)
        used: dict[str, int] = {}
        pieces = tuple(
            piece if isinstance(piece, str) else used.setdefault(piece.name, len(used))
            for piece in _pieces(text, labels)
        )
        if not used:
            raise UsageError(
                "every row would ask the same: put the name of a column in braces, "
                f"such as {{{_cut(next(iter(labels), 'column'))}}}, where its value belongs"
            )
        return cls(pieces, tuple(labels[name] for name in used))

    def filled(self, values: Sequence[object]) -> str:
        """Return the prompt of a row.

        Args:
            values: what the row has in `columns`, in their order.

        Raises:
            MissingValue: it has nothing in one of them.
        """
        told = [_told(value, label) for value, label in zip(values, self.columns, strict=True)]
        whole = "".join([told[it] if isinstance(it, int) else it for it in self.pieces])
        return whole.encode("utf-8", "replace").decode()


class _Place(msgspec.Struct, frozen=True):
    """Where a value is put in."""

    name: str


def _named(columns: Sequence[object]) -> dict[str, object]:
    """Return the columns' labels by what they are called in a template."""
    labels: dict[str, object] = {}
    for label in columns:
        name = str(label)
        if name in labels:
            raise UsageError(
                f"two columns are called {_cut(name)!r}, and a template cannot tell them apart: "
                "rename one"
            )
        labels[name] = label
    return labels


def _pieces(text: str, labels: Mapping[str, object]) -> Iterator[str | _Place]:
    """Yield the texts and the places of a template."""
    braced = sorted((name for name in labels if re.search("[{}]", name)), key=len, reverse=True)
    names = "|".join([*map(re.escape, braced), "[^{}]*"])
    end = 0
    # Only where a run of braces begins: else a long one would be looked at anew from each of its
    # braces.
    for found in re.finditer(rf"(?<!{{)({{+)({names})(}}+)", text):
        opened, name, closed = found.groups()
        if name not in labels and not name.isidentifier():
            continue
        depth = min(len(opened), len(closed))
        yield text[end : found.end(1) - depth] + "{" * (depth // 2)
        if depth % 2:
            yield _place(name, labels)
        else:
            yield name
        end = found.start(3) + depth - depth // 2
    yield text[end:]


def _place(name: str, labels: Mapping[str, object]) -> _Place:
    if name in labels:
        return _Place(name)
    close = [one for one in labels if one.lower() == name.lower()]
    close = close or difflib.get_close_matches(name, labels, 1)
    hint = f"; did you mean {_cut(close[0])!r}?" if close else "."
    known = ", ".join(map(_cut, list(labels)[:NAMES])) + (", …" if len(labels) > NAMES else "")
    raise UsageError(
        f"there is no column {_cut(name)!r}{hint} There are {known or 'none'}; "
        f"for the text itself write {{{{{_cut(name)}}}}}"
    )


def _cut(name: str) -> str:
    return name if len(name) <= CHARS else f"{name[:CHARS]}…"


def _told(value: object, label: object) -> str:
    if isinstance(value, str):
        return value
    if _is_missing(value):
        raise MissingValue(f"there is no value in column {_cut(str(label))!r}")
    return str(value)  # the shortest that a float has, of Python and of numpy


def _is_missing(value: object) -> bool:
    if value is None:
        return True
    unequal: Any = value != value  # noqa: PLR0124 (what no number is differs from itself)
    if getattr(unequal, "shape", ()):
        return False  # an array, whatever it holds
    try:
        return bool(unequal)
    except TypeError:
        return True  # pandas' NA, which says neither yes nor no
