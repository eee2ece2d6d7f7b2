"""A server on a loopback port, and a connection without one."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field

import pytest
from websockets.asyncio.client import connect

from ipy_agent.protocol.response import Usage
from ipy_agent.server.connection import Connection
from ipy_agent.server.engine import Finish, TextPiece
from ipy_agent.server.process import Server, _listener
from ipy_agent.server.responses import Responses

TOKEN = "a-token-of-the-tests"
LAST = {"response.completed", "response.incomplete", "response.failed", "error"}


@dataclass
class Served:
    """A server that listens."""

    server: Server
    port: int

    @property
    def headers(self):
        return {"Authorization": f"Bearer {TOKEN}"}

    def connect(self, path="/v1/responses", **headers):
        url = f"ws://127.0.0.1:{self.port}{path}"
        return connect(url, additional_headers={**self.headers, **headers}, proxy=None)


@contextlib.asynccontextmanager
async def listening(engine, **options):
    """Run a server in this loop until the block ends."""
    listener = _listener(0)
    ready = asyncio.Event()
    server = Server(engine, listener, token=TOKEN, ready=ready.set, **options)
    running = asyncio.create_task(server.run_to_end())
    await ready.wait()
    try:
        yield Served(server, listener.getsockname()[1])
    finally:
        server.should_exit = True
        await running


@dataclass
class Client:
    """The other end of a `Connection`, in memory."""

    to_server: asyncio.Queue = field(default_factory=asyncio.Queue)
    to_client: asyncio.Queue = field(default_factory=asyncio.Queue)
    serving: asyncio.Task | None = None

    def say(self, frame):
        """Send a frame: a text as it is, bytes as a binary one, anything else as JSON."""
        kind = "bytes" if isinstance(frame, bytes) else "text"
        said = frame if isinstance(frame, str | bytes) else json.dumps(frame)
        self.to_server.put_nowait({"type": "websocket.receive", kind: said})

    def ask(self, said, **more):
        """Send a `response.create`."""
        self.say({"type": "response.create", "input": said, **more})

    def leave(self):
        self.to_server.put_nowait({"type": "websocket.disconnect", "code": 1006})

    async def message(self):
        """Return the next ASGI message."""
        return await asyncio.wait_for(self.to_client.get(), 20)

    async def event(self):
        """Return the next event."""
        return json.loads((await self.message())["text"])

    async def turn(self):
        """Return the events up to the next one that ends a turn."""
        events = [await self.event()]
        while events[-1]["type"] not in LAST:
            events.append(await self.event())
        return events

    async def answer(self, said, **more):
        """Ask, and return the last event."""
        self.ask(said, **more)
        return (await self.turn())[-1]


@contextlib.asynccontextmanager
async def connected(engine, **options):
    """Connect a client in memory until the block ends; it leaves unless it has been left.

    With a `Responses` in the engine's place several of them share its store.
    """
    responses = engine if isinstance(engine, Responses) else Responses(engine)
    client = Client()
    client.to_server.put_nowait({"type": "websocket.connect"})
    connection = Connection(responses, client.to_server.get, client.to_client.put, **options)
    client.serving = asyncio.create_task(connection.run())
    assert await client.message() == {"type": "websocket.accept"}
    try:
        yield client
    finally:
        client.leave()
        await asyncio.wait_for(client.serving, 20)


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


@pytest.fixture(name="listening")
def _listening():
    return listening


@pytest.fixture(name="connected")
def _connected():
    return connected


@pytest.fixture(name="watched")
def _watched():
    return Watched
