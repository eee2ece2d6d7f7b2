"""What a client asks: a `response.create`, whole above the transport, shortened on the wire.

What seldom changes (`Fields`) is kept apart from what grows (`input`): the one is encoded once,
the other is known by its size without being looked at.
"""

from __future__ import annotations

import functools
from typing import Any

import msgspec

from ipy_agent.protocol.items import EMPTY, Chain, Item

__all__ = ["Fields", "Request"]

_encoder = msgspec.json.Encoder()
_decode_any = msgspec.json.Decoder(dict[str, Any]).decode
# What else than a DecodeError comes of hostile bytes: not UTF-8, nested without end.
_UNREADABLE = (UnicodeError, RecursionError)


class Fields:
    """All of a request but its input: model, instructions, tools and whatever else is set.

    Kept across turns and encoded once, since instructions and tools of 20 kB travel with
    every turn. Two of them are equal when they would be encoded alike.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    @functools.cached_property
    def encoded(self) -> bytes:
        """The members as JSON, without the braces around them."""
        return _encoder.encode(self.values)[1:-1]

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Fields) and self.encoded == other.encoded)

    def __hash__(self) -> int:
        return hash(self.encoded)

    def __repr__(self) -> str:
        return f"Fields({', '.join(self.values)})"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A `response.create`. Above the transport `input` is the whole conversation.

    `generate=False` makes it a warm-up: no output, but an id to continue from. `compare_to` is
    the response whose prompt the endpoint should compare this one with, to tell why its prompt
    cache missed. `shared` is the beginning of `input` that other requests begin with too: a
    transport may have it taken in once for all of them. It is never on the wire.
    """

    fields: Fields
    input: Chain = EMPTY
    previous_response_id: str | None = None
    generate: bool = True
    stream_id: str | None = None
    compare_to: str | None = None
    shared: Chain | None = None

    def frame(self) -> bytes:
        """Return the frame to send over WebSocket."""
        return self._around(self._head(), self._items())

    def body(self) -> bytes:
        """Return the body to POST for a stream of events. HTTP has no lanes and no warm-ups."""
        return self._around({"stream": True}, self._items())

    def size(self) -> int:
        """Return the bytes of `frame()` without building it: it costs the same at any length."""
        around = sum(map(len, self._parts(self._head(), b"[]")))
        return around + self.input.size + max(0, self.input.length - 1)

    def _items(self) -> bytes:
        return _encoder.encode(self.input.since(0))

    def _head(self) -> dict[str, Any]:
        head: dict[str, Any] = {"type": "response.create"}
        if self.stream_id is not None:
            head["stream_id"] = self.stream_id
        if not self.generate:
            head["generate"] = False
        return head

    def _around(self, head: dict[str, Any], items: bytes) -> bytes:
        return b"".join(self._parts(head, items))

    def _parts(self, head: dict[str, Any], items: bytes) -> tuple[bytes, ...]:
        if self.previous_response_id is not None:
            head["previous_response_id"] = self.previous_response_id
        if self.compare_to is not None:
            head["prompt_cache_options"] = {"comparison_response_id": self.compare_to}
        fields = self.fields.encoded
        members = _encoder.encode(head)[:-1]
        return members, b"," if fields else b"", fields, b',"input":', items, b"}"

    @classmethod
    def parse(cls, frame: str | bytes | dict[str, Any]) -> Request:
        """Return the request that a client's frame or body holds.

        Raises:
            msgspec.DecodeError: it is not an object, nested too deeply, or a part of it has
                the wrong shape.
        """
        try:
            return cls._of(dict(frame) if isinstance(frame, dict) else _decode_any(frame))
        except _UNREADABLE as error:
            raise msgspec.DecodeError(str(error)) from None

    @classmethod
    def _of(cls, body: dict[str, Any]) -> Request:
        body.pop("type", None)
        own = msgspec.convert({name: body.pop(name, None) for name in _OWN}, _Own)
        said = own.input
        if isinstance(said, str):
            said = [{"type": "message", "role": "user", "content": said}]
        return cls(
            fields=Fields(body),
            input=EMPTY.extend(said or []),
            previous_response_id=own.previous_response_id,
            generate=own.generate is not False,
            stream_id=own.stream_id,
        )


class _Own(msgspec.Struct):
    """The members of a create that are not settings."""

    input: str | list[Item] | None
    previous_response_id: str | None
    generate: bool | None
    stream_id: str | None


_OWN = _Own.__struct_fields__
