"""A connection in memory: its turns and its lanes."""

from __future__ import annotations

import asyncio

import pytest

from ipy_agent.server.connection import (
    MAX_IN_FLIGHT,
    MAX_NAMED_LANES,
    MAX_WAITING,
    MAX_WAITING_CHARS,
)
from ipy_agent.server.scripted import ScriptedEngine


def test_a_turn_is_answered_with_a_whole_response(connected):
    """A prompt comes back as events that end with the response."""

    async def main():
        async with connected(ScriptedEngine([{"text": "Hello there", "chunk_chars": 4}])) as client:
            client.ask("hi", model="m")
            return await client.turn()

    events = asyncio.run(main())

    deltas = [event["delta"] for event in events if event["type"].endswith("text.delta")]
    response = events[-1]["response"]
    assert "".join(deltas) == "Hello there"
    assert len(deltas) == 3
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert response["output"][0]["content"][0]["text"] == "Hello there"
    assert response["model"] == "m"
    assert response["created_at"] > 0


def test_turns_on_a_lane_are_answered_in_order(connected):
    """A second ask waits for the end of the first, whatever is wrong with it."""

    async def main():
        async with connected(ScriptedEngine([{"text": "a b c", "chunk_chars": 1}])) as client:
            client.ask("one")
            client.say("not JSON")
            client.ask("two")
            return [(await client.turn())[-1] for _ in range(3)]

    first, refused, third = asyncio.run(main())

    assert first["response"]["output"][0]["content"][0]["text"] == "a b c"
    assert refused["error"]["code"] == "invalid_event"
    assert third["response"]["output"][0]["content"][0]["text"] == "two"


def test_lanes_do_not_wait_for_one_another(connected):
    """While one lane hangs, another is answered, and each event names its lane."""

    async def main():
        script = [{"text": "never ends", "then": "hang"}, {"text": "ok"}]
        async with connected(ScriptedEngine(script)) as client:
            client.ask("one")
            while (await client.event())["type"] != "response.output_text.delta":
                pass
            client.ask("two", stream_id="b")
            return await client.turn()

    events = asyncio.run(main())

    assert {event["stream_id"] for event in events} == {"b"}
    assert events[-1]["type"] == "response.completed"


def test_each_lane_has_one_seat(connected, watched):
    """An engine meets the same object for each turn of a lane, and another for another lane."""
    engine = watched()

    async def main():
        async with connected(engine) as client:
            for lane in ("a", "b", "a"):
                await client.answer("hi", stream_id=lane)

    asyncio.run(main())

    first, second, third = engine.seats
    assert first is third
    assert first is not second
    assert set(engine.left) == {first, second}


def test_a_bounded_number_of_turns_runs_at_once(connected, watched):
    """More lanes than may run at once are all answered, and never more than that many run."""
    together = asyncio.Barrier(MAX_IN_FLIGHT)

    async def meet(_):
        await together.wait()

    engine = watched(meet)

    async def main():
        async with connected(engine) as client:
            for number in range(2 * MAX_IN_FLIGHT):
                client.ask("hi", stream_id=str(number))
            for _ in range(2 * MAX_IN_FLIGHT):
                await client.turn()

    asyncio.run(main())

    assert engine.peak == MAX_IN_FLIGHT


def test_a_connection_has_a_bounded_number_of_named_lanes(connected):
    """One named lane too many is refused; the others and the default lane go on."""

    async def main():
        async with connected(ScriptedEngine()) as client:
            await client.answer("the default lane does not count")
            for number in range(MAX_NAMED_LANES):
                answer = await client.answer("hi", stream_id=str(number))
                assert answer["type"] == "response.completed"
            refused = await client.answer("hi", stream_id="more")
            return refused, await client.answer("hi", stream_id="0"), await client.answer("hi")

    refused, known, default = asyncio.run(main())

    assert (refused["status"], refused["stream_id"]) == (400, "more")
    assert refused["error"]["code"] == "websocket_stream_limit_reached"
    assert refused["error"]["param"] == "stream_id"
    assert known["type"] == default["type"] == "response.completed"


def test_what_asks_for_nothing_takes_no_name(connected):
    """Frames that are refused as they stand leave all named lanes to those that ask."""

    async def main():
        async with connected(ScriptedEngine()) as client:
            for number in range(MAX_NAMED_LANES + 1):
                client.say({"type": "nonsense", "stream_id": f"n{number}"})
                refused = await client.event()
                assert refused["stream_id"] == f"n{number}"
            return await client.answer("hi", stream_id="real")

    assert asyncio.run(main())["type"] == "response.completed"


def test_a_lane_with_a_bad_name_is_refused_under_that_name(connected):
    """Whoever waits on the lane that it named hears why there is none."""

    async def main():
        async with connected(ScriptedEngine()) as client:
            return await client.answer("hi", stream_id="a b")

    refused = asyncio.run(main())

    assert (refused["status"], refused["stream_id"]) == (400, "a b")
    assert refused["error"]["code"] == "invalid_stream_id"
    assert refused["error"]["param"] == "stream_id"


@pytest.mark.parametrize("frame", ["", "[]", "{}", '{"type":"response.cancel"}', "[" * 9999])
def test_a_bad_frame_is_answered_and_closes_nothing(connected, frame):
    """The turn behind a bad frame is answered as if nothing had been."""

    async def main():
        async with connected(ScriptedEngine()) as client:
            client.say(frame)
            refused = await client.event()
            return refused, await client.answer("hi")

    refused, answer = asyncio.run(main())

    assert (refused["type"], refused["status"]) == ("error", 400)
    assert answer["type"] == "response.completed"


def test_a_bounded_number_of_asks_waits_on_a_lane(connected, watched):
    """One too many is refused in its turn, in the lane's name, with how long to wait."""
    go = asyncio.Event()

    async def wait(_):
        await go.wait()

    async def main():
        async with connected(watched(wait)) as client:
            client.ask("runs", stream_id="a")
            for _ in range(2):
                await client.event()
            for number in range(MAX_WAITING + 1):
                client.ask(str(number), stream_id="a")
            # The frames are read in order: when this one is answered, all of them wait.
            client.say({"type": "response.steer"})
            assert (await client.event())["type"] == "response.steer.failed"
            go.set()
            ends = [(await client.turn())[-1] for _ in range(MAX_WAITING + 2)]
            return ends, await client.answer("hi", stream_id="a")

    ends, after = asyncio.run(main())

    refused = ends.pop()
    assert {end["type"] for end in ends} == {"response.completed"}
    assert (refused["status"], refused["stream_id"]) == (429, "a")
    assert refused["error"]["code"] == "too_many_requests"
    assert refused["error"]["headers"] == {"Retry-After": "1"}
    assert after["type"] == "response.completed"


def test_what_waits_has_a_size_too(connected, watched):
    """Large asks are refused before their number is, over all lanes, and room comes back."""
    go = asyncio.Event()
    large = "x" * (MAX_WAITING_CHARS // 3)

    async def main():
        async with connected(watched(lambda _: go.wait())) as client:
            for lane in ("a", "b"):
                client.ask("runs", stream_id=lane)
                client.ask(large, stream_id=lane)
            client.ask(large, stream_id="b")
            client.say({"type": "response.steer"})
            while (await client.event())["type"] != "response.steer.failed":
                pass
            go.set()
            ends = []
            while len(ends) < 5:
                event = await client.event()
                ends += [event["type"]] if event["type"] in ("response.completed", "error") else []
            return ends, (await client.answer(large, stream_id="b"))["type"]

    ends, after = asyncio.run(main())

    assert sorted(ends) == ["error"] + ["response.completed"] * 4
    assert after == "response.completed"


def test_a_steer_is_answered_at_once(connected):
    """Also while the lane that it means is busy; the turn goes on."""

    async def main():
        async with connected(ScriptedEngine([{"text": "a", "then": "hang"}])) as client:
            client.ask("hi", stream_id="a")
            while (await client.event())["type"] != "response.output_text.delta":
                pass
            client.say({"type": "response.steer", "previous_response_id": "r", "input": "left"})
            return await client.event()

    assert asyncio.run(main()) == {
        "type": "response.steer.failed",
        "sequence_number": 0,
        "error": {
            "type": "invalid_request_error",
            "code": "steering_not_supported",
            "message": "a response cannot be steered here: ask anew",
        },
        "steer": {"previous_response_id": "r", "input": "left"},
    }
