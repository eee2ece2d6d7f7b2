"""A peer that is gone and did not say so: it is noticed, in time, whatever we were doing."""

from __future__ import annotations

import asyncio
import socket

import pytest
from websockets.asyncio.server import ServerConnection, serve

from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import ConnectionFailed, ConnectionLost, NoAnswer
from ipy_agent.protocol.items import EMPTY, user
from ipy_agent.protocol.requests import Fields, Request
from ipy_agent.transport.handshake import OPEN_SECONDS
from ipy_agent.transport.websocket import WebSocketTransport

NOTICED_SECONDS = 40.0
FIRST_SECONDS, IDLE_SECONDS = 60.0, 300.0
CREATED = '{"type": "response.created", "response": {"id": "resp_1"}}'
COMPLETED = '{"type": "response.completed", "response": {"id": "resp_1", "output": []}}'


def request(said="hi"):
    return Request(fields=Fields({"store": False}), input=EMPTY.extend([user(said)]))


class Counting(ServerConnection):
    """A server's connection that knows how much it took."""

    taken = 0

    def data_received(self, data):
        self.taken += len(data)
        super().data_received(data)


async def silence(play, clock, said="hi", **options):
    """Ask a server that plays, and return the error and how long after the last event it came."""
    heard = clock.now()
    silent = {"ping_interval": None, "max_size": None, "compression": None}
    silent["create_connection"] = Counting
    async with serve(play, "127.0.0.1", 0, **silent) as server:
        port = server.sockets[0].getsockname()[1]
        way = WebSocketTransport(
            Endpoint.named(f"http://127.0.0.1:{port}/v1"), clock=clock, **options
        )
        try:
            async for _ in way.stream(request(said)):
                heard = clock.now()
        except Exception as error:  # noqa: BLE001 (whatever it is)
            return error, clock.now() - heard
        finally:
            await way.aclose()
            for connection in server.connections:
                connection.transport.abort()
    return None, clock.now() - heard


async def _begins(connection):
    """Begin an answer, and be gone: nothing is read any more, nothing is said."""
    await connection.recv()
    await connection.send(CREATED)
    connection.transport.pause_reading()
    await connection.wait_closed()


async def _never_answers(connection):
    await connection.recv()
    connection.transport.pause_reading()
    await connection.wait_closed()


async def _never_reads(connection):
    connection.transport.pause_reading()
    await connection.wait_closed()


@pytest.mark.parametrize(
    ("play", "said"),
    [
        pytest.param(_begins, "hi", id="in an answer"),
        pytest.param(_never_answers, "hi", id="before an answer"),
        pytest.param(_never_reads, "x" * 15_000_000, id="while a request goes out"),
    ],
)
def test_a_peer_that_is_gone_is_noticed(hastily, loop_clock, play, said):
    """Within 40 seconds, as a connection that is lost: the turn is asked again elsewhere."""
    error, seconds = hastily(silence(play, loop_clock, said))

    assert isinstance(error, ConnectionLost)
    assert seconds <= NOTICED_SECONDS


async def _only_pongs(connection):
    await connection.recv()
    await connection.wait_closed()


async def _thinks(connection):
    await connection.recv()
    await connection.send(CREATED)
    await asyncio.sleep(4 * IDLE_SECONDS)
    await connection.send(COMPLETED)
    await connection.wait_closed()


async def _takes_its_time(connection):
    for _ in range(2):
        connection.transport.pause_reading()
        await asyncio.sleep(14)
        connection.transport.resume_reading()
        until = connection.taken + 3_000_000
        closing = connection.transport.is_closing
        while connection.taken < until and not closing():  # noqa: ASYNC110 (no bell rings)
            await asyncio.sleep(0)
    await connection.recv()
    await connection.send(COMPLETED)
    await connection.wait_closed()


def test_a_handshake_that_nobody_answers_ends(hastily, loop_clock):
    """After 15 seconds, as an address where nothing answers now."""

    async def main(port):
        way = WebSocketTransport(Endpoint.named(f"http://127.0.0.1:{port}/v1"), clock=loop_clock)
        began = loop_clock.now()
        with pytest.raises(ConnectionFailed) as raised:
            await anext(way.stream(request()))
        return raised.value, loop_clock.now() - began

    with socket.create_server(("127.0.0.1", 0)) as listens:
        error, seconds = hastily(main(listens.getsockname()[1]))

    assert error.transient
    assert OPEN_SECONDS <= seconds < OPEN_SECONDS + 1


def test_pongs_are_no_first_event(hastily, loop_clock):
    """A peer that is there and does not begin is waited for a minute, and no longer."""
    error, seconds = hastily(silence(_only_pongs, loop_clock))

    assert isinstance(error, NoAnswer)
    assert FIRST_SECONDS <= seconds < FIRST_SECONDS + 1


def test_pongs_are_signs_of_life_in_an_answer(hastily, loop_clock):
    """A model may think in silence for twenty minutes."""
    error, _ = hastily(silence(_thinks, loop_clock))

    assert error is None


def test_who_takes_little_by_little_is_not_gone(hastily, loop_clock):
    """A large request may need minutes on a slow way, if it moves at all."""
    error, _ = hastily(silence(_takes_its_time, loop_clock, "x" * 15_000_000))

    assert error is None
