"""Where responses are made, for both transports: one room, so that they cannot differ.

A request comes as its client sent it. What was left out is put back, from the memory of the
connection or else from the server's store; the engine's pieces become events; the response is
remembered. Who asks passes on the events and knows when the client has gone.

Rule 1: a response is remembered before its terminal event is told, since the next request may
follow at once, and on another lane.
Rule 2: whatever goes wrong is an event, but a `HangUp`: that is for the connection.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec

from ipy_agent.errors import ResponseFailed
from ipy_agent.protocol.events import Event
from ipy_agent.protocol.items import Item, user
from ipy_agent.protocol.lineage import Held, NotHeld, ResponseCache
from ipy_agent.protocol.requests import Fields, Request
from ipy_agent.protocol.response import Response, Usage
from ipy_agent.server.compaction import sealed
from ipy_agent.server.composer import Composer
from ipy_agent.server.engine import Engine, Finish, HangUp, Job, Piece, TextPiece
from ipy_agent.server.frames import (
    Open,
    bad_request,
    check_input,
    custom_tools,
    from_user,
    open_calls,
)
from ipy_agent.server.memory import Kept, Memory

__all__ = ["Compaction", "Responses"]

SUMMARISE = (
    "Write a summary of this conversation that can stand in its place: what was asked, what was"
    " found, with names and numbers, and what is still to be done. Write the summary and nothing"
    " else."
)
SUMMARY_TOKENS = 512
"""A summary is there to be short, and a small model may never end."""

_log = logging.getLogger("ipy_agent.server")


class Compaction(msgspec.Struct, frozen=True, kw_only=True):
    """What stands for a conversation from now on: its user's messages, and a summary."""

    id: str
    created_at: int
    output: list[Item]
    usage: Usage
    object: str = "response.compaction"


class Responses:
    """Makes responses, and stores those that may be stored.

    Args:
        engine: what answers; the caller closes it.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._store: ResponseCache[Kept] = ResponseCache()

    async def answer(
        self, request: Request, seat: object, memory: Memory, lane: str | None = None
    ) -> AsyncGenerator[Event, None]:
        """Yield the events that answer a request; the last of them ends the turn.

        Args:
            request: what the client sent.
            seat: who asks, as the engine knows it.
            memory: what the client's connection holds.
            lane: the name that the events carry.

        Raises:
            HangUp: the engine orders the end of the connection.
        """
        composer = self._composer(request, lane)
        held: Held[Kept] | None = None
        try:
            full, held, cold = self._expand(request, memory)
            job = _job(request, full, held, cold=cold)
            async with _pieces(self.engine.generate(job, seat)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Finish):
                        events = composer.finish(piece)
                        self._remember(full, composer, piece.memory, seat, memory)
                        for event in events:
                            yield event
                        return
                    for event in composer.take(piece):
                        yield event
            raise RuntimeError("the engine stopped before its turn was over")
        except HangUp:
            raise
        except Exception as error:  # noqa: BLE001 (the client learns of it, and goes on)
            failure = error if isinstance(error, ResponseFailed) else _surprise(error)
            if held is not None:
                memory.fail(request, held, seat)
            for event in composer.fail(failure):
                yield event
            if isinstance(failure.__cause__, HangUp):
                raise failure.__cause__ from None

    def stored(self, response_id: str) -> Response:
        """Return a response that was stored.

        Raises:
            ResponseFailed: there is none of this id, or none any more.
        """
        try:
            held = self._store.held(response_id)
        except NotHeld:
            held = None
        if held is None or held.memory is None:
            raise ResponseFailed(
                f"Response with id '{response_id}' not found.", code="not_found", status=404
            )
        return held.memory.response

    async def compact(self, request: Request, seat: object) -> Compaction:
        """Return what can stand in place of a conversation.

        Raises:
            ResponseFailed: the request cannot be answered, or the engine failed.
        """
        full, held, _ = self._expand(request, Memory("off"))
        check_input(full, _calls(request, held))
        # Without tools nothing can be called. Its prompt has another head: no memory fits.
        kept = ("model", "instructions")
        values = {name: full.fields.values[name] for name in kept if name in full.fields.values}
        values["max_output_tokens"] = SUMMARY_TOKENS
        job = Job(fields=Fields(values), input=full.input.extend([user(SUMMARISE)]))
        try:
            summary, usage = await self._summary(job, seat)
        except (ResponseFailed, HangUp):
            raise
        except Exception as error:  # noqa: BLE001 (the client learns of it)
            raise _surprise(error) from None
        output = [*map(_in_parts, filter(from_user, full.input)), sealed(summary)]
        name = f"cmp_{secrets.token_hex(12)}"
        return Compaction(id=name, created_at=int(time.time()), output=output, usage=usage)

    async def _summary(self, job: Job, seat: object) -> tuple[str, Usage]:
        said: list[str] = []
        usage = Usage()
        async with _pieces(self.engine.generate(job, seat)) as pieces:
            async for piece in pieces:
                if isinstance(piece, TextPiece):
                    said.append(piece.text)
                elif isinstance(piece, Finish):
                    usage = piece.usage
        summary = "".join(said).strip()
        if not summary:
            raise ResponseFailed(
                "the model wrote no summary: try again", code="compaction_failed", status=500
            )
        return summary, usage

    def _composer(self, request: Request, lane: str | None) -> Composer:
        values = request.fields.values
        return Composer(
            secrets.token_hex(12),
            lane=lane,
            custom=custom_tools(request.fields),
            created_at=time.time(),
            model=values.get("model") or self.engine.models[0],
            previous_response_id=request.previous_response_id,
            store=values.get("store") is not False,
        )

    def _expand(self, request: Request, memory: Memory) -> tuple[Request, Held[Kept], bool]:
        """Return the whole request, what was held of it, and whether the store alone held it."""
        for expand, cold in ((memory.expand, False), (self._store.expand, True)):
            with contextlib.suppress(NotHeld):
                return *expand(request), cold
        raise bad_request(
            f"Previous response with id '{request.previous_response_id}' not found.",
            "previous_response_not_found",
            "previous_response_id",
        )

    def _remember(
        self, full: Request, composer: Composer, memory: Any, seat: object, own: Memory
    ) -> None:
        response = composer.response
        kept = Kept(response, open_calls(frozenset(), composer.output), memory, seat)
        own.remember(full, kept)
        if response.store:
            self._store.remember(full, response.id, composer.output, kept._replace(seat=None))


def _job(request: Request, full: Request, held: Held[Kept], *, cold: bool) -> Job:
    check_input(full, _calls(request, held))
    memory = None if held.memory is None else held.memory.memory
    return Job(
        fields=full.fields,
        input=full.input,
        held=0 if memory is None else held.chain.length,
        memory=memory,
        cold=cold,
        generate=full.generate,
    )


def _calls(request: Request, held: Held[Kept]) -> Open:
    before: Open = frozenset() if held.memory is None else held.memory.calls
    return open_calls(before, request.input.since(0))


@contextlib.asynccontextmanager
async def _pieces(pieces: AsyncIterator[Piece]) -> AsyncIterator[AsyncIterator[Piece]]:
    """See to it that an engine stops when nobody reads on."""
    try:
        yield pieces
    finally:
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()


def _in_parts(message: Item) -> Item:
    """Return a user's message as the API tells it: a text is one part."""
    said = message.get("content")
    return message if not isinstance(said, str) else {**message, **user(said)}


def _surprise(error: Exception) -> ResponseFailed:
    _log.error("a turn failed", exc_info=error)
    return ResponseFailed(
        f"the server failed: {type(error).__name__}: {error}", code="server_error", status=500
    )
