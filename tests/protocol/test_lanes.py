"""What may be said on a lane is the list below: written by hand, not taken from the code."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipy_agent.protocol import events
from ipy_agent.protocol.events import decode, encode
from ipy_agent.protocol.items import EMPTY, user
from ipy_agent.protocol.lanes import CLIENT, MOVES, SERVER, IllegalMove, Lane, Side, State
from ipy_agent.protocol.requests import Fields, Request
from ipy_agent.protocol.response import Response

LEGAL = """
idle       client  create    asked
idle       client  close     closed
idle       server  other     idle
idle       server  close     closed
asked      client  close     closed
asked      server  created   answering
asked      server  progress  answering
asked      server  terminal  idle
asked      server  error     idle
asked      server  other     asked
asked      server  close     closed
answering  client  close     closed
answering  server  progress  answering
answering  server  terminal  idle
answering  server  error     idle
answering  server  other     answering
answering  server  close     closed
"""

KINDS = """
response.created                        created
response.in_progress                    progress
response.output_item.added              progress
response.output_item.done               progress
response.content_part.added             progress
response.content_part.done              progress
response.output_text.delta              progress
response.output_text.done               progress
response.reasoning_summary_text.delta   progress
response.function_call_arguments.delta  progress
response.function_call_arguments.done   progress
response.custom_tool_call_input.delta   progress
response.custom_tool_call_input.done    progress
response.completed                      terminal
response.failed                         terminal
response.incomplete                     terminal
error                                   error
"""

WORDS = ("create", "created", "progress", "terminal", "error", "other", "close", "nonsense")

WAYS = {
    "idle": (),
    "asked": ((CLIENT, "create"),),
    "answering": ((CLIENT, "create"), (SERVER, "created")),
    "closed": ((SERVER, "close"),),
}


def rows(table):
    return [tuple(line.split()) for line in table.strip().splitlines()]


def lane_that_is(state):
    lane = Lane()
    for side, said in WAYS[state]:
        lane.move(side, said)
    return lane


ORACLE = {(state, side, said): after for state, side, said, after in rows(LEGAL)}


@pytest.mark.parametrize(
    ("state", "side", "said"), [*itertools.product(WAYS, ("client", "server"), WORDS)]
)
def test_a_lane_makes_the_legal_moves_and_no_other(state, side, said):
    """Each combination is either a legal move or raises, and then the state stays."""
    lane = lane_that_is(state)
    after = ORACLE.get((state, side, said))

    if after is None:
        with pytest.raises(IllegalMove) as refused:
            lane.move(Side(side), said)
        facts = refused.value.state.value, refused.value.side.value, refused.value.said
        assert facts == (state, side, said)
        assert lane.state is State(state)
    else:
        assert lane.move(Side(side), said) is State(after)
        assert lane.state is State(after)


def test_the_table_holds_nothing_beside_the_legal_moves():
    """The table in the code, spelled out, is the list written by hand."""
    table = {
        (state.value, side.value, said): after.value for (state, side, said), after in MOVES.items()
    }

    assert table == ORACLE


def test_an_illegal_move_says_who_said_what_in_one_line():
    """The message is for the one who has to find out which peer erred."""
    with pytest.raises(IllegalMove, match=r"^the server said 'terminal' on a lane that is idle$"):
        Lane().move(SERVER, "terminal")


def test_a_lane_shows_its_name_and_its_state():
    """What a debugger sees is enough to know where the lane stands."""
    lane = Lane("idea2")
    lane.move(CLIENT, "create")

    assert repr(lane) == "<Lane idea2 asked>"
    assert repr(Lane()) == "<Lane default idle>"


def known_events():
    found = {
        struct.__struct_config__.tag: struct
        for struct in vars(events).values()
        if isinstance(struct, type) and issubclass(struct, events.Event)
    }
    return {tag: struct for tag, struct in found.items() if tag is not None}


def test_each_event_means_one_thing_to_the_table():
    """The kinds of all events that we know are the list written by hand."""
    kinds = {tag: struct.KIND for tag, struct in known_events().items()}

    assert kinds == dict(rows(KINDS))
    assert events.Other.KIND == "other"


# Both ends, in memory: a frame that one end may say moves the other end alike.

ASK = Request(fields=Fields({"model": "m"}), input=EMPTY.extend([user("hi")])).frame()
ITEM = {"type": "message", "role": "assistant", "content": []}
TEXT_TURN = [
    events.ResponseCreated(response=Response(id="r")),
    events.ResponseInProgress(response=Response(id="r")),
    events.ItemAdded(output_index=0, item=ITEM),
    events.TextDelta(delta="Hel"),
    events.TextDelta(delta="lo"),
    events.TextDone(text="Hello"),
    events.ItemDone(output_index=0, item=ITEM),
    events.ResponseCompleted(response=Response(id="r")),
]
CALL_TURN = [
    events.ResponseCreated(response=Response(id="r")),
    events.ItemAdded(output_index=0, item=ITEM),
    events.ArgumentsDelta(delta="{}"),
    events.ArgumentsDone(arguments="{}"),
    events.InputDelta(delta="x"),
    events.InputDone(input="x"),
    events.ItemDone(output_index=0, item=ITEM),
    events.ResponseIncomplete(response=Response(id="r")),
]
TERSE_TURN = [events.ResponseCompleted(response=Response(id="r"))]
REFUSED_TURN = [events.Error(status=400)]
FAILED_TURN = [TEXT_TURN[0], events.ResponseFailedEvent(response=Response(id="r"))]
GOSSIP = events.Other(type="codex.rate_limits", frame={"type": "codex.rate_limits"})

FRAMES = (ASK, *(encode(event) for event in (*TEXT_TURN, *CALL_TURN, *REFUSED_TURN, GOSSIP)))


def meaning(frame):
    """Return who says this frame and what it means, as an end reads it off the wire."""
    event = decode(frame)
    if isinstance(event, events.Other) and event.type == "response.create":
        return CLIENT, "create"
    return SERVER, event.KIND


class Pair:
    """The lane as its client and as its server see it; each checks before it speaks."""

    def __init__(self):
        self.client, self.server = Lane(), Lane()

    def say(self, side, said):
        speaker, hearer = self.client, self.server
        if side is SERVER:
            speaker, hearer = hearer, speaker
        speaker.move(side, said)
        hearer.move(side, said)

    @property
    def agree(self):
        return self.client.state is self.server.state


@pytest.mark.parametrize(
    "turn", [TEXT_TURN, CALL_TURN, TERSE_TURN, REFUSED_TURN, FAILED_TURN, [GOSSIP, *TEXT_TURN]]
)
def test_a_turn_begins_and_ends_on_an_idle_lane(turn):
    """After any way in which a turn can go, the next turn can be asked for."""
    pair = Pair()
    for _ in range(2):
        pair.say(*meaning(ASK))
        for event in turn:
            assert pair.client.state is not State.IDLE
            pair.say(*meaning(encode(event)))

        assert pair.agree
        assert pair.client.state is State.IDLE


@given(st.lists(st.sampled_from([*map(meaning, FRAMES), (CLIENT, "close"), (SERVER, "close")])))
def test_both_ends_always_stand_alike(said):
    """Whatever is said in whatever order, no end thinks otherwise than the other."""
    pair = Pair()
    for side, word in said:
        before = pair.client.state
        legal = (before.value, side.value, word) in ORACLE
        try:
            pair.say(side, word)
        except IllegalMove:
            assert not legal
            assert pair.client.state is before
        else:
            assert legal

        assert pair.agree


def test_lanes_do_not_know_of_one_another():
    """A turn on one lane leaves the others where they stand."""
    one, two = Lane("one"), Lane("two")
    one.move(CLIENT, "create")
    two.move(CLIENT, "create")
    two.move(SERVER, "created")
    one.move(SERVER, "terminal")

    assert re.findall(r"\w+>", f"{one!r} {two!r}") == ["idle>", "answering>"]
