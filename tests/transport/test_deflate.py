"""Compressed frames: who is offered them, what they take, and what if a server breaks on them."""

from __future__ import annotations

import asyncio
import dataclasses
import random

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.extensions.permessage_deflate import (
    PerMessageDeflate,
    ServerPerMessageDeflateFactory,
)

from ipy_agent.endpoints import Endpoint, Limits
from ipy_agent.errors import MessageTooBig
from ipy_agent.protocol.events import TERMINAL
from ipy_agent.protocol.items import EMPTY, user
from ipy_agent.protocol.requests import Fields, Request
from ipy_agent.trace import RequestSent
from ipy_agent.transport.clock import Clock
from ipy_agent.transport.connection import MAX_FRAME
from ipy_agent.transport.recovery import Recovery
from ipy_agent.transport.websocket import WebSocketTransport

LETTERS = "abcdefghijklmnopqrstuvwxyz     "
FIELDS = Fields({"instructions": "".join(random.Random(1).choices(LETTERS, k=20_000))})
OFFER = "permessage-deflate"


class Far(Endpoint):
    """An endpoint that is taken for one on another machine."""

    loopback = False


class Waits(Clock):
    """A clock whose sleeps are over at once."""

    async def sleep(self, seconds):
        pass


class Counted(ServerConnection):
    """A connection that knows how many bytes came."""

    came = 0

    def data_received(self, data):
        self.came += len(data)
        super().data_received(data)


class Counting:
    """Serves with deflate, and keeps its connections."""

    def __init__(self):
        self.connections = []

    def __call__(self, *args, **options):
        self.connections.append(Counted(*args, **options))
        return self.connections[-1]


class Garbling(PerMessageDeflate):
    """Says what nobody can inflate."""

    def encode(self, frame):
        return dataclasses.replace(super().encode(frame), data=b"\xff" * 9)


class Factory(ServerPerMessageDeflateFactory):
    """Agrees to an extension that another class is."""

    def process_request_params(self, params, accepted_extensions):
        told, extension = super().process_request_params(params, accepted_extensions)
        extension.__class__ = Garbling
        return told, extension


def agreeing(said):
    """Return what has a server agree to compress, which does not know how to."""

    def answer(_connection, request, response):
        if "Sec-WebSocket-Extensions" in request.headers:
            response.headers["Sec-WebSocket-Extensions"] = said

    return answer


def completed(name):
    response = {"id": name, "status": "completed", "output": []}
    return {"type": "response.completed", "response": response}


def far(peer, limits=Limits()):  # noqa: B008 (it is frozen)
    return Far(name="far", url=peer.url, limits=limits)


def offers(peer):
    """Return what each connection was offered."""
    return [seen.headers.get("Sec-WebSocket-Extensions") for seen in peer.seen]


async def ask(transport, items=EMPTY, **more):
    """Take a turn, and return what was told of each of its tries."""
    request = Request(fields=FIELDS, input=items.extend([user("hi")]), **more)
    events = [event async for event in transport.stream(request)]
    assert isinstance(events[-2], TERMINAL)
    return [event for event in events if isinstance(event, RequestSent)]


@pytest.fixture(autouse=True)
def _direct(monkeypatch):
    """What is taken for far goes through no proxy all the same."""
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def asked(run):
    """Return a function that takes turns by one transport, and returns the tries of each."""

    def turns(endpoint, count=1):
        async def main():
            transport = Recovery(WebSocketTransport(endpoint), endpoint, clock=Waits())
            try:
                return [await ask(transport) for _ in range(count)]
            finally:
                await transport.aclose()

        return run(main())

    return turns


AGREES = {"compression": "deflate"}


@pytest.mark.parametrize(
    "options",
    [AGREES, {"extensions": [ServerPerMessageDeflateFactory()]}],
    ids=["by default", "with all of the window"],
)
def test_what_repeats_takes_almost_nothing(asked, peer, options):
    """The second turn's tools are found in the first one's, whatever window a server prefers."""
    other = peer([[completed("r1")], [completed("r2")]], **options)

    (first,), (second,) = asked(far(other), 2)
    assert offers(other) == [OFFER]
    assert [len(frame) for frame in other.seen[0].raw] == [first.sent_bytes, second.sent_bytes]
    assert second.sent_bytes > 20_000
    assert first.wire_bytes > second.sent_bytes / 4
    assert second.wire_bytes < second.sent_bytes / 100


def test_bytes_on_the_wire_are_those_that_came(asked, peer):
    """Compressed or not, they are what a request took on the socket: no more, no less."""
    for options in (AGREES, {}):
        counting = Counting()
        steps = [[("ping",), completed("r1")], [completed("r2")]]
        other = peer(steps, create_connection=counting, **options)

        tries = [sent for turn in asked(far(other), 2) for sent in turn]
        other.seen[0].close_code()
        pong, goodbye = 6 + 4, 6 + 2
        head = len("GET /v1/responses HTTP/1.1\r\n") + 2
        head += sum(len(f"{k}: {v}\r\n") for k, v in other.seen[0].headers.items())
        took = sum(sent.wire_bytes for sent in tries)
        assert counting.connections[0].came - head - pong - goodbye == took


def test_a_server_that_refuses_is_spoken_to_plainly(asked, peer):
    """It says nothing of what it was offered: the frames are whole, and the offer stands."""
    other = peer([[completed("r1")]])

    ((sent,),) = asked(far(other))
    assert offers(other) == [OFFER]
    assert sent.wire_bytes == sent.sent_bytes + 8  # a masked frame's head


def test_nothing_is_compressed_on_loopback(asked, peer):
    """Its way is short, and the time would be lost."""
    other = peer([[completed("r1")]], **AGREES)

    ((sent,),) = asked(other.endpoint())
    assert offers(other) == [None]
    assert sent.wire_bytes == sent.sent_bytes + 8


def test_a_row_may_say_that_its_endpoint_breaks(asked, peer):
    """It is not offered then."""
    other = peer([[completed("r1")]], **AGREES)

    asked(far(other, Limits(deflate=False)))
    assert offers(other) == [None]


BREAKING = {
    "cannot read it": ([], {"process_response": agreeing(OFFER)}),
    "1002": ([[("close", 1002)]], AGREES),
    "1007": ([[("close", 1007)]], AGREES),
    "1011": ([[("close", 1011)]], AGREES),
    "no goodbye": ([[("reset",)]], AGREES),
    "cannot say it": ([[completed("r1")]], {"extensions": [Factory()]}),
}


@pytest.mark.parametrize("name", BREAKING)
def test_a_server_that_breaks_on_it_is_asked_again_without(asked, peer, name):
    """One reconnect mends the turn, and no later connection is offered what does not work."""
    first, options = BREAKING[name]
    other = peer(first, [[completed("r1")], [completed("r2")]], **options)

    turns = asked(far(other), 2)
    assert [len(tries) for tries in turns] == [2, 1]
    assert offers(other) == [OFFER, None]


def test_a_server_that_broke_on_it_is_never_offered_it_again(asked, peer):
    """What was learnt holds for each connection that follows."""
    gone = [[completed("r1")], [("reset",)]]
    other = peer([[("close", 1002)]], gone, [[completed("r2")]], **AGREES)

    asked(far(other), 2)
    assert offers(other) == [OFFER, None, None]


BEGUN = {"type": "response.created", "response": {"id": "r1"}}
READ = [completed("r1")]


@pytest.mark.parametrize(
    "first",
    [[[BEGUN, ("reset",)]], [READ, [("reset",)]], [READ, [("close", 1011)]], [[("close", 1012)]]],
    ids=["in an answer", "after an answer", "after an answer, 1011", "leaving"],
)
def test_a_connection_that_is_lost_otherwise_teaches_nothing(asked, peer, first):
    """Its peer read what was compressed, or says that it is going: the next one is offered it."""
    other = peer(first, [[completed("r2")], [completed("r3")]], **AGREES)

    asked(far(other), 2)
    assert offers(other) == [OFFER, OFFER]


def test_what_was_given_up_teaches_nothing(run, peer):
    """A turn that is left before its first event says nothing of how frames are read."""
    other = peer([[]], [[completed("r1")]], **AGREES)

    async def main():
        transport = WebSocketTransport(far(other))
        stream = transport.stream(Request(fields=FIELDS, input=EMPTY.extend([user("hi")])))
        assert isinstance(await anext(stream), RequestSent)
        await stream.aclose()
        await ask(transport)
        await transport.aclose()

    run(main())
    assert offers(other) == [OFFER, OFFER]


def test_a_server_that_agrees_to_what_was_not_offered_is_asked_without(asked, peer):
    """No connection comes about by that; the next one is there before the turn's first try."""
    agrees = agreeing(f"{OFFER}; client_max_window_bits=10")
    other = peer([], [[completed("r1")]], process_response=agrees)

    ((sent,),) = asked(far(other))
    assert offers(other) == [OFFER, None]
    assert (sent.connection, sent.wire_bytes) == (1, sent.sent_bytes + 8)


def test_little_that_becomes_much_is_not_taken(run, peer):
    """A message is as large as it is when it was inflated, and has its limit then."""
    other = peer([[f'{{"type": "{"x" * MAX_FRAME}"}}']], **AGREES)

    async def main():
        transport = WebSocketTransport(far(other))
        try:
            await ask(transport)
        finally:
            await transport.aclose()

    with pytest.raises(MessageTooBig, match="sent a message of more than"):
        run(main())
    assert other.seen[0].close_code() == 1009


def test_requests_that_wait_for_their_socket_are_counted_apart(run, peer):
    """Two lanes write more than the socket takes at once: each is told its own bytes."""
    sizes = (24_000_000, 8_000_000)
    done = [{**completed(f"r{lane}"), "stream_id": f"b{lane}"} for lane in (0, 1)]
    other = peer([[], done])
    endpoint = dataclasses.replace(other.endpoint(), limits=Limits(lanes=32))

    async def main():
        transport = WebSocketTransport(endpoint)
        asking = (
            ask(transport, EMPTY.extend([user("x" * size)]), stream_id=f"b{lane}")
            for lane, size in enumerate(sizes)
        )
        tries = await asyncio.gather(*asking)
        await transport.aclose()
        return [sent for (sent,) in tries]

    tries = run(main())
    assert [sent.wire_bytes for sent in tries] == [sent.sent_bytes + 14 for sent in tries]
