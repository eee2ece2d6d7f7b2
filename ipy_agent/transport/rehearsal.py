"""What a turn would send, found out without sending it: the picture behind `--dry-run`.

Rule 1: a rehearsal opens nothing, starts nothing and takes nothing; the same request sent right
after it is the same bytes.
Rule 2: it foresees the first attempt, with what is known by now. An upgrade that will be refused,
or a response that the peer let go, is found out by sending only.
"""

from __future__ import annotations

import msgspec

from ipy_agent.protocol.requests import Request

__all__ = ["Rehearsal"]


class Rehearsal(msgspec.Struct, frozen=True, kw_only=True):
    """A request as it would be written, and how much of it is held already.

    Attributes:
        transport: which way it would go.
        frame: its bytes; over HTTP the body. The key is in neither.
        connection: the number of the open WebSocket that it would go over; `None` for a new one,
            and over HTTP.
        sent_items: the items of the conversation that it holds.
        held_items: those that it leaves out.
        full_bytes: what a request with no memory on the other side would have.
        previous_response_id: what it continues from.
        compacts: whether the conversation would be compacted first, so that less is sent than this.
    """

    transport: str
    frame: bytes
    connection: int | None
    sent_items: int
    held_items: int
    full_bytes: int
    previous_response_id: str | None
    compacts: bool = False

    @classmethod
    def of(
        cls,
        transport: str,
        full: Request,
        short: Request,
        *,
        frame: bytes,
        full_bytes: int,
        connection: int | None = None,
    ) -> Rehearsal:
        """Return the rehearsal of a request, given what is left of it to send."""
        return cls(
            transport=transport,
            frame=frame,
            connection=connection,
            sent_items=len(short.input),
            held_items=len(full.input) - len(short.input),
            full_bytes=full_bytes,
            previous_response_id=short.previous_response_id,
        )
