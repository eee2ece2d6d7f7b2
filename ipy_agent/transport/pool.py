"""The open connections to one endpoint, and which of them a turn goes to.

A branch stays on the connection that it is on; a new one goes where most of what it says is
held; where no connection has room for it, another is opened, unseen.

Rule 1: between the choice of a lane and its taking nothing is awaited.
Rule 2: what a connection can do is `limits`: the endpoint's row, and what was learnt on the way.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncGenerator, Iterable

import msgspec

from ipy_agent.endpoints import Endpoint
from ipy_agent.protocol.lanes import State
from ipy_agent.protocol.requests import Request
from ipy_agent.trace import Notice
from ipy_agent.transport.address import Address, Locate, addresses
from ipy_agent.transport.clock import Clock
from ipy_agent.transport.connection import Connection, open_connection
from ipy_agent.transport.livelane import LiveLane

__all__ = ["EACH", "Place", "Pool"]

EACH = "each"
"""The lane of what many requests begin with, which stands still."""

MAX_CONNECTIONS = 16
MAX_LANES = 32
EARLY_SECONDS = 300.0
"""How long before the end of a connection's life no turn begins on it any more."""


class Place(msgspec.Struct, frozen=True):
    """Where a turn goes: a lane that is taken for it, and the connection that it is on."""

    connection: Connection
    lane: LiveLane


class Pool:
    """The connections to one endpoint."""

    def __init__(self, endpoint: Endpoint, locate: Locate, clock: Clock) -> None:
        self.endpoint = endpoint
        self.clock = clock
        self.limits = endpoint.limits
        self._locate = locate
        self._connections: list[Connection] = []
        self._opened = 0
        self._opening = asyncio.Lock()
        self._left = asyncio.Event()

    def ready(self, request: Request) -> Place | None:
        """Return the place of a turn, if nothing has to be opened, closed or waited for first."""
        fit = not self._opening.locked() and not any(map(self._is_over, self._connections))
        chosen = self._choice(request, self._connections) if fit else None
        return None if chosen is None else _taken(chosen, request)

    async def place(self, request: Request) -> AsyncGenerator[Notice | Place, None]:
        """Yield what takes long, if anything does, and last the place of a turn."""
        async with self._opening:
            await self._sweep()
            while (chosen := self._choice(request, self._connections)) is None:
                if request.shared is not None and any(map(_is_tried_out, self._connections)):
                    # One of many: how many there is room for is known in a moment.
                    await self._next_leave()
                elif len(self._connections) < MAX_CONNECTIONS:
                    async with contextlib.aclosing(self._open(request)) as opening:
                        async for notice in opening:
                            yield notice
                else:
                    await self._make_room()
            place = _taken(chosen, request)
        yield place

    def foreseen(self, request: Request) -> Place | None:
        """Return the place that a turn would have now, not taken; none, if one would be opened."""
        fresh = [one for one in self._connections if not self._is_worn(one)]
        chosen = self._choice(request, fresh)
        return None if chosen is None else Place(chosen, chosen.foreseen(request.stream_id))

    async def leave(self, place: Place) -> None:
        """Give a lane back. A turn that was not over retires its connection."""
        connection, lane = place.connection, place.lane
        lane.leave()
        connection.used_at = self.clock.now()
        if self.limits.lanes is None and connection.echoes is not None:
            lanes = MAX_LANES if connection.echoes else 0
            self.limits = dataclasses.replace(self.limits, lanes=lanes)
        if connection.unread:
            self.limits = dataclasses.replace(self.limits, deflate=False)
        if lane.moves.state is not State.IDLE:
            connection.leaving = True
        self._left.set()
        if any(map(self._is_over, self._connections)):
            await self._sweep()

    def describe(self) -> str:
        """Return where the connections stand, in one line."""
        alive = [connection for connection in self._connections if connection.alive]
        if not alive:
            return "not connected"
        first, *more = alive
        minutes = (self.clock.age() - first.opened_at) / 60
        return (
            f"connected (WebSocket {first.number}, {first.turns} turns, "
            f"open for {minutes:.1f} min{f', and {len(more)} more' if more else ''})"
        )

    async def aclose(self) -> None:
        """Close all connections with 1000 and forget them."""
        connections, self._connections = self._connections, []
        await asyncio.gather(*(connection.close() for connection in connections))

    def _choice(self, request: Request, among: Iterable[Connection]) -> Connection | None:
        model = _model(request)
        fit = [one for one in among if self._takes(one, request, model)]
        if len(fit) == 1:  # as nearly always
            return fit[0]
        return max(fit, key=lambda one: _worth(one, request), default=None)

    def has_room(self, connection: Connection, *names: str) -> bool:
        """Whether a connection may have these lanes beside those that it has."""
        most = MAX_LANES if self.limits.lanes is None else self.limits.lanes  # None: tried out
        return len((connection.lanes.keys() | set(names)) - {None}) <= most

    def _takes(self, connection: Connection, request: Request, model: str | None) -> bool:
        """Whether a turn on the lane of a branch may begin on a connection now."""
        name = request.stream_id
        lane = connection.lanes.get(name)
        other_model = self.limits.one_model and connection.model not in (None, model)
        if not connection.alive or _is_tried_out(connection) or other_model:
            return False
        if lane is not None:
            return not lane.taken
        if connection.echoes is False:
            return not connection.lanes
        if request.shared is not None and _under_way(connection) >= self.limits.in_flight:
            return False  # of many one does not wait in line where another socket may be had
        if name is None:
            return True
        alone = request.shared is None or self.limits.lanes == 1
        return self.has_room(connection, *((name,) if alone else (name, EACH)))

    async def _open(self, request: Request) -> AsyncGenerator[Notice, None]:
        found: Notice | Address | None = None
        began = time.perf_counter()  # a local server may have to start: that is no model's time
        finding = addresses(self.endpoint, self._locate, model=_model(request))
        async with contextlib.aclosing(finding):
            async for found in finding:
                if isinstance(found, Notice):
                    yield found
        assert isinstance(found, Address)  # noqa: S101 (it is the last, or it raises)
        opened = await open_connection(
            self.endpoint,
            found,
            self._opened + 1,
            self.limits,
            began=began,
            clock=self.clock,
        )
        opened.model = _model(request)
        self._opened += 1
        self._connections.append(opened)

    async def _make_room(self) -> None:
        """Let go of the connection that idled longest; if none does, wait for one."""
        idle = [connection for connection in self._connections if not connection.busy]
        if not idle:
            await self._next_leave()
            return
        min(idle, key=lambda connection: connection.used_at).leaving = True
        await self._sweep()

    async def _next_leave(self) -> None:
        self._left.clear()
        await self._left.wait()

    async def _sweep(self) -> None:
        """Close what is worn out, lost or left, as soon as nobody has a turn on it."""
        for connection in self._connections:
            connection.leaving = connection.leaving or self._is_worn(connection)
        over = [one for one in self._connections if not (one.alive or one.busy)]
        for connection in over:
            self._connections.remove(connection)
        if over:
            await asyncio.gather(*(connection.close() for connection in over))

    def _is_over(self, connection: Connection) -> bool:
        return not connection.alive or self._is_worn(connection)

    def _is_worn(self, connection: Connection) -> bool:
        life, rest = self.limits.seconds, self.limits.idle_seconds
        age, unused = self.clock.age() - connection.opened_at, self.clock.now() - connection.used_at
        old = life is not None and age > max(life - EARLY_SECONDS, life / 2)
        idle = rest is not None and unused > rest * 0.9
        return old or (idle and not connection.busy)


def _taken(connection: Connection, request: Request) -> Place:
    place = Place(connection, connection.lane(request.stream_id))
    place.lane.taken = True
    return place


def _under_way(connection: Connection) -> int:
    """Return how many turns a connection has; what is taken in for many is none."""
    return sum(lane.taken for name, lane in connection.lanes.items() if name != EACH)


def _is_tried_out(connection: Connection) -> bool:
    """Whether it is about to be known if a connection has lanes."""
    return connection.alive and connection.echoes is None and connection.busy


def _model(request: Request) -> str | None:
    model = request.fields.values.get("model")
    return model if isinstance(model, str) else None


def _worth(connection: Connection, request: Request) -> tuple[bool, bool]:
    known = connection.lineage.shorten(request).previous_response_id is not None
    return request.stream_id in connection.lanes, known
