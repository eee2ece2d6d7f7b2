"""A real kernel, and a front end that reads all that it sends and draws nothing."""

from __future__ import annotations

import ast
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from jupyter_client.manager import KernelManager
from processes import HERE, SECONDS, Plan, Told, environment, peer

COST = "__import__('offer').cost()"
SCREEN = ("display_data", "update_display_data")


@dataclass
class Cell:
    """What a cell sent to the front end, and what the process had used when it was over."""

    cost: Any = None
    sent: list[tuple[float, str, int]] = field(default_factory=list)

    def of(self, *kinds: str) -> list[tuple[float, int]]:
        """Return when messages of these kinds came, and their bytes."""
        return [(at, size) for at, kind, size in self.sent if kind in kinds]

    def busiest(self, *kinds: str) -> int:
        """Return how many messages of these kinds came within any one second, at most."""
        times = [at for at, _ in self.of(*kinds)]
        return max((sum(at <= one < at + 1 for one in times) for at in times), default=0)


class Kernel:
    """A kernel and its front end, which takes messages apart no further than it has to."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def run(self, code: str, cost: str = COST) -> Cell:
        """Run a cell to its end; `cost` is what then tells what was used.

        Raises:
            RuntimeError: it failed.
        """
        client, cell = self._client, Cell()
        name = client.execute(code, allow_stdin=False, user_expressions={"cost": cost})
        while True:
            if not client.iopub_channel.socket.poll(SECONDS * 1_000):
                raise RuntimeError(f"a cell does not end: {code}")
            parts = client.iopub_channel.socket.recv_multipart()
            _, header, parent, _, content = parts[parts.index(b"<IDS|MSG>") + 1 :][:5]
            kind = json.loads(header)["msg_type"]
            cell.sent.append((time.perf_counter(), kind, sum(map(len, parts))))
            if kind == "status" and json.loads(parent).get("msg_id") == name and b"idle" in content:
                break
        reply = self._reply(name)
        if reply["status"] != "ok":
            raise RuntimeError("\n".join(reply["traceback"]))
        cell.cost = ast.literal_eval(reply["user_expressions"]["cost"]["data"]["text/plain"])
        return cell

    def _reply(self, name: str) -> dict[str, Any]:
        """Return what the kernel answers; to what was asked while it started, it may still do."""
        while True:
            message = self._client.get_shell_msg(timeout=SECONDS)
            if message["parent_header"].get("msg_id") == name:
                return message["content"]


@contextlib.contextmanager
def kernel(plan: Plan) -> Iterator[Kernel]:
    """Have a kernel run, with what is offered in its path."""
    manager = KernelManager(kernel_name="python3")
    manager.kernel_cmd = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    with tempfile.TemporaryDirectory() as state:
        manager.start_kernel(env=environment(plan, state), stderr=subprocess.DEVNULL)
        client = manager.blocking_client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=SECONDS)
            yield Kernel(client)
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)


PATH = f"import sys; sys.path.insert(0, {str(HERE / 'loops')!r}); import offer"

AWAITED = """\
import bare
meter = offer.Meter()
await bare.loop(URL, RUNS, meter)
"""

THREADED = """\
import asyncio, threading, bare
meter = offer.Meter()
thread = threading.Thread(target=lambda: asyncio.run(bare.loop(URL, RUNS, meter)))
thread.start()
thread.join()
"""

AGENT = """\
%load_ext ipy_agent
%config AgentMagics.mode = "auto"
%config AgentMagics.budget_turns = 1000000
%config AgentMagics.instructions = offer.INSTRUCTIONS
%config AgentMagics.tools = offer.NAMES
%agent connect URL
import ipy_agent.agent.tools
for name in offer.NAMES:
    ipy_agent.agent.tools.tool_of(offer.look, name=name, register=True)
"""


def bare(code: str, plan: Plan) -> Told:
    """Have the bare loop run in a cell, and return what was measured."""
    with peer(plan) as (url, runs), kernel(plan) as live:
        live.run(PATH)
        code = code.replace("URL", repr(url)).replace("RUNS", str(len(plan.runs)))
        cell = live.run(code, "meter.told")
    return Told(runs, cell.cost, [cell])


def agent(plan: Plan) -> Told:
    """Have `%%agent` cells ask, a run each, with all that a user has, and return the same."""
    with peer(plan) as (url, runs), kernel(plan) as live:
        live.run(PATH)
        begun = live.run(AGENT.replace("URL", url))
        cells = [live.run(f"%%agent\nquestion {run}") for run in range(len(plan.runs))]
    return Told(runs, [cell.cost for cell in (begun, *cells)], cells)
