"""Nobody comes in who may not, on any route."""

from __future__ import annotations

import asyncio
import json

import pytest
from starlette.routing import Route, WebSocketRoute

from ipy_agent.errors import UsageError
from ipy_agent.server.app import app, routes
from ipy_agent.server.gate import MAX_BODY, MAX_SOCKETS, Gate
from ipy_agent.server.scripted import ScriptedEngine

TOKEN = "the-token"
HOST = "127.0.0.1:8000"
GOOD = {"authorization": f"Bearer {TOKEN}", "host": HOST}
PAGE = "http://page.example"


def scope(kind, path, headers, method="GET"):
    pairs = headers.items() if isinstance(headers, dict) else headers
    return {
        "type": kind,
        "method": method,
        "path": path,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in pairs],
        "extensions": {"websocket.http.response": {}},
        "query_string": b"",
        "root_path": "",
    }


def answer(gate, asked, *messages):
    """Return the status, headers and body with which a request is answered."""

    async def main():
        coming = list(messages) or [
            {"type": "websocket.connect"}
            if asked["type"] == "websocket"
            else {"type": "http.request", "body": b""}
        ]
        sent = []

        async def receive():
            return coming.pop(0) if coming else {"type": f"{asked['type']}.disconnect", "code": 1}

        async def send(message):
            sent.append(message)

        await gate(asked, receive, send)
        return sent

    first, *rest = asyncio.run(main())
    if first["type"] == "websocket.accept":
        return 101, {}, b""
    headers = {name.decode(): value.decode() for name, value in first["headers"]}
    return first["status"], headers, b"".join(message["body"] for message in rest)


def server():
    return app(ScriptedEngine(), TOKEN, [HOST, "localhost:8000"])


def entrances():
    """Return each way in that the app's own table of routes has."""
    for route in routes(ScriptedEngine(), "all"):
        if isinstance(route, WebSocketRoute):
            yield "websocket", "GET", route.path
        else:
            assert isinstance(route, Route), "tell this test how to walk into a new kind of route"
            for method in sorted(route.methods):
                yield "http", method, route.path
    yield "http", "GET", "/nowhere"
    yield "websocket", "GET", "/nowhere"


def without(name):
    return {key: value for key, value in GOOD.items() if key != name}


BAD = {
    "no token": (without("authorization"), 401),
    "empty header": ({**GOOD, "authorization": ""}, 401),
    "no scheme": ({**GOOD, "authorization": TOKEN}, 401),
    "other scheme": ({**GOOD, "authorization": f"Basic {TOKEN}"}, 401),
    "empty token": ({**GOOD, "authorization": "Bearer "}, 401),
    "wrong token": ({**GOOD, "authorization": "Bearer the-tokem"}, 401),
    "half a token": ({**GOOD, "authorization": "Bearer the"}, 401),
    "longer token": ({**GOOD, "authorization": f"Bearer {TOKEN}x"}, 401),
    "odd bytes": ({**GOOD, "authorization": "Bearer \xff\xfe"}, 401),
    "two tokens": ([*GOOD.items(), ("authorization", f"Bearer {TOKEN}")], 401),
    "token as a cookie": ({**without("authorization"), "cookie": f"token={TOKEN}"}, 401),
    "no host": (without("host"), 421),
    "empty host": ({**GOOD, "host": ""}, 421),
    "other host": ({**GOOD, "host": "rebound.example:8000"}, 421),
    "other port": ({**GOOD, "host": "127.0.0.1:8001"}, 421),
    "no port": ({**GOOD, "host": "127.0.0.1"}, 421),
    "host with more": ({**GOOD, "host": f"{HOST}.page.example"}, 421),
    "two hosts": ([*GOOD.items(), ("host", HOST)], 421),
    "a page": ({**GOOD, "origin": PAGE}, 403),
    "null origin": ({**GOOD, "origin": "null"}, 403),
    "empty origin": ({**GOOD, "origin": ""}, 403),
    "own address as origin": ({**GOOD, "origin": f"http://{HOST}"}, 403),
    "two origins": ([*GOOD.items(), ("origin", PAGE), ("origin", PAGE)], 403),
}


@pytest.mark.parametrize(("kind", "method", "path"), list(entrances()))
@pytest.mark.parametrize("fault", BAD)
def test_every_route_refuses_every_bad_credential(kind, method, path, fault):
    """A request with one fault in its head never gets behind the gate."""
    headers, status = BAD[fault]

    got, sent, body = answer(server(), scope(kind, path, headers, method))

    assert got == status
    assert sent["content-type"] == "application/json"
    assert not any(name.startswith("access-control") for name in sent)
    assert json.loads(body)["error"]["code"]


@pytest.mark.parametrize(("kind", "method", "path"), list(entrances()))
def test_every_route_lets_good_credentials_in(kind, method, path):
    """The same requests without the fault get an answer of the route's own."""
    headers = {**GOOD, "content-type": "application/json"}

    status, _, _ = answer(server(), scope(kind, path, headers, method))

    assert status in ({101, 404} if kind == "websocket" else {200, 400, 404, 426})


@pytest.mark.parametrize(
    "headers",
    [
        {**GOOD, "host": "LOCALHOST:8000"},
        {**GOOD, "authorization": f"bearer {TOKEN}"},
        {**GOOD, "origin": PAGE},
    ],
)
def test_what_is_listed_may_come_in(headers):
    """Any listed host and origin, and the scheme in any case."""
    gate = app(ScriptedEngine(), TOKEN, [HOST, "localhost:8000"], origins=[PAGE])

    assert answer(gate, scope("http", "/health", headers))[0] == 200


def test_a_server_without_a_token_is_not_made():
    """An empty token would be one that everybody knows."""
    with pytest.raises(UsageError, match="token"):
        Gate(server(), token="", hosts=[HOST])


def test_a_websocket_without_the_extension_is_closed():
    """Where a server cannot answer an upgrade in words, it is refused without."""
    asked = {**scope("websocket", "/v1/responses", without("host")), "extensions": {}}
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(server()(asked, None, send))

    assert [message["type"] for message in sent] == ["websocket.close"]


class Echo:
    """An app that answers with the body it got."""

    async def __call__(self, _, receive, send):
        message = await receive()
        assert not message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": message["body"]})


def post(*parts, **headers):
    """Return the answer to a POST of these parts."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages[-1]["more_body"] = False
    gate = Gate(Echo(), token=TOKEN, hosts=[HOST])
    return answer(gate, scope("http", "/", {**GOOD, **named}, "POST"), *messages)


def test_a_json_body_is_passed_on_whole():
    """Whatever parts it came in, the app reads it as one."""
    status, _, body = post(b"[1", b",2]", content_type="application/json; charset=utf-8")

    assert (status, body) == (200, b"[1,2]")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content_type": "text/plain"},
        {"content_type": "application/x-www-form-urlencoded"},
        {"content_type": "application/jsonp"},
    ],
)
def test_only_json_bodies_are_taken(headers):
    """What a web page could send without asking is refused."""
    assert post(b"{}", **headers)[0] == 415


def test_a_get_with_a_body_that_is_not_json_is_refused():
    """It is the body that counts, not the method."""
    asked = scope("http", "/", {**GOOD, "content-length": "2", "content-type": "text/plain"})

    assert answer(Gate(Echo(), token=TOKEN, hosts=[HOST]), asked)[0] == 415


def test_a_body_may_be_as_long_as_the_limit():
    """The limit itself is still fine."""
    status, _, body = post(b"x" * MAX_BODY, content_type="application/json")

    assert (status, len(body)) == (200, MAX_BODY)


@pytest.mark.parametrize("announced", [{}, {"content_length": str(MAX_BODY + 1)}])
def test_a_body_over_the_limit_is_refused(announced):
    """Announced or not, one byte too many is too many."""
    parts = (b"x" * MAX_BODY, b"x")

    assert post(*parts, content_type="application/json", **announced)[0] == 413


def test_a_body_without_end_is_not_read_to_its_end():
    """Once it is too large, nobody waits for the rest."""

    async def main():
        parts = 0
        sent = []

        async def receive():
            nonlocal parts
            parts += 1
            return {"type": "http.request", "body": b"x" * 2**20, "more_body": parts < 100}

        async def send(message):
            sent.append(message)

        headers = {**GOOD, "content-type": "application/json", "transfer-encoding": "chunked"}
        await Gate(Echo(), token=TOKEN, hosts=[HOST])(
            scope("http", "/", headers, "POST"), receive, send
        )
        return parts, sent[0]["status"]

    assert asyncio.run(main()) == (MAX_BODY // 2**20 + 1, 413)


def test_a_body_that_never_comes_whole_reaches_nobody():
    """A client that leaves in the middle has asked nothing."""
    asked = scope("http", "/", {**GOOD, "content-type": "application/json"}, "POST")
    gone = {"type": "http.disconnect"}
    half = {"type": "http.request", "body": b"[1", "more_body": True}

    assert answer(Gate(Echo(), token=TOKEN, hosts=[HOST]), asked, half, gone)[0] == 413


class Waiting:
    """An app that accepts WebSockets and waits."""

    async def __call__(self, _, receive, send):
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass


async def opened(gate, inbox, asked=None):
    """Open a WebSocket and return its task and the first answer."""
    first = asyncio.get_running_loop().create_future()

    async def send(message):
        if not first.done():
            first.set_result(message)

    asked = asked or scope("websocket", "/", GOOD)
    task = asyncio.create_task(gate(asked, inbox.get, send))
    return task, await first


def test_only_so_many_websockets_are_open_at_once():
    """One too many is refused before the upgrade; when one has gone there is room again."""

    async def main():
        gate = Gate(Waiting(), token=TOKEN, hosts=[HOST])
        inboxes = [asyncio.Queue() for _ in range(MAX_SOCKETS)]
        tasks = [(await opened(gate, inbox))[0] for inbox in inboxes]
        _, full = await opened(gate, asyncio.Queue())
        inboxes[0].put_nowait({"type": "websocket.disconnect"})
        await tasks[0]
        another, again = await opened(gate, inboxes[0])
        await gate.close()
        assert all(task.done() for task in [*tasks, another])
        return full, again

    full, again = asyncio.run(main())

    assert (full["type"], full["status"]) == ("websocket.http.response.start", 503)
    assert again == {"type": "websocket.accept"}


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_nobody_comes_in_while_the_server_leaves(kind):
    """A request at the last moment is told to come again later."""

    async def leave(gate):
        await gate.close()

    gate = server()
    asyncio.run(leave(gate))

    assert answer(gate, scope(kind, "/health", GOOD))[0] == 503


def test_quiet_lasts_as_long_as_nobody_is_there():
    """An open WebSocket is company, a refused request is none."""
    now = 100.0

    async def main():
        nonlocal now
        gate = Gate(Waiting(), token=TOKEN, hosts=[HOST], clock=lambda: now)
        inbox = asyncio.Queue()
        now += 5
        await opened(gate, asyncio.Queue(), scope("websocket", "/", without("host")))
        refused = gate.quiet_seconds()
        task, _ = await opened(gate, inbox)
        now += 5
        during = gate.quiet_seconds()
        inbox.put_nowait({"type": "websocket.disconnect"})
        await task
        now += 3
        return refused, during, gate.quiet_seconds()

    assert asyncio.run(main()) == (5, 0, 3)


def test_an_answer_under_way_is_company():
    """A server does not end for idleness while a request over HTTP is being answered."""
    now = 100.0

    async def main():
        nonlocal now
        begun, over = asyncio.Event(), asyncio.Event()

        async def slow(_, __, send):
            begun.set()
            await over.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(_):
            pass

        gate = Gate(slow, token=TOKEN, hosts=[HOST], clock=lambda: now)
        asked = scope("http", "/health", GOOD)
        task = asyncio.create_task(gate(asked, receive, send))
        await begun.wait()
        now += 50
        during = gate.quiet_seconds()
        over.set()
        await task
        now += 3
        return during, gate.quiet_seconds()

    assert asyncio.run(main()) == (0, 3)
