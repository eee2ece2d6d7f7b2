"""TCP connections on which nobody is waited for without end: uvicorn's protocols, and limits.

A peer may owe a request's head, a request's body, or to take what is sent to it. Each has its
time, and who exceeds it is cut off, for to close in order would be to wait for that peer again.

Rule 1: whoever is not being answered is a stranger. There is room for so many of them, and
the one who has stood there longest makes way: nobody keeps others out by being silent.
Rule 2: of a peer that takes nothing, nothing more is read.
Rule 3: that a peer has gone is seen while it is answered, so reading goes on; what it says
ahead of its turn has a bound.
Rule 4: what is said in one go is written in one go: a short turn is nine frames.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import struct
from typing import Any, NamedTuple

from ipy_agent.errors import MissingExtra
from ipy_agent.server.connection import RESET

try:
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
except ImportError as missing:
    raise MissingExtra("the embedded server", "local") from missing

__all__ = ["MAX_STRANGERS", "Patience", "Strangers", "protocols"]

MAX_STRANGERS = 64
MAX_AHEAD = 16 * 2**10
MAX_HELD = 64 * 2**10
LINGER_SECONDS = 0.2


class Patience(NamedTuple):
    """The seconds for which a peer is waited for: its head, its body, its taking a byte.

    A WebSocket that says nothing is asked for a `pong` from time to time.
    """

    head: float = 10.0
    body: float = 30.0
    taking: float = 30.0
    ping: float = 20.0
    pong: float = 60.0


class Strangers:
    """Who is connected and is not being answered, in the order of their last step."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Transport, None] = {}

    def enter(self, transport: asyncio.Transport) -> None:
        """Have one wait; the one who has waited longest makes way where there is no room."""
        self.leave(transport)
        if len(self._waiting) >= MAX_STRANGERS:
            oldest = next(iter(self._waiting))
            self.leave(oldest)
            oldest.abort()
        self._waiting[transport] = None

    def leave(self, transport: asyncio.Transport) -> None:
        """Have one wait no longer, if it did."""
        self._waiting.pop(transport, None)


def protocols(patience: Patience, strangers: Strangers) -> dict[str, Any]:
    """Return what uvicorn makes of a TCP connection, by the names of its settings."""
    return {
        "http": functools.partial(_Http, patience=patience, strangers=strangers),
        "ws": functools.partial(_WebSocket, patience=patience),
        "ws_ping_interval": patience.ping,
        "ws_ping_timeout": patience.pong,
    }


class _Outflow:
    """Cuts off a peer that takes nothing of what is sent to it."""

    def __init__(self, transport: asyncio.Transport, seconds: float) -> None:
        # To be paused then means that something waits to be taken, however little it is.
        transport.set_write_buffer_limits(0)
        self._transport = transport
        self._seconds = seconds
        self._left = 0
        self._timer: asyncio.TimerHandle | None = None

    def pause(self) -> None:
        self._left = self._transport.get_write_buffer_size()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._look)

    def resume(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        left = self._transport.get_write_buffer_size()
        if left >= self._left:
            self._transport.abort()
        elif left:
            self.pause()


class _Http(H11Protocol):
    """HTTP that counts the time of what a peer owes."""

    def __init__(self, *args: Any, patience: Patience, strangers: Strangers, **more: Any) -> None:
        super().__init__(*args, **more)
        self._limits = {h11.IDLE: patience.head, h11.SEND_BODY: patience.body}
        self._taking = patience.taking
        self._strangers = strangers
        self._owed: tuple[Any, Any, Any] = (None, None, None)
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._outflow = _Outflow(transport, self._taking)
        self._count()

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle()
        self._outflow.resume()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.get_protocol() is self:
            self._count()
            self._go_on_reading()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._count()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._settle()
        super().handle_websocket_upgrade(event)

    def send_400_response(self, msg: str) -> None:
        # Whoever breaks the protocol while it is answered has left: uvicorn would answer twice,
        # and write a traceback a time into the log, which is any stranger's way to fill it.
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._outflow.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._outflow.resume()

    def _count(self) -> None:
        """Begin to count the time of what is owed now, unless it is being counted."""
        answered = self.cycle is None or self.cycle.response_complete
        owed = self.conn.their_state, self.scope, answered
        if all(now is before for now, before in zip(owed, self._owed, strict=True)):
            return
        self._settle()
        self._owed = owed
        if seconds := self._limits.get(self.conn.their_state):
            if answered:
                self._strangers.enter(self.transport)
            self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _settle(self) -> None:
        self._strangers.leave(self.transport)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _go_on_reading(self) -> None:
        """Read on behind a request that is being answered, where uvicorn would stop."""
        if self.conn.their_state is h11.DONE and self.flow.read_paused:
            if len(self.conn.trailing_data[0]) > MAX_AHEAD:
                self.transport.abort()
            else:
                self.flow.resume_reading()


class _WebSocket(WebSocketsSansIOProtocol):
    """WebSocket that can also break a connection, as a crash or a bad network would."""

    def __init__(self, *args: Any, patience: Patience, **more: Any) -> None:
        super().__init__(*args, **more)
        self._patience = patience
        self._end = 0.0
        self._held = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._outflow = _Outflow(self.transport, self._patience.taking)

    def connection_lost(self, exc: Exception | None) -> None:
        self._outflow.resume()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.conn.parser_exc is not None:
            self._linger()
            return
        super().data_received(data)
        if not self.writable.is_set():
            self.transport.pause_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._outflow.pause()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._outflow.resume()
        if not self.read_paused:
            self.transport.resume_reading()

    def handle_parser_exception(self) -> None:
        closed = self.conn.close_sent
        assert closed is not None  # noqa: S101 (for the type checker: a parser that fails says so)
        self.queue.put_nowait({"type": "websocket.disconnect", "code": closed.code})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self._linger()

    def _linger(self) -> None:
        """Close when nothing has come for a moment.

        Closed with more of a frame on its way, its sender would hear a reset, and not the code
        that says never to send it again.
        """
        if self.close_timer is None:
            self._end = self.loop.time() + self._patience.head
        else:
            self.close_timer.cancel()
        moment = min(self._end, self.loop.time() + LINGER_SECONDS)
        self.close_timer = self.loop.call_at(moment, self.transport.close)

    def handle_cont(self, event: Any) -> None:
        # Kept as one: a million fragments of a byte, or of none, weigh no more than their bytes.
        whole: Any = self.frames[0]
        if not isinstance(whole, bytearray):
            whole = bytearray(whole)
        whole += event.data
        self.frames = [whole]
        if event.fin:
            self.send_receive_event_to_app()

    async def send(self, message: Any) -> None:
        text = message.get("text")
        if text is not None and self._is_open():
            self._hold(text.encode())
            return
        if message["type"] == RESET:
            self._flush()
            raw = self.transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
            return
        await super().send(message)
        if message["type"] == "websocket.http.response.body":
            # A refusal in words ends the handshake too; uvicorn would log it as left undone.
            self.handshake_complete = True

    def _is_open(self) -> bool:
        """Whether a frame can be sent at once; where not, uvicorn waits or says why."""
        writable = self.writable.is_set() and not self.disconnected
        return writable and self.conn.state.name == "OPEN"

    def _hold(self, text: bytes) -> None:
        """Leave a frame with `conn`, which gives out what it has in order, whoever writes next."""
        self.conn.send_text(text)
        if not self._held:
            self.loop.call_soon(self._flush)
        self._held += len(text)
        if self._held > MAX_HELD:
            self._flush()

    def _flush(self) -> None:
        self._held = 0
        self.transport.write(b"".join(self.conn.data_to_send()))
