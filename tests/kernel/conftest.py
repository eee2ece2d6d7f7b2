"""A real Jupyter kernel, and the scripted server that its cells talk to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

SECONDS = 60
TOKEN = "a-token-for-tests"


@dataclass
class Cell:
    """What a cell left behind, with updated displays in their last state."""

    status: str = ""
    outputs: list[dict[str, Any]] = field(default_factory=list)
    updates: int = 0
    cleared: int = 0

    @property
    def stdout(self) -> str:
        return "".join(o["text"] for o in self.outputs if o["type"] == "stream")

    @property
    def displays(self) -> list[dict[str, Any]]:
        return [o["data"] for o in self.outputs if o["type"] in ("display_data", "execute_result")]

    @property
    def value(self) -> str:
        return next(o["data"]["text/plain"] for o in self.outputs if o["type"] == "execute_result")

    @property
    def error(self) -> str:
        return "\n".join(line for o in self.outputs if o["type"] == "error" for line in o["lines"])

    def take(self, message: dict[str, Any]) -> None:
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            self.outputs.append({"type": kind, "text": content["text"]})
        elif kind in ("display_data", "execute_result"):
            name = content.get("transient", {}).get("display_id")
            self.outputs.append({"type": kind, "data": content["data"], "id": name})
        elif kind == "update_display_data":
            self.updates += 1
            name = content["transient"]["display_id"]
            for output in self.outputs:
                if output.get("id") == name:
                    output["data"] = content["data"]
        elif kind == "clear_output":
            self.cleared += 1
        elif kind == "error":
            self.outputs.append({"type": kind, "lines": content["traceback"]})


class Kernel:
    """A kernel, and the ways of a user with it."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager = manager
        self.client = client

    def run(
        self,
        code: str,
        *,
        answer: str | Callable[[], str | None] | None = None,
        cell_id: str | None = None,
        when: Callable[[Cell], bool] | None = None,
        do: Callable[[], object] | None = None,
    ) -> Cell:
        """Run a cell to its end; once `when` holds of what it shows, `do` something.

        A question is answered with `answer`, or what that returns; without one there is no stdin.
        With `cell_id` it is sent as front ends send the cells of a notebook.
        """
        cell, done = Cell(), threading.Event()

        def shown(message: dict[str, Any]) -> None:
            cell.take(message)
            if when is not None and do is not None and not done.is_set() and when(cell):
                done.set()
                do()

        def asked(message: dict[str, Any]) -> None:
            cell.outputs.append({"type": "question", "text": message["content"]["prompt"]})
            said = answer() if callable(answer) else answer
            if said is not None:
                self.client.input(said)

        self.client.session.metadata = {} if cell_id is None else {"cellId": cell_id}
        reply = self.client.execute_interactive(
            code,
            allow_stdin=answer is not None,
            output_hook=shown,
            stdin_hook=asked if answer is not None else None,
            timeout=SECONDS,
        )
        cell.status = reply["content"]["status"]
        return cell

    def interrupt(self) -> None:
        self.manager.interrupt_kernel()


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    yield from _kernel()


@pytest.fixture
def own_kernel() -> Iterator[Kernel]:
    """A kernel for one test, which may end it."""
    yield from _kernel()


def _kernel() -> Iterator[Kernel]:
    environment = {name: os.environ[name] for name in os.environ if not name.endswith("API_KEY")}
    manager = KernelManager(kernel_name="python3")
    manager.kernel_cmd = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    manager.start_kernel(env={**environment, "TEST_TOKEN": TOKEN})
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=SECONDS)
        started = Kernel(manager, client)
        started.run("%load_ext ipy_agent")
        yield started
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Start a scripted server and return the line that connects to it."""
    servers: list[subprocess.Popen[str]] = []

    def start(*script: dict[str, Any]) -> str:
        file = tmp_path / f"script{len(servers)}.json"
        file.write_text(json.dumps(script), "utf-8")
        command = [sys.executable, "-m", "ipy_agent", "serve", "--engine", "scripted"]
        server = subprocess.Popen(
            [*command, "--script", str(file)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "IPY_AGENT_SERVER_TOKEN": TOKEN},
        )
        servers.append(server)
        line = server.stdout.readline().strip()
        return f"%agent connect {line.split()[-1]} --key-env TEST_TOKEN"

    yield start
    for server in servers:
        server.send_signal(signal.SIGTERM)
        assert server.wait(SECONDS) == 0
        server.stdout.close()
