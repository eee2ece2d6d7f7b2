"""What breaks on purpose, and what helps to see it: parts of the tests of faults.

A proxy harms connections as it is told, an engine does what its prompts say, a loop never waits.
Nothing is left to chance here: who wants that draws lines by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import selectors
import socket
import struct
from dataclasses import dataclass

import msgspec
import pytest

from ipy_agent.background import Background
from ipy_agent.endpoints import Endpoint
from ipy_agent.protocol.items import text
from ipy_agent.protocol.script import Entry
from ipy_agent.server.scripted import ScriptedEngine
from ipy_agent.transport.clock import Clock

KEY_VARIABLE = "IPY_AGENT_TESTS_KEY"
SECONDS = 20
TOP_BIT = 0x80
"""Turned over in any byte of an ASCII text, it is neither ASCII nor UTF-8 any more."""


@dataclass(frozen=True)
class Fault:
    """What becomes of one way of a connection when so many bytes went along it."""

    do: str
    way: str = "down"
    after: int = 0


@dataclass(frozen=True)
class Line:
    """A connection: its faults, how late and in what pieces it carries, what it says instead."""

    faults: list = ()
    latency: float = 0.0
    piece: int = 2**16
    instead: tuple = ()


class FaultProxy:
    """A way over TCP from a client to a server, both on loopback.

    A connection is told by a dict: `faults`, a list of what happens, `latency` in seconds,
    `piece`, how many bytes travel together at most, and `instead`, pairs of bytes of which the
    server hears the second where its client says the first. A fault is what it does, which way
    ("up" to the server or "down"), and after how many bytes: `close` or `reset` ends the
    connection, a `blackhole` takes what comes and passes nothing on, `deaf` does not even take
    it, `duplicate` passes what comes next on twice, `corrupt` turns a bit of it over.

    Args:
        port: the server's.
        lines: how the connections are, in their order; those past the end are sound.
        clock: what sleeps while bytes are late.

    Attributes:
        lines: those to come.
        harms: whether faults that did not happen yet still do.
        happened: what the faults did that did, in their order.
        connections: how many there were.
    """

    def __init__(self, port, lines=(), clock=None):
        self.lines = list(lines)
        self.harms, self.silent = True, False
        self.happened = []
        self.connections = 0
        self._to = port
        self._clock = clock or Clock()
        self._open = set()
        self._thread = Background()
        self._server = self._thread.call(self._serve(), SECONDS)
        self.port = self._server.sockets[0].getsockname()[1]

    def endpoint(self, **more):
        """Return the server's endpoint as it is seen through here."""
        return Endpoint.named(f"http://127.0.0.1:{self.port}/v1", **more)

    def silence(self):
        """Pass nothing on any more, either way, of what is there or comes; from any thread."""
        self.silent = True

    def cut(self):
        """Reset all connections that there are."""
        self._thread.call(self._cut(), SECONDS)

    def stop(self):
        self._thread.call(self._stop(), SECONDS)
        self._thread.stop()

    async def _serve(self):
        return await asyncio.start_server(self._carry, "127.0.0.1", 0)

    async def _stop(self):
        self._server.close()
        await self._cut()

    async def _cut(self):
        carrying = list(self._open)
        for one in carrying:
            one.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)

    async def _carry(self, reader, writer):
        """Carry one connection until an end of it, or a fault, ends it."""
        task = asyncio.current_task()
        self._open.add(task)
        self.connections += 1
        line = Line(**(self.lines.pop(0) if self.lines else {}))
        end, far = "reset", None
        try:
            answer, far = await asyncio.open_connection("127.0.0.1", self._to)
            # The server lets in who calls it by its own name.
            names = (b"127.0.0.1:%d" % self.port, b"127.0.0.1:%d" % self._to)
            up = self._pump(line, "up", reader, far, (*line.instead, names))
            down = self._pump(line, "down", answer, writer, ())
            end = await _first(up, down)
        except (OSError, asyncio.CancelledError):
            pass  # the server is gone, or the connection was cut
        finally:
            _end(writer, end)
            if far is not None:
                _end(far, end)
            self._open.discard(task)

    async def _pump(self, line, way, reader, writer, instead):
        """Pass on what comes one way, until its end; return how the connection ends."""
        told = (Fault(*one) for one in line.faults)
        faults = sorted((one for one in told if one.way == way), key=lambda one: one.after)
        through = 0
        while data := await reader.read(2**16):
            if self.silent:
                continue
            for old, new in instead:
                data = data.replace(old, new)
            while self.harms and faults and faults[0].after - through < len(data):
                fault, before = faults.pop(0), through
                through = max(fault.after, before)
                await self._pass_on(data[: through - before], line, writer)
                data = data[through - before :]
                self.happened.append(fault.do)
                if fault.do in ("close", "reset"):
                    return fault.do
                if fault.do == "deaf":
                    await asyncio.Event().wait()
                if fault.do == "blackhole":
                    while await reader.read(2**16):
                        pass
                    return "close"
                data = _HARMED[fault.do](data)
            await self._pass_on(data, line, writer)
            through += len(data)
        return "close"

    async def _pass_on(self, data, line, writer):
        for at in range(0, len(data), line.piece):
            if line.latency:
                await self._clock.sleep(line.latency)
            writer.write(data[at : at + line.piece])
            await writer.drain()
            await asyncio.sleep(0)


_HARMED = {
    "duplicate": lambda data: data + data,
    "corrupt": lambda data: bytes([data[0] ^ TOP_BIT]) + data[1:],
}


async def _first(*coroutines):
    """Return what the first of them comes to; the others end with it."""
    tasks = [asyncio.create_task(one) for one in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return min(done, key=tasks.index).result()
    finally:
        for one in tasks:
            one.cancel()
        await asyncio.wait(tasks)


def _end(writer, how):
    if how == "reset":
        with contextlib.suppress(OSError):
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()


@pytest.fixture
def proxy():
    """Return a function that leads to a port through faults: an argument a connection."""
    started = []

    def start(port, *lines, clock=None):
        started.append(FaultProxy(port, lines, clock))
        return started[-1]

    yield start
    for one in started:
        one.stop()


class Obedient(ScriptedEngine):
    """An engine that does what the last prompt says, however often it is asked the same.

    A prompt is a name, and the calls that it wants, round by round: `n7 act,look act` means two
    calls, then one, then the name as the answer. Every call that was ever said has a `serial`
    of its own.

    Attributes:
        heard: the whole inputs that arrived, by the name of their last prompt.
        ends: what is to happen to a prompt's turns, in their order: members of a script's entry.
    """

    def __init__(self):
        super().__init__()
        self.heard = {}
        self.ends = {}
        self._serials = itertools.count(1)

    async def generate(self, job, seat):
        whole = list(job.input)
        at = max(i for i, item in enumerate(whole) if item.get("role") == "user")
        name, *rounds = text(whole[at]).split()
        self.heard.setdefault(name, []).append(whole)
        # An output for every call was checked by the server; a round is what came together.
        done, said = 0, len([one for one in whole[at:] if one["type"] == "function_call"])
        while said > 0:
            said -= len(rounds[done].split(","))
            done += 1
        told = {"text": name}
        if done < len(rounds):
            calls = enumerate(rounds[done].split(","))
            told = {"tool_calls": [self._call(tool, name, done, at) for at, tool in calls]}
        ends = self.ends.get(name) if job.generate else None
        told |= {"chunk_chars": 3} | (ends.pop(0) if ends else {})
        self._entries = iter([msgspec.convert(told, Entry)])
        async with contextlib.aclosing(super().generate(job, seat)) as pieces:
            async for piece in pieces:
                yield piece

    def _call(self, tool, name, done, at):
        told = {"name": name, "step": f"{done}.{at}", "serial": next(self._serials)}
        return {"name": tool, "arguments": told}


@pytest.fixture
def obedient():
    return Obedient()


class _Hasty(selectors.DefaultSelector):
    """Waits a moment for bytes, and for time not at all."""

    MOMENT = 0.005
    ahead = 0.0

    def select(self, timeout=None):
        if timeout is None or timeout <= self.MOMENT:
            return super().select(timeout)
        ready = super().select(self.MOMENT)
        if not ready:
            self.ahead += timeout
        return ready


class HastyLoop(asyncio.SelectorEventLoop):
    """A loop on which nothing takes long: where nothing happens, time goes on to what is next."""

    def __init__(self):
        self._hasty = _Hasty()
        super().__init__(self._hasty)

    def time(self):
        return super().time() + self._hasty.ahead


class Waits(Clock):
    """A clock whose sleeps are over at once, and kept; it is set forward by hand."""

    def __init__(self):
        self.slept = []
        self.ahead = 0.0

    def now(self):
        return super().now() + self.ahead

    def age(self):
        return super().age() + self.ahead

    async def sleep(self, seconds):
        self.slept.append(seconds)


class LoopClock(Clock):
    """A clock that tells its loop's time."""

    def now(self):
        return asyncio.get_running_loop().time()

    age = now


@pytest.fixture
def hastily():
    """Return a function that sees a coroutine through on a loop of which time is its own."""

    def run(coroutine):
        with asyncio.Runner(loop_factory=HastyLoop) as runner:
            return runner.run(coroutine)

    return run


@pytest.fixture
def waits():
    return Waits()


@pytest.fixture
def loop_clock():
    return LoopClock()
