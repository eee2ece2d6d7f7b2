"""What LiteLLM's proxy forwards to: an endpoint that answers at once, `python upstream.py FOLDER`.

It reads of a frame what the user says, and says it again in the nine events that our server
tells of it. TLS, without which the proxy forwards nothing, by `cert.pem` and `key.pem` of the
folder. Prints its address.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
import sys
from pathlib import Path
from typing import Any

import msgspec
from websockets.asyncio.server import ServerConnection, serve

NUMBERS = itertools.count(1)


class Message(msgspec.Struct):
    """What the user says."""

    content: str


class Ask(msgspec.Struct):
    """A `response.create`, as far as an echo looks at it."""

    input: list[Message]


def events(number: int, said: str) -> list[dict[str, Any]]:
    """Return a turn that says one text."""
    message, place = f"msg_{number}", {"output_index": 0, "content_index": 0}
    none, part = ({"type": "output_text", "text": text, "annotations": []} for text in ("", said))
    item = {"id": message, "type": "message", "role": "assistant", "status": "completed"}
    begun = {**item, "status": "in_progress", "content": []}
    item |= {"content": [part]}
    response = {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": 1_000_000_000,
        "status": "in_progress",
        "model": "scripted",
        "output": [],
        "store": False,
    }
    usage = {
        "input_tokens": 9,
        "output_tokens": 9,
        "total_tokens": 18,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    done = {**response, "status": "completed", "output": [item], "usage": usage}
    return [
        {"type": "response.created", "response": response},
        {"type": "response.in_progress", "response": response},
        {"type": "response.output_item.added", "output_index": 0, "item": begun},
        {"type": "response.content_part.added", "item_id": message, **place, "part": none},
        {"type": "response.output_text.delta", "item_id": message, **place, "delta": said},
        {"type": "response.output_text.done", "item_id": message, **place, "text": said},
        {"type": "response.content_part.done", "item_id": message, **place, "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": done},
    ]


async def answer(socket: ServerConnection) -> None:
    """Answer one client until it goes."""
    decode, encode = msgspec.json.Decoder(Ask).decode, msgspec.json.Encoder().encode
    async for frame in socket:
        said = decode(frame).input[-1].content
        for at, event in enumerate(events(next(NUMBERS), said)):
            await socket.send(encode({**event, "sequence_number": at}), text=True)


async def main() -> None:
    """Listen until the process is ended."""
    folder = Path(sys.argv[1])
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    options = {"compression": None, "max_size": None, "ssl": tls}
    async with serve(answer, "127.0.0.1", 0, **options) as server:
        print(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
        await server.serve_forever()


asyncio.run(main())
