"""What a client's frame asks, and whether it can be answered: all that is decided by reading.

Rule 1: nothing that a client can send raises anything but `ResponseFailed`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from ipy_agent.errors import ResponseFailed
from ipy_agent.protocol.items import Item
from ipy_agent.protocol.requests import Request

__all__ = ["bad_request", "check_input", "check_lane", "open_calls", "read"]

_LANE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,256}")


def read(frame: str) -> tuple[str | None, Request | ResponseFailed]:
    """Return the lane that a frame is for, and what it asks, or why it cannot be taken."""
    lane = None
    try:
        said = msgspec.json.decode(frame)
        if not isinstance(said, dict) or not isinstance(said.get("type"), str):
            return None, bad_request("a frame is one JSON object with a `type`", "invalid_event")
        lane = said.get("stream_id")
        if not isinstance(lane, str | None):
            return None, _bad_stream_id()
        if said["type"] != "response.create":
            return lane, bad_request(
                f"the event {said['type'][:80]!r} is not known here: send `response.create`",
                "unknown_event_type",
                "type",
            )
        return lane, Request.parse(said)
    except (msgspec.MsgspecError, RecursionError, OverflowError, TypeError) as error:
        return lane, bad_request(f"the frame cannot be read: {error}", "invalid_event")


def open_calls(before: frozenset[str], items: Iterable[Item]) -> frozenset[str]:
    """Return the ids of the function calls that still have no output behind these items."""
    ids: dict[str, set[str]] = {"function_call": set(), "function_call_output": set()}
    for item in items:
        ids.get(str(item.get("type")), set()).add(str(item.get("call_id")))
    return (before | ids["function_call"]) - ids["function_call_output"]


def check_lane(name: str | None) -> None:
    """Raise `ResponseFailed` for a name that no lane can have."""
    if name is not None and not _LANE_NAME.fullmatch(name):
        raise _bad_stream_id()


def check_input(full: Request, unanswered: frozenset[str]) -> None:
    """Raise `ResponseFailed` for a whole request that cannot be answered as it stands."""
    if unanswered:
        raise bad_request(
            f"No tool output found for function call {', '.join(sorted(unanswered))}.",
            "missing_tool_output",
            "input",
        )
    if full.generate and not full.input.length:
        raise bad_request("there is nothing to answer: send an `input`", "missing_input", "input")


def bad_request(message: str, code: str, param: str | None = None) -> ResponseFailed:
    """Return the failure of a request that is its client's fault."""
    return ResponseFailed(message, code=code, status=400, param=param)


def _bad_stream_id() -> ResponseFailed:
    return bad_request(
        "a stream_id is 1 to 256 letters, digits, '_', '.' or '-'", "invalid_stream_id", "stream_id"
    )
