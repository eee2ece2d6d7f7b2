"""A far endpoint, which thinks at once: `python tests/bench/far.py`.

It listens on some ports: in one way or another it agrees to permessage-deflate (`PORTS`), and each
may be reached directly or along a road of its own. A road takes `RTT` there and back, and after a
pause sends no more than ten segments until they were acknowledged, then twice as many: what Reno
and CUBIC do on their own (initcwnd, slow start after idle). BBR begins again with more.

Prints its ports as a line of JSON, and another line for each client that has gone: the bytes that
came `up` from it and went `down` to it. `deltas` in a request is how many its answer has.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.extensions.base import ServerExtensionFactory
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory

RTT = 0.05
SEGMENT, INITIAL = 1_460, 10
PAUSE = 0.1
"""After so many seconds a connection counts as idle. Linux waits at least twice as long, which
would make a turn longer and nothing else."""
WORDS = 20


class Reading(ServerPerMessageDeflateFactory):
    """Agrees, and does not compress: it reads what its client did."""

    def process_request_params(self, params: Any, accepted_extensions: Any) -> Any:
        told, extension = super().process_request_params(params, accepted_extensions)
        vars(extension)["encode"] = lambda frame: frame
        return told, extension


PORTS: dict[str, tuple[ServerExtensionFactory, ...]] = {
    "off": (),
    "any": (ServerPerMessageDeflateFactory(),),
    "reads": (Reading(),),
    "forgets": (ServerPerMessageDeflateFactory(server_no_context_takeover=True),),
    "websockets": (  # as `websockets` and uvicorn do without being told
        ServerPerMessageDeflateFactory(
            server_max_window_bits=12, client_max_window_bits=12, compress_settings={"memLevel": 5}
        ),
    ),
}


class Counted(ServerConnection):
    """A connection that counts what goes over it, its handshake too."""

    up = down = 0

    def data_received(self, data: bytes) -> None:
        self.up += len(data)
        super().data_received(data)

    def send_data(self) -> None:
        self.down += sum(map(len, self.protocol.writes))
        super().send_data()


def frames(number: int, asked: dict[str, Any]) -> list[str]:
    """Return the events of a turn; three of them repeat the tools, as OpenAI's do."""
    name = f"resp_{number}"
    echo = {key: asked.get(key) for key in ("model", "instructions", "tools", "store")}
    response = {"id": name, "object": "response", "status": "in_progress", "output": [], **echo}
    text = {"type": "output_text", "text": "word " * WORDS, "annotations": []}
    message = {"type": "message", "id": f"msg_{number}", "role": "assistant", "content": [text]}
    place = {"item_id": message["id"], "output_index": 0, "content_index": 0}
    delta = {"type": "response.output_text.delta", **place, "delta": "word ", "logprobs": []}
    usage = {"input_tokens": 5_000, "output_tokens": 20, "total_tokens": 5_020}
    done = {**response, "status": "completed", "output": [message], "usage": usage}
    told = [
        {"type": "response.created", "response": response},
        {"type": "response.in_progress", "response": response},
        {"type": "response.output_item.added", "output_index": 0, "item": message},
        *[delta] * asked.get("deltas", WORDS),
        {"type": "response.output_item.done", "output_index": 0, "item": message},
        {"type": "response.completed", "response": done},
    ]
    numbered = ({**event, "sequence_number": n} for n, event in enumerate(told))
    return [json.dumps(event, separators=(",", ":")) for event in numbered]


async def answer(socket: ServerConnection) -> None:
    """Answer one client, and tell what went over the connection when it has gone."""
    assert isinstance(socket, Counted)
    number = itertools.count(1)
    async for frame in socket:
        for part in frames(next(number), json.loads(frame)):
            await socket.send(part)
    await socket.wait_closed()
    print(json.dumps({"up": socket.up, "down": socket.down}), flush=True)


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry one direction of a connection: half of `RTT` late, and a window at a time."""
    loop = asyncio.get_running_loop()
    began = last = -PAUSE
    window = left = 0
    while data := await reader.read(2**16):
        if loop.time() - last > PAUSE:
            began, window = loop.time(), SEGMENT * INITIAL
            left = window
        while data:
            if not left:
                await asyncio.sleep(began + RTT - loop.time())
                window *= 2
            if loop.time() - began >= RTT:
                began, left = loop.time(), window
            loop.call_later(RTT / 2, writer.write, data[:left])
            data, left, last = data[left:], max(0, left - len(data)), loop.time()
    loop.call_later(RTT / 2, writer.close)


def road(port: int) -> Callable[..., Any]:
    """Return what carries a connection to a port, and back."""

    async def travel(near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        far, on = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(carry(near, on), carry(far, back))

    return travel


async def main() -> None:
    """Listen until the process is ended."""
    ports = {}
    for name, extensions in PORTS.items():
        server = await serve(
            answer,
            "127.0.0.1",
            0,
            create_connection=Counted,
            compression=None,
            extensions=extensions,
            max_size=None,
        )
        port = server.sockets[0].getsockname()[1]
        way = await asyncio.start_server(road(port), "127.0.0.1", 0)
        ports[name] = [port, way.sockets[0].getsockname()[1]]
    print(json.dumps(ports), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
