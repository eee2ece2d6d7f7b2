"""What a conversation begins with: instructions, tools, and the form that replies take.

A client sends all of it with every turn. `key_of` makes of it what it means to a model, so
that two turns that mean the same have the same head.

Rule 1: the head depends on instructions, tools and the format of the answer, and on nothing
else: a `tool_choice` must not cost the cached prefix.
Rule 2: to a model every tool is a function. A custom tool is one with a single text.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from ipy_agent.errors import ResponseFailed
from ipy_agent.protocol.requests import Fields
from ipy_agent.server.tokens import Tokens

__all__ = ["ANSWER", "INPUT", "MEMBERS", "Head", "key_of", "one_text"]

MEMBERS = ("instructions", "tools", "text")
"""The settings of a request that its head is made of."""

ANSWER, INPUT = "text", "input"
"""The one parameter of a message that stands for itself, and of a custom tool."""


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What every prompt of a conversation begins with, and the form that replies take."""

    key: bytes
    tokens: Tokens
    calls: dict[str, Any]
    """The parameters of each function, and of `answer`, by name. Without tools it is empty."""
    answer: str
    """The name that stands for a message."""
    custom: frozenset[str]
    """The names of the tools that take a text as it is, in one parameter named `INPUT`."""
    schema: dict[str, Any] | None
    """What the client wants the text of a message to be, as a JSON schema."""

    def grammar(self, choice: Any) -> dict[str, Any] | None:
        """Return the JSON schema of the next reply, if it has to have one.

        Args:
            choice: the request's `tool_choice`.
        """
        if not self.calls:
            return self.schema
        names = [name for name in self.calls if self._offers(choice, name)]
        if not names:
            raise ResponseFailed(
                "tool_choice names no tool of this request",
                status=400,
                code="invalid_value",
                param="tool_choice",
            )
        calls = [
            _call(name, _below(f"#/oneOf/{at}/properties/arguments", self.calls[name]))
            for at, name in enumerate(names)
        ]
        return {"oneOf": calls}

    def _offers(self, choice: Any, name: str) -> bool:
        if not isinstance(choice, dict):
            return {"none": name == self.answer, "required": name != self.answer}.get(
                str(choice), True
            )
        if choice.get("type") == "allowed_tools":
            named = any(tool.get("name") == name for tool in _dicts(choice.get("tools")))
            return named or (name == self.answer and choice.get("mode") != "required")
        return choice.get("name") == name


def key_of(fields: Fields) -> bytes:
    """Return what the head depends on, as the JSON of instructions, tools, custom names, schema.

    Of two tools with one name the first counts.
    """
    values = fields.values
    instructions = str(values.get("instructions") or "")
    tools: dict[str, dict[str, Any]] = {}
    try:
        for tool in values.get("tools") or ():
            if _is_ours(tool):
                tools.setdefault(str(tool["name"]), tool)
        custom = [name for name, tool in tools.items() if tool["type"] == "custom"]
        told = [_tool(tool) for tool in tools.values()]
        return msgspec.json.encode([instructions, told, custom, _schema(values)])
    except (TypeError, AttributeError) as error:
        raise ResponseFailed(
            f"the tools or the format cannot be read: {error}", status=400, code="invalid_value"
        ) from None


def one_text(name: str) -> dict[str, Any]:
    """Return the parameters of a function that takes a text and nothing else."""
    return {
        "type": "object",
        "properties": {name: {"type": "string"}},
        "required": [name],
        "additionalProperties": False,
    }


def _is_ours(tool: Any) -> bool:
    """Whether a tool is one that the client carries out."""
    return (
        isinstance(tool, dict)
        and tool.get("type") in {"function", "custom"}
        and bool(tool.get("name"))
    )


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool as models know it. Arguments are always an object.

    What a custom tool says of its `format` is left out: a text is not held to a grammar here.
    """
    given = {"properties": {}, **(tool.get("parameters") or {}), "type": "object"}
    return {
        "name": str(tool["name"]),
        "description": str(tool.get("description") or ""),
        "parameters": one_text(INPUT) if tool["type"] == "custom" else given,
    }


def _schema(values: dict[str, Any]) -> dict[str, Any] | None:
    asked = (values.get("text") or {}).get("format") or {}
    if asked.get("type") == "json_schema":
        return {**(asked.get("schema") or {}), "type": "object"}
    return {"type": "object"} if asked.get("type") == "json_object" else None


def _dicts(values: Any) -> Iterable[dict[str, Any]]:
    return (each for each in values if isinstance(each, dict)) if isinstance(values, list) else ()


def _call(name: str, parameters: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _below(place: str, schema: Any) -> Any:
    """Return a schema that now stands at a place of another: its references go along."""
    if isinstance(schema, list):
        return [_below(place, each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: place + value[1:]
        if name == "$ref" and isinstance(value, str) and value.startswith("#")
        else _below(place, value)
        for name, value in schema.items()
    }
