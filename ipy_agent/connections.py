"""The ways to endpoints that a session has open, and the loop that they live on.

Made at no cost: the thread comes with the first run, a socket with the first turn. When the
session is closed, forgotten, or the process ends, all of them say goodbye.

Rule 1: a forked child has neither the thread nor the right to the sockets.
Rule 2: several threads may come at once, each with a branch of its own.
"""

from __future__ import annotations

import contextlib
import threading
import weakref

from ipy_agent.background import Background
from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import UsageError
from ipy_agent.settings import Way
from ipy_agent.transport import Transport
from ipy_agent.transport.auto import AutoTransport
from ipy_agent.transport.http import HttpTransport
from ipy_agent.transport.recovery import Recovery
from ipy_agent.transport.websocket import WebSocketTransport

__all__ = ["Connections"]

CLOSE_SECONDS = 1.0

_WAYS = {"auto": AutoTransport, "websocket": WebSocketTransport, "http": HttpTransport}

_Key = tuple[Endpoint, str]


class Connections:
    """Transports by endpoint and kind, on one background loop."""

    def __init__(self) -> None:
        self._background: Background | None = None
        self._transports: dict[_Key, Transport] = {}
        self._making = threading.Lock()

    def to(self, endpoint: Endpoint, way: Way) -> Transport:
        """Return the transport to an endpoint, made if it is new."""
        key = endpoint, way
        with self._making:
            if key not in self._transports:
                self._transports[key] = Recovery(_WAYS[way](endpoint), endpoint)
            return self._transports[key]

    def compacting(self, endpoint: Endpoint) -> HttpTransport:
        """Return the transport that compacts conversations: over HTTP, whatever the setting.

        Raises:
            UsageError: there is a transport of the user's own, and it cannot.
        """
        found = self.to(endpoint, "http")
        if isinstance(found, Recovery):
            found = found.transport
        if not isinstance(found, HttpTransport):
            raise UsageError(f"a {type(found).__name__} cannot compact: start over instead")
        return found

    def use(self, transport: Transport, endpoint: Endpoint) -> None:
        """Go to an endpoint by this transport, whatever the setting."""
        self._transports |= {(endpoint, way): transport for way in _WAYS}

    @property
    def loop(self) -> Background:
        """The loop, begun if it was not yet."""
        with self._making:
            if self._background is None:
                made = self._background = Background()
                self._goodbye = weakref.finalize(self, _say_goodbye, made, self._transports)
            return self._background

    def check(self) -> None:
        """Raise `UsageError` in a forked child."""
        if self._background is not None:
            self._background.check()

    def disconnect(self) -> None:
        """Close what is open; whoever goes there next connects anew."""
        if self._background is not None:
            for transport in set(self._transports.values()):
                self._background.call(transport.aclose())

    def close(self) -> None:
        """Close what is open, and end the thread. A forked child does nothing."""
        if self._background is not None and self._background.ours:
            self._goodbye()
            self._background = None


def _say_goodbye(background: Background, transports: dict[_Key, Transport]) -> None:
    if not background.ours:
        return
    for transport in set(transports.values()):
        with contextlib.suppress(Exception):  # nobody is left to be told
            background.call(transport.aclose(), CLOSE_SECONDS)
    background.stop()
