"""A lane as its client keeps it: the turn on it, what arrived of that, and who waits for whom.

Rule 1: while a fork is on its way the lane it continues from stands still, since its next
response may take the shared one's place.
Rule 2: what arrived and was not read yet is at most one response, and its turn's alone.
"""

from __future__ import annotations

import asyncio
from collections import deque

from ipy_agent.errors import AgentError, MessageTooBig
from ipy_agent.protocol.events import DELTAS, Event
from ipy_agent.protocol.lanes import CLIENT, SERVER, Lane, State

__all__ = ["MAX_RESPONSE", "LiveLane"]

MAX_RESPONSE = 64 * 2**20


class LiveLane:
    """A lane as its client keeps it: where it stands, and what arrived.

    Attributes:
        name: the branch that it serves.
        wire: its `stream_id`; `None` for the default lane.
        taken: whether somebody has a turn here, or is about to.
        arrived: what was read and the turn has not taken; at most a response.
        sent_bytes: what the turn's request had.
        received: how many bytes of its response were read so far.
        heard: whether anything came of the turn.
    """

    def __init__(self, name: str | None, wire: str | None) -> None:
        self.name = name
        self.wire = wire
        self.moves = Lane(wire)
        self.taken = False
        self.arrived: deque[Event | AgentError] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.sent_bytes = self.received = 0
        self.heard = False
        self._forks = 0
        self._free = asyncio.Event()
        self._forked_from: LiveLane | None = None
        self._number = 0
        self._before: str | None = None
        self._response: str | None = None

    def forks_from(self, source: LiveLane) -> None:
        """Hold another lane until this one's turn has taken its parent over."""
        self._forked_from = source
        source._forks += 1

    async def stands_free(self) -> None:
        """Wait until no fork on its way continues from this lane's latest response."""
        while self._forks:
            self._free.clear()
            await self._free.wait()

    @property
    def used(self) -> bool:
        """Whether it had a response before the turn that is on it, or is next."""
        return (self._response or self._before) is not None

    def begin(self, sent_bytes: int) -> None:
        """Take note that a turn is asked for."""
        self.moves.move(CLIENT, "create")
        self.sent_bytes, self.heard, self.received, self._number = sent_bytes, False, 0, 0
        self._before, self._response = self._response or self._before, None

    def leave(self) -> None:
        """Take note that nobody reads on: what is still unread is no part of the next turn."""
        self.let_go()
        self.taken = False
        self.arrived.clear()

    def put(self, arrival: Event | AgentError) -> None:
        """Have the turn take this next, or the error in its place."""
        self.arrived.append(arrival)
        _end(self._waiter)

    async def wait(self, seconds: float) -> None:
        """Wait until something arrived, at most so long."""
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        late = loop.call_later(seconds, _end, waiter)  # a timeout of asyncio costs thrice as much
        try:
            await waiter
        finally:
            late.cancel()

    def next(self) -> Event:
        """Return what arrived first, or raise what came in its place."""
        arrival = self.arrived.popleft()
        if isinstance(arrival, AgentError):
            raise arrival
        return arrival

    def answers_on(self, wire: str | None) -> bool:
        """Whether it has begun to answer, with this `stream_id`."""
        return self.moves.state is State.ANSWERING and self.wire == wire

    def knows(self, response: str) -> bool:
        """Whether a response is of its last turn, or of the one before."""
        return response in (self._response, self._before)

    def take(self, size: int, event: Event) -> bool:
        """Take in an event of this lane's turn; one of the turn before it is not taken.

        Nor is one that came before, or comes too late: the terminal event tells all of it again.

        Raises:
            IllegalMove: nothing like it may come now.
            MessageTooBig: the response is larger than any may be.
        """
        if type(event) not in DELTAS and not self._is_of_this(event):
            return False
        if self._came_before(event):
            return False
        self.moves.move(SERVER, event.KIND)
        self.received += size
        if self.received > MAX_RESPONSE:
            raise MessageTooBig(
                f"the endpoint sent a response of more than {MAX_RESPONSE:,} bytes, "
                "which is the limit",
                sent=True,
            )
        self.heard = True
        self.put(event)
        if self._forked_from is not None and event.KIND not in ("created", "other"):
            self.let_go()
        return True

    def _is_of_this(self, event: Event) -> bool:
        """Whether an event is not of the turn before: the first that names a response tells."""
        name = getattr(getattr(event, "response", None), "id", None)
        if name is None or name == self._response:
            return True
        if name == self._before:
            return False
        self._response, self._number = name, 0
        return True

    def _came_before(self, event: Event) -> bool:
        number, last = event.sequence_number, self._number
        if not isinstance(number, int) or event.KIND in ("terminal", "error"):
            return False
        if number > last:
            self._number = number
        return number < last or number == last > 0  # some count nothing: all of theirs are 0

    def let_go(self) -> None:
        """Let the lane that was forked from move on."""
        source, self._forked_from = self._forked_from, None
        if source is not None:
            source._forks -= 1  # noqa: SLF001 (a lane of the same connection)
            source._free.set()  # noqa: SLF001 (see above)


def _end(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
