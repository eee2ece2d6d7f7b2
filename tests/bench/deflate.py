"""What permessage-deflate costs and saves: `python tests/bench/deflate.py [ROUNDS]`.

A client asks turn by turn, 20 kB of instructions and tools each time and something new, of an
endpoint that thinks at once (`far.py`, a process of its own). It is a bare loop, and last this
package's transport, to which the endpoint is on another machine. Three tables, each with what is
compared run one after another in every round, medians of the rounds, and ratios to the first row
(of the package's own, to where it does not compress):

- what a turn costs the client's CPU, and the bytes of it both ways, by how it is compressed;
- the first token along a road of 50 ms, where a window of ten segments opens after each pause;
- the CPU of reading an answer of 100,000 small deltas.

The texts are docstrings of the standard library and tables of random numbers: they repeat
themselves as real ones do.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import random
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec
from far import PAUSE, RTT
from websockets.asyncio.client import connect
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.version import version

from ipy_agent.endpoints import Endpoint, Limits
from ipy_agent.protocol.events import ResponseCompleted, TextDelta
from ipy_agent.protocol.items import EMPTY
from ipy_agent.protocol.requests import Fields, Request
from ipy_agent.transport.websocket import WebSocketTransport

TOOLS_BYTES = 20_000
SIZES = (100, 1_000, 5_000, 15_000)
TURNS, FAR_TURNS, DELTAS = 60, 5, 100_000


class Way(NamedTuple):
    """How a client offers to compress, and to which of the ports of `far.py`.

    `limits` are those of this package's transport; without them the client is a bare loop.
    """

    port: str
    offer: ClientPerMessageDeflateFactory | None = None
    limits: Limits | None = None


class Far(Endpoint):
    """An endpoint that is taken for one on another machine."""

    loopback = False


def offer(bits: bool | int | None = None, *, forgets: bool = False, **settings: int) -> Any:
    """Return an offer; where nothing else is said it is what this package makes."""
    return ClientPerMessageDeflateFactory(
        client_max_window_bits=bits,
        client_no_context_takeover=forgets,
        compress_settings={"level": 4} | settings,
    )


OURS = "ipy_agent, off"
WAYS = {
    "off": Way("off"),
    "level 4, memLevel 8, 15 bits": Way("any", offer()),
    "level 1": Way("any", offer(level=1)),
    "level 6": Way("any", offer(level=6)),
    "level 9": Way("any", offer(level=9)),
    "memLevel 9": Way("any", offer(memLevel=9)),
    "memLevel 5": Way("any", offer(memLevel=5)),
    "14 bits": Way("any", offer(14)),
    "12 bits": Way("any", offer(12)),
    "the client forgets": Way("any", offer(forgets=True)),
    "the server forgets": Way("forgets", offer()),
    "a server's default, bits offered": Way("websockets", offer(True)),
    "a server's default, none offered": Way("websockets", offer()),
    "only the client compresses": Way("reads", offer()),
    OURS: Way("any", limits=Limits(lanes=0, deflate=False)),
    "ipy_agent": Way("any", limits=Limits(lanes=0)),
    "ipy_agent, a server's default": Way("websockets", limits=Limits(lanes=0)),
}
FAR_WAYS = (
    "off",
    "level 4, memLevel 8, 15 bits",
    "the client forgets",
    "a server's default, bits offered",
    "a server's default, none offered",
    "only the client compresses",
    OURS,
    "ipy_agent",
    "ipy_agent, a server's default",
)
READ_WAYS = ("off", "level 4, memLevel 8, 15 bits", "the server forgets", OURS, "ipy_agent")


class Event(msgspec.Struct):
    """Any event, as far as a loop looks at it."""

    type: str


@functools.cache
def kept() -> dict[str, Any]:
    """Return what every request has: tools, of `TOOLS_BYTES`."""
    functions = [
        (f"{module.__name__}.{name}", inspect.getdoc(value) or "")
        for module in (statistics, random, zlib, json, inspect, time)
        for name, value in sorted(vars(module).items())
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    tools: list[dict[str, Any]] = []
    fields = {"model": "m", "store": False, "tools": tools}
    for name, doc in functions:
        properties = {"data": {"type": "array", "items": {"type": "number"}}}
        schema = {"type": "object", "properties": properties, "required": ["data"]}
        tool = {"type": "function", "name": name, "description": doc, "parameters": schema}
        tools.append(tool)
        if len(msgspec.json.encode(fields)) > TOOLS_BYTES:
            return fields
    raise ValueError("the standard library says less than it used to")


def new(size: int, chance: random.Random) -> str:
    """Return a tool's output of a size: a table of numbers."""
    rows = (f"{n:4} {chance.gauss(40, 9):8.3f} {chance.choice('ABC')}\n" for n in range(size))
    text = ""
    while len(text) < size:
        text += next(rows)
    return text[:size]


@functools.cache
def outputs(size: int) -> list[dict[str, Any]]:
    """Return the items that turns add, one a turn."""
    chance = random.Random(size)
    item = {"type": "function_call_output"}
    return [{**item, "call_id": f"call_{n}", "output": new(size, chance)} for n in range(TURNS)]


async def answers(socket: Any) -> AsyncIterator[str]:
    """Yield the types of the events of an answer."""
    decode = msgspec.json.Decoder(Event).decode
    while True:
        event = decode(await socket.recv(decode=False))
        yield event.type
        if event.type == "response.completed":
            return


def connected(way: Way, port: int) -> connect:
    """Return a connection to a port."""
    return connect(
        f"ws://127.0.0.1:{port}",
        compression=None,
        extensions=None if way.offer is None else [way.offer],
        max_size=None,
        proxy=None,
    )


async def bare(way: Way, port: int, size: int, count: int, pause: float) -> AsyncIterator[float]:
    """Take turns, and yield the seconds to the first token of each."""
    begin = msgspec.json.encode({"type": "response.create", **kept()})
    async with connected(way, port) as socket:
        for number, item in enumerate(outputs(size)[:count]):
            rest = {"previous_response_id": f"resp_{number}", "input": [item]}
            await asyncio.sleep(pause)
            began, first = time.perf_counter(), None
            await socket.send(begin[:-1] + b"," + msgspec.json.encode(rest)[1:], text=True)
            async for kind in answers(socket):
                if first is None and kind.endswith(".delta"):
                    first = time.perf_counter() - began
            yield first or 0.0


async def ours(way: Way, port: int, size: int, count: int, pause: float) -> AsyncIterator[float]:
    """Do the same by this package's transport."""
    fields, items = Fields(kept()), EMPTY
    endpoint = Far(name="far", url=f"http://127.0.0.1:{port}", limits=way.limits or Limits())
    transport = WebSocketTransport(endpoint)
    for item in outputs(size)[:count]:
        items = items.extend([item])
        await asyncio.sleep(pause)
        began, first = time.perf_counter(), None
        async for event in transport.stream(Request(fields=fields, input=items)):
            if first is None and isinstance(event, TextDelta):
                first = time.perf_counter() - began
            if isinstance(event, ResponseCompleted):
                items = items.extend(event.response.output or [])
        yield first or 0.0
    await transport.aclose()


async def turns(way: Way, port: int, size: int, count: int, pause: float = 0) -> list[float]:
    """Take turns, and return the seconds to the first token of each but the first."""
    take = bare if way.limits is None else ours
    return [first async for first in take(way, port, size, count, pause)][1:]


async def deltas(way: Way, port: int) -> None:
    """Have an answer of many small deltas."""
    if way.limits is not None:
        transport = WebSocketTransport(
            Far(name="far", url=f"http://127.0.0.1:{port}", limits=way.limits)
        )
        async for _ in transport.stream(Request(fields=Fields({"deltas": DELTAS}), input=EMPTY)):
            pass
        await transport.aclose()
        return
    async with connected(way, port) as socket:
        await socket.send(json.dumps({"deltas": DELTAS}))
        async for _ in answers(socket):
            pass


@contextmanager
def endpoint() -> Iterator[tuple[IO[str], dict[str, list[int]]]]:
    """Start the endpoint, and yield what it tells, and its ports."""
    command = [sys.executable, str(Path(__file__).with_name("far.py"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout, json.loads(process.stdout.readline())
        finally:
            process.terminate()


def off(name: str) -> str:
    """Return what a way is compared with."""
    return OURS if name.startswith("ipy_agent") else "off"


def cost(told: IO[str], ports: dict[str, list[int]], rounds: int) -> None:
    """Print what a turn costs."""
    found: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    for _ in range(rounds):
        for size in SIZES:
            kept(), outputs(size)  # before the clock runs
            for name, way in WAYS.items():
                began = time.process_time()
                asyncio.run(turns(way, ports[way.port][0], size, TURNS))
                spent, went = time.process_time() - began, json.loads(told.readline())
                row = (spent * 1_000, went["up"], went["down"])
                found.setdefault((name, size), []).append(row)
    print(f"\n{TURNS} turns, {TOOLS_BYTES:,} bytes of tools: a turn's CPU, bytes up, bytes down")
    for size in SIZES:
        print(
            f"\n{f'new: {size:,} bytes':34}     CPU ms   × off        up   × off      down   × off"
        )
        medians = {
            name: [statistics.median(x) / TURNS for x in zip(*found[name, size], strict=True)]
            for name in WAYS
        }
        for name, row in medians.items():
            ratios = [x / y for x, y in zip(row, medians[off(name)], strict=True)]
            print(
                f"{name:34} {row[0]:10.2f} {ratios[0]:7.2f} {row[1]:10,.0f} {ratios[1]:7.3f}"
                f" {row[2]:10,.0f} {ratios[2]:7.3f}"
            )


def first_token(told: IO[str], ports: dict[str, list[int]], rounds: int) -> None:
    """Print how long the first token takes on a long road."""
    found: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for size in SIZES:
            for name in FAR_WAYS:
                way = WAYS[name]
                took = turns(way, ports[way.port][1], size, FAR_TURNS, pause=PAUSE * 1.2)
                found.setdefault((name, size), []).extend(asyncio.run(took))
                told.readline()
    print(f"\nfirst token in ms, {RTT * 1_000:.0f} ms there and back, ten segments after a pause")
    print(f"{'new bytes':34} " + "".join(f"{size:>9,}   × off" for size in SIZES))
    for name in FAR_WAYS:
        medians = [statistics.median(found[name, size]) * 1_000 for size in SIZES]
        bases = [statistics.median(found[off(name), size]) * 1_000 for size in SIZES]
        cells = (f"{x:9.0f} {x / y:7.2f}" for x, y in zip(medians, bases, strict=True))
        print(f"{name:34} " + "".join(cells))


def reading(told: IO[str], ports: dict[str, list[int]], rounds: int) -> None:
    """Print what small deltas cost to read."""
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for name in READ_WAYS:
            began = time.process_time()
            asyncio.run(deltas(WAYS[name], ports[WAYS[name].port][0]))
            spent = time.process_time() - began
            down = json.loads(told.readline())["down"]
            found.setdefault(name, []).append((spent, down))
    print(f"\n{f'{DELTAS:,} small deltas':34}      CPU s   × off       down   × off")
    medians = {
        name: [statistics.median(x) for x in zip(*rows, strict=True)]
        for name, rows in found.items()
    }
    for name, row in medians.items():
        ratios = [x / y for x, y in zip(row, medians[off(name)], strict=True)]
        print(f"{name:34} {row[0]:10.2f} {ratios[0]:7.2f} {row[1]:10,.0f} {ratios[1]:7.3f}")


def main(rounds: int) -> None:
    """Print all tables."""
    print(f"{rounds} rounds; websockets {version}, zlib {zlib.ZLIB_RUNTIME_VERSION}")
    with endpoint() as (told, ports):
        for table in (cost, first_token, reading):
            table(told, ports, rounds)


if __name__ == "__main__":
    main(int((sys.argv[1:] or ["2"])[0]))
