"""An endpoint with no time to think, which measures its client: `python peer.py TURNS TAIL_MS`.

Each turn but the last calls the tool `look`; the last one is a text. All of an answer is written
at once, so that the time from its terminal event to the next request is the client's alone: no
client's clock is trusted. `TAIL_MS` is a pause between `output_item.done` and `completed`.

Prints its address, and a line of JSON for each client that has gone: `gaps_ms`, the time between
a terminal event and the next request, and `bytes`, what each request had.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from websockets.asyncio.server import ServerConnection, serve

TURNS, TAIL = int(sys.argv[1]), float(sys.argv[2]) / 1_000
WORDS = 20


def frames(number: int, echo: dict) -> tuple[list[bytes], list[bytes]]:
    """Return the events of a turn: up to its last item, and from there to its end."""
    response = {"id": f"resp_{number}", "object": "response", "status": "in_progress", **echo}
    call = {
        "type": "function_call",
        "id": f"fc_{number}",
        "call_id": f"call_{number}",
        "name": "look",
        "arguments": json.dumps({"at": f"row {number}"}),
        "status": "completed",
    }
    message = {
        "type": "message",
        "id": f"msg_{number}",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "word " * WORDS, "annotations": []}],
    }
    item = message if number % TURNS == 0 else call
    begun = {**item, "status": "in_progress"} | (
        {"content": []} if item is message else {"arguments": ""}
    )
    delta = (
        {"type": "response.output_text.delta", "delta": "word ", "content_index": 0, "logprobs": []}
        if item is message
        else {"type": "response.function_call_arguments.delta", "delta": item["arguments"]}
    )
    usage = {
        "input_tokens": 5_000,
        "input_tokens_details": {"cached_tokens": 4_900, "cache_write_tokens": 0},
        "output_tokens": 20,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 5_020,
    }
    place = {"item_id": item["id"], "output_index": 0}
    first = [
        {"type": "response.created", "response": response},
        {"type": "response.in_progress", "response": response},
        {"type": "response.output_item.added", "output_index": 0, "item": begun},
        *([{**delta, **place}] * (WORDS if item is message else 1)),
        {"type": "response.output_item.done", "output_index": 0, "item": item},
    ]
    done = {**response, "status": "completed", "output": [item], "usage": usage}
    last = [{"type": "response.completed", "response": done}]
    told = [{**event, "sequence_number": n} for n, event in enumerate([*first, *last])]
    encoded = [json.dumps(event).encode() for event in told]
    return encoded[:-1], encoded[-1:]


ECHOED = ("model", "instructions", "tools", "store", "parallel_tool_calls", "tool_choice")
EMPTY = {"created_at": 0, "error": None, "incomplete_details": None, "metadata": {}, "output": []}


async def answer(socket: ServerConnection) -> None:
    """Answer one client, and tell what was measured when it has gone."""
    gaps: list[float] = []
    sizes: list[int] = []
    prepared: list[tuple[list[bytes], list[bytes]]] = []
    ended = None
    async for frame in socket:
        now = time.perf_counter()
        if ended is not None:
            gaps.append((now - ended) * 1_000)
        sizes.append(len(frame))
        if not prepared:  # before the first answer, where nobody measures
            asked = json.loads(frame)
            echo = {"tool_choice": "auto", "parallel_tool_calls": True, **EMPTY}
            echo |= {name: asked[name] for name in ECHOED if name in asked}
            prepared = [frames(number, echo) for number in range(1, TURNS + 1)]
        first, last = prepared[(len(sizes) - 1) % TURNS]
        for part in first:
            await socket.send(part, text=True)
        if TAIL:
            await asyncio.sleep(TAIL)
        for part in last:
            await socket.send(part, text=True)
        ended = time.perf_counter()
    print(json.dumps({"gaps_ms": gaps, "bytes": sizes}), flush=True)


async def main() -> None:
    """Listen until the process is ended."""
    async with serve(answer, "127.0.0.1", 0, compression=None, max_size=None) as server:
        print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
        await server.serve_forever()


asyncio.run(main())
