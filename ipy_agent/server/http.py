"""The same responses over HTTP: as one JSON object, or as a stream of its events.

Each request is a connection for itself: a seat of its own, and no memory but the server's
store. When its client goes, what is generated for it stops.

Rule 1: a failure before the response began is the answer's status; afterwards the response
itself says `failed`.
Rule 2: an answer that takes an engine's time races with its client's leaving. When the server
ends, it is cancelled: what has not begun is refused, a stream breaks off, and both end in order.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import msgspec

from ipy_agent.errors import MissingExtra, ResponseFailed
from ipy_agent.protocol import sse
from ipy_agent.protocol.events import Error, Event, encode
from ipy_agent.server.composer import refusal
from ipy_agent.server.engine import HangUp
from ipy_agent.server.frames import posted
from ipy_agent.server.gate import Receive, Scope, Send
from ipy_agent.server.memory import Memory
from ipy_agent.server.responses import Responses

try:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute, Route
except ImportError as missing:
    raise MissingExtra("the embedded server", "local") from missing

__all__ = ["refused", "routes"]

Work = Callable[[Responses, bytes, object], Awaitable[Response]]
"""What makes the answer to a body for a seat."""

BROKEN = ResponseFailed(
    "the server broke off before its answer: ask again", code="server_error", status=500
)
LEAVING = ResponseFailed("this server is shutting down", code="shutting_down", status=503)


def routes(responses: Responses) -> list[BaseRoute]:
    """Return the paths of responses over HTTP."""

    async def stored(request: Request) -> Response:
        try:
            return _json(responses.stored(request.path_params["name"]))
        except ResponseFailed as failure:
            return refused(refusal(failure))

    return [
        Route("/v1/responses", _Posted(responses, _create), methods=["POST"]),
        Route("/v1/responses/compact", _Posted(responses, _compact), methods=["POST"]),
        Route("/v1/responses/{name}", stored, methods=["GET"]),
    ]


def refused(error: Error, headers: Any = None) -> Response:
    """Return an error frame as an answer; what it tells of headers becomes headers."""
    reason = error.reason
    names = ("message", "type", "param", "code")
    told = {"error": {name: getattr(reason, name) for name in names}}
    return _json(
        told, error.status or BROKEN.status or 500, {**(reason.headers or {}), **(headers or {})}
    )


class _Gone(Exception):
    """The client has gone: there is nobody to tell anything."""


class _Seat:
    """One request, as an engine knows it."""


class _Posted:
    """A route that has a body and needs an engine, as an ASGI app."""

    def __init__(self, responses: Responses, work: Work) -> None:
        self._responses = responses
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await Request(scope, receive).body()
        seat = _Seat()
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(_departure(receive))
                answer = await self._answer(body, seat)
                await answer(scope, receive, send)
                watch.cancel()
        except* _Gone:
            pass
        finally:
            await self._responses.engine.leave(seat)

    async def _answer(self, body: bytes, seat: object) -> Response:
        try:
            return await self._work(self._responses, body, seat)
        except ResponseFailed as failure:
            return refused(refusal(failure))
        except HangUp:
            return refused(refusal(BROKEN))
        except asyncio.CancelledError:
            return refused(refusal(LEAVING))


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise _Gone


async def _create(responses: Responses, body: bytes, seat: object) -> Response:
    request, streamed = posted(body)
    events = responses.answer(request, seat, Memory("off"))
    first = await anext(events)
    if isinstance(first, Error):
        await events.aclose()
        return refused(first)
    if streamed:
        return _Stream(first, events)
    last = first
    async for event in events:
        last = event
    return _json(getattr(last, "response", None))


async def _compact(responses: Responses, body: bytes, seat: object) -> Response:
    request, _ = posted(body)
    return _json(await responses.compact(request, seat))


class _Stream(Response):
    """Events as they come, in the form that browsers call server-sent events."""

    media_type = "text/event-stream"

    def __init__(self, first: Event, rest: AsyncGenerator[Event, None]) -> None:
        super().__init__(headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._first = first
        self._rest = rest

    async def __call__(self, _: Scope, __: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._rest):
            head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(head)
            await send(_part(self._first))
            # Both end the stream without a terminal event, which is what breaks one in HTTP.
            with contextlib.suppress(HangUp, asyncio.CancelledError):
                async for event in self._rest:
                    await send(_part(event))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _part(event: Event) -> dict[str, Any]:
    body = sse.encode(str(event.__struct_config__.tag), encode(event))
    return {"type": "http.response.body", "body": body, "more_body": True}


def _json(content: Any, status: int = 200, headers: Any = None) -> Response:
    body = msgspec.json.encode(content)
    return Response(body, status, headers, media_type="application/json")
