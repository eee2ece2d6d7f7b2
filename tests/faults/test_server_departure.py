"""A client that goes, in whatever way, frees what it had of a server within two seconds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import statistics
import struct
import time

import pytest

from ipy_agent.errors import ModelUnavailable
from ipy_agent.server import weights
from ipy_agent.server.engine import TextPiece
from ipy_agent.server.process import Server, _listener

TOKEN = "a-token-of-the-tests"
PROMISED = 2.0
ASK = {"input": "Count to a million.", "store": False, "max_output_tokens": 700}
UPGRADE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


class Freed:
    """An engine around another, which knows when a turn began and when its seat was free."""

    def __init__(self, engine):
        self.engine = engine
        self.models = engine.models
        self.begun = asyncio.Event()
        self.free = asyncio.Event()

    async def generate(self, job, seat):
        async with contextlib.aclosing(self.engine.generate(job, seat)) as pieces:
            async for piece in pieces:
                if getattr(piece, "text", ""):
                    self.begun.set()
                yield piece

    async def leave(self, seat):
        await self.engine.leave(seat)
        self.free.set()

    async def aclose(self):
        """Leave the engine to whoever made it."""


class Silent:
    """An engine that says one word and then nothing, or one word after another for ever."""

    models = ("silent",)

    def __init__(self, piece=""):
        self.piece = piece

    async def generate(self, job, seat):  # noqa: ARG002
        yield TextPiece("a")
        while self.piece:
            await asyncio.sleep(0)
            yield TextPiece(self.piece)
        await asyncio.Event().wait()

    async def leave(self, seat):
        """Do nothing."""


@contextlib.asynccontextmanager
async def listening(engine):
    listener = _listener(0)
    ready = asyncio.Event()
    server = Server(engine, listener, token=TOKEN, ready=ready.set)
    running = asyncio.create_task(server.run_to_end())
    await ready.wait()
    try:
        yield server, listener.getsockname()[1]
    finally:
        server.should_exit = True
        await running


def post(port, *, stream):
    body = json.dumps({**ASK, "stream": stream})
    more = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head(port, "POST", more) + body.encode()


def head(port, method, more):
    said = f"{method} /v1/responses HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    return f"{said}Authorization: Bearer {TOKEN}\r\n{more}\r\n".encode()


async def ask(way, port):
    """Return a socket on which a turn has been asked for."""
    loop = asyncio.get_running_loop()
    call = socket.socket()
    call.setblocking(False)
    await loop.sock_connect(call, ("127.0.0.1", port))
    if way != "websocket":
        await loop.sock_sendall(call, post(port, stream=way == "stream"))
        return call
    await loop.sock_sendall(call, head(port, "GET", UPGRADE))
    await loop.sock_recv(call, 4096)
    said = json.dumps({"type": "response.create", **ASK}).encode()
    frame = struct.pack("!BBH", 0x81, 0x80 | 126, len(said)) + bytes(4) + said
    await loop.sock_sendall(call, frame)
    return call


def close(call):
    call.close()


def reset(call):
    call.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    call.close()


def say_no_more(call):
    call.shutdown(socket.SHUT_WR)


def say_goodbye(call):
    call.sendall(struct.pack("!BBIH", 0x88, 0x82, 0, 1000))


GOING = [
    *((way, go) for way in ("websocket", "stream", "answer") for go in (close, reset, say_no_more)),
    ("websocket", say_goodbye),
]


async def seconds_to_free(engine, way, go, *, read=True):
    """Return how long it takes until the seat of a client that goes is free."""
    async with listening(Freed(engine)) as (server, port):
        freed = server._engine
        call = await ask(way, port)
        await asyncio.wait_for(freed.begun.wait(), 60)
        if read and way != "answer":
            await asyncio.get_running_loop().sock_recv(call, 4096)
        gone = time.monotonic()
        go(call)
        async with asyncio.timeout(PROMISED):
            await freed.free.wait()
        seconds = time.monotonic() - gone
        call.close()
        return seconds


@pytest.mark.parametrize("piece", ["", "word "], ids=["silent", "talking"])
def test_a_seat_is_free_within_two_seconds(figure, piece):
    """Closed, reset, half closed or with a farewell, while much is said or nothing."""
    seconds = [
        asyncio.run(seconds_to_free(Silent(piece), way, go, read=read))
        for way, go in GOING
        for read in (True, False)
    ]

    figure(
        f"free after {statistics.median(seconds) * 1e3:.1f} ms,"
        f" at most {max(seconds) * 1e3:.1f} ms, in {len(seconds)} ways to go"
    )


@pytest.mark.model
def test_a_models_slot_is_free_within_two_seconds(figure):
    """The same with a real model, in the middle of its words."""
    llama = pytest.importorskip("ipy_agent.server.llama", exc_type=ImportError)
    try:
        file = weights.path("smollm2-135m-instruct")
    except ModelUnavailable as missing:
        pytest.skip(str(missing))
    engine = llama.LlamaEngine(file, name="smol", slots=1, context=1024)
    try:
        seconds = [asyncio.run(seconds_to_free(engine, way, go)) for way, go in GOING]
    finally:
        asyncio.run(engine.aclose())

    figure(
        f"a KV slot is free after {statistics.median(seconds) * 1e3:.0f} ms,"
        f" at most {max(seconds) * 1e3:.0f} ms, in {len(seconds)} ways to go"
    )
