"""A server that answers requests by HTTP as it is told, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import ssl
import subprocess
import threading
from dataclasses import dataclass, field

import pytest

from ipy_agent.background import Background
from ipy_agent.endpoints import Endpoint

SECONDS = 20


@dataclass
class Heard:
    """A request that a peer heard, and what became of its connection."""

    line: str
    headers: dict
    body: bytes
    connection: int
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def json(self):
        return json.loads(self.body)

    def hung_up(self):
        """Wait until the connection is gone."""
        return self.ended.wait(SECONDS)


class HttpPeer:
    """An HTTP server that plays a script and understands nothing.

    The script is a list with an entry a request, on whichever connection it comes: the steps
    that answer it. A step is bytes (sent as they are), `("stream", PIECE…)` (a stream of events
    to its end; a piece is a frame or bytes of the body, a chunk each), `("json", STATUS, value,
    {header: value})`, `("close",)` or `("reset",)`. Past the end of a script there is silence.
    """

    HEAD = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )

    def __init__(self, script, tls=None):
        self.seen = []
        self._entries = iter(list(script))
        self._connections = 0
        self._playing = set()
        self._arrived = threading.Semaphore(0)
        self._thread = Background()
        self._server = self._thread.call(self._serve(tls), SECONDS)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}/v1"

    def endpoint(self, **more):
        return Endpoint.named(self.url, **more)

    def heard(self):
        """Wait for one more request."""
        return self._arrived.acquire(timeout=SECONDS)

    def stop(self):
        """End, as a server does that nobody needs; once is enough."""
        if not self._server.is_serving():
            return
        self._thread.call(self._stop(), SECONDS)
        self._thread.stop()

    @staticmethod
    def event(frame):
        """Return a frame as an event of a body."""
        return f"event: {frame['type']}\ndata: {json.dumps(frame)}\n\n".encode()

    @staticmethod
    def chunk(body):
        """Return bytes as a chunk of a body that tells its length piece by piece."""
        return f"{len(body):x}\r\n".encode() + body + b"\r\n"

    async def _serve(self, tls):
        return await asyncio.start_server(self._play, "127.0.0.1", 0, ssl=tls)

    async def _stop(self):
        self._server.close()
        for task in self._playing:
            task.cancel()
        await asyncio.gather(*self._playing, return_exceptions=True)

    async def _play(self, reader, writer):
        self._playing.add(asyncio.current_task())
        self._connections += 1
        number, heard = self._connections, []
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode().strip().split("\r\n")
                headers = {
                    name.lower(): said for name, _, said in (x.partition(": ") for x in lines)
                }
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                heard.append(Heard(first, headers, body, number))
                self.seen.append(heard[-1])
                self._arrived.release()
                for step in next(self._entries, ()):
                    self._take(writer, step)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            for one in heard:
                one.ended.set()
            writer.close()

    def _take(self, writer, step):
        if isinstance(step, bytes):
            writer.write(step)
        elif step[0] == "stream":
            pieces = [x if isinstance(x, bytes) else self.event(x) for x in step[1:]]
            writer.write(self.HEAD + b"".join(map(self.chunk, pieces)) + b"0\r\n\r\n")
        elif step[0] == "json":
            body = json.dumps(step[2]).encode()
            more = {"Content-Type": "application/json", "Content-Length": len(body)}
            more |= dict(*step[3:])
            lines = [f"HTTP/1.1 {step[1]} Said So", *(f"{k}: {v}" for k, v in more.items()), "", ""]
            writer.write("\r\n".join(lines).encode() + body)
        elif step[0] == "close":
            writer.close()
        else:
            writer.transport.abort()


@pytest.fixture
def http_peer():
    """Return a function that starts a peer: an argument a request."""
    started = []

    def start(*script, tls=None):
        started.append(HttpPeer(script, tls))
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture(scope="module", name="signed")
def _signed(tmp_path_factory):
    """Return a server's side of TLS, and the file of its certificate."""
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    words = shlex.split(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost "
        "-addext subjectAltName=DNS:localhost,DNS:model.invalid"
    )
    subprocess.run([*words, "-keyout", key, "-out", cert], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context, cert


@pytest.fixture
def certificate(signed):
    """Return a server's side of TLS that nobody vouches for."""
    return signed[0]


@pytest.fixture
def trusted(signed, monkeypatch):
    """Return a server's side of TLS that holds for `localhost` and `model.invalid`."""
    monkeypatch.setenv("SSL_CERT_FILE", str(signed[1]))
    return signed[0]


class Tunnel:
    """An HTTP proxy that leads all that it is asked for to one port of this machine."""

    def __init__(self, port):
        self.asked = []
        self._port = port
        self._thread = Background()
        self._server = self._thread.call(self._listen(), SECONDS)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def stop(self):
        self._server.close()
        self._thread.stop()

    async def _listen(self):
        return await asyncio.start_server(self._lead, "127.0.0.1", 0)

    async def _lead(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        self.asked.append(head.decode().splitlines()[0])
        there, onward = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        try:
            await asyncio.gather(self._carry(reader, onward), self._carry(there, writer))
        finally:
            onward.transport.abort()
            writer.transport.abort()

    async def _carry(self, reader, writer):
        with contextlib.suppress(OSError):
            while piece := await reader.read(65_536):
                writer.write(piece)
                await writer.drain()
            writer.close()


@pytest.fixture
def tunnel(monkeypatch):
    """Return a function that has a proxy of the environment lead to a port."""
    started = []

    def start(port):
        started.append(Tunnel(port))
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("https_proxy", started[-1].url)
        return started[-1]

    yield start
    for one in started:
        one.stop()
