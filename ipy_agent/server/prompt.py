"""Items become token ids: appended to those that the model has seen, never rendered again.

A turn with a memory costs what its new items cost. Without one the whole conversation is
rendered, the model's own words in the form in which it would have said them.

Rule 1: the two control tokens that make a turn are put in as ids. What anybody wrote goes
through `plain` and is tokenised as text, so it can neither end a turn nor begin one.
Rule 2: the model's own ids are kept as they came. To tokenise its text again may give
others, and whatever a cache holds behind the first difference is lost.
Rule 3: whatever a turn costs here is for what is new in it: the head is made once.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from ipy_agent.protocol.items import CALLS, Item, is_call, text
from ipy_agent.protocol.requests import Fields
from ipy_agent.server.compaction import summary_of
from ipy_agent.server.engine import Job
from ipy_agent.server.head import ANSWER, INPUT, MEMBERS, Head, key_of, one_text
from ipy_agent.server.tokens import Tokens

__all__ = ["Memory", "Part", "Prompt", "Prompts", "plain"]

Part = str | int
"""A text to be tokenised without control tokens, or the id of one."""

_OPEN, _CLOSE = "<tool_call>\n", "\n</tool_call>"
_MARK = re.compile(r"(?<=<)(?=\||/?tool_)")
_RECAP = "This is the summary of the conversation so far:\n"
_UNREAD = "(A summary of the conversation so far that this model cannot read.)"
_UNSEEN = {
    "input_image": "a picture that this model cannot see",
    "input_file": "a file that this model cannot read",
    "input_audio": "a recording that this model cannot hear",
}
_OUTPUTS = {f"{kind}_output" for kind in CALLS}
_ROLES = {"user": "user", "system": "system", "developer": "system", "assistant": "assistant"}
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


class Memory(msgspec.Struct, frozen=True):
    """What a conversation looks like to the model, its own last words included."""

    head: bytes
    tokens: Tokens


class Prompt(msgspec.Struct, frozen=True):
    """A turn's prompt, and the JSON schema of its reply if that has to have one."""

    head: Head
    tokens: Tokens
    schema: dict[str, Any] | None


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
        self._keys = functools.lru_cache(maxsize=32)(key_of)
        self._heads = functools.lru_cache(maxsize=32)(self._head)
        self._tails = functools.cache(self._tail)

    def prompt(self, job: Job) -> Prompt:
        """Return the prompt of a turn; its memory is used if it has the same head."""
        head = self._heads(self._keys(_of_head(job.fields)))
        schema = head.grammar(job.fields.values.get("tool_choice"))
        if isinstance(job.memory, Memory) and job.memory.head == head.key:
            known, items = job.memory.tokens, job.input.since(job.held)
        else:
            known, items = head.tokens, job.input.since(0)
        parts = [part for item in items for part in self._rendered(item, head)]
        if job.generate:
            parts += [self._start, "assistant\n", *([_OPEN] if head.calls else [])]
        tokens = Tokens(known, self._tokenise(parts)) if parts else known
        return Prompt(head, tokens, schema)

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
        tail = self._tails(bool(prompt.head.calls))
        return Memory(prompt.head.key, Tokens(prompt.tokens, own + tail))

    def _tail(self, called: bool) -> list[int]:
        """Return what ends a turn of the model's. Made once: the end of a turn waits for it."""
        return self._tokenise([*([_CLOSE] if called else []), self._end, "\n"])

    def _head(self, key: bytes) -> Head:
        instructions, tools, custom, schema = msgspec.json.decode(key)
        answer = "answer"
        while any(tool["name"] == answer for tool in tools):
            answer += "_"
        parameters = schema or one_text(ANSWER)
        about = {"name": answer, "description": "Answer the user.", "parameters": parameters}
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
            custom=frozenset(custom),
            schema=schema,
        )

    def _rendered(self, item: Item, head: Head) -> list[Part]:
        """Return the parts of one item; of one that says nothing to a model, none."""
        kind = str(item.get("type") or "message")
        if is_call(item):
            return self._called(_written(item))
        if kind in _OUTPUTS:
            said = plain(_shown(item))
            return self._turn("user", ["<tool_response>\n", *said, "\n</tool_response>"])
        if kind == "compaction":
            summary = summary_of(item)
            return self._turn("user", plain(_UNREAD if summary is None else _RECAP + summary))
        role = _ROLES.get(str(item.get("role"))) if kind == "message" else None
        if role == "assistant" and head.calls:
            said_so = text(item) if head.schema else _json({ANSWER: text(item)})
            return self._called(f'{{"name": {_json(head.answer)}, "arguments": {said_so}}}')
        return self._turn(role, plain(_shown(item))) if role else []

    def _called(self, reply: str) -> list[Part]:
        return self._turn("assistant", [_OPEN, *plain(reply), _CLOSE])

    def _turn(self, role: str, said: Iterable[Part]) -> list[Part]:
        return [self._start, f"{role}\n", *said, self._end, "\n"]


def plain(said: str) -> list[Part]:
    """Return what somebody wrote, cut within whatever looks like a marker.

    Some vocabularies have markers such as `<tool_call>` as tokens that any text may become.
    """
    return [part for part in _MARK.split(said) if part]


def _of_head(fields: Fields) -> Fields:
    """Return what the head is made of: metadata, say, may be new with every turn."""
    return Fields({name: fields.values.get(name) for name in MEMBERS})


def _written(call: Item) -> str:
    """Return a call as the model would have written it."""
    said = text(call)
    arguments = said or "{}" if call["type"] == "function_call" else _json({INPUT: said})
    return f'{{"name": {_json(call.get("name"))}, "arguments": {arguments}}}'


def _shown(item: Item) -> str:
    """Return what an item says, and that there was something where a part is no text."""
    said = item.get("output") if "output" in item else item.get("content")
    if not isinstance(said, list):
        return text(item)
    parts = [part for part in said if isinstance(part, dict)]
    return text({"content": [_worded(part) for part in parts]})


def _worded(part: Item) -> Item:
    if "text" in part or "refusal" in part:
        return part
    what = _UNSEEN.get(str(part.get("type")), "something that this model cannot read")
    return {"text": f"({what})"}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
