"""The local server is found, or started once, and depends on nobody."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import ipy_agent
from ipy_agent.errors import ConnectionFailed
from ipy_agent.secrets import Secret
from ipy_agent.transport import local as module
from ipy_agent.transport.local import Local, end_server, local_server
from ipy_agent.transport.runtime import runtime_folder, write_private

SERVE = """
import argparse, os, sys
from pathlib import Path
from ipy_agent.server.process import serve
from ipy_agent.server.scripted import ScriptedEngine

options = argparse.ArgumentParser()
options.add_argument("--port", type=int)
options.add_argument("--idle-exit", type=float)
options.add_argument("--runtime-file", type=Path)
options.add_argument("--model", default="scripted")
options = options.parse_args()
Path(options.runtime_file.parent, f"started-{os.getpid()}").touch()
Path(options.runtime_file.parent, "environment").write_text("\\n".join(os.environ))
engine = ScriptedEngine(model=options.model)
serve(engine, port=options.port, token="a-token", idle_exit=options.idle_exit,
      runtime_file=options.runtime_file)
"""
COMMAND = (sys.executable, "-c", SERVE)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Return a runtime folder of the test's own; no server of it outlives the test."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    # The server's own folder is another one: it finds the package as this test does.
    monkeypatch.setenv("PYTHONPATH", str(Path(ipy_agent.__file__).parents[1]))
    folder = runtime_folder()
    yield folder
    for server in module._started:
        with contextlib.suppress(ProcessLookupError):
            server.kill()
        server.wait(20)
    module._started.clear()


def found(**options):
    """Return the server that is found or started."""
    return asyncio.run(local_server(lambda _: None, command=COMMAND, **options))


def starts(folder):
    return len(list(folder.glob("started-*")))


def test_a_server_is_started_once_and_then_found(folder):
    """The second caller gets what the first one started."""
    first = found(model="named")
    second = found()

    assert first == second
    assert first.answers()
    assert first.model == "named"
    assert starts(folder) == 1


def test_what_takes_long_is_told(folder):
    """While a server fetches its weights, the newest line of its log is passed on."""
    gate = folder / "gate"
    os.mkfifo(gate)
    # The server goes on when somebody was told; a progress bar overwrites its own line.
    code = f"print('1 %\\r50 %', end='\\r', flush=True); open({str(gate)!r}).read();" + SERVE
    notices = []

    def notice(text):
        notices.append(text)
        if len(notices) == 1:
            gate.write_text("go on")

    server = asyncio.run(local_server(notice, command=(sys.executable, "-c", code)))

    assert notices[0] == "50 %"
    assert server.answers()


def test_two_at_once_start_one(folder):
    """Whoever comes second waits for the first one's server."""

    async def main():
        return await asyncio.gather(
            *(local_server(lambda _: None, command=COMMAND) for _ in range(3))
        )

    first, *others = asyncio.run(main())

    assert others == [first, first]
    assert starts(folder) == 1


@pytest.mark.usefixtures("folder")
def test_a_server_is_told_how_long_it_may_be_idle():
    """Usually a quarter of an hour; where something else is to be done in between, longer."""
    found(idle_exit=7_000)

    words = module._started[0].args
    assert words[words.index("--idle-exit") + 1] == "7000"


@pytest.mark.usefixtures("folder")
def test_a_folder_has_a_server_of_its_own(tmp_path):
    """Nobody finds it elsewhere, and it ends with whoever started it: the others stay."""
    own = tmp_path / "own"
    own.mkdir(mode=0o700)
    first, second = found(), found(folder=own)

    assert first != second
    assert found(folder=own) == second
    end_server(own)
    assert not second.answers()
    assert [server.pid for server in module._started] == [first.pid]
    end_server(own)
    assert found() == first


def test_nobody_ends_a_server_that_somebody_else_started(folder):
    """Its process is not ours to end."""
    server = found()
    mine, module._started[:] = list(module._started), []

    end_server(folder)

    assert server.answers()
    module._started[:] = mine


def test_it_holds_nothing_of_the_one_who_started_it(folder, monkeypatch):
    """Its own session and output, a log that is private, and no secret of the environment."""
    for name in ("OPENAI_API_KEY", "MY_SECRET", "hf_token", "IPY_AGENT_SERVER_TOKEN", "PLAIN"):
        monkeypatch.setenv(name, "x")

    server = found()

    names = (folder / "environment").read_text().splitlines()
    assert {"PLAIN", "IPY_AGENT_SERVER_TOKEN"} <= set(names)
    assert not {"OPENAI_API_KEY", "MY_SECRET", "hf_token"} & set(names)
    assert os.getsid(server.pid) == server.pid != os.getsid(0)
    log = folder / "server.log"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert f"listening on {server.url}" in log.read_text()


def test_it_outlives_the_process_that_started_it(folder):
    """The kernel that needed it first may end, its server stays."""
    code = (
        "import asyncio, sys; from ipy_agent.transport.local import local_server;"
        "print(asyncio.run(local_server(print, command=sys.argv[1:])).pid)"
    )
    kernel = subprocess.run(
        [sys.executable, "-c", code, *COMMAND], capture_output=True, text=True, check=True
    )
    server = Local.read(folder / "server.json")

    try:
        assert int(kernel.stdout.split()[-1]) == server.pid
        assert server.answers()
    finally:
        os.kill(server.pid, signal.SIGKILL)


FAULTS = ["dead", "wrong token", "not JSON", "nothing", "elsewhere", "a port of nobody's"]
FAULTS += ["a link", "open to all", "a pipe", "too much", "no server's"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_stale_file_is_replaced(folder, fault, unused_port):
    """A file is believed only if its server lives and answers with its token."""
    file = folder / "server.json"
    real = found()
    said = {
        "wrong token": dataclasses.replace(real, token=Secret("wrong")),
        # It would answer, but a name is not sure to be this machine's.
        "elsewhere": dataclasses.replace(real, url=real.url.replace("127.0.0.1", "localhost")),
        "a port of nobody's": dataclasses.replace(real, url=f"http://127.0.0.1:{unused_port}/v1"),
    }
    with contextlib.ExitStack() as stack:
        if fault in said:
            stack.enter_context(said[fault].published(file))
        elif fault == "dead":
            os.kill(real.pid, signal.SIGKILL)
            module._started[0].wait(20)
        elif fault == "a link":
            file.replace(folder / "elsewhere.json")
            file.symlink_to(folder / "elsewhere.json")
        elif fault == "open to all":
            file.chmod(0o644)
        elif fault == "a pipe":
            file.unlink()
            os.mkfifo(file, 0o600)
        else:
            unsound = {"not JSON": b"{", "nothing": b"", "too much": b"[" * 2**20}
            write_private(file, unsound.get(fault, real.encoded()))

        server = found()

    assert server.pid != real.pid
    assert server.answers()
    assert Local.read(file) == server


class Thief:
    """Somebody who listens on a port that a server had, and notes what is sent there."""

    def __init__(self):
        self.heard = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self):
        with contextlib.suppress(OSError):
            while True:
                call, _ = self._listener.accept()
                with call:
                    self.heard.append(call.recv(4096))
                    call.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(20)


def test_a_token_is_not_sent_to_whoever_has_the_port_now(folder):
    """A file outlived its server, and another process listens where that was."""
    thief = Thief()
    file = folder / "server.json"
    url = f"http://127.0.0.1:{thief.port}/v1"
    code = (
        "import os, signal, sys; from pathlib import Path;"
        "from ipy_agent.transport.local import Local;"
        "local = Local(sys.argv[2], 'the-token', 'm', os.getpid());"
        "published = local.published(Path(sys.argv[1]));"
        "published.__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(file), url], check=False)
    left = file.read_bytes()

    server = found()
    thief.close()

    assert b"the-token" in left
    assert thief.heard == []
    assert server.answers()


def test_a_file_is_believed_while_its_writer_lives(tmp_path):
    """It holds a lock, which no end of a process can leave behind."""
    file = tmp_path / "server.json"
    local = Local("http://127.0.0.1:1/v1", Secret("t"), "m", 1)

    with local.published(file):
        during = Local.read(file)
        again = Local.read(file)
        copy = file.read_bytes()
    after = Local.read(file)
    write_private(file, copy)

    assert (during, again, after, Local.read(file)) == (local, local, None, None)


def test_a_file_of_another_user_is_not_read(monkeypatch, tmp_path):
    """Whose it is decides, whatever its mode."""
    file = tmp_path / "server.json"
    local = Local("http://127.0.0.1:1/v1", Secret("t"), "m", 1)

    with local.published(file):
        monkeypatch.setattr(os, "getuid", lambda: file.stat().st_uid + 1)

        assert Local.read(file) is None


def test_processes_that_race_start_one(folder):
    """Eight kernels at once: one starts the server, and all of them use it."""
    code = (
        "import asyncio, sys; from ipy_agent.transport.local import local_server;"
        "print('ready', flush=True); sys.stdin.read(1);"
        "print(asyncio.run(local_server(lambda _: None, command=sys.argv[1:])))"
    )
    command = [sys.executable, "-c", code, *COMMAND]
    with contextlib.ExitStack() as stack:
        kernels = [
            stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(8)
        ]
        for kernel in kernels:
            kernel.stdout.readline()
        for kernel in kernels:
            kernel.stdin.write("\n")
            kernel.stdin.flush()
        told = {kernel.communicate(timeout=60)[0] for kernel in kernels}
    server = Local.read(folder / "server.json")

    try:
        assert told == {f"{server}\n"}
        assert server.answers()
        assert starts(folder) == 1
    finally:
        os.kill(server.pid, signal.SIGKILL)


def test_a_server_that_cannot_start_says_why(folder):
    """The error's one line holds the last line of the log."""
    code = "import sys; print('one'); sys.exit('no room for the model')"

    with pytest.raises(ConnectionFailed, match="no room for the model") as failed:
        asyncio.run(local_server(print, command=(sys.executable, "-c", code)))

    assert "\n" not in str(failed.value)
    assert not (folder / "server.json").exists()


@pytest.mark.parametrize(
    ("code", "why"), [("raise SystemExit(3)", "exit code 3"), (None, "cannot be started")]
)
def test_a_server_that_ends_without_a_word_is_told_too(folder, code, why):
    """Its exit code has to do, or why it could not be run at all."""
    command = (sys.executable, "-c", code) if code else (str(folder / "no-python"),)

    with pytest.raises(ConnectionFailed, match=why):
        asyncio.run(local_server(print, command=command))


@pytest.mark.usefixtures("folder")
def test_a_start_that_is_cancelled_leaves_no_server():
    """Whoever interrupts the start can simply try again."""

    async def main():
        waiting = asyncio.get_running_loop().create_future()
        code = "import time; print('waiting', flush=True); time.sleep(600)"
        starting = asyncio.create_task(
            local_server(waiting.set_result, command=(sys.executable, "-c", code))
        )
        assert await waiting == "waiting"
        starting.cancel()
        await asyncio.wait({starting})
        return starting.cancelled()

    assert asyncio.run(main())
    (server,) = module._started
    assert server.wait(20) == -signal.SIGTERM
    assert found().answers()


def test_the_token_is_never_shown():
    """A server's token does not appear where the value is printed."""
    assert "hidden" not in repr(Local("http://127.0.0.1:1/v1", Secret("hidden"), "m", 1))


def test_a_folder_that_others_own_is_passed_over(monkeypatch, tmp_path):
    """A link in the runtime folder's place leads nowhere of ours."""
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "ipy-agent").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    folder = runtime_folder()

    assert folder.is_relative_to(tmp_path / "state")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("unusable", [None, "", "relative", "/dev/null"])
def test_without_a_login_folder_the_state_folder_serves(monkeypatch, tmp_path, unusable):
    """In a container or a service there is no runtime folder, and nothing complains."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    if unusable is not None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", unusable)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    assert runtime_folder().is_relative_to(tmp_path / "ipy-agent")


def test_without_any_private_folder_there_is_a_clear_error(monkeypatch, tmp_path):
    """The message says which variable to set."""
    (tmp_path / "ipy-agent").touch()
    for variable in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))

    with pytest.raises(ConnectionFailed, match="XDG_RUNTIME_DIR"):
        runtime_folder()


def test_a_private_file_is_there_whole_or_not_at_all(tmp_path):
    """A failure in the middle leaves the old content and no leftovers."""
    file = tmp_path / "file"
    write_private(file, b"old")

    with pytest.raises(TypeError):
        write_private(file, "not bytes")

    assert file.read_bytes() == b"old"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]
