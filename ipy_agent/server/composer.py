"""Pieces of an engine become the events of one response.

A `Composer` is one response as it grows: it names the items, numbers the events and knows
which of them are due. It has no clock, no socket and no chance in it, so the same pieces
always make the same events; WebSocket and HTTP tell them alike.

Rule 1: the first piece, even an empty one, begins the response. Until then a failure is an
error frame and the only answer; afterwards it is a `response.failed`.
Rule 2: an item that was handed out is never changed: each event gets one of its own.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

from msgspec import UNSET

from ipy_agent.errors import ResponseFailed
from ipy_agent.protocol.events import (
    ArgumentsDelta,
    ArgumentsDone,
    ContentPartAdded,
    ContentPartDone,
    Error,
    Event,
    InputDelta,
    InputDone,
    ItemAdded,
    ItemDone,
    ResponseCompleted,
    ResponseCreated,
    ResponseFailedEvent,
    ResponseIncomplete,
    ResponseInProgress,
    TextDelta,
    TextDone,
)
from ipy_agent.protocol.items import CALLS, Item
from ipy_agent.protocol.response import Reason, Response
from ipy_agent.server.engine import CallPiece, Finish, TextPiece

__all__ = ["Composer", "refusal"]

_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def refusal(failure: ResponseFailed, lane: str | None = None) -> Error:
    """Return the error frame for a turn that never began. The default lane has no name."""
    status = failure.status or 500
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")  # noqa: PLR2004
    wait = failure.retry_after
    return Error(
        stream_id=UNSET if lane is None else lane,
        status=status,
        error=Reason(
            type=kind,
            code=failure.code,
            message=str(failure),
            param=failure.param,
            headers=None if wait is None else {"Retry-After": f"{wait:g}"},
        ),
    )


class Composer:
    """One response, from its first piece to its terminal event.

    Args:
        name: what makes its ids its own; the response is `resp_NAME`.
        lane: the `stream_id` of its events; the default lane has none.
        custom: the names of the tools whose calls hold a text and no JSON.
        about: what else its response objects tell, such as `model` and `created_at`.

    Attributes:
        output: the items that are whole.
        response: the response object of the event that was told last.
    """

    def __init__(
        self, name: str, *, lane: str | None = None, custom: Container[str] = (), **about: Any
    ) -> None:
        self.id = f"resp_{name}"
        self.output: list[Item] = []
        self._name = name
        self._lane = lane
        self._custom = custom
        self._about = about
        self._told = 0
        self._growing: _Message | _Call | None = None
        self.response = self._response("in_progress")

    def take(self, piece: TextPiece | CallPiece) -> list[Event]:
        """Return what is to be told about one more piece."""
        events = self._begun()
        if isinstance(piece, CallPiece):
            if piece.name is not None:
                events += self._closed("completed")
                kind = _CustomCall if piece.name in self._custom else _Call
                self._growing = kind(self._name, len(self.output), piece.name)
                events += self._growing.opened()
            if not isinstance(self._growing, _Call):
                raise TypeError("an engine gave arguments to a call that it did not begin")
            events += self._growing.grown(piece.arguments)
        elif piece.text:
            if not isinstance(self._growing, _Message):
                events += self._closed("completed")
                self._growing = _Message(self._name, len(self.output))
                events += self._growing.opened()
            events += self._growing.grown(piece.text)
        return self._numbered(events)

    def finish(self, end: Finish) -> list[Event]:
        """Return the end of a response that an engine finished. `output` is whole from here."""
        status = "incomplete" if end.incomplete else "completed"
        events = self._begun() + self._closed(status)
        response = self._response(status, output=self.output, usage=end.usage)
        if end.timings is not None:
            response.timings = end.timings
        if end.incomplete:
            response.incomplete_details = {"reason": end.incomplete}
            return self._numbered([*events, ResponseIncomplete(response=response)])
        return self._numbered([*events, ResponseCompleted(response=response)])

    def fail(self, failure: ResponseFailed) -> list[Event]:
        """Return the end of a response that failed: an error frame if it had not begun."""
        if not self._told:
            return [refusal(failure, self._lane)]
        response = self._response("failed", output=self.output)
        response.error = {"code": failure.code, "message": str(failure)}
        return self._numbered([ResponseFailedEvent(response=response)])

    def _begun(self) -> list[Event]:
        if self._told:
            return []
        return [
            ResponseCreated(response=self._response("in_progress")),
            ResponseInProgress(response=self._response("in_progress")),
        ]

    def _closed(self, status: str) -> list[Event]:
        if self._growing is None:
            return []
        events = self._growing.closed(status)
        self.output.append(self._growing.item(status))
        self._growing = None
        return events

    def _response(self, status: str, *, output: Iterable[Item] = (), **more: Any) -> Response:
        self.response = Response(
            id=self.id,
            object="response",
            status=status,
            output=list(output),
            **self._about,
            **more,
        )
        return self.response

    def _numbered(self, events: list[Event]) -> list[Event]:
        for event in events:
            event.sequence_number = self._told
            event.stream_id = UNSET if self._lane is None else self._lane
            self._told += 1
        return events


class _Message:
    """A message while its text grows."""

    def __init__(self, name: str, index: int) -> None:
        self.id = f"msg_{name}_{index}"
        self.index = index
        self.texts: list[str] = []

    def item(self, status: str, *, content: bool = True) -> Item:
        said = [self._part()] if content else []
        return {
            "id": self.id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": said,
        }

    def opened(self) -> list[Event]:
        item = self.item("in_progress", content=False)
        added = ContentPartAdded(
            item_id=self.id, output_index=self.index, content_index=0, part=self._part()
        )
        return [ItemAdded(output_index=self.index, item=item), added]

    def grown(self, text: str) -> list[Event]:
        self.texts.append(text)
        return [TextDelta(delta=text, item_id=self.id, output_index=self.index)]

    def closed(self, status: str) -> list[Event]:
        text = "".join(self.texts)
        done = ContentPartDone(
            item_id=self.id, output_index=self.index, content_index=0, part=self._part()
        )
        return [
            TextDone(text=text, item_id=self.id, output_index=self.index),
            done,
            ItemDone(output_index=self.index, item=self.item(status)),
        ]

    def _part(self) -> Item:
        return {"type": "output_text", "text": "".join(self.texts), "annotations": []}


class _Call:
    """A function call while its arguments grow."""

    kind, short = "function_call", "fc"

    def __init__(self, name: str, index: int, tool: str) -> None:
        self.id = f"{self.short}_{name}_{index}"
        self.call_id = f"call_{name}_{index}"
        self.tool = tool
        self.index = index
        self.texts: list[str] = []

    def item(self, status: str) -> Item:
        return {
            "id": self.id,
            "type": self.kind,
            "status": status,
            "call_id": self.call_id,
            "name": self.tool,
            CALLS[self.kind]: "".join(self.texts),
        }

    def opened(self) -> list[Event]:
        return [ItemAdded(output_index=self.index, item=self.item("in_progress"))]

    def grown(self, said: str) -> list[Event]:
        if not said:
            return []
        self.texts.append(said)
        return [self._delta(said)]

    def closed(self, status: str) -> list[Event]:
        done = ItemDone(output_index=self.index, item=self.item(status))
        return [self._done("".join(self.texts)), done]

    def _delta(self, said: str) -> Event:
        return ArgumentsDelta(delta=said, item_id=self.id, output_index=self.index)

    def _done(self, said: str) -> Event:
        return ArgumentsDone(arguments=said, item_id=self.id, output_index=self.index)


class _CustomCall(_Call):
    """A custom tool's call while its input grows."""

    kind, short = "custom_tool_call", "ctc"

    def _delta(self, said: str) -> Event:
        return InputDelta(delta=said, item_id=self.id, output_index=self.index)

    def _done(self, said: str) -> Event:
        return InputDone(input=said, item_id=self.id, output_index=self.index)
