"""The server's routes, behind its gate.

What a path answers is a row in `routes`; who may ask is settled by `gate` before any of them.
One `Responses` answers both transports: `Connection` speaks WebSocket for it, `http` HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from ipy_agent.errors import MissingExtra, ResponseFailed
from ipy_agent.secrets import Secret
from ipy_agent.server import http
from ipy_agent.server.composer import refusal
from ipy_agent.server.connection import CONNECTION_SECONDS, Connection
from ipy_agent.server.engine import Engine
from ipy_agent.server.gate import Gate, Receive, Refusal, Scope, Send, refuse
from ipy_agent.server.memory import Cache
from ipy_agent.server.responses import Responses

try:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import BaseRoute, Route, WebSocketRoute
except ImportError as missing:
    raise MissingExtra("the embedded server", "local") from missing

__all__ = ["app"]

NOT_FOUND = Refusal(404, "not_found", "there is nothing here: the API is below /v1")


def app(
    engine: Engine,
    token: Secret | str,
    hosts: Iterable[str],
    *,
    cache: Cache = "all",
    connection_limit: float = CONNECTION_SECONDS,
    origins: Iterable[str] = (),
) -> Gate:
    """Return the server as a gated ASGI app.

    Args:
        engine: what answers; the caller closes it.
        token: what callers have to know.
        hosts: the values of Host that it answers to, such as `127.0.0.1:8000`.
        cache: what each connection keeps of earlier responses.
        connection_limit: the seconds after which a connection is ended.
        origins: the web origins that may call it; requests without one may.
    """
    handlers: dict[Any, Any] = {HTTPException: _http_error, Exception: _server_error}
    behind = Starlette(routes=routes(engine, cache, connection_limit), exception_handlers=handlers)
    behind.router.default = _nowhere
    behind.router.redirect_slashes = False
    return Gate(behind, token=token, hosts=hosts, origins=origins)


def routes(
    engine: Engine, cache: Cache, connection_limit: float = CONNECTION_SECONDS
) -> list[BaseRoute]:
    """Return the table of paths."""
    born = int(time.time())
    responses = Responses(engine)

    async def models(_: Request) -> Response:
        named = [
            {"id": name, "object": "model", "created": born, "owned_by": "local"}
            for name in engine.models
        ]
        return JSONResponse({"object": "list", "data": named})

    return [
        WebSocketRoute("/v1/responses", _Connections(responses, cache, connection_limit)),
        Route("/v1/responses", _upgrade_required, methods=["GET"]),
        *http.routes(responses),
        Route("/v1/models", models, methods=["GET"]),
        Route("/health", _health, methods=["GET"]),
    ]


class _Connections:
    """The WebSocket route: a `Connection` for everyone who comes."""

    def __init__(self, responses: Responses, cache: Cache, seconds: float) -> None:
        self._responses = responses
        self._cache = cache
        self._seconds = seconds

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        await Connection(
            self._responses, receive, send, cache=self._cache, seconds=self._seconds
        ).run()


async def _upgrade_required(_: Request) -> Response:
    return _error(
        426,
        "upgrade_required",
        "GET is for WebSocket here: upgrade, or POST the request",
        {"upgrade": "websocket", "connection": "upgrade"},
    )


async def _health(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _nowhere(scope: Scope, _: Receive, send: Send) -> None:
    await refuse(NOT_FOUND, scope, send)


async def _http_error(_: Request, error: HTTPException) -> Response:
    code = error.detail.lower().replace(" ", "_")
    return _error(error.status_code, code, error.detail, error.headers)


async def _server_error(_: Request, error: Exception) -> Response:
    return _error(500, "server_error", f"the server failed: {type(error).__name__}")


def _error(status: int, code: str, message: str, headers: Any = None) -> Response:
    return http.refused(refusal(ResponseFailed(message, code=code, status=status)), headers)
