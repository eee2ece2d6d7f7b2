"""Outcomes as a frame: the answer's columns, and beside them the figures.

An answer without a shape is the column `answer`. One that is an object has a column for each of
its fields; any other one is `answer` again. A text, a whole number, a number and a yes or no
have the dtypes of `_DTYPES`, and may be missing. What is none of these (a list, an object, a value
of several kinds) is the text of its JSON, which parquet and Dask keep as it is.

Rule 1: columns and dtypes depend on the shape alone, never on what is in them.
Rule 2: an answer that does not fit its shape, or its columns, is NA there, and no error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ipy_agent.agent.schemas import TYPES, Misfit, Schema, Shape
from ipy_agent.errors import UsageError
from ipy_agent.fleet.outcome import FIGURES, RowOutcome
from ipy_agent.tables.frames import framed

if TYPE_CHECKING:
    from pandas import DataFrame, Index

__all__ = ["columns_of", "frame_of", "values_of"]

ANSWER = "answer"

_DTYPES = {"string": "string", "integer": "Int64", "number": "Float64", "boolean": "boolean"}
_CLASSES: dict[str, Any] = {"string": str, "integer": int, "number": (int, float), "boolean": bool}


def columns_of(shape: Shape | None) -> dict[str, str]:
    """Return the answer's columns with their dtypes.

    Raises:
        UsageError: a field is called like one of the figures.
    """
    kinds = _kinds_of(shape)
    for name in kinds:
        if name in FIGURES:
            raise UsageError(
                f"the field {name!r} is called like a column of the result: rename it; "
                f"taken are {', '.join(FIGURES)}"
            )
    return {name: _DTYPES.get(kind, "string") for name, kind in kinds.items()}


def values_of(shape: Shape | None, text: str) -> dict[str, Any]:
    """Return what an answer has in its columns.

    Raises:
        Misfit: it does not fit its shape.
    """
    return {ANSWER: text} if shape is None else _values(shape, _kinds_of(shape), text)


def frame_of(index: Index[Any], outcomes: Sequence[RowOutcome], shape: Shape | None) -> DataFrame:
    """Return what came of rows, by the index that they have."""
    columns, kinds = columns_of(shape), _kinds_of(shape)
    rows: list[dict[str, Any]] = [
        {**msgspec.structs.asdict(outcome), **_answer(outcome, shape, kinds)}
        for outcome in outcomes
    ]
    frame = framed(columns | FIGURES, rows)
    frame.index = index
    return frame


def _answer(
    outcome: RowOutcome, shape: Shape | None, kinds: Mapping[str, str]
) -> Mapping[str, Any]:
    """Return what a row has in the answer's columns, if it has an answer."""
    if outcome.text is None:
        return dict.fromkeys(kinds)
    if shape is None:
        return {ANSWER: outcome.text}
    try:
        return _values(shape, kinds, outcome.text)
    except Misfit:
        return dict.fromkeys(kinds)


def _values(shape: Shape, kinds: Mapping[str, str], text: str) -> dict[str, Any]:
    value = shape.parse(text)
    try:
        plain = _plain(value)
        fields = {ANSWER: plain} if shape.wrapped or not _fields(shape) else plain
        return {name: _fitting(fields.get(name), kind) for name, kind in kinds.items()}
    except Exception as error:  # noqa: BLE001 (a user's class may raise anything)
        raise Misfit(f"it cannot be put into a table: {type(error).__name__}") from None


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; an object's names are those of its schema."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    plain = msgspec.to_builtins(value, str_keys=True)
    if isinstance(value, msgspec.Struct) and isinstance(plain, dict):
        # Also what the struct leaves out since it is the default.
        for field in msgspec.structs.fields(value):
            told = getattr(value, field.name)
            plain.setdefault(field.encode_name, msgspec.to_builtins(told, str_keys=True))
    return plain


def _fitting(value: Any, kind: str) -> Any:
    """Return a value as its column takes it, or `None` where that cannot be."""
    if value is None:
        return None
    if kind not in _DTYPES:
        return msgspec.json.encode(value).decode()
    fits = isinstance(value, _CLASSES[kind]) and isinstance(value, bool) == (kind == "boolean")
    return value if fits else None


def _kinds_of(shape: Shape | None) -> dict[str, str]:
    """Return the kind of each of the answer's columns; `json` where it has no dtype of its own."""
    if shape is None:
        return {ANSWER: "string"}
    parts = shape.schema.get("$defs", {})
    if shape.wrapped:
        return {ANSWER: _kind(shape.schema["properties"]["value"], parts)}
    return {name: _kind(part, parts) for name, part in _fields(shape).items()} or {ANSWER: "json"}


def _fields(shape: Shape) -> Mapping[str, Schema]:
    """Return an object's fields: none where they may have any names."""
    fields: Mapping[str, Schema] = shape.schema.get("properties", {})
    return fields


def _kind(schema: Schema, parts: Mapping[str, Schema]) -> str:
    kinds = _alternatives(schema, parts) - {"null"}
    if kinds == {"integer", "number"}:
        return "number"
    return kinds.pop() if len(kinds) == 1 else "json"


def _alternatives(schema: Schema, parts: Mapping[str, Schema]) -> set[str]:
    """Return the types of JSON that a value of a schema can have."""
    if "$ref" in schema:
        return _alternatives(parts.get(str(schema["$ref"]).rpartition("/")[2], {}), parts)
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema:
            return {kind for one in schema[word] for kind in _alternatives(one, parts)}
    if "type" in schema:
        told = schema["type"]
        return {told} if isinstance(told, str) else set(told)
    said = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return {TYPES.get(type(value), "json") for value in said} or {"json"}
