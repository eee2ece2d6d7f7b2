"""A request that was not sent, to be read: how much of it is new, and every part of it in full.

Rule 1: nothing is held back. Beyond `LIMIT` characters it is said how much is missing.
Rule 2: nothing reaches the screen but through `rendering`; what it would leave out, such as
terminal colours, is made visible first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from ipy_agent import rendering
from ipy_agent.transport.rehearsal import Rehearsal

__all__ = ["bundle", "summary"]

LIMIT = 1_000_000
"""How many characters of a request are shown."""

_HEAD = ("type", "stream_id", "generate", "stream", "previous_response_id", "prompt_cache_options")
_APART = ("instructions", "tools", "input")
_WAYS = {"http": "over HTTP", "scripted": "to the script"}


def summary(rehearsal: Rehearsal) -> str:
    """Return how much would be sent, and how much the server holds, in one line."""
    sent, held = rehearsal.sent_items, rehearsal.held_items
    size, full = len(rehearsal.frame), rehearsal.full_bytes
    if rehearsal.previous_response_id is not None:
        count = f"{sent} of {_counted(sent + held, 'item')}, {size:,} of {full:,} bytes"
        holds = f"the server holds {_counted(held, 'item')} as {rehearsal.previous_response_id}"
    else:
        count = f"{_counted(sent, 'item')}, {size:,} bytes"
        holds = "the server holds nothing of it"
    first = "compact the conversation, and then " if rehearsal.compacts else ""
    less = " or less" if rehearsal.compacts else ""
    return f"would {first}send {count}{less} {_way(rehearsal)}; {holds}"


def bundle(rehearsal: Rehearsal) -> dict[str, str]:
    """Return the request as a display: a line, and behind it every part, folded."""
    said = summary(rehearsal)
    room, folds, plain = LIMIT, [], []
    for title, text, language in _parts(rehearsal.frame):
        shown = _cut(text, room)
        room -= min(room, len(text))
        folds.append(rendering.fold(title, rendering.code(shown, language)))
        plain.append(f"[{title}]\n{shown}")
    line = f'<div class="{rendering.NO_MATH}">{rendering.escape(said)}</div>'
    return {
        "text/html": f"{line}{''.join(folds)}",
        "text/plain": rendering.plain("\n\n".join([said, *plain])),
    }


def _parts(frame: bytes) -> Iterator[tuple[str, str, str]]:
    """Yield each part of a request: what it is, its text, and the language of that."""
    held = msgspec.json.decode(frame, type=dict[str, msgspec.Raw])
    if "instructions" in held:
        told = str(msgspec.json.decode(held["instructions"]))
        yield "instructions", rendering.visible(told), ""
    if "tools" in held:
        tools = msgspec.json.decode(held["tools"], type=list[dict[str, Any]])
        names = ", ".join(str(tool.get("name", tool.get("type"))) for tool in tools)
        yield f"tools: {names or 'none'}", _json(held["tools"]), "json"
    head = {name: value for name, value in held.items() if name in _HEAD}
    rest = {name: value for name, value in held.items() if name not in (*_HEAD, *_APART)}
    for title, part in (("settings", rest), ("request", head)):
        if part:
            yield f"{title}: {', '.join(part)}", _json(msgspec.json.encode(part)), "json"
    for number, item in enumerate(msgspec.json.decode(held["input"], type=list[msgspec.Raw]), 1):
        yield f"input {number}: {_kind(msgspec.json.decode(item))}", _json(item), "json"


def _kind(item: dict[str, Any]) -> str:
    """Return what an item is, such as `user message` or `function_call python`."""
    kind = str(item.get("type", "message"))
    role, name = item.get("role"), item.get("name")
    return f"{role} {kind}" if role else f"{kind} {name}" if name else kind


def _json(value: bytes) -> str:
    """Return JSON laid out; no token of it is read and written anew."""
    return msgspec.json.format(bytes(value), indent=2).decode()


def _cut(text: str, room: int) -> str:
    rest = len(text) - room
    return text if rest <= 0 else f"{text[:room]}\n… and {rest:,} more characters"


def _way(rehearsal: Rehearsal) -> str:
    if rehearsal.transport != "websocket":
        return _WAYS.get(rehearsal.transport, f"over {rehearsal.transport}")
    number = rehearsal.connection
    return "over a new WebSocket" if number is None else f"over WebSocket {number}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
