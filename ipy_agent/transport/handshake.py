"""The way into an endpoint: one upgrade to WebSocket, or one line that says why not.

Rule 1: a redirect is a refusal: the key would go along.
Rule 2: a certificate that does not hold is never accepted.
Rule 3: the key goes out once and is not kept: no log has it, nor the socket that was opened.
Rule 4: frames are compressed on the way to another machine only, and no key is in a frame: what
a secret is compressed beside can tell of it by its length.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from contextvars import ContextVar
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidProxyStatus,
    InvalidStatus,
    NegotiationError,
    WebSocketException,
)
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.protocol import Event

from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import AgentError, ConnectionFailed, UpgradeRefused
from ipy_agent.protocol.response import Reason, failed
from ipy_agent.transport.address import Address, key_refused, tls_failed
from ipy_agent.transport.clock import Clock

__all__ = ["MAX_FRAME", "Socket", "open_socket"]

MAX_FRAME = 16 * 2**20
OPEN_SECONDS = 15.0
PING_SECONDS = 20.0
DEAF_SECONDS = 15.0
"""How long a peer may leave a ping unanswered, or take nothing of what it is sent."""
CLOSE_SECONDS = 1.0
READ_AT_ONCE = 256 * 2**10
_TEXT = Opcode.TEXT
_DATA = (_TEXT, Opcode.BINARY, Opcode.CONT)

_SILENT = logging.Logger("ipy_agent.websocket", logging.CRITICAL + 1)  # noqa: LOG001 (nobody's)
"""Who turns all logging on would have the headers of the request in it: so there is none."""

_DEFLATE = ClientPerMessageDeflateFactory(
    client_max_window_bits=None, compress_settings={"level": 4}
)
"""Its window of 32 kB reaches back to the tools of the turn before. Where no width is offered none
can be asked for: many a server has 4 kB by default, in which nothing repeats. Level 4 finds them
whole, which lower ones do not, in half the time of the default, or less."""

_WROTE: ContextVar[int] = ContextVar("bytes that this task wrote last", default=0)


class Socket(ClientConnection, asyncio.BufferedProtocol):
    """A WebSocket that knows when anything came of its peer: a frame, a pong, a part of one.

    One whose peer takes nothing of what is sent is given up: a ping would wait behind that. What
    comes is read into one piece of memory, since asyncio would have the system map a new one for
    each: 60 µs, where the reading of an answer takes 10.

    Attributes:
        receive: is called with each message as soon as it is whole, and with whether it is a text.
            The library's own `recv` costs a task's turn and a queue for each. Until it is set,
            messages are kept in `early`.
    """

    early: tuple[tuple[bytes, bool], ...] = ()

    clock: Clock = Clock()
    heard_at = 0.0
    _parts: tuple[Frame, ...] = ()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Behind a proxy TLS asks for it before a connection is made.
        self._buffer = memoryview(bytearray(READ_AT_ONCE))

    @property
    def deflates(self) -> bool:
        """Whether frames are compressed."""
        return bool(self.protocol.extensions)

    async def put(self, text: bytes) -> int:
        """Send a text, and return the bytes that it took: compressed and framed, before TLS."""
        await self.send(text, text=True)
        return _WROTE.get()

    def send_data(self) -> None:
        if self.protocol.writes:
            _WROTE.set(sum(map(len, self.protocol.writes)))
        super().send_data()

    async def drain(self) -> None:
        left, before = self.transport.get_write_buffer_size(), None
        if not left:
            return None
        while left != before:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DEAF_SECONDS):
                    return await super().drain()
            left, before = self.transport.get_write_buffer_size(), left
        raise TimeoutError("the peer takes nothing any more")

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.heard_at = self.clock.now()
        self.data_received(bytes(self._buffer[:nbytes]))

    def receive(self, message: bytes, is_text: bool) -> None:
        self.early += ((message, is_text),)

    def process_event(self, event: Event) -> None:
        if not isinstance(event, Frame) or event.opcode not in _DATA:
            super().process_event(event)
        elif event.fin and not self._parts:
            self.receive(bytes(event.data), event.opcode is _TEXT)
        else:
            self._parts += (event,)
            if event.fin:
                parts, self._parts = self._parts, ()
                whole = b"".join(part.data for part in parts)
                self.receive(whole, parts[0].opcode is _TEXT)


class _Connect(connect):
    """Follows no redirect: the key would go along."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


async def open_socket(
    endpoint: Endpoint, address: Address, clock: Clock, *, deflate: bool
) -> Socket:
    """Open a WebSocket to an endpoint, and say in one line why not.

    A peer that is gone without a word is noticed within 40 seconds. One that agrees to compress
    in a way that was not offered is asked again, without.

    Raises:
        TransportError: nothing answers, or something that does not let us in.
    """
    deflate = deflate and not endpoint.loopback
    try:
        socket = await _Connect(
            address.websocket_url,
            create_connection=Socket,
            additional_headers=address.headers,
            open_timeout=OPEN_SECONDS,
            max_size=MAX_FRAME,
            compression=None,  # `websockets` would offer a width
            extensions=[_DEFLATE] if deflate else None,
            # Loopback never goes through a proxy, whatever HTTP_PROXY says.
            proxy=None if endpoint.loopback else True,
            ping_interval=PING_SECONDS,
            ping_timeout=DEAF_SECONDS,
            close_timeout=CLOSE_SECONDS,
            logger=_SILENT,
        )
    except InvalidStatus as refused:
        raise _refused(endpoint, refused) from None
    except ssl.SSLError as error:
        raise tls_failed(endpoint, error) from None
    except (OSError, ValueError, WebSocketException) as error:
        if deflate and isinstance(error, NegotiationError):
            return await open_socket(endpoint, address, clock, deflate=False)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConnectionFailed(
            f"nothing answers at {endpoint.url or address.http_url} ({reason}): check the address, "
            "or choose another endpoint with `%agent connect`",
            transient=_may_pass(error),
        ) from None
    assert isinstance(socket, Socket)  # noqa: S101 (for the type checker)
    if socket.request is not None:
        socket.request.headers.clear()
    socket.clock, socket.heard_at = clock, clock.now()
    return socket


def _may_pass(error: BaseException | None) -> bool:
    """Whether what kept a WebSocket from being opened is the way there, not what is there."""
    broken = (OSError, EOFError, ConnectionClosed)
    if isinstance(error, InvalidProxyStatus):
        return error.response.status_code >= 500  # noqa: PLR2004 (HTTP's own number)
    return isinstance(error, broken) or isinstance(getattr(error, "__cause__", None), broken)


def _refused(endpoint: Endpoint, refused: InvalidStatus) -> AgentError:
    status = refused.response.status_code
    if status == 401:  # noqa: PLR2004 (HTTP's own number)
        return key_refused(endpoint)
    if status == 429:  # noqa: PLR2004 (see above)
        return failed(
            Reason(
                code="rate_limit_exceeded",
                message=f"{endpoint.name} takes no more connections now (HTTP 429): wait a little",
                headers=dict(refused.response.headers.raw_items()),
            ),
            status,
        )
    return UpgradeRefused(
        f"{endpoint.name} answers at {endpoint.url}, but refuses a WebSocket (HTTP {status}): "
        "check the address, or try `%agent transport http`",
        status=status,
    )
