"""Whatever a client says is understood or refused, and never a surprise."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipy_agent.errors import ResponseFailed
from ipy_agent.protocol.requests import Request
from ipy_agent.server.frames import check_lane, open_calls, read

CALL = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "a", "output": "1"}


def test_a_create_is_read_with_its_lane():
    """A frame names its lane and asks for a response."""
    lane, ask = read('{"type":"response.create","stream_id":"a","input":"hi","stream":true}')

    assert lane == "a"
    assert isinstance(ask, Request)
    assert ask.input.length == 1


def test_null_input_is_an_empty_one():
    """A turn behind a warm-up needs no input of its own."""
    _, ask = read('{"type":"response.create","input":null,"previous_response_id":"r"}')

    assert ask.input.length == 0


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("", "invalid_event"),
        ("{", "invalid_event"),
        ("[]", "invalid_event"),
        ('"response.create"', "invalid_event"),
        ("null", "invalid_event"),
        ("{}", "invalid_event"),
        ('{"type":1}', "invalid_event"),
        ('{"type":"response.create","input":NaN}', "invalid_event"),
        ('{"type":"response.create","input":5}', "invalid_event"),
        ('{"type":"response.create","input":[5]}', "invalid_event"),
        ('{"type":"response.create","input":"\\ud800"}', "invalid_event"),
        ('{"type":"response.create","previous_response_id":5}', "invalid_event"),
        ('{"type":"response.create","generate":"no"}', "invalid_event"),
        ('{"type":"response.create","stream_id":5}', "invalid_stream_id"),
        ('{"type":"response.cancel"}', "unknown_event_type"),
        ('{"type":"response.create","input":' + "[" * 5000 + "]" * 5000 + "}", "invalid_event"),
    ],
)
def test_a_frame_that_cannot_be_taken_is_refused_with_a_code(frame, code):
    """Nothing that is wrong with a frame is more than a bad request."""
    _, refused = read(frame)

    assert isinstance(refused, ResponseFailed)
    assert (refused.status, refused.code) == (400, code)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
names = ("type", "input", "stream_id", "previous_response_id", "generate", "model")
frames = st.dictionaries(st.sampled_from(names), values | st.just("response.create"))


@given(st.text() | frames.map(json.dumps))
def test_no_frame_is_a_surprise(frame):
    """Any text at all is a request or a refusal."""
    lane, ask = read(frame)

    assert lane is None or isinstance(lane, str)
    assert isinstance(ask, Request | ResponseFailed)


@pytest.mark.parametrize("name", [None, "a", "A-1_b.c", "x" * 256])
def test_a_lane_may_be_named_so(name):
    """Letters, digits and three signs make a name, and the default lane has none."""
    check_lane(name)


@pytest.mark.parametrize("name", ["", "x" * 257, "a b", "ä", "a/b", "a\n"])
def test_a_lane_may_not_be_named_so(name):
    """Any other name is refused with the documented code."""
    with pytest.raises(ResponseFailed) as refused:
        check_lane(name)

    assert (refused.value.code, refused.value.param) == ("invalid_stream_id", "stream_id")


@pytest.mark.parametrize(
    ("before", "items", "left"),
    [
        ((), [], set()),
        ((), [CALL], {"a"}),
        ((), [CALL, OUTPUT], set()),
        (("a",), [OUTPUT], set()),
        (("a", "b"), [OUTPUT], {"b"}),
        (("a",), [{"type": "message"}, {}], {"a"}),
        ((), [{"type": "function_call", "call_id": ["odd"]}], {"['odd']"}),
    ],
)
def test_a_call_is_open_until_its_output_is_there(before, items, left):
    """What is still to be answered follows from what was open and what is new."""
    assert open_calls(frozenset(before), items) == left
