"""The way into an endpoint: one upgrade to WebSocket, or one line that says why not.

Rule 1: a redirect is a refusal: the key would go along.
Rule 2: a certificate that does not hold is never accepted.
Rule 3: the key goes out once and is not kept: no log has it, nor the socket that was opened.
"""

from __future__ import annotations

import logging
import ssl

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidProxy, InvalidStatus, InvalidURI

from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import AgentError, ConnectionFailed, UpgradeRefused
from ipy_agent.transport.address import Address, key_refused
from ipy_agent.transport.clock import Clock

__all__ = ["MAX_FRAME", "Socket", "open_socket"]

MAX_FRAME = 16 * 2**20
OPEN_SECONDS = 15.0
PING_SECONDS = 20.0


_SILENT = logging.Logger("ipy_agent.websocket", logging.CRITICAL + 1)  # noqa: LOG001 (nobody's)
"""Who turns all logging on would have the headers of the request in it: so there is none."""


class Socket(ClientConnection):
    """A WebSocket that knows when anything came of its peer: a frame, a pong, a part of one."""

    clock: Clock = Clock()
    heard_at = 0.0

    def data_received(self, data: bytes) -> None:
        self.heard_at = self.clock.now()
        super().data_received(data)


class _Connect(connect):
    """Follows no redirect: the key would go along."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


async def open_socket(endpoint: Endpoint, address: Address, clock: Clock) -> Socket:
    """Open a WebSocket to an endpoint, and say in one line why not.

    A peer that answers no ping is noticed within twice `PING_SECONDS`.

    Raises:
        TransportError: nothing answers, or something that does not let us in.
    """
    try:
        socket = await _Connect(
            address.websocket_url,
            create_connection=Socket,
            additional_headers=address.headers,
            open_timeout=OPEN_SECONDS,
            max_size=MAX_FRAME,
            compression=None,
            # Loopback never goes through a proxy, whatever HTTP_PROXY says.
            proxy=None if endpoint.loopback else True,
            ping_interval=PING_SECONDS,
            ping_timeout=PING_SECONDS,
            logger=_SILENT,
        )
    except InvalidStatus as refused:
        raise _refused(endpoint, refused) from None
    except ssl.SSLError as error:
        raise ConnectionFailed(
            f"the certificate of {endpoint.url} does not hold: {error.reason}"
        ) from None
    except (OSError, ValueError, InvalidHandshake, InvalidProxy, InvalidURI) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConnectionFailed(
            f"nothing answers at {endpoint.url or address.http_url} ({reason}): check the address, "
            "or choose another endpoint with `%agent connect`",
            transient=isinstance(error, OSError),
        ) from None
    assert isinstance(socket, Socket)  # noqa: S101 (for the type checker)
    if socket.request is not None:
        socket.request.headers.clear()
    socket.clock, socket.heard_at = clock, clock.now()
    return socket


def _refused(endpoint: Endpoint, refused: InvalidStatus) -> AgentError:
    status = refused.response.status_code
    if status == 401:  # noqa: PLR2004 (HTTP's own number)
        return key_refused(endpoint)
    return UpgradeRefused(
        f"{endpoint.name} answers at {endpoint.url}, but refuses a WebSocket (HTTP {status}): "
        "check the address, or try `%agent transport http`",
        status=status,
    )
