"""A turn that is asked again when its way broke: a layer around any transport.

What broke decides, by a table, how often a turn is tried in all. Between two tries there is a pause
that grows and is never twice the same, or as long as an endpoint asks for that has too much to do.
What had arrived of an earlier try is superseded: a new `RequestSent` says so.

Rule 1: nothing is asked again once a turn's terminal event was passed on, or the way was closed.
Rule 2: a pause is a sleep on the loop, which an interrupt ends.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from typing import NamedTuple

import msgspec

from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import (
    AgentError,
    ConnectionFailed,
    ConnectionLost,
    ProtocolError,
    ResponseFailed,
    UpgradeRefused,
)
from ipy_agent.protocol.events import TERMINAL, Error, Event
from ipy_agent.protocol.requests import Request
from ipy_agent.protocol.response import failed
from ipy_agent.trace import Notice, RequestSent, Throttled, Trace
from ipy_agent.transport import Stream, Transport
from ipy_agent.transport.auto import OVERLOADED
from ipy_agent.transport.clock import Clock
from ipy_agent.transport.rehearsal import Rehearsal

__all__ = ["Recovery"]

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
LONGEST_ASKED = 60.0
"""How many seconds an endpoint may ask to be left alone: of a longer time its user is told."""

BUSY = 429
POLICY = 1008
"""RFC 6455's code for what the endpoint will not have: it will not have it the next time either."""


class _Again(NamedTuple):
    """How often a turn is tried, whatever else happens to it, and what is told of why."""

    tries: int
    told: str

    def left(self, tries: Counter[_Again]) -> bool:
        """Whether there is another try, after those that failed so."""
        return tries[self] + 1 < self.tries


_LOST = _Again(5, "the connection was lost")
_GARBLED = _Again(2, "the endpoint broke the protocol")
_UNREACHED = _Again(3, "no connection")
_BUSY = _Again(5, "the endpoint has too much to do")


class Recovery:
    """A transport that asks again.

    Args:
        transport: the way itself.
        endpoint: where it leads.
        clock: what sleeps.
        chance: returns numbers from 0 to 1, by which pauses differ.
    """

    def __init__(
        self,
        transport: Transport,
        endpoint: Endpoint,
        *,
        clock: Clock | None = None,
        chance: random.Random | None = None,
    ) -> None:
        self.transport = transport
        self.endpoint = endpoint
        self._clock = clock or Clock()
        self._chance = chance or random.Random()  # noqa: S311 (nobody has to guess it)
        self._closings = 0

    async def stream(self, request: Request) -> Stream:
        """Answer a whole request, however often it has to be sent; see `Transport.stream`."""
        tries, sent, over, closings = Counter[_Again](), 0, False, self._closings
        while True:
            try:
                async with contextlib.aclosing(self.transport.stream(request)) as stream:
                    async for event in stream:
                        if event.KIND == "progress":  # which nearly all are
                            yield event
                            continue
                        if isinstance(event, RequestSent):
                            yield msgspec.structs.replace(event, attempt=sent)
                            sent += 1
                            continue
                        asked = _asked(event) if _BUSY.left(tries) else None
                        if asked is not None:
                            again, pause = _BUSY, asked
                            break
                        over = over or isinstance(event, (Error, *TERMINAL))
                        yield event
                    else:
                        return
            except AgentError as error:
                over = over or self._closings != closings
                found = None if over else _again(error, self.endpoint, reached=sent > 0)
                if found is None or not found.left(tries):
                    raise
                again, pause = found, _wait(error) or self._pause(tries[found] + 1)
            tries[again] += 1
            number = f"try {tries[again] + 1} of {again.tries}"
            text = f"{again.told}: asking again in {pause:.1f} s ({number})"
            yield Throttled(text=text, seconds=pause) if again is _BUSY else Notice(text=text)
            await self._clock.sleep(pause)
            if self._closings != closings:
                raise ConnectionLost("closed in a turn; run the cell again", sent=sent > 0)

    async def rehearse(self, request: Request) -> Rehearsal:
        """Return what `stream` would send first; see `Transport.rehearse`."""
        return await self.transport.rehearse(request)

    def describe(self) -> str:
        """Return where the way stands, in one line."""
        return self.transport.describe()

    async def aclose(self) -> None:
        """Say goodbye and let go of everything; what is under way is not asked again."""
        self._closings += 1
        await self.transport.aclose()

    def _pause(self, tries: int) -> float:
        """Return how long to wait after so many tries: up to half of it is chance."""
        longest: float = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (tries - 1))
        return longest * (1 - self._chance.random() / 2)


def _again(error: AgentError, endpoint: Endpoint, *, reached: bool) -> _Again | None:
    """Return how often a turn is tried that ended so; `None`, if it is not tried again."""
    if isinstance(error, ConnectionLost):
        return None if error.close_code == POLICY else _LOST
    if isinstance(error, ProtocolError):
        return _GARBLED
    if isinstance(error, ResponseFailed):
        return None if _wait(error) is None else _BUSY
    if isinstance(error, UpgradeRefused):
        return _UNREACHED if error.status in OVERLOADED else None
    if isinstance(error, ConnectionFailed) and error.transient:
        if reached:  # it was there a moment ago, and may be starting again
            return _LOST
        # At a loopback address that was typed wrong nobody wants to wait.
        return None if endpoint.loopback and endpoint.url else _UNREACHED
    return None


def _asked(event: Event | Trace) -> float | None:
    """Return how many seconds an endpoint asks to wait, if it does and that is not too long."""
    return _wait(failed(event.reason, event.status)) if isinstance(event, Error) else None


def _wait(error: AgentError) -> float | None:
    if not isinstance(error, ResponseFailed) or error.status != BUSY:
        return None
    seconds = error.retry_after
    return None if seconds is None or seconds > LONGEST_ASKED else seconds
