"""What a test's client talks to: a peer that does as it is told, and the embedded server.

Both listen on loopback, on a thread of their own, for as long as the test runs.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import re
import socket
import threading
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from ipy_agent.background import Background
from ipy_agent.endpoints import Endpoint

KEY_VARIABLE = "IPY_AGENT_TESTS_KEY"
SECONDS = 20


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory):
    """Sessions are kept in a folder of the tests, not in the user's."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder))
        yield folder


def pytest_terminal_summary(terminalreporter):
    """Print what tests measured or counted, also those that passed."""
    reports = [one for kind in ("passed", "failed") for one in terminalreporter.stats.get(kind, ())]
    told = [
        f"{one.nodeid.rpartition('::')[2]}: {text}"
        for one in reports
        for name, text in one.user_properties
        if name == "figure"
    ]
    if told:
        terminalreporter.section("figures")
        terminalreporter.write_line("\n".join(told))


@pytest.fixture
def figure(record_property):
    """Return a function that has a figure printed at the end of the test run."""
    return lambda text: record_property("figure", text)


@pytest.fixture
def amount():
    """Return a function that chooses between a sample and all of it, as the environment says.

    A test that asks is marked `long`, and IPY_AGENT_TESTS_FULL=1 has it do all.
    """
    full = os.environ.get("IPY_AGENT_TESTS_FULL") == "1"
    return lambda sample, whole: whole if full else sample


@pytest.fixture
def chance(figure):
    """Return random numbers of a seed that is told; IPY_AGENT_TESTS_SEED repeats one."""
    seed = int(os.environ.get("IPY_AGENT_TESTS_SEED") or random.SystemRandom().randrange(10**6))
    figure(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture(scope="session")
def hostile():
    """Return a function that returns the hostile payloads of `hostile.json`, aimed at a port.

    A payload has a name, its text, and what of that is to be seen where Markdown is rendered:
    all of it where nothing else is said.
    """
    rows = json.loads(Path(__file__).with_name("hostile.json").read_text("utf-8"))

    def aimed(port):
        def filled(text, name):
            for word, meant in (
                ("JS", "window.__hit='NAME';new Image().src='URL'"),
                ("URL", "http://HOST/NAME"),
                ("HOST", f"127.0.0.1:{port}"),
                ("NAME", name),
            ):
                text = text.replace(word, meant)
            return text

        return [
            Payload(
                name=row["name"],
                text=(text := filled(row["text"], row["name"]) * row.get("times", 1)),
                shown=filled(row.get("shown", text), row["name"]),
            )
            for row in rows
        ]

    return aimed


@dataclass(frozen=True)
class Payload:
    """A hostile text."""

    name: str
    text: str
    shown: str


@dataclass
class Seen:
    """What a peer saw of one connection."""

    headers: dict
    raw: list = field(default_factory=list)
    code: int | None = None
    ponged: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def frames(self):
        return [json.loads(frame) for frame in self.raw]

    def close_code(self):
        """Wait until the connection is gone, and return the code that its client gave."""
        assert self.ended.wait(SECONDS)
        return self.code


class Peer:
    """A WebSocket server that plays a script and understands nothing.

    The script is a list with an entry a connection: an HTTP status (with headers, if need be)
    that refuses it, or a list with an entry a frame of the client: the steps that answer it.
    A step is a dict (a frame), a str or bytes (sent as they are, bytes as a binary frame),
    `("text", bytes)` (a text frame of these bytes), `("ping",)` (go on when it was answered),
    `("close", CODE)`, `("reset",)` or `("deaf",)` (from then on it hears nothing, not even a ping).
    Past the end of a script there is silence.

    Args:
        script: what it plays.
        options: what else `websockets` is told of how to serve.
    """

    def __init__(self, script, **options):
        self.seen = []
        self._options = {"compression": None, "max_size": None, "close_timeout": 1} | options
        self._script = list(script)
        self._entries = iter(self._script)
        self._next = None
        self._thread = Background()
        self._server = self._thread.call(self._serve(), SECONDS)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def endpoint(self, **more):
        return Endpoint.named(self.url, **more)

    def stop(self):
        self._thread.call(self._stop(), SECONDS)
        self._thread.stop()

    async def _serve(self):
        return await serve(self._play, "127.0.0.1", 0, process_request=self._admit, **self._options)

    async def _stop(self):
        self._server.close()
        await self._server.wait_closed()

    def _admit(self, connection, request):
        entry = next(self._entries, [])
        seen = Seen(dict(request.headers.raw_items()))
        self.seen.append(seen)
        if isinstance(entry, list):
            connection.part = iter(entry), seen
            return None
        status, headers = entry if isinstance(entry, tuple) else (entry, {})
        response = connection.respond(status, "no\n")
        response.headers.update(headers)
        return response

    async def _play(self, connection):
        turns, seen = connection.part
        try:
            while True:
                seen.raw.append(await connection.recv())
                for step in next(turns, ()):
                    await self._take(connection, step)
        except ConnectionClosed:
            pass
        finally:
            await connection.wait_closed()
            seen.code = connection.protocol.close_rcvd and connection.protocol.close_rcvd.code
            seen.ended.set()

    async def _take(self, connection, step):
        if isinstance(step, dict):
            await connection.send(json.dumps(step))
        elif isinstance(step, str | bytes):
            await connection.send(step)
        elif step[0] == "text":
            await connection.send(step[1], text=True)
        elif step[0] == "ping":
            await (await connection.ping())
            connection.part[1].ponged.set()
        elif step[0] == "close":
            await connection.close(step[1])
        elif step[0] == "deaf":
            connection.transport.pause_reading()
        else:
            connection.transport.abort()


@pytest.fixture
def peer():
    """Return a function that starts a peer: an argument a connection."""
    started = []

    def start(*script, **options):
        started.append(Peer(script, **options))
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture
def served(monkeypatch):
    """Return a function that serves a script, or an engine, and returns its endpoint."""
    from ipy_agent.server.process import Server, _listener
    from ipy_agent.server.scripted import ScriptedEngine

    monkeypatch.setenv(KEY_VARIABLE, "a-token-of-the-tests")
    running = []

    def start(script=(), *, engine=None, **options):
        listener = _listener(0)
        ready = threading.Event()
        server = Server(
            engine or ScriptedEngine(script),
            listener,
            token="a-token-of-the-tests",
            ready=ready.set,
            **options,
        )
        thread = Background()
        running.append((server, thread, thread.start(server.run_to_end())))
        assert ready.wait(SECONDS)
        port = listener.getsockname()[1]
        return Endpoint.named(f"http://127.0.0.1:{port}/v1", key_env=KEY_VARIABLE)

    yield start
    for server, thread, work in running:
        server.should_exit = True
        work.result.result(SECONDS)
        thread.stop()


@pytest.fixture
def unused_port():
    """Return a port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture
def run():
    """Return a function that sees a coroutine through, and never waits for ever."""

    def run(coroutine):
        async def limited():
            async with asyncio.timeout(SECONDS):
                return await coroutine

        return asyncio.run(limited())

    return run


CANARY = "sk-canary4f9aB7c2D8e1F6a3/+\"\\&<%='X9z0Qw7Er5Ty"
"""A key with all that is escaped anywhere. It is found by its letters, which nothing escapes."""

_NEEDLE = b"canary4f9aB7c2D8"


@pytest.fixture
def canary():
    """Return a key that must not be found in anything."""
    return CANARY


@pytest.fixture
def leaks():
    """Return a function that tells where in texts or bytes, by a name each, the canary is."""

    def found_in(data):
        if isinstance(data, str):
            data = data.encode("utf-8", "surrogatepass")
        for view in (data, urllib.parse.unquote_to_bytes(data), re.sub(rb"\\?[n\s]", b"", data)):
            if _NEEDLE in view:
                return True
            for run in re.findall(rb"[A-Za-z0-9+/_-]{12,}", view):
                for skipped in range(4):
                    cut = run[skipped:][: len(run[skipped:]) // 4 * 4].translate(_STANDARD)
                    if _NEEDLE in base64.b64decode(cut):
                        return True
        return False

    return lambda artefacts: [name for name, data in artefacts.items() if found_in(data)]


_STANDARD = bytes.maketrans(b"-_", b"+/")
