"""Much at once, and little by little: what is large comes whole, what is too large is told."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from ipy_agent.errors import MessageTooBig
from ipy_agent.protocol.events import ResponseCompleted, TextDelta
from ipy_agent.protocol.items import EMPTY, user
from ipy_agent.protocol.requests import Fields, Request
from ipy_agent.transport.handshake import MAX_FRAME
from ipy_agent.transport.livelane import MAX_RESPONSE
from ipy_agent.transport.websocket import WebSocketTransport

KEY_VARIABLE = "IPY_AGENT_TESTS_KEY"
SECONDS = 20
CREATED = {"type": "response.created", "response": {"id": "resp_1"}}
COMPLETED = {"type": "response.completed", "response": {"id": "resp_1", "output": []}}


def delta(said, number=0):
    return {"type": "response.output_text.delta", "delta": said, "sequence_number": number}


async def read(endpoint, pause=None):
    """Ask, read nothing behind the first event until a pause is over, then all of the answer."""
    request = Request(fields=Fields({"store": False}), input=EMPTY.extend([user("hi there")]))
    came, way = [], WebSocketTransport(endpoint)
    try:
        async with contextlib.aclosing(way.stream(request)) as stream:
            async for event in stream:
                came.append(event)
                if len(came) == 2 and pause is not None:
                    assert await asyncio.to_thread(pause, SECONDS)
    finally:
        await way.aclose()
    return came


def said(came):
    return [event.delta for event in came if isinstance(event, TextDelta)]


@pytest.mark.parametrize(
    "deltas",
    [
        pytest.param([delta("x" * 10_000_000)], id="10 MB at once"),
        pytest.param([delta("y", number) for number in range(1, 100_001)], id="100k tiny ones"),
    ],
)
def test_pings_are_answered_while_nobody_reads(run, peer, deltas):
    """The front end is slow: the connection stays, and all of the answer is there afterwards."""
    other = peer([[CREATED, *deltas, ("ping",), COMPLETED]])

    def ponged(seconds):
        return other.seen[0].ponged.wait(seconds)

    came = run(read(other.endpoint(), ponged))

    assert said(came) == [one["delta"] for one in deltas]
    assert isinstance(came[-2], ResponseCompleted)


def test_a_frame_may_have_16_mib(run, peer):
    """And not a byte more: then the limit is told."""
    room = MAX_FRAME - len(json.dumps(delta("")))
    largest, larger = ([CREATED, delta("x" * size), COMPLETED] for size in (room, room + 1))

    assert len(said(run(read(peer([largest]).endpoint())))[0]) == room
    with pytest.raises(MessageTooBig, match=f"{MAX_FRAME:,}"):
        run(read(peer([larger]).endpoint()))


def test_a_response_may_have_64_mib(run, peer):
    """However it is cut into frames; one that goes on is left."""
    mebibyte = [delta("x" * 2**20, number) for number in range(1, MAX_RESPONSE // 2**20 + 2)]
    other = peer([[CREATED, *mebibyte, COMPLETED]])

    with pytest.raises(MessageTooBig, match=f"{MAX_RESPONSE:,}"):
        run(read(other.endpoint()))
    assert other.seen[0].close_code() == 1000


def test_an_answer_may_come_byte_by_byte(run, served, proxy):
    """Any cut of the bytes gives the same answer."""
    direct = served()
    way = proxy(int(direct.url.rpartition(":")[2].partition("/")[0]), {"piece": 1})

    assert "".join(said(run(read(way.endpoint(key_env=KEY_VARIABLE))))) == "hi there"
