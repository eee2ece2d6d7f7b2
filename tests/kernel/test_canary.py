"""A key is in a real kernel's environment, and in nothing that the kernel shows, keeps or logs.

What is looked through is each state of each output, as front ends get it, and each file that is
left; `tests/test_canary.py` does the same without a kernel. The sources of cells hold no key here.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter

pytestmark = pytest.mark.kernel

SECONDS = 90
VARIABLE = "THE_ENDPOINT"  # its name says nothing of what it holds
MASK = "[redacted]"

GET = f"import base64, json, os, urllib.parse\nkey = os.environ['{VARIABLE}']\n"
TOLD = {
    "printed": "print(os.environ)\nprint(key)",
    "as a value": "key",
    "in an object": "{'headers': [key.encode().decode()]}",
    "in a table": "import pandas as pd\npd.DataFrame({'key': [key]})",
    "in base64": "base64.b64encode(('me:' + key).encode()).decode()",
    "in a URL": "'https://h/?' + urllib.parse.urlencode({'key': key})",
    "in JSON": "json.dumps({'key': key})",
    "in a question": "input('Is it ' + key + '? ')",
    "in a page": "from IPython.display import HTML, display\ndisplay(HTML(f'<b>{key}</b>'))",
    "as data": "display({'application/json': {'a': [key]}, 'text/html': key}, raw=True)",
    "as an error": "raise ValueError(f'no: {key}')",
    "in a variable": "made = key\n1 / 0",
    "to standard error": "import sys\nprint(key, file=sys.stderr)",
    "on a traceback's line": f"assert os.environ['{VARIABLE}'] == 0, repr(key)",
}


def python(code):
    return {"tool_calls": [{"name": "python", "arguments": {"code": GET + code}}]}


@pytest.fixture
def environment(canary, monkeypatch, tmp_path):
    """A home of the test's own, and the canary."""
    monkeypatch.setenv(VARIABLE, canary)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("IPY_AGENT_ENDPOINT", raising=False)
    return tmp_path


@pytest.fixture
def kernel(environment, own_kernel):  # noqa: ARG001 (it inherits the variables)
    """A kernel with the canary in its environment, and verbose tracebacks."""
    own_kernel.run("%xmode Verbose")
    return own_kernel


@pytest.fixture
def keyed(canary, environment):
    """Return a function that serves a script to who knows the canary, and returns its address."""
    servers = []

    def start(*script):
        file = environment / f"script{len(servers)}.json"
        file.write_text(json.dumps(script), "utf-8")
        command = [sys.executable, "-m", "ipy_agent", "serve", "--engine", "scripted"]
        server = subprocess.Popen(
            [*command, "--script", str(file)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "IPY_AGENT_SERVER_TOKEN": canary},
        )
        servers.append(server)
        return server.stdout.readline().split()[-1]

    yield start
    for server in servers:
        server.send_signal(signal.SIGTERM)
        assert server.wait(SECONDS) == 0
        server.stdout.close()


class Watched:
    """A kernel, and each state of what its cells showed."""

    def __init__(self, kernel):
        self._kernel = kernel
        self.states = {}

    def run(self, code, **more):
        def look(cell):
            self.states[f"{code[:60]} #{len(self.states)}"] = json.dumps(cell.outputs, default=str)
            return False

        cell = self._kernel.run(code, when=look, do=lambda: None, **more)
        self.states[f"{code[:60]} at its end"] = json.dumps(cell.outputs, default=str)
        return cell


def files(folder):
    """Return the content of all files below a folder but the scripts that the test wrote."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and not re.fullmatch(r"script\d+\.json", file.name)
    }


def test_a_kernel_shows_and_keeps_no_key(kernel, keyed, canary, leaks, environment, figure):
    """Tools tell it in every way, the endpoint echoes it bit by bit, all tables are looked at."""
    echo = {"text": f"Your key is {canary}, is it not?", "chunk_chars": 3}
    script = [python(code) for code in TOLD.values()]
    url = keyed(*script, echo, {"error": {"status": 400, "code": "no", "message": f"no {canary}"}})
    watched = Watched(kernel)
    watched.run("import logging\nlogging.basicConfig(level=logging.DEBUG)")
    watched.run(f"%agent connect {url} --key-env {VARIABLE}")

    asked = watched.run("%%agent --mode auto -o said\nTell it in every way.", answer="yes")
    failed = watched.run("%%agent\nAnd now?")
    for command in ("", "turns", "cells", "tools", "messages", "toolbox", "panel", "branch"):
        watched.run(f"%agent {command}")
    for suffix in ("csv", "jsonl", "json", "html", "md"):
        for table in ("turns", "cells", "tools", "messages"):
            watched.run(f"%agent export {environment}/{table}.{suffix} --table {table}")
    watched.run("import ipy_agent\ns = ipy_agent.session()\n[s, vars(s), s.endpoint, said]")
    watched.run("vars(s._connections), [vars(w) for w in s._connections._transports.values()]")
    watched.run("import copy, pickle\ncopy.deepcopy(s.endpoint), pickle.dumps(s.endpoint)")
    watched.run("pickle.dumps(s)")
    watched.run("%config AgentMagics")
    watched.run("s.close()")

    tools = watched.run("[(t.status, t.output) for t in s.records.tools]").value
    assert tools.count("completed") + tools.count("failed") >= len(TOLD)
    assert tools.count(MASK) >= len(TOLD)
    assert asked.status == "ok"
    assert f"Is it {MASK}? " in [shown.get("text") for shown in asked.outputs]
    answers = [shown.get("text/plain", "") for shown in asked.displays]
    assert any(f"Your key is {MASK}, is it not?" in shown for shown in answers)
    assert failed.error == f"ResponseFailed: no {MASK}"
    left = files(environment)
    assert any(name.endswith(".sqlite") or "sessions" in name for name in left)
    assert leaks(watched.states | left) == []
    figure(f"{len(watched.states)} states of outputs and {len(left)} files, no key in any")


def test_a_failing_cell_shows_no_key(kernel, keyed, leaks, environment, unused_port):
    """A key that is not taken, nobody there, a key in a wrong place, bugs in the midst of it."""
    url = keyed({"text": "hello"}, {"text": "again"})
    watched = Watched(kernel)
    watched.run(f"%agent connect {url} --key-env {VARIABLE}\nimport os")
    watched.run(f"os.environ['WRONG'] = os.environ['{VARIABLE}'] + 'x'")
    refused = watched.run(f"%agent connect {url} --key-env WRONG\n%agent transport websocket")
    refused = watched.run("%%agent\nHello?")
    watched.run("%agent transport http")
    over_http = watched.run("%%agent\nHello?")
    watched.run(f"%agent connect http://127.0.0.1:{unused_port}/v1 --key-env {VARIABLE}")
    nobody = watched.run("%%agent\nHello?")
    watched.run(f"%agent connect {url} --key-env {VARIABLE}\n%agent transport websocket")
    bugs = [
        watched.run(f"{code}\ntry_it = True") and watched.run("%%agent\nHello?") for code in BUGS
    ]
    typed = [watched.run(code) for code in TYPED]
    watched.run(UNDO)
    after = watched.run("%%agent\nHello?")

    assert refused.error == over_http.error
    assert refused.error.endswith("does not take the key: check WRONG")
    assert "ConnectionFailed: nothing answers" in nobody.error
    assert all("ZeroDivisionError" in bug.error for bug in bugs)
    assert all("additional_headers" in bug.error or "address" in bug.error for bug in bugs)
    assert all(cell.error.startswith("UsageError") for cell in typed)
    assert "hello" in after.displays[0]["text/plain"]
    assert leaks(watched.states | files(environment)) == []


HEAD = "from websockets.asyncio import client\nimport ipy_agent.transport.handshake as way\n"
BUGS = (
    # in a library, where the headers are a variable
    f"""{HEAD}own = client.ClientConnection.handshake
async def handshake(self, additional_headers=None, *more, **words):
    return additional_headers, 1 / 0
client.ClientConnection.handshake = handshake""",
    # in ours, where the address is
    f"""{HEAD}client.ClientConnection.handshake = own
opened = way.open_socket
async def open_socket(endpoint, address, *more, **words):
    headers = address.headers
    return (address, headers, address.key), 1 / 0
import ipy_agent.transport.connection as place
place.open_socket = open_socket""",
)
UNDO = "place.open_socket = opened"
TYPED = (
    (
        f"holder = {{'key': os.environ['{VARIABLE}']}}\n"
        "get_ipython().run_cell_magic('agent', '', 'What is in $`holder`?')"
    ),
    f"get_ipython().run_cell_magic('agent', '', 'It is ' + os.environ['{VARIABLE}'])",
    f"get_ipython().run_line_magic('agent', 'connect \"' + os.environ['{VARIABLE}'] + '\"')",
    (
        f"name = 'hf_' + os.environ['{VARIABLE}'][3:25]\n"
        "get_ipython().run_line_magic('agent', 'connect http://h/v1 --key-env ' + name)"
    ),
)


def test_a_saved_notebook_has_no_key(keyed, canary, leaks, environment):
    """Executed and converted as people do it: the file and its page."""
    echo = {"text": f"Your key is `{canary}`.", "chunk_chars": 4}
    url = keyed(*map(python, TOLD.values()), echo)
    sources = (
        "%load_ext ipy_agent",
        "%xmode Verbose",
        f"%agent connect {url} --key-env {VARIABLE}",
        "%%agent --mode auto\nTell it in every way.",
        "%agent messages",
        "%agent panel",
        "%agent disconnect",
        f"%agent connect http://127.0.0.1:1/v1 --key-env {VARIABLE}",
        "%%agent\nIs anybody there?",
    )
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in sources]

    NotebookClient(notebook, timeout=SECONDS, allow_errors=True, kernel_name="python3").execute()
    saved = nbformat.writes(notebook)
    page, _ = HTMLExporter().from_notebook_node(notebook)

    assert leaks({"notebook": saved, "page": page} | files(environment)) == []
    assert saved.count(MASK) >= len(TOLD)
    assert "Your key is" in page
