"""Every way into the real server, over its socket, with every credential that is not one.

The ways are read off the running server's table of routes: a route that is added is tried here.
"""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass

import pytest
from starlette.routing import Route, WebSocketRoute

from ipy_agent.background import Background
from ipy_agent.server.app import NOT_FOUND
from ipy_agent.server.gate import refuse
from ipy_agent.server.process import Server, _listener
from ipy_agent.server.scripted import ScriptedEngine

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
UPGRADE = """Upgrade: websocket
Connection: Upgrade
Sec-WebSocket-Version: 13
Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="""
TOKEN = "a-token-of-the-tests"
GOOD = (f"Authorization: Bearer {TOKEN}", "Host: {host}")
AUTH, HOST = GOOD
JSON = "Content-Type: application/json"

# Each with the status that answers it. A handshake that is no handshake (400) is refused by
# the library that reads it, before there is anything to be let in.
REFUSED = {
    "no token": ((HOST,), 401),
    "empty header": (("Authorization:", HOST), 401),
    "scheme alone": (("Authorization: Bearer", HOST), 401),
    "no scheme": ((f"Authorization: {TOKEN}", HOST), 401),
    "other scheme": ((f"Authorization: Basic {TOKEN}", HOST), 401),
    "wrong token": (("Authorization: Bearer wrong", HOST), 401),
    "half a token": ((AUTH[:-1], HOST), 401),
    "a token and more": ((AUTH + "s", HOST), 401),
    "other case": ((AUTH.replace("a-token", "A-token"), HOST), 401),
    "odd bytes": (("Authorization: Bearer \xff\xfe\xa0", HOST), 401),
    "odd bytes behind it": ((AUTH + "\xff", HOST), 401),
    "two of them": ((AUTH, AUTH, HOST), 401),
    "a wrong one first": (("Authorization: Bearer wrong", AUTH, HOST), 401),
    "a wrong one last": ((AUTH, "Authorization: Bearer wrong", HOST), 401),
    "in a cookie": ((f"Cookie: token={TOKEN}; Authorization={TOKEN}", HOST), 401),
    "in other headers": ((f"X-Api-Key: {TOKEN}", f"Proxy-{AUTH}", HOST), 401),
    "as a subprotocol": ((f"Sec-WebSocket-Protocol: bearer.{TOKEN}", HOST), 401),
    "empty host": ((AUTH, "Host:"), 421),
    "other host": ((AUTH, "Host: rebound.example:{port}"), 421),
    "other port": ((AUTH, "Host: 127.0.0.1:1"), 421),
    "no port": ((AUTH, "Host: 127.0.0.1"), 421),
    "trailing dot": ((AUTH, "Host: localhost.:{port}"), 421),
    "host and more": ((AUTH, "Host: {host}.page.example"), 421),
    "other spelling": ((AUTH, "Host: 127.1:{port}"), 421),
    "any address": ((AUTH, "Host: 0.0.0.0:{port}"), 421),
    "IPv6": ((AUTH, "Host: [::1]:{port}"), 421),
    "user in host": ((AUTH, "Host: me@{host}"), 421),
    "forwarded host": ((AUTH, "Host: page.example", "X-Forwarded-Host: {host}"), 421),
    "a page": ((*GOOD, "Origin: http://page.example"), 403),
    "own address as origin": ((*GOOD, "Origin: http://{host}"), 403),
    "null origin": ((*GOOD, "Origin: null"), 403),
    "empty origin": ((*GOOD, "Origin:"), 403),
    "two origins": ((*GOOD, "Origin: http://a.example", "Origin: http://b.example"), 403),
}


@dataclass
class Running:
    """A server on a thread of its own, for all tests of this file."""

    server: Server
    port: int
    thread: Background

    def ask(self, *said):
        """Return what is answered to some bytes on a connection of their own."""
        return self.thread.call(exchange(self.port, *said), 20)

    def head(self, path, method, lines, **more):
        return head(path, method, lines, self.port, **more)

    def open_ways(self, lines, expected, query=""):
        return self.thread.call(open_ways(self, lines, expected, query), 60)


@pytest.fixture(scope="module")
def running():
    """Return a server that listens."""
    listener = _listener(0)
    ready = threading.Event()
    server = Server(ScriptedEngine(), listener, token=TOKEN, ready=ready.set)
    thread = Background()
    work = thread.start(server.run_to_end())
    assert ready.wait(20)
    yield Running(server, listener.getsockname()[1], thread)
    server.should_exit = True
    work.result.result(20)
    thread.stop()


def ways(server):
    """Return each way in that the running server has: its path, its method, a WebSocket or not."""
    paths = {"/nowhere", "/", "/v1/responses/resp_x"}
    for route in server.gate.app.routes:
        assert isinstance(route, Route | WebSocketRoute), "tell this test how to walk into it"
        paths.add(route.path.replace("{name}", "resp_1"))
    found = [(path, method, False) for path in sorted(paths) for method in METHODS]
    return found + [(path, "GET", True) for path in sorted(paths)]


def head(path, method, lines, port, *, websocket=False, version="1.1"):
    """Return a request's bytes: it closes where it is not an upgrade."""
    more = UPGRADE.split("\n") if websocket else ["Connection: close"]
    host = f"127.0.0.1:{port}"
    said = [line.format(host=host, port=port) for line in lines]
    return "\r\n".join([f"{method} {path} HTTP/{version}", *said, *more, "", ""]).encode("latin-1")


async def exchange(port, *said):
    """Send bytes on a connection of their own, and return all that is answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in said:
            writer.write(part)
        if b"Upgrade: websocket" in said[0]:
            got = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
            return got if b" 101 " in got else got + await asyncio.wait_for(reader.read(), 20)
        return await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()


def status(answer):
    return int(answer.split(b" ", 2)[1])


async def open_ways(served, lines, expected, query=""):
    """Return the ways that do not refuse as expected what has these lines in its head."""
    found = []
    for path, method, websocket in ways(served.server):
        said = head(path + query, method, lines, served.port, websocket=websocket)
        answer = await exchange(served.port, said)
        names = [line.split(b":")[0].lower() for line in answer.split(b"\r\n")]
        wanted = {expected, 400} if websocket else {expected}
        if status(answer) not in wanted or any(b"access-control" in name for name in names):
            found.append((path, method, websocket, answer))
    return found


@pytest.mark.parametrize("fault", REFUSED)
def test_no_way_in_takes_a_bad_credential(running, fault):
    """Each route and method, HTTP and WebSocket, answers one fault with its one status."""
    lines, expected = REFUSED[fault]

    assert running.open_ways(lines, expected) == []


@pytest.mark.parametrize("query", [f"?token={TOKEN}", f"?access_token={TOKEN}", f"?{AUTH}"])
def test_a_token_in_a_query_is_none(running, query):
    """What ends in logs and histories opens nothing."""
    assert running.open_ways((HOST,), 401, query.replace(" ", "%20")) == []


def test_a_way_in_beside_the_gate_would_be_noticed(listening):
    """The check above does fail where a route is not behind the gate."""

    async def main():
        async with listening(ScriptedEngine()) as served:
            gate, config = served.server.gate, served.server.config
            gate.app.routes.append(Route("/forgotten", lambda _: None))
            behind = await open_ways(served, (HOST,), 401)

            async def beside(scope, receive, send):
                if scope["path"] == "/forgotten":
                    await refuse(NOT_FOUND, scope, send)
                else:
                    await gate(scope, receive, send)

            config.loaded_app = beside
            return behind, await open_ways(served, (HOST,), 401)

    behind, beside = asyncio.run(main())

    assert behind == []
    assert {path for path, *_ in beside} == {"/forgotten"}
    assert len(beside) == len(METHODS) + 1


def test_the_gate_is_what_the_server_runs(running):
    """Nothing stands before it."""
    assert running.server.config.loaded_app is running.server.gate


def test_the_right_credentials_open_every_route(running):
    """The same heads without the fault are answered by the routes, so the faults were refused."""
    seen = {}
    for path, method, websocket in ways(running.server):
        said = running.head(path, method, (*GOOD, JSON), websocket=websocket)
        seen[path, method, websocket] = status(running.ask(said))

    assert not {401, 403, 421, 500} & set(seen.values())
    assert [way for way, got in seen.items() if got == 101] == [("/v1/responses", "GET", True)]
    assert seen["/health", "GET", False] == seen["/v1/models", "GET", False] == 200
    assert seen["/v1/responses", "POST", False] == 400


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/models", "/health", "*"])
def test_a_preflight_is_refused(running, path):
    """A browser that asks whether a page may call hears no, with a token or without."""
    asks = ("Origin: http://page.example", "Access-Control-Request-Method: POST")

    heads = [running.head(path, "OPTIONS", (*lines, *asks)) for lines in ((HOST,), GOOD)]
    answers = [running.ask(said) for said in heads]

    assert [status(answer) for answer in answers] == [401, 403]
    assert not any(b"access-control" in answer.lower() for answer in answers)


@pytest.mark.parametrize("host", ["LocalHost:{port}", "127.0.0.1:{port}"])
def test_the_hosts_that_mean_this_server(running, host):
    """Its address and its name with its port, in any case."""
    assert status(running.ask(running.head("/health", "GET", (AUTH, f"Host: {host}")))) == 200


@pytest.mark.parametrize(
    ("target", "lines", "version", "expected"),
    [
        ("http://page.example/health", GOOD, "1.1", 404),
        ("http://127.0.0.1/health", GOOD, "1.1", 404),
        ("//page.example/health", GOOD, "1.1", 404),
        ("/../health", GOOD, "1.1", 404),
        ("/health", (AUTH,), "1.1", 400),
        ("/health", (*GOOD, HOST), "1.1", 400),
        ("/health", (AUTH, "Host: page.example", HOST), "1.1", 400),
        ("/health", (AUTH,), "1.0", 421),
        ("/health", GOOD, "1.0", 200),
        ("/health", (HOST,), "1.0", 401),
    ],
)
def test_odd_targets_hosts_and_versions(running, target, lines, version, expected):
    """A target names a path here and no host; a request of HTTP/1.1 has one Host."""
    assert status(running.ask(running.head(target, "GET", lines, version=version))) == expected


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "text/plain; charset=application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json-seq",
        "application/problem+json",
        "",
    ],
)
def test_only_json_is_read(running, kind):
    """What a form of any page could send is refused on every route, with the token too."""
    body = json.dumps({"input": "hi"}).encode()
    lines = (*GOOD, f"Content-Type: {kind}", f"Content-Length: {len(body)}")
    paths = {path for path, *_ in ways(running.server)}

    seen = {
        status(running.ask(running.head(path, method, lines), body))
        for path in paths
        for method in ("POST", "PUT", "PATCH", "DELETE")
    }

    assert seen == {415}
