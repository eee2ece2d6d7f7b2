"""The user's local server: found by a file in the runtime folder, started where there is none.

The server is a process of its own, shared by all kernels of a user. It outlives the kernel
that started it and holds nothing of it: no terminal, no output, no secret of its environment.

Rule 1: a file is believed only while the process that wrote it lives and so holds a lock on
it, and if the server it names takes the token it names. A file that was left behind sends the
token to nobody: by now anybody may listen on its port.
Rule 2: a server is started under a lock, so that two kernels at once start one.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import http.client
import os
import subprocess
import sys
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ipy_agent.errors import ConnectionFailed
from ipy_agent.secrets import Secret, clean_environment
from ipy_agent.transport.runtime import is_held, private_file, put_private, runtime_folder

__all__ = ["TOKEN_VARIABLE", "Local", "end_server", "local_server"]

IDLE_EXIT_SECONDS = 900
POLL_SECONDS = 0.1
NOTICE_SECONDS = 1.0
END_SECONDS = 5.0
HEALTH_SECONDS = 2.0

TOKEN_VARIABLE = "IPY_AGENT_SERVER_TOKEN"  # noqa: S105 (its name)
"""What the user gives a server as its token. It is the one secret that a server is to know."""
FILE = "server.json"
_LOG_TAIL = 4096

_started: list[subprocess.Popen[bytes]] = []
"""Servers that this process started; kept so that their end can be collected."""


@dataclass(frozen=True, slots=True)
class Local:
    """How to reach a local server: what its runtime file says."""

    url: str
    token: Secret
    model: str
    pid: int

    def encoded(self) -> bytes:
        """Return the content of the runtime file, which is where its token is meant to be."""
        return msgspec.json.encode(self, enc_hook=Secret.reveal)

    @classmethod
    def read(cls, file: Path) -> Local | None:
        """Return what a runtime file says, or nothing where no living server has put it."""
        try:
            with private_file(file) as opened:
                content = opened.read()
                if not is_held(opened):
                    return None
            return msgspec.json.decode(content, type=cls, dec_hook=lambda _, token: Secret(token))
        except (OSError, msgspec.DecodeError):
            return None

    @contextlib.contextmanager
    def published(self, file: Path) -> Iterator[None]:
        """Have a runtime file tell of this server, which is the process that calls.

        It disappears with the block, unless another server has put its own there; of a
        process that ends in the block it stays, and is believed no more.
        """
        handle = put_private(file, self.encoded())
        try:
            yield
        finally:
            if Local.read(file) == self:
                file.unlink(missing_ok=True)
            os.close(handle)

    def answers(self) -> bool:
        """Ask the server whether it is there and takes this token; blocks up to two seconds."""
        parts = urllib.parse.urlsplit(self.url)
        if parts.hostname != "127.0.0.1":
            return False
        connection = http.client.HTTPConnection(parts.netloc, timeout=HEALTH_SECONDS)
        try:
            connection.putrequest("GET", "/health")
            connection.putheader("Authorization", f"Bearer {self.token.reveal()}")
            connection.endheaders()
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException, ValueError):
            return False
        finally:
            connection.close()


async def local_server(
    notice: Callable[[str], None],
    *,
    model: str | None = None,
    python: str = sys.executable,
    command: Sequence[str] | None = None,
    folder: Path | None = None,
    idle_exit: float = IDLE_EXIT_SECONDS,
) -> Local:
    """Return the user's local server, or a folder's own; start one if there is none.

    Cancelled while a server starts, it stops that server.

    Args:
        notice: told in a line what is going on, at most once a second.
        model: what a new server should run; one that is there already keeps its own.
        python: the interpreter that runs a new server.
        command: starts a server in place of `python -m ipy_agent serve`; the options that
            belong to its being shared are added.
        folder: where its file, its lock and its log are; by default the runtime folder, where
            all kernels find it.
        idle_exit: seconds after which a new server ends that nobody uses.

    Raises:
        ConnectionFailed: the server ended before it was ready; says why.
    """
    folder = folder or runtime_folder()
    file = folder / FILE
    if found := await _found(file):
        return found
    told = _Progress(notice, folder / "server.log")
    async with _lock(folder / "server.lock", told):
        if found := await _found(file):
            return found
        file.unlink(missing_ok=True)
        words = [*(command or (python, "-m", "ipy_agent", "serve"))]
        words += ["--port", "0", "--idle-exit", str(idle_exit), "--runtime-file", str(file)]
        try:
            server = _start([*words, *(("--model", model) if model else ())], told.log)
        except OSError as error:
            raise ConnectionFailed(f"the local server cannot be started: {error}") from None
        try:
            return await _ready(server, file, told)
        except BaseException:
            server.terminate()
            raise


def end_server(folder: Path) -> None:
    """End the server of a folder, if this process started it, and wait until it is gone."""
    local = Local.read(folder / FILE)
    for server in [one for one in _started if local is not None and one.pid == local.pid]:
        server.terminate()
        try:
            server.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        _started.remove(server)


class _Progress:
    """Tells the newest line of a server's log, when it is a new one and not too often."""

    def __init__(self, notice: Callable[[str], None], log: Path) -> None:
        self.log = log
        self._notice = notice
        self._told = ""
        self._next = 0.0

    def look(self) -> None:
        line = self.last_line()
        if line and line != self._told and time.monotonic() >= self._next:
            self._told, self._next = line, time.monotonic() + NOTICE_SECONDS
            self._notice(line)

    def last_line(self) -> str:
        try:
            with self.log.open("rb") as log:
                log.seek(-min(_LOG_TAIL, log.seek(0, os.SEEK_END)), os.SEEK_END)
                tail = log.read().decode(errors="replace")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(tail.splitlines()) if line.strip()), "")


async def _found(file: Path) -> Local | None:
    local = Local.read(file)
    if local is not None and await asyncio.to_thread(local.answers):
        return local
    return None


@contextlib.asynccontextmanager
async def _lock(file: Path, told: _Progress) -> AsyncIterator[None]:
    """Hold the lock under which servers are started. Gone with the process that holds it."""
    handle = os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                told.look()
                await asyncio.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(handle)


def _start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a server that has nothing of ours: its own session, log and home."""
    # Those that ended are collected here; nobody else waits for them.
    for old in [server for server in _started if server.poll() is not None]:
        _started.remove(old)
    with open(log, "wb", opener=_private) as out:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=Path.home(),
            env=_environment(),
            start_new_session=True,
        )
    _started.append(server)
    return server


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _environment() -> dict[str, str]:
    kept = clean_environment(TOKEN_VARIABLE)
    if paths := kept.get("PYTHONPATH"):
        # The server lives in another folder: what is relative here would be lost there.
        kept["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, paths.split(os.pathsep)))
    return kept


async def _ready(server: subprocess.Popen[bytes], file: Path, told: _Progress) -> Local:
    while server.poll() is None:
        if found := await _found(file):
            return found
        told.look()
        await asyncio.sleep(POLL_SECONDS)
    why = told.last_line() or f"exit code {server.returncode}"
    raise ConnectionFailed(f"the local server did not start: {why}")
