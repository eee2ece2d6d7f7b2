"""Ten thousand connections, one after another, leave a server as it was."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from websockets.sync.client import connect

SERVE = """
import sys
from pathlib import Path
from ipy_agent.server.process import serve
from ipy_agent.server.scripted import ScriptedEngine

told, held = {"text": "a b c"}, {"text": "a", "then": "hang"}
engine = ScriptedEngine([told, held, told, held] * int(sys.argv[2]))
serve(engine, token="a-token", runtime_file=Path(sys.argv[1]))
"""
HEADERS = {"Authorization": "Bearer a-token"}
ASK = {"input": "hi", "store": False}
MIB = 2**20


class Process:
    """A server's process, seen from outside."""

    def __init__(self, process, port):
        self.port = port
        self._folder = Path("/proc", str(process.pid))

    def resident(self):
        """Return how many MiB are in memory."""
        pages = int((self._folder / "statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") / MIB

    def handles(self):
        """Return how many files and sockets are open."""
        return len(list((self._folder / "fd").iterdir()))

    def threads(self):
        return len(list((self._folder / "task").iterdir()))


@contextlib.contextmanager
def serving(folder, rounds):
    command = [sys.executable, "-c", SERVE, str(folder / "server.json"), str(rounds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = process.stdout.readline().strip().removesuffix("/v1").rpartition(":")[2]
            yield Process(process, int(port))
        finally:
            process.kill()


@contextlib.contextmanager
def chat(port):
    """Connect by WebSocket and ask."""
    url = f"ws://127.0.0.1:{port}/v1/responses"
    with connect(url, additional_headers=HEADERS, proxy=None, compression=None) as client:
        client.send(json.dumps({"type": "response.create", **ASK}))
        yield client


def turn(port):
    with chat(port) as client:
        while "response.completed" not in client.recv(20):
            pass


def turn_broken_off(port):
    with chat(port) as client:
        while "delta" not in client.recv(20):
            pass
        client.socket.shutdown(socket.SHUT_RDWR)


def post(port, *, stream=False):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    said = json.dumps({**ASK, "stream": stream})
    connection.request(
        "POST", "/v1/responses", said, {**HEADERS, "Content-Type": "application/json"}
    )
    return connection, connection.getresponse()


def answer(port):
    connection, response = post(port)
    assert response.status == http.HTTPStatus.OK
    response.read()
    connection.close()


def stream_broken_off(port):
    connection, response = post(port, stream=True)
    while b"delta" not in response.readline():
        pass
    response.close()
    connection.close()


def stranger(port):
    with socket.create_connection(("127.0.0.1", port)) as call:
        call.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert call.recv(4096).startswith(b"HTTP/1.1 401")


def half_a_head(port):
    with socket.create_connection(("127.0.0.1", port)) as call:
        call.sendall(b"GET /health HTTP/1.1\r\nHo")


# Those that ask come in the order of the script's entries.
VISITS = (turn, turn_broken_off, stranger, answer, stream_broken_off, half_a_head)


def visit(port, rounds):
    for _ in range(rounds):
        for each in VISITS:
            each(port)


@pytest.mark.long
def test_connections_leave_nothing_behind(tmp_path, amount, figure):
    """Turns, turns broken off, refusals and half heads: memory, sockets and threads stay."""
    warm_up, rounds = amount(20, 100), amount(50, 1_667)

    with serving(tmp_path, warm_up + rounds + 1) as server:
        visit(server.port, warm_up)
        before, handles, threads = server.resident(), server.handles(), server.threads()
        visit(server.port, rounds)
        after = server.resident()
        answers = server.handles(), server.threads()
        turn(server.port)

    figure(f"{rounds * len(VISITS):,} connections: {before:.1f} MiB before, {after:.1f} after")
    assert after - before < 6
    assert answers[0] <= handles + len(VISITS)
    assert answers[1] <= threads + 1


def fragments(size):
    return bytes([0, 0x80 | size]) + bytes(4 + size)


@pytest.mark.long
@pytest.mark.parametrize("size", [0, 1])
def test_fragments_weigh_what_they_carry(tmp_path, amount, figure, size):
    """However many they are, of a byte or of none, they are no more than as many bytes."""
    count = amount(300_000 if size else 1_000_000, 3_000_000)
    upgrade = (
        "GET /v1/responses HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nAuthorization: Bearer a-token\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )

    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(tmp_path, 1))
        call = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        call.sendall(upgrade.format(server.port).encode())
        call.recv(4096)
        weights = []
        for said in (
            bytes([1, 0x80]) + bytes(4) + fragments(size) * 100_000,
            fragments(size) * count,
        ):
            call.sendall(said + bytes([0x89, 0x80, 0, 0, 0, 0]))
            told = b""
            while b"\x8a\x00" not in told:  # the pong says that all before it was read
                told += call.recv(64)
            weights.append(server.resident())
    before, after = weights

    figure(f"{count:,} fragments of {size}: {before:.1f} MiB before, {after:.1f} after")
    assert after - before < 6 + 2 * size * count / MIB
