"""What a connection remembers, and what can be continued from."""

from __future__ import annotations

import asyncio

import pytest

from ipy_agent.server.memory import CACHES
from ipy_agent.server.responses import Responses
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
            told = [await client.answer("hi", store=False) for _ in range(2)]
            ids = [each["response"]["id"] for each in told]
            branch = (await client.answer("hi", stream_id="b", store=False))["response"]["id"]
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
            first = await client.answer("one two", store=False)
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
            parent = (await client.answer("hi", store=False))["response"]["id"]
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


def test_what_was_stored_outlives_its_connection(connected, watched):
    """Another connection goes on from it, with the engine's memory, and knows it to be cold."""
    engine = watched()
    responses = Responses(engine)

    async def main():
        async with connected(responses) as client:
            first = await client.answer("one")
        async with connected(responses) as client:
            second = await client.answer("two", previous_response_id=first["response"]["id"])
            await client.answer("three", previous_response_id=second["response"]["id"])

    asyncio.run(main())

    _, second, third = engine.jobs
    assert (second.held, second.memory, second.cold) == (1, 1, True)
    assert (third.held, third.memory, third.cold) == (2, 2, False)


def test_what_was_not_to_be_stored_ends_with_its_connection(connected):
    """With `store` false an id means nothing elsewhere, and the response says so."""
    responses = Responses(ScriptedEngine())

    async def main():
        async with connected(responses) as client:
            first = await client.answer("one", store=False)
        async with connected(responses) as client:
            return first, await client.answer("two", previous_response_id=first["response"]["id"])

    first, refused = asyncio.run(main())

    assert first["response"]["store"] is False
    assert refused["error"]["code"] == "previous_response_not_found"


@pytest.mark.parametrize("cache", ["off", "latest"])
def test_the_store_fills_in_for_a_connections_memory(connected, cache):
    """What the connection does not keep is taken from the store, and counts as not cached."""

    async def main():
        async with connected(ScriptedEngine(), cache=cache) as client:
            first = await client.answer("one")
            await client.answer("more")
            return await client.answer("two", previous_response_id=first["response"]["id"])

    answer = asyncio.run(main())

    assert answer["response"]["usage"]["input_tokens"] == 3
    assert cached(answer) == 0


def test_a_fork_counts_what_its_connection_holds_as_cached(connected):
    """Another lane of the same connection shares what is held."""

    async def main():
        async with connected(ScriptedEngine()) as client:
            first = await client.answer("one", store=False)
            parent = first["response"]["id"]
            return await client.answer("two", previous_response_id=parent, stream_id="b")

    assert cached(asyncio.run(main())) == 2


@pytest.mark.parametrize(("lane", "kept"), [("a", False), ("b", True)])
def test_a_failed_fork_keeps_the_shared_parent_of_the_latest(connected, lane, kept):
    """Also where only the latest of each lane is kept."""

    async def main():
        async with connected(ScriptedEngine([{"text": "a"}, ERROR]), cache="latest") as client:
            first = await client.answer("hi", stream_id="a", store=False)
            again = {"previous_response_id": first["response"]["id"], "store": False}
            assert (await client.answer("more", stream_id=lane, **again))["type"] == "error"
            return await client.answer("again", stream_id="a", **again)

    assert (asyncio.run(main())["type"] == "response.completed") is kept


def test_a_custom_call_has_to_be_answered_by_its_kind(connected):
    """Its output is a custom tool's, and with it the conversation goes on."""
    tools = {"tools": [{"type": "custom", "name": "f"}]}

    async def main(kind):
        async with connected(ScriptedEngine([CALL, {"text": "ok"}])) as client:
            first = (await client.answer("hi", **tools))["response"]
            call = first["output"][0]
            assert (call["type"], call["input"]) == ("custom_tool_call", '{"a":1}')
            said = [{"type": kind, "call_id": call["call_id"], "output": "1"}]
            return await client.answer(said, previous_response_id=first["id"], **tools)

    assert asyncio.run(main("custom_tool_call_output"))["type"] == "response.completed"
    refused = asyncio.run(main("function_call_output"))
    assert refused["error"]["code"] == "missing_tool_output"
