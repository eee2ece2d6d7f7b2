"""Values in a few characters, looked into only where their exact type is known.

Rule 1: no code of the user runs: of a type that is not listed here only the name is told, and that
is read past any metaclass.
Rule 2: types are told apart by identity (`id`), since a metaclass may have its own `==` and hash.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

__all__ = [
    "SHOWN",
    "as_plain",
    "attributes",
    "contents",
    "count",
    "fitting",
    "home",
    "is_container",
    "is_plain",
    "label",
    "library",
    "literal",
    "safe",
    "short",
    "type_name",
]

SHOWN = 6
"""How many values of a container, or categories of a column, are shown."""
TRIES = 4
WIDTH = 200
LITERAL = 60
LABEL = 60

_PLAIN = frozenset(
    map(id, (str, bytes, int, float, complex, bool, type(None), date, timedelta, Decimal))
)
_MAPPINGS = frozenset(map(id, (dict, defaultdict, Counter, OrderedDict)))
_BRACKETS = {id(tuple): ("(", ")"), **dict.fromkeys((id(set), *_MAPPINGS), ("{", "}"))}
_CONTAINERS = _MAPPINGS | frozenset(map(id, (list, tuple, set, frozenset, range, deque)))

_name_of = type.__dict__["__name__"].__get__
_home_of = type.__dict__["__module__"].__get__
_attributes_of = type.__dict__["__dict__"].__get__


def type_name(kind: type) -> str:
    """Return a class's name, whatever its metaclass would say."""
    return label(_name_of(kind))


def home(kind: type) -> str:
    """Return the module that a class says it is of; nothing, if that is not told as a text."""
    found = _home_of(kind)
    return found if type(found) is str else ""


def library(kind: type) -> str:
    """Return the package that a class says it is of."""
    return home(kind).partition(".")[0]


def attributes(kind: type) -> dict[str, Any]:
    """Return what a class itself defines, whatever its metaclass would say."""
    return dict(_attributes_of(kind))


def as_plain(value: Any) -> Any:
    """Return a scalar of numpy's as Python's own value, anything else as it is."""
    kind, scalar = type(value), getattr(sys.modules.get("numpy"), "generic", None)
    if scalar is None or not issubclass(kind, scalar):
        return value
    return value.item() if library(kind) == "numpy" else value


def is_plain(value: Any) -> bool:
    """Whether a value's repr is Python's own."""
    return id(type(value)) in _PLAIN


def is_container(value: Any) -> bool:
    """Whether a value is one of Python's own containers."""
    return id(type(value)) in _CONTAINERS


def count(value: Any) -> int:
    """Return how many values a text or a container has: a range may have more than `len` says."""
    try:
        return len(value)
    except OverflowError:
        return sys.maxsize


def safe(value: Any, depth: int = 2) -> str:
    """Return a bounded repr that looks into plain values and containers only."""
    value = as_plain(value)
    kind = id(type(value))
    if kind in _PLAIN:
        return literal(value)
    if kind not in _CONTAINERS:
        return f"<{type_name(type(value))}>"
    if depth == 0:
        return f"<{type_name(type(value))} of {count(value)}>"
    opening, closing = _BRACKETS.get(kind, ("[", "]"))
    return short(f"{opening}{contents(value, depth)}{closing}", WIDTH)


def contents(value: Any, depth: int = 2) -> str:
    """Return the first values of a container, or the pairs, without the brackets around them."""
    if id(type(value)) in _MAPPINGS:
        pairs = _first(value.items)
        parts = [f"{safe(key, 0)}: {safe(item, depth - 1)}" for key, item in pairs]
    else:
        parts = [safe(item, depth - 1) for item in _first(lambda: value)]
    parts += ["…"] * (count(value) > SHOWN)
    return short(", ".join(parts), WIDTH)


def _first(values: Callable[[], Iterable[Any]]) -> list[Any]:
    """Return the first values; none, if another thread changes them too fast."""
    for _ in range(TRIES):
        with contextlib.suppress(RuntimeError):
            return list(itertools.islice(values(), SHOWN))
    return []


def literal(value: Any) -> str:
    """Return the bounded repr of a plain value."""
    if isinstance(value, (str, bytes)):
        return short(repr(value[:100]), LITERAL)
    if isinstance(value, int) and value.bit_length() > 200:  # noqa: PLR2004 (60 digits)
        return f"of {value.bit_length()} bits"
    return short(repr(value), LITERAL)


def label(name: Any) -> str:
    """Return the name of a column or a key on one line: a text as it is, anything else safely."""
    return short(name, LABEL) if type(name) is str and name.isprintable() else safe(name, 1)


def short(text: str, width: int) -> str:
    """Return a text cut to a width."""
    return text if len(text) <= width else text[: width - 1] + "…"


def fitting(lines: Iterable[str], room: int) -> list[str]:
    """Return the first lines, as many as there is room for; no further one is made."""
    fit: list[str] = []
    for line in lines:
        room -= len(line) + 1
        if room < 0:
            break
        fit.append(line)
    return fit
