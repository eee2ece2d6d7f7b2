"""What a client's frame asks, and whether it can be answered: all that is decided by reading.

Instructions and tools come with every frame, and nearly always as before: what comes as the same
bytes is not decoded again.

Rule 1: nothing that a client can send raises anything but `ResponseFailed`.
Rule 2: what a frame says may be what one before it said, the very object: nobody changes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from ipy_agent.errors import ResponseFailed
from ipy_agent.protocol.events import Other
from ipy_agent.protocol.items import CALLS, Item
from ipy_agent.protocol.requests import Fields, Request
from ipy_agent.server.head import MEMBERS

__all__ = [
    "Known",
    "Open",
    "bad_request",
    "check_input",
    "check_lane",
    "custom_tools",
    "from_user",
    "open_calls",
    "posted",
    "read",
]

Open = frozenset[tuple[str, str]]
"""Calls that have no output yet, each by its type and its `call_id`."""

Known = dict[str, tuple[bytes, Any]]
"""Settings as they came last, by name: their bytes, and what these mean."""

_LANE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,256}")
_OUTPUTS = {f"{kind}_output": kind for kind in CALLS}
_UNREADABLE = (msgspec.MsgspecError, RecursionError, OverflowError, TypeError, UnicodeError)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decoded = msgspec.json.Decoder().decode


def read(
    frame: str, known: Known | None = None
) -> tuple[str | None, Request | ResponseFailed | Other]:
    """Return the lane that a frame is for, and what it asks, or why it cannot be taken.

    What is answered at once and on no lane comes back as its answer.

    Args:
        frame: what the client sent.
        known: what its frames before said; it is kept up to date here.
    """
    lane = None
    known = {} if known is None else known
    try:
        said = {name: _value(name, raw, known) for name, raw in _members(frame).items()}
        if not isinstance(said.get("type"), str):
            return None, bad_request("a frame is one JSON object with a `type`", "invalid_event")
        lane = said.get("stream_id")
        if not isinstance(lane, str | None):
            return None, _bad_stream_id()
        if said["type"] == "response.steer":
            return None, _no_steering(said)
        if said["type"] != "response.create":
            return lane, bad_request(
                f"the event {said['type'][:80]!r} is not known here: send `response.create`",
                "unknown_event_type",
                "type",
            )
        return lane, Request.parse(said)
    except _UNREADABLE as error:
        return lane, bad_request(f"the frame cannot be read: {error}", "invalid_event")


def posted(body: bytes) -> tuple[Request, bool]:
    """Return what the body of a POST asks, and whether as a stream of events.

    Lanes and warm-ups are for WebSocket only; here their fields mean nothing.

    Raises:
        ResponseFailed: the body cannot be taken.
    """
    try:
        request = Request.parse(body)
    except _UNREADABLE as error:
        raise bad_request(f"the body cannot be read: {error}", "invalid_json") from None
    streamed = request.fields.values.get("stream") is True
    return msgspec.structs.replace(request, stream_id=None, generate=True), streamed


def open_calls(before: Open, items: Iterable[Item]) -> Open:
    """Return the calls that still have no output behind these items."""
    called, answered = set(before), set()
    for item in items:
        kind, name = str(item.get("type")), str(item.get("call_id"))
        if kind in CALLS:
            called.add((kind, name))
        elif kind in _OUTPUTS:
            answered.add((_OUTPUTS[kind], name))
    return frozenset(called - answered)


def custom_tools(fields: Fields) -> frozenset[str]:
    """Return the names of the tools whose calls hold a text and no JSON."""
    tools = fields.values.get("tools")
    told = tools if isinstance(tools, list) else ()
    return frozenset(
        str(tool.get("name"))
        for tool in told
        if isinstance(tool, dict) and tool.get("type") == "custom"
    )


def from_user(item: Item) -> bool:
    """Whether an item is a message of the user."""
    return item.get("role") == "user" and item.get("type", "message") == "message"


def check_lane(name: str | None) -> None:
    """Raise `ResponseFailed` for a name that no lane can have."""
    if name is not None and not _LANE_NAME.fullmatch(name):
        raise _bad_stream_id()


def check_input(full: Request, unanswered: Open) -> None:
    """Raise `ResponseFailed` for a whole request that cannot be answered as it stands."""
    if unanswered:
        calls = (f"{kind.replace('_', ' ')} {name}" for kind, name in sorted(unanswered))
        raise bad_request(
            f"No tool output found for {', '.join(calls)}.",
            "missing_tool_output",
            "input",
        )
    if full.generate and not full.input.length:
        raise bad_request("there is nothing to answer: send an `input`", "missing_input", "input")


def bad_request(message: str, code: str, param: str | None = None) -> ResponseFailed:
    """Return the failure of a request that is its client's fault."""
    return ResponseFailed(message, code=code, status=400, param=param)


def _value(name: str, raw: msgspec.Raw, known: Known) -> Any:
    """Return what a member of a frame means: known already, where it is large and seldom new."""
    if name not in MEMBERS:
        return _decoded(raw)
    said = bytes(raw)
    before, value = known.get(name, (b"", None))
    if said != before:
        value = _decoded(said)
        known[name] = said, value
    return value


def _bad_stream_id() -> ResponseFailed:
    return bad_request(
        "a stream_id is 1 to 256 letters, digits, '_', '.' or '-'", "invalid_stream_id", "stream_id"
    )


def _no_steering(said: dict[str, Any]) -> Other:
    """Return the answer to one who wants to steer: nothing here can be steered."""
    steer = {name: said.get(name) for name in ("previous_response_id", "input")}
    code, message = "steering_not_supported", "a response cannot be steered here: ask anew"
    parent, given = steer.values()
    if not isinstance(parent, str) or not parent or not given or not isinstance(given, str | list):
        code, message = "invalid_input", "a steer has a `previous_response_id` and an `input`"
    kind = "response.steer.failed"
    error = {"type": "invalid_request_error", "code": code, "message": message}
    frame = {"type": kind, "sequence_number": 0, "error": error, "steer": steer}
    return Other(type=kind, frame=frame)
