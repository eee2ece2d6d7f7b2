"""What of a request its head is made of. How it is rendered is tested with the prompts."""

from __future__ import annotations

import msgspec
import pytest

from ipy_agent.errors import ResponseFailed
from ipy_agent.protocol.requests import Fields
from ipy_agent.server.head import key_of, one_text

TOOL = {"type": "function", "name": "put", "description": "Put it.", "parameters": {}}


def read(**values):
    """Return what is read from settings: instructions, tools, custom names, schema."""
    return msgspec.json.decode(key_of(Fields(values)))


def named(*tools):
    return [(tool["name"], tool["description"]) for tool in read(tools=tools)[1]]


@pytest.mark.parametrize(
    "more",
    [
        {"tool_choice": "required"},
        {"parallel_tool_calls": False},
        {"max_output_tokens": 5},
        {"reasoning": {"effort": "high", "summary": "auto"}},
        {"include": ["reasoning.encrypted_content"]},
        {"truncation": "auto"},
        {"metadata": {"a": "b"}},
        {"client_metadata": {"turn": 5}},
        {"text": {"verbosity": "low"}},
        {"tools": [{**TOOL, "strict": True}]},
        {"tools": [TOOL, {"type": "web_search"}, {"type": "function"}, "odd", 5]},
        {"nobody_knows": [1]},
    ],
)
def test_what_means_nothing_to_the_model_changes_nothing(more):
    """It is accepted, and the cached prefix holds."""
    usual = {"instructions": "Be short.", "tools": [TOOL]}

    assert key_of(Fields({**usual, **more})) == key_of(Fields(usual))


@pytest.mark.parametrize(
    "more",
    [
        {"instructions": "Be long."},
        {"tools": []},
        {"tools": [{**TOOL, "description": "Take it."}]},
        {"tools": [{**TOOL, "type": "custom"}]},
        {"text": {"format": {"type": "json_object"}}},
    ],
)
def test_what_the_model_is_told_makes_another_head(more):
    """Instructions, tools, and the form of the answer."""
    usual = {"instructions": "Be short.", "tools": [TOOL]}

    assert key_of(Fields({**usual, **more})) != key_of(Fields(usual))


def test_nothing_at_all_is_a_head_too():
    """Settings may be missing or null."""
    assert read() == read(instructions=None, tools=None, text=None) == ["", [], [], None]


def test_a_custom_tool_is_a_function_of_one_text():
    """What it says of a grammar is left out."""
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: /x/"}

    _, (tool,), custom, _ = read(
        tools=[{"type": "custom", "name": "run", "description": "Run it.", "format": grammar}]
    )

    assert tool == {"name": "run", "description": "Run it.", "parameters": one_text("input")}
    assert custom == ["run"]


def test_of_two_tools_with_one_name_the_first_counts():
    """In the order in which they came."""
    second = {**TOOL, "description": "Never seen.", "type": "custom"}

    assert named(TOOL, {**TOOL, "name": "get"}, second) == [("put", "Put it."), ("get", "Put it.")]
    assert read(tools=[TOOL, second])[2] == []


@pytest.mark.parametrize(
    "values",
    [
        {"tools": 5},
        {"tools": [{**TOOL, "parameters": [1]}]},
        {"tools": [{**TOOL, "parameters": "x"}]},
        {"tools": [{"type": ["function"], "name": "x"}]},
        {"text": "json"},
        {"text": {"format": "json"}},
        {"text": {"format": {"type": "json_schema", "schema": [1]}}},
    ],
)
def test_what_cannot_be_read_is_the_clients_error(values):
    """In one line, with a status of 400."""
    with pytest.raises(ResponseFailed, match="cannot be read") as refused:
        read(**values)

    assert refused.value.status == 400
    assert "\n" not in str(refused.value)
