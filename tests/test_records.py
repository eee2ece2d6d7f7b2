"""The recorder folds one stream into rows, with a clock that the test sets by hand."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from msgspec import UNSET

from ipy_agent import records
from ipy_agent.protocol.events import (
    ArgumentsDelta,
    Error,
    ItemAdded,
    ItemDone,
    Other,
    ResponseCompleted,
    ResponseCreated,
    ResponseFailedEvent,
    ResponseIncomplete,
    TextDelta,
    ThoughtDelta,
)
from ipy_agent.protocol.items import output_of, user
from ipy_agent.protocol.response import Reason, Response, Usage
from ipy_agent.records import CellRecord, MessageRecord, Recorder, ToolRecord, TurnRecord
from ipy_agent.trace import (
    ItemsAdded,
    Notice,
    RequestSent,
    ResponseEnded,
    RunBegan,
    RunEnded,
    ToolBegan,
    ToolEnded,
    TurnBegan,
    TurnEnded,
)

DAY = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
MESSAGE = {"type": "message", "role": "assistant", "content": []}
CALL = {"type": "function_call", "call_id": "c", "name": "python", "arguments": "{}"}
USAGE = Usage.of(
    input_tokens=100, cached_tokens=75, output_tokens=7, cache_write_tokens=25, reasoning_tokens=3
)
CALLED = {"call_id": "c", "name": "python", "arguments": "{}"}
SENT = RequestSent(
    transport="websocket",
    connection=2,
    reused=False,
    connect_ms=12.5,
    previous_response_id="resp_0",
    sent_items=1,
    held_items=4,
    sent_bytes=80,
    full_bytes=400,
    wire_bytes=30,
)


class Told:
    """A recorder that is told a stream, each value at its second."""

    def __init__(self):
        self.seconds = 0.0
        self.recorder = Recorder(
            clock=lambda: self.seconds, now=lambda: DAY + timedelta(seconds=self.seconds)
        )
        self.hear = self.recorder.listener()

    def tell(self, *stream):
        """Tell values; a number in the stream sets the clock."""
        for value in stream:
            if isinstance(value, float | int):
                self.seconds = value
            else:
                self.hear(value)
        return self

    @property
    def turn(self):
        return self.recorder.turns[-1]


@pytest.fixture
def told():
    """Return a recorder in the middle of its first turn, at second 0."""
    return Told().tell(RunBegan(prompt="p", endpoint="local"), TurnBegan(model="m"))


def completed(**about):
    return ResponseCompleted(response=Response(id="resp_1", **about))


def ended(**about):
    return ToolEnded(
        **CALLED,
        **{
            "output": "4",
            "started_at": DAY,
            "duration_ms": 40.0,
            "approval": "yes",
            "approval_ms": 900.0,
            "status": "completed",
            **about,
        },
    )


def test_a_stream_becomes_exactly_these_rows():
    """A run of two turns with a tool between them, told value by value."""
    rows = Told().tell(
        *(10.0, RunBegan(prompt="how many?", endpoint="local", branch="idea")),
        *(10.5, TurnBegan(model="wanted"), ItemsAdded(items=[user("how many?")])),
        *(10.6, Notice(text="starting the server"), SENT),
        *(10.7, ResponseCreated(response=Response(id="resp_1"))),
        *(10.75, ItemAdded(output_index=0, item=CALL), ArgumentsDelta(delta="{")),
        *(11.0, ArgumentsDelta(delta="}"), ItemDone(output_index=0, item=CALL)),
        *(11.25, completed(model="got", output=[CALL], usage=USAGE)),
        *(11.5, ResponseEnded(received_bytes=321), ItemsAdded(items=[CALL])),
        *(11.75, ToolBegan(**CALLED)),
        *(13.0, ended(), ItemsAdded(items=[output_of("c", "4")])),
        *(13.5, ItemsAdded(items=[]), TurnEnded(status="completed")),
        *(14.0, TurnBegan(model="wanted")),
        *(14.5, TextDelta(delta="4")),
        *(15.0, ResponseCompleted(response=Response(id="resp_2"))),
        *(15.0, ItemsAdded(items=[MESSAGE]), TurnEnded(status="completed")),
        *(16.0, RunEnded(status="completed")),
    )
    about = {"cell": 1, "branch": "idea", "endpoint": "local", "status": "completed"}

    assert rows.recorder.turns == [
        TurnRecord(
            turn=1,
            model="got",
            transport="websocket",
            connection=2,
            reused=False,
            response_id="resp_1",
            previous_response_id="resp_0",
            started_at=DAY + timedelta(seconds=10.5),
            sent_items=1,
            held_items=4,
            sent_bytes=80,
            wire_bytes=30,
            full_bytes=400,
            received_bytes=321,
            connect_ms=12.5,
            ttft_ms=250.0,
            latency_ms=750.0,
            tool_ms=40.0,
            approval_ms=900.0,
            input_tokens=100,
            cached_tokens=75,
            cache_write_tokens=25,
            output_tokens=7,
            reasoning_tokens=3,
            **about,
        ),
        TurnRecord(
            turn=2,
            model="wanted",
            response_id="resp_2",
            started_at=DAY + timedelta(seconds=14),
            ttft_ms=500.0,
            latency_ms=1_000.0,
            **about,
        ),
    ]
    assert rows.recorder.tools == [
        ToolRecord(
            turn=1,
            **CALLED,
            output="4",
            started_at=DAY,
            duration_ms=40.0,
            approval="yes",
            status="completed",
        )
    ]
    assert rows.recorder.cells == [
        CellRecord(
            prompt="how many?", started_at=DAY + timedelta(seconds=10), elapsed_ms=6_000.0, **about
        )
    ]
    assert rows.recorder.messages == [
        MessageRecord(cell=1, turn=turn, branch="idea", item=item)
        for turn, item in [
            (1, user("how many?")),
            (1, CALL),
            (1, output_of("c", "4")),
            (2, MESSAGE),
        ]
    ]


def test_what_did_not_happen_is_none(told):
    """A turn that only began has no numbers at all."""
    row = msgspec.structs.asdict(told.turn)
    happened = {"turn", "cell", "branch", "model", "endpoint", "started_at", "retries", "status"}

    assert {name for name, value in row.items() if value is not None} == happened
    assert told.turn.hit_rate is None
    assert told.recorder.cells[0].elapsed_ms is None
    assert (told.turn.status, told.recorder.cells[0].status) == ("running", "running")


def test_a_response_without_usage_has_no_tokens(told):
    """An endpoint that counts nothing leaves NA, and not a turn without input."""
    told.tell(1.0, completed(model="m"), TurnEnded(status="completed"))

    assert (told.turn.input_tokens, told.turn.cached_tokens) == (None, None)
    assert told.turn.hit_rate is None


def test_usage_in_parts_is_taken_as_it_is(told):
    """A missing detail is unknown, while a cache that held nothing is 0."""
    told.tell(completed(usage=Usage(input_tokens=8)))
    assert (told.turn.input_tokens, told.turn.cached_tokens) == (8, None)
    assert told.turn.hit_rate is None

    told.tell(completed(usage=Usage.of(input_tokens=8, cached_tokens=0, output_tokens=1)))
    assert (told.turn.cached_tokens, told.turn.hit_rate) == (0, 0.0)


@pytest.mark.parametrize(
    ("cached", "read", "rate"), [(75, 100, 0.75), (0, 100, 0.0), (0, 0, None), (None, 9, None)]
)
def test_the_hit_rate_is_the_cached_share_of_the_input(cached, read, rate):
    """Without input, or where nobody counted, there is no share."""
    row = TurnRecord(
        turn=1,
        cell=1,
        branch="main",
        endpoint="local",
        started_at=DAY,
        input_tokens=read,
        cached_tokens=cached,
    )

    assert row.hit_rate == rate


@pytest.mark.parametrize(
    "sign",
    [
        TextDelta(delta="a"),
        ArgumentsDelta(delta="{"),
        ThoughtDelta(delta="hm"),
        Other(type="response.refusal.delta", frame={}),
    ],
)
def test_the_first_delta_of_any_kind_is_the_first_sign(told, sign):
    """Later deltas, and items before and after, do not move it."""
    told.tell(0.25, ItemAdded(output_index=0, item=MESSAGE))
    told.tell(0.5, sign, 0.75, TextDelta(delta="b"), ItemDone(output_index=0, item=MESSAGE))
    told.tell(1.0, completed())

    assert (told.turn.ttft_ms, told.turn.latency_ms) == (500.0, 1_000.0)


@pytest.mark.parametrize("item", [ItemAdded, ItemDone])
@pytest.mark.parametrize("at", [0.0, 0.5])
def test_without_a_delta_the_first_item_is(told, item, at):
    """An endpoint that sends whole items has its first sign there, at second 0 too."""
    told.tell(at, item(output_index=0, item=MESSAGE))
    told.tell(0.75, ItemDone(output_index=1, item=MESSAGE), 1.0, completed())

    assert told.turn.ttft_ms == at * 1_000


@pytest.mark.parametrize("last", [ResponseCompleted, ResponseFailedEvent, ResponseIncomplete])
def test_without_an_item_the_terminal_event_is(told, last):
    """The least that an endpoint may say is one terminal event."""
    told.tell(0.1, Other(type="keepalive", frame={}), 2.0, last(response=Response(id="resp_1")))

    assert (told.turn.ttft_ms, told.turn.latency_ms) == (2_000.0, 2_000.0)
    assert told.turn.response_id == "resp_1"


def test_a_turn_does_not_inherit_from_the_one_before(told):
    """Each turn has a first sign of its own."""
    told.tell(0.5, ItemDone(output_index=0, item=MESSAGE), TextDelta(delta="a"), completed())
    told.tell(TurnEnded(status="completed"), 1.0, TurnBegan(model="m"), 3.0, completed())

    assert [row.ttft_ms for row in told.recorder.turns] == [500.0, 2_000.0]


def test_a_refused_turn_is_a_row_too(told):
    """It has a latency and a status, and no first sign, tokens or id."""
    told.tell(0.5, SENT, 1.5, Error(status=429, error=Reason(code="slow_down")))
    told.tell(TurnEnded(status="failed"), RunEnded(status="failed"))

    assert (told.turn.status, told.recorder.cells[0].status) == ("failed", "failed")
    assert (told.turn.latency_ms, told.turn.ttft_ms) == (1_500.0, None)
    assert (told.turn.response_id, told.turn.input_tokens) == (None, None)
    assert told.turn.sent_items == 1


def test_a_turn_that_never_got_through_is_a_row_too(told):
    """Where nothing was sent, nothing is told of sending."""
    told.tell(3.0, TurnEnded(status="failed"), RunEnded(status="failed"))

    assert (told.turn.latency_ms, told.turn.connect_ms, told.turn.transport) == (
        3_000.0,
        None,
        None,
    )


def test_latency_ends_with_the_response_and_not_with_its_tools(told):
    """The time of the tools is in columns of its own."""
    told.tell(1.0, completed(), 5.0, ended(), 6.0, TurnEnded(status="completed"))

    assert (told.turn.latency_ms, told.turn.tool_ms) == (1_000.0, 40.0)


def test_a_request_that_is_sent_again_stays_in_its_row(told):
    """The row tells the last attempt, and how many came before it."""
    told.tell(SENT, msgspec.structs.replace(SENT, attempt=1, sent_items=5, held_items=0))

    assert len(told.recorder.turns) == 1
    assert (told.turn.retries, told.turn.sent_items, told.turn.held_items) == (1, 5, 0)


def test_the_times_of_several_tools_add_up(told):
    """A tool that did not run adds nothing, and does not make an unknown time 0."""
    told.tell(ended(duration_ms=None, approval="no", approval_ms=100.0, status="refused"))
    assert (told.turn.tool_ms, told.turn.approval_ms) == (None, 100.0)

    told.tell(ended(approval="auto", approval_ms=None), ended(duration_ms=0.0, approval_ms=50.0))
    assert (told.turn.tool_ms, told.turn.approval_ms) == (40.0, 150.0)
    assert [row.approval for row in told.recorder.tools] == ["no", "auto", "yes"]


def lines_run(work):
    """Return how many lines of the records' code ran."""
    home, lines = str(Path(records.__file__)), 0

    def trace(frame, event, _):
        nonlocal lines
        lines += event == "line"
        return trace if frame.f_code.co_filename == home else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return lines


def test_a_turn_is_the_same_work_at_any_length():
    """Turn 200 runs as many lines of the recorder as turn 2, rows of every kind included."""
    rows = Told()
    stream = [
        *(RunBegan(prompt="p", endpoint="e"), TurnBegan(model="m"), SENT),
        *(ItemsAdded(items=[CALL, CALL]), TextDelta(delta="a"), TextDelta(delta="b")),
        *(ItemDone(output_index=0, item=CALL), completed(usage=USAGE), ended()),
        *(ResponseEnded(received_bytes=1), TurnEnded(status="completed")),
        RunEnded(status="completed"),
    ]
    costs = [lines_run(lambda: rows.tell(*stream)) for _ in range(200)]

    assert costs[1] > len(stream)
    assert costs[199] == costs[1]
    assert len(rows.recorder.messages) == 400


# why the cache missed


def why(*, sent=SENT, minimum=0, cached=0, asked=2_000, diagnosis=UNSET):
    usage = Usage.of(input_tokens=asked, cached_tokens=cached, output_tokens=1)
    if cached is None:
        usage = Usage(input_tokens=asked)
    told = Told().tell(
        RunBegan(prompt="p", endpoint="here", cache_minimum=minimum), TurnBegan(model="m"), sent
    )
    told.tell(completed(usage=usage, prompt_cache_diagnostics=diagnosis))
    return told.turn.cache_miss


RESENT = msgspec.structs.replace(SENT, resent="tools_changed")
MISS = {"type": "cache_miss", "reason": "input_changed", "cache_missed_tokens": 5}


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ({}, None),
        ({"sent": RESENT}, "tools_changed"),
        ({"sent": RESENT, "cached": 100}, None),
        ({"sent": RESENT, "cached": None}, None),
        ({"sent": RESENT, "asked": 0}, None),
        ({"sent": RESENT, "minimum": 1_024}, "tools_changed"),
        ({"sent": RESENT, "minimum": 4_096}, "below_minimum"),
        ({"minimum": 4_096}, "below_minimum"),
        ({"minimum": 4_096, "cached": 1}, None),
        ({"sent": RESENT, "diagnosis": MISS}, "input_changed"),
        ({"cached": 100, "diagnosis": MISS}, "input_changed"),
        ({"sent": RESENT, "diagnosis": {"type": "cache_hit"}}, None),
        ({"sent": RESENT, "diagnosis": {"type": "unavailable"}}, "tools_changed"),
        ({"sent": RESENT, "diagnosis": {"type": "comparison_response_not_found"}}, "tools_changed"),
        ({"sent": RESENT, "diagnosis": None}, "tools_changed"),
        ({"sent": RESENT, "diagnosis": ["nonsense"]}, "tools_changed"),
    ],
)
def test_why_the_cache_missed(about, reason):
    """The endpoint's word counts first, then what the client knows; nobody knows, so NA."""
    assert why(**about) == reason


def test_runs_on_two_branches_have_rows_of_their_own():
    """Each listener fills the rows of its run, however the streams are mixed."""
    records = Recorder()
    one, two = records.listener(), records.listener()
    for hear, branch in ((one, "a"), (two, "b")):
        hear(RunBegan(prompt=branch, endpoint="here", branch=branch))
        hear(TurnBegan(model="m"))
    two(ResponseCompleted(response=Response(id="resp_b")))
    one(ResponseCompleted(response=Response(id="resp_a")))
    two(ItemsAdded(items=[MESSAGE]))
    two(TurnEnded(status="completed"))
    one(TurnEnded(status="interrupted"))
    one(RunEnded(status="interrupted"))

    rows = [(row.branch, row.response_id, row.status) for row in records.turns]
    assert rows == [("a", "resp_a", "interrupted"), ("b", "resp_b", "completed")]
    assert [(cell.branch, cell.status) for cell in records.cells] == [
        ("a", "interrupted"),
        ("b", "running"),
    ]
    assert [(row.cell, row.turn, row.branch) for row in records.messages] == [(2, 2, "b")]


def test_what_a_turn_sent_twice_counts_twice():
    """A resend stays in its turn's row, and so do its bytes."""
    again = msgspec.structs.replace(SENT, sent_bytes=40, wire_bytes=9, attempt=1)
    told = Told().tell(RunBegan(prompt="p", endpoint="local"), TurnBegan(model="m"), SENT, again)

    assert told.turn.sent_bytes == SENT.sent_bytes + 40
    assert told.turn.wire_bytes == SENT.wire_bytes + 9
    assert told.turn.retries == 1


@pytest.mark.parametrize("tries", [(None, 9), (9, None), (9, None, 9)])
def test_a_sum_with_an_unknown_part_is_unknown(tries):
    """A turn that went over HTTP once has no bytes on the wire that anybody could tell."""
    sent = [msgspec.structs.replace(SENT, wire_bytes=wire) for wire in tries]
    told = Told().tell(RunBegan(prompt="p", endpoint="local"), TurnBegan(model="m"), *sent)

    assert told.turn.sent_bytes == SENT.sent_bytes * len(tries)
    assert told.turn.wire_bytes is None
