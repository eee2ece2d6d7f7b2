"""Items become token ids: appended to those that the model has seen, never rendered again.

A turn with a memory costs what its new items cost. Without one the whole conversation is
rendered, the model's own words in the form in which it would have said them.

Rule 1: the two control tokens that make a turn are put in as ids. What anybody wrote goes
through `plain` and is tokenised as text, so it can neither end a turn nor begin one.
Rule 2: the model's own ids are kept as they came. To tokenise its text again may give
others, and whatever a cache holds behind the first difference is lost.
Rule 3: the head depends on instructions, tools and the format of the answer, and on nothing
else: a `tool_choice` must not cost the cached prefix.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from ipy_agent.errors import ResponseFailed
from ipy_agent.protocol.items import Item, text
from ipy_agent.protocol.requests import Fields
from ipy_agent.server.engine import Job

__all__ = ["Head", "Memory", "Part", "Prompt", "Prompts", "Tokens", "plain"]

Part = str | int
"""A text to be tokenised without control tokens, or the id of one."""

_OPEN, _CLOSE = "<tool_call>\n", "\n</tool_call>"
_MARK = re.compile(r"(?<=<)(?=\||/?tool_)")
_ROLES = {"user": "user", "system": "system", "developer": "system", "assistant": "assistant"}
_TEXT = {
    "type": "object",
    "properties": {"text": {"type": "string"}},
    "required": ["text"],
    "additionalProperties": False,
}
_GUIDE = (
    """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
""",
    """
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>""",
)


class Tokens:
    """Token ids as they came, chunk by chunk: turns share what they have in common."""

    __slots__ = ("chunk", "length", "parent")

    def __init__(self, parent: Tokens | None = None, chunk: Iterable[int] = ()) -> None:
        self.parent = parent
        self.chunk = tuple(chunk)
        self.length: int = len(self.chunk) + (parent.length if parent else 0)

    def ids(self) -> list[int]:
        """Return all of them in order."""
        chunks: list[tuple[int, ...]] = []
        node: Tokens | None = self
        while node is not None:
            chunks.append(node.chunk)
            node = node.parent
        return [each for chunk in reversed(chunks) for each in chunk]


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What every prompt of a conversation begins with, and the form that replies take."""

    key: bytes
    tokens: Tokens
    calls: dict[str, Any]
    """The parameters of each function, and of `answer`, by name. Without tools it is empty."""
    answer: str
    """The name that stands for a message."""
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
            named = any(tool.get("name") == name for tool in choice.get("tools") or ())
            return named or (name == self.answer and choice.get("mode") != "required")
        return choice.get("name") == name


class Memory(msgspec.Struct, frozen=True):
    """What a conversation looks like to the model, its own last words included."""

    head: bytes
    tokens: Tokens


class Prompt(msgspec.Struct, frozen=True):
    """A turn's prompt."""

    head: Head
    tokens: Tokens


class Prompts:
    """The one way from items to ids, for models that speak ChatML.

    Args:
        tokenise: parts to ids; texts must come out without control tokens.
        start: the id of `<|im_start|>`.
        end: the id of `<|im_end|>`.
    """

    def __init__(
        self, tokenise: Callable[[Sequence[Part]], list[int]], *, start: int, end: int
    ) -> None:
        self._tokenise = tokenise
        self._start = start
        self._end = end
        self._known = functools.lru_cache(maxsize=32)(self._head)

    def prompt(self, job: Job) -> Prompt:
        """Return the prompt of a turn; its memory is used if it has the same head."""
        head = self._known(_key(job.fields))
        if isinstance(job.memory, Memory) and job.memory.head == head.key:
            known, items = job.memory.tokens, job.input.since(job.held)
        else:
            known, items = head.tokens, job.input.since(0)
        parts = [part for item in items for part in self._rendered(item, head)]
        if job.generate:
            parts += [self._start, "assistant\n", *([_OPEN] if head.calls else [])]
        return Prompt(head, Tokens(known, self._tokenise(parts)) if parts else known)

    def memory(self, prompt: Prompt, said: Sequence[int] | None) -> Memory:
        """Return what is to be known when the conversation goes on.

        Args:
            prompt: what the model was given.
            said: what the model generated, with or without its end of the turn; `None`
                after a warm-up, which leaves the turn to the client.
        """
        if said is None:
            return Memory(prompt.head.key, prompt.tokens)
        own = list(said[:-1] if said and said[-1] == self._end else said)
        tail = self._tokenise([*([_CLOSE] if prompt.head.calls else []), self._end, "\n"])
        return Memory(prompt.head.key, Tokens(prompt.tokens, own + tail))

    def _head(self, key: bytes) -> Head:
        instructions, tools, schema = msgspec.json.decode(key)
        answer = "answer"
        while any(tool["name"] == answer for tool in tools):
            answer += "_"
        about = {"name": answer, "description": "Answer the user.", "parameters": schema or _TEXT}
        offered = [*tools, about] if tools else []
        signatures = "\n".join(_json({"type": "function", "function": each}) for each in offered)
        said = plain(instructions + "\n\n" if instructions and offered else instructions)
        said += [_GUIDE[0], *plain(signatures), _GUIDE[1]] if offered else []
        parts = self._turn("system", said) if said else []
        return Head(
            key=key,
            tokens=Tokens(None, self._tokenise(parts) if parts else ()),
            calls={each["name"]: each["parameters"] for each in offered},
            answer=answer,
            schema=schema,
        )

    def _rendered(self, item: Item, head: Head) -> list[Part]:
        """Return the parts of one item; of one that says nothing to a model, none."""
        kind = item.get("type") or "message"
        if kind == "function_call_output":
            said = plain(text(item))
            return self._turn("user", ["<tool_response>\n", *said, "\n</tool_response>"])
        if kind == "function_call":
            call = {"name": item.get("name"), "arguments": None}
            return self._called(_json(call)[: -len("null}")] + str(item.get("arguments")) + "}")
        role = _ROLES.get(str(item.get("role"))) if kind == "message" else None
        if role == "assistant" and head.calls:
            said_so = text(item) if head.schema else _json({"text": text(item)})
            return self._called(f'{{"name": {_json(head.answer)}, "arguments": {said_so}}}')
        return self._turn(role, plain(text(item))) if role else []

    def _called(self, reply: str) -> list[Part]:
        return self._turn("assistant", [_OPEN, *plain(reply), _CLOSE])

    def _turn(self, role: str, said: Iterable[Part]) -> list[Part]:
        return [self._start, f"{role}\n", *said, self._end, "\n"]


def plain(said: str) -> list[Part]:
    """Return what somebody wrote, cut within whatever looks like a marker.

    Some vocabularies have markers such as `<tool_call>` as tokens that any text may become.
    """
    return [part for part in _MARK.split(said) if part]


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


def _key(fields: Fields) -> bytes:
    """Return what the head depends on, as JSON."""
    values = fields.values
    instructions = str(values.get("instructions") or "")
    try:
        tools = [_tool(tool) for tool in values.get("tools") or () if _is_function(tool)]
        return msgspec.json.encode([instructions, tools, _schema(values)])
    except (TypeError, AttributeError) as error:
        raise ResponseFailed(
            f"the tools or the format cannot be read: {error}", status=400, code="invalid_value"
        ) from None


def _is_function(tool: Any) -> bool:
    return isinstance(tool, dict) and tool.get("type") == "function" and bool(tool.get("name"))


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool as models know it. Arguments are always an object."""
    parameters = {"properties": {}, **(tool.get("parameters") or {}), "type": "object"}
    return {
        "name": str(tool["name"]),
        "description": str(tool.get("description") or ""),
        "parameters": parameters,
    }


def _schema(values: dict[str, Any]) -> dict[str, Any] | None:
    asked = (values.get("text") or {}).get("format") or {}
    if asked.get("type") == "json_schema":
        return {**(asked.get("schema") or {}), "type": "object"}
    return {"type": "object"} if asked.get("type") == "json_object" else None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
