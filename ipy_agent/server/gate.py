"""Who may come in: one gate before every route, for HTTP and WebSocket alike.

A caller proves that it knows the token, that it means this host, and that no web page sent
it. Whoever fails hears it as JSON; a WebSocket hears it before the upgrade. There is no CORS:
no page of any origin has business here unless its origin is listed.

Rule 1: the gate knows no paths, so a new route cannot be forgotten.
Rule 2: a check is a row in `CHECKS`; they run in that order and the first that fails answers.
Rule 3: nothing of a request's body is read before its head has passed.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, NamedTuple

import msgspec

from ipy_agent.errors import UsageError
from ipy_agent.secrets import Secret

__all__ = ["ASGIApp", "Gate", "Message", "Receive", "Refusal", "Scope", "Send", "refuse"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_SOCKETS = 32
"""Connections by WebSocket, and as many requests with a body beside them: what costs something."""
MAX_BODY = 4 * 2**20
LEAVE_SECONDS = 4.0


class Refusal(NamedTuple):
    """An answer that is not the one hoped for."""

    status: int
    code: str
    message: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


UNAUTHORIZED = Refusal(
    401,
    "invalid_api_key",
    "send this server's token as `Authorization: Bearer TOKEN`",
    ((b"www-authenticate", b"Bearer"),),
)
MISDIRECTED = Refusal(421, "wrong_host", "this server does not answer to that Host header")
FORBIDDEN = Refusal(403, "origin_not_allowed", "web pages of that origin may not call this server")
NOT_JSON = Refusal(415, "unsupported_media_type", "send JSON with `Content-Type: application/json`")
TOO_LARGE = Refusal(413, "body_too_large", f"a body may have {MAX_BODY // 2**20} MiB at most")
FULL = Refusal(503, "too_many_connections", f"{MAX_SOCKETS} connections are open: close one first")
BUSY = Refusal(503, "too_many_requests", f"{MAX_SOCKETS} requests are being answered: wait for one")
LEAVING = Refusal(503, "shutting_down", "this server is shutting down")


async def refuse(refusal: Refusal, scope: Scope, send: Send) -> None:
    """Answer a request with a refusal; a WebSocket as long as it is not accepted."""
    websocket = scope["type"] == "websocket"
    if websocket and "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": 1008, "reason": refusal.code})
        return
    kind = "websocket.http.response" if websocket else "http.response"
    error = {
        "message": refusal.message,
        "type": "invalid_request_error",
        "param": None,
        "code": refusal.code,
    }
    body = msgspec.json.encode({"error": error})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *refusal.headers,
    ]
    await send({"type": f"{kind}.start", "status": refusal.status, "headers": headers})
    await send({"type": f"{kind}.body", "body": body})


class Gate:
    """An ASGI app around another that lets in who may come in.

    Args:
        app: what is behind the gate.
        token: what callers have to know.
        hosts: the values of Host that mean this server, such as `127.0.0.1:8000`.
        origins: the values of Origin that may call it; a request without one may.
        clock: tells seconds, for `quiet_seconds`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: Secret | str,
        hosts: Iterable[str],
        origins: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._token = Secret(token)
        if not self._token.reveal():
            raise UsageError(
                "the server needs a token: set IPY_AGENT_SERVER_TOKEN, or leave it out"
            )
        self.app = app
        self._hosts = frozenset(host.lower().encode() for host in hosts)
        self._origins = frozenset(origin.encode() for origin in origins)
        self._sockets: set[asyncio.Task[Any]] = set()
        self._inside = 0
        self._bodies = 0
        self._leaving = False
        self._clock = clock
        self._seen = clock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request's head, and pass it on or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] not in _PASSAGES:
            raise ValueError(f"nobody knows how to check a request of type {scope['type']!r}")
        headers = _Headers(scope)
        for passes, refusal in CHECKS:
            if not passes(self, headers):
                await refuse(refusal, scope, send)
                return
        self._inside += 1
        try:
            await _PASSAGES[scope["type"]](self, scope, receive, send)
        finally:
            self._inside -= 1
            self._seen = self._clock()

    def quiet_seconds(self) -> float:
        """Return for how long nobody has been here: 0 while anybody is."""
        return 0.0 if self._inside else self._clock() - self._seen

    async def close(self) -> None:
        """Let nobody in any more, and end the connections that are open, as one going away."""
        self._leaving = True
        for task in self._sockets:
            task.cancel()
        if self._sockets:
            await asyncio.wait(self._sockets, timeout=LEAVE_SECONDS)

    def _knows_token(self, headers: _Headers) -> bool:
        scheme, _, token = headers.only(b"authorization").partition(b" ")
        same = hmac.compare_digest(token.strip(), self._token.reveal().encode())
        return same and scheme.lower() == b"bearer"

    def _means_us(self, headers: _Headers) -> bool:
        return headers.only(b"host").lower() in self._hosts

    def _is_no_page(self, headers: _Headers) -> bool:
        return not headers.all(b"origin") or headers.only(b"origin") in self._origins

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = _Headers(scope)
        if self._leaving:
            await refuse(LEAVING, scope, send)
        elif scope["method"] not in _WITH_BODY and not headers.announce_body():
            await self.app(scope, receive, send)
        elif not headers.say_json():
            await refuse(NOT_JSON, scope, send)
        elif headers.length() > MAX_BODY:
            await refuse(TOO_LARGE, scope, send)
        elif self._bodies >= MAX_SOCKETS:
            await refuse(BUSY, scope, send)
        else:
            self._bodies += 1
            try:
                await self._with_body(scope, receive, send)
            finally:
                self._bodies -= 1

    async def _with_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _whole(receive)
        if body is None:
            await refuse(TOO_LARGE, scope, send)
            return
        parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def read() -> Message:
            return parts.pop() if parts else await receive()

        await self.app(scope, read, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._leaving or len(self._sockets) >= MAX_SOCKETS:
            await refuse(LEAVING if self._leaving else FULL, scope, send)
            return
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (for the type checker: a coroutine runs in a task)
        self._sockets.add(task)
        try:
            await self.app(scope, receive, send)
        except asyncio.CancelledError:
            if not self._leaving:
                raise
        finally:
            self._sockets.discard(task)
            self._seen = self._clock()


async def _whole(receive: Receive) -> bytes | None:
    """Read a body, unless it is too large or its sender leaves."""
    body = bytearray()
    while len(body) <= MAX_BODY:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return bytes(body) if len(body) <= MAX_BODY else None


class _Headers:
    """The headers of a request; those that matter here may occur once only."""

    def __init__(self, scope: Scope) -> None:
        self._pairs: list[tuple[bytes, bytes]] = list(scope["headers"])

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self._pairs if key.lower() == name]

    def only(self, name: bytes) -> bytes:
        """Return the one value of a header, or nothing when it is absent or there twice."""
        values = self.all(name)
        return values[0] if len(values) == 1 else b""

    def announce_body(self) -> bool:
        return bool(self.length() or self.all(b"transfer-encoding"))

    def say_json(self) -> bool:
        return self.only(b"content-type").split(b";")[0].strip().lower() == b"application/json"

    def length(self) -> int:
        value = self.only(b"content-length")
        return int(value) if value.isdigit() else 0


CHECKS: tuple[tuple[Callable[[Gate, _Headers], bool], Refusal], ...] = (
    (Gate._knows_token, UNAUTHORIZED),  # noqa: SLF001
    (Gate._means_us, MISDIRECTED),  # noqa: SLF001
    (Gate._is_no_page, FORBIDDEN),  # noqa: SLF001
)
_PASSAGES = {"http": Gate._http, "websocket": Gate._websocket}  # noqa: SLF001
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
