"""The server as a process of its own: its line, its file and its end."""

from __future__ import annotations

import contextlib
import json
import signal
import stat
import subprocess
import sys

import pytest
from websockets.sync.client import connect

from ipy_agent.errors import UsageError
from ipy_agent.secrets import Secret
from ipy_agent.server.process import serve, server_token
from ipy_agent.server.scripted import ScriptedEngine
from ipy_agent.transport.local import Local

SERVE = """
import sys
from pathlib import Path
from ipy_agent.server.process import serve
from ipy_agent.server.scripted import ScriptedEngine

idle = float(sys.argv[2]) if len(sys.argv) > 2 else None
engine = ScriptedEngine([{"text": "a", "then": "hang"}])
serve(engine, token="a-token", idle_exit=idle, runtime_file=Path(sys.argv[1]))
"""


@contextlib.contextmanager
def serving(file, *more):
    """Start a server process; yields it and its line."""
    command = [sys.executable, "-c", SERVE, str(file), *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, process.stdout.readline()
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(tmp_path, number):
    """Its one line is true, clients in a turn hear 1001, the file goes, the exit code is 0."""
    file = tmp_path / "server.json"

    with serving(file) as (process, line):
        local = json.loads(file.read_bytes())
        url = line.removeprefix("listening on http")
        headers = {"Authorization": f"Bearer {local['token']}"}
        client = connect(f"ws{url.strip()}/responses", additional_headers=headers, proxy=None)
        with client:
            client.send('{"type":"response.create","input":"hi"}')
            client.recv()
            mode = stat.S_IMODE(file.stat().st_mode)
            process.send_signal(number)
            with contextlib.suppress(Exception):
                while True:
                    client.recv(timeout=20)
        rest, _ = process.communicate(timeout=20)

    assert client.close_code == 1001
    assert process.returncode == 0
    assert rest == ""
    assert line.strip() == f"listening on {local['url']}"
    assert local == {
        "url": local["url"],
        "token": "a-token",
        "pid": process.pid,
        "model": "scripted",
    }
    assert mode == 0o600
    assert not file.exists()


def test_it_ends_when_nobody_comes(tmp_path):
    """Idle for long enough, it is gone, and so is its file."""
    file = tmp_path / "server.json"

    with serving(file, "0.1") as (process, line):
        process.communicate(timeout=20)

    assert line.startswith("listening on http://127.0.0.1:")
    assert process.returncode == 0
    assert not file.exists()


def test_a_file_of_another_server_is_left_alone(tmp_path):
    """A server removes only what it wrote."""
    file = tmp_path / "server.json"
    other = Local(url="http://127.0.0.1:1/v1", token=Secret("t"), model="m", pid=1)

    with serving(file) as (process, _), other.published(file):
        process.terminate()
        process.communicate(timeout=20)

        assert Local.read(file) == other


class Closing(ScriptedEngine):
    """Notes that it was closed."""

    closed = False

    async def aclose(self):
        self.closed = True


def test_a_port_that_is_taken_is_told_in_one_line(tmp_path):
    """The message names the port and what to do, and the engine is let go."""
    engine = Closing()
    with serving(tmp_path / "server.json") as (_, line):
        port = int(line.strip().removesuffix("/v1").rpartition(":")[2])

        with pytest.raises(UsageError, match=f"port {port} cannot be had") as taken:
            serve(engine, port=port, token="t")

    assert "\n" not in str(taken.value)
    assert engine.closed


def test_a_runtime_file_that_cannot_be_written_is_told_in_one_line(tmp_path):
    """A server that nobody could find does not stay."""
    engine = Closing()

    with pytest.raises(UsageError, match="cannot be written"):
        serve(engine, token="t", runtime_file=tmp_path / "nowhere" / "server.json")

    assert engine.closed


def test_the_token_comes_from_the_environment(monkeypatch):
    """A token that is named there is used as it is."""
    monkeypatch.setenv("IPY_AGENT_SERVER_TOKEN", " named ")

    assert server_token().reveal() == "named"


def test_a_token_is_made_once_and_kept_private(monkeypatch, tmp_path):
    """Without one in the environment it is random, and the same next time."""
    monkeypatch.delenv("IPY_AGENT_SERVER_TOKEN", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))

    made = server_token()

    assert server_token() == made
    assert len(made.reveal()) >= 43
    file = tmp_path / "ipy-agent" / "token"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("fault", ["open to all", "a link", "empty"])
def test_a_token_that_others_may_know_is_made_anew(monkeypatch, tmp_path, fault):
    """What somebody else could have read or put there is no secret."""
    monkeypatch.delenv("IPY_AGENT_SERVER_TOKEN", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    known = server_token()
    file = tmp_path / "ipy-agent" / "token"
    if fault == "open to all":
        file.chmod(0o644)
    elif fault == "a link":
        file.replace(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    else:
        file.write_text("")

    made = server_token()

    assert made != known
    assert len(made.reveal()) >= 43
    assert stat.S_IMODE(file.lstat().st_mode) == 0o600
    assert server_token() == made
