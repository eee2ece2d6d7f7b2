"""The modes that are measured, and why an endpoint may not have one.

Rule: a mode names its way for certain. A way that falls back to another one would be counted
as what it is not.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from ipy_agent.endpoints import Endpoint
from ipy_agent.server.memory import Cache

__all__ = ["MODES", "Mode", "lack"]


class Mode(NamedTuple):
    """How the turns of a loop go.

    Attributes:
        way: by WebSocket, or by HTTP.
        said: what it means, in a few words.
        store: whether responses are stored, and continued from.
        cache: what a local server keeps.
    """

    way: Literal["http", "websocket"]
    said: str
    store: bool = False
    cache: Cache = "all"


MODES = {
    "http": Mode("http", "all is sent, nothing is cached", cache="off"),
    "http-cache": Mode("http", "all is sent, the server has a prefix cache"),
    "http-stored": Mode("http", "what is new is sent, the server stores responses", store=True),
    "websocket": Mode("websocket", "what is new is sent, the connection has a cache"),
}


def lack(mode: Mode, endpoint: Endpoint) -> str | None:
    """Return why an endpoint does not have a mode, if it is known not to."""
    if mode.cache == "off" and endpoint.url:
        return f"the prompt cache of {endpoint.name} cannot be switched off from here"
    if mode.store and not endpoint.stores:
        return f"{endpoint.name} is not known to store responses"
    if mode.way == "websocket" and not endpoint.websocket:
        return f"{endpoint.name} has no WebSocket"
    return None
