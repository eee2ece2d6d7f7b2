"""One POST to an endpoint: sent, answered, read piece by piece; or one line that says why not.

Importing this loads httpx2, so it is imported when the first request goes over HTTP.

Rule 1: a redirect is never followed: the key would go along.
Rule 2: a request counts as sent from its first byte on.
Rule 3: whoever makes a post closes it; one whose answer was read to its end leaves its
connection to the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, TypeVar

import httpx2

from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import (
    AgentError,
    ConnectionFailed,
    ConnectionLost,
    MessageTooBig,
    NoAnswer,
)
from ipy_agent.transport.address import tls_failed
from ipy_agent.transport.handshake import OPEN_SECONDS
from ipy_agent.transport.livelane import MAX_RESPONSE

__all__ = ["Client", "Post"]

T = TypeVar("T")

KEEP_SECONDS = 60.0

_CONNECTED = frozenset({"connection.connect_tcp.complete", "connection.start_tls.complete"})


class Client:
    """Posts to one endpoint, over connections that are kept between turns."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._client = httpx2.AsyncClient(
            # Loopback never goes through a proxy, whatever HTTP_PROXY says.
            trust_env=not endpoint.loopback,
            # Whom a WebSocket trusts.
            verify=ssl.create_default_context(),
            follow_redirects=False,
            timeout=httpx2.Timeout(None, connect=OPEN_SECONDS),
            limits=httpx2.Limits(keepalive_expiry=KEEP_SECONDS),
        )

    def post(
        self, url: str, headers: dict[str, str], body: bytes, *, first: float, idle: float
    ) -> Post:
        """Send a body on its way.

        Args:
            url: where it goes.
            headers: who asks.
            body: JSON.
            first: seconds that the endpoint has until its answer begins.
            idle: seconds of silence after which the rest of it counts as lost.

        Raises:
            ConnectionFailed: no request can go to such an address.
        """
        told = {
            "Accept": "text/event-stream, application/json",
            # What is squeezed comes late, and the bytes that we count would not be the events'.
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            **headers,
        }
        post = Post(self._endpoint, url, len(body), first, idle)
        try:
            request = self._client.build_request(
                "POST", url, headers=told, content=body, extensions={"trace": post.hear}
            )
        except (httpx2.InvalidURL, ValueError) as error:
            raise _unreachable(self._endpoint, url, error) from None
        post.send(self._client, request)
        return post

    async def aclose(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()


class Post:
    """A request and what is answered.

    Attributes:
        size: bytes of its body.
        sent: whether any of it may have left.
        connect_ms: how long connecting took; `None` on a connection that was there.
        received: bytes of the answer's body so far.
        status: the answer's, once there is one.
        headers: the answer's, by their names in any case.
    """

    def __init__(self, endpoint: Endpoint, url: str, size: int, first: float, idle: float) -> None:
        self.size = size
        self.sent = False
        self.connect_ms: float | None = None
        self.received = 0
        self.status = 0
        self.headers = httpx2.Headers()
        self._endpoint = endpoint
        self._url = url
        self._seconds, self._idle = first, idle
        # Getting there has a deadline of its own; what is left is for a body that nobody reads.
        self._until: float | None = asyncio.get_running_loop().time() + OPEN_SECONDS + first
        self._began = 0.0
        self._gone = asyncio.Event()
        self._sending: asyncio.Task[httpx2.Response]

    def send(self, client: httpx2.AsyncClient, request: httpx2.Request) -> None:
        """Begin."""
        self._sending = asyncio.create_task(client.send(request, stream=True))
        self._sending.add_done_callback(lambda _: self._gone.set())

    async def hear(self, name: str, info: dict[str, Any]) -> None:
        """Take note of how far the request is, as httpcore tells it."""
        if name == "connection.connect_tcp.started":
            self._began = time.perf_counter()
        elif name in _CONNECTED:
            self.connect_ms = (time.perf_counter() - self._began) * 1_000
        elif getattr(info.get("request"), "method", None) == b"POST":  # not a proxy's CONNECT
            self.sent = self.sent or name == "http11.send_request_headers.started"
            if name == "http11.receive_response_headers.started":
                self._gone.set()

    async def left(self) -> None:
        """Wait until the request is on the wire.

        Raises:
            TransportError: it cannot get there.
        """
        await self._within(self._gone.wait())
        self._until = asyncio.get_running_loop().time() + self._seconds
        if self._sending.done():
            await self._within(self._sending)

    async def answered(self) -> None:
        """Wait until the answer begins, and learn its status and headers.

        Raises:
            TransportError: there is none.
        """
        response = await self._within(self._sending)
        self.status, self.headers = response.status_code, response.headers

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield the answer's body as it arrives.

        Raises:
            TransportError: it breaks off, falls silent or does not end.
        """
        arriving = (await self._sending).aiter_bytes()
        while (piece := await self._within(anext(arriving, None))) is not None:
            # A sign of life, if only a comment: from now on silence is counted from the last.
            self._until, self._seconds = None, self._idle
            self.received += len(piece)
            if self.received > MAX_RESPONSE:
                raise MessageTooBig(
                    f"the endpoint sent a response of more than {MAX_RESPONSE:,} bytes, "
                    "which is the limit",
                    sent=True,
                )
            yield piece

    async def whole(self) -> bytes:
        """Return the answer's body.

        Raises:
            TransportError: it breaks off, falls silent or does not end.
        """
        async with contextlib.aclosing(self.pieces()) as pieces:
            return b"".join([piece async for piece in pieces])

    async def close(self) -> None:
        """Let go: of the connection too, where anything is still to come on it."""
        if not self._sending.done():
            self._sending.cancel()
            await asyncio.wait([self._sending])
        if not self._sending.cancelled() and self._sending.exception() is None:
            await self._sending.result().aclose()

    async def _within(self, awaitable: Awaitable[T]) -> T:
        until = self._until or asyncio.get_running_loop().time() + self._seconds
        try:
            async with asyncio.timeout_at(until):
                return await awaitable
        except TimeoutError:
            raise NoAnswer(
                f"{self._endpoint.name} was silent for {self._seconds:g} s; run the cell again",
                sent=self.sent,
            ) from None
        except httpx2.HTTPError as error:
            raise self._broken(error) from None

    def _broken(self, error: httpx2.HTTPError) -> AgentError:
        if not self.sent:
            return _unreachable(self._endpoint, self._url, error)
        if isinstance(error, httpx2.RemoteProtocolError) and not self.status and _garbled(error):
            return ConnectionFailed(
                f"the endpoint does not speak HTTP ({_line(error)}); check its address, "
                "or choose another with `%agent connect`",
                sent=True,
            )
        return ConnectionLost(
            f"the connection was lost in a turn ({_line(error)}); run the cell again", sent=True
        )


def _unreachable(endpoint: Endpoint, url: str, error: Exception) -> ConnectionFailed:
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError):
            return tls_failed(endpoint, cause)
    return ConnectionFailed(
        f"nothing answers at {endpoint.url or url} ({_line(error)}): check the address, "
        "or choose another endpoint with `%agent connect`",
        transient=isinstance(error, httpx2.TransportError),
    )


def _garbled(error: BaseException) -> bool:
    """Whether something was said that is no HTTP, rather than nothing."""
    return any(type(cause).__module__.startswith("h11") for cause in _causes(error))


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
