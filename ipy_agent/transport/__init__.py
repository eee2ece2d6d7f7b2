"""The seam: whole requests go in, one stream of events comes out.

How a request is shortened, on which socket it travels and what happens when that breaks is
a transport's private matter. What it did, it tells as `trace` values in the stream.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from ipy_agent.protocol.events import Event
from ipy_agent.protocol.requests import Request
from ipy_agent.trace import Trace
from ipy_agent.transport.rehearsal import Rehearsal

__all__ = ["Stream", "Transport"]

Stream = AsyncGenerator[Event | Trace, None]


class Transport(Protocol):
    """A way to an endpoint."""

    def stream(self, request: Request) -> Stream:
        """Send a whole request and yield what is answered, the terminal event last but one.

        The stream is: notices, `RequestSent`, events, one terminal or error event whose
        response has its output whole, `ResponseEnded`. Closing it early, or cancelling the
        task that reads it, abandons the turn; nothing of it reaches the next one.

        Raises:
            TransportError: the way broke; `sent` says whether the request may have run.
        """

    async def rehearse(self, request: Request) -> Rehearsal:
        """Return what `stream` would send now. Nothing is sent, opened or taken note of.

        Raises:
            UsageError: it cannot go this way.
            MessageTooBig: the endpoint takes no request of this size.
        """

    def describe(self) -> str:
        """Return where this transport stands, in one line."""

    async def aclose(self) -> None:
        """Say goodbye and let go of everything."""
