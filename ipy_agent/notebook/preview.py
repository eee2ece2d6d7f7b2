"""A variable in a few lines: its type and shape, what is in it, a bounded look at it.

Runs no user code: only objects of well-known types are looked into, by their exact type;
of any other the type's name is told. What is said stays short, however large the data.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

__all__ = ["brief", "preview", "shown"]

WIDTH = 200
COLUMNS = 40
CATEGORIES = 6
ROWS = 12

_PLAIN = (str, bytes, int, float, complex, bool, type(None))
_SIZED = (list, tuple, dict, set, frozenset)


def brief(value: Any) -> str:
    """Return type and shape in a few words, such as `DataFrame 344×8`."""
    name = type(value).__name__
    if _is(value, "pandas", "DataFrame", "Series") or _is(value, "numpy", "ndarray"):
        return f"{name} {'×'.join(str(n) for n in value.shape) or 'scalar'}"
    if type(value) in _SIZED:
        return f"{name} of {len(value)}"
    if type(value) in _PLAIN:
        return f"{name} {_literal(value)}"
    return name


def shown(value: Any) -> str:
    """Return a small table whole, anything else in brief."""
    small = _is(value, "pandas", "DataFrame", "Series") and len(value) <= ROWS
    columns = [value] if small and value.ndim == 1 else []
    if small and value.ndim > 1 and len(value.columns) <= ROWS:
        columns = [value.iloc[:, index] for index in range(len(value.columns))]
    if not columns or not all(map(_looks_plain, columns)):
        return brief(value)
    return f"{brief(value)}\n{value.to_string()}"


def preview(name: str, value: Any, *, head: bool = False) -> str:
    """Return what there is to say of a variable; with `head` its first rows too."""
    lines = [f"{name}: {brief(value)}"]
    for (module, kinds), look in _LOOKS.items():
        if _is(value, module, *kinds):
            lines += look(value, head)
            return "\n".join(lines)
    if type(value) in _SIZED:
        lines.append(f"  {_safe(value)}")
    elif isinstance(value, (FunctionType, ModuleType)):
        lines.append(f"  {_short((value.__doc__ or '').strip().split(chr(10))[0], WIDTH)}")
    return "\n".join(lines)


def _frame(frame: Any, head: bool) -> list[str]:
    columns = [frame.iloc[:, index] for index in range(min(len(frame.columns), COLUMNS))]
    lines = [f"  {column.name}: {_column(column)}" for column in columns]
    if len(frame.columns) > COLUMNS:
        lines.append(f"  … and {len(frame.columns) - COLUMNS} columns more")
    if head and all(map(_looks_plain, columns)):
        lines += ["", frame.iloc[:5, :COLUMNS].to_string(max_cols=20, max_colwidth=40)]
    return lines


def _column(series: Any) -> str:
    """Return one column: its dtype, and its categories or range, and what is missing."""
    said = [str(series.dtype)]
    values = series.dropna()
    if len(values) and _looks_plain(series):
        if series.dtype.kind in "iuf" or _is_date(series):
            said.append(f"{values.min()} to {values.max()}")
        else:
            kinds = [str(value) for value in values.iloc[:10_000].unique()[: CATEGORIES + 1]]
            said.append(", ".join(_short(kind, 30) for kind in kinds[:CATEGORIES]))
            if len(kinds) > CATEGORIES:
                said[-1] += ", …"
    missing = len(series) - len(values)
    if missing:
        said.append(f"{missing} missing")
    return "; ".join(said)


def _series(series: Any, head: bool) -> list[str]:
    lines = [f"  {_column(series)}"]
    if head and _looks_plain(series):
        lines += ["", series.head(5).to_string()]
    return lines


def _array(array: Any, head: bool) -> list[str]:
    lines = [f"  dtype {array.dtype}"]
    if array.dtype.kind in "biufcM" and array.size:
        flat = array.reshape(-1)
        lines.append(f"  {_short(str(flat[: 10 if head else 5].tolist()), WIDTH)}")
    return lines


_Look = Callable[[Any, bool], list[str]]
_LOOKS: dict[tuple[str, tuple[str, ...]], _Look] = {
    ("pandas", ("DataFrame",)): _frame,
    ("pandas", ("Series",)): _series,
    ("numpy", ("ndarray",)): _array,
}


def _is(value: Any, module: str, *names: str) -> bool:
    """Whether a value is exactly of one of these types; never imports their module."""
    loaded = sys.modules.get(module)
    return loaded is not None and any(type(value) is getattr(loaded, name, None) for name in names)


def _is_date(series: Any) -> bool:
    return bool(series.dtype.kind == "M")


def _looks_plain(series: Any) -> bool:
    """Whether looking at a column's values runs no code of theirs."""
    if series.dtype != object:
        return True
    return all(type(value) in _PLAIN for value in series.iloc[:10_000])


def _safe(value: Any, depth: int = 2) -> str:
    """Return a bounded repr that looks into plain values only."""
    if type(value) in _PLAIN:
        return _literal(value)
    if type(value) not in _SIZED:
        return f"<{type(value).__name__}>"
    if depth == 0:
        return f"<{brief(value)}>"
    if type(value) is dict:
        pairs = itertools.islice(value.items(), CATEGORIES)
        parts = [f"{_safe(key, 0)}: {_safe(item, depth - 1)}" for key, item in pairs]
    else:
        parts = [_safe(item, depth - 1) for item in itertools.islice(value, CATEGORIES)]
    more = ["…"] if len(value) > CATEGORIES else []
    return _short(", ".join(parts + more), WIDTH)


def _literal(value: Any) -> str:
    if isinstance(value, (str, bytes)):
        return _short(repr(value[:100]), 60)
    if isinstance(value, int) and value.bit_length() > 200:  # noqa: PLR2004 (60 digits)
        return f"of {value.bit_length()} bits"
    return _short(repr(value), 60)


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
