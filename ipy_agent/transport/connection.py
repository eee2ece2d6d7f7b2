"""One socket to an endpoint: opened, read by one task, closed.

The reader hands every event to the lane it belongs to; a lane holds the table of moves, the
lineage and a queue. What ends a connection ends it once: `lost` says why, and every lane
that is open hears it.

Rule 1: what no turn of ours asked for is ignored; what breaks the protocol in a turn ends it.
Rule 2: a close never waits long for its peer, and a redirect is a refusal.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidProxy,
    InvalidStatus,
    InvalidURI,
)
from websockets.protocol import State as SocketState

from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import (
    AgentError,
    AuthenticationFailed,
    ConnectionFailed,
    ConnectionLost,
    MessageTooBig,
    ProtocolError,
    UpgradeRefused,
)
from ipy_agent.protocol.events import TERMINAL, Event, ResponseCompleted, decode
from ipy_agent.protocol.items import Item
from ipy_agent.protocol.lanes import CLIENT, SERVER, IllegalMove, Lane, State
from ipy_agent.protocol.lineage import Lineage
from ipy_agent.protocol.requests import Request

__all__ = ["MAX_FRAME", "Address", "Arrival", "Connection", "LiveLane", "open_connection"]

MAX_FRAME = 16 * 2**20
OPEN_SECONDS = 15.0
CLOSE_SECONDS = 0.3

Arrival = tuple[int, Event]
"""An event, and the bytes of its frame."""


class Address(msgspec.Struct, frozen=True):
    """Where to connect, and with which key (never shown)."""

    url: str
    key: str | None

    def __repr__(self) -> str:
        return f"<address {self.url}>"


class LiveLane:
    """A lane as its client keeps it: where it stands, what the peer holds, what arrived."""

    def __init__(self, name: str | None) -> None:
        self.moves = Lane(name)
        self.lineage = Lineage()
        self.arrived: asyncio.Queue[Arrival | AgentError] = asyncio.Queue()

    def learn(self, request: Request, end: Event, done: list[Item]) -> None:
        """Take note of how a turn ended; an output that was not told again is what was done."""
        if isinstance(end, TERMINAL):
            end.response.output = end.response.output or done
        if isinstance(end, ResponseCompleted):
            self.lineage.remember(request, end.response.id, end.response.output or [])
        else:
            self.lineage.forget()


class Connection:
    """One socket, and the task that reads it."""

    def __init__(self, number: int, socket: ClientConnection, connect_ms: float) -> None:
        self.number = number
        self.socket = socket
        self.connect_ms = connect_ms
        self.opened_at = time.monotonic()
        self.turns = 0
        self.ignored = 0
        self.lost: AgentError | None = None
        self._sent_bytes = 0
        self._lanes: dict[str | None, LiveLane] = {}
        self._reader = asyncio.create_task(self._read())

    @property
    def usable(self) -> bool:
        """Whether a turn may begin here: the socket lives and no lane is in a turn."""
        return (
            self.lost is None
            and self.socket.state is SocketState.OPEN
            and all(lane.moves.state is State.IDLE for lane in self._lanes.values())
        )

    def lane(self, name: str | None) -> LiveLane:
        """Return the lane of this name; a new one holds nothing."""
        return self._lanes.setdefault(name, LiveLane(name))

    async def send(self, lane: LiveLane, request: Request) -> int:
        """Send a request on an idle lane and return its bytes."""
        frame = request.frame()
        lane.moves.move(CLIENT, "create")
        self._sent_bytes = len(frame)
        try:
            await self.socket.send(frame, text=True)
        except ConnectionClosed as closed:
            raise self.lost or _lost(closed, self._sent_bytes) from None
        return len(frame)

    async def close(self) -> None:
        """Say goodbye, and let go of the socket whether the peer answers that or not."""
        code = 1002 if isinstance(self.lost, ProtocolError) else 1000
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self.socket.close(code)
        finally:
            self.socket.transport.abort()
            self._reader.cancel()
        await asyncio.wait([self._reader])

    async def _read(self) -> None:
        try:
            while True:
                frame = await self.socket.recv()
                if isinstance(frame, bytes):
                    raise msgspec.DecodeError("a frame is a text, not binary")
                raw = frame.encode()
                self._deliver(decode(raw), len(raw))
        except ConnectionClosed as closed:
            self.lost = _lost(closed, self._sent_bytes)
        except (msgspec.DecodeError, IllegalMove) as error:
            self.lost = ProtocolError(
                f"the endpoint broke the protocol ({error}); run the cell again", sent=True
            )
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


class _Connect(connect):
    """Follows no redirect: the key would go along."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


async def open_connection(endpoint: Endpoint, address: Address, number: int) -> Connection:
    """Connect, and say in one line why not.

    Raises:
        TransportError: nothing answers, or something that does not let us in.
    """
    began = time.perf_counter()
    socket = await _open(endpoint, address)
    return Connection(number, socket, (time.perf_counter() - began) * 1_000)


async def _open(endpoint: Endpoint, address: Address) -> ClientConnection:
    headers = {"Authorization": f"Bearer {address.key}"} if address.key else {}
    try:
        return await _Connect(
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
    except (OSError, ValueError, InvalidHandshake, InvalidProxy, InvalidURI) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
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


_MISFIT = frozenset({1002, 1003, 1007, 1010})


def _lost(closed: ConnectionClosed, sent_bytes: int) -> AgentError:
    theirs = closed.rcvd.code if closed.rcvd else None
    ours = closed.sent.code if closed.sent else None
    if theirs == 1009:  # noqa: PLR2004 (RFC 6455: too big)
        return MessageTooBig(
            f"the endpoint takes no message of {sent_bytes:,} bytes: "
            "send less, or start over with `%agent reset`",
            sent=True,
        )
    if ours == 1009:  # noqa: PLR2004
        return MessageTooBig(
            f"the endpoint sent a message of more than {MAX_FRAME:,} bytes, which is the limit",
            sent=True,
        )
    if not _MISFIT.isdisjoint((theirs, ours)):
        return ProtocolError(
            f"the endpoint speaks another protocol (close code {theirs or ours}); "
            "check its address, or choose another with `%agent connect`",
            sent=True,
        )
    why = f"close code {theirs}" if theirs else "no goodbye"
    return ConnectionLost(
        f"the connection was lost in a turn ({why}); run the cell again",
        sent=True,
        close_code=theirs,
    )
