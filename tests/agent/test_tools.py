"""A function becomes a tool by its signature, and what the model sends fits it or is told so."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import functools
import json
from typing import Annotated, Any, Literal, Optional

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ipy_agent
from ipy_agent.agent.calls import Worker
from ipy_agent.agent.tools import TOOLS, BadArguments, Result, bounded, offered, result_of, tool_of
from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import ToolError


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0


@dataclasses.dataclass
class Line:
    points: list[Point]
    name: Optional[str] = None  # noqa: UP045 (people write it)


@dataclasses.dataclass
class Tree:
    children: list[Tree] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Cautious:
    path: str

    def __post_init__(self):
        raise KeyError(self.path)


@pytest.fixture
def registry():
    """Give back the tools of the process as they were."""
    before = dict(TOOLS)
    yield TOOLS
    TOOLS.clear()
    TOOLS.update(before)


def taking(hint, *default):
    """Return the tool of a function with one parameter `x`."""

    def look(x):
        """Look at it."""
        return x

    look.__annotations__ = {"x": hint}
    look.__defaults__ = default or None
    return tool_of(look)


POINT = {
    "title": "Point",
    "type": "object",
    "properties": {"x": {"type": "number"}, "y": {"type": "number", "default": 0.0}},
    "required": ["x"],
}


@pytest.mark.parametrize(
    ("hint", "schema", "sent", "value"),
    [
        (int, {"type": "integer"}, "3", 3),
        (float, {"type": "number"}, "3", 3.0),
        (bool, {"type": "boolean"}, "true", True),
        (str, {"type": "string"}, '"a"', "a"),
        (Any, {}, "[1]", [1]),
        ("int", {"type": "integer"}, "3", 3),
        (Literal["a", "b"], {"enum": ["a", "b"]}, '"b"', "b"),
        (list[int], {"type": "array", "items": {"type": "integer"}}, "[1,2]", [1, 2]),
        (list, {"type": "array"}, '[1,"a"]', [1, "a"]),
        (
            dict[str, int],
            {"type": "object", "additionalProperties": {"type": "integer"}},
            '{"a":1}',
            {"a": 1},
        ),
        (dict, {"type": "object"}, '{"a":[1]}', {"a": [1]}),
        (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}, "null", None),
        (
            Annotated[int, msgspec.Meta(ge=1, description="how many")],
            {"type": "integer", "minimum": 1, "description": "how many"},
            "1",
            1,
        ),
    ],
)
def test_a_type_becomes_its_schema(hint, schema, sent, value):
    """The schema of the one parameter is what the API wants, and what it lets in is converted."""
    made = taking(hint)

    assert made.definition == {
        "type": "function",
        "name": "look",
        "description": "Look at it.",
        "parameters": {
            "type": "object",
            "properties": {"x": schema},
            "required": ["x"],
            "additionalProperties": False,
        },
    }
    assert made.bind(f'{{"x":{sent}}}') == {"x": value}


@pytest.mark.parametrize(
    ("hint", "schema", "definitions", "sent", "value"),
    [
        (
            Colour,
            {"$ref": "#/$defs/Colour"},
            {"Colour": {"title": "Colour", "enum": ["blue", "red"]}},
            '"red"',
            Colour.RED,
        ),
        (Point, {"$ref": "#/$defs/Point"}, {"Point": POINT}, '{"x":1}', Point(1.0)),
        (
            Line,
            {"$ref": "#/$defs/Line"},
            {
                "Line": {
                    "title": "Line",
                    "type": "object",
                    "properties": {
                        "points": {"type": "array", "items": {"$ref": "#/$defs/Point"}},
                        "name": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
                    },
                    "required": ["points"],
                },
                "Point": POINT,
            },
            '{"points":[{"x":1,"y":2}]}',
            Line([Point(1.0, 2.0)]),
        ),
        (
            Tree,
            {"$ref": "#/$defs/Tree"},
            {
                "Tree": {
                    "title": "Tree",
                    "type": "object",
                    "properties": {
                        "children": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}
                    },
                    "required": [],
                }
            },
            '{"children":[{}]}',
            Tree([Tree()]),
        ),
    ],
)
def test_a_type_with_a_name_is_defined_once(hint, schema, definitions, sent, value):
    """Enums and dataclasses, nested ones too, stand under `$defs` and arrive as such."""
    made = taking(hint)

    assert made.parameters["properties"] == {"x": schema}
    assert made.parameters["$defs"] == definitions
    assert made.bind(f'{{"x":{sent}}}') == {"x": value}


@pytest.mark.parametrize(
    "default", [3, "a", None, True, [], {}, [1], {"a": 1}, Colour.RED, Point(1)]
)
def test_a_default_makes_a_parameter_optional(default):
    """What is left out has its default; mutable ones are allowed, as in any function."""
    made = taking(Any, default)

    assert made.parameters["required"] == []
    assert made.bind("{}") == {"x": default}
    assert made.bind("") == {"x": default}
    json.dumps(msgspec.to_builtins(made.parameters))


def test_plain_defaults_are_told_to_the_model():
    """The schema names the default where JSON can."""
    assert taking(int, 3).parameters["properties"]["x"] == {"type": "integer", "default": 3}


def test_keyword_only_parameters_and_none_at_all():
    """A tool may take no parameter, or such that have to be named."""

    def now():
        """Tell the time."""
        return "noon"

    def scale(x: float, *, by: float = 2) -> float:
        """Scale it."""
        return x * by

    assert tool_of(now).parameters["properties"] == {}
    assert tool_of(now).bind("{}") == {}
    assert scale(**tool_of(scale).bind('{"x":2,"by":3}')) == 6


def untold():  # noqa: C901 (a list)
    """Return functions that no model could be told of, by name."""

    class Custom:
        pass

    def hintless(x):
        """A tool."""

    def anything(x: object):
        """A tool."""

    def custom(x: Custom):
        """A tool."""

    def frame(x: pd.DataFrame):
        """A tool."""

    def array(x: np.ndarray):
        """A tool."""

    def nested(x: dict[str, list[pd.Series]]):
        """A tool."""

    def two_classes(x: Point | Tree):
        """A tool."""

    def number(x: complex):
        """A tool."""

    def strange_default(x: Any = object()):  # noqa: B008
        """A tool."""

    def several(*x: int):
        """A tool."""

    def named(**x: int):
        """A tool."""

    def positional(x: int, /):
        """A tool."""

    def unresolved(x: NoSuchName):  # noqa: F821
        """A tool."""

    def attribute(x: pd.NoSuchName):
        """A tool."""

    def no_docstring(x: int):
        return x

    async def stream(x: int):
        """A tool."""
        yield x

    return {f.__name__: f for f in list(locals().values()) if f is not Custom}


@pytest.mark.parametrize("name", untold())
def test_what_cannot_be_told_is_an_error_when_the_tool_is_made(name, registry):
    """The error is one line that names the tool; nothing is registered, and it is a TypeError."""
    function = untold()[name]
    before = dict(registry)

    with pytest.raises(ToolError, match=name) as error:
        ipy_agent.tool(function)

    assert isinstance(error.value, TypeError)
    assert "\n" not in str(error.value)
    assert registry == before


def test_something_callable_that_is_no_function_is_refused():
    """Its hints cannot be read: a line says so."""

    def add(x: int, y: int) -> int:
        """Add."""
        return x + y

    with pytest.raises(ToolError, match="partial"):
        tool_of(functools.partial(add, 1), description="Add one.")


def test_a_tool_is_offered_and_stays_a_function(registry):
    """The decorator, bare or with options, gives the function back."""

    @ipy_agent.tool
    def price(ticker: str) -> float:
        """Return the price."""
        return 3.0 + len(ticker)

    @ipy_agent.tool(read_only=True)
    def look() -> str:
        """Look."""
        return "seen"

    assert price("X") == 4.0
    assert look() == "seen"
    assert (registry["price"].read_only, registry["look"].read_only) == (False, True)


def test_a_function_defined_again_replaces_itself(registry):
    """There is one tool of a name: the last."""

    @ipy_agent.tool
    def price(ticker: str) -> float:
        """The first."""

    @ipy_agent.tool
    def price(ticker: str, day: int) -> float:  # noqa: F811 (it is what is tested)
        """The second."""

    assert registry["price"].description == "The second."
    assert list(registry["price"].parameters["properties"]) == ["ticker", "day"]
    assert list(registry).count("price") == 1


def test_a_coroutine_function_is_a_tool_like_any_other(registry):
    """Its schema is its signature's, and it stays what it was for whoever awaits it."""

    @ipy_agent.tool(read_only=True)
    async def price(ticker: str) -> float:
        """Return the price."""
        return 3.0 + len(ticker)

    made = registry["price"]
    assert list(made.parameters["properties"]) == ["ticker"]
    assert (made.description, made.read_only) == ("Return the price.", True)
    assert asyncio.run(price("X")) == 4.0


def awaiting(function):
    """Return the outcome of one call of a tool, by a worker."""
    made = tool_of(function, name="look", description="Look.")
    endpoint = Endpoint(name="here", url="http://127.0.0.1:1/v1")
    called = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
    return Worker({"look": made}, "auto", lambda _: True, endpoint).carry_out(called).ended


def test_what_a_tool_awaits_is_awaited():
    """A coroutine's value is the output, also of an ordinary function that returns a coroutine."""

    async def look():
        await asyncio.sleep(0)
        return {"a": 1}

    def wrapper():
        return look()

    for function in (look, wrapper):
        ended = awaiting(function)
        assert (ended.output, ended.status) == ('{"a":1}', "completed")
        assert ended.duration_ms > 0


@pytest.mark.parametrize(
    ("error", "output", "status"),
    [
        (KeyError("x"), "KeyError: 'x'", "failed"),
        (asyncio.CancelledError("gone"), "CancelledError: gone", "failed"),
        (SystemExit(3), "SystemExit: 3", "failed"),
        (KeyboardInterrupt(), "interrupted by the user; side effects unknown", "interrupted"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_an_async_tool_raises_is_told_to_the_model(error, output, status):
    """As what any tool raises; only an interrupt is more."""

    async def look():
        await asyncio.sleep(0)
        raise error

    ended = awaiting(look)
    assert (ended.output, ended.status) == (output, status)


def test_what_can_be_awaited_but_is_no_coroutine_is_a_value():
    """A future of dask, say, is not for asyncio."""

    class Future:
        def __await__(self):
            raise AssertionError

        def __repr__(self):
            return "<future>"

    assert awaiting(Future).output == "<future>"


def test_a_custom_tool_is_called_with_a_text(registry):
    """It is listed without a schema, and its one parameter gets the text as it is."""

    @ipy_agent.tool(custom=True)
    def query(sql: str) -> str:
        """Ask the database."""
        return sql

    made = registry["query"]
    assert query("x") == "x"
    assert made.definition == {
        "type": "custom",
        "name": "query",
        "description": "Ask the database.",
    }
    assert (made.shows, made.read_only) == ("sql", False)
    for said in ('SELECT "a"\n', "", '{"sql": "no"}', "3", "\ud800"):
        assert made.bind(said) == {"sql": said}


def test_a_custom_tool_may_be_free_of_side_effects(registry):
    """The two options go together."""

    @ipy_agent.tool(read_only=True, custom=True)
    def query(*, sql: str = "") -> str:
        """Ask the database."""
        return sql

    assert registry["query"].read_only
    assert query(**registry["query"].bind("a")) == "a"


def several_parameters():
    """Return functions that one text cannot call, by name."""

    def none():
        """A tool."""

    def two(x: str, y: str = ""):
        """A tool."""

    def number(x: int):
        """A tool."""

    def maybe(x: str | None):
        """A tool."""

    def noted(x: Annotated[str, msgspec.Meta(min_length=1)]):
        """A tool."""

    return dict(locals())


@pytest.mark.parametrize("name", several_parameters())
def test_a_custom_tool_has_one_parameter_and_it_is_a_text(name, registry):
    """Anything else is an error where the tool is made."""
    before = dict(registry)

    with pytest.raises(ToolError, match=f"{name}: a custom tool has exactly one parameter"):
        ipy_agent.tool(custom=True)(several_parameters()[name])

    assert registry == before


@pytest.mark.parametrize(
    "sent",
    [
        "{",
        "[]",
        "3",
        "null",
        '{"x":"3"}',
        '{"x":3.5}',
        '{"x":true}',
        '{"x":null}',
        '{"y":3}',
        '{"x":3,"y":4}',
        "{}",
        '{"x":NaN}',
        '{"x":' + "[" * 100_000,
        '{"x":"\ud800"}',
    ],
    ids=range(14),
)
def test_arguments_that_do_not_fit_are_told_to_the_model(sent):
    """The text names the tool and is one line."""
    with pytest.raises(BadArguments, match=r"^look: bad arguments: ") as error:
        taking(int).bind(sent)

    assert "\n" not in str(error.value)


def test_a_class_that_refuses_its_values_is_a_bad_argument():
    """Whatever a dataclass raises while it is made is for the model."""
    with pytest.raises(BadArguments, match="KeyError"):
        taking(Cautious).bind('{"x":{"path":"no"}}')


@given(st.text())
def test_no_text_that_a_model_sends_is_an_exception_for_the_user(sent):
    """Any text binds or is a bad argument."""
    made = taking(int | list[str] | None)
    try:
        bound = made.bind(sent)
    except BadArguments:
        return
    assert set(bound) == {"x"}


class Unsayable:
    def __repr__(self):
        raise RuntimeError("no")


class Endless:
    def __repr__(self):
        return repr(self)


LOOP: list = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("", ""),
        (3, "3"),
        (2**70, str(2**70)),
        (1.5, "1.5"),
        (None, "null"),
        (True, "true"),
        ({"a": [1, None]}, '{"a":[1,null]}'),
        (Point(1.0), '{"x":1.0,"y":0.0}'),
        (Colour.RED, '"red"'),
        ({(1, 2): 3}, "{(1, 2): 3}"),
        (1j, "1j"),
        (np.float64(1.5), "1.5"),
        ({"n": np.int64(3), "all": [np.float32(0.5)]}, '{"n":3,"all":[0.5]}'),
        (pd.Series([1, 2]), repr(pd.Series([1, 2]))),
        (Unsayable(), "<Unsayable whose repr failed: RuntimeError>"),
        (Endless(), "<Endless whose repr failed: RecursionError>"),
        (LOOP, "list of 1: [[[[[[...]]]]]]"),
        ("a\ud800b", "a?b"),
        (["\ud800"], "['\\ud800']"),
    ],
    ids=range(20),
)
def test_a_value_is_told_as_text_else_json_else_its_repr(value, text):
    """Whatever a tool returns, the model gets a text that can be sent."""
    said = result_of(value).output(1_000, images=False)

    assert said == text
    said.encode()


def test_a_result_says_what_it_says():
    """A `Result` is taken as it is; its text is a text that can be sent."""
    result = Result("text", pictures=["data:image/png;base64,AA=="], failed=True)

    assert result_of(result) is result
    assert Result("a\ud800b").text == "a?b"
    assert Result(3).text == "3"


def test_pictures_go_to_models_that_take_them():
    """Others get the text alone."""
    result = Result("a plot", pictures=["data:image/png;base64,AA=="])

    assert result.output(100, images=False) == "a plot"
    assert result.output(100, images=True) == [
        {"type": "input_text", "text": "a plot"},
        {"type": "input_image", "image_url": "data:image/png;base64,AA=="},
    ]
    assert Result("text").output(100, images=True) == "text"


@given(st.text(max_size=300), st.integers(min_value=1, max_value=400))
def test_a_bounded_text_keeps_its_head_and_tail(text, limit):
    """It is whole if it fits; else what is left out is counted, and the rest is as it was."""
    said = bounded(text, limit)

    if len(text) <= limit:
        assert said == text
        return
    head, _, rest = said.partition("\n… ")
    count, _, tail = rest.partition(" characters left out …\n")
    if "\n… " not in text:
        assert len(head) + len(tail) <= limit
        assert text == head + text[len(head) : len(text) - len(tail)] + tail
        assert int(count) == len(text) - len(head) - len(tail)


def test_tools_are_offered_by_name_or_all_but_the_hidden_ones():
    """A name that is not there is an error that lists those that are."""

    def f():
        """F."""

    def g():
        """G."""

    tools = {"f": tool_of(f), "g": tool_of(g)}
    assert list(offered(tools, None, frozenset({"f"}))) == ["g"]
    assert list(offered(tools, ("g", "f"), frozenset({"f"}))) == ["g", "f"]
    with pytest.raises(ToolError, match="no tool 'h': there are f, g"):
        offered(tools, ("f", "h"), frozenset())
    with pytest.raises(ToolError, match="none"):
        offered({}, ("f",), frozenset())
