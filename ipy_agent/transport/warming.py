"""What many requests begin with is taken in once a connection: a warm-up, from which each forks.

The warm-up has a lane of its own, which then stands still, so that every other lane may go on
from it again and again. Where there are no lanes it is on the one that the request has, and goes
on being held only if the peer keeps every response; if it does not, one connection is warmed for
all, and what they share is read from the prompt cache.

Rule 1: a warm-up that fails is nobody's failure: what was to fork from it is sent whole.
Rule 2: while one is under way whoever shares it waits, and nobody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import msgspec

from ipy_agent.errors import AgentError, NoAnswer
from ipy_agent.protocol.events import Error, Event, ResponseCompleted
from ipy_agent.protocol.items import Chain
from ipy_agent.protocol.lanes import State
from ipy_agent.protocol.requests import Fields, Request
from ipy_agent.protocol.response import failed
from ipy_agent.transport.connection import Connection
from ipy_agent.transport.pool import EACH, Place, Pool
from ipy_agent.transport.turns import Turn

__all__ = ["Warming"]

BUSY = 429
FAILURES = 2
"""After so many in a row of what is shared an endpoint is not asked to take that in again."""
PREFIXES = 64
"""How many beginnings are known; the one that was asked for first is forgotten."""


BUSY_SECONDS = 1.0
"""How long an endpoint is left alone that has too much to do, if it does not say."""


class _Send(Protocol):
    async def __call__(self, turn: Turn, attempt: int) -> object: ...


class _Wait(Protocol):
    async def __call__(self, place: Place, *, heard: bool) -> None: ...


_Mends = Callable[[Turn, Event], bool]


class _Prefix:
    """A beginning that requests share.

    Attributes:
        chain: it; kept, so that its identity stays its own.
        first: held while the only connection that is warmed is.
        primed: whether it was taken in anywhere.
        failures: how many warm-ups failed since one did not.
        cold: the numbers of the connections on which it is not tried again.
        rests_until: when an endpoint that had too much to do may be asked again.
    """

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.first = asyncio.Lock()
        self.primed = False
        self.failures = 0
        self.cold: set[int] = set()
        self.rests_until = 0.0

    def learn(self, answer: Event | None, connection: int, now: float) -> None:
        """Take note of what a warm-up was answered with; `None`, it was not."""
        if isinstance(answer, ResponseCompleted):
            self.primed, self.failures = True, 0
        elif isinstance(answer, Error) and answer.status == BUSY:
            # Whole rows are the last thing that it needs: it is tried again when there is time.
            asked = failed(answer.reason, answer.status).retry_after
            self.rests_until = now + (BUSY_SECONDS if asked is None else asked)
        else:
            self.failures += 1
            self.cold.add(connection)


class Warming:
    """Takes in what requests share, once a connection.

    Args:
        pool: the connections.
        send: sends a turn.
        wait: waits for what comes next of one, as long as for any.
        mends: whether a turn that such an event ended is to be sent again.
    """

    def __init__(self, pool: Pool, send: _Send, wait: _Wait, mends: _Mends) -> None:
        self._pool = pool
        self._send, self._wait, self._mends = send, wait, mends
        self._prefixes: dict[tuple[int, Fields], _Prefix] = {}

    async def warm(self, place: Place, request: Request, shared: Chain) -> None:
        """See to it that what a request shares is held where it goes, if it can be."""
        prefix = self._prefix(shared, request.fields)
        full = Request(fields=request.fields, input=shared, generate=False, stream_id=EACH)
        keeps = self._keeps(place.connection)
        async with place.connection.warming if keeps else prefix.first:
            if self._is_due(prefix, place, full):
                answer = await self._take_in(place, full)
                prefix.learn(answer, place.connection.number, self._pool.clock.now())

    def forget(self) -> None:
        """Forget what was taken in: all that held it is gone."""
        self._prefixes.clear()

    def refused(self, place: Place, request: Request) -> None:
        """Take note that the peer does not hold what it had taken in."""
        if request.shared is not None:
            self._prefix(request.shared, request.fields).cold.add(place.connection.number)

    def _prefix(self, shared: Chain, fields: Fields) -> _Prefix:
        key = id(shared), fields
        if key not in self._prefixes:
            self._prefixes[key] = _Prefix(shared)
            if len(self._prefixes) > PREFIXES:
                del self._prefixes[next(iter(self._prefixes))]
        return self._prefixes[key]

    def _keeps(self, connection: Connection) -> bool:
        """Whether a connection could hold what is shared for longer than a turn."""
        return connection.echoes is not False or self._pool.limits.keeps_all is not False

    def _is_due(self, prefix: _Prefix, place: Place, full: Request) -> bool:
        connection = place.connection
        if not connection.alive or connection.number in prefix.cold or prefix.failures >= FAILURES:
            return False
        if self._pool.clock.now() < prefix.rests_until:
            return False
        if not self._keeps(connection):
            return not prefix.primed
        lane = connection.foreseen(EACH)
        if connection.lineage.holds(msgspec.structs.replace(full, stream_id=lane.wire)):
            return False
        return not lane.taken and (
            connection.echoes is False or self._pool.has_room(connection, EACH)
        )

    async def _take_in(self, place: Place, full: Request) -> Event | None:
        """Send a warm-up, and return what it was answered with, if it was."""
        connection, own = place.connection, place.connection.echoes is not False
        lane = connection.lane(EACH) if own else place.lane
        there, silent = Place(connection, lane), False
        lane.taken = True
        try:
            async with connection.in_flight:
                await lane.stands_free()
                return await self._outcome(there, full)
        except AgentError as error:
            silent = isinstance(error, NoAnswer)
            return None
        finally:
            if not own:
                # The request has this lane: what comes late may not meet it.
                connection.leaving |= lane.moves.state is not State.IDLE
            elif silent and connection.echoes:
                lane.leave()  # all others have lanes of their own, whatever comes on this one
            else:
                await self._pool.leave(there)
                if connection.echoes is False:  # as it turned out: its one lane is the request's
                    place.lane.wire = None
                    connection.lanes = {place.lane.name: place.lane}

    async def _outcome(self, place: Place, full: Request) -> Event:
        """Take a turn that nobody looks on at, and return the event that ended it."""
        lane, mended = place.lane, set[str]()
        while True:
            turn, heard, over = Turn(place, full, mended), False, False
            await self._send(turn, 0)
            while not over:
                if not lane.arrived:
                    await self._wait(place, heard=heard)
                event, heard = lane.next(), True
                over = turn.learn(event)
            again = self._mends(turn, event) and place.connection.alive
            if not again or place.connection.lanes.get(lane.name) is not lane:
                return event
