"""Types as JSON Schemas, and JSON as their values: for a tool's arguments and for whole answers.

A `Shape` is the type that an answer has to have. It is asked for as OpenAI's strict mode wants
it (an object at the top, every object closed, every property required, no keyword beyond a
list), since an endpoint then holds the model to it. A type that cannot be told so, such as
`dict[str, int]`, is asked for as it is, and not strictly.

Rule 1: what comes back is checked here all the same: not every endpoint holds to a schema.
Rule 2: pydantic's models are known by their methods; nothing here imports it.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable
from typing import Any

import msgspec

from ipy_agent.agent.reprs import told_of
from ipy_agent.errors import UsageError

__all__ = ["Misfit", "Shape", "decoded", "schema_of", "shape_of"]

Schema = dict[str, Any]

_REFERENCE = "#/$defs/"
_FENCED = re.compile(r"\s*```(?:json)?[ \t\r]*\n(.*)\n[ \t]*```\s*", re.DOTALL | re.IGNORECASE)
_KINDS = (
    "a dataclass, a msgspec Struct, a TypedDict, a NamedTuple, a pydantic model "
    "or an annotation such as list[int]"
)


class Misfit(ValueError):
    """JSON that is none, or does not fit its type; the text is one line for the model."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer has to be. `wrapped` is one that stands as `value` in an object."""

    name: str
    schema: Schema
    strict: bool
    wrapped: bool
    read: Callable[[bytes], Any]

    @property
    def format(self) -> dict[str, Any]:
        """The shape as a request's `text.format`."""
        return {
            "type": "json_schema",
            "name": self.name,
            "schema": self.schema,
            "strict": self.strict,
        }

    def parse(self, text: str) -> Any:
        """Return the value that an answer holds, which may stand in a fence of Markdown.

        Raises:
            Misfit: it does not fit.
        """
        fenced = _FENCED.fullmatch(text)
        try:
            said = (fenced[1] if fenced else text).encode()
            return self.read(bytes(decoded(said, _Box).value) if self.wrapped else said)
        except Misfit:
            raise
        except Exception as error:  # noqa: BLE001 (a user's class may raise anything)
            raise Misfit(_line(told_of(error))) from None


class _Box(msgspec.Struct, frozen=True):
    """What a shape that is no object is wrapped in."""

    value: msgspec.Raw


def shape_of(kind: Any, *, name: str | None = None) -> Shape:
    """Return the shape that a type asks for.

    Args:
        kind: a dataclass, a msgspec Struct, a TypedDict, a NamedTuple, a pydantic model or an
            annotation such as `list[int]`.
        name: what the model is told that it is called; by default the type's own name.

    Raises:
        UsageError: it is no type, or one that JSON cannot hold.
    """
    try:
        schema, read = _told(kind)
    except Exception as error:  # noqa: BLE001 (a type's own code runs, and may raise anything)
        why = _line(told_of(error).splitlines()[0])
        if not (isinstance(kind, type) or typing.get_origin(kind)):
            why = f"a value of type {type(kind).__name__} is no type"
        raise UsageError(f"no answer can be asked for in this shape: {why}; use {_KINDS}") from None
    wrapped = schema.get("type") != "object"
    if wrapped:
        schema = _boxed(schema)
    try:
        schema, strict = _closed(schema), True
    except _Loose:
        strict = False
    called = re.sub(r"[^A-Za-z0-9_-]+", "_", name or str(getattr(kind, "__name__", "answer")))
    return Shape(name=called[:64], schema=schema, strict=strict, wrapped=wrapped, read=read)


def _told(kind: Any) -> tuple[Schema, Callable[[bytes], Any]]:
    """Return a type's schema, and what makes its values of JSON."""
    if kind is None:
        raise TypeError
    if isinstance(kind, type) and hasattr(kind, "model_validate_json"):
        model: Any = kind
        return _opened(model.model_json_schema()), lambda said: _validated(model, said)
    if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        # JSON has no names for a tuple's fields, and the model should know them.
        record = _record(kind)
        return schema_of(record), lambda said: kind(**msgspec.structs.asdict(decoded(said, record)))
    return schema_of(kind), lambda said: decoded(said, kind)


def _record(kind: Any) -> type[msgspec.Struct]:
    hints = typing.get_type_hints(kind, include_extras=True)
    defaults: dict[str, Any] = kind._field_defaults
    return msgspec.defstruct(
        kind.__name__,
        [
            (field, hints.get(field, Any), defaults.get(field, msgspec.NODEFAULT))
            for field in kind._fields
        ],
        kw_only=True,
    )


def _validated(model: Any, said: bytes) -> Any:
    try:
        return model.model_validate_json(said)
    except ValueError as error:
        faults: list[dict[str, Any]] = getattr(error, "errors", list)()
        told = [f"{'.'.join(map(str, fault['loc'])) or '$'}: {fault['msg']}" for fault in faults]
        raise Misfit(_line("; ".join(told) or told_of(error))) from None


def schema_of(kind: Any) -> Schema:
    """Return the JSON Schema of a type that msgspec knows, with no reference at its top.

    Raises:
        TypeError, ValueError: it knows no schema for it.
    """
    (top,), parts = msgspec.json.schema_components(
        [kind], schema_hook=_foreign, ref_template=_REFERENCE + "{name}"
    )
    return _opened({**top, "$defs": parts})


def _foreign(kind: type) -> Schema:
    """Refuse a class that msgspec does not know, in fewer words than its own."""
    raise TypeError(f"JSON has no form for a {kind.__name__}")


def decoded(said: str | bytes, kind: Any) -> Any:
    """Return the value of a type that some JSON holds.

    Raises:
        Misfit: it is not JSON, or does not fit.
    """
    try:
        return msgspec.json.decode(said, type=kind)
    except msgspec.DecodeError as error:
        raise Misfit(_line(str(error))) from None
    except Exception as error:  # noqa: BLE001 (a user's dataclass may raise anything)
        raise Misfit(_line(told_of(error))) from None


def _line(text: str) -> str:
    return " ".join(text.split())


def _opened(schema: Schema) -> Schema:
    """Return a schema whose top is written out; what nothing refers to any more is left out."""
    top, parts = dict(schema), dict(schema.get("$defs", {}))
    top.pop("$defs", None)
    reference = str(top.get("$ref", ""))
    name = reference.removeprefix(_REFERENCE)
    if name in parts:
        top = dict(parts[name])
        if not _refers(parts, reference):
            del parts[name]
    return {**top, "$defs": parts} if parts else top


def _refers(schema: Any, reference: str) -> bool:
    if isinstance(schema, dict):
        inside = any(_refers(part, reference) for part in schema.values())
        return inside or schema.get("$ref") == reference
    return isinstance(schema, list) and any(_refers(part, reference) for part in schema)


def _boxed(schema: Schema) -> Schema:
    inside = dict(schema)
    parts = inside.pop("$defs", None)
    box = {"type": "object", "properties": {"value": inside}, "required": ["value"]}
    return {**box, "$defs": parts} if parts else box


class _Loose(Exception):
    """A schema that strict mode does not take."""


_SAYS = frozenset({"$ref", "anyOf", "const", "enum", "type"})
"""One of these every schema has in strict mode; `Any` has none."""
_TAKEN = _SAYS | frozenset(
    "$defs additionalProperties description exclusiveMaximum exclusiveMinimum format items "  # noqa: SIM905 (words read best as words)
    "maxItems maximum minItems minimum multipleOf pattern properties required title".split()
)
_UNSAID = frozenset(
    {"default", "deprecated", "discriminator", "examples", "maxLength", "minLength", "uniqueItems"}
)
"""What strict mode refuses and can do without: the value is checked when it is here."""
_FORMATS = frozenset(
    {"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uuid"}
)
TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


def _closed(schema: Schema) -> Schema:
    """Return a schema as strict mode takes it.

    Raises:
        _Loose: there is none.
    """
    told = {key: value for key, value in schema.items() if key not in _UNSAID}
    if "oneOf" in told:
        told["anyOf"] = told.pop("oneOf")
    if not (told.keys() <= _TAKEN and told.keys() & _SAYS):
        raise _Loose
    if told.get("format", "date") not in _FORMATS:
        raise _Loose
    if "$ref" in told and len(told) > 1:
        told["anyOf"] = [{"$ref": told.pop("$ref")}]
    if "enum" in told and "type" not in told:
        kinds = sorted({TYPES[type(value)] for value in told["enum"]})
        told["type"] = kinds[0] if len(kinds) == 1 else kinds
    if told.get("type") == "array" and not isinstance(told.get("items"), dict):
        raise _Loose
    if told.get("type") == "object":
        if "properties" not in told or told.get("additionalProperties", False) is not False:
            raise _Loose
        told |= {"required": list(told["properties"]), "additionalProperties": False}
    return {key: _closed_part(key, part) for key, part in told.items()}


def _closed_part(key: str, part: Any) -> Any:
    """Return one keyword's value with the schemas in it closed."""
    if key == "items":
        return _closed(part)
    if key == "anyOf":
        return [_closed(one) for one in part]
    if key in ("properties", "$defs"):
        return {name: _closed(one) for name, one in part.items()}
    return part
