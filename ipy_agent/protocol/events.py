"""Frames and events: what travels on the wire, typed.

A frame is one JSON object with a `type`. The types that somebody acts on are structs here;
any other passes through whole as `Other`, since endpoints add types without asking.
Fields that we have no use for are skipped while decoding: `created`, `in_progress` and
`completed` each echo all tools, and nobody reads them three times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
from msgspec import UNSET, UnsetType

from ipy_agent.protocol.items import Item
from ipy_agent.protocol.response import Reason, Response

__all__ = [
    "DELTAS",
    "TERMINAL",
    "ArgumentsDelta",
    "ArgumentsDone",
    "ContentPartAdded",
    "ContentPartDone",
    "Error",
    "Event",
    "InputDelta",
    "InputDone",
    "ItemAdded",
    "ItemDone",
    "Other",
    "ResponseCompleted",
    "ResponseCreated",
    "ResponseFailedEvent",
    "ResponseInProgress",
    "ResponseIncomplete",
    "TextDelta",
    "TextDone",
    "ThoughtDelta",
    "decode",
    "encode",
]


class Event(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One frame from the server. `stream_id` names the lane; the default lane has none.

    What some endpoints tell as null, others leave out: nobody may tell `None` from `UNSET`. Deltas
    are left out of garbage collection: they hold texts only, and there may be 100,000 of them.
    """

    KIND: ClassVar[str] = "progress"
    """What the event means to the lane's table of moves."""

    sequence_number: int | UnsetType | None = UNSET
    stream_id: str | UnsetType | None = UNSET


class ResponseCreated(Event, tag="response.created"):
    KIND = "created"
    response: Response


class ResponseInProgress(Event, tag="response.in_progress"):
    response: Response


class ItemAdded(Event, tag="response.output_item.added"):
    output_index: int
    item: Item


class ItemDone(Event, tag="response.output_item.done"):
    output_index: int
    item: Item


class ContentPartAdded(Event, tag="response.content_part.added"):
    item_id: str
    output_index: int
    content_index: int
    part: Item


class ContentPartDone(Event, tag="response.content_part.done"):
    item_id: str
    output_index: int
    content_index: int
    part: Item


class TextDelta(Event, omit_defaults=False, gc=False, tag="response.output_text.delta"):
    delta: str
    item_id: str = ""
    output_index: int = 0
    content_index: int = 0


class TextDone(Event, omit_defaults=False, tag="response.output_text.done"):
    text: str
    item_id: str = ""
    output_index: int = 0
    content_index: int = 0


class ThoughtDelta(
    Event, omit_defaults=False, gc=False, tag="response.reasoning_summary_text.delta"
):
    delta: str
    item_id: str = ""
    output_index: int = 0
    summary_index: int = 0


class ArgumentsDelta(
    Event, omit_defaults=False, gc=False, tag="response.function_call_arguments.delta"
):
    delta: str
    item_id: str = ""
    output_index: int = 0


class ArgumentsDone(Event, omit_defaults=False, tag="response.function_call_arguments.done"):
    arguments: str
    item_id: str = ""
    output_index: int = 0


class InputDelta(Event, omit_defaults=False, gc=False, tag="response.custom_tool_call_input.delta"):
    delta: str
    item_id: str = ""
    output_index: int = 0


class InputDone(Event, omit_defaults=False, tag="response.custom_tool_call_input.done"):
    input: str
    item_id: str = ""
    output_index: int = 0


class ResponseCompleted(Event, tag="response.completed"):
    KIND = "terminal"
    response: Response


class ResponseFailedEvent(Event, tag="response.failed"):
    KIND = "terminal"
    response: Response


class ResponseIncomplete(Event, tag="response.incomplete"):
    KIND = "terminal"
    response: Response


class Error(Event, tag="error"):
    """An error frame, nested as over WebSocket or flat as over SSE."""

    KIND = "error"
    status: int | None = None
    error: Reason | None = None
    code: str | int | None = None
    message: str | None = None
    param: str | None = None

    @property
    def reason(self) -> Reason:
        """Return the reason in one form, whichever way the frame told it."""
        return self.error or Reason(message=self.message, code=self.code, param=self.param)


class Other(Event):
    """An event of a type that we do not know, whole."""

    KIND = "other"
    type: str
    frame: dict[str, Any]


TERMINAL = (ResponseCompleted, ResponseFailedEvent, ResponseIncomplete)
DELTAS = frozenset((TextDelta, ThoughtDelta, ArgumentsDelta, InputDelta))
"""The types of which there are many: `type(event) in DELTAS` is the quickest way to tell."""

_Known = (
    ResponseCreated
    | ResponseInProgress
    | ItemAdded
    | ItemDone
    | ContentPartAdded
    | ContentPartDone
    | TextDelta
    | TextDone
    | ThoughtDelta
    | ArgumentsDelta
    | ArgumentsDone
    | InputDelta
    | InputDone
    | ResponseCompleted
    | ResponseFailedEvent
    | ResponseIncomplete
    | Error
)
_decode: Callable[[str | bytes], Event] = msgspec.json.Decoder(_Known).decode
_decode_any = msgspec.json.Decoder(dict[str, Any]).decode
_encoder = msgspec.json.Encoder()

_UNREADABLE = (UnicodeError, RecursionError)
"""What msgspec raises beside its own errors: bytes that are no text, nesting without end."""


def decode(frame: str | bytes) -> Event:
    """Return the event that a frame holds.

    Raises:
        msgspec.DecodeError: the frame is not JSON, not an object, nested too deeply, or a type
            that we know lacks what it must have (`msgspec.ValidationError`).
    """
    try:
        try:
            return _decode(frame)
        except msgspec.ValidationError:
            whole = _decode_any(frame)
            kind = whole.get("type")
            if not isinstance(kind, str) or kind in _TAGS:
                raise
            lane = whole.get("stream_id")
            return Other(type=kind, frame=whole, stream_id=lane if isinstance(lane, str) else UNSET)
    except _UNREADABLE as error:
        raise msgspec.DecodeError(str(error)) from None


_TAGS = frozenset(struct.__struct_config__.tag for struct in _Known.__args__)


def encode(event: Event) -> bytes:
    """Return the frame of an event."""
    return _encoder.encode(event.frame if isinstance(event, Other) else event)
