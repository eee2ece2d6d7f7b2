"""What is said in one go is written in one go, and no more is held than a peer may be owed."""

from __future__ import annotations

import asyncio
import json
import struct

from ipy_agent.server.scripted import ScriptedEngine
from ipy_agent.server.sockets import MAX_HELD, Patience, Strangers, protocols

TOKEN = "a-token-of-the-tests"
KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13"
HEAD = (
    "GET /v1/responses HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n"
    f"Upgrade: websocket\r\nConnection: Upgrade\r\n{KEY}\r\n\r\n"
)


class Wire(asyncio.Transport):
    """A transport in memory that notes each write; what is full asks to be written no more."""

    def __init__(self, served):
        super().__init__()
        config, state = served.server.config, served.server.server_state
        made = protocols(Patience(), Strangers())["ws"]
        self.protocol = made(config=config, server_state=state, app_state={})
        self.full = False
        self.written = []
        self.wrote = asyncio.Event()
        self.protocol.connection_made(self)
        self.protocol.data_received(HEAD.format(port=served.port, token=TOKEN).encode())

    def write(self, data):
        if data:
            self.written.append(bytes(data))
            self.wrote.set()
            if self.full:
                self.protocol.pause_writing()

    async def next_write(self):
        await asyncio.wait_for(self.wrote.wait(), 20)
        self.wrote.clear()
        return self.written[-1]

    def lose(self):
        """Be lost, as a connection is."""
        self.protocol.connection_lost(None)

    def get_write_buffer_size(self):
        return 0

    def set_write_buffer_limits(self, high=None, low=None):
        """Have none."""

    def is_closing(self):
        return False

    def pause_reading(self):
        """Do nothing: what is read is given."""

    def resume_reading(self):
        """Do nothing: nothing was paused."""

    def close(self):
        """Do nothing: nothing is open."""

    abort = close


def asked(**said):
    """Return a short frame of a client, masked with zeros."""
    payload = json.dumps({"type": "response.create", **said}).encode()
    return struct.pack("!BBI", 0x81, 0x80 | len(payload), 0) + payload


async def on_a_wire(listening, act):
    """Serve a script's end, which echoes, and act on a wire to it whose handshake is done."""
    async with listening(ScriptedEngine()) as served:
        wire = Wire(served)
        assert (await wire.next_write()).startswith(b"HTTP/1.1 101")
        wire.written.clear()
        try:
            return await act(wire)
        finally:
            wire.lose()


def test_a_short_turn_is_one_write(listening, run):
    """Nine events of an answer that comes at once are one call of the system, in order."""

    async def act(wire):
        wire.protocol.data_received(asked(input="hi"))
        await wire.next_write()
        return wire.written

    (only,) = run(on_a_wire(listening, act))
    assert only.count(b'"type":"response.') == 9
    assert only.index(b'"response.created"') < only.index(b'"response.completed"')


def test_a_peer_that_takes_nothing_is_written_no_more(listening, run):
    """Of four thousand refusals said in one go, no more is held than the limit."""

    async def act(wire):
        wire.full = True
        wire.protocol.data_received(asked(input=5) * 4_000)
        await wire.next_write()
        for _ in range(1_000):
            await asyncio.sleep(0)
        return wire.written

    (only,) = run(on_a_wire(listening, act))
    assert MAX_HELD < len(only) < 2 * MAX_HELD
