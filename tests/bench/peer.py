"""An endpoint with no time to think, which measures its client: `python peer.py PLAN`.

The plan is JSON: `runs`, a pair of turns and deltas each; `tail_ms`, a pause between the last
`output_item.done` and `completed`; `pace_ms`, a pause before each delta of a text; and `http`,
whether it is a POST that is answered. Each turn of a run but the last calls the tool `look`, the
last one is a text. All is encoded before the first answer and written at once, so that the time
from a turn's terminal event to the next request is the client's alone: no clock but ours is
trusted.

Prints its address, and, when its input ends, a line of JSON: for each run `gaps_ms`, the time
between a terminal event and the next request, and `bytes`, what each request's body had.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

SAMPLE = """\
## What stands in the rows

Row **7** holds `value`, and the rows below it hold the same: *nothing* changed since the log of
day 3 was read, but for a few words. The next one tells more.

- wind from the west, a calm sea and nine birds
- wind from the north, a rough sea and no birds

| day | wind | birds |
| --- | --- | --- |
| 1 | west | 9 |
| 2 | north | 0 |

"""
LETTERS = 5
BLOCK = 65_536
ECHOED = ("model", "instructions", "tools", "store", "parallel_tool_calls", "tool_choice")
EMPTY = {"created_at": 0, "error": None, "incomplete_details": None, "metadata": {}, "output": []}
ALWAYS = {"model": "scripted", "tools": [], "tool_choice": "auto", "parallel_tool_calls": True}
USAGE = {
    "input_tokens": 5_000,
    "input_tokens_details": {"cached_tokens": 4_900, "cache_write_tokens": 0},
    "output_tokens": 20,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 5_020,
}

Events = Iterator[dict[str, Any]]
Framing = Callable[[dict[str, Any]], bytes]


def call(number: int) -> Events:
    """Yield a tool call, from its first event to its last."""
    arguments = json.dumps({"at": f"row {number}"})
    item = {"type": "function_call", "id": f"fc_{number}", "call_id": f"call_{number}"}
    item |= {"name": "look", "arguments": "", "status": "in_progress"}
    place = {"item_id": item["id"], "output_index": 0}
    kind = "response.function_call_arguments"
    yield {"type": "response.output_item.added", "output_index": 0, "item": item}
    yield {"type": f"{kind}.delta", "delta": arguments, **place}
    yield {"type": f"{kind}.done", "arguments": arguments, "name": "look", **place}
    item = {**item, "arguments": arguments, "status": "completed"}
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}


def text(number: int, deltas: int) -> Events:
    """Yield a message of so many deltas, from its first event to its last."""
    said = (SAMPLE * (deltas * LETTERS // len(SAMPLE) + 1))[: deltas * LETTERS]
    item = {"type": "message", "id": f"msg_{number}", "role": "assistant", "content": []}
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    whole = {**part, "text": said}
    begun, done = {**item, "status": "in_progress"}, {**item, "status": "completed"}
    kind = "response.output_text"
    yield {"type": "response.output_item.added", "output_index": 0, "item": begun}
    yield {"type": "response.content_part.added", "part": part, **place}
    for at in range(0, len(said), LETTERS):
        yield {"type": f"{kind}.delta", "delta": said[at : at + LETTERS], "logprobs": [], **place}
    yield {"type": f"{kind}.done", "text": said, "logprobs": [], **place}
    yield {"type": "response.content_part.done", "part": whole, **place}
    item = {**done, "content": [whole]}
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}


def events(number: int, items: Events, echo: dict[str, Any]) -> Events:
    """Yield all events of a turn."""
    response = {"id": f"resp_{number}", "object": "response", "status": "in_progress", **echo}
    begin = [
        {"type": f"response.{kind}", "response": response} for kind in ("created", "in_progress")
    ]
    event: dict[str, Any] = {}
    for at, event in enumerate(itertools.chain(begin, items)):
        yield {**event, "sequence_number": at}
    done = {**response, "status": "completed", "output": [event["item"]], "usage": USAGE}
    yield {"type": "response.completed", "response": done, "sequence_number": at + 1}


def frame(event: dict[str, Any]) -> bytes:
    """Return an event as a WebSocket's frame."""
    return Frame(Opcode.TEXT, json.dumps(event).encode()).serialize(mask=False)


def chunk(event: dict[str, Any]) -> bytes:
    """Return an event as a chunk of an HTTP response; the last one ends it."""
    told = f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
    end = b"0\r\n\r\n" if event["type"] == "response.completed" else b""
    return b"%x\r\n%b\r\n%b" % (len(told), told, end)


class Turns:
    """The turns of a plan, and what was measured of the client that asks for them."""

    def __init__(self, plan: dict[str, Any], framing: Framing) -> None:
        self._plan = plan
        self._framing = framing
        self._prepared: Iterator[list[bytes]] | None = None
        self._asked = self._places()
        self._ended: float | None = None
        self.told: list[dict[str, list[float]]] = [
            {"gaps_ms": [], "bytes": []} for _ in plan["runs"]
        ]

    def _places(self) -> Iterator[tuple[int, int]]:
        for run, (turns, _) in enumerate(self._plan["runs"]):
            yield from ((run, turn) for turn in range(turns))

    def _encoded(self, echo: dict[str, Any]) -> Iterator[list[bytes]]:
        number = 0
        for turns, deltas in self._plan["runs"]:
            for turn in range(1, turns + 1):
                number += 1
                items = text(number, deltas) if turn == turns else call(number)
                yield [self._framing(event) for event in events(number, items, echo)]

    async def answer(self, body: bytes, writer: Any) -> None:
        """Take a request down, and answer it."""
        now = time.perf_counter()
        run, turn = next(self._asked)
        if turn and self._ended is not None:
            self.told[run]["gaps_ms"].append((now - self._ended) * 1_000)
        self.told[run]["bytes"].append(len(body))
        if self._prepared is None:  # before the first answer, where nobody measures
            asked = json.loads(body)
            echo = {**ALWAYS, **EMPTY, **{name: asked[name] for name in ECHOED if name in asked}}
            self._prepared = iter([*self._encoded(echo)])
        due = time.perf_counter()
        for block, pause in self._blocks(next(self._prepared)):
            await writer.drain()
            if pause:
                due += pause / 1_000
                await asyncio.sleep(due - time.perf_counter())
            self._ended = time.perf_counter()  # before: a write may wake the client at once
            writer.write(block)
        await writer.drain()

    def _blocks(self, frames: list[bytes]) -> Iterator[tuple[bytes, float]]:
        """Yield what is written at once, and how many milliseconds of pause are before it.

        Without pauses that is what a socket takes, and all of a turn that calls the tool.
        """
        tail, pace = self._plan["tail_ms"], self._plan["pace_ms"]
        if pace:
            yield from ((one, pace) for one in frames[:-1])
            yield frames[-1], tail
            return
        block = bytearray()
        for one in frames[:-1]:
            block += one
            if len(block) >= BLOCK:
                yield bytes(block), 0
                block.clear()
        if tail:
            yield bytes(block), 0
            block.clear()
        yield bytes(block) + frames[-1], tail


class Wire:
    """A WebSocket's stream, written to in whole frames."""

    def __init__(self, socket: ServerConnection) -> None:
        self.write = socket.transport.write
        self.drain = socket.drain


async def over_websocket(turns: Turns) -> int:
    """Listen for WebSockets, and return the port."""

    async def attend(socket: ServerConnection) -> None:
        wire = Wire(socket)
        with contextlib.suppress(ConnectionClosed):  # whoever fails tells it himself
            while True:
                await turns.answer(await socket.recv(decode=False), wire)

    server = await serve(attend, "127.0.0.1", 0, compression=None, max_size=None)
    return server.sockets[0].getsockname()[1]


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


async def over_http(turns: Turns) -> int:
    """Listen for POSTs on connections that are kept, and return the port."""

    async def attend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                size = int(head.partition(b"content-length:")[2].split()[0])
                body = await reader.readexactly(size)
                writer.write(HEAD)
                await turns.answer(body, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(attend, "127.0.0.1", 0)
    return server.sockets[0].getsockname()[1]


async def main(plan: dict[str, Any]) -> None:
    """Listen until the input ends, and tell what was measured."""
    listen, framing = (over_http, chunk) if plan["http"] else (over_websocket, frame)
    turns = Turns(plan, framing)
    print(f"http://127.0.0.1:{await listen(turns)}/v1", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    print(json.dumps(turns.told), flush=True)


asyncio.run(main(json.loads(sys.argv[1])))
