"""A transport that answers from a list: for tests of tools, prompts and displays.

It keeps the same lineage as the live one and yields the same stream, so that what is built
on it cannot tell the difference; nothing leaves the process.

    transport = ScriptedTransport([{"tool_calls": [{"name": "price", "arguments": {"ticker": "X"}}]},
                                   {"text": "It costs 3."}])
    session = Session(transport=transport)

A script is what `ipy-agent serve --engine scripted` takes, less the breaks of a socket: a list
with an entry a turn, `{"text": …}`, `{"tool_calls": […]}` or `{"error": {…}}`. Past its end
the last user's text is echoed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from ipy_agent.protocol.events import (
    Error,
    Event,
    ItemAdded,
    ItemDone,
    Reason,
    Request,
    Response,
    ResponseCompleted,
    ResponseCreated,
    TextDelta,
    Usage,
)
from ipy_agent.protocol.items import Chain, Item, text
from ipy_agent.protocol.lineage import Lineage
from ipy_agent.trace import RequestSent, ResponseEnded
from ipy_agent.transport import Stream

__all__ = ["ScriptedTransport"]


class ScriptedTransport:
    """Answers turn by turn from a script.

    Args:
        script: an entry a turn.

    Attributes:
        requests: the whole requests that were made, in order.
    """

    def __init__(self, script: Sequence[dict[str, Any]] = ()) -> None:
        self.requests: list[Request] = []
        self._script = list(script)
        self._lineage = Lineage()
        self._held = 0

    async def stream(self, request: Request) -> Stream:
        """Answer with the script's next entry."""
        self.requests.append(request)
        short = self._lineage.shorten(request)
        yield RequestSent(
            transport="scripted",
            connection=1,
            reused=len(self.requests) > 1,
            connect_ms=None,
            previous_response_id=short.previous_response_id,
            sent_items=len(short.input),
            held_items=len(request.input) - len(short.input),
            sent_bytes=short.size(),
            full_bytes=request.size(),
        )
        received = 0
        for event in self._answer(request, short):
            received += len(msgspec.json.encode(event))
            yield event
        yield ResponseEnded(received_bytes=received)

    def describe(self) -> str:
        """Return how far the script is."""
        return f"scripted ({len(self.requests)} turns)"

    async def aclose(self) -> None:
        """Forget what was said."""
        self._lineage.forget()

    def _answer(self, request: Request, short: Request) -> Iterator[Event]:
        entry: dict[str, Any] = {"text": ""}
        if request.generate:
            entry = self._script.pop(0) if self._script else {"text": _last_words(request.input)}
        if "error" in entry:
            self._lineage.forget()
            error = dict(entry["error"])
            yield Error(status=error.pop("status", 500), error=msgspec.convert(error, Reason))
            return
        number = len(self.requests)
        response = Response(id=f"resp_{number}", model=request.fields.values.get("model"))
        yield ResponseCreated(response=response)
        output = list(_items(entry, number)) if request.generate else []
        for index, item in enumerate(output):
            yield ItemAdded(output_index=index, item=item)
            if item["type"] == "message":
                yield TextDelta(delta=text(item), item_id=item["id"], output_index=index)
            yield ItemDone(output_index=index, item=item)
        words = sum(len(text(item).split()) for item in short.input)
        said = sum(len(text(item).split()) for item in output)
        cached = 0 if short is request else self._held
        self._held = cached + words + said
        self._lineage.remember(request, response.id, output)
        usage = Usage.of(input_tokens=cached + words, cached_tokens=cached, output_tokens=said)
        done = Response(
            id=response.id, model=response.model, status="completed", output=output, usage=usage
        )
        yield ResponseCompleted(response=done)


def _items(entry: dict[str, Any], number: int) -> Iterator[Item]:
    if "text" in entry:
        yield {
            "type": "message",
            "id": f"msg_{number}",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": entry["text"], "annotations": []}],
        }
    for index, call in enumerate(entry.get("tool_calls", ())):
        arguments = call.get("arguments", {})
        yield {
            "type": "function_call",
            "id": f"fc_{number}_{index}",
            "call_id": f"call_{number}_{index}",
            "name": call["name"],
            "arguments": arguments
            if isinstance(arguments, str)
            else msgspec.json.encode(arguments).decode(),
            "status": "completed",
        }


def _last_words(chain: Chain) -> str:
    for item in reversed(chain.since(0)):
        if item.get("role") == "user":
            return text(item)
    return ""
