"""No peer is waited for without end, and none can take what others need."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import struct

import pytest

from ipy_agent.server.gate import MAX_BODY, MAX_SOCKETS
from ipy_agent.server.scripted import ScriptedEngine
from ipy_agent.server.sockets import MAX_AHEAD, MAX_STRANGERS, Patience

SHORT = 0.2
LONG = 600.0
HASTY = Patience(head=SHORT, body=LONG, taking=LONG)
PATIENT = Patience(head=LONG, body=LONG, taking=LONG)
TOKEN = "a-token-of-the-tests"
KIND = "Content-Type: application/json\r\n"


def head(served, line, more="", token=TOKEN):
    """Return a request's head."""
    host = f"Host: 127.0.0.1:{served.port}\r\nAuthorization: Bearer {token}\r\n"
    return f"{line} HTTP/1.1\r\n{host}{more}\r\n".encode()


def post(served, length, token=TOKEN, path="/v1/responses", more=""):
    return head(served, f"POST {path}", f"{KIND}Content-Length: {length}\r\n{more}", token)


@contextlib.asynccontextmanager
async def calling(served):
    """Connect, and hang up at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def answered(reader):
    """Return the status of the next answer, its body read."""
    said = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    lengths = [line for line in said.split(b"\r\n") if line.lower().startswith(b"content-length")]
    await reader.readexactly(int(lengths[0].split(b":")[1]) if lengths else 0)
    return int(said.split()[1])


async def end(reader):
    """Wait until the server hangs up, and return what it said before."""
    with contextlib.suppress(ConnectionError):
        return await asyncio.wait_for(reader.read(), 20)
    return b""


async def dribble(reader, writer, piece):
    """Say a little again and again, until the server hangs up."""
    ended = asyncio.create_task(end(reader))
    while not ended.done():
        with contextlib.suppress(ConnectionError):
            writer.write(piece)
        await asyncio.wait({ended}, timeout=SHORT / 10)
    return await ended


def within(coroutine):
    async def limited():
        async with asyncio.timeout(60):
            return await coroutine

    return asyncio.run(limited())


HALVES = {
    "nothing": "",
    "half a line": "GET /hea",
    "half a head": "GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    "half a handshake": "GET /v1/responses HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Up",
    "TLS": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("half", HALVES)
def test_a_head_has_its_time(listening, half):
    """Nobody is waited for who says nothing, or half of what he has to."""

    async def main():
        async with listening(ScriptedEngine(), patience=HASTY) as served, calling(served) as call:
            call[1].write(HALVES[half].encode("latin-1"))
            return await end(call[0])

    assert b"200 OK" not in within(main())


@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_head_that_never_ends_is_cut_off(listening, before):
    """A little more of it now and then gains no time, on a connection that was of use neither."""

    async def main():
        async with listening(ScriptedEngine(), patience=HASTY) as served, calling(served) as call:
            reader, writer = call
            for _ in range(before):
                writer.write(head(served, "GET /health"))
                assert await answered(reader) == 200
            writer.write(b"GET /health HTTP/1.1\r\n")
            return await dribble(reader, writer, b"x: y\r\n")

    assert within(main()) == b""


@pytest.mark.parametrize("shape", ["many", "long", "long line"])
def test_a_head_has_its_size(listening, shape):
    """Neither many headers nor long ones are collected."""
    said = {"many": b"a: b\r\n" * 5_000, "long": b"a: " + b"b" * 30_000, "long line": b"y" * 30_000}

    async def main():
        async with listening(ScriptedEngine(), patience=PATIENT) as served, calling(served) as call:
            call[1].write(b"GET /" if shape == "long line" else b"GET / HTTP/1.1\r\n")
            call[1].write(said[shape])
            return await end(call[0])

    got = within(main())
    assert got == b"" or got.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("token", [TOKEN, "wrong"])
@pytest.mark.parametrize(
    "coding", ["Content-Length: 4000000\r\n", "Transfer-Encoding: chunked\r\n"]
)
def test_a_body_that_dribbles_is_cut_off(listening, token, coding):
    """Who may ask and who may not, both have so long for a body; a stranger hears why."""
    patience = Patience(head=LONG, body=SHORT, taking=LONG)

    async def main():
        async with (
            listening(ScriptedEngine(), patience=patience) as served,
            calling(served) as call,
        ):
            call[1].write(head(served, "POST /v1/responses", KIND + coding, token))
            return await dribble(*call, b"1\r\n0\r\n" if "chunked" in coding else b"0")

    got = within(main())
    assert got == b"" if token == TOKEN else got.startswith(b"HTTP/1.1 401 ")


def test_a_body_that_waits_to_be_asked_for_is_asked_for(listening):
    """The token is checked before the server says `100 Continue`."""
    more = "Expect: 100-continue\r\n"
    body = json.dumps({"input": "hi", "store": False}).encode()

    async def main():
        async with listening(ScriptedEngine()) as served:
            async with calling(served) as (reader, writer):
                writer.write(post(served, len(body), "wrong", more=more))
                refused = await answered(reader)
            async with calling(served) as (reader, writer):
                writer.write(post(served, len(body), more=more))
                asked = await answered(reader)
                writer.write(body)
                return refused, asked, await answered(reader)

    assert within(main()) == (401, 100, 200)


@pytest.mark.parametrize(
    "said", [b"", b"GET / HTTP/1.1\r\n", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"]
)
def test_strangers_keep_nobody_out(listening, said):
    """However many connect and stay: there is room for so many, and the oldest makes way."""
    crowd = MAX_STRANGERS * 2

    async def main():
        async with (
            listening(ScriptedEngine(), patience=PATIENT) as served,
            contextlib.AsyncExitStack() as stack,
        ):
            client = await stack.enter_async_context(served.connect())
            calls = []
            for _ in range(crowd):
                calls.append(await stack.enter_async_context(calling(served)))
                calls[-1][1].write(said)
            async with calling(served) as (reader, writer):
                writer.write(head(served, "GET /health"))
                health = await answered(reader)
            await asyncio.gather(*(end(reader) for reader, _ in calls[: crowd - MAX_STRANGERS]))
            there = len(served.server.server_state.connections)
            await client.send('{"type":"response.create","input":"hi"}')
            return health, json.loads(await client.recv())["type"], there

    *answers, there = within(main())

    assert answers == [200, "response.created"]
    assert there <= MAX_STRANGERS + 1


def test_who_is_being_answered_is_no_stranger(listening, watched):
    """A stream over HTTP outlives a crowd that came after it."""
    go_on = asyncio.Event()
    body = json.dumps({"input": "hi", "stream": True}).encode()

    async def main():
        async with (
            listening(watched(lambda _: go_on.wait()), patience=PATIENT) as served,
            calling(served) as call,
        ):
            reader, writer = call
            writer.write(post(served, len(body)) + body)
            await asyncio.wait_for(reader.readuntil(b"response.in_progress"), 20)
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(MAX_STRANGERS * 2):
                    await stack.enter_async_context(calling(served))
                go_on.set()
                return await asyncio.wait_for(reader.readuntil(b"response.completed"), 20)

    assert within(main())


class Talking:
    """An engine that never ends, and knows whether it runs."""

    models = ("talking",)

    def __init__(self, chunk=2**16):
        self.piece = "x" * chunk
        self.begun, self.stopped = asyncio.Event(), asyncio.Event()
        self.left = asyncio.Event()

    async def generate(self, job, seat):  # noqa: ARG002
        from ipy_agent.server.engine import TextPiece

        self.begun.set()
        try:
            while True:
                await asyncio.sleep(0)
                yield TextPiece(self.piece)
                if not self.piece:
                    await asyncio.Event().wait()
        finally:
            self.stopped.set()

    async def leave(self, seat):  # noqa: ARG002
        self.left.set()

    async def aclose(self):
        """Do nothing."""

    async def gone(self):
        """Wait until the turn has stopped and its seat is free."""
        async with asyncio.timeout(20):
            await self.stopped.wait()
            await self.left.wait()
        return True


ASK = '{"type":"response.create","input":"hi"}'


def deaf(served):
    """Return a TCP connection that takes little in."""
    call = socket.socket()
    call.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    call.connect(("127.0.0.1", served.port))
    return call


def masked(opcode, payload, *, fin=True, bits=0):
    """Return a client's frame; its mask is zero."""
    first = (0x80 if fin else 0) | bits | opcode
    size = len(payload)
    if size < 126:
        length = struct.pack("!BB", first, 0x80 | size)
    elif size < 2**16:
        length = struct.pack("!BBH", first, 0x80 | 126, size)
    else:
        length = struct.pack("!BBQ", first, 0x80 | 127, size)
    return length + bytes(4) + payload


UPGRADE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def begin(served, way):
    """Return the bytes that begin a stream."""
    if way == "http":
        body = json.dumps({"input": "hi", "stream": True}).encode()
        return post(served, len(body)) + body
    return head(served, "GET /v1/responses", UPGRADE) + masked(1, ASK.encode())


async def begun(served, way, engine):
    """Have a connection that reads nothing begin a stream."""
    call = await asyncio.to_thread(deaf, served)
    said = begin(served, way)
    at = said.index(b"\r\n\r\n") + 4
    call.sendall(said[:at])
    if way == "websocket":  # its frames come after the server's answer
        await asyncio.to_thread(call.recv, 2048)
    call.sendall(said[at:])
    await asyncio.wait_for(engine.begun.wait(), 20)
    return call


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("way", ["websocket", "http"])
def test_who_takes_nothing_is_cut_off(listening, way, half):
    """A peer that stops reading is let go, and so is what is generated for it."""
    patience = Patience(head=LONG, body=LONG, taking=SHORT)
    engine = Talking()

    async def main():
        async with listening(engine, patience=patience) as served:
            with await begun(served, way, engine) as call:
                if half:
                    call.shutdown(socket.SHUT_WR)
                return await engine.gone()

    assert within(main())


def test_who_takes_little_is_not_cut_off(listening):
    """A slow reader takes as long as it needs: it is progress that counts."""
    patience = Patience(head=LONG, body=LONG, taking=SHORT)
    text = "word " * 2**18

    async def main():
        async with listening(ScriptedEngine([{"text": text}]), patience=patience) as served:
            body = json.dumps({"input": "hi"}).encode()
            with await asyncio.to_thread(deaf, served) as call:
                call.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(call, post(served, len(body)) + body)
                got = b""
                while not got.endswith(b"}"):
                    got += await asyncio.wait_for(loop.sock_recv(call, 16384), 20)
                    await asyncio.wait({loop.create_future()}, timeout=SHORT / 100)
                return len(got)

    assert within(main()) > len(text)


@pytest.mark.parametrize("answers", [True, False])
def test_who_answers_no_ping_has_vanished(listening, answers):
    """Without a word from the other machine, a ping that is not answered says that it is gone."""
    engine = Talking(0)
    patience = Patience(head=LONG, body=LONG, taking=LONG, ping=SHORT, pong=SHORT)

    async def main():
        async with listening(engine, patience=patience) as served, calling(served) as call:
            reader, writer = call
            writer.write(head(served, "GET /v1/responses", UPGRADE))
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
            writer.write(masked(1, ASK.encode()))
            pings = 0
            while pings < 5:
                opcode, payload = await heard(reader)
                if opcode == 8:
                    return await engine.gone(), int.from_bytes(payload[:2])
                pings += opcode == 9
                if opcode == 9 and answers:
                    writer.write(masked(10, payload))
            return engine.stopped.is_set(), pings

    assert within(main()) == ((False, 5) if answers else (True, 1011))


def test_a_websocket_owes_no_more_heads(listening):
    """It may be silent for longer than a head may take."""

    async def main():
        async with (
            listening(ScriptedEngine(), patience=HASTY) as served,
            served.connect() as client,
        ):
            async with calling(served) as (reader, _):
                await end(reader)  # its time was up later than the WebSocket's would have been
            await client.send(ASK)
            return json.loads(await client.recv())["type"]

    assert within(main()) == "response.created"


def test_a_body_on_its_way_is_no_strangers(listening):
    """Who may ask is not pushed out while the rest of its request is still to come."""

    async def main():
        async with listening(ScriptedEngine(), patience=PATIENT) as served, calling(served) as call:
            reader, writer = call
            writer.write(post(served, len(BODY)) + BODY[:5])
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(MAX_STRANGERS * 2):
                    await stack.enter_async_context(calling(served))
                writer.write(BODY[5:])
                return await answered(reader)

    assert within(main()) == 200


ENDS = ["close", "reset", "half", "goodbye"]


@pytest.mark.parametrize("ending", ENDS)
@pytest.mark.parametrize("silent", [True, False])
@pytest.mark.parametrize("way", ["websocket", "http", "pipelining"])
def test_a_client_that_goes_frees_all_it_had(listening, way, silent, ending):
    """However it goes, whether anything is being said or not, and read or not."""
    engine = Talking(0 if silent else 2**10)

    async def main():
        async with listening(engine, patience=PATIENT) as served:
            call = await begun(served, way.replace("pipelining", "http"), engine)
            if way == "pipelining":
                call.sendall(head(served, "GET /health"))
            if ending == "goodbye" and way == "websocket":
                call.sendall(masked(8, struct.pack("!H", 1000)))
            if ending == "reset":
                call.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if ending == "half" and silent:
                call.shutdown(socket.SHUT_WR)
                gone = await engine.gone()
                call.close()
                return gone
            call.close()
            return await engine.gone()

    assert within(main())


def test_what_is_said_ahead_has_a_bound(listening):
    """While one request is answered, others may come, but not without end."""
    engine = Talking(0)

    async def main():
        async with listening(engine, patience=PATIENT) as served:
            with await begun(served, "http", engine) as call:
                call.sendall(head(served, "GET /health") + b"x" * 2 * MAX_AHEAD)
                return await engine.gone()

    assert within(main())


def test_requests_one_behind_another_are_all_answered(listening):
    """In their order, each by its own credentials."""

    async def main():
        async with listening(ScriptedEngine()) as served, calling(served) as (reader, writer):
            asks = [head(served, "GET /health"), head(served, "GET /health", token="wrong")] * 3
            writer.write(b"".join(asks))
            return [await answered(reader) for _ in asks]

    assert within(main()) == [200, 401] * 3


@pytest.mark.parametrize("opcode", [9, 10, 1])
def test_a_flood_that_is_not_read_for_stops(listening, opcode):
    """Pings (answered by pongs), pongs, and frames that are refused: none fills the memory."""
    frame = masked(opcode, b"x" * 125) * 500
    most = 24 * 2**20

    async def main():
        async with listening(ScriptedEngine(), patience=PATIENT) as served:
            with await asyncio.to_thread(deaf, served) as call:
                call.sendall(head(served, "GET /v1/responses", UPGRADE))
                await asyncio.to_thread(call.recv, 2048)
                call.setblocking(False)
                loop = asyncio.get_running_loop()
                sent = 0
                with contextlib.suppress(TimeoutError):
                    while sent < most:
                        await asyncio.wait_for(loop.sock_sendall(call, frame), 1)
                        sent += len(frame)
                (wire,) = served.server.server_state.connections
                async with calling(served) as (reader, writer):
                    writer.write(head(served, "GET /health"))
                    return sent, wire.transport.get_write_buffer_size(), await answered(reader)

    sent, held, health = within(main())

    assert health == 200
    assert sent >= most if opcode == 10 else sent < most
    assert held < 2**20


FRAME = 16 * 2**20


async def shaken(served, reader, writer):
    """Have a connection be a WebSocket."""
    writer.write(head(served, "GET /v1/responses", UPGRADE))
    return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)


async def heard(reader):
    """Return the opcode and the payload of the server's next frame."""
    first, size = await asyncio.wait_for(reader.readexactly(2), 60)
    for marker, length in ((126, 2), (127, 8)):
        if size == marker:
            size = int.from_bytes(await reader.readexactly(length))
            break
    return first & 15, await asyncio.wait_for(reader.readexactly(size), 60)


def frames(listening, *said):
    """Return what a server says first to some bytes: an opcode, and a code or an error's code."""

    async def main():
        async with listening(ScriptedEngine(), patience=PATIENT) as served, calling(served) as call:
            await shaken(served, *call)
            with contextlib.suppress(ConnectionError):
                for part in said:
                    call[1].write(part)
                    await call[1].drain()
            opcode, payload = await heard(call[0])
            if opcode == 8:
                return opcode, int.from_bytes(payload[:2])
            event = json.loads(payload)
            return opcode, event["error"]["code"] if "error" in event else event["type"]

    return within(main())


def test_a_frame_may_be_as_large_as_the_limit(listening):
    """The limit itself is still read, and answered in words."""
    assert frames(listening, masked(1, b"x" * FRAME)) == (1, "invalid_event")


PIECE = masked(0, b"x" * 2**20, fin=False)
TOO_BIG = {
    "one frame": [masked(1, b"x" * (FRAME + 1))],
    "announced alone": [struct.pack("!BBQ", 0x81, 0x80 | 127, 2**62)],
    "pieces": [masked(1, b"", fin=False), *[PIECE] * 16, masked(0, b"x")],
}


@pytest.mark.parametrize("shape", TOO_BIG)
def test_a_frame_over_the_limit_ends_the_connection(listening, shape):
    """In one piece or in many, one byte too many is 1009, and is not waited for."""
    assert frames(listening, *TOO_BIG[shape]) == (8, 1009)


@pytest.mark.parametrize("size", [0, 1])
def test_a_frame_of_many_pieces_is_a_frame(listening, size):
    """Twenty thousand fragments, even empty ones, are read as the one text they are."""
    spaces = masked(0, b" " * size, fin=False) * 20_000
    said = [masked(1, ASK[:9].encode(), fin=False), spaces, masked(0, ASK[9:].encode())]

    if size:  # inside a string, where they are a part of it
        assert frames(listening, *said) == (1, "unknown_event_type")
    else:
        assert frames(listening, *said) == (1, "response.created")


ILL = {
    "not UTF-8": (masked(1, b'"\xff"'), 1007),
    "binary": (masked(2, b"{}"), 1003),
    "not masked": (bytes([0x81, 2]) + b"{}", 1002),
    "a bit that only deflate has": (masked(1, b"\xaa\x00", bits=0x40), 1002),
    "a piece of nothing": (masked(0, b"{}"), 1002),
    "a large ping": (masked(9, b"x" * 126), 1002),
    "a ping in pieces": (masked(9, b"x", fin=False), 1002),
    "an unknown opcode": (masked(3, b""), 1002),
    "a close of one byte": (masked(8, b"x"), 1002),
    "a close with a code that is none": (masked(8, struct.pack("!H", 1005)), 1002),
}


@pytest.mark.parametrize("ill", ILL)
def test_what_is_no_websocket_ends_with_its_code(listening, ill):
    """Each fault of framing has the code that the standard gives it."""
    said, code = ILL[ill]

    assert frames(listening, said) == (8, code)


def test_empty_frames_are_answered_one_by_one(listening):
    """A thousand of nothing at all are a thousand refusals, and a turn behind them works."""

    async def main():
        async with listening(ScriptedEngine(), patience=PATIENT) as served, calling(served) as call:
            await shaken(served, *call)
            call[1].write(masked(1, b"") * 1_000 + masked(1, ASK.encode()))
            told = [json.loads((await heard(call[0]))[1]) for _ in range(1_001)]
            return {event["type"] for event in told[:-1]}, told[-1]["type"]

    assert within(main()) == ({"error"}, "response.created")


@pytest.mark.parametrize(
    "offer", ["permessage-deflate", "permessage-deflate; client_max_window_bits"]
)
def test_deflate_is_not_agreed_to(listening, offer):
    """What a small frame would unpack to is no question where nothing is unpacked."""

    async def main():
        async with listening(ScriptedEngine()) as served, calling(served) as (reader, writer):
            more = UPGRADE + f"Sec-WebSocket-Extensions: {offer}\r\n"
            writer.write(head(served, "GET /v1/responses", more))
            return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)

    answer = within(main())

    assert answer.startswith(b"HTTP/1.1 101 ")
    assert b"extensions" not in answer.lower()


def chunked(body, size=2**16):
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in [*pieces, b""])


BODY = json.dumps({"input": "hi", "store": False}).encode()
TE = "Transfer-Encoding: chunked\r\n"
HIDDEN = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
SHAPES = {
    "chunked": (TE, chunked(BODY, 3), [200]),
    "chunked and too large": (TE, chunked(b" " * (MAX_BODY + 1)), [413]),
    "announced as too large": (f"Content-Length: {MAX_BODY + 1}\r\n", b"", [413]),
    "of a length that is absurd": (f"Content-Length: {'9' * 5_000}\r\n", b"", [400]),
    "of a length below zero": ("Content-Length: -1\r\n", b"", [400]),
    "of a length with a sign": (f"Content-Length: +{len(BODY)}\r\n", BODY, [400]),
    "of two lengths": ("Content-Length: 5\r\nContent-Length: 6\r\n", BODY, [400]),
    "longer than it says": (f"Content-Length: {len(BODY)}\r\n", BODY + HIDDEN, [200, 401]),
    "both ways": (f"Content-Length: 5\r\n{TE}", chunked(BODY) + HIDDEN, [200, 401]),
    "both ways, a trap": (f"{TE}Content-Length: 900\r\n", b"0\r\n\r\n" + HIDDEN, [400, 401]),
    "coded twice": ("Transfer-Encoding: gzip, chunked\r\n", chunked(BODY), [400]),
    "coded oddly": ("Transfer-Encoding: \x0bchunked\r\n", chunked(BODY), [400]),
    "a name with a space": ("Content-Length : 5\r\n", b"", [400]),
    "folded": (f"X: a\r\n b\r\nContent-Length: {len(BODY)}\r\n", BODY, [200]),
    "a bad chunk": (TE, b"zz\r\n", [400]),
    "a long chunk head": (TE, b"1;" + b"x" * 40_000, [400]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_body_is_what_its_head_says(listening, shape):
    """No shape of it hides a request, and what comes behind needs the token for itself."""
    more, body, expected = SHAPES[shape]

    async def main():
        async with listening(ScriptedEngine(), patience=PATIENT) as served, calling(served) as call:
            call[1].write(head(served, "POST /v1/responses", KIND + more) + body)
            got = []
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while len(got) < len(expected):
                    got += [await answered(call[0])]
            return got

    assert within(main()) == expected


def test_what_is_packed_is_not_unpacked(listening):
    """A body of another coding is refused as the JSON that it is not."""
    body = gzip.compress(b" " * 2**24 + BODY)
    more = f"Content-Encoding: gzip\r\nContent-Length: {len(body)}\r\n"

    async def main():
        async with listening(ScriptedEngine()) as served, calling(served) as (reader, writer):
            writer.write(head(served, "POST /v1/responses", KIND + more) + body)
            return await answered(reader)

    assert within(main()) == 400


def test_so_many_requests_are_answered_at_once(listening):
    """One more is refused and may come again; what costs nothing is answered still."""

    async def main():
        async with (
            listening(Talking(0), patience=PATIENT) as served,
            contextlib.AsyncExitStack() as stack,
        ):
            said = begin(served, "http")
            calls = [await stack.enter_async_context(calling(served)) for _ in range(MAX_SOCKETS)]
            for reader, writer in calls:
                writer.write(said)
                assert await answered(reader) == 200
            async with calling(served) as (reader, writer):
                writer.write(said + head(served, "GET /health"))
                crowded = await answered(reader), await answered(reader)
            calls[0][1].transport.abort()
            while True:
                async with calling(served) as (reader, writer):
                    writer.write(said)
                    if (again := await answered(reader)) != 503:
                        return crowded, again

    assert within(main()) == ((503, 200), 200)


def test_a_port_is_given_up_after_its_file(listening):
    """Whoever still finds the file finds our server there, not one that took its port."""
    seen = []

    async def main():
        def leaving():
            with socket.create_connection(("127.0.0.1", served.port)):
                seen.append(True)

        async with listening(ScriptedEngine(), leaving=leaving) as served:
            pass
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", served.port)

    within(main())

    assert seen == [True]


def test_those_who_came_and_went_leave_no_task(listening):
    """Nothing of a connection is kept: no task, no place at the gate."""

    async def main():
        engine = Talking(0)
        async with listening(engine, patience=PATIENT) as served:
            before = len(asyncio.all_tasks())
            for number in range(30):
                engine.begun.clear()
                way = ("websocket", "http")[number % 2]
                (await begun(served, way, engine)).close()
                async with calling(served) as (reader, writer):
                    writer.write(
                        head(served, "GET /health", UPGRADE if number % 3 else "", "wrong")
                    )
                    assert await answered(reader) == 401
            state = served.server.server_state
            while len(asyncio.all_tasks()) > before or state.connections:  # noqa: ASYNC110 (no event)
                await asyncio.sleep(0)
            return state.tasks, served.server.gate.quiet_seconds() > 0

    assert within(main()) == (set(), True)
