"""A variable in a few lines: its type and shape, what is in it, a bounded look at it.

Runs no user code: only objects of well-known types are looked into, by their exact type;
of any other the type's name is told. What is said stays short, however large the data.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ipy_agent.notebook import frames
from ipy_agent.notebook.definitions import definition
from ipy_agent.notebook.literals import (
    as_plain,
    contents,
    count,
    is_container,
    is_plain,
    literal,
    short,
    type_name,
)

__all__ = ["Look", "brief", "looks", "preview", "shown", "sized"]

LIMIT = 2_000
"""How many characters a preview has at most."""
ROWS = 12


class Look(NamedTuple):
    """How values of a type are looked at; all of them have a shape."""

    lines: Callable[[Any, str], list[str]]
    names: str | None = None
    """The attribute that holds the names of its columns."""


_LOOKS: dict[tuple[str, str], Look] = {
    ("pandas", "DataFrame"): Look(frames.frame, "columns"),
    ("pandas", "Series"): Look(frames.column),
    ("numpy", "ndarray"): Look(frames.array),
    ("polars", "DataFrame"): Look(frames.polars),
    ("polars", "Series"): Look(frames.tensor),
    ("pyarrow", "Table"): Look(frames.arrow),
    ("torch", "Tensor"): Look(frames.tensor),
}


def looks() -> Mapping[int, Look]:
    """Return the looks at types of libraries that are loaded, by the identity of the type."""
    found = ((getattr(sys.modules.get(name[0]), name[1], None), _LOOKS[name]) for name in _LOOKS)
    return {id(kind): look for kind, look in found if kind is not None}


def sized(value: Any, known: Mapping[int, Look] | None = None) -> str:
    """Return type and shape in a few words, and nothing of what is in it.

    Args:
        value: anything.
        known: what `looks()` returned, for who asks of many values.
    """
    kind = type(value)
    if id(kind) in (looks() if known is None else known):
        return f"{type_name(kind)} {'×'.join(map(str, value.shape)) or 'scalar'}"
    if kind is str or kind is bytes or is_container(value):
        return f"{type_name(kind)} of {count(value)}"
    return "class" if issubclass(kind, type) else type_name(kind)


def brief(value: Any) -> str:
    """Return type and shape in a few words, such as `DataFrame 344×8`; of a plain value, itself."""
    plain = as_plain(value)
    return f"{type_name(type(value))} {literal(plain)}" if is_plain(plain) else sized(value)


def shown(value: Any) -> str:
    """Return a small table whole, anything else in brief."""
    look = looks().get(id(type(value)))
    table = look is not None and look.lines in (frames.frame, frames.column)
    if table and max(value.shape) <= ROWS and frames.prints_plainly(value):
        return f"{brief(value)}\n{value.to_string()}"
    return brief(value)


def preview(name: str, value: Any, *, head: bool = False) -> str:
    """Return what there is to say of a variable; with `head` its first rows too."""
    look = looks().get(id(type(value)))
    if look is not None:
        lines = [sized(value), *look.lines(value, name if head else "")]
    elif is_container(value):
        lines = [sized(value), f"  {contents(value)}"]
    else:
        lines = definition(value) or [brief(value)]
    return short("\n".join([f"{name}: {lines[0]}", *lines[1:]]), LIMIT)
