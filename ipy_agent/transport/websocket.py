"""One live WebSocket to an endpoint, kept across cells: each turn sends only what is new.

One task reads the socket and hands every event to the lane it belongs to; a lane holds the
table of moves, the lineage and a queue. A turn that is abandoned retires its connection,
since the protocol has no cancel and a late answer must not meet the next question.

Rule 1: everything here runs on one event loop. Nothing is printed or logged.
Rule 2: a request counts as sent from the moment it is handed to the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidProxy,
    InvalidStatus,
    InvalidURI,
)

from ipy_agent.errors import (
    AgentError,
    AuthenticationFailed,
    ConnectionFailed,
    ConnectionLost,
    MessageTooBig,
    NoAnswer,
    ProtocolError,
    UpgradeRefused,
)
from ipy_agent.protocol.events import (
    TERMINAL,
    Error,
    Event,
    ItemDone,
    Request,
    ResponseCompleted,
    decode,
)
from ipy_agent.protocol.items import Item
from ipy_agent.protocol.lanes import CLIENT, SERVER, IllegalMove, Lane, State
from ipy_agent.protocol.lineage import Lineage
from ipy_agent.settings import Endpoint
from ipy_agent.trace import Notice, RequestSent, ResponseEnded
from ipy_agent.transport import Stream
from ipy_agent.transport.local import local_server

__all__ = ["WebSocketTransport"]

MAX_FRAME = 16 * 2**20
OPEN_SECONDS = 15.0
FIRST_EVENT_SECONDS = 60.0
IDLE_SECONDS = 300.0
CLOSE_SECONDS = 0.3

_Arrival = tuple[int, Event]


class _Address(msgspec.Struct, frozen=True):
    """Where to connect, and with which key (never shown)."""

    url: str
    key: str | None

    def __repr__(self) -> str:
        return f"<address {self.url}>"


class _LiveLane:
    """A lane as its client keeps it: where it stands, what the peer holds, what arrived."""

    def __init__(self, name: str | None) -> None:
        self.moves = Lane(name)
        self.lineage = Lineage()
        self.arrived: asyncio.Queue[_Arrival | AgentError] = asyncio.Queue()


class _Connection:
    """One socket, and the task that reads it."""

    def __init__(self, number: int, socket: ClientConnection, connect_ms: float) -> None:
        self.number = number
        self.socket = socket
        self.connect_ms = connect_ms
        self.opened_at = time.monotonic()
        self.turns = 0
        self.ignored = 0
        self.lost: AgentError | None = None
        self._lanes: dict[str | None, _LiveLane] = {}
        self._reader = asyncio.create_task(self._read())

    @property
    def usable(self) -> bool:
        """Whether a turn may begin here: the socket lives and no lane is in a turn."""
        return self.lost is None and all(
            lane.moves.state is State.IDLE for lane in self._lanes.values()
        )

    def lane(self, name: str | None) -> _LiveLane:
        """Return the lane of this name; a new one holds nothing."""
        return self._lanes.setdefault(name, _LiveLane(name))

    async def send(self, lane: _LiveLane, request: Request) -> int:
        """Send a request on an idle lane and return its bytes."""
        frame = request.frame()
        lane.moves.move(CLIENT, "create")
        try:
            await self.socket.send(frame, text=True)
        except ConnectionClosed as closed:
            raise self.lost or _lost(closed) from None
        return len(frame)

    async def close(self, code: int = 1000) -> None:
        """Close the socket and wait for its reader."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.socket.close(code)
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader

    async def _read(self) -> None:
        try:
            while True:
                frame = await self.socket.recv(decode=False)
                self._deliver(decode(frame), len(frame))
        except ConnectionClosed as closed:
            self.lost = _lost(closed)
        except (msgspec.DecodeError, IllegalMove) as error:
            self.lost = ProtocolError(f"the endpoint broke the protocol: {error}", sent=True)
            await self.socket.close(1002)
        finally:
            self.lost = self.lost or ConnectionLost("the connection was let go", sent=True)
            for lane in self._lanes.values():
                lane.moves.move(SERVER, "close")
                lane.arrived.put_nowait(self.lost)

    def _deliver(self, event: Event, size: int) -> None:
        lane = self._lanes.get(event.stream_id or None)
        if lane is None or lane.moves.state is State.IDLE:
            # What belongs to no turn of ours is not worth a connection.
            self.ignored += 1
            return
        lane.moves.move(SERVER, event.KIND)
        lane.arrived.put_nowait((size, event))


class WebSocketTransport:
    """The live connection to one endpoint. Made at no cost; connects at the first turn.

    Args:
        endpoint: where responses come from.
        first_event: seconds that the endpoint has for its first event of a turn.
        idle: seconds of silence in a turn after which it counts as lost.
        locate: how the server of the endpoint `local` is found or started.
    """

    name = "websocket"

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        first_event: float = FIRST_EVENT_SECONDS,
        idle: float = IDLE_SECONDS,
        locate: Callable[..., Awaitable[tuple[str, str | None]]] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._first_event = first_event
        self._idle = idle
        self._locate = locate or _local_address
        self._connection: _Connection | None = None
        self._connections = 0

    async def stream(self, request: Request) -> Stream:
        """Answer a whole request; see `Transport.stream`."""
        reused = self._connection is not None and self._connection.usable
        if not reused:
            async with contextlib.aclosing(self._connect(request)) as notices:
                async for notice in notices:
                    yield notice
        connection = self._connection
        assert connection is not None  # noqa: S101 (connecting raises otherwise)
        lane = connection.lane(request.stream_id)
        connection.turns += 1
        try:
            for attempt in range(2):
                short = lane.lineage.shorten(request)
                sent_bytes = await connection.send(lane, short)
                yield RequestSent(
                    transport=self.name,
                    connection=connection.number,
                    reused=reused,
                    connect_ms=None if reused else connection.connect_ms,
                    previous_response_id=short.previous_response_id,
                    sent_items=len(short.input),
                    held_items=len(request.input) - len(short.input),
                    sent_bytes=sent_bytes,
                    full_bytes=request.size(),
                    attempt=attempt,
                )
                received, done = 0, list[Item]()
                async for size, event in self._events(lane):
                    received += size
                    if isinstance(event, ItemDone):
                        done.append(event.item)
                    elif isinstance(event, TERMINAL):
                        event.response.output = event.response.output or done
                        _learn(lane.lineage, request, event)
                    elif isinstance(event, Error):
                        lane.lineage.forget()
                        if _parent_is_gone(event) and short is not request:
                            break  # the remedy is the same turn in full, once
                    yield event
                else:
                    yield ResponseEnded(received_bytes=received)
                    return
        finally:
            if not connection.usable:
                await self._retire()

    def describe(self) -> str:
        """Return where the connection stands, in one line."""
        connection = self._connection
        if connection is None or connection.lost is not None:
            return "not connected"
        minutes = (time.monotonic() - connection.opened_at) / 60
        return (
            f"connected (WebSocket {connection.number}, {connection.turns} turns, "
            f"open for {minutes:.1f} min)"
        )

    async def aclose(self) -> None:
        """Close with 1000 and forget the connection."""
        await self._retire()

    async def _retire(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _events(self, lane: _LiveLane) -> AsyncIterator[_Arrival]:
        deadline = self._first_event
        while True:
            if lane.arrived.empty():
                try:
                    async with asyncio.timeout(deadline):
                        arrival = await lane.arrived.get()
                except TimeoutError:
                    raise NoAnswer(
                        f"{self.endpoint.name} was silent for {deadline:.0f} s; run the cell again",
                        sent=True,
                    ) from None
            else:
                arrival = lane.arrived.get_nowait()
            if isinstance(arrival, AgentError):
                raise arrival
            yield arrival
            if arrival[1].KIND in ("terminal", "error"):
                return
            deadline = self._idle

    async def _connect(self, request: Request) -> AsyncIterator[Notice]:
        """Open a new connection, telling on the way what takes long."""
        await self._retire()
        endpoint, address = self.endpoint, _Address(self.endpoint.url, None)
        if endpoint.url:
            address = _Address(endpoint.websocket_url, endpoint.key())
        else:
            notices: asyncio.Queue[str | None] = asyncio.Queue()
            finding = asyncio.create_task(
                self._locate(notices.put_nowait, model=request.fields.values.get("model"))
            )
            finding.add_done_callback(lambda _: notices.put_nowait(None))
            try:
                while (text := await notices.get()) is not None:
                    yield Notice(text=text)
                url, key = await finding
            finally:
                finding.cancel()
            address = _Address(Endpoint(name="local", url=url).websocket_url, key)
        began = time.perf_counter()
        socket = await _open(endpoint, address)
        self._connections += 1
        self._connection = _Connection(
            self._connections, socket, (time.perf_counter() - began) * 1_000
        )


async def _local_address(
    notice: Callable[[str], None], *, model: str | None
) -> tuple[str, str | None]:
    server = await local_server(notice, model=model)
    return server.url, server.token


async def _open(endpoint: Endpoint, address: _Address) -> ClientConnection:
    """Connect, and say in one line why not."""
    headers = {"Authorization": f"Bearer {address.key}"} if address.key else {}
    try:
        return await connect(
            address.url,
            additional_headers=headers,
            open_timeout=OPEN_SECONDS,
            max_size=MAX_FRAME,
            compression=None,
            # Loopback never goes through a proxy, whatever HTTP_PROXY says.
            proxy=None if endpoint.loopback else True,
        )
    except InvalidStatus as refused:
        raise _refused(endpoint, refused) from None
    except ssl.SSLError as error:
        raise ConnectionFailed(
            f"the certificate of {endpoint.url} does not hold: {error.reason}"
        ) from None
    except (OSError, TimeoutError, InvalidHandshake, InvalidProxy, InvalidURI) as error:
        reason = str(error) or type(error).__name__
        raise ConnectionFailed(
            f"nothing answers at {endpoint.url or address.url} ({reason}): check the address, "
            "or choose another endpoint with `%agent connect`"
        ) from None


def _refused(endpoint: Endpoint, refused: InvalidStatus) -> AgentError:
    status = refused.response.status_code
    if status == 401:  # noqa: PLR2004 (HTTP's own number)
        key = f"check {endpoint.key_env}" if endpoint.key_env else "name its variable (--key-env)"
        return AuthenticationFailed(f"{endpoint.name} does not take the key: {key}")
    return UpgradeRefused(
        f"{endpoint.name} answers at {endpoint.url}, but refuses a WebSocket (HTTP {status}): "
        "use an endpoint that speaks the Responses API over WebSocket",
        status=status,
    )


def _lost(closed: ConnectionClosed) -> AgentError:
    code = closed.rcvd.code if closed.rcvd else None
    if 1009 in (code, closed.sent.code if closed.sent else None):  # noqa: PLR2004 (RFC 6455)
        return MessageTooBig(
            f"a message was too big for the connection (the limit here is {MAX_FRAME:,} bytes): "
            "send less, or start over with `%agent reset`",
            sent=True,
        )
    why = f"close code {code}" if code else "no goodbye"
    return ConnectionLost(
        f"the connection was lost in a turn ({why}); run the cell again", sent=True, close_code=code
    )


def _learn(lineage: Lineage, request: Request, event: Event) -> None:
    if isinstance(event, ResponseCompleted):
        lineage.remember(request, event.response.id, event.response.output or [])
    else:
        lineage.forget()


def _parent_is_gone(event: Error) -> bool:
    return event.reason.code == "previous_response_not_found"
