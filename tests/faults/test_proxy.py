"""The proxy itself: each fault does what it says, and nothing else happens."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from ipy_agent.background import Background

SECONDS = 20


class Echo:
    """A server that says again what it hears, and keeps it."""

    def __init__(self):
        self.heard = b""
        self.began, self.ended = threading.Event(), threading.Event()
        self._thread = Background()
        self._server = self._thread.call(asyncio.start_server(self._answer, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]

    async def _answer(self, reader, writer):
        try:
            while data := await reader.read(2**16):
                self.heard += data
                self.began.set()
                writer.write(data)
        except OSError:
            pass
        finally:
            writer.close()
            self.ended.set()

    def stop(self):
        self._thread.loop.call_soon_threadsafe(self._server.close)
        self._thread.stop()


@pytest.fixture
def echo():
    """Return a server that says again what it hears."""
    made = Echo()
    yield made
    made.stop()


@pytest.fixture
def through(proxy, echo):
    """Return a function that connects through a line, and with it the proxy."""
    connected = []

    def connect(line, clock=None):
        way = proxy(echo.port, line, clock=clock)
        connected.append(socket.create_connection(("127.0.0.1", way.port), SECONDS))
        return connected[-1], way

    yield connect
    for one in connected:
        one.close()


def read(connection, size):
    """Return so many bytes, or those before the end."""
    found = b""
    while len(found) < size and (data := connection.recv(size - len(found))):
        found += data
    return found


def test_a_sound_line_changes_nothing(through, echo):
    """What one end says the other hears, both ways, and a goodbye too."""
    connection, way = through({})
    connection.sendall(b"0123456789" * 10_000)

    assert read(connection, 100_000) == b"0123456789" * 10_000
    connection.close()
    assert echo.ended.wait(SECONDS)
    assert (way.happened, way.connections) == ([], 1)


def test_a_line_may_be_late(through, waits):
    """Each piece sleeps first, each way, by the clock that was given."""
    connection, _ = through({"latency": 0.25}, waits)
    connection.sendall(b"late")

    assert read(connection, 4) == b"late"
    assert waits.slept == [0.25, 0.25]


def test_a_line_may_be_cut_into_pieces(through, waits):
    """Nothing is lost, and no piece is larger than it may be."""
    connection, _ = through({"piece": 3, "latency": 0.1}, waits)
    connection.sendall(b"0123456789")

    assert read(connection, 10) == b"0123456789"
    assert len(waits.slept) >= 8


def test_a_close_comes_after_so_many_bytes(through, echo):
    """The client hears exactly those, and then the end; so does the server."""
    connection, way = through({"faults": [("close", "down", 4)]})
    connection.sendall(b"0123456789")

    assert read(connection, 10) == b"0123"
    assert echo.ended.wait(SECONDS)
    assert way.happened == ["close"]


def test_a_close_may_come_on_the_way_up(through, echo):
    """The server hears exactly so many bytes."""
    connection, _ = through({"faults": [("close", "up", 4)]})
    connection.sendall(b"0123456789")

    assert echo.ended.wait(SECONDS)
    assert echo.heard == b"0123"
    assert len(read(connection, 10)) <= 4


def test_a_reset_is_no_goodbye(through, echo):
    """Both ends are told that the connection broke."""
    connection, way = through({"faults": [("reset", "up", 4)]})
    connection.sendall(b"0123456789")

    with pytest.raises(ConnectionResetError):
        read(connection, 10)
    assert echo.ended.wait(SECONDS)
    assert way.happened == ["reset"]


def test_a_blackhole_takes_and_passes_nothing_on(through, echo):
    """What the client says goes; nothing comes, and nothing ends."""
    connection, way = through({"faults": [("blackhole", "down", 2)]})
    connection.sendall(b"0123456789")
    assert read(connection, 2) == b"01"
    connection.sendall(b"abc" * 100_000)

    connection.settimeout(0.05)
    with pytest.raises(TimeoutError):
        connection.recv(1)
    connection.close()
    assert echo.ended.wait(SECONDS)
    assert len(echo.heard) == 300_010
    assert way.happened == ["blackhole"]


def test_a_deaf_line_does_not_even_take(through, echo):
    """Half open: who goes on writing is held up, and nobody says why."""
    connection, way = through({"faults": [("deaf", "up", 2)]})
    connection.settimeout(0.1)

    with pytest.raises(TimeoutError):
        connection.sendall(b"0123456789" * 10_000_000)
    assert echo.began.wait(SECONDS)
    assert echo.heard == b"01"
    assert way.happened == ["deaf"]


def test_what_comes_next_may_come_twice(through):
    """From there on all that came together, once more."""
    connection, _ = through({"faults": [("duplicate", "down", 4)]})
    connection.sendall(b"0123456789")

    assert read(connection, 16) == b"0123456789456789"


def test_a_bit_may_turn_over(through, echo):
    """That one, of that byte; of a text it makes what is none."""
    connection, _ = through({"faults": [("corrupt", "up", 4)]})
    connection.sendall(b"0123456789")

    assert read(connection, 10) == b"0123\xb456789"
    with pytest.raises(UnicodeError):
        echo.heard.decode()


def test_a_line_may_say_something_else(through, echo):
    """As a box between the two that knows better."""
    connection, _ = through({"instead": [(b"Upgrade", b"Degrade")]})
    connection.sendall(b"Upgrade: websocket")

    read(connection, 18)
    assert echo.heard == b"Degrade: websocket"


def test_a_proxy_may_stop_harming(through):
    """Faults that did not happen yet do not happen any more."""
    connection, way = through({"faults": [("reset", "down", 4)]})
    way.harms = False
    connection.sendall(b"0123456789")

    assert read(connection, 10) == b"0123456789"
    assert way.happened == []


def test_all_connections_may_be_cut(through, echo):
    """Also those on which nothing happens."""
    connection, way = through({})
    connection.sendall(b"0")
    assert read(connection, 1) == b"0"
    way.cut()

    with pytest.raises(ConnectionResetError):
        read(connection, 1)
    assert echo.ended.wait(SECONDS)
