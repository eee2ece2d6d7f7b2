"""However a server is told to end, and whatever goes on then, it ends in order."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

SERVE = """
import sys
from pathlib import Path
from ipy_agent.server.process import serve
from ipy_agent.server.scripted import ScriptedEngine

class Engine(ScriptedEngine):
    async def aclose(self):
        Path(sys.argv[1]).with_name("closed").touch()

large = {"text": "word " * 2**20, "chunk_chars": 2**16}
script = {"hang": {"text": "a", "then": "hang"}, "large": large}
engine = Engine([script[sys.argv[2]]] * 20)
serve(engine, token="a-token", runtime_file=Path(sys.argv[1]))
"""
UPGRADE = (
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
HEADERS = {"Authorization": "Bearer a-token"}
ASK = {"input": "hi", "store": False}
SECONDS = 20


@contextlib.contextmanager
def serving(folder, script="hang"):
    """Start a server's process, and yield it and its port."""
    command = [sys.executable, "-c", SERVE, str(folder / "server.json"), script]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        try:
            port = process.stdout.readline().strip().removesuffix("/v1").rpartition(":")[2]
            yield process, int(port)
        finally:
            process.kill()


def socket_of(port):
    url = f"ws://127.0.0.1:{port}/v1/responses"
    options = {"proxy": None, "compression": None, "close_timeout": 1}
    return connect(url, additional_headers=HEADERS, **options)


def post(port, **more):
    """Ask over HTTP, and return the connection that waits for its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    said = json.dumps({**ASK, **more})
    headers = {**HEADERS, "Content-Type": "application/json"}
    connection.request("POST", "/v1/responses", said, headers)
    return connection


def closed(client):
    """Read a WebSocket to its end, and return the code of that."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            client.recv(SECONDS)
    return client.close_code


def say(call, said):
    """Say something in two pieces, and read whatever comes of it."""
    with contextlib.suppress(ConnectionError):
        call.sendall(said[:-4])
        call.sendall(said[-4:])
        call.shutdown(socket.SHUT_WR)
        while call.recv(4096):
            pass


def settled(process):
    """Wait for a process's end, and return what it leaves: its code and its words."""
    out, said = process.communicate(timeout=SECONDS)
    return process.returncode, out, said


@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGINT], [signal.SIGTERM] * 2])
def test_a_signal_in_the_midst_of_everything_is_a_clean_end(tmp_path, numbers):
    """Every WebSocket hears 1001, streams break off, what has not begun is refused: exit code 0."""
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        process, port = enter(serving(tmp_path))
        idle, busy = enter(socket_of(port)), enter(socket_of(port))
        for lane in ("a", "b", "c"):
            busy.send(json.dumps({"type": "response.create", "stream_id": lane, **ASK}))
            while "delta" not in busy.recv(SECONDS):
                pass
        silent, half, refused = (
            enter(socket.create_connection(("127.0.0.1", port))) for _ in range(3)
        )
        half.sendall(b"POST /v1/responses HTTP/1.1\r\nHost: 127")
        refused.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        assert refused.recv(4096).startswith(b"HTTP/1.1 401")
        streaming, answer = (
            enter(contextlib.closing(post(port, stream=on))) for on in (True, False)
        )
        stream = enter(streaming.getresponse())
        while b"delta" not in stream.readline():
            pass

        for number in numbers:
            process.send_signal(number)

        assert (closed(idle), closed(busy)) == (1001, 1001)
        assert b"response.completed" not in stream.read()
        assert answer.getresponse().status == http.HTTPStatus.SERVICE_UNAVAILABLE
        assert settled(process) == (0, "", "")
        for call in (silent, half, refused):
            with contextlib.suppress(ConnectionResetError):
                while call.recv(4096):
                    pass
    assert [file.name for file in tmp_path.iterdir()] == ["closed"]


def test_a_reader_that_takes_nothing_does_not_hold_it_up(tmp_path):
    """What is not taken is not waited for at the end."""
    with contextlib.ExitStack() as stack:
        process, port = stack.enter_context(serving(tmp_path, "large"))
        deaf = stack.enter_context(socket_of(port))
        deaf.send(json.dumps({"type": "response.create", **ASK}))
        deaf.recv(SECONDS)
        tcp = stack.enter_context(socket.socket())
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        tcp.connect(("127.0.0.1", port))
        body = json.dumps({**ASK, "stream": True})
        tcp.sendall(
            f"POST /v1/responses HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            "Authorization: Bearer a-token\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        tcp.recv(1)

        process.send_signal(signal.SIGTERM)

        code, out, _ = settled(process)
        assert (code, out) == (0, "")
        assert [file.name for file in tmp_path.iterdir()] == ["closed"]


def test_what_strangers_say_is_not_logged(tmp_path):
    """Nobody without the token can fill a disk: whatever they send leaves no line."""
    heads = [
        b"\x16\x03\x01\x02\x00\x01",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nmore",
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x" * 70_000,
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /%ff%00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\xe9: y\r\n\r\n",
        b"GET /%ff HTTP/1.1\r\nHost: x\r\nX-Odd: \xff\r\n" + UPGRADE,
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\nzz\r\n",
    ]
    with serving(tmp_path) as (process, port):
        for head in heads:
            with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as call:
                say(call, head)
        process.terminate()

        assert settled(process) == (0, "", "")


def test_it_listens_on_loopback_and_nowhere_else(tmp_path):
    """One socket, on 127.0.0.1, whatever the machine's other addresses are."""
    with serving(tmp_path) as (process, port):
        folder = Path("/proc", str(process.pid))
        mine = {os.readlink(file) for file in (folder / "fd").iterdir()}  # noqa: PTH115 (no path)
        listening = []
        for table in ("tcp", "tcp6", "udp", "udp6"):
            with contextlib.suppress(FileNotFoundError):
                for row in (folder / "net" / table).read_text().splitlines()[1:]:
                    _, local, _, state, *_, inode = row.split()[:10]
                    if f"socket:[{inode}]" in mine and state in ("0A", "07"):
                        listening.append((table, local))

    assert listening == [("tcp", f"0100007F:{port:04X}")]
