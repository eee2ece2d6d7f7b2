"""The least that a loop can do: `websockets`, msgspec, and what does not change encoded once."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from offer import INSTRUCTIONS, TOOLS, Meter, look, tell
from websockets.asyncio.client import connect


class Item(msgspec.Struct):
    """An output item, as far as a loop looks at it."""

    type: str
    call_id: str = ""
    arguments: str = ""


class Response(msgspec.Struct):
    """A response, as far as a loop looks at it."""

    id: str
    output: list[Item] = []


class Event(msgspec.Struct):
    """Any event."""

    type: str
    delta: str = ""
    response: Response | None = None


async def loop(url: str, runs: int, meter: Meter) -> None:
    """Ask, run the tool, ask again."""
    decode = msgspec.json.Decoder(Event).decode
    encode = msgspec.json.Encoder().encode
    kept = encode(
        {"type": "response.create", "store": False, "instructions": INSTRUCTIONS, "tools": TOOLS}
    )[:-1]
    url = url.replace("http", "ws") + "/responses"
    async with connect(url, compression=None, max_size=None, proxy=None) as socket:
        before: str | None = None
        for run in range(runs):
            with meter.run():
                new: list[Any] = [{"type": "message", "role": "user", "content": f"question {run}"}]
                while new:
                    rest = encode({"previous_response_id": before, "input": new})
                    await socket.send(kept + b"," + rest[1:], text=True)
                    said = []
                    while True:
                        event = decode(await socket.recv(decode=False))
                        if event.type == "response.output_text.delta":
                            said.append(event.delta)
                        elif event.type == "response.completed":
                            break
                    assert event.response is not None
                    before = event.response.id
                    new = [
                        {
                            "type": "function_call_output",
                            "call_id": item.call_id,
                            "output": look(**msgspec.json.decode(item.arguments)),
                        }
                        for item in event.response.output
                        if item.type == "function_call"
                    ]


if __name__ == "__main__":
    tell(lambda *args: asyncio.run(loop(*args)))
