"""Frames, columns and arrays in a few lines: what is in them, and how the first rows look.

Rule 1: the cost is bounded: at most `ROWS` rows of `COLUMNS` columns are scanned, and it is said
where that is not all. What is said has room for about 2,000 characters.
Rule 2: the values of a column of objects are looked at only where they are plain; a column of a
type that is not pandas' or numpy's is named and left alone, and so is a label.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from ipy_agent.notebook.literals import (
    SHOWN,
    fitting,
    is_plain,
    label,
    library,
    safe,
    short,
    type_name,
)

__all__ = ["ROWS", "array", "arrow", "column", "frame", "polars", "prints_plainly", "tensor"]

ROWS = 1_000_000
COLUMNS = 40
SAMPLE = 10_000
"""How many values of a column are looked at one by one."""
HEAD = 3
COLUMNS_ROOM = 1_200
HEAD_ROOM = 700
VALUES_ROOM = 200
WORD = 30


def frame(value: Any, head: str) -> list[str]:
    """Return a line a column, and the first rows of the frame called `head`."""
    rows, count = value.shape
    columns = [value.iloc[:, index] for index in range(min(count, COLUMNS))]
    names = _labels(value.columns[:COLUMNS])
    told = (f"  {name}: {_inside(one)}" for name, one in zip(names, columns, strict=True))
    lines = [*_index(value.index), *_fit(told, count), *_scanned(rows, "rows")]
    if head and rows and count:
        table = type(value)({index: _cells(one) for index, one in enumerate(columns)})
        table.columns, table.index = names, _labels(value.index[:HEAD])
        lines += _head(head, table, count)
    return lines


def column(value: Any, head: str) -> list[str]:
    """Return what is in a series, and the first values of the one called `head`."""
    lines = [*_index(value.index), f"  {_inside(value)}", *_scanned(len(value), "rows")]
    if head and len(value):
        first = type(value)(_cells(value))
        first.index = _labels(value.index[:HEAD])
        lines += _shown(head, first.to_string(dtype=False, name=False))
    return lines


def array(value: Any, head: str) -> list[str]:
    """Return an array's dtype and range, and its first values; more of them for `head`."""
    numpy, kind = sys.modules["numpy"], value.dtype.kind
    lines = [f"  dtype {value.dtype}"]
    if kind in "OV" or not value.size:
        return lines
    first, missing = value.flat[:ROWS], 0
    if kind in "fmM":
        gaps = numpy.isnan(first) if kind == "f" else numpy.isnat(first)
        missing = int(gaps.sum())
        first = first[~gaps] if missing else first
    if kind in "iufmM" and first.size:
        lines[0] += f"; {first.min()} to {first.max()}"
    if missing:
        lines[0] += f"; {missing} missing"
    lines += _scanned(value.size, "values")
    most = 10 if head else 5
    values = [str(one) for one in value.flat[:most]] + ["…"] * (value.size > most)
    return [*lines, f"  {short(', '.join(values), VALUES_ROOM)}"]


def arrow(value: Any, _head: str) -> list[str]:
    """Return the columns of an Arrow table, with their types."""
    pairs = zip(value.column_names, value.schema.types, strict=True)
    return _fit((f"  {label(name)}: {kind}" for name, kind in pairs), len(value.column_names))


def polars(value: Any, _head: str) -> list[str]:
    """Return the columns of a polars frame, with their types."""
    pairs = zip(value.columns, value.dtypes, strict=True)
    return _fit((f"  {label(name)}: {kind}" for name, kind in pairs), len(value.columns))


def tensor(value: Any, _head: str) -> list[str]:
    """Return what the values of a tensor or a column of another library are."""
    return [f"  dtype {value.dtype}"]


def prints_plainly(value: Any) -> bool:
    """Whether pandas may print a frame or series: neither cells nor labels run code of theirs."""
    parts = [value.iloc[:, index] for index in range(value.shape[1])] if value.ndim > 1 else [value]
    names = [name for axis in value.axes for name in axis.names]
    return all(map(is_plain, names)) and all(map(looks_plain, (*value.axes, *parts)))


def looks_plain(values: Any) -> bool:
    """Whether looking at the values of a column or an index runs no code of theirs."""
    # Asked by its type: a series takes an attribute that it does not have for a label.
    if type_name(type(values)) == "MultiIndex":
        return all(map(looks_plain, values.levels))
    kind = values.dtype
    if not _is_known(kind):
        return False
    if hasattr(kind, "categories"):
        return kind.categories is None or looks_plain(kind.categories)
    # numpy's `object`; of pandas' own types none holds just anything
    boxed = library(type(kind)) == "numpy" and kind.kind == "O"
    return not boxed or all(map(is_plain, values.array[:SAMPLE]))


def _is_known(dtype: Any) -> bool:
    """Whether a column's type is pandas' or numpy's own."""
    return library(type(dtype)) in {"numpy", "pandas"}


def _inside(series: Any) -> str:
    """Return one column: its dtype, and its categories or range, and what is missing."""
    kind = series.dtype
    if not _is_known(kind):
        return type_name(type(kind))
    said = [str(kind)]
    first = series.iloc[:ROWS]
    missing = int(first.isna().sum())
    if missing < len(first) and looks_plain(series):
        if kind.kind in "iufmM":
            said.append(f"{first.min()} to {first.max()}")
        elif kind.type not in (list, dict):
            found = first.iloc[:SAMPLE].dropna().unique()[: SHOWN + 1]
            words = [_word(value) for value in found[:SHOWN]] + ["…"] * (len(found) > SHOWN)
            said += [", ".join(words)] if words else []
    if missing:
        said.append(f"{missing} missing")
    return "; ".join(said)


def _index(index: Any) -> list[str]:
    """Return the line of an index, unless it is only a count."""
    if type_name(type(index)) == "RangeIndex":
        return []
    names = ", ".join(label(name) for name in index.names if name is not None)
    levels = f"{index.nlevels} levels" if index.nlevels > 1 else str(index.dtype)
    return [f"  index{f' {names}' if names else ''}: {levels}"]


def _scanned(count: int, what: str) -> list[str]:
    return [f"  (range and missing of the first {ROWS:,} {what})"] if count > ROWS else []


def _fit(columns: Iterable[str], count: int) -> list[str]:
    lines = fitting(columns, COLUMNS_ROOM)
    rest = count - len(lines)
    return [*lines, f"  … and {rest} columns more"] if rest else lines


def _head(name: str, table: Any, count: int) -> list[str]:
    """Return the first rows, of as many columns as there is room for."""
    most, text = 0, ""
    for most in (20, 8, 4, 2):
        text = table.iloc[:, :most].to_string(max_colwidth=WORD)
        if len(text) <= HEAD_ROOM:
            break
    return _shown(name if count <= most else f"{name}.iloc[:, :{most}]", text)


def _shown(name: str, text: str) -> list[str]:
    """Return first rows as what a small model knows: without the name it makes up a `df`."""
    return ["", f"{name}.head({HEAD}):", text]


def _cells(series: Any) -> Any:
    """Return the first values of a column, made safe to be shown."""
    if looks_plain(series):
        return series.iloc[:HEAD].reset_index(drop=True)
    if not _is_known(series.dtype):
        return ["…"] * min(HEAD, len(series))
    return [safe(value) for value in series.iloc[:HEAD].array]


def _labels(index: Any) -> list[str]:
    show = _word if looks_plain(index) else label
    return [show(value) for value in index]


def _word(value: Any) -> str:
    """Return a value of a plain column on one line."""
    if type(value) is tuple:
        return ", ".join(map(_word, value))
    text = str(value)
    return short(text if text.isprintable() else repr(text), WORD)
