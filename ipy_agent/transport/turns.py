"""One turn on a lane of a connection: what is sent of it, and what the peer then holds."""

from __future__ import annotations

import msgspec

from ipy_agent.protocol.events import TERMINAL, Event, ItemDone, ResponseCompleted
from ipy_agent.protocol.items import Item
from ipy_agent.protocol.lanes import State
from ipy_agent.protocol.requests import Request
from ipy_agent.trace import RequestSent
from ipy_agent.transport.livelane import LiveLane
from ipy_agent.transport.pool import Place

__all__ = ["Turn"]


class Turn:
    """A turn that has a place.

    Args:
        place: the lane that it has, and the connection.
        request: the whole of it.
        mended: the ways in which it was mended so far.

    Attributes:
        full: all of it, on the lane that it has.
        short: what is sent of it.
        forks: whether that goes on from what another lane holds.
    """

    def __init__(self, place: Place, request: Request, mended: set[str]) -> None:
        self.place = place
        self.request = request
        self.mended = mended
        self.full = msgspec.structs.replace(request, stream_id=place.lane.wire)
        self.short = self.full
        self.forks = False
        self._resent: str | None = None
        self._done: list[Item] = []

    def shortened(self, compare_to: str | None) -> Request:
        """Return the request less what the peer holds; what it forks from is kept there."""
        short, sources, self._resent = self._foreseen()
        self.forks = bool(sources)
        for source in sources:
            self.place.lane.forks_from(source)
        self.short = msgspec.structs.replace(short, compare_to=compare_to)
        return self.short

    def rehearsed(self, compare_to: str | None) -> Request:
        """Return what `shortened` would, and leave all as it is."""
        return msgspec.structs.replace(self._foreseen()[0], compare_to=compare_to)

    def _foreseen(self) -> tuple[Request, list[LiveLane], str | None]:
        """Return what is left to send, the lanes that it forks from, and why it is all, if so."""
        connection, lane = self.place.connection, self.place.lane
        if "whole" in self.mended:
            return self.full, [], "evicted"
        short = connection.lineage.shorten(self.full)
        if short is self.full:
            return short, [], connection.lineage.why(self.full)
        wires = connection.lineage.lanes_at(short.previous_response_id)
        sources = [
            source
            for source in connection.lanes.values()
            if source.wire in wires and source is not lane and not connection.keeps_all
        ]
        if any(source.moves.state is not State.IDLE for source in sources):
            # Its next response takes the place of the shared one at any moment.
            return self.full, [], "evicted"
        if sources and lane.used and not connection.reforks:
            return self.full, [], "evicted"
        return short, sources, None

    def told(self, sent_bytes: int, wire_bytes: int, attempt: int) -> RequestSent:
        """Return what the listeners are told of a request that was sent."""
        connection = self.place.connection
        reused = connection.turns > 1
        return RequestSent(
            transport="websocket",
            connection=connection.number,
            reused=reused,
            connect_ms=None if reused else connection.connect_ms,
            previous_response_id=self.short.previous_response_id,
            sent_items=len(self.short.input),
            held_items=len(self.full.input) - len(self.short.input),
            sent_bytes=sent_bytes,
            wire_bytes=wire_bytes,
            full_bytes=self.full.size(),
            resent=self._resent,
            attempt=attempt,
        )

    def learn(self, event: Event) -> bool:
        """Take note of an event, and return whether it ends the turn."""
        if event.KIND not in ("terminal", "error"):
            if isinstance(event, ItemDone):
                self._done.append(event.item)
            return False
        if isinstance(event, TERMINAL):
            # An output that was not told again is what was done.
            event.response.output = event.response.output or self._done
        lineage, lane = self.place.connection.lineage, self.place.lane
        if isinstance(event, ResponseCompleted):
            # Which stream it was is known by now, where it had to be found out.
            full = msgspec.structs.replace(self.full, stream_id=lane.wire)
            lineage.remember(full, event.response.id, event.response.output or [])
        else:
            lineage.forget(self.short)
        return True
