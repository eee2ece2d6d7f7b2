"""A transport that answers from a list: for tests of tools, prompts and displays.

It keeps the same lineage as the live one and yields the same stream, so that what is built
on it cannot tell the difference; nothing leaves the process.

    ask = {"tool_calls": [{"name": "price", "arguments": {"ticker": "X"}}]}
    session = Session(transport=ScriptedTransport([ask, {"text": "It costs 3."}]))

A script is what `ipy-agent serve --engine scripted` takes (`protocol.script`); there is no socket
here to wait on or to break, so `delay_ms` and `then` change nothing. Past its end the last user's
text is echoed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from ipy_agent.protocol.events import (
    Error,
    Event,
    ItemAdded,
    ItemDone,
    ResponseCompleted,
    ResponseCreated,
    TextDelta,
)
from ipy_agent.protocol.items import CALLS, Chain, Item, text
from ipy_agent.protocol.lineage import Lineage
from ipy_agent.protocol.requests import Request
from ipy_agent.protocol.response import Reason, Response, Usage
from ipy_agent.protocol.script import Entry, Failure, entries, pieces
from ipy_agent.trace import RequestSent, ResponseEnded
from ipy_agent.transport import Stream
from ipy_agent.transport.rehearsal import Rehearsal

__all__ = ["ScriptedTransport"]


class ScriptedTransport:
    """Answers turn by turn from a script.

    Args:
        script: an entry a turn.

    Attributes:
        requests: the whole requests that were made, in order.

    Raises:
        UsageError: an entry is not what an entry may be; the message has its number.
    """

    def __init__(self, script: Sequence[dict[str, Any]] = ()) -> None:
        self.requests: list[Request] = []
        self._script = entries(script)
        self._lineage = Lineage(keeps_all=True)
        self._held: dict[str | None, int] = {None: 0}
        self._connections = 0
        self._connected = False

    async def stream(self, request: Request) -> Stream:
        """Answer with the script's next entry."""
        self.requests.append(request)
        reused, self._connected = self._connected, True
        self._connections += not reused
        short = self._lineage.shorten(request)
        over = False
        try:
            yield self._told(request, short, reused=reused)
            received = 0
            for event in self._answer(request, short):
                await asyncio.sleep(0)  # as on a socket, a run can be stopped at any event
                received += len(msgspec.json.encode(event))
                over = event.KIND in ("terminal", "error")
                yield event
            yield ResponseEnded(received_bytes=received)
        finally:
            if not over:
                await self.aclose()

    async def rehearse(self, request: Request) -> Rehearsal:
        """Return what `stream` would say it sends; see `Transport.rehearse`."""
        short = self._lineage.shorten(request)
        return Rehearsal.of(
            "scripted",
            request,
            short,
            frame=short.frame(),
            full_bytes=request.size(),
            connection=self._connections if self._connected else None,
        )

    def describe(self) -> str:
        """Return how far the script is."""
        return f"scripted ({len(self.requests)} turns)"

    async def aclose(self) -> None:
        """Forget what was said; the next turn begins a new connection."""
        self._connected = False
        self._lineage = Lineage(keeps_all=True)

    def _told(self, request: Request, short: Request, *, reused: bool) -> RequestSent:
        return RequestSent(
            transport="scripted",
            connection=self._connections,
            reused=reused,
            connect_ms=None,
            previous_response_id=short.previous_response_id,
            sent_items=len(short.input),
            held_items=len(request.input) - len(short.input),
            sent_bytes=short.size(),
            full_bytes=request.size(),
            resent=self._lineage.why(request) if short is request else None,
        )

    def _answer(self, request: Request, short: Request) -> Iterator[Event]:
        entry = Entry(text="")
        if request.generate:
            entry = self._script.pop(0) if self._script else Entry(_last_words(request.input))
        if entry.error is not None:
            self._lineage.forget(short)
            yield _refusal(entry.error)
            return
        number = len(self.requests)
        response = Response(id=f"resp_{number}", model=request.fields.values.get("model"))
        yield ResponseCreated(response=response)
        custom = _custom(request)
        output = list(_items(entry, number, custom)) if request.generate else []
        for index, item in enumerate(output):
            yield ItemAdded(output_index=index, item=item)
            if item["type"] == "message":
                for piece in pieces(text(item), entry.chunk_chars):
                    yield TextDelta(delta=piece, item_id=item["id"], output_index=index)
            yield ItemDone(output_index=index, item=item)
        self._lineage.remember(request, response.id, output)
        yield ResponseCompleted(
            response=Response(
                id=response.id,
                model=response.model,
                status="completed",
                output=output,
                usage=self._usage(short, response.id, output),
            )
        )

    def _usage(self, short: Request, name: str, output: list[Item]) -> Usage:
        """Count words, as the embedded server's scripted engine does."""
        cached = self._held[short.previous_response_id]
        words = sum(len(text(item).split()) for item in short.input)
        said = sum(len(text(item).split()) for item in output)
        self._held[name] = cached + words + said
        return Usage.of(input_tokens=cached + words, cached_tokens=cached, output_tokens=said)


def _custom(request: Request) -> frozenset[str]:
    """Return the names of the tools that are called with a text."""
    tools = request.fields.values.get("tools", ())
    return frozenset(tool["name"] for tool in tools if tool.get("type") == "custom")


def _items(entry: Entry, number: int, custom: frozenset[str]) -> Iterator[Item]:
    if entry.text:
        yield {
            "type": "message",
            "id": f"msg_{number}",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": entry.text, "annotations": []}],
        }
    for index, call in enumerate(entry.tool_calls or ()):
        kind = "custom_tool_call" if call.name in custom else "function_call"
        yield {
            "type": kind,
            "id": f"fc_{number}_{index}",
            "call_id": f"call_{number}_{index}",
            "name": call.name,
            CALLS[kind]: call.encoded,
            "status": "completed",
        }


def _refusal(failure: Failure) -> Error:
    wait = failure.retry_after
    headers = None if wait is None else {"Retry-After": f"{wait:g}"}
    reason = Reason(
        code=failure.code, message=failure.message, param=failure.param, headers=headers
    )
    return Error(status=failure.status, error=reason)


def _last_words(chain: Chain) -> str:
    for item in reversed(chain.since(0)):
        if item.get("role") == "user":
            return text(item)
    return ""
