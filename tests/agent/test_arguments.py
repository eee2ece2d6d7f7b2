"""What a model calls a tool with means one thing, and is of a bounded size."""

from __future__ import annotations

from typing import Any

import pytest

from ipy_agent.agent.approval import Reply
from ipy_agent.agent.arguments import BYTES, DEPTH
from ipy_agent.agent.calls import Worker
from ipy_agent.agent.tools import BadArguments, tool_of
from ipy_agent.endpoints import Endpoint

HERE = Endpoint(name="here", url="http://127.0.0.1:1/v1")


def take(x: Any = None, n: int = 0, f: float = 0.0) -> str:  # noqa: ARG001 (only bound)
    """Take."""
    return "ran"


TAKE = tool_of(take)


def nested(depth):
    """Arguments of this depth: the object around them is a level too."""
    return '{"x":' + "[" * (depth - 1) + "]" * (depth - 1) + "}"


REFUSED = {
    "a key twice": ('{"n": 1, "n": 2}', "the key 'n' is there twice in one object"),
    "a key twice within": ('{"x": [{"a": 1, "a": 1}]}', "the key 'a' is there twice"),
    "a key twice by an escape": ('{"n": 1, "\\u006e": 2}', "the key 'n' is there twice"),
    "one key of many": (
        '{"x": {' + ",".join(f'"{n % 60_000}":0' for n in range(60_001)) + "}}",
        "the key '0' is there twice",
    ),
    "not a number": ('{"f": NaN}', "NaN is no JSON"),
    "infinity": ('{"x": [-Infinity]}', "-Infinity is no JSON"),
    "a float that is infinite": ('{"f": 1e999}', "out of range"),
    "a huge integer": ('{"x": 1' + "0" * 5_000 + "}", "out of range"),
    "a huge integer for an integer": ('{"n": 1' + "0" * 900_000 + "}", "out of range"),
    "half a pair": ('{"x": "\\ud800"}', "half of a surrogate pair"),
    "half a pair as a key": ('{"x": {"\\udc00": 1}}', "half of a surrogate pair"),
    "half a pair as it is": ('{"x": "\ud800"}', "half of a surrogate pair"),
    "too deep": (nested(DEPTH + 1), "nested too deep: at most 64 levels"),
    "deeper than any stack": (nested(400_000), "nested too deep"),
    "too deep and no JSON": ("[" * 1_000_000, "nested too deep"),
    "too long": ('{"x": "%s"}' % ("é" * (BYTES // 2)), "1,048,585 bytes are too many"),
    "cut off": ('{"x": "ab', "truncated"),
    "cut off in an escape": ('{"x": "ab\\', "truncated"),
    "two values": ("{} {}", "trailing characters"),
    "a control character": ('{"x": "\x00"}', "malformed"),
}


@pytest.mark.parametrize(("sent", "said"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_one_meaning_or_is_too_much_is_refused_before_anybody_is_asked(sent, said):
    """It is one line for the model, no exception for the user, and nothing ran."""
    asked = []
    worker = Worker({"take": TAKE}, "ask", lambda it: asked.append(it) or Reply.YES, HERE)
    call = {"type": "function_call", "call_id": "c", "name": "take", "arguments": sent}

    outcome = worker.carry_out(call)

    assert outcome.output.startswith("take: bad arguments: ")
    assert said in outcome.output
    assert len(outcome.output.splitlines()) == 1
    assert outcome.ended.status == "failed"
    assert asked == []


@pytest.mark.parametrize(
    ("sent", "x"),
    [
        (nested(DEPTH), 63),
        ('{"x": "\\ud83d\\ude00"}', "😀"),
        ('{"x": "[{[{"}', "[{[{"),
        ('{"x": "\\"[\\\\"}', '"[\\'),
        ('{"x": {"a": 1, "b": {"a": 2}}}', {"a": 1, "b": {"a": 2}}),
        ('{"x": 123456789012345678901234567890}', 123456789012345678901234567890),
        ('{"x": [' + ",".join(["{}"] * 200_000) + "]}", 200_000),
    ],
    ids=range(7),
)
def test_what_means_one_thing_is_taken_as_it_is(sent, x):
    """Depth and brackets within texts, pairs of surrogates and many values are no fault."""
    bound = TAKE.bind(sent)["x"]

    depth, inside = 0, bound
    while isinstance(inside, list) and len(inside) <= 1:
        depth, inside = depth + 1, (inside or [None])[0]
    assert x in (bound, depth, len(bound) if isinstance(bound, list) else None)


def test_a_text_for_a_custom_tool_is_bounded_too():
    """It is taken as it is, up to the same size."""

    def shout(text: str) -> str:
        """Shout."""
        return text.upper()

    tool = tool_of(shout, custom=True)

    assert tool.bind('{"n": 1, "n": 2}') == {"text": '{"n": 1, "n": 2}'}
    with pytest.raises(BadArguments, match="shout: bad arguments: 1,048,577 bytes are too many"):
        tool.bind("x" * (BYTES + 1))
