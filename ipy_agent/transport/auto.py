"""WebSocket where an endpoint has it, HTTP where it does not: found out once, by asking.

Rule 1: only an upgrade that is refused, or that fails again and again, leads over to HTTP, and only
before anything of a turn was sent.
Rule 2: a refusal changes the way for good, and that is said once. A failure may pass: the next turn
asks for a WebSocket again.
"""

from __future__ import annotations

import contextlib

from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import AuthenticationFailed, ConnectionFailed, UpgradeRefused
from ipy_agent.protocol.events import Error
from ipy_agent.protocol.items import Item
from ipy_agent.protocol.requests import Request
from ipy_agent.trace import Notice, RequestSent
from ipy_agent.transport import Stream, Transport
from ipy_agent.transport.address import Locate, key_refused, local_address
from ipy_agent.transport.http import HttpTransport
from ipy_agent.transport.rehearsal import Rehearsal
from ipy_agent.transport.websocket import WebSocketTransport

__all__ = ["AutoTransport"]

_FORBIDDEN = 403
_NO_WEBSOCKET = frozenset({200, _FORBIDDEN, 404, 405, 426})
"""What servers and proxies say to an upgrade that they do not know."""

OVERLOADED = frozenset({500, 502, 503, 504})
FAILURES = 3
"""After how many failures in a row an endpoint is asked over HTTP."""


class AutoTransport:
    """The best way that an endpoint has. Made at no cost; connects at the first turn.

    Args:
        endpoint: where responses come from.
        locate: how the server of the endpoint `local` is found or started.
    """

    def __init__(self, endpoint: Endpoint, *, locate: Locate = local_address) -> None:
        self.endpoint = endpoint
        self._websocket = WebSocketTransport(endpoint, locate=locate)
        self._http = HttpTransport(endpoint, locate=locate)
        self._way: Transport = self._websocket if endpoint.websocket else self._http
        self._failures = 0

    async def stream(self, request: Request) -> Stream:
        """Answer a whole request; see `Transport.stream`."""
        refused: UpgradeRefused | ConnectionFailed | None = None
        if self._way is self._websocket:
            sent = False
            try:
                async with contextlib.aclosing(self._websocket.stream(request)) as stream:
                    async for event in stream:
                        if isinstance(event, RequestSent):
                            sent, self._failures = True, 0
                        yield event
            except (UpgradeRefused, ConnectionFailed) as error:
                self._failures += 1
                if sent or not self._leads_over(error):
                    raise
                refused = error
            else:
                return
        async with contextlib.aclosing(self._over_http(request, refused)) as stream:
            async for event in stream:
                yield event

    async def rehearse(self, request: Request) -> Rehearsal:
        """Return what `stream` would send now by the way in use; see `Transport.rehearse`."""
        return await self._way.rehearse(request)

    async def compact(self, request: Request) -> list[Item]:
        """Return items that stand for a whole conversation; see `HttpTransport.compact`."""
        return await self._http.compact(request)

    def describe(self) -> str:
        """Return where the way that is in use stands, in one line."""
        return self._way.describe()

    async def aclose(self) -> None:
        """Close both ways. What was found out about the endpoint stays known."""
        await self._websocket.aclose()
        await self._http.aclose()

    def _leads_over(self, error: UpgradeRefused | ConnectionFailed) -> bool:
        """Whether a WebSocket that could not be had is reason enough to go over HTTP."""
        if isinstance(error, UpgradeRefused):
            return error.status in _NO_WEBSOCKET or (
                error.status in OVERLOADED and self._failures >= FAILURES
            )
        return error.transient and self._failures >= FAILURES

    async def _over_http(
        self, request: Request, refused: UpgradeRefused | ConnectionFailed | None
    ) -> Stream:
        status = getattr(refused, "status", None)
        if status in _NO_WEBSOCKET and self._way is self._websocket:
            self._way = self._http
            yield Notice(
                text=f"{self.endpoint.name} answers no WebSocket (HTTP {status}): "
                "going on over HTTP",
                lasting=True,
            )
        elif refused is not None and self._way is self._websocket:
            yield Notice(text=f"no WebSocket to {self.endpoint.name}: trying HTTP")
        doubtful = status == _FORBIDDEN
        try:
            async with contextlib.aclosing(self._http.stream(request)) as stream:
                async for event in stream:
                    if doubtful and isinstance(event, Error) and event.status == _FORBIDDEN:
                        raise key_refused(self.endpoint)
                    yield event
        except AuthenticationFailed:
            if doubtful:
                self._way = self._websocket  # it was the key, and tells nothing of WebSockets
            raise
