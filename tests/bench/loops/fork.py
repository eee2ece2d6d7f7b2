"""The least that rows can cost: `python fork.py URL PLAN`, the key in `KEY`.

As `map.py` does it: so many lanes on one socket, and each row goes on from one warm-up. What does
not change is encoded once, of what comes only the type and the end are read, and nothing is kept
but the answers.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import msgspec
from notes import INSTRUCTIONS, PROMPT, Plan, tell
from websockets.asyncio.client import connect


class Part(msgspec.Struct):
    """A piece of an item."""

    text: str = ""


class Item(msgspec.Struct):
    """An output item, as far as a row looks at it."""

    content: list[Part] = []


class Response(msgspec.Struct):
    """A response, as far as a row looks at it."""

    id: str
    output: list[Item] = []


class Event(msgspec.Struct):
    """Any event."""

    type: str
    stream_id: str = ""
    response: Response | None = None


DECODE = msgspec.json.Decoder(Event).decode
ENCODE = msgspec.json.Encoder().encode
ENDS = {"response.completed", "response.incomplete", "response.failed", "error"}


async def rows(url: str, plan: Plan) -> list[str]:
    """Ask all rows, and return their answers."""
    asked = {"type": "response.create", "store": False, "model": "scripted"}
    asked |= {"instructions": INSTRUCTIONS, "tools": []}
    kept = ENCODE(asked)[:-1] + b","
    answers = [""] * plan.rows
    numbers = iter(range(plan.rows))
    waiting: dict[str, asyncio.Future[Response]] = {}
    headers = {"Authorization": f"Bearer {os.environ['KEY']}"}
    options: dict[str, Any] = {"compression": None, "max_size": None, "proxy": None}
    url = url.replace("http", "ws", 1) + "/responses"
    async with connect(url, additional_headers=headers, **options) as socket:

        async def read() -> None:
            async for frame in socket:
                event = DECODE(frame)
                if event.type in ENDS:
                    if event.type != "response.completed" or event.response is None:
                        raise RuntimeError(frame)
                    waiting[event.stream_id].set_result(event.response)

        async def answer(lane: str, rest: bytes) -> Response:
            waiting[lane] = asyncio.get_running_loop().create_future()
            await socket.send(kept + b'"stream_id":"%b",' % lane.encode() + rest, text=True)
            return await waiting[lane]

        async def ask(lane: str) -> None:
            for number in numbers:
                content = PROMPT.replace("{day}", str(number))
                message = {"type": "message", "role": "user", "content": content}
                response = await answer(lane, parent + ENCODE([message]) + b"}")
                answers[number] = response.output[0].content[0].text

        reading = asyncio.create_task(read())
        warm = await answer("each", b'"input":[],"generate":false}')
        parent = b'"previous_response_id":"%b","input":' % warm.id.encode()
        asking = [asyncio.create_task(ask(f"each.{number}")) for number in range(plan.lanes)]
        every = asyncio.gather(*asking)
        await asyncio.wait([reading, every], return_when=asyncio.FIRST_COMPLETED)
        if reading.done():
            reading.result()
        await every
        reading.cancel()
    return answers


if __name__ == "__main__":
    tell(lambda url, plan: asyncio.run(rows(url, plan)), lambda answers: sum(map(bool, answers)))
