"""The way to an endpoint: which one and why, its key, proxies, and whether somebody answers."""

from __future__ import annotations

import os
import queue
import socket
import ssl
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator

from ipy_agent.doctor.finding import Finding
from ipy_agent.endpoints import Endpoint

__all__ = ["CONNECT_SECONDS", "LOOKS", "endpoint", "why"]

CONNECT_SECONDS = 2.0

_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}
_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")
_KINDS = {True: ("wss", "socks", "https"), False: ("ws", "socks", "https", "http")}
"""Which proxies `websockets` follows, by whether the way is to be encrypted."""


def why() -> str:
    """Return what makes the environment's endpoint the one it is."""
    if os.environ.get("IPY_AGENT_ENDPOINT"):
        return "IPY_AGENT_ENDPOINT says so"
    if os.environ.get("OPENAI_API_KEY"):
        return "OPENAI_API_KEY is set"
    return "neither IPY_AGENT_ENDPOINT nor OPENAI_API_KEY is set"


def endpoint(chosen: Endpoint, why: str) -> Iterator[Finding]:
    """Look at which endpoint was chosen, and why."""
    place = urllib.parse.urlsplit(chosen.url)._replace(query="").geturl() or "embedded server"
    yield Finding("ok", "endpoint", f"{chosen.name} ({place}): {why}")
    if chosen.needs_model and not chosen.model:
        remedy = "set IPY_AGENT_MODEL, or name one (-m MODEL)"
        yield Finding("note", "model", f"{chosen.name} has none of its own", remedy)


def _key(endpoint: Endpoint) -> Iterator[Finding]:
    if endpoint.key_env:
        endpoint.key()  # what it raises says what to do
        yield Finding("ok", "key", f"{endpoint.key_env} is set")
    elif endpoint.loopback:
        yield Finding("ok", "key", "none is sent")
    else:
        remedy = "if it wants one, `%agent connect URL --key-env NAME`"
        yield Finding("note", "key", "none is sent", remedy)


def _proxies(endpoint: Endpoint) -> Iterator[Finding]:
    names = [name for name in _PROXIES if os.environ.get(name) or os.environ.get(name.lower())]
    if not names:
        return
    way = "loopback passes by them" if endpoint.loopback else "requests follow them"
    yield Finding("note", "proxies", f"{', '.join(names)}: {way}")


def _answers(endpoint: Endpoint) -> Iterator[Finding]:
    parts = urllib.parse.urlsplit(endpoint.url)
    secure = _PORTS[parts.scheme] == _PORTS["https"]
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    proxy = None if endpoint.loopback else _proxy(f"{host}:{port}", secure=secure)
    if proxy is not None:
        host, port, secure = *proxy, False
    reason = _refusal(host, port, secure=secure)
    name = f"{'the proxy ' if proxy else ''}{host}:{port}"
    if reason is None:
        yield Finding("ok", "answers", f"{name}{', with a good certificate' if secure else ''}")
    else:
        remedy = "check the network and the address, or `%agent connect local`"
        yield Finding("missing", "answers", f"{name} does not ({reason})", remedy)


def _proxy(host: str, *, secure: bool) -> tuple[str, int] | None:
    """Return where the way to a host begins, if the environment names a proxy for it."""
    if urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    named = next((proxies[kind] for kind in _KINDS[secure] if kind in proxies), "")
    parts = urllib.parse.urlsplit(named if "//" in named else f"//{named}")
    return (parts.hostname, parts.port or 80) if parts.hostname else None


def _refusal(host: str, port: int, *, secure: bool) -> str | None:
    """Return why no connection comes about, if none does. A name can take its time: not ours."""
    said: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def connect() -> None:
        try:
            with socket.create_connection((host, port), CONNECT_SECONDS) as bare:
                if secure:
                    ssl.create_default_context().wrap_socket(bare, server_hostname=host).close()
        except (OSError, ValueError) as error:
            told = (getattr(error, name, None) for name in ("reason", "strerror"))
            said.put(next(filter(None, told), str(error)))
        else:
            said.put(None)

    threading.Thread(target=connect, daemon=True).start()
    try:
        return said.get(timeout=CONNECT_SECONDS)
    except queue.Empty:
        return f"silent for {CONNECT_SECONDS:.0f} s"


LOOKS: dict[str, Callable[[Endpoint], Iterator[Finding]]] = {
    "key": _key,
    "proxies": _proxies,
    "answers": _answers,
}
