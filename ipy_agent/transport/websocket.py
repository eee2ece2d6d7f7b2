"""Live WebSockets to an endpoint, kept across cells: each turn sends only what is new.

A branch has a lane of a connection where the endpoint has lanes, else a connection of its own. A
turn that is abandoned retires its connection, since the protocol has no cancel and a late
answer must not meet the next question. What can be mended is mended unseen, each way once a
turn (`_REMEDIES`); what the endpoint's row does not know is learnt by that.

Rule 1: everything here runs on one event loop. Nothing is printed or logged.
Rule 2: a request counts as sent from the moment it is handed to the socket.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec

from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import MessageTooBig, NoAnswer
from ipy_agent.protocol.events import Error, Event, ResponseCompleted
from ipy_agent.protocol.requests import Request
from ipy_agent.protocol.response import Reason
from ipy_agent.trace import Notice, RequestSent, ResponseEnded
from ipy_agent.transport import Stream
from ipy_agent.transport.address import Locate, key_refused, local_address
from ipy_agent.transport.clock import Clock
from ipy_agent.transport.connection import CONNECTION_LIMIT
from ipy_agent.transport.pool import Place, Pool
from ipy_agent.transport.rehearsal import Rehearsal
from ipy_agent.transport.turns import Turn
from ipy_agent.transport.warming import Warming

__all__ = ["WebSocketTransport"]

FIRST_EVENT_SECONDS = 60.0
IDLE_SECONDS = 300.0
PROBE_SECONDS = 2.0
UNAUTHORIZED = 401
SHORTEST_LIFE_SECONDS = 60.0
"""What is learnt at least of a connection's life: a server may end one early just once."""


_Fits = Callable[[Turn, Reason], bool]
_Mend = Callable[["WebSocketTransport", Turn], None]

_LANE_REFUSALS = frozenset(
    (code, "stream_id")
    for code in ("invalid_stream_id", "websocket_stream_limit_reached", "unknown_parameter")
)


class WebSocketTransport:
    """The live connections to one endpoint. Made at no cost; connects at the first turn.

    Args:
        endpoint: where responses come from.
        first_event: seconds that the endpoint has for its first event of a turn.
        idle: seconds of silence in a turn after which it counts as lost.
        probe: seconds that the endpoint has to answer a ping, before a turn on a connection that
            was not used for a while.
        locate: how the server of the endpoint `local` is found or started.
        clock: what time it is.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        first_event: float = FIRST_EVENT_SECONDS,
        idle: float = IDLE_SECONDS,
        probe: float = PROBE_SECONDS,
        locate: Locate = local_address,
        clock: Clock | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._first_event = first_event
        self._idle = idle
        self._probe = probe
        self._clock = clock or Clock()
        self._pool = Pool(endpoint, locate, self._clock)
        self._warming = Warming(self._pool, self._send, self._wait, self._mends)
        self._diagnoses = endpoint.diagnoses
        self._answered: dict[str | None, str] = {}

    async def stream(self, request: Request) -> Stream:
        """Answer a whole request; see `Transport.stream`."""
        received, attempt, mended = 0, 0, set[str]()
        self._settle()
        while True:
            place = self._pool.ready(request)
            if place is None:
                async with contextlib.aclosing(self._pool.place(request)) as finding:
                    async for found in finding:
                        if isinstance(found, Notice):
                            yield found
                        else:
                            place = found
                assert place is not None  # noqa: S101 (it is the last, or finding it raises)
            try:
                if request.shared is not None:
                    await self._warming.warm(place, request, request.shared)
                async with place.connection.in_flight:
                    await place.lane.stands_free()
                    if not await place.connection.answers(self._probe):
                        continue  # it was lost meanwhile, and nothing was sent
                    turn = Turn(place, request, mended)
                    yield await self._send(turn, attempt)
                    heard, over = False, False
                    while not over:
                        if not place.lane.arrived:
                            await self._wait(place, heard=heard)
                        event, heard = place.lane.next(), True
                        over = turn.learn(event)
                        if over and self._mends(turn, event):
                            break
                        yield event
                    else:
                        self._note(turn, event)
                        yield ResponseEnded(received_bytes=received + place.lane.received)
                        return
                    attempt, received = attempt + 1, received + place.lane.received
            finally:
                await self._leave(place)

    def _settle(self) -> None:
        """Begin anew where the loop is another one, since what it was on was closed."""
        if self._pool.is_new_here():
            self._warming.forget()

    async def rehearse(self, request: Request) -> Rehearsal:
        """Return what `stream` would send now; see `Transport.rehearse`."""
        place = self._pool.foreseen(request)
        if place is None:
            wire = None if self._pool.limits.lanes == 0 else request.stream_id
            full = msgspec.structs.replace(request, stream_id=wire)
            short = msgspec.structs.replace(full, compare_to=self._compared(request))
        else:
            turn = Turn(place, request, set())
            full, short = turn.full, turn.rehearsed(self._compared(request))
        self._check(short)
        return Rehearsal.of(
            "websocket",
            full,
            short,
            frame=short.frame(),
            full_bytes=full.size(),
            connection=None if place is None else place.connection.number,
        )

    def describe(self) -> str:
        """Return where the connections stand, in one line."""
        return self._pool.describe()

    async def aclose(self) -> None:
        """Close with 1000 and forget the connections."""
        await self._pool.aclose()

    async def _send(self, turn: Turn, attempt: int) -> RequestSent:
        short = turn.shortened(self._compared(turn.request))
        self._check(short)
        sizes = await turn.place.connection.send(turn.place.lane, short)
        return turn.told(*sizes, attempt)

    def _compared(self, request: Request) -> str | None:
        """Return the response that a turn's prompt is compared with, where that is diagnosed."""
        return self._answered.get(request.stream_id) if self._diagnoses else None

    def _check(self, short: Request) -> None:
        """Raise `MessageTooBig` where the endpoint takes no request of this size."""
        limit = self._pool.limits.frame_bytes
        if limit is not None and short.size() > limit:
            raise MessageTooBig(
                f"the request has {short.size():,} bytes and {self.endpoint.name} takes "
                f"{limit:,}: send less, or start over with `%agent reset`"
            )

    async def _wait(self, place: Place, *, heard: bool) -> None:
        """Wait for what comes next of a turn.

        Its first event has a deadline. After it any sign of life counts: a model that thinks in
        silence is not dead while its endpoint answers pings.
        """
        lane, silent = place.lane, 0.0
        seconds = self._idle if heard else self._first_event
        while not lane.arrived:
            await lane.wait(seconds - silent)
            if lane.arrived:
                break
            silent = self._clock.now() - place.connection.socket.heard_at
            if not heard or silent >= seconds:
                raise NoAnswer(
                    f"{self.endpoint.name} was silent for {seconds:g} s; run the cell again",
                    sent=True,
                )

    async def _leave(self, place: Place) -> None:
        if (refused := place.connection.refused_bytes) is not None:
            self._limit(frame_bytes=refused - 1)
        await self._pool.leave(place)

    def _limit(self, **learnt: Any) -> None:
        self._pool.limits = dataclasses.replace(self._pool.limits, **learnt)

    def _mends(self, turn: Turn, event: Event) -> bool:
        """Whether a turn that failed is to be sent again, in another way.

        Raises:
            AuthenticationFailed: it was the key.
        """
        if not isinstance(event, Error):
            return False
        if event.status == UNAUTHORIZED:
            raise key_refused(self.endpoint)
        for name, (fits, mend) in self._REMEDIES.items():
            if name not in turn.mended and fits(turn, event.reason):
                turn.mended.add(name)
                mend(self, turn)
                return True
        return False

    def _note(self, turn: Turn, event: Event) -> None:
        if isinstance(event, ResponseCompleted):
            self._answered[turn.request.stream_id] = event.response.id
        elif "elsewhere" in turn.mended:
            # A new connection did not take the model either: nothing was learnt.
            self._limit(one_model=self.endpoint.limits.one_model)

    # what is done about what a peer will not do

    def _resend_whole(self, turn: Turn) -> None:
        connection, parent = turn.place.connection, turn.short.previous_response_id
        lineage = connection.lineage
        if lineage.lanes_at(parent) and turn.forks and turn.place.lane.used:
            # Nobody moved its parent: it is the lane that may not go on from there.
            connection.reforks = False
            self._limit(reforks=False)
            lineage.forget(turn.short)
            return
        self._warming.refused(turn.place, turn.request)
        if self._pool.limits.keeps_all is None and not lineage.lanes_at(parent):
            self._limit(keeps_all=False)
        if self._pool.limits.keeps_all is False:  # which another connection may have found out
            lineage.keep_latest()
        lineage.forget(turn.short, gone=True)

    def _renew(self, turn: Turn) -> None:
        connection = turn.place.connection
        connection.leaving = True
        if self._pool.limits.seconds is None:
            age = self._clock.age() - connection.opened_at
            self._limit(seconds=max(age, SHORTEST_LIFE_SECONDS))

    def _without_lane(self, turn: Turn) -> None:
        lanes = turn.place.connection.lanes
        lanes.pop(turn.place.lane.name, None)
        self._limit(lanes=len(lanes.keys() - {None}))

    def _without_diagnosis(self, _: Turn) -> None:
        self._diagnoses = False

    def _elsewhere(self, _: Turn) -> None:
        self._limit(one_model=True)

    # each once a turn: when it fits what the peer said, and how the turn is mended
    _REMEDIES: ClassVar[dict[str, tuple[_Fits, _Mend]]] = {
        "whole": (
            lambda turn, reason: (
                reason.code == "previous_response_not_found"
                and turn.short.previous_response_id is not None
            ),
            _resend_whole,
        ),
        "renewed": (lambda _, reason: reason.code == CONNECTION_LIMIT, _renew),
        "laneless": (
            lambda turn, reason: (
                turn.place.lane.wire is not None and (reason.code, reason.param) in _LANE_REFUSALS
            ),
            _without_lane,
        ),
        "undiagnosed": (
            lambda turn, reason: (
                turn.short.compare_to is not None
                and str(reason.param).startswith("prompt_cache_options")
            ),
            _without_diagnosis,
        ),
        "elsewhere": (
            lambda turn, reason: (
                reason.param == "model" and turn.place.connection.switches(turn.short)
            ),
            _elsewhere,
        ),
    }
