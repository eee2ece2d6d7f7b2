"""Frames become events and events frames, whatever else an endpoint puts into them."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipy_agent.protocol import events
from ipy_agent.protocol.events import (
    Error,
    Event,
    Other,
    ResponseCompleted,
    TextDelta,
    decode,
    encode,
)
from ipy_agent.protocol.response import Reason, Response, Usage

ITEM = {"id": "msg_1", "type": "message", "role": "assistant", "status": None, "content": []}
PART = {"type": "output_text", "text": "", "annotations": []}
WHERE = {"item_id": "msg_1", "output_index": 1}
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1.5,
    "status": "completed",
    "model": "m",
    "output": [ITEM],
    "usage": {
        "input_tokens": 5,
        "output_tokens": 2,
        "total_tokens": 7,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 1},
    },
    "error": {"code": "server_error", "message": "oh"},
    "incomplete_details": {"reason": "max_output_tokens"},
    "previous_response_id": "resp_0",
    "store": False,
    "timings": {"prompt_ms": 2.5},
}
FRAMES = {
    "response.created": {"response": RESPONSE},
    "response.in_progress": {"response": RESPONSE},
    "response.output_item.added": {"output_index": 0, "item": ITEM},
    "response.output_item.done": {"output_index": 0, "item": ITEM},
    "response.content_part.added": {**WHERE, "content_index": 2, "part": PART},
    "response.content_part.done": {**WHERE, "content_index": 2, "part": PART},
    "response.output_text.delta": {**WHERE, "content_index": 2, "delta": "a"},
    "response.output_text.done": {**WHERE, "content_index": 2, "text": "ab"},
    "response.reasoning_summary_text.delta": {**WHERE, "summary_index": 2, "delta": "a"},
    "response.function_call_arguments.delta": {**WHERE, "delta": "{"},
    "response.function_call_arguments.done": {**WHERE, "arguments": "{}"},
    "response.custom_tool_call_input.delta": {**WHERE, "delta": "SELECT"},
    "response.custom_tool_call_input.done": {**WHERE, "input": "SELECT 1"},
    "response.completed": {"response": RESPONSE},
    "response.failed": {"response": RESPONSE},
    "response.incomplete": {"response": RESPONSE},
    "error": {
        "status": 429,
        "error": {
            "type": "rate_limit_error",
            "code": "slow_down",
            "message": "later",
            "param": "input",
            "headers": {"Retry-After": "3"},
        },
    },
}
LEAST = {
    "response.completed": {"response": {"id": "resp_1", "output": []}},
    "response.output_text.delta": {"delta": "a"},
    "response.function_call_arguments.done": {"arguments": "{}"},
    "response.custom_tool_call_input.delta": {"delta": "SELECT"},
    "response.custom_tool_call_input.done": {"input": "SELECT 1"},
    "error": {},
}


def frame_of(kind, **members):
    return json.dumps({"type": kind, **members})


@pytest.mark.parametrize("kind", FRAMES)
def test_every_event_that_we_know_travels_unchanged(kind):
    """A frame with all that we have a use for is the same frame again behind a decode."""
    frame = {"type": kind, "sequence_number": 4, "stream_id": "lane", **FRAMES[kind]}
    event = decode(json.dumps(frame))

    assert not isinstance(event, Other)
    assert json.loads(encode(event)) == frame
    assert decode(encode(event)) == event
    assert decode(encode(event).decode()) == event


def test_the_frames_above_are_all_that_we_know():
    """An event that is added to the code has to be added to this test."""
    structs = [s for s in vars(events).values() if isinstance(s, type) and issubclass(s, Event)]
    tags = {struct.__struct_config__.tag for struct in structs} - {None}

    assert tags == set(FRAMES)


@pytest.mark.parametrize("kind", FRAMES)
@pytest.mark.parametrize("nobody", ["absent", "null"])
def test_the_default_lane_has_no_name(kind, nobody):
    """An endpoint without lanes leaves `stream_id` out, or says null: both name nothing."""
    lane = {} if nobody == "absent" else {"stream_id": None, "sequence_number": None}
    event = decode(frame_of(kind, **lane, **FRAMES[kind]))

    assert (event.stream_id or None) is None
    assert (event.sequence_number or None) is None


@pytest.mark.parametrize("kind", LEAST)
def test_the_least_that_an_endpoint_may_say_is_enough(kind):
    """Positions, usage and the rest may be missing."""
    assert not isinstance(decode(frame_of(kind, **LEAST[kind])), Other)


def test_a_response_may_say_null_for_what_it_does_not_know():
    """A terminal event is not lost over a null."""
    nothing = dict.fromkeys(RESPONSE, None) | {"id": "resp_1", "object": "response"}
    event = decode(frame_of("response.completed", response=nothing))

    assert event.response.id == "resp_1"
    assert event.response.output is None


@pytest.mark.parametrize("kind", FRAMES)
def test_fields_that_we_do_not_know_are_skipped(kind):
    """What an endpoint adds to an event that we know changes nothing."""
    members = FRAMES[kind]
    more = {"obfuscation": "x", "logprobs": [[1]], "tools": [{"a": {"b": []}}]}

    assert decode(frame_of(kind, **members, **more)) == decode(frame_of(kind, **members))


def test_fields_of_a_response_that_we_do_not_know_are_skipped():
    """The echo of instructions and tools is not kept."""
    echo = {**RESPONSE, "instructions": "long", "tools": [{"name": "f"}]}

    assert decode(frame_of("response.created", response=echo)).response == msgspec.convert(
        RESPONSE, Response
    )


def test_items_keep_what_we_do_not_know():
    """Items are echoed to the endpoint, so nothing of them may be lost."""
    item = {**ITEM, "encrypted_content": "…", "new": {"deep": [None, 1, 2.5, True, "é"]}}
    event = decode(frame_of("response.output_item.done", output_index=0, item=item))

    assert event.item == item


@pytest.mark.parametrize("lane", [None, "idea2"])
def test_a_type_that_we_do_not_know_passes_through_whole(lane):
    """It stays readable, goes to its lane and is encoded as it came."""
    frame = {"type": "codex.rate_limits", "limits": [1, {"a": None}]}
    if lane:
        frame["stream_id"] = lane
    event = decode(json.dumps(frame))

    assert isinstance(event, Other)
    assert event.type == "codex.rate_limits"
    assert event.frame == frame
    assert (event.stream_id or None) == lane
    assert json.loads(encode(event)) == frame


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "{",
        "not json",
        "[]",
        "null",
        '"response.completed"',
        "{}",
        '{"type":null}',
        '{"type":1}',
        '{"type":"keepalive"} {}',
        '{"type":"response.completed"}',
        '{"type":"response.completed","response":{"output":[]}}',
        '{"type":"response.completed","response":[]}',
        '{"type":"response.completed","response":{"id":"r","output":["text"]}}',
        '{"type":"response.output_text.delta"}',
        '{"type":"response.output_text.delta","delta":7}',
        '{"type":"response.output_item.done","output_index":0,"item":"text"}',
        '{"type":"error","error":"text"}',
        '{"type":"keepalive","value":NaN}',
        '{"type":"keepalive","value":"\\ud800"}',
        '{"type":"response.output_text.delta","delta":"\ud800"}',
        b'{"type":"response.output_text.delta","delta":"\xff"}',
        b'{"type":"keepalive","value":"\xff"}',
        b"\xff",
        '{"type":"keepalive","value":' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"type":"error","value":' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
    ids=lambda frame: repr(frame[:60]),
)
def test_what_is_no_event_is_a_decode_error(frame):
    """Nothing that a peer can send raises anything else, so one handler is enough."""
    with pytest.raises(msgspec.DecodeError):
        decode(frame)


@given(st.binary(max_size=40) | st.text(max_size=40))
def test_noise_is_a_decode_error(noise):
    """Random bytes and texts are no events, and say so in one way."""
    with pytest.raises(msgspec.DecodeError):
        decode(noise)


# errors


def test_an_error_tells_its_reason_nested_or_flat():
    """WebSocket frames nest the reason, server-sent events do not: both read alike."""
    told = {"code": "c", "message": "m", "param": "p"}
    nested, flat = (
        decode(frame_of("error", status=400, error=told)),
        decode(frame_of("error", **told)),
    )

    assert nested.reason == flat.reason == Reason(code="c", message="m", param="p")
    assert (nested.status, flat.status) == (400, None)


def test_an_error_without_a_reason_has_an_empty_one():
    """Nobody has to ask whether there is a reason before reading it."""
    assert decode(frame_of("error")).reason == Reason()
    assert decode(frame_of("error", error=None, message="m")).reason.message == "m"
    assert Error().reason.code is None


def test_a_code_may_be_a_number():
    """Some gateways put an HTTP status where the code belongs."""
    assert decode(frame_of("error", error={"code": 503})).reason.code == 503


# usage


def test_usage_tells_the_details_that_were_told():
    """A detail that an endpoint leaves out is `None`, and 0 is 0."""
    usage = Usage.of(input_tokens=9, cached_tokens=0, output_tokens=2)

    assert usage.total_tokens == 11
    assert usage.detail("cached_tokens") == 0
    assert usage.detail("cache_write_tokens") == 0
    assert usage.detail("reasoning_tokens") == 0
    assert usage.detail("audio_tokens") is None
    assert Usage(input_tokens=9).detail("cached_tokens") is None
    assert Usage(input_tokens_details={"cached_tokens": None}).detail("cached_tokens") is None


def test_what_was_not_told_is_not_encoded():
    """A frame of ours holds no nulls for what there is not."""
    event = ResponseCompleted(response=Response(id="r", usage=Usage(input_tokens=1)))

    assert json.loads(encode(event)) == {
        "type": "response.completed",
        "response": {"id": "r", "usage": {"input_tokens": 1}},
    }


def test_a_delta_always_says_where_it_belongs():
    """Clients read the position of a delta without asking whether it is there."""
    assert json.loads(encode(TextDelta(delta="a"))) == {
        "type": "response.output_text.delta",
        "delta": "a",
        "item_id": "",
        "output_index": 0,
        "content_index": 0,
    }
