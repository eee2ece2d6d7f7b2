"""The same conversation over a WebSocket and over HTTP: one transcript, told two ways."""

from __future__ import annotations

import re

import pandas as pd
import pytest

import ipy_agent
from ipy_agent.errors import ResponseFailed

WAYS = ("websocket", "http")
SCRIPT = [
    {"text": "I shall add.", "tool_calls": [{"name": "add", "arguments": {"x": 1, "y": 2}}]},
    {"text": "It is 3.", "chunk_chars": 3},
    {"tool_calls": [{"name": "add", "arguments": {"x": 3, "y": 4}}, {"name": "nothing"}]},
    {"text": "7, and there is no such tool."},
    {"error": {"status": 500, "code": "broken", "message": "it broke"}},
    {"text": "half", "error": {"status": 500, "message": "it broke later"}},
    {"text": "On the branch."},
    {"text": "And on."},
]
NAMES = re.compile(r"\b(resp|msg|fc|call)_[0-9a-f]{24}")


@pytest.fixture
def held(served, new):
    """Return a function that holds the conversation over a transport and returns its session."""

    def hold(way, **settings):
        @ipy_agent.tool
        def add(x: int, y: int) -> int:
            """Add two numbers."""
            return x + y

        session = new(served(SCRIPT), transport=way, mode="auto", **settings)
        session.run("1 + 2?")
        session.fork("idea")
        session.run("And 4 more?")
        for _ in range(2):
            with pytest.raises(ResponseFailed, match="it broke"):
                session.run("Fail.")
        session.run("Elsewhere.", branch="idea")
        session.run("Still there?")
        return session

    return hold


def same_names(value, known):
    """Return a value with the server's own names replaced by the order in which they came."""
    if isinstance(value, dict):
        return {key: same_names(part, known) for key, part in value.items()}
    if isinstance(value, list):
        return [same_names(part, known) for part in value]
    if not isinstance(value, str):
        return value
    return NAMES.sub(lambda found: known.setdefault(found[0], f"{found[1]}-{len(known)}"), value)


def items(session, branch):
    """Return the conversation as it would be sent, with names that compare."""
    return same_names(session._branches.tree.said(branch).since(0), {})


@pytest.mark.parametrize("store", [False, True])
def test_both_ways_yield_the_same_items(held, store):
    """On the main line and on the branch: prompts, calls, outputs and answers, field by field."""
    websocket, http = (held(way, store=store) for way in WAYS)

    for branch in ("main", "idea"):
        assert items(websocket, branch) == items(http, branch)
    assert [item["type"] for item in items(http, "idea")] == [
        "message",
        "message",
        "function_call",
        "function_call_output",
        "message",
        "message",
        "message",
    ]


def test_both_ways_yield_the_same_messages(held):
    """The frame is the same row by row, but for the server's names of its calls."""
    frames = []
    for way in WAYS:
        frame, known = held(way).messages, {}
        frame["call_id"] = [
            name if name is pd.NA else same_names(name, known) for name in frame["call_id"]
        ]
        frames.append(frame.astype({"call_id": "string"}))

    pd.testing.assert_frame_equal(*frames)
    assert set(frames[0]["branch"]) == {"main", "idea"}


def test_both_ways_yield_the_same_tools(held):
    """What was called with what, and what came of it."""
    told = ["turn", "name", "arguments", "output", "approval", "status"]
    websocket, http = (held(way).tools[told] for way in WAYS)

    pd.testing.assert_frame_equal(websocket, http)
    assert list(websocket["name"]) == ["add", "add", "nothing"]


def test_the_turns_tell_the_ways_apart(held):
    """Status, branch and tokens are alike; the transport is named, and what it had to send."""
    websocket, http = (held(way).turns for way in WAYS)
    alike = ["turn", "cell", "branch", "model", "status", "input_tokens", "output_tokens"]

    pd.testing.assert_frame_equal(websocket[alike], http[alike])
    assert list(websocket["status"]) == ["completed"] * 4 + ["failed"] * 2 + ["completed"] * 2
    assert set(websocket["transport"]) == {"websocket"}
    assert set(http["transport"]) == {"http"}
    assert http["connection"].isna().all()
    assert (http["held_items"] == 0).all()
    assert websocket["held_items"].sum() > 0
    assert websocket["sent_bytes"].sum() < http["sent_bytes"].sum()
