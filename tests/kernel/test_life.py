"""Where a session begins and ends: kernels that load the extension, kernels that end, terminals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve as serve_websocket

pytestmark = pytest.mark.kernel

SECONDS = 60
SPECS = Path(__file__).parents[2] / "jupyter-config" / "kernels"


@pytest.fixture
def peer():
    """An endpoint that answers every create, and keeps the code that a client closes with."""
    closed: list[int] = []
    gone = threading.Event()

    def talk(socket):
        try:
            while True:
                socket.recv()
                done = {"id": "resp_1", "output": []}
                socket.send(json.dumps({"type": "response.completed", "response": done}))
        except ConnectionClosed as end:
            closed.append(end.rcvd.code if end.rcvd else 1006)
            gone.set()

    server = serve_websocket(talk, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.socket.getsockname()[1], closed, gone
    server.shutdown()
    thread.join(SECONDS)


def test_the_socket_closes_with_1000_when_the_kernel_ends(own_kernel, peer):
    """A kernel that is shut down says goodbye to its endpoint."""
    port, closed, gone = peer
    own_kernel.run(f"%agent connect http://127.0.0.1:{port}/v1")
    assert own_kernel.run("%%agent\nhi").status == "ok"

    own_kernel.manager.shutdown_kernel(now=False)

    assert gone.wait(SECONDS)
    assert closed == [1000]


def test_the_kernelspec_starts_with_the_extension_loaded():
    """In "Python 3 (agent)" `%agent` is there from the first cell."""
    specs = KernelSpecManager(kernel_dirs=[str(SPECS)])
    manager = KernelManager(kernel_name="python3-agent", kernel_spec_manager=specs)
    manager.start_kernel()
    client = manager.blocking_client()
    client.start_channels()
    said: list[str] = []
    try:
        client.wait_for_ready(timeout=SECONDS)
        client.execute_interactive(
            "%agent",
            output_hook=lambda m: said.append(m["content"].get("text", "")),
            timeout=SECONDS,
        )
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)

    assert specs.get_kernel_spec("python3-agent").display_name == "Python 3 (agent)"
    assert "mode        ask" in "".join(said)


def test_a_terminal_gets_plain_text(serve):
    """In terminal IPython the answer is text, without HTML, displays or colours."""
    connect = serve(
        {"tool_calls": [{"name": "python", "arguments": {"code": "made = 5\nmade"}}]},
        {"text": "**five** \x1b[31mred"},
    )
    code = (
        "shell = get_ipython()\nshell.run_line_magic('load_ext', 'ipy_agent')\n"
        f"shell.run_cell({connect!r}).raise_error()\n"
        "shell.run_cell('%%agent --mode auto\\nHow many?').raise_error()\nprint('made is', made)"
    )

    run = subprocess.run(
        [sys.executable, "-m", "IPython", "--no-banner", "--colors=nocolor", "-c", code],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, "TEST_TOKEN": "a-token-for-tests"},
        check=True,
    )

    assert "[python]" in run.stdout
    assert "**five** red" in run.stdout
    assert "made is 5" in run.stdout
    assert "\x1b" not in run.stdout
