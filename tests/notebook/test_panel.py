"""The live panel: what it shows, how often, and what that costs."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from ipy_agent.notebook.panel import Panel
from ipy_agent.records import Recorder, TurnRecord

DAY = datetime(2026, 11, 22, tzinfo=UTC)


def turn(number, **changes):
    """A row of a turn that ended well."""
    told = {
        "turn": number,
        "cell": 1,
        "branch": "main",
        "endpoint": "local",
        "started_at": DAY,
        "connect_ms": 20.0,
        "ttft_ms": 123.4,
        "latency_ms": 12_345.6,
        "tool_ms": 1_234.5,
        "approval_ms": 10.0,
        "sent_items": 3,
        "held_items": 120,
        "sent_bytes": 12_345,
        "full_bytes": 523_456,
        "input_tokens": 123_456,
        "cached_tokens": 119_876,
        "output_tokens": 1_234,
        "status": "completed",
    }
    return TurnRecord(**(told | changes))


class Clock:
    """A clock that goes when it is told to."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def panel_of(turns, clock, **options):
    recorder = Recorder()
    recorder.turns += [turn(number) for number in range(1, turns + 1)]
    return recorder, Panel(recorder, clock=clock, **options)


def calls(action):
    """How many functions an action calls, which is what it costs wherever it is counted."""
    count = 0

    def seen(_frame, event, _argument):
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(seen)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


def test_it_is_drawn_at_most_ten_times_a_second(clock):
    """A refresh that comes too early does nothing, unless it is forced."""
    recorder, panel = panel_of(1, clock)

    assert panel.refresh()
    shown = panel.widget.value
    recorder.turns.append(turn(2))
    clock.now += 0.09
    assert not panel.refresh()
    assert panel.widget.value == shown
    assert panel.refresh(force=True)
    assert "<th>2<" in panel.widget.value
    clock.now += 0.09
    assert not panel.refresh()
    clock.now += 0.02
    assert panel.refresh()


def test_a_thousand_turns_cost_what_thirty_cost(clock):
    """A refresh calls as many functions at turn 1,000 as at turn 30: also with a new turn."""
    costs = []
    for turns in (30, 1_000):
        recorder, panel = panel_of(turns, clock)
        panel.refresh(force=True)
        same = calls(lambda panel=panel: panel.refresh(force=True))
        recorder.turns.append(turn(turns + 1))
        costs.append((same, calls(lambda panel=panel: panel.refresh(force=True))))

    assert costs[0] == costs[1]


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"status": "<'&\">" * 20, "cached_tokens": 3},
        dict.fromkeys(("latency_ms", "connect_ms", "tool_ms", "ttft_ms"), 999_999.0),
        {"sent_bytes": 999_900, "full_bytes": 999_900_000, "held_items": 10**9, "latency_ms": 1e12},
    ],
)
def test_it_is_small_at_a_thousand_turns(told, clock):
    """Twenty turns and the totals of a thousand take at most 8,192 bytes, whatever they are."""
    recorder, panel = panel_of(980, clock)
    recorder.turns += [turn(number, **told) for number in range(981, 1_001)]
    panel.refresh()
    page = panel.widget.value

    assert len(page.encode()) <= 8_192
    shown = page.count("<tr><th>") - 1
    assert shown == 20 if not told else 12 < shown <= 20
    assert f"<b>1,000</b> turns, the last {shown} shown" in page


def test_totals_count_each_turn_once(clock):
    """However often it is drawn, a turn is in the totals when it has ended, and once."""
    recorder, panel = panel_of(2, clock)
    running = turn(3, status="running", latency_ms=None, output_tokens=None)
    recorder.turns.append(running)

    for _ in range(3):
        panel.refresh(force=True)
        assert "<b>2</b> turns" in panel.widget.value
    running.latency_ms, running.output_tokens, running.status = 1.0, 7, "completed"
    for _ in range(3):
        panel.refresh(force=True)
        assert "<b>3</b> turns" in panel.widget.value
        assert "<td>2,475<" in panel.widget.value


def test_a_turn_that_runs_on_does_not_stop_the_count(clock):
    """Turns of another branch end before it and are counted; it is, when it ended."""
    recorder, panel = panel_of(1, clock)
    recorder.turns += [turn(2, status="running"), turn(3)]
    panel.refresh(force=True)
    assert "<b>2</b> turns" in panel.widget.value

    recorder.turns[1].status = "failed"
    panel.refresh(force=True)
    assert "<b>3</b> turns" in panel.widget.value
    assert "2 of 3" in panel.widget.value


def test_the_running_turn_shows_its_time(clock):
    """The time of a turn that runs goes on from the moment it was first seen."""
    recorder, panel = panel_of(1, clock)
    row = TurnRecord(turn=2, cell=1, branch="main", endpoint="local", started_at=DAY)
    recorder.turns.append(row)
    panel.refresh()
    clock.now += 3.21
    panel.refresh()

    assert "<td>3,210<" in panel.widget.value
    assert "running 3.2 s" in panel.widget.value


def test_a_cell_shows_its_own_turns(clock):
    """With `since` the turns before it are neither shown nor counted."""
    recorder, panel = panel_of(5, clock, since=5)
    panel.refresh()
    assert "<b>0</b> turns" in panel.widget.value

    recorder.turns.append(turn(6))
    panel.refresh(force=True)
    assert "<b>1</b> turn " in panel.widget.value
    assert "<th>5<" not in panel.widget.value


def test_at_the_end_it_is_static(clock):
    """The bundle that takes the widget's place has the same picture, and its numbers as text."""
    recorder, panel = panel_of(25, clock)
    recorder.turns.append(turn(26, status="interrupted", latency_ms=None))
    panel.refresh()
    bundle = panel.static()
    panel.close()

    assert set(bundle) == {"text/html", "text/plain"}
    assert bundle["text/html"] == panel.widget.value
    drawn = re.sub(r"<[^>]*>", " ", bundle["text/html"].replace("\N{NO-BREAK SPACE}", " ")).split()
    told = bundle["text/plain"].split()
    assert sorted(re.findall(r"\d[\d,.]*", " ".join(drawn))) == sorted(
        re.findall(r"\d[\d,.]*", " ".join(told))
    )
    assert "<" not in bundle["text/plain"]


def test_names_of_others_are_not_elements(clock):
    """No model, endpoint, branch or status makes an element in the panel."""
    hostile = "<img src=x onerror=alert(1)>"
    recorder, panel = panel_of(0, clock)
    recorder.turns.append(
        turn(1, model=hostile, endpoint=hostile, branch=hostile, status=hostile, cache_miss=hostile)
    )
    panel.refresh()

    assert "<img" not in panel.widget.value + panel.static()["text/html"]


def test_the_widgets_are_loaded_with_the_first_panel():
    """Importing the module loads no ipywidgets; only a panel does."""
    check = "import sys, ipy_agent.notebook.panel; print('ipywidgets' in sys.modules)"

    assert subprocess.check_output([sys.executable, "-c", check], text=True).strip() == "False"
