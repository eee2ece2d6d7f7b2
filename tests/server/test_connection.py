"""A connection in memory: lanes, its memory of responses, and its end."""

from __future__ import annotations

import asyncio

import pytest

from ipy_agent.errors import ResponseFailed
from ipy_agent.protocol.events import Usage
from ipy_agent.server.connection import CACHES, MAX_IN_FLIGHT, MAX_NAMED_LANES
from ipy_agent.server.engine import Finish, HangUp, TextPiece
from ipy_agent.server.scripted import ScriptedEngine

CALL = {"tool_calls": [{"name": "f", "arguments": {"a": 1}}]}


def cached(event):
    return event["response"]["usage"]["input_tokens_details"]["cached_tokens"]


class Watched:
    """An engine of the tests: it notes who comes and goes, and does what it is told."""

    models = ("watched",)

    def __init__(self, act=None):
        self.act = act
        self.jobs = []
        self.seats = []
        self.left = []
        self.stopped = []
        self.running = self.peak = 0

    async def generate(self, job, seat):
        self.jobs.append(job)
        self.seats.append(seat)
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            yield TextPiece("")
            if self.act:
                await self.act(job)
            yield Finish(usage=Usage(), memory=len(self.jobs))
        except BaseException:
            self.stopped.append(seat)
            raise
        finally:
            self.running -= 1

    async def leave(self, seat):
        assert not self.running, "a seat is given back when nothing runs on it any more"
        self.left.append(seat)

    async def aclose(self):
        """Do nothing."""


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


def test_a_continuation_sends_only_what_is_new(connected):
    """With the last id, the engine gets the whole conversation and its own memory back."""
    engine = Watched()

    async def main():
        async with connected(engine) as client:
            first = await client.answer("one", instructions="same")
            await client.answer("two", previous_response_id=first["response"]["id"])

    asyncio.run(main())

    first, second = engine.jobs
    assert (first.held, first.memory) == (0, None)
    assert (second.held, second.memory) == (1, 1)
    assert [item["content"] for item in second.input] == ["one", "two"]


def test_an_unknown_previous_response_is_refused_as_documented(connected):
    """The client learns exactly what hosted services say, and the connection goes on."""

    async def main():
        async with connected(ScriptedEngine([{"text": "ok"}])) as client:
            refused = await client.answer("hi", previous_response_id="resp_gone")
            return refused, await client.answer("hi")

    refused, answer = asyncio.run(main())

    assert refused == {
        "type": "error",
        "status": 400,
        "error": {
            "message": "Previous response with id 'resp_gone' not found.",
            "type": "invalid_request_error",
            "code": "previous_response_not_found",
            "param": "previous_response_id",
        },
    }
    assert answer["type"] == "response.completed"


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


def test_each_lane_has_one_seat(connected):
    """An engine meets the same object for each turn of a lane, and another for another lane."""
    engine = Watched()

    async def main():
        async with connected(engine) as client:
            for lane in ("a", "b", "a"):
                await client.answer("hi", stream_id=lane)

    asyncio.run(main())

    first, second, third = engine.seats
    assert first is third
    assert first is not second
    assert set(engine.left) == {first, second}


def test_a_bounded_number_of_turns_runs_at_once(connected):
    """More lanes than may run at once are all answered, and never more than that many run."""
    together = asyncio.Barrier(MAX_IN_FLIGHT)

    async def meet(_):
        await together.wait()

    engine = Watched(meet)

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


def test_a_lane_with_a_bad_name_is_refused_under_that_name(connected):
    """Whoever waits on the lane that it named hears why there is none."""

    async def main():
        async with connected(ScriptedEngine()) as client:
            return await client.answer("hi", stream_id="a b")

    refused = asyncio.run(main())

    assert (refused["status"], refused["stream_id"]) == (400, "a b")
    assert refused["error"]["code"] == "invalid_stream_id"


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


def test_a_binary_frame_closes_the_connection(connected):
    """Only text frames are spoken here."""

    async def main():
        async with connected(ScriptedEngine()) as client:
            client.say(b"{}")
            return await client.message()

    assert asyncio.run(main()) == {"type": "websocket.close", "code": 1003}


@pytest.mark.parametrize(
    ("cache", "latest", "older", "other_lane"),
    [("off", False, False, False), ("latest", True, False, True), ("all", True, True, True)],
)
def test_what_can_be_continued_from(connected, cache, latest, older, other_lane):
    """Nothing, the latest response of each lane, or any: as the cache is set."""

    async def main():
        async with connected(ScriptedEngine(), cache=cache) as client:
            ids = [(await client.answer("hi"))["response"]["id"] for _ in range(2)]
            branch = (await client.answer("hi", stream_id="b"))["response"]["id"]
            # From a third lane, so that none of them becomes the latest of its own.
            return [
                (await client.answer("more", previous_response_id=known, stream_id="c"))["type"]
                == "response.completed"
                for known in (ids[1], ids[0], branch)
            ]

    assert asyncio.run(main()) == [latest, older, other_lane]


def test_every_cache_setting_is_tried_above():
    """A new setting has to say what can be continued from."""
    assert CACHES == ("off", "latest", "all")


def test_cached_tokens_are_what_the_connection_held(connected):
    """The words of all earlier turns, answers included, count as cached; none without a cache."""

    async def main(cache):
        script = [{"text": "a b c"}, {"text": "d"}]
        async with connected(ScriptedEngine(script), cache=cache) as client:
            first = await client.answer("one two")
            second = await client.answer("three", previous_response_id=first["response"]["id"])
        return first, second

    first, second = asyncio.run(main("all"))

    assert (cached(first), first["response"]["usage"]["input_tokens"]) == (0, 2)
    assert (cached(second), second["response"]["usage"]["input_tokens"]) == (5, 6)
    assert asyncio.run(main("off"))[1]["error"]["code"] == "previous_response_not_found"


ERROR = {"error": {"status": 500, "code": "broken"}}


@pytest.mark.parametrize(
    ("lane", "entry", "kept"),
    [
        (None, ERROR, False),
        (None, {"text": "half", **ERROR}, False),
        ("b", ERROR, True),
        ("b", {"text": "half", **ERROR}, True),
    ],
)
def test_a_failed_turn_evicts_its_parent_on_its_own_lane_only(connected, lane, entry, kept):
    """After a failure on its lane a response is gone; a failed fork leaves it where it is."""

    async def main():
        async with connected(ScriptedEngine([{"text": "a"}, entry])) as client:
            parent = (await client.answer("hi"))["response"]["id"]
            where = {"stream_id": lane} if lane else {}
            failed = await client.answer("more", previous_response_id=parent, **where)
            assert failed["type"] in ("error", "response.failed")
            return await client.answer("again", previous_response_id=parent)

    assert (asyncio.run(main())["type"] == "response.completed") is kept


def test_a_warm_up_says_nothing_and_can_be_continued_from(connected):
    """It has an id and no output, uses up no entry, and the next turn needs no input."""

    async def main():
        async with connected(ScriptedEngine([{"text": "ok"}])) as client:
            client.ask("hi there", generate=False)
            warm = await client.turn()
            parent = warm[-1]["response"]["id"]
            return warm, await client.answer(None, previous_response_id=parent)

    warm, answer = asyncio.run(main())

    assert [event["type"] for event in warm] == [
        "response.created",
        "response.in_progress",
        "response.completed",
    ]
    assert warm[-1]["response"]["output"] == []
    assert answer["response"]["output"][0]["content"][0]["text"] == "ok"
    assert cached(answer) == 2


def test_nothing_to_answer_is_refused(connected):
    """A new conversation begins with an input."""

    async def main():
        async with connected(ScriptedEngine()) as client:
            return await client.answer(None)

    assert asyncio.run(main())["error"]["code"] == "missing_input"


def test_a_call_has_to_be_answered(connected):
    """Outputs that are missing are named; with them the conversation goes on."""

    async def main(*, output):
        async with connected(ScriptedEngine([CALL, {"text": "ok"}])) as client:
            first = (await client.answer("hi"))["response"]
            call_id = first["output"][0]["call_id"]
            said = [{"type": "function_call_output", "call_id": call_id, "output": "1"}]
            more = said if output else "what now?"
            return call_id, await client.answer(more, previous_response_id=first["id"])

    call_id, refused = asyncio.run(main(output=False))
    _, answer = asyncio.run(main(output=True))

    assert (refused["status"], refused["error"]["param"]) == (400, "input")
    assert refused["error"]["message"] == f"No tool output found for function call {call_id}."
    assert answer["type"] == "response.completed"


def test_a_client_that_leaves_stops_what_runs_for_it(connected):
    """Every lane's generation is cancelled, and every seat given back after that."""

    async def forever(_):
        await asyncio.Event().wait()

    engine = Watched(forever)

    async def main():
        async with connected(engine) as client:
            for lane in ("a", "b"):
                client.ask("hi", stream_id=lane)
                await client.event()
            client.ask("never begun", stream_id="a")
            assert engine.running == 2

    asyncio.run(main())

    assert engine.running == 0
    assert len(engine.jobs) == 2
    assert set(engine.stopped) == set(engine.left) == set(engine.seats)


@pytest.mark.parametrize(
    ("order", "end"),
    [
        (HangUp(1011), {"type": "websocket.close", "code": 1011}),
        (HangUp(None), {"type": "websocket.reset"}),
    ],
)
def test_an_engine_can_order_the_end_of_a_connection(connected, order, end):
    """The connection ends with that code, or without a word, and every turn with it."""

    async def act(job):
        if job.fields.values.get("end"):
            raise order
        await asyncio.Event().wait()

    engine = Watched(act)

    async def main():
        async with connected(engine) as client:
            client.ask("hi", stream_id="a")
            client.ask("hi", end=True)
            while (message := await client.message())["type"] == "websocket.send":
                pass
            return message

    assert asyncio.run(main()) == end
    assert engine.running == 0
    assert len(engine.left) == 2


def test_the_end_that_a_failure_causes_comes_after_its_answer(connected):
    """A refusal from a hang-up is said first."""

    async def main():
        script = [{"error": {"status": 503, "code": "over"}, "then": "close:1012"}]
        async with connected(ScriptedEngine(script)) as client:
            refused = await client.answer("hi")
            return refused, await client.message()

    refused, end = asyncio.run(main())

    assert refused["error"]["code"] == "over"
    assert end == {"type": "websocket.close", "code": 1012}


@pytest.mark.parametrize("begun", [False, True])
def test_what_nobody_expected_ends_the_turn_and_not_the_connection(connected, caplog, begun):
    """A fault inside the engine is a failed turn for its client, and a trace in the log."""

    class Faulty(Watched):
        async def generate(self, job, seat):  # noqa: ARG002
            if len(self.jobs) == 0:
                self.jobs.append(job)
                if begun:
                    yield TextPiece("a")
                raise KeyError("odd")
            yield Finish(usage=Usage())

    async def main():
        async with connected(Faulty()) as client:
            return await client.answer("hi"), await client.answer("hi")

    failed, answer = asyncio.run(main())

    said = failed["response"]["error"] if begun else failed["error"]
    assert said["code"] == "server_error"
    assert "KeyError" in said["message"]
    assert answer["type"] == "response.completed"
    assert "a turn failed" in caplog.text


def test_a_refusal_of_the_engine_reaches_the_client_whole(connected):
    """Status, code, parameter and waiting time are the engine's own."""

    async def act(_):
        raise ResponseFailed("wait", code="slow", status=429, param="p", retry_after=2)

    class Refusing(Watched):
        async def generate(self, job, seat):
            async for piece in super().generate(job, seat):
                if isinstance(piece, Finish):
                    yield piece

    async def main():
        async with connected(Refusing(act)) as client:
            return await client.answer("hi")

    refused = asyncio.run(main())

    assert refused["status"] == 429
    assert refused["error"]["headers"] == {"Retry-After": "2"}
    assert (refused["error"]["code"], refused["error"]["param"]) == ("slow", "p")


def test_a_cancelled_connection_says_that_it_goes_away(connected):
    """Whoever cancels a connection is going away, and its client is told so."""

    async def main():
        async with connected(ScriptedEngine([{"text": "a", "then": "hang"}])) as client:
            client.ask("hi")
            await client.event()
            client.serving.cancel()
            while (message := await client.message())["type"] == "websocket.send":
                pass
            assert message == {"type": "websocket.close", "code": 1001}

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
