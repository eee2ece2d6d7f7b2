"""OpenAI's own client on a live connection to the embedded server: lanes, forks, refusals."""

from __future__ import annotations

import openai
import pytest
from openai.lib.responses_websocket import (
    AsyncResponsesWebSocketSession,
    ResponsesWebSocketAccumulator,
    ResponsesWebSocketError,
    ResponsesWebSocketLimits,
    ResponsesWebSocketSession,
)
from openai.types.responses import ResponseCompletedEvent, ResponseTextDeltaEvent
from websockets.exceptions import InvalidStatus

# The SDK opens its socket in a way that websockets 17.1 took leave of.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:connect\(\) must be used as a context manager:DeprecationWarning"
)

SECONDS = 20
MODEL = "scripted"
TERMINAL = {"response.completed", "response.failed", "response.incomplete", "error"}
LIMITS = ResponsesWebSocketLimits(
    max_lanes=8,
    max_events_per_lane=256,
    max_events=1024,
    max_bytes_per_lane=2**20,
    max_bytes=2**22,
)
SLOW = {"text": "word " * 40, "chunk_chars": 5, "delay_ms": 10}
CALL = {"tool_calls": [{"name": "add", "arguments": {"x": 1, "y": 2}}]}
ADD = {
    "type": "function",
    "name": "add",
    "parameters": {
        "type": "object",
        "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
    },
}


def until(connection, kind, lane=None):
    """Read until an event of a kind comes on a lane, and return all that came."""
    seen = []
    for event in connection:
        seen.append(event)
        if event.type == kind and getattr(event, "stream_id", None) == lane:
            return seen
    raise AssertionError(f"the connection closed without {kind}")


def answered(connection, lane=None, **asked):
    """Ask on a lane and return the terminal event."""
    if lane is not None:
        asked["stream_id"] = lane
    connection.response.create(model=MODEL, **asked)
    return next(
        event
        for event in connection
        if event.type in TERMINAL and getattr(event, "stream_id", None) == lane
    )


def told(event):
    """What an error frame says, as its reader would compare it."""
    return event.type, event.status, event.error.code, event.error.param


def test_two_lanes_are_answered_side_by_side(guest):
    """While one lane is in the middle of its answer another one gets the whole of its own."""
    slower = {**SLOW, "delay_ms": 50}  # than the SDK is with its first event, which imports much
    faster = {"text": "fast", "chunk_chars": 1, "delay_ms": 60}
    with guest([slower, faster]).responses.connect() as connection:
        connection.response.create(model=MODEL, input="a", stream_id="a")
        until(connection, "response.output_text.delta", "a")
        connection.response.create(model=MODEL, input="b", stream_id="b")
        meanwhile = until(connection, "response.completed", "b")
        assert [event.type for event in meanwhile].count("response.completed") == 1
        rest = until(connection, "response.completed", "a")

    assert meanwhile[-1].response.output_text == "fast"
    assert {event.stream_id for event in meanwhile} == {"a", "b"}
    assert rest[-1].response.output_text == SLOW["text"]
    for lane in "ab":
        own = [event for event in meanwhile + rest if event.stream_id == lane]
        numbers = [event.sequence_number for event in own]
        assert numbers == list(range(numbers[0], numbers[0] + len(own)))


def test_turns_on_one_lane_are_answered_in_order(guest):
    """Two requests sent at once on a lane: the second begins when the first is over."""
    with guest([SLOW, {"text": "second"}]).responses.connect() as connection:
        for asked in ("one", "two"):
            connection.response.create(model=MODEL, input=asked, stream_id="a")
        first = until(connection, "response.completed", "a")
        second = until(connection, "response.completed", "a")

    assert [event.type for event in first].count("response.created") == 1
    assert first[-1].response.output_text == SLOW["text"]
    assert second[-1].response.output_text == "second"
    assert second[0].type == "response.created"
    assert second[0].sequence_number == 0


def test_the_events_of_a_turn_are_those_that_the_sdk_knows(guest):
    """Each is parsed to its own class, in the documented order; without a lane, without a name."""
    script = [{"text": "Hello there", "chunk_chars": 6}]
    with guest(script).responses.connect() as connection:
        connection.response.create(model=MODEL, input="hi")
        events = until(connection, "response.completed")

    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.delta for event in events if isinstance(event, ResponseTextDeltaEvent)] == [
        "Hello ",
        "there",
    ]
    assert isinstance(events[-1], ResponseCompletedEvent)
    assert events[-1].response.usage.total_tokens == 3
    assert not any("stream_id" in event.to_dict() for event in events)


def test_a_fork_counts_what_its_parent_left_in_the_cache(guest):
    """A new lane continues another lane's response, and both lanes go on from there."""
    script = [{"text": "three"}, {"text": "five six"}, {"text": "eight"}]
    with guest(script).responses.connect() as connection:
        source = answered(connection, "main", input="one two", store=False).response
        fork = answered(
            connection, "fork", input="four", store=False, previous_response_id=source.id
        ).response
        on = answered(
            connection, "main", input="seven", store=False, previous_response_id=source.id
        ).response

    for response in (fork, on):
        assert response.previous_response_id == source.id
        assert response.usage.input_tokens == 4
        assert response.usage.input_tokens_details.cached_tokens == 3
    assert (fork.output_text, on.output_text) == ("five six", "eight")


def test_a_warm_up_says_nothing_and_can_be_continued(guest):
    """It has an id and no output; what it took in is cached for the turn that follows."""
    with guest([{"text": "warm"}]).responses.connect() as connection:
        before = answered(connection, input="one two three", generate=False).response
        after = answered(connection, input="four", previous_response_id=before.id).response

    assert before.status == "completed"
    assert before.output == []
    assert before.usage.output_tokens == 0
    assert after.output_text == "warm"
    assert after.usage.input_tokens_details.cached_tokens == 3


def test_a_tool_loop_on_a_connection(guest):
    """A call comes back as an item, its output alone continues, and the answer follows."""
    with guest([CALL, {"text": "3"}]).responses.connect() as connection:
        asked = answered(connection, input="1 + 2?", tools=[ADD]).response
        (call,) = asked.output
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "3"}
        end = answered(connection, input=[output], tools=[ADD], previous_response_id=asked.id)

    assert (call.type, call.name, call.arguments) == ("function_call", "add", '{"x":1,"y":2}')
    assert end.response.output_text == "3"


def test_a_call_that_stays_unanswered_is_refused(guest):
    """Its output is missing: the error names the call, and it can still be given."""
    with guest([CALL, {"text": "3"}]).responses.connect() as connection:
        asked = answered(connection, "a", input="1 + 2?", tools=[ADD]).response
        (call,) = asked.output
        refused = answered(connection, "b", input="well?", previous_response_id=asked.id)
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "3"}
        end = answered(connection, "a", input=[output], previous_response_id=asked.id)

    assert told(refused) == ("error", 400, "missing_tool_output", "input")
    assert call.call_id in refused.error.message
    assert end.response.output_text == "3"


def test_an_id_that_is_not_held_is_refused_and_the_connection_goes_on(guest):
    """The documented error, word for word; the same turn in full is then answered."""
    with guest([{"text": "whole"}]).responses.connect() as connection:
        refused = answered(connection, input="x", previous_response_id="resp_gone")
        again = answered(connection, input="x")

    assert told(refused) == ("error", 400, "previous_response_not_found", "previous_response_id")
    assert refused.error.message == "Previous response with id 'resp_gone' not found."
    assert again.response.output_text == "whole"


@pytest.mark.parametrize(("lane", "kept"), [("a", False), ("b", True)])
def test_a_failure_evicts_a_parent_on_its_own_lane_only(guest, lane, kept):
    """After a failed turn the lane's parent is gone; after a failed fork it is still there."""
    script = [{"text": "1"}, {"error": {"status": 500}}, {"text": "2"}]
    with guest(script).responses.connect() as connection:
        parent = answered(connection, "a", input="one", store=False).response.id
        failed = answered(connection, lane, input="x", store=False, previous_response_id=parent)
        after = answered(connection, "a", input="y", store=False, previous_response_id=parent)

    assert told(failed)[:3] == ("error", 500, "server_error")
    assert after.type == ("response.completed" if kept else "error")
    assert kept or told(after)[2] == "previous_response_not_found"


@pytest.mark.parametrize("name", ["", "two words", "ä", "x" * 257])
def test_a_name_that_no_lane_can_have_is_refused(guest, name):
    """The error frame says which field it is, and the connection goes on."""
    with guest([{"text": "on"}]).responses.connect() as connection:
        refused = answered(connection, name, input="x")
        after = answered(connection, input="x")

    assert told(refused) == ("error", 400, "invalid_stream_id", "stream_id")
    assert after.response.output_text == "on"


def test_the_thirty_third_name_is_one_too_many(guest):
    """32 named lanes in a connection's life; those that are there go on, and so does no name."""
    with guest().responses.connect() as connection:
        for number in range(32):
            assert answered(connection, f"lane-{number}", input="x").response.output_text == "x"
        refused = answered(connection, "lane-32", input="x")
        known = answered(connection, "lane-0", input="y")
        unnamed = answered(connection, input="z")

    assert told(refused) == ("error", 400, "websocket_stream_limit_reached", "stream_id")
    assert (known.response.output_text, unnamed.response.output_text) == ("y", "z")


def test_too_many_requests_come_with_the_time_to_wait(guest):
    """A 429 has its headers in the frame, since there are none around it."""
    limit = {"error": {"status": 429, "code": "rate_limit_exceeded", "retry_after": 7}}
    with guest([limit, {"text": "now"}]).responses.connect() as connection:
        refused = answered(connection, "a", input="x")
        after = answered(connection, "a", input="x")

    assert told(refused)[:3] == ("error", 429, "rate_limit_exceeded")
    assert refused.error.headers == {"Retry-After": "7"}
    assert after.response.output_text == "now"


def test_a_failure_in_the_middle_of_an_answer_is_the_responses_own(guest):
    """What has begun ends with `response.failed`, which holds what was said and why it ended."""
    script = [{"text": "half", "error": {"status": 500, "message": "it broke"}}]
    with guest(script).responses.connect() as connection:
        failed = answered(connection, input="x")

    assert failed.type == "response.failed"
    assert failed.response.status == "failed"
    assert failed.response.error.message == "it broke"


def test_a_connection_that_is_too_old_says_so_and_closes(guest):
    """The documented error comes on no lane, in the middle of an answer too; then it closes."""
    client = guest([{"text": "never done", "then": "hang"}], connection_limit=0.5)
    with client.responses.connect() as connection:
        connection.response.create(model=MODEL, input="x", stream_id="a")
        *_, last = connection

    assert told(last) == ("error", 400, "websocket_connection_limit_reached", None)
    assert getattr(last, "stream_id", None) is None


def test_who_steers_is_told_that_it_cannot_be_done(guest):
    """The answer is the API's own event, with what was asked; the response goes on unharmed."""
    with guest([SLOW]).responses.connect() as connection:
        connection.response.create(model=MODEL, input="x")
        (created,) = until(connection, "response.created")
        connection.response.steer(previous_response_id=created.response.id, input="left")
        events = until(connection, "response.completed")

    (failed,) = [event for event in events if event.type == "response.steer.failed"]
    assert failed.error.code == "steering_not_supported"
    assert failed.steer.previous_response_id == created.response.id
    assert events[-1].response.output_text == SLOW["text"]


@pytest.mark.parametrize("frame", ["{", "[]", '{"input": "x"}', '{"type": "response.cancel"}'])
def test_a_frame_that_cannot_be_understood_is_answered(guest, frame):
    """It gets an error frame with a status, and the connection goes on."""
    with guest([{"text": "on"}]).responses.connect() as connection:
        connection.send_raw(frame)
        refused = connection.recv()
        after = answered(connection, input="x")

    assert (refused.type, refused.status) == ("error", 400)
    assert after.response.output_text == "on"


def test_a_wrong_token_is_refused_at_the_door(guest):
    """The upgrade is answered with 401: there is no connection."""
    with (
        pytest.raises(InvalidStatus) as caught,
        guest(key="wrong").responses.connect(),
    ):
        pass
    assert caught.value.response.status_code == 401


def test_a_managed_session_keeps_its_lanes_apart(guest):
    """Each lane of the SDK's session collects its own response, read in any order."""
    client = guest([SLOW, {"text": "fast"}, {"text": "forked"}])
    ask = {"type": "response.create", "model": MODEL}
    with (
        client.responses.connect() as connection,
        ResponsesWebSocketSession(connection, limits=LIMITS) as session,
    ):
        one, two = session.lane("one"), session.lane("two")
        one.send({**ask, "input": "a b"})
        assert one.recv(timeout=SECONDS).type == "response.created"
        two.send({**ask, "input": "c"})
        fast = two.get_final_response(timeout=SECONDS)
        slow = one.get_final_response(timeout=SECONDS)
        two.send({**ask, "input": "d", "previous_response_id": slow.id})
        forked = two.get_final_response(timeout=SECONDS)

    assert (slow.output_text, fast.output_text) == (SLOW["text"], "fast")
    assert forked.output_text == "forked"
    assert forked.usage.input_tokens_details.cached_tokens == 42


def test_a_managed_session_raises_a_refusal_on_its_lane(guest):
    """The lane's error holds the frame; the lane is free for the next request."""
    client = guest([{"text": "whole"}])
    ask = {"type": "response.create", "model": MODEL, "input": "x"}
    with (
        client.responses.connect() as connection,
        ResponsesWebSocketSession(connection, limits=LIMITS) as session,
    ):
        lane = session.lane("one")
        lane.send({**ask, "previous_response_id": "resp_gone"})
        with pytest.raises(ResponsesWebSocketError) as caught:
            lane.get_final_response(timeout=SECONDS)
        lane.send(ask)
        after = lane.get_final_response(timeout=SECONDS)

    assert told(caught.value.event)[2] == "previous_response_not_found"
    assert after.output_text == "whole"


def test_the_accumulator_sees_a_response_grow(guest):
    """Its picture after each event is built from our deltas, and ends as the response does."""
    accumulator = ResponsesWebSocketAccumulator()
    seen = []
    script = [{"text": "three", "chunk_chars": 2, **CALL}]
    with guest(script).responses.connect() as connection:
        connection.response.create(model=MODEL, input="x", tools=[ADD], stream_id="a")
        for event in connection:
            accumulator.add_event(event)
            if event.type == "response.output_text.delta":
                seen.append(accumulator.snapshot().output_text)
            if event.type == "response.completed":
                break

    final = accumulator.get_final_response()
    assert seen == ["th", "thre", "three"]
    assert final.output_text == "three"
    assert [item.type for item in final.output] == ["message", "function_call"]
    assert accumulator.detailed_snapshot()["stream_id"] == "a"


def test_an_async_session_with_two_lanes(guest, run):
    """The async client and its session get the same answers."""
    client = guest([SLOW, {"text": "fast"}], kind=openai.AsyncOpenAI)
    ask = {"type": "response.create", "model": MODEL}

    async def both():
        async with (
            client,
            client.responses.connect() as connection,
            AsyncResponsesWebSocketSession(connection, limits=LIMITS) as session,
        ):
            one, two = session.lane("one"), session.lane("two")
            await one.send({**ask, "input": "a"})
            first = await one.recv()
            await two.send({**ask, "input": "b"})
            fast = await two.get_final_response()
            return first.type, await one.get_final_response(), fast

    first, slow, fast = run(both())
    assert first == "response.created"
    assert (slow.output_text, fast.output_text) == (SLOW["text"], "fast")


def test_a_server_that_keeps_the_latest_of_each_lane(guest):
    """As hosted services do: a lane's older id is gone, but for what was stored."""
    script = [{"text": text} for text in ("one", "two", "three", "four", "five")]
    with guest(script, cache="latest").responses.connect() as connection:
        ids = {}
        for store in (False, True):
            first = answered(connection, "a", input="x", store=store).response.id
            answered(connection, "a", input="y", store=store, previous_response_id=first)
            ids[store] = first
        gone = answered(connection, "a", input="z", previous_response_id=ids[False])
        stored = answered(connection, "a", input="z", previous_response_id=ids[True]).response

    assert told(gone)[2] == "previous_response_not_found"
    assert stored.output_text == "five"
    assert stored.usage.input_tokens == 3
    assert stored.usage.input_tokens_details.cached_tokens == 0


def test_a_source_lane_moves_on_once_its_fork_has_begun(guest):
    """Where only the latest is kept, `response.in_progress` on the fork is the time to go on."""
    client = guest([{"text": "one"}, SLOW, {"text": "two"}, {"text": "more"}], cache="latest")
    with client.responses.connect() as connection:
        source = answered(connection, "a", input="x", store=False).response.id
        connection.response.create(
            model=MODEL, input="fork", stream_id="b", store=False, previous_response_id=source
        )
        until(connection, "response.in_progress", "b")
        moved = answered(connection, "a", input="y", store=False, previous_response_id=source)
        fork = until(connection, "response.completed", "b")[-1].response
        more = answered(connection, "b", input="z", store=False, previous_response_id=fork.id)

    assert moved.response.output_text == "two"
    assert fork.output_text == SLOW["text"]
    assert more.response.usage.input_tokens == 2 + 1 + 40 + 1


def test_the_sdk_reconnects_and_goes_on_from_what_was_stored(guest):
    """A connection that the server breaks off takes its memory along, and no stored response."""
    client = guest([{"text": "one"}, {"text": "half", "then": "close:1012"}, {"text": "on"}])
    kept, codes = [], []

    def again(event):
        codes.append(event.close_code)
        connection.response.create(model=MODEL, input="w", previous_response_id=kept[1])

    with client.responses.connect(on_reconnecting=again, initial_delay=0.01) as connection:
        for store in (True, False):
            warm = answered(connection, input="x y", store=store, generate=False)
            kept.append(warm.response.id)
        answered(connection, input="x")
        connection.response.create(model=MODEL, input="z")
        gone = until(connection, "error")[-1]
        after = answered(connection, input="w", previous_response_id=kept[0])

    assert codes == [1012]
    assert told(gone)[2] == "previous_response_not_found"
    assert after.response.output_text == "on"
    assert after.response.usage.input_tokens == 3
