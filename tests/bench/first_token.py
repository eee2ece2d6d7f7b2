"""What our server adds to a first token: `python tests/bench/first_token.py [MODEL [TURNS]]`.

The same conversation twice, turn by turn in alternation: over a WebSocket with a server process,
and with the engine's model called right here, with the same ids, the same schema and the same
prefix in its slot. Told is the time from the request to the first piece of the answer, and from
the engine's last word to the end of the turn, each turn's ratio, and their medians.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from websockets.asyncio.client import ClientConnection, connect

from ipy_agent.protocol.items import EMPTY, Chain
from ipy_agent.protocol.requests import Fields
from ipy_agent.server import weights
from ipy_agent.server.engine import Job
from ipy_agent.server.gguf import Gguf
from ipy_agent.server.prompt import Prompts
from ipy_agent.server.reply import Reply

MODEL, TURNS, ANSWER = "smollm2-135m-instruct", 20, 24
KEY = secrets.token_hex(32)
TARGET = 1.10
TOOL = {
    "type": "function",
    "name": "python",
    "description": "Run Python code in the user's kernel and return what it shows.",
    "parameters": {
        "type": "object",
        "properties": {"code": {"type": "string"}},
        "required": ["code"],
        "additionalProperties": False,
    },
}
INSTRUCTIONS = "You work in a notebook. Take what is there, say what you found, and be short. " * 8
SETTINGS = {
    "any text": {"instructions": INSTRUCTIONS},
    "by schema": {"instructions": INSTRUCTIONS, "tools": [TOOL], "tool_choice": "none"},
}
FIRST = "response.output_text.delta"
LAST = {"response.completed", "response.incomplete"}


class Turn(NamedTuple):
    """One turn: milliseconds to its first piece, from there to its end, and tokens cached."""

    first: float
    rest: float
    cached: int


def question(turn: int) -> dict[str, Any]:
    said = f"Now look at column {turn} of the frame, and count the rows above its median."
    return {"type": "message", "role": "user", "content": said}


class Direct:
    """The conversation with the model itself."""

    def __init__(self, model: Gguf, settings: dict[str, Any]) -> None:
        start, end = (model.control(token) for token in ("<|im_start|>", "<|im_end|>"))
        self._model = model
        self._prompts = Prompts(model.tokenise, start=start or 0, end=end or 0)
        self._fields = Fields(settings)
        self._input: Chain = EMPTY
        self._memory: Any = None
        self._held = 0

    def turn(self, item: dict[str, Any]) -> Turn:
        """Ask; what has to be ready before the model is called is not counted."""
        self._input = self._input.extend([item])
        job = Job(fields=self._fields, input=self._input, held=self._held, memory=self._memory)
        prompt = self._prompts.prompt(job)
        ids = list(prompt.tokens.ids())
        reply = Reply(prompt.head.answer)
        said: list[float] = []

        def take(text: str) -> None:
            if reply.feed(text) if prompt.head.calls else text:
                said.append(time.perf_counter())

        begin = time.perf_counter()
        options = {"max_tokens": ANSWER, "temperature": 0, "cache_prompt": True}
        done = self._model.complete(0, ids, take=take, schema=prompt.schema, **options)
        end = time.perf_counter()
        self._memory = self._prompts.memory(prompt, done.ids)
        self._input = self._input.extend([{"type": "message", "role": "assistant", "content": "-"}])
        self._held = self._input.length
        first = said[0] if said else end
        return Turn((first - begin) * 1_000, (end - first) * 1_000, done.timings["cache_n"])


class Served:
    """The conversation over a WebSocket."""

    def __init__(self, socket: ClientConnection, settings: dict[str, Any]) -> None:
        self._socket = socket
        self._asked = {"type": "response.create", "store": False, "max_output_tokens": ANSWER}
        self._asked |= settings
        self._before: dict[str, Any] = {}

    async def turn(self, item: dict[str, Any]) -> Turn:
        """Ask."""
        frame = msgspec.json.encode({**self._asked, **self._before, "input": [item]})
        begin, first = time.perf_counter(), 0.0
        await self._socket.send(frame, text=True)
        while True:
            event = msgspec.json.decode(await self._socket.recv(decode=False))
            if event["type"] == FIRST and not first:
                first = time.perf_counter()
            if event["type"] in LAST:
                break
            if event["type"] in {"error", "response.failed"}:
                raise RuntimeError(event)
        end = time.perf_counter()
        response = event["response"]
        self._before = {"previous_response_id": response["id"]}
        cached = response["usage"]["input_tokens_details"]["cached_tokens"]
        first = first or end
        return Turn((first - begin) * 1_000, (end - first) * 1_000, cached)


@contextlib.contextmanager
def serving(path: Path) -> Iterator[str]:
    """Run a server of this model until the block ends."""
    command = [sys.executable, "-m", "ipy_agent", "serve", "--slots", "1", "--model", str(path)]
    environment = {**os.environ, "IPY_AGENT_SERVER_TOKEN": KEY}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().split()[-1].replace("http", "ws", 1) + "/responses"
        finally:
            server.terminate()


async def main(path: Path, turns: int) -> None:
    """Measure each kind of answer, and print the medians."""
    model = Gguf(path, slots=1)
    headers = {"Authorization": f"Bearer {KEY}"}
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    print(f"{path.name}, xllamacpp {version('xllamacpp')}, {turns} turns, target {TARGET:g} ×")
    print("             first token, ms                      to the end, ms            same cache")
    print("             served  direct   ratio (quartiles)   served  direct   ratio")
    with serving(path) as url:
        for kind, settings in SETTINGS.items():
            options = {"additional_headers": headers, "compression": None, "proxy": None}
            async with connect(url, **options) as socket:
                served, direct = Served(socket, settings), Direct(model, settings)
                pairs = []
                for number in range(turns + 2):
                    item = question(number)
                    if number % 2:
                        pairs.append((await served.turn(item), direct.turn(item)))
                    else:
                        pairs.append((direct.turn(item), await served.turn(item))[::-1])
            show(kind, pairs[2:])  # the first two have nothing in their caches yet


def show(kind: str, pairs: list[tuple[Turn, Turn]]) -> None:
    """Print a row of the table."""
    ours, theirs = zip(*pairs, strict=True)
    firsts = [one.first / other.first for one, other in pairs]
    rests = [one.rest / other.rest for one, other in pairs if other.rest]
    low, middle, high = statistics.quantiles(firsts, n=4)
    same = all(one.cached == other.cached for one, other in pairs)
    print(
        f"{kind:10} {statistics.median(turn.first for turn in ours):8.1f}"
        f" {statistics.median(turn.first for turn in theirs):7.1f}"
        f" {middle:7.3f} ({low:.3f} to {high:.3f})"
        f" {statistics.median(turn.rest for turn in ours):7.1f}"
        f" {statistics.median(turn.rest for turn in theirs):7.1f}"
        f" {statistics.median(rests) if rests else float('nan'):7.3f}  {'yes' if same else 'no'}"
    )


if __name__ == "__main__":
    told = sys.argv[1:]
    asyncio.run(main(weights.path((told or [MODEL])[0]), int((told[1:] or [TURNS])[0])))
    os._exit(0)
