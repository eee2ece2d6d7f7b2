"""What a panel shows: each row once, and of a running turn what there is."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest

from ipy_agent.notebook.views import Views
from ipy_agent.records import CellRecord, Recorder, ToolRecord, TurnRecord

DAY = datetime(2026, 11, 22, tzinfo=UTC)


class Clock:
    """A clock that goes when it is told to."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def recorder():
    """A recorder of two cell runs that have not made a turn yet."""
    made = Recorder()
    told = {"branch": "main", "endpoint": "local", "started_at": DAY, "status": "completed"}
    made.cells += [CellRecord(cell=number, prompt=f"prompt {number}", **told) for number in (1, 2)]
    return made


def turn(number, cell=1, **changes):
    told = {"branch": "main", "endpoint": "local", "started_at": DAY, "status": "completed"}
    told |= {"latency_ms": 1_000.0, "input_tokens": 100, "cached_tokens": 50, "output_tokens": 7}
    return TurnRecord(turn=number, cell=cell, **(told | changes))


def call(number, **changes):
    told = {"call_id": "c", "name": "python", "arguments": "{}", "output": "42"}
    told |= {"duration_ms": 12.0, "approval": "auto", "status": "completed"}
    return ToolRecord(turn=number, started_at=DAY, **(told | changes))


def test_totals_count_each_turn_once(recorder, clock):
    """However often it is looked at, a turn is in the totals when it has ended, and once."""
    views = Views(recorder, clock)
    running = turn(3, status="running", latency_ms=None, output_tokens=None)
    recorder.turns += [turn(1), turn(2), running]

    for _ in range(3):
        assert views.turns().number == 2
        assert views.cells().lines[0].turns == 2
    running.latency_ms, running.output_tokens, running.status = 1.0, 7, "completed"
    for _ in range(3):
        assert views.turns().number == 3
        assert views.turns().sums.output_tokens == 21
        assert views.cells().lines[0].output_tokens == 21


def test_a_turn_that_runs_on_does_not_stop_the_count(recorder, clock):
    """Turns of another branch end before it and are counted; it is, when it ended."""
    views = Views(recorder, clock)
    recorder.turns += [turn(1), turn(2, status="running"), turn(3)]
    assert views.turns().number == 2

    recorder.turns[1].status = "failed"

    assert views.turns().number == 3
    assert views.turns().sums.status == "2 of 3"


def test_the_running_turn_shows_its_time(recorder, clock):
    """The time of a turn that runs goes on from the moment it was first seen."""
    views = Views(recorder, clock)
    recorder.turns.append(turn(1, status="running", latency_ms=None))
    views.turns()
    clock.now += 3.21
    [line] = views.turns().lines

    assert line.model_ms == pytest.approx(3_210)
    assert line.status == "running 3.2 s"


def test_a_running_turn_shows_what_it_has_done_so_far(recorder, clock):
    """At each look; one that ended stays as it was."""
    views = Views(recorder, clock)
    recorder.turns += [turn(1), turn(2, status="running", latency_ms=None)]
    views.turns()
    recorder.turns[1].tool_ms, recorder.turns[1].latency_ms = 12.0, 34.0
    ended, running = views.turns().lines
    assert (running.tool_ms, running.model_ms) == (12.0, 34.0)

    recorder.turns[1].approval_ms, recorder.turns[1].status = 56.0, "completed"
    same, last = views.turns().lines

    assert same is ended
    assert (last.tool_ms, last.waiting_ms, last.status) == (12.0, 56.0, "completed")
    assert views.turns().lines[1] is last


def test_what_became_of_a_cell_run_is_shown(recorder, clock):
    """However long ago it was: one that is no longer sent says so."""
    views = Views(recorder, clock)
    recorder.turns += [turn(1), turn(2, cell=2)]
    before = views.cells().lines
    assert before[0].status == "completed"

    recorder.cells[0].standing = "stale"
    after = views.cells().lines

    assert after[0].status == "completed, stale"
    assert after[1] is before[1]


def test_the_last_fifty_are_shown(recorder, clock):
    """Of turns, cell runs and tool calls, at the first look and at each that follows."""
    told = {"branch": "main", "endpoint": "local", "started_at": DAY, "prompt": "?"}
    recorder.cells[:] = [CellRecord(cell=number, **told) for number in range(1, 201)]
    views = Views(recorder, clock)
    for first, last in ((1, 120), (121, 125), (126, 200)):
        recorder.turns += [turn(number, cell=number) for number in range(first, last + 1)]
        recorder.tools += [call(number) for number in range(first, last + 1)]

        for shown in (views.turns(), views.cells(), views.calls()):
            assert [line.turn for line in shown.lines] == [
                str(number) for number in range(last - 49, last + 1)
            ]


def test_a_cell_run_is_shown_from_its_first_turn_on(recorder, clock):
    """With the sums of what ended of it; a run without turns has nothing to show."""
    views = Views(recorder, clock)
    recorder.turns += [turn(1), turn(2), turn(3, cell=2, status="running")]
    shown = views.cells()

    assert [(line.turn, line.turns, line.said) for line in shown.lines] == [
        ("1", 2, "prompt 1"),
        ("2", 0, "prompt 2"),
    ]
    assert shown.number == 2


def test_tool_calls_are_counted_once(recorder, clock):
    """In the order in which they ended."""
    views = Views(recorder, clock)
    recorder.tools += [call(1), call(1, name="price")]
    views.calls()
    recorder.tools.append(call(2, duration_ms=None))
    shown = views.calls()

    assert [line.name for line in shown.lines] == ["python", "price", "python"]
    assert (shown.number, shown.sums.tool_ms) == (3, 24.0)


def test_what_stays_has_a_view_of_its_own_for_what_there_is(recorder, clock):
    """The turns, always; tool calls and several cell runs folded below, where there are any."""
    recorder.turns.append(turn(1))
    assert folds(Views(recorder, clock)) == []
    recorder.tools.append(call(1))
    assert folds(Views(recorder, clock)) == ["tool calls"]
    recorder.turns.append(turn(2, cell=2))
    assert folds(Views(recorder, clock)) == ["cell runs", "tool calls"]
    assert folds(Views(recorder, clock, fresh=True)) == []


def folds(views):
    return re.findall("<summary>(.*?)</summary>", views.static()["text/html"])


def test_what_stays_says_the_same_in_html_and_text(recorder, clock):
    """Every number of the one stands in the other, and the text has no elements."""
    recorder.turns += [turn(1), turn(2, cell=2, status="interrupted", latency_ms=None)]
    recorder.tools.append(call(1))
    bundle = Views(recorder, clock).static()
    drawn = re.sub(r"<[^>]*>", " ", bundle["text/html"].replace("\N{NO-BREAK SPACE}", " "))

    assert set(bundle) == {"text/html", "text/plain"}
    assert "<" not in bundle["text/plain"]
    assert sorted(numbers(drawn)) == sorted(numbers(bundle["text/plain"]))


def numbers(text):
    return re.findall(r"\d[\d,.]*", text)
