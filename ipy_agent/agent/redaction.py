"""What an endpoint says, without what is known to be secret: the one way in.

An endpoint has the key and may echo it: in words, in the reason of a refusal, in a call of a tool.
What passes here is all that the conversation, the records and the cell ever get.

Rule 1: what holds no secret is the very same object: a transport tells by that what its peer has.
Rule 2: of a text in pieces, what may be the beginning of a secret waits for the next piece: for
nothing else, and never longer than the text.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import msgspec

from ipy_agent.errors import ProtocolError
from ipy_agent.protocol.events import DELTAS, ArgumentsDelta, InputDelta, TextDelta, ThoughtDelta
from ipy_agent.secrets import anything_is_secret, holds_secret, redacted, shown_so_far
from ipy_agent.transport import Stream

__all__ = ["cleaned", "heard"]

T = TypeVar("T")

_Delta = TextDelta | ThoughtDelta | ArgumentsDelta | InputDelta
_Waiting = dict[tuple[type, int, int], _Delta]


async def heard(stream: Stream) -> Stream:
    """Yield what a stream yields, redacted. Who closes this closes the stream."""
    waiting: _Waiting = {}
    try:
        async for event in stream:
            if type(event) in DELTAS:
                hide = waiting or anything_is_secret()
                yield _piece(cast("_Delta", event), waiting) if hide else event
                continue
            for rest in waiting.values():
                yield msgspec.structs.replace(rest, delta=redacted(rest.delta))
            waiting.clear()
            yield cleaned(event)
    finally:
        await stream.aclose()


def _piece(event: _Delta, waiting: _Waiting) -> _Delta:
    """Return what can be shown of a text with this piece of it, and keep the rest waiting."""
    part = getattr(event, "content_index", getattr(event, "summary_index", 0))
    key = type(event), event.output_index, part
    before = waiting.pop(key, None)
    text = event.delta if before is None else before.delta + event.delta
    shown, rest = shown_so_far(text)
    if rest:
        waiting[key] = msgspec.structs.replace(event, delta=rest)
    return event if shown == event.delta else msgspec.structs.replace(event, delta=shown)


def cleaned(value: T) -> T:
    """Return a value of JSON, or a struct that is made of such, with every text in it redacted.

    Raises:
        ProtocolError: it is nested so deeply that it cannot be looked through.
    """
    if not anything_is_secret():
        return value
    try:
        return _walked(value) if _holds_secret(value) else value
    except RecursionError:
        raise ProtocolError("the endpoint sent what is nested too deeply", sent=True) from None


def _holds_secret(value: Any) -> bool:
    try:
        return holds_secret(msgspec.json.encode(value, enc_hook=repr).decode())
    except (TypeError, ValueError):
        return True  # what is no JSON is looked through


def _walked(value: Any) -> Any:
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, list):
        return [_walked(item) for item in value]
    if isinstance(value, dict):
        return {_walked(name): _walked(item) for name, item in value.items()}
    if isinstance(value, msgspec.Struct):
        fields = {name: _walked(getattr(value, name)) for name in value.__struct_fields__}
        return msgspec.structs.replace(value, **fields)
    return value
