"""A type asks for an answer in its shape, as strictly as it can be asked, and reads it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import typing
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict

import msgspec
import pandas as pd
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipy_agent.agent.schemas import Misfit, shape_of
from ipy_agent.errors import UsageError


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Spot(msgspec.Struct):
    x: int
    y: int = 0


class Place(TypedDict):
    x: int
    y: NotRequired[int]


class Pair(NamedTuple):
    x: int
    y: int = 0


class Model(pydantic.BaseModel):
    x: int
    y: int = 0


class Rich(msgspec.Struct):
    """Much of what a type may hold."""

    colour: Colour
    size: Literal["s", "m"]
    at: Annotated[Point, msgspec.Meta(description="where")]
    day: dt.date
    few: Annotated[list[int], msgspec.Meta(max_length=3)]
    name: Annotated[str, msgspec.Meta(min_length=1)] = "it"
    more: Spot | None = None


class Tree(msgspec.Struct):
    name: str
    children: list[Tree] = []


class Node(pydantic.BaseModel):
    name: str
    children: list[Node] = []


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    tricks: list[str]


class Even(pydantic.BaseModel):
    n: int

    @pydantic.field_validator("n")
    @classmethod
    def even(cls, n):
        if n % 2:
            raise ValueError("odd")
        return n


class Names(pydantic.RootModel[list[str]]):
    pass


@dataclasses.dataclass
class Cautious:
    n: int

    def __post_init__(self):
        raise KeyError(self.n)


class Custom:
    pass


OBJECT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
    "required": ["x", "y"],
    "additionalProperties": False,
}


def untitled(schema):
    """Return a schema without its titles, which libraries choose differently."""
    if isinstance(schema, dict):
        return {key: untitled(part) for key, part in schema.items() if key != "title"}
    return [untitled(part) for part in schema] if isinstance(schema, list) else schema


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Point, Point(1, 2)),
        (Spot, Spot(1, 2)),
        (Place, {"x": 1, "y": 2}),
        (Pair, Pair(1, 2)),
        (Model, Model(x=1, y=2)),
    ],
)
def test_every_kind_of_record_is_one_closed_object(kind, value):
    """Whatever library made it: an object whose fields are all required, and nothing beside."""
    shape = shape_of(kind)

    assert untitled(shape.schema) == OBJECT
    assert shape.format == {
        "type": "json_schema",
        "name": kind.__name__,
        "schema": shape.schema,
        "strict": True,
    }
    read = shape.parse('{"x": 1, "y": 2}')
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("kind", "inner", "sent", "value"),
    [
        (int, {"type": "integer"}, "3", 3),
        (list[int], {"type": "array", "items": {"type": "integer"}}, "[1, 2]", [1, 2]),
        (typing.Optional[int], {"anyOf": [{"type": "integer"}, {"type": "null"}]}, "null", None),  # noqa: UP045 (people write it)
        (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}, '"b"', "b"),
        (Literal["a", 1], {"type": ["integer", "string"], "enum": [1, "a"]}, "1", 1),
        (Colour, {"type": "string", "enum": ["blue", "red"]}, '"red"', Colour.RED),
        (Names, {"type": "array", "items": {"type": "string"}}, '["a"]', Names(["a"])),
        (set[int], {"type": "array", "items": {"type": "integer"}}, "[1, 1]", {1}),
    ],
)
def test_what_is_no_object_stands_in_one(kind, inner, sent, value):
    """The API wants an object at the top; it is opened again when the answer is read."""
    shape = shape_of(kind)

    assert shape.strict
    assert untitled(shape.schema) == {
        "type": "object",
        "properties": {"value": inner},
        "required": ["value"],
        "additionalProperties": False,
    }
    assert shape.parse(f'{{"value": {sent}}}') == value
    with pytest.raises(Misfit):
        shape.parse(sent)


def objects(schema):
    """Yield every object schema within a schema."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        for part in schema.values():
            yield from objects(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from objects(part)


@pytest.mark.parametrize("kind", [Rich, Tree, Node, Cat | Dog, list[Rich], dict[str, int], Even])
def test_a_strict_schema_is_closed_everywhere(kind):
    """Every object of it is; one that has fields of any name makes the whole not strict."""
    shape = shape_of(kind)
    held = [
        one.get("additionalProperties") is False and one["required"] == list(one["properties"])
        for one in objects(shape.schema)
    ]

    assert shape.strict is (kind != dict[str, int])
    assert all(held) is shape.strict
    assert shape.schema["type"] == "object"


def test_what_strict_mode_refuses_is_left_out_and_checked_here():
    """Defaults and lengths are not told; a description beside a reference is told around it."""
    shape = shape_of(Rich)
    told = shape.schema["properties"]

    assert told["name"] == {"type": "string"}
    assert told["at"] == {"description": "where", "anyOf": [{"$ref": "#/$defs/Point"}]}
    assert told["day"] == {"type": "string", "format": "date"}
    assert told["few"]["maxItems"] == 3
    assert "default" not in json.dumps(shape.schema)
    whole = {
        "colour": "red",
        "size": "s",
        "at": {"x": 1},
        "day": "2026-11-24",
        "few": [1],
        "more": None,
    }
    assert shape.parse(json.dumps(whole)) == Rich(
        Colour.RED, "s", Point(1), dt.date(2026, 11, 24), [1]
    )
    with pytest.raises(Misfit, match=r"length >= 1.*\$\.name"):
        shape.parse(json.dumps(whole | {"name": ""}))


@pytest.mark.parametrize(
    "kind",
    [
        dict[str, int],
        dict,
        list,
        Any,
        list[Any],
        tuple[int, str],
        list[Pair],
        Decimal,
        bytes,
        msgspec.defstruct("Holder", [("held", dict[str, Point])]),
    ],
)
def test_a_type_that_strict_mode_cannot_hold_is_asked_for_loosely(kind):
    """It is asked for all the same, with an object at its top."""
    shape = shape_of(kind)

    assert shape.format["strict"] is False
    assert shape.schema["type"] == "object"


def test_what_is_asked_for_loosely_is_read_too():
    """Not strict does not mean unread."""
    assert shape_of(dict[str, int]).parse('{"a": 1}') == {"a": 1}
    assert shape_of(tuple[int, str]).parse('{"value": [1, "a"]}') == (1, "a")
    with pytest.raises(Misfit, match="int"):
        shape_of(dict[str, int]).parse('{"a": "b"}')


@pytest.mark.parametrize("kind", [Tree, Node])
def test_a_type_may_hold_itself(kind):
    """A reference to the top still leads somewhere."""
    shape = shape_of(kind)

    assert shape.strict
    assert shape.schema["properties"]["children"]["items"] == {"$ref": f"#/$defs/{kind.__name__}"}
    assert shape.schema["$defs"][kind.__name__]["additionalProperties"] is False
    assert shape.parse('{"name": "a", "children": [{"name": "b"}]}').children[0].name == "b"


@pytest.mark.parametrize(
    "text",
    [
        '{"x": 1}',
        '\n {"x": 1}\n',
        '```json\n{"x": 1}\n```',
        '```\n{"x": 1}\n```\n',
        '  ```JSON  \n{\n"x": 1\n}\n  ```',
        '```json\r\n{"x": 1}\r\n```',
    ],
)
def test_a_fence_around_the_answer_is_taken_off(text):
    """Models put JSON into fences at times."""
    assert shape_of(Point).parse(text) == Point(1)


def test_a_fence_within_the_answer_stays():
    """Only one around all of it is a fence."""
    assert shape_of(dict[str, str]).parse('{"a": "```json\\n{}\\n```"}') == {
        "a": "```json\n{}\n```"
    }


@pytest.mark.parametrize(
    ("kind", "text", "why"),
    [
        (Point, "", "truncated"),
        (Point, "It is 3.", "malformed"),
        (Point, '{"x": 1} and so on', "trailing"),
        (Point, '{"x": "1"}', r"Expected `int`, got `str` - at `\$\.x`"),
        (Point, "{}", "missing required field `x`"),
        (Point, "[" * 100_000, "Expected `object`"),
        (Tree, '{"name": "a", "children": [' * 10_000, "RecursionError"),
        (Point, '{"x": "\ud800"}', "surrogates"),
        (Pair, "{}", "missing required field `x`"),
        (list[int], "{}", "missing required field `value`"),
        (list[int], '{"value": ["a"]}', "Expected `int`"),
        (Model, '{"x": "a", "y": "b"}', "x: .*; y: "),
        (Model, "It is 3.", r"\$: Invalid JSON"),
        (Even, '{"n": 3}', "n: .*odd"),
        (Names, '{"value": [1]}', "0: "),
        (Cautious, '{"n": 3}', "KeyError: 3"),
        (Cat | Dog, '{"value": {"type": "Cow"}}', "Invalid value 'Cow'"),
    ],
    ids=range(17),
)
def test_an_answer_that_does_not_fit_says_why_in_a_line(kind, text, why):
    """The text is for the model: where, and what was wrong."""
    with pytest.raises(Misfit, match=why) as misfit:
        shape_of(kind).parse(text)

    assert "\n" not in str(misfit.value)
    assert isinstance(misfit.value, ValueError)


@given(st.text())
def test_no_answer_raises_anything_else(text):
    """Any text is a value or a misfit."""
    for kind in (Point, list[int], Names, Pair):
        try:
            shape_of(kind).parse(text)
        except Misfit:
            continue


@pytest.mark.parametrize(
    ("thing", "why"),
    [
        (3, "a value of type int is no type"),
        ("Point", "a value of type str is no type"),
        (None, "a value of type NoneType is no type"),
        (Point(1), "a value of type Point is no type"),
        (Model(x=1), "a value of type Model is no type"),
        (pd.DataFrame({"a": [1]}), "a value of type DataFrame is no type"),
        (print, "is no type"),
        (json, "a value of type module is no type"),
        (Custom, "no form for a Custom"),
        (pd.DataFrame, "no form for a DataFrame"),
        (list[Custom], "no form for a Custom"),
        (complex, "complex"),
        (Point | Tree, "more than one"),
    ],
)
def test_what_is_no_type_is_refused_in_a_line(thing, why):
    """The line says what would do."""
    with pytest.raises(UsageError, match=why) as error:
        shape_of(thing)

    assert "\n" not in str(error.value)
    assert "dataclass" in str(error.value)
    assert len(str(error.value)) < 400


def test_a_type_whose_own_code_fails_is_refused_in_a_line():
    """A hint that leads nowhere is one."""
    broken = dataclasses.make_dataclass("Broken", [("x", "NoSuchName")])

    with pytest.raises(UsageError, match="NoSuchName"):
        shape_of(broken)


@pytest.mark.parametrize(
    ("kind", "name", "told"),
    [
        (Point, None, "Point"),
        (Point, "reading", "reading"),
        (list[int], None, "list"),
        (Point, "größe der Insel", "gr_e_der_Insel"),
        (Point, "x" * 100, "x" * 64),
    ],
)
def test_the_name_is_one_that_the_api_takes(kind, name, told):
    """At most 64 letters, digits, `_` and `-`."""
    assert shape_of(kind, name=name).format["name"] == told
