"""Where a transport connects, and with which key: told, or found by starting the local server."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import ssl
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

import msgspec

from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import AuthenticationFailed, ConnectionFailed
from ipy_agent.secrets import Secret
from ipy_agent.trace import Notice
from ipy_agent.transport.local import local_server

__all__ = ["Address", "Locate", "addresses", "key_refused", "local_address", "tls_failed"]

Locate = Callable[..., Coroutine[Any, Any, tuple[str, Secret | None]]]
"""Finds or starts a server, given what hears of it and `model`: its base URL and its token."""


class Address(msgspec.Struct, frozen=True):
    """Where to go, and the key to show there (which is never shown elsewhere)."""

    websocket_url: str
    http_url: str
    key: Secret | None

    @property
    def headers(self) -> dict[str, str]:
        """What a request says of who asks. It holds the key: for the request itself only."""
        return {} if self.key is None else {"Authorization": f"Bearer {self.key.reveal()}"}

    def __repr__(self) -> str:
        return f"<address {self.http_url}>"


async def addresses(
    endpoint: Endpoint, locate: Locate, *, model: str | None
) -> AsyncGenerator[Notice | Address, None]:
    """Yield what takes long, if anything does, and last the address of an endpoint.

    Raises:
        AuthenticationFailed: its key's variable is not set, or holds what no header can.
        AgentError: the local server cannot be had.
    """
    if endpoint.url:
        yield _address(endpoint, endpoint.key())
        return
    notices: asyncio.Queue[str | None] = asyncio.Queue()
    finding = asyncio.create_task(locate(notices.put_nowait, model=model))
    finding.add_done_callback(lambda _: notices.put_nowait(None))
    try:
        while (text := await notices.get()) is not None:
            yield Notice(text=text)
        url, key = await finding
    finally:
        finding.cancel()
    yield _address(dataclasses.replace(endpoint, url=url), key)


async def local_address(
    notice: Callable[[str], None], *, model: str | None
) -> tuple[str, Secret | None]:
    """Find or start the user's local server."""
    server = await local_server(notice, model=model)
    return server.url, server.token


def _address(endpoint: Endpoint, key: Secret | None) -> Address:
    address = Address(endpoint.websocket_url, endpoint.http_url, Secret(key) if key else None)
    if not all(map(_SENDABLE.fullmatch, address.headers.values())):
        raise key_refused(endpoint)
    return address


_SENDABLE = re.compile(r"Bearer [\x21-\x7e]+")
"""What a header takes: libraries that find anything else repeat it in their errors."""


def key_refused(endpoint: Endpoint) -> AuthenticationFailed:
    """Return what is told where an endpoint does not take its key."""
    key = f"check {endpoint.key_env}" if endpoint.key_env else "name its variable (--key-env)"
    return AuthenticationFailed(f"{endpoint.name} does not take the key: {key}")


def tls_failed(endpoint: Endpoint, error: ssl.SSLError) -> ConnectionFailed:
    """Return what is told where no secure way can be had: that does not pass by itself."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConnectionFailed(
            f"the certificate of {endpoint.url} does not hold: {error.verify_message}"
        )
    reason = str(error.reason or error).replace("_", " ").lower()
    return ConnectionFailed(
        f"no TLS with {endpoint.url} ({reason}): check the address, "
        "or choose another with `%agent connect`"
    )
