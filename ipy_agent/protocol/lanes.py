"""The moves that are legal on a lane, for both ends.

Theory of operation: a lane carries one turn at a time. The client says `create`; the server
answers with events and ends the turn with a terminal event or an error frame; then the lane
is idle again. What each event means here is its `KIND`. A server that says only `completed`
is fine; one that says anything on an idle lane is not.

Rule 1: whatever decides whether a frame may be said lives in this file.
Rule 2: `MOVES` does not know which end we are, so the two cannot drift apart.
Rule 3: `other` is what a server says in types that we do not know: legal on any lane that is
open, and it moves nothing.
"""

from __future__ import annotations

import enum
import re

__all__ = ["CLIENT", "MOVES", "SERVER", "IllegalMove", "Lane", "Side", "State", "is_name"]


_NAME = re.compile(r"[A-Za-z0-9_.-]{1,256}")


def is_name(name: object) -> bool:
    """Whether a lane can be called so."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


class State(enum.Enum):
    """Where a lane stands."""

    IDLE = "idle"
    ASKED = "asked"
    ANSWERING = "answering"
    CLOSED = "closed"

    __hash__ = object.__hash__  # a member is one object; an enum's own goes by its name, in Python


class Side(enum.Enum):
    """Who speaks."""

    CLIENT = "client"
    SERVER = "server"

    __hash__ = object.__hash__  # see above


CLIENT, SERVER = Side.CLIENT, Side.SERVER
IDLE, ASKED, ANSWERING, CLOSED = State

MOVES: dict[tuple[State, Side, str], State] = {
    (IDLE, CLIENT, "create"): ASKED,
    (ASKED, SERVER, "created"): ANSWERING,
    (ASKED, SERVER, "progress"): ANSWERING,
    (ASKED, SERVER, "terminal"): IDLE,
    (ASKED, SERVER, "error"): IDLE,
    (ANSWERING, SERVER, "progress"): ANSWERING,
    (ANSWERING, SERVER, "terminal"): IDLE,
    (ANSWERING, SERVER, "error"): IDLE,
    **{
        (state, side, "close"): CLOSED
        for state in (IDLE, ASKED, ANSWERING)
        for side in (CLIENT, SERVER)
    },
    **{(state, SERVER, "other"): state for state in (IDLE, ASKED, ANSWERING)},
}


class IllegalMove(Exception):
    """Something was said that the lane's state does not allow. `side` is who said it."""

    def __init__(self, state: State, side: Side, said: str) -> None:
        super().__init__(f"the {side.value} said {said!r} on a lane that is {state.value}")
        self.state = state
        self.side = side
        self.said = said


class Lane:
    """One `stream_id` of a connection; the default lane has the name `None`."""

    __slots__ = ("name", "state")

    def __init__(self, name: str | None = None) -> None:
        self.name = name
        self.state = IDLE

    def move(self, side: Side, said: str) -> State:
        """Take note that `side` said something of this kind, and return the state after it.

        Raises:
            IllegalMove: the table has no such move; the state stays as it was.
        """
        try:
            self.state = MOVES[self.state, side, said]
        except KeyError:
            raise IllegalMove(self.state, side, said) from None
        return self.state

    def __repr__(self) -> str:
        return f"<Lane {self.name or 'default'} {self.state.value}>"
