"""Connections that ask without a pause: `python load.py URL CONNECTIONS SECONDS`, the key in `KEY`.

Each is a loop of conversations of 20 turns: only what is new is sent, behind instructions and
tools of 20 kB, encoded once. Prints a line of JSON: the turns that ended within the seconds
(those of a first second, to warm up, left out), how long that was, and the CPU time of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import time
from pathlib import Path

import msgspec
from websockets.asyncio.client import ClientConnection, connect

sys.path.insert(0, str(Path(__file__).parents[1] / "loops"))
from offer import INSTRUCTIONS, TOOLS

TURNS, WARM_UP = 20, 1.0


class Response(msgspec.Struct):
    """A response, as far as a loop looks at it."""

    id: str


class Event(msgspec.Struct):
    """Any event."""

    type: str
    response: Response | None = None


DECODE = msgspec.json.Decoder(Event).decode
ENCODE = msgspec.json.Encoder().encode
ASKED = {
    "type": "response.create",
    "model": "scripted",
    "store": False,
    "instructions": INSTRUCTIONS,
    "tools": TOOLS,
}


async def converse(socket: ClientConnection, name: int, ended: list[float]) -> None:
    """Ask on one connection without end, and note when each turn ended."""
    kept = ENCODE(ASKED)[:-1]
    before: str | None = None
    for turn in itertools.count():
        said = f"question {turn} of {name}: what stands in the row that comes behind this one?"
        new = {"input": [{"type": "message", "role": "user", "content": said}]}
        if turn % TURNS:
            new["previous_response_id"] = before
        await socket.send(kept + b"," + ENCODE(new)[1:], text=True)
        while True:
            event = DECODE(await socket.recv(decode=False))
            if event.type == "response.completed":
                break
            if event.type in {"error", "response.failed"}:
                raise RuntimeError(f"{event.type} in turn {turn} of {name}")
        before = event.response.id
        ended.append(time.perf_counter())


async def main(url: str, connections: int, seconds: float) -> None:
    """Let all of them ask for some time."""
    headers = {"Authorization": f"Bearer {os.environ['KEY']}"}
    options = {"compression": None, "max_size": None, "proxy": None, "additional_headers": headers}
    sockets = [await connect(url, **options) for _ in range(connections)]
    ended: list[float] = []
    asking = [
        asyncio.create_task(converse(socket, name, ended)) for name, socket in enumerate(sockets)
    ]
    await asyncio.wait(asking, timeout=WARM_UP, return_when=asyncio.FIRST_EXCEPTION)
    begin, busy = time.perf_counter(), time.process_time()
    print("begin", flush=True)
    await asyncio.wait(asking, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    end, busy = time.perf_counter(), time.process_time() - busy
    print("end", flush=True)
    for task in asking:
        if task.done():
            task.result()
        task.cancel()
    turns = sum(begin <= at <= end for at in ended)
    print(json.dumps({"turns": turns, "seconds": end - begin, "busy": busy}), flush=True)
    os._exit(0)


asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
