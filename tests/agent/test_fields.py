"""A request's members: what was set, what the endpoint is, and nothing that is empty."""

from __future__ import annotations

import dataclasses

import pytest

from ipy_agent.agent.fields import fields_of
from ipy_agent.agent.schemas import shape_of
from ipy_agent.agent.tools import tool_of
from ipy_agent.endpoints import INSTRUCTIONS, Endpoint
from ipy_agent.errors import UsageError
from ipy_agent.settings import Settings

HERE = Endpoint.named("http://127.0.0.1:1/v1")


def look(at: str) -> str:
    """Look."""
    return at


def fields(target=HERE, tools=(), shape=None, **settings):
    return fields_of(Settings(**settings), target, tools, shape, "key")


def test_what_is_not_set_is_not_sent():
    """Without a word there are instructions, `store` and the cache's key."""
    assert fields() == {"instructions": INSTRUCTIONS, "store": False, "prompt_cache_key": "key"}


def test_everything_that_can_be_set_has_its_place():
    """Settings become the API's members."""
    tool = tool_of(look)
    said = fields(
        tools=[tool],
        shape=shape_of(int),
        model="m",
        instructions="Be brief.",
        effort="low",
        summary="auto",
        max_output_tokens=5,
        parallel_tool_calls=False,
        store=True,
    )

    assert said.pop("text")["format"]["type"] == "json_schema"
    assert said == {
        "model": "m",
        "instructions": "Be brief.",
        "tools": [tool.definition],
        "parallel_tool_calls": False,
        "reasoning": {"effort": "low", "summary": "auto"},
        "max_output_tokens": 5,
        "store": True,
        "prompt_cache_key": "key",
    }


@pytest.mark.parametrize(
    ("reasoning", "store", "asked"),
    [(True, False, True), (True, True, False), (False, False, False)],
)
def test_thoughts_are_asked_for_where_nobody_else_keeps_them(reasoning, store, asked):
    """An endpoint that reasons and does not store hands them over, encrypted."""
    said = fields(dataclasses.replace(HERE, reasoning=reasoning), store=store)

    assert (said.get("include") == ["reasoning.encrypted_content"]) is asked


def test_a_model_has_to_be_named_where_there_is_none():
    """The user's counts first, then the endpoint's."""
    needs = dataclasses.replace(HERE, needs_model=True)
    with pytest.raises(UsageError, match="-m MODEL"):
        fields(needs)

    assert fields(needs, model="m")["model"] == "m"
    assert fields(dataclasses.replace(needs, model="own"))["model"] == "own"
    assert fields(dataclasses.replace(needs, model="own"), model="m")["model"] == "m"
