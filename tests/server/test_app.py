"""The routes, over a real socket and with a real client."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from ipy_agent.protocol.events import ResponseCompleted, decode
from ipy_agent.protocol.response import Response
from ipy_agent.server.scripted import ScriptedEngine


def request(served, method, path, body=None, **headers):
    """Return the status, headers and JSON body of an answer; blocks."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    try:
        connection.request(method, path, body, {**served.headers, **headers})
        answer = connection.getresponse()
        return answer.status, answer.headers, json.loads(answer.read() or b"null")
    finally:
        connection.close()


def asked(listening, *wanted, engine=None):
    """Return the answers to some HTTP requests."""

    async def main():
        async with listening(engine or ScriptedEngine()) as served:
            return [await asyncio.to_thread(request, served, *each) for each in wanted]

    return asyncio.run(main())


async def turn(client, said, **more):
    """Return the events of a turn."""
    await client.send(json.dumps({"type": "response.create", "input": said, **more}))
    events = [decode(await client.recv())]
    while events[-1].KIND not in ("terminal", "error"):
        events.append(decode(await client.recv()))
    return events


def test_models_and_health_are_told(listening):
    """The two plain routes answer in JSON."""
    models, health = asked(listening, ("GET", "/v1/models"), ("GET", "/health"))

    assert models[0] == health[0] == 200
    assert [model["id"] for model in models[2]["data"]] == ["scripted"]
    assert models[2]["object"] == "list"
    assert health[2] == {"status": "ok"}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/responses", 426, "upgrade_required"),
        ("DELETE", "/v1/responses", 405, "method_not_allowed"),
        ("GET", "/v1/responses/", 404, "not_found"),
        ("GET", "/v1/responses/resp_gone", 404, "not_found"),
        ("POST", "/v1/responses/compact/more", 415, "unsupported_media_type"),
        ("DELETE", "/v1/responses/resp_gone", 405, "method_not_allowed"),
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1/chat/completions", 404, "not_found"),
    ],
)
def test_other_requests_are_refused_in_json(listening, method, path, status, code):
    """What this server does not do it says in the API's own form."""
    ((got, _, body),) = asked(listening, (method, path))

    assert (got, body["error"]["code"]) == (status, code)


def test_a_get_without_an_upgrade_is_told_what_it_is_for(listening):
    """A client whose upgrade was lost on the way learns so."""
    ((status, headers, body),) = asked(listening, ("GET", "/v1/responses"))

    assert status == 426
    assert headers["Upgrade"] == "websocket"
    assert "WebSocket" in body["error"]["message"]


def test_two_turns_over_a_real_socket(listening):
    """The second turn sends one item, and the engine counts what was held of the first."""

    async def main():
        engine = ScriptedEngine([{"text": "a b c", "chunk_chars": 2}, {"text": "d"}])
        async with listening(engine) as served, served.connect() as client:
            assert client.protocol.extensions == []
            first = await turn(client, "one two")
            return first, await turn(client, "three", previous_response_id=first[-1].response.id)

    first, second = asyncio.run(main())

    assert [event.sequence_number for event in first] == list(range(len(first)))
    assert isinstance(second[-1], ResponseCompleted)
    answer = second[-1].response
    assert isinstance(answer, Response)
    assert answer.usage.input_tokens == 6
    assert answer.usage.detail("cached_tokens") == 5


def test_small_frames_do_not_wait_for_one_another(listening):
    """Nagle's delay is off: a delta is on its way as soon as it is said."""

    async def main():
        async with listening(ScriptedEngine()) as served, served.connect():
            (accepted,) = served.server.server_state.connections
            raw = accepted.transport.get_extra_info("socket")
            return raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    assert asyncio.run(main())


@pytest.mark.parametrize(
    ("headers", "path", "status"),
    [
        ({"Authorization": "Bearer wrong"}, "/v1/responses", 401),
        ({"Origin": "null"}, "/v1/responses", 403),
        ({}, "/v1/elsewhere", 404),
    ],
)
def test_a_websocket_is_refused_in_words_before_the_upgrade(
    listening, caplog, headers, path, status
):
    """A client that may not connect gets a plain answer with a JSON body."""

    async def main():
        async with listening(ScriptedEngine()) as served:
            with pytest.raises(InvalidStatus) as refused:
                await served.connect(path, **headers)
            return refused.value.response

    response = asyncio.run(main())

    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/json"
    assert json.loads(response.body)["error"]["message"]
    assert not caplog.records


@pytest.mark.parametrize("line", ["Host: 127.0.0.1:1", "Host: 127.0.0.1"])
def test_a_second_host_header_is_refused(listening, line):
    """Whichever of the two was meant, nobody guesses."""

    async def main():
        async with listening(ScriptedEngine()) as served:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            head = [
                "GET /health HTTP/1.1",
                f"Host: 127.0.0.1:{served.port}",
                line,
                f"Authorization: {served.headers['Authorization']}",
            ]
            writer.write(("\r\n".join(head) + "\r\n\r\n").encode())
            status = await reader.readline()
            writer.close()
            return status

    assert asyncio.run(main()).split()[1] in (b"400", b"421")


@pytest.mark.parametrize(("then", "code"), [("close:1011", 1011), ("close:4000", 4000)])
def test_a_script_can_close_a_connection(listening, then, code):
    """The client sees the text, and then the close code."""

    async def main():
        engine = ScriptedEngine([{"text": "half", "then": then}])
        async with listening(engine) as served, served.connect() as client:
            with pytest.raises(ConnectionClosed) as closed:
                await turn(client, "hi")
            return closed.value.rcvd.code

    assert asyncio.run(main()) == code


def test_a_script_can_reset_a_connection(listening):
    """The connection breaks below WebSocket, as a crash would break it."""

    async def main():
        engine = ScriptedEngine([{"text": "half", "then": "reset"}])
        async with listening(engine) as served, served.connect() as client:
            with pytest.raises(ConnectionClosed) as closed:
                await turn(client, "hi")
            return closed.value

    closed = asyncio.run(main())

    assert closed.rcvd is None
    assert isinstance(closed.__cause__, ConnectionResetError)


def test_a_large_frame_is_taken_and_a_larger_one_closes(listening):
    """Frames may have 16 MiB; beyond that the client hears 1009."""

    async def main():
        async with (
            listening(ScriptedEngine([{"text": "ok"}])) as served,
            served.connect() as client,
        ):
            answer = await turn(client, "x" * (15 * 2**20))
            with pytest.raises(ConnectionClosed) as closed:
                await turn(client, "x" * (17 * 2**20))
            return answer[-1], closed.value.rcvd

    answer, closed = asyncio.run(main())

    assert isinstance(answer, ResponseCompleted)
    assert closed.code == 1009


class Seats(ScriptedEngine):
    """Tells when a seat is given back."""

    def __init__(self, script):
        super().__init__(script)
        self.left = asyncio.Event()

    async def leave(self, seat):
        await super().leave(seat)
        self.left.set()


def test_a_socket_that_vanishes_gives_its_seat_back(listening):
    """Whoever hangs up without a word is missed at once, also in the middle of a turn."""

    async def main():
        engine = Seats([{"text": "on and on", "then": "hang"}])
        async with listening(engine) as served:
            client = await served.connect()
            await client.send('{"type":"response.create","input":"hi"}')
            await client.recv()
            raw = client.transport.get_extra_info("socket")
            raw.shutdown(socket.SHUT_RDWR)
            await asyncio.wait_for(engine.left.wait(), 20)
            await client.wait_closed()

    asyncio.run(main())


def test_clients_hear_that_the_server_goes_away(listening):
    """When the server ends, open connections are closed with 1001."""

    async def main():
        async with listening(ScriptedEngine([{"text": "a", "then": "hang"}])) as served:
            client = await served.connect()
            await client.send('{"type":"response.create","input":"hi"}')
            await client.recv()
        await client.wait_closed()
        return client.close_code

    assert asyncio.run(main()) == 1001
