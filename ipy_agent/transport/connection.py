"""One socket to an endpoint: opened, read, closed.

Every event goes to the lane it belongs to as soon as it is read; a lane holds the table of moves
and a queue. What ends a connection ends it once: `lost` says why, and every lane hears it.

Rule 1: what no turn of ours asked for is ignored; what breaks the protocol in a turn ends it.
Rule 2: a close never waits long for its peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import time

import msgspec
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State as SocketState

from ipy_agent.endpoints import Endpoint, Limits
from ipy_agent.errors import AgentError, ConnectionLost, MessageTooBig, ProtocolError
from ipy_agent.protocol.events import Error, Event, ResponseCreated, decode
from ipy_agent.protocol.lanes import SERVER, IllegalMove, State
from ipy_agent.protocol.lineage import Lineage
from ipy_agent.protocol.requests import Request
from ipy_agent.transport.address import Address
from ipy_agent.transport.clock import Clock
from ipy_agent.transport.handshake import MAX_FRAME, Socket, open_socket
from ipy_agent.transport.livelane import LiveLane

__all__ = ["CONNECTION_LIMIT", "Connection", "open_connection"]

CLOSE_SECONDS = 0.3
SURE_SECONDS = 15.0
"""How long a connection of which nothing came is taken for alive."""
TOO_BIG = 1009
"""RFC 6455's code for a message that is larger than its receiver takes."""

CONNECTION_LIMIT = "websocket_connection_limit_reached"


class Connection:
    """One socket, and the task that waits for its end.

    Attributes:
        model: what it was opened for.
        leaving: it takes no more turns, and is closed when those under way have ended.
        echoes: whether it was seen to tell lanes apart; `None` until it was tried.
        refused_bytes: the size of the request that was too big for its peer, if one was.
        keeps_all: whether it is known to keep every response, not only each lane's latest.
        reforks: whether a lane that was used may go on from another's response.
        warming: held while what many share is taken in.
    """

    def __init__(
        self, number: int, socket: Socket, connect_ms: float, limits: Limits, clock: Clock
    ) -> None:
        self.number = number
        self.socket = socket
        self.connect_ms = connect_ms
        self.clock = clock
        self.opened_at = clock.age()
        self.used_at = clock.now()
        self.turns = 0
        self.ignored = 0
        self.model: str | None = None
        self.leaving = False
        self.echoes: bool | None = None if limits.lanes is None else limits.lanes > 0
        self.lost: AgentError | None = None
        self.lineage = Lineage(keeps_all=limits.keeps_all is not False)
        self.lanes: dict[str | None, LiveLane] = {}
        self._asked: dict[str | None, LiveLane] = {}  # by their wires: where a turn began last
        self.in_flight = asyncio.Semaphore(limits.in_flight)
        self.keeps_all = limits.keeps_all is True
        self.reforks = limits.reforks
        self.warming = asyncio.Lock()
        self.refused_bytes: int | None = None
        self._sent_bytes = 0
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        socket.receive = self._take_in  # type: ignore[method-assign]  # from now on it is ours
        # What came with the handshake may be meant for the turn that is asked for in this step.
        for early in socket.early:
            asyncio.get_running_loop().call_soon(self._take_in, *early)
        self._watcher = asyncio.create_task(self._watch())

    @property
    def alive(self) -> bool:
        """Whether the socket can carry another turn."""
        return self.lost is None and self.socket.state is SocketState.OPEN and not self.leaving

    @property
    def busy(self) -> bool:
        """Whether any lane is in a turn."""
        return any(lane.taken for lane in self.lanes.values())

    def switches(self, request: Request) -> bool:
        """Whether a request asks for another model than this connection began with."""
        return self.turns > 1 and self.model != request.fields.values.get("model")

    def lane(self, name: str | None) -> LiveLane:
        """Return the lane of a branch, made if it is new."""
        return self.lanes.setdefault(name, self.foreseen(name))

    def foreseen(self, name: str | None) -> LiveLane:
        """Return the lane that a branch has, or would have."""
        return self.lanes.get(name) or LiveLane(name, None if self.echoes is False else name)

    @property
    def unread(self) -> bool:
        """Whether it compressed, and was lost as one is whose peer cannot read that."""
        if not self.socket.deflates or isinstance(self.lost, ProtocolError):
            return self.socket.deflates
        heard = self.turns > len(self.lanes) or any(lane.heard for lane in self.lanes.values())
        lost = isinstance(self.lost, ConnectionLost) and self.lost.close_code not in _LEAVING
        return lost and not heard

    async def send(self, lane: LiveLane, request: Request) -> tuple[int, int]:
        """Send a request on an idle lane; return its bytes, and those that it took on the wire."""
        frame = request.frame()
        lane.begin(len(frame))
        self._asked[lane.wire] = lane
        self._sent_bytes = len(frame)
        self.turns += 1
        self.used_at = self.clock.now()
        try:
            return len(frame), await self.socket.put(frame)
        except ConnectionClosed as closed:
            raise copy.copy(self.lost) or _lost(closed, self._sent_bytes) from None

    async def answers(self, seconds: float) -> bool:
        """Whether the peer is still there: if nothing came of it lately, it has to answer a ping.

        One that does not within so many seconds is left, and another connection takes its place.
        """
        if self.clock.now() - self.socket.heard_at <= SURE_SECONDS:
            return self.alive
        try:
            async with asyncio.timeout(seconds):
                await (await self.socket.ping())
        except (TimeoutError, ConnectionClosed):
            self.leaving = True
        return self.alive

    async def close(self) -> None:
        """Say goodbye, and let go of the socket whether the peer answers that or not."""
        code = 1002 if isinstance(self.lost, ProtocolError) else 1000
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self.socket.close(code)
        finally:
            self.socket.transport.abort()
            self._watcher.cancel()
        await asyncio.wait([self._watcher])

    def _take_in(self, message: bytes, is_text: bool) -> None:
        """Deliver a message; one that breaks the protocol is the last."""
        if self._broken.done():
            return
        try:
            if not is_text:
                raise msgspec.DecodeError("a frame is a text, not binary")
            if not message.isascii():
                str(message, "utf-8")  # what the decoder skips has to be text, too
            self._deliver(decode(message), len(message))
        except (msgspec.DecodeError, UnicodeDecodeError, IllegalMove, MessageTooBig) as error:
            self._broken.set_exception(error)

    async def _watch(self) -> None:
        """Wait until the connection ends, and say so to all who have a turn on it."""
        closed = asyncio.ensure_future(self.socket.wait_closed())
        try:
            await asyncio.wait((closed, self._broken), return_when=asyncio.FIRST_COMPLETED)
            if not self._broken.done():
                raise self.socket.protocol.close_exc
            self._broken.result()
        except ConnectionClosed as closed:
            if closed.rcvd is not None and closed.rcvd.code == TOO_BIG:
                unheard = [lane for lane in self.lanes.values() if lane.taken and not lane.heard]
                self.refused_bytes = max((lane.sent_bytes for lane in unheard), default=None)
            self.lost = _lost(closed, self.refused_bytes or self._sent_bytes)
        except MessageTooBig as error:
            self.lost = error
        except (msgspec.DecodeError, UnicodeDecodeError, IllegalMove) as error:
            self.lost = ProtocolError(
                f"the endpoint broke the protocol ({error}); run the cell again", sent=True
            )
        finally:
            self.lost = self.lost or ConnectionLost("the connection was let go", sent=True)
            for lane in self.lanes.values():
                lane.moves.move(SERVER, "close")
                lane.let_go()
                lane.put(self._told_to(lane))

    def _told_to(self, lane: LiveLane) -> AgentError:
        """Return why a lane's turn ended: what was too big was the largest request.

        Each has an error of its own: an error leads to the frames that it came through, and those
        of a turn that ends are cleared, while another's go on.
        """
        assert self.lost is not None  # noqa: S101 (for the type checker)
        if self.refused_bytes is None or lane.sent_bytes >= self.refused_bytes:
            return copy.copy(self.lost)
        return ConnectionLost(
            "the connection was lost in a turn (another request on it was too big); "
            "run the cell again",
            sent=True,
            close_code=TOO_BIG,
        )

    def _deliver(self, event: Event, size: int) -> None:
        wire = event.stream_id or None
        lane = self._asked.get(wire)
        if lane is not None and lane.answers_on(wire) and event.KIND != "error":
            taken = lane.take(size, event)  # as nearly always
        else:
            taken = sum(lane.take(size, event) for lane in self._meant(event)) > 0
        if taken:
            return
        # What belongs to no turn of ours is not worth a connection; but an answer that nobody
        # asked for on a lane of ours would be taken for the next turn's.
        self.ignored += 1
        if isinstance(event, ResponseCreated):
            lanes = [lane for lane in self.lanes.values() if lane.wire == wire]
            unasked = [lane for lane in lanes if not lane.knows(event.response.id)]
            self.leaving = self.leaving or bool(unasked)

    def _meant(self, event: Event) -> list[LiveLane]:
        """Return the lanes in a turn that an event is for."""
        wire = event.stream_id or None
        asked = [lane for lane in self.lanes.values() if lane.moves.state is not State.IDLE]
        lanes = [lane for lane in asked if lane.wire == wire]
        if isinstance(event, Error):
            # One that names no lane in a turn is the whole connection's.
            whole = event.reason.code == CONNECTION_LIMIT or not (lanes or event.stream_id)
            return asked if whole else lanes
        if lanes and lanes[0].wire is not None:
            self.echoes = True
        elif not lanes and not event.stream_id and self.echoes is None and len(asked) == 1:
            # It was asked on a lane and answers without: it has one stream only.
            self.echoes, asked[0].wire = False, None
            self.lanes = {asked[0].name: asked[0]}
            return asked
        return lanes


async def open_connection(
    endpoint: Endpoint,
    address: Address,
    number: int,
    limits: Limits,
    *,
    began: float,
    clock: Clock,
) -> Connection:
    """Connect, which `began` with finding the address, and say in one line why not.

    Raises:
        TransportError: nothing answers, or something that does not let us in.
    """
    socket = await open_socket(endpoint, address, clock, deflate=limits.deflate)
    return Connection(number, socket, (time.perf_counter() - began) * 1_000, limits, clock)


_MISFIT = frozenset({1002, 1003, 1007, 1010})
_LEAVING = frozenset({1000, 1001, 1012, 1013})


def _lost(closed: ConnectionClosed, sent_bytes: int) -> AgentError:
    theirs = closed.rcvd.code if closed.rcvd else None
    ours = closed.sent.code if closed.sent else None
    if theirs == TOO_BIG:
        return MessageTooBig(
            f"the endpoint takes no message of {sent_bytes:,} bytes: "
            "send less, or start over with `%agent reset`",
            sent=True,
        )
    if ours == TOO_BIG:
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
