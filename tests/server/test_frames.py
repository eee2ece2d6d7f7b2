"""Whatever a client says is understood or refused, and never a surprise."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipy_agent.errors import ResponseFailed
from ipy_agent.protocol.events import Other
from ipy_agent.protocol.requests import Fields, Request
from ipy_agent.server.frames import (
    check_input,
    check_lane,
    custom_tools,
    from_user,
    open_calls,
    posted,
    read,
)

CALL = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "a", "output": "1"}
CUSTOM = {"type": "custom_tool_call", "call_id": "a", "name": "f", "input": "x"}
CUSTOM_OUTPUT = {"type": "custom_tool_call_output", "call_id": "a", "output": "1"}
A, B = ("function_call", "a"), ("function_call", "b")
CUSTOM_A = ("custom_tool_call", "a")


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


def frame(**said):
    return json.dumps({"type": "response.create", "input": "hi", **said})


def test_tools_that_come_again_are_not_decoded_again():
    """The same bytes are the same object; one letter more, and they are decoded anew."""
    known = {}
    first, second, other = (
        read(frame(tools=[{"name": name}], model=model), known)[1].fields.values
        for name, model in (("f", "a"), ("f", "b"), ("ff", "b"))
    )

    assert second["tools"] is first["tools"]
    assert second["model"] == "b"
    assert other["tools"] == [{"name": "ff"}]


def test_a_frame_without_tools_has_none():
    """What a frame before had does not carry over."""
    known = {}
    read(frame(tools=[{"name": "f"}], instructions="x"), known)

    assert read(frame(), known)[1].fields == Fields({})


def test_what_could_not_be_decoded_is_refused_again():
    """A failure leaves nothing known."""
    known = {}
    ill = '{"type":"response.create","tools":' + "[" * 5000 + "]" * 5000 + "}"

    assert [read(ill, known)[1].code for _ in range(2)] == ["invalid_event"] * 2


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
names = ("type", "input", "stream_id", "previous_response_id", "generate", "model", "tools")
kinds = st.sampled_from(["response.create", "response.steer"])
frames = st.dictionaries(st.sampled_from(names), values | kinds)


@given(st.lists(frames.map(json.dumps), max_size=4))
def test_what_is_known_changes_nothing(said):
    """Frames mean the same with and without those before them."""
    known = {}

    assert [repr(read(each, known)) for each in said] == [repr(read(each)) for each in said]


@given(st.text() | frames.map(json.dumps))
def test_no_frame_is_a_surprise(frame):
    """Any text at all is a request or a refusal."""
    lane, ask = read(frame)

    assert lane is None or isinstance(lane, str)
    assert isinstance(ask, Request | ResponseFailed | Other)


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
        ((), [CALL], {A}),
        ((), [CALL, OUTPUT], set()),
        ((), [CUSTOM], {CUSTOM_A}),
        ((), [CUSTOM, CUSTOM_OUTPUT], set()),
        ((), [CUSTOM, OUTPUT], {CUSTOM_A}),
        ((), [CALL, CUSTOM_OUTPUT], {A}),
        ((A,), [OUTPUT], set()),
        ((A, B), [OUTPUT], {B}),
        ((A,), [{"type": "message"}, {}], {A}),
        ((), [{"type": "function_call", "call_id": ["odd"]}], {("function_call", "['odd']")}),
    ],
)
def test_a_call_is_open_until_its_output_is_there(before, items, left):
    """What is still to be answered follows from what was open and what is new."""
    assert open_calls(frozenset(before), items) == left


def test_a_call_without_output_is_told_by_its_kind():
    """The refusal names each call, and what kind of call it is."""
    with pytest.raises(ResponseFailed) as refused:
        check_input(Request(fields=Fields({})), frozenset({A, CUSTOM_A}))

    said = "No tool output found for custom tool call a, function call a."
    assert (str(refused.value), refused.value.code) == (said, "missing_tool_output")
    assert refused.value.param == "input"


@pytest.mark.parametrize(
    ("tools", "names"),
    [
        (None, set()),
        ("odd", set()),
        ([5, None, {}, {"type": "function", "name": "f"}], set()),
        ([{"type": "custom", "name": "shell"}, {"type": "function", "name": "f"}], {"shell"}),
    ],
)
def test_custom_tools_are_told_by_the_request(tools, names):
    """Those of the type `custom` are, and tools of an odd shape are none."""
    assert custom_tools(Fields({"tools": tools})) == names


@pytest.mark.parametrize(
    ("item", "whether"),
    [
        ({"role": "user", "content": "hi"}, True),
        ({"type": "message", "role": "user", "content": "hi"}, True),
        ({"type": "message", "role": "assistant", "content": "hi"}, False),
        ({"type": "odd", "role": "user"}, False),
        ({}, False),
    ],
)
def test_who_said_a_message_is_told_by_its_role(item, whether):
    """A message need not say that it is one; anything else is nobody's message."""
    assert from_user(item) is whether


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ({"previous_response_id": "r", "input": "left"}, "steering_not_supported"),
        ({"previous_response_id": "r", "input": [{"role": "user"}]}, "steering_not_supported"),
        ({"previous_response_id": "r"}, "invalid_input"),
        ({"previous_response_id": "r", "input": []}, "invalid_input"),
        ({"previous_response_id": "r", "input": 5}, "invalid_input"),
        ({"input": "left"}, "invalid_input"),
        ({"previous_response_id": 5, "input": "left"}, "invalid_input"),
    ],
)
def test_a_steer_has_its_answer_at_once(frame, code):
    """Nothing can be steered here; what was to be said comes back, to be said anew."""
    lane, said = read(json.dumps({"type": "response.steer", **frame}))

    assert lane is None
    assert said.frame["type"] == "response.steer.failed"
    assert said.frame["sequence_number"] == 0
    assert said.frame["error"]["type"] == "invalid_request_error"
    assert said.frame["error"]["code"] == code
    assert said.frame["error"]["message"]
    assert said.frame["steer"] == {"previous_response_id": None, "input": None, **frame}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff", b'{"input":5}', b'{"input":NaN}', b"[" * 99_999],
)
def test_a_body_that_cannot_be_taken_is_a_bad_request(body):
    """Whatever is posted is a request or refused with a reason."""
    with pytest.raises(ResponseFailed, match="the body cannot be read") as refused:
        posted(body)

    assert (refused.value.status, refused.value.code) == (400, "invalid_json")


@pytest.mark.parametrize(
    ("stream", "streamed"), [("true", True), ("false", False), ("null", False), ('"no"', False)]
)
def test_a_body_says_whether_it_wants_a_stream(stream, streamed):
    """Only `true` asks for one; lanes and warm-ups are for WebSocket alone."""
    body = f'{{"input":"hi","stream":{stream},"stream_id":"a","generate":false}}'

    request, wanted = posted(body.encode())

    assert wanted is streamed
    assert (request.stream_id, request.generate) == (None, True)
