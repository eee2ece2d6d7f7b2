"""What is answered to a POST, read as events: from a stream of them, or from one whole response.

Rule 1: what breaks the protocol ends the turn, as over a WebSocket, and a body that ends before
its terminal event is a lost connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from ipy_agent.errors import (
    AgentError,
    ConnectionFailed,
    ConnectionLost,
    MessageTooBig,
    ProtocolError,
)
from ipy_agent.protocol.events import (
    TERMINAL,
    Error,
    Event,
    ItemDone,
    ResponseCompleted,
    ResponseFailedEvent,
    ResponseIncomplete,
    decode,
)
from ipy_agent.protocol.items import Item
from ipy_agent.protocol.lanes import CLIENT, SERVER, IllegalMove, Lane
from ipy_agent.protocol.response import Reason, Response
from ipy_agent.protocol.sse import Parser

if TYPE_CHECKING:
    from ipy_agent.transport.posts import Post

__all__ = ["events", "output", "reason_of"]

DRAIN_SECONDS = 0.3

_decode_any = msgspec.json.Decoder(dict[str, Any]).decode
_ENDS: dict[str | None, type[ResponseCompleted | ResponseFailedEvent | ResponseIncomplete]] = {
    None: ResponseCompleted,
    "completed": ResponseCompleted,
    "failed": ResponseFailedEvent,
    "incomplete": ResponseIncomplete,
}


async def events(post: Post) -> AsyncGenerator[Event, None]:
    """Yield the events of an answer that is no refusal, the terminal one with its output whole.

    Raises:
        TransportError: it breaks off, or is no answer to a request for a response.
    """
    kind = post.headers.get("content-type", "text/event-stream").partition(";")[0].strip().lower()
    if kind.endswith("json"):
        yield _whole(await post.whole())
        return
    if kind != "text/event-stream":
        raise ConnectionFailed(
            f"the endpoint answers with {kind}, which is not the Responses API: "
            "check its address, or choose another with `%agent connect`"
        )
    turn = _Turn()
    async with contextlib.aclosing(post.pieces()) as pieces:
        async for piece in pieces:
            for event in turn.read(piece):
                yield event
            if turn.over:
                # What little may follow is read, so that the connection can be kept.
                with contextlib.suppress(AgentError, TimeoutError):
                    async with asyncio.timeout(DRAIN_SECONDS):
                        async for _ in pieces:
                            pass
                return
    raise ConnectionLost(
        "the connection was lost in a turn (its answer has no end); run the cell again", sent=True
    )


def reason_of(body: bytes) -> Reason | None:
    """Return the reason that a body gives for a refusal, if it is one of this API's."""
    try:
        said = _decode_any(body).get("error")
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    if said is None or isinstance(said, str):
        return Reason(message=said) if said else None
    try:
        return msgspec.convert(said, Reason)
    except msgspec.ValidationError:
        return Reason()


def output(body: bytes) -> list[Item]:
    """Return the items of a whole response.

    Raises:
        ProtocolError: there are none.
    """
    try:
        return msgspec.json.decode(body, type=_Output).output
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise _broken(error) from None


class _Output(msgspec.Struct):
    output: list[Item]


class _Turn:
    """The events of one turn, as their bytes arrive."""

    def __init__(self) -> None:
        self.over = False
        self._parser = Parser()
        self._lane = Lane()
        self._lane.move(CLIENT, "create")
        self._done: list[Item] = []

    def read(self, piece: bytes) -> Iterator[Event]:
        """Yield the events that these bytes make whole, up to the one that ends the turn."""
        try:
            for data in self._parser.feed(piece):
                event = _event(data)
                self._lane.move(SERVER, event.KIND)
                if isinstance(event, ItemDone):
                    self._done.append(event.item)
                elif isinstance(event, TERMINAL):
                    # An output that was not told again is what was done.
                    event.response.output = event.response.output or self._done
                self.over = event.KIND in ("terminal", "error")
                yield event
                if self.over:
                    return
        except (msgspec.DecodeError, IllegalMove) as error:
            raise _broken(error) from None
        except ValueError as error:
            raise MessageTooBig(
                f"the endpoint sent {error}, which is the limit", sent=True
            ) from None


def _event(data: bytes) -> Event:
    """Return an event; some endpoints break a stream off with a reason and no type."""
    try:
        return decode(data)
    except msgspec.ValidationError:
        reason = reason_of(data)
        if reason is None:
            raise
        return Error(error=reason)


def _whole(body: bytes) -> Event:
    """Return a response that came in one piece as the event that ends it."""
    reason = reason_of(body)
    try:
        response = msgspec.json.decode(body, type=Response)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        if reason is not None:
            return Error(error=reason)
        raise _broken(error) from None
    end = _ENDS.get(response.status)
    if end is None:
        raise ProtocolError(
            f"the endpoint answered with a response that is {response.status!r}, not its end; "
            "run the cell again",
            sent=True,
        )
    return end(response=response)


def _broken(error: Exception) -> ProtocolError:
    return ProtocolError(
        f"the endpoint broke the protocol ({error}); run the cell again", sent=True
    )
