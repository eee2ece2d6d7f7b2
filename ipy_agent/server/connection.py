"""One WebSocket connection: lanes in front, a memory of its own, and the server's responses.

Every frame of the client becomes one ask in the queue of a lane, and every ask is answered
there in its turn: with a response, or with an error frame. So turns on a lane are strictly
in order and lanes do not wait for one another. When the client goes, everything that runs
for it is cancelled and every seat is given back.

Rule 1: a frame that cannot be understood is answered and never closes the connection; only
a binary one does.
Rule 2: what is sent on a lane is checked against the table in `protocol.lanes`.
Rule 3: nothing waits without a bound: of an ask too many its refusal alone is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NoReturn

from ipy_agent.errors import ResponseFailed
from ipy_agent.protocol.events import Event, Other, encode
from ipy_agent.protocol.lanes import CLIENT, SERVER, Lane
from ipy_agent.protocol.requests import Request
from ipy_agent.server.composer import refusal
from ipy_agent.server.engine import HangUp
from ipy_agent.server.frames import Known, bad_request, check_lane, read
from ipy_agent.server.memory import Cache, Memory
from ipy_agent.server.responses import Responses

__all__ = ["CONNECTION_SECONDS", "RESET", "Connection"]

CONNECTION_SECONDS = 3600.0
MAX_IN_FLIGHT = 16
MAX_NAMED_LANES = 32
MAX_WAITING = 64
MAX_WAITING_CHARS = 64 * 2**20
NORMAL = 1000
GOING_AWAY = 1001
UNSUPPORTED = 1003
RESET = "websocket.reset"
"""A message to the ASGI server that breaks the connection; one that does not know it may refuse."""

TOO_OLD = bad_request(
    "this connection has reached its time limit: open another",
    "websocket_connection_limit_reached",
)
TOO_MANY = ResponseFailed(
    f"{MAX_WAITING} requests, or {MAX_WAITING_CHARS // 2**20} MB of them, wait already:"
    " wait for an answer before the next",
    code="too_many_requests",
    status=429,
    retry_after=1,
)

_Message = MutableMapping[str, Any]


class _Gone(Exception):
    """The client has gone: there is nobody to tell anything."""


class _Seat:
    """One lane of this connection, and the object that an engine knows it by."""

    def __init__(self, name: str | None) -> None:
        self.lane = Lane(name)
        self.asks: asyncio.Queue[tuple[Request | ResponseFailed, int]] = asyncio.Queue()

    def __repr__(self) -> str:
        return f"<Seat on {self.lane!r}>"


class Connection:
    """A client's connection, from its acceptance to its end.

    Args:
        responses: what answers.
        receive: reads the client's next ASGI message.
        send: sends one to it.
        cache: what is kept of earlier responses: nothing, the latest of each lane as hosted
            services do, or all of them.
        seconds: how old the connection may become.
    """

    def __init__(
        self,
        responses: Responses,
        receive: Callable[[], Awaitable[_Message]],
        send: Callable[[_Message], Awaitable[None]],
        *,
        cache: Cache = "all",
        seconds: float = CONNECTION_SECONDS,
    ) -> None:
        self._responses = responses
        self._receive = receive
        self._send = send
        self._memory = Memory(cache)
        self._seconds = seconds
        self._seats: dict[str | None, _Seat] = {}
        self._in_flight = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._waiting = 0
        self._known: Known = {}

    async def run(self) -> None:
        """Serve until one of the two ends hangs up. Cancelled, it closes as one going away."""
        await self._receive()
        try:
            await self._put({"type": "websocket.accept"})
            await self._serve()
        except _Gone:
            pass
        except asyncio.CancelledError:
            await self._close(GOING_AWAY)
            raise
        finally:
            leave = self._responses.engine.leave
            await asyncio.gather(*(leave(seat) for seat in self._seats.values()))

    async def _serve(self) -> None:
        ends: list[HangUp] = []
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._grow_old())
                while True:
                    await self._queue(await self._next_frame(), group)
        except* _Gone:
            pass
        except* HangUp as orders:
            ends += [order for order in orders.exceptions if isinstance(order, HangUp)]
        for order in ends[:1]:
            await self._close(order.code)

    async def _grow_old(self) -> NoReturn:
        """End the connection when its time is over, whatever runs on it."""
        await asyncio.sleep(self._seconds)
        await self._tell(refusal(TOO_OLD))
        # Closed before the turns hear of it: behind this error nothing may follow.
        await self._close(NORMAL)
        raise _Gone

    async def _next_frame(self) -> str:
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            raise _Gone
        text = message.get("text")
        if text is None:
            raise HangUp(UNSUPPORTED)
        return str(text)

    async def _queue(self, frame: str, group: asyncio.TaskGroup) -> None:
        """Put a frame into the queue of its lane; a lane that cannot be is refused at once."""
        name, ask = read(frame, self._known)
        if isinstance(ask, Other):
            await self._tell(ask)
            return
        try:
            check_lane(name)
            if isinstance(ask, ResponseFailed) and name not in self._seats:
                raise ask  # what asks for nothing takes no name
            seat = self._seats.get(name) or self._new_seat(name, group)
        except ResponseFailed as refused:
            await self._tell(refusal(refused, name))
        else:
            size = len(frame)
            full = seat.asks.qsize() >= MAX_WAITING or self._waiting + size > MAX_WAITING_CHARS
            seat.asks.put_nowait((TOO_MANY, 0) if full else (ask, size))
            self._waiting += 0 if full else size

    def _new_seat(self, name: str | None, group: asyncio.TaskGroup) -> _Seat:
        if name is not None and len(self._seats.keys() - {None}) >= MAX_NAMED_LANES:
            raise bad_request(
                f"a connection has {MAX_NAMED_LANES} named streams at most: open another",
                "websocket_stream_limit_reached",
                "stream_id",
            )
        seat = self._seats[name] = _Seat(name)
        group.create_task(self._answer_in_order(seat))
        return seat

    async def _answer_in_order(self, seat: _Seat) -> None:
        while True:
            ask, size = await seat.asks.get()
            async with self._in_flight:
                self._waiting -= size
                seat.lane.move(CLIENT, "create")
                if isinstance(ask, ResponseFailed):
                    await self._say(seat, refusal(ask, seat.lane.name))
                else:
                    await self._answer(seat, ask)

    async def _answer(self, seat: _Seat, request: Request) -> None:
        events = self._responses.answer(request, seat, self._memory, seat.lane.name)
        async with contextlib.aclosing(events):
            async for event in events:
                await self._say(seat, event)

    async def _say(self, seat: _Seat, event: Event) -> None:
        seat.lane.move(SERVER, event.KIND)
        await self._tell(event)

    async def _tell(self, event: Event) -> None:
        await self._put({"type": "websocket.send", "text": encode(event).decode()})

    async def _put(self, message: _Message) -> None:
        try:
            await self._send(message)
        except (OSError, RuntimeError):
            # ASGI says the first when the client has gone, the second when the server closed.
            raise _Gone from None

    async def _close(self, code: int | None) -> None:
        end = {"type": RESET} if code is None else {"type": "websocket.close", "code": code}
        with contextlib.suppress(_Gone):
            await self._put(end)
