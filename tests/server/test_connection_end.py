"""How turns fail and connections end, and that neither leaves anything behind."""

from __future__ import annotations

import asyncio
import json

import pytest

from ipy_agent.errors import ResponseFailed
from ipy_agent.protocol.response import Usage
from ipy_agent.server.engine import Finish, HangUp, TextPiece
from ipy_agent.server.scripted import ScriptedEngine


def test_a_binary_frame_closes_the_connection(connected):
    """Only text frames are spoken here."""

    async def main():
        async with connected(ScriptedEngine()) as client:
            client.say(b"{}")
            return await client.message()

    assert asyncio.run(main()) == {"type": "websocket.close", "code": 1003}


def test_a_client_that_leaves_stops_what_runs_for_it(connected, watched):
    """Every lane's generation is cancelled, and every seat given back after that."""

    async def forever(_):
        await asyncio.Event().wait()

    engine = watched(forever)

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
def test_an_engine_can_order_the_end_of_a_connection(connected, watched, order, end):
    """The connection ends with that code, or without a word, and every turn with it."""

    async def act(job):
        if job.fields.values.get("end"):
            raise order
        await asyncio.Event().wait()

    engine = watched(act)

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
def test_what_nobody_expected_ends_the_turn_and_not_the_connection(
    connected, watched, caplog, begun
):
    """A fault inside the engine is a failed turn for its client, and a trace in the log."""

    class Faulty(watched):
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


def test_a_refusal_of_the_engine_reaches_the_client_whole(connected, watched):
    """Status, code, parameter and waiting time are the engine's own."""

    async def act(_):
        raise ResponseFailed("wait", code="slow", status=429, param="p", retry_after=2)

    class Refusing(watched):
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


@pytest.mark.parametrize("busy", [False, True])
def test_a_connection_ends_when_it_is_old(connected, watched, busy):
    """In a turn or not, it hears why, is closed in order, and nothing runs on."""

    async def forever(_):
        await asyncio.Event().wait()

    engine = watched(forever)

    async def main():
        async with connected(engine, seconds=0.05) as client:
            if busy:
                client.ask("hi", stream_id="a")
            told = [await client.message()]
            while told[-1]["type"] == "websocket.send":
                told.append(await client.message())
            return told[-2:]

    said, end = asyncio.run(main())

    assert json.loads(said["text"]) == {
        "type": "error",
        "status": 400,
        "error": {
            "message": "this connection has reached its time limit: open another",
            "type": "invalid_request_error",
            "code": "websocket_connection_limit_reached",
        },
    }
    assert end == {"type": "websocket.close", "code": 1000}
    assert engine.running == 0
    assert engine.left == engine.stopped
