"""One live WebSocket to an endpoint, kept across cells: each turn sends only what is new.

A turn that is abandoned retires its connection, since the protocol has no cancel and a late
answer must not meet the next question. A parent that the peer let go costs one full resend.

Rule 1: everything here runs on one event loop. Nothing is printed or logged.
Rule 2: a request counts as sent from the moment it is handed to the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import AgentError, NoAnswer
from ipy_agent.protocol.events import Error, Event, ItemDone
from ipy_agent.protocol.items import Item
from ipy_agent.protocol.requests import Request
from ipy_agent.trace import Notice, RequestSent, ResponseEnded
from ipy_agent.transport import Stream
from ipy_agent.transport.connection import (
    Address,
    Arrival,
    Connection,
    LiveLane,
    open_connection,
)
from ipy_agent.transport.local import local_server

__all__ = ["WebSocketTransport"]

FIRST_EVENT_SECONDS = 60.0
IDLE_SECONDS = 300.0


class WebSocketTransport:
    """The live connection to one endpoint. Made at no cost; connects at the first turn.

    Args:
        endpoint: where responses come from.
        first_event: seconds that the endpoint has for its first event of a turn.
        idle: seconds of silence in a turn after which it counts as lost.
        locate: how the server of the endpoint `local` is found or started.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        first_event: float = FIRST_EVENT_SECONDS,
        idle: float = IDLE_SECONDS,
        locate: Callable[..., Coroutine[Any, Any, tuple[str, str | None]]] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._first_event = first_event
        self._idle = idle
        self._locate = locate or _local_address
        self._connection: Connection | None = None
        self._connections = 0

    async def stream(self, request: Request) -> Stream:
        """Answer a whole request; see `Transport.stream`."""
        if self._connection is None or not self._connection.usable:
            async with contextlib.aclosing(self._connect(request)) as notices:
                async for notice in notices:
                    yield notice
        connection = self._connection
        assert connection is not None  # noqa: S101 (connecting raises otherwise)
        lane = connection.lane(request.stream_id)
        connection.turns += 1
        received = 0
        try:
            for attempt in range(2):
                short = lane.lineage.shorten(request)
                sent_bytes = await connection.send(lane, short)
                yield _told(connection, request, short, sent_bytes, attempt)
                done, deadline, over = list[Item](), self._first_event, False
                while not over:
                    size, event = await self._arrival(lane, deadline)
                    received, deadline = received + size, self._idle
                    over = event.KIND in ("terminal", "error")
                    if isinstance(event, ItemDone):
                        done.append(event.item)
                    elif over:
                        lane.learn(request, event, done)
                    if short is not request and _parent_is_gone(event):
                        break  # the remedy is the same turn in full, once
                    yield event
                else:
                    yield ResponseEnded(received_bytes=received)
                    return
        finally:
            if not connection.usable:
                await self._retire(connection)

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
        await self._retire(self._connection)

    async def _retire(self, connection: Connection | None) -> None:
        # A turn that is closed late lets go of its own connection, not of the one after it.
        if connection is self._connection:
            self._connection = None
        if connection is not None:
            await connection.close()

    async def _arrival(self, lane: LiveLane, seconds: float) -> Arrival:
        if lane.arrived.empty():
            try:
                async with asyncio.timeout(seconds):
                    arrival = await lane.arrived.get()
            except TimeoutError:
                raise NoAnswer(
                    f"{self.endpoint.name} was silent for {seconds:g} s; run the cell again",
                    sent=True,
                ) from None
        else:
            arrival = lane.arrived.get_nowait()
        if isinstance(arrival, AgentError):
            raise arrival
        return arrival

    async def _connect(self, request: Request) -> AsyncGenerator[Notice, None]:
        """Open a new connection, telling on the way what takes long."""
        await self._retire(self._connection)
        endpoint, address = self.endpoint, Address(self.endpoint.url, None)
        if endpoint.url:
            address = Address(endpoint.websocket_url, endpoint.key())
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
            address = Address(Endpoint(name="local", url=url).websocket_url, key)
        self._connection = await open_connection(endpoint, address, self._connections + 1)
        self._connections += 1


async def _local_address(
    notice: Callable[[str], None], *, model: str | None
) -> tuple[str, str | None]:
    server = await local_server(notice, model=model)
    return server.url, server.token


def _told(
    connection: Connection, request: Request, short: Request, sent_bytes: int, attempt: int
) -> RequestSent:
    reused = connection.turns > 1
    return RequestSent(
        transport="websocket",
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


def _parent_is_gone(event: Event) -> bool:
    return isinstance(event, Error) and event.reason.code == "previous_response_not_found"
