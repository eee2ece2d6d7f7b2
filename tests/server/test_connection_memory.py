"""What a connection remembers, and what can be continued from."""

from __future__ import annotations

import asyncio

import pytest

from ipy_agent.server.connection import CACHES
from ipy_agent.server.scripted import ScriptedEngine

CALL = {"tool_calls": [{"name": "f", "arguments": {"a": 1}}]}


def cached(event):
    return event["response"]["usage"]["input_tokens_details"]["cached_tokens"]


def test_a_continuation_sends_only_what_is_new(connected, watched):
    """With the last id, the engine gets the whole conversation and its own memory back."""
    engine = watched()

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
