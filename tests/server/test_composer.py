"""Pieces become events: the whole order, by hand."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipy_agent.errors import ResponseFailed
from ipy_agent.protocol.events import encode
from ipy_agent.protocol.response import Usage
from ipy_agent.server.composer import Composer, refusal
from ipy_agent.server.engine import CallPiece, Finish, TextPiece

USAGE = Usage.of(input_tokens=3, cached_tokens=1, output_tokens=2)


def told(composer, *pieces):
    """Return the frames for some pieces, the last of them a `Finish`."""
    events = [event for piece in pieces[:-1] for event in composer.take(piece)]
    return [json.loads(encode(event)) for event in events + composer.finish(pieces[-1])]


def kinds(frames):
    return [frame["type"].removeprefix("response.") for frame in frames]


def test_a_text_is_told_in_the_documented_order():
    """A text begins, grows and ends as the protocol's page lists it."""
    frames = told(Composer("x"), TextPiece("Hel"), TextPiece("lo"), Finish(usage=USAGE))

    assert kinds(frames) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [frame["sequence_number"] for frame in frames] == list(range(10))
    assert frames[2]["item"]["content"] == []
    assert frames[4] == {
        "type": "response.output_text.delta",
        "sequence_number": 4,
        "item_id": "msg_x_0",
        "output_index": 0,
        "content_index": 0,
        "delta": "Hel",
    }
    assert frames[6]["text"] == "Hello"
    assert frames[-1]["response"]["output"] == [frames[-2]["item"]]


def test_a_call_is_told_in_the_documented_order():
    """A function call is added without arguments, which then grow."""
    frames = told(Composer("x"), CallPiece('{"a"', name="f"), CallPiece(":1}"), Finish(usage=USAGE))

    assert kinds(frames) == [
        "created",
        "in_progress",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert frames[2]["item"]["arguments"] == ""
    assert frames[-1]["response"]["output"] == [
        {
            "id": "fc_x_0",
            "type": "function_call",
            "status": "completed",
            "call_id": "call_x_0",
            "name": "f",
            "arguments": '{"a":1}',
        }
    ]


def test_a_custom_call_is_told_in_the_documented_order():
    """Where the request says that a name is a custom tool's, its call has an input and no JSON."""
    frames = told(
        Composer("x", custom={"shell"}),
        CallPiece("ls", name="shell"),
        CallPiece(" -l"),
        CallPiece("{}", name="f"),
        Finish(usage=USAGE),
    )

    assert kinds(frames)[:7] == [
        "created",
        "in_progress",
        "output_item.added",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
    ]
    assert frames[2]["item"]["input"] == ""
    assert frames[4] == {
        "type": "response.custom_tool_call_input.delta",
        "sequence_number": 4,
        "item_id": "ctc_x_0",
        "output_index": 0,
        "delta": " -l",
    }
    assert frames[5]["input"] == "ls -l"
    custom, call = frames[-1]["response"]["output"]
    assert custom == {
        "id": "ctc_x_0",
        "type": "custom_tool_call",
        "status": "completed",
        "call_id": "call_x_0",
        "name": "shell",
        "input": "ls -l",
    }
    assert (call["id"], call["type"], call["arguments"]) == ("fc_x_1", "function_call", "{}")


def test_the_response_is_the_one_that_was_told_last():
    """Whoever stores it stores what the client heard."""
    composer = Composer("x", store=True)
    frames = told(composer, TextPiece("a"), Finish(usage=USAGE, timings={"prompt_ms": 7}))

    assert json.loads(msgspec.json.encode(composer.response)) == frames[-1]["response"]
    assert frames[-1]["response"]["store"] is True


def test_items_follow_one_another():
    """A call behind a text ends the text's item, and a text behind a call begins another."""
    frames = told(
        Composer("x"),
        TextPiece("a"),
        CallPiece(name="f"),
        CallPiece("{}", name="g"),
        TextPiece("b"),
        Finish(usage=USAGE),
    )

    added = [f["output_index"] for f in frames if f["type"].endswith("item.added")]
    done = [f["item"] for f in frames if f["type"].endswith("item.done")]
    assert added == [0, 1, 2, 3]
    assert [item["type"] for item in done] == [
        "message",
        "function_call",
        "function_call",
        "message",
    ]
    assert frames[-1]["response"]["output"] == done


def test_an_empty_piece_begins_the_response_and_no_item():
    """An engine that needs long can show that it has taken the job."""
    composer = Composer("x")

    begun = composer.take(TextPiece(""))

    assert [type(event).__name__ for event in begun] == ["ResponseCreated", "ResponseInProgress"]
    assert composer.take(TextPiece("")) == []
    assert kinds(told(composer, Finish(usage=USAGE))) == ["completed"]


def test_the_terminal_event_tells_usage_timings_and_what_it_is_about():
    """All that is known of a response is in its last event."""
    composer = Composer("x", model="m", created_at=5.0, previous_response_id="resp_0")
    (*_, last) = told(composer, Finish(usage=USAGE, timings={"prompt_ms": 7}))

    response = last["response"]
    assert response["usage"]["input_tokens_details"]["cached_tokens"] == 1
    assert response["usage"]["total_tokens"] == 5
    assert response["timings"] == {"prompt_ms": 7}
    assert response["object"] == "response"
    assert (response["model"], response["previous_response_id"]) == ("m", "resp_0")
    assert (response["id"], response["status"], response["output"]) == ("resp_x", "completed", [])


def test_an_incomplete_response_says_why_and_marks_its_last_item():
    """What was cut off is marked as such, so that nobody runs half a call."""
    frames = told(
        Composer("x"),
        TextPiece("a"),
        CallPiece('{"a', name="f"),
        Finish(usage=USAGE, incomplete="max_output_tokens"),
    )

    response = frames[-1]["response"]
    assert frames[-1]["type"] == "response.incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]


def test_a_lane_is_named_on_every_event():
    """Events of a named lane carry its name; those of the default lane carry none."""
    named = told(Composer("x", lane="a"), TextPiece("a"), Finish(usage=USAGE))
    unnamed = told(Composer("x"), TextPiece("a"), Finish(usage=USAGE))

    assert {frame["stream_id"] for frame in named} == {"a"}
    assert not any("stream_id" in frame for frame in unnamed)


def test_a_failure_before_the_first_piece_is_an_error_frame():
    """A turn that never began has the error frame as its only answer."""
    failure = ResponseFailed("wait", code="slow_down", status=429, param="p", retry_after=1.5)

    (event,) = Composer("x", lane="a").fail(failure)

    assert json.loads(encode(event)) == {
        "type": "error",
        "stream_id": "a",
        "status": 429,
        "error": {
            "message": "wait",
            "type": "rate_limit_error",
            "code": "slow_down",
            "param": "p",
            "headers": {"Retry-After": "1.5"},
        },
    }


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (500, "server_error"),
        (503, "server_error"),
        (None, "server_error"),
    ],
)
def test_an_error_frame_always_has_a_status(status, kind):
    """Clients overlook an error frame without a status."""
    error = refusal(ResponseFailed("no", status=status))

    assert (error.status, error.error.type) == (status or 500, kind)


def test_a_failure_after_the_first_piece_is_a_failed_response():
    """A turn that began ends with a terminal event, in sequence."""
    composer = Composer("x")
    begun = composer.take(TextPiece("a"))

    (event,) = composer.fail(ResponseFailed("no", code="broken", status=500))

    assert event.sequence_number == len(begun)
    assert event.response.status == "failed"
    assert event.response.error == {"code": "broken", "message": "no"}


def test_arguments_without_a_call_are_the_engines_mistake():
    """An engine has to begin a call before it gives arguments to it."""
    with pytest.raises(TypeError, match="did not begin"):
        Composer("x").take(CallPiece("{}"))


pieces = st.lists(
    st.builds(TextPiece, st.text(max_size=3))
    | st.builds(CallPiece, st.text(max_size=3), name=st.text(min_size=1, max_size=3))
)


@given(pieces)
def test_deltas_add_up_to_the_output(said):
    """Whatever is said, the deltas of an item join to what its last form holds."""
    frames = told(Composer("x"), *said, Finish(usage=USAGE))

    grown: dict[int, str] = {}
    for frame in frames:
        if frame["type"].endswith(".delta"):
            index = frame["output_index"]
            grown[index] = grown.get(index, "") + frame["delta"]
    output = frames[-1]["response"]["output"]
    assert [frame["sequence_number"] for frame in frames] == list(range(len(frames)))
    for index, item in enumerate(output):
        whole = item.get("arguments") if "call_id" in item else item["content"][0]["text"]
        assert whole == grown.get(index, "")
