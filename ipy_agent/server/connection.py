"""One WebSocket connection: lanes in front, a memory of its own, an engine behind.

Every frame of the client becomes one ask in the queue of a lane, and every ask is answered
there in its turn: with a response, or with an error frame. So turns on a lane are strictly
in order and lanes do not wait for one another. When the client goes, everything that runs
for it is cancelled and every seat is given back.

Rule 1: a frame that cannot be understood is answered and never closes the connection; only
a binary one does.
Rule 2: what is sent on a lane is checked against the table in `protocol.lanes`.
Rule 3: a response is remembered before its terminal event is sent, since the next frame may
follow at once and on another lane.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any, Literal, NamedTuple, get_args

from ipy_agent.errors import ResponseFailed
from ipy_agent.protocol.events import Event, encode
from ipy_agent.protocol.lanes import CLIENT, SERVER, Lane
from ipy_agent.protocol.lineage import Held, NotHeld, ResponseCache
from ipy_agent.protocol.requests import Request
from ipy_agent.server.composer import Composer, refusal
from ipy_agent.server.engine import Engine, Finish, HangUp, Job
from ipy_agent.server.frames import bad_request, check_input, check_lane, open_calls, read

__all__ = ["CACHES", "RESET", "Cache", "Connection"]

Cache = Literal["off", "latest", "all"]
CACHES: tuple[Cache, ...] = get_args(Cache)

MAX_IN_FLIGHT = 16
MAX_NAMED_LANES = 32
GOING_AWAY = 1001
UNSUPPORTED = 1003
RESET = "websocket.reset"
"""A message to the ASGI server that breaks the connection; one that does not know it may refuse."""

_KEEP: dict[Cache, int] = {"off": 0, "latest": MAX_NAMED_LANES + 1, "all": 1024}
_log = logging.getLogger("ipy_agent.server")

_Message = MutableMapping[str, Any]


class _Gone(Exception):
    """The client has gone: there is nobody to tell anything."""


class _Seat:
    """One lane of this connection, and the object that an engine knows it by."""

    def __init__(self, name: str | None) -> None:
        self.lane = Lane(name)
        self.asks: asyncio.Queue[Request | ResponseFailed] = asyncio.Queue()
        self.latest: str | None = None

    def __repr__(self) -> str:
        return f"<Seat on {self.lane!r}>"


class _Kept(NamedTuple):
    """What is held beside a conversation: whose it is, what it waits for, the engine's memory."""

    seat: _Seat
    calls: frozenset[str]
    memory: Any


class Connection:
    """A client's connection, from its acceptance to its end.

    Args:
        engine: what answers.
        receive: reads the client's next ASGI message.
        send: sends one to it.
        cache: what is kept of earlier responses: nothing, the latest of each lane as hosted
            services do, or (nearly) all of them.
    """

    def __init__(
        self,
        engine: Engine,
        receive: Callable[[], Awaitable[_Message]],
        send: Callable[[_Message], Awaitable[None]],
        *,
        cache: Cache = "all",
    ) -> None:
        self._engine = engine
        self._receive = receive
        self._send = send
        self._policy = cache
        self._cache: ResponseCache[_Kept] = ResponseCache(_KEEP[cache])
        self._seats: dict[str | None, _Seat] = {}
        self._in_flight = asyncio.Semaphore(MAX_IN_FLIGHT)

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
            await asyncio.gather(*(self._engine.leave(seat) for seat in self._seats.values()))

    async def _serve(self) -> None:
        ends: list[HangUp] = []
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await self._queue(await self._next_frame(), group)
        except* _Gone:
            pass
        except* HangUp as orders:
            ends += [order for order in orders.exceptions if isinstance(order, HangUp)]
        for order in ends[:1]:
            await self._close(order.code)

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
        name, ask = read(frame)
        try:
            check_lane(name)
            seat = self._seats.get(name) or self._new_seat(name, group)
        except ResponseFailed as refused:
            await self._tell(refusal(refused, name))
        else:
            seat.asks.put_nowait(ask)

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
            ask = await seat.asks.get()
            async with self._in_flight:
                seat.lane.move(CLIENT, "create")
                if isinstance(ask, ResponseFailed):
                    await self._say(seat, [refusal(ask, seat.lane.name)])
                else:
                    await self._answer(seat, ask)

    async def _answer(self, seat: _Seat, request: Request) -> None:
        """Answer one request, whatever happens; only the end of the connection gets through."""
        composer = Composer(
            secrets.token_hex(12),
            lane=seat.lane.name,
            created_at=time.time(),
            model=request.fields.values.get("model") or self._engine.models[0],
            previous_response_id=request.previous_response_id,
        )
        held: Held[_Kept] | None = None
        try:
            full, held = self._expand(request)
            await self._generate(seat, request, full, held, composer)
        except (HangUp, _Gone):
            raise
        except Exception as error:  # noqa: BLE001 (the client learns of it, and goes on)
            failure = error if isinstance(error, ResponseFailed) else _surprise(error)
            if held is not None and held.memory is not None and held.memory.seat is seat:
                self._cache.forget(request.previous_response_id)
            await self._say(seat, composer.fail(failure))
            if isinstance(failure.__cause__, HangUp):
                raise failure.__cause__ from None

    def _expand(self, request: Request) -> tuple[Request, Held[_Kept]]:
        try:
            return self._cache.expand(request)
        except NotHeld:
            raise bad_request(
                f"Previous response with id '{request.previous_response_id}' not found.",
                "previous_response_not_found",
                "previous_response_id",
            ) from None

    async def _generate(
        self, seat: _Seat, request: Request, full: Request, held: Held[_Kept], composer: Composer
    ) -> None:
        kept = held.memory or _Kept(seat, frozenset(), None)
        check_input(full, open_calls(kept.calls, request.input.since(0)))
        job = Job(
            fields=full.fields,
            input=full.input,
            held=0 if kept.memory is None else held.chain.length,
            memory=kept.memory,
            generate=full.generate,
        )
        pieces = self._engine.generate(job, seat)
        try:
            async for piece in pieces:
                if isinstance(piece, Finish):
                    events = composer.finish(piece)
                    self._remember(seat, full, composer, piece.memory)
                    await self._say(seat, events)
                    return
                await self._say(seat, composer.take(piece))
        finally:
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()
        raise RuntimeError("the engine stopped before its turn was over")

    def _remember(self, seat: _Seat, full: Request, composer: Composer, memory: Any) -> None:
        if self._policy == "latest":
            self._cache.forget(seat.latest)
        seat.latest = composer.id
        kept = _Kept(seat, open_calls(frozenset(), composer.output), memory)
        self._cache.remember(full, composer.id, composer.output, kept)

    async def _say(self, seat: _Seat, events: list[Event]) -> None:
        for event in events:
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


def _surprise(error: Exception) -> ResponseFailed:
    _log.error("a turn failed", exc_info=error)
    return ResponseFailed(
        f"the server failed: {type(error).__name__}: {error}", code="server_error", status=500
    )
