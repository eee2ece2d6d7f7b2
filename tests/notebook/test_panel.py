"""The live panel: what it shows, how often, what that costs, and that nothing stays of it."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime

import pytest
from ipywidgets.widgets import widget as widgets
from jupyter_client.session import Session

from ipy_agent.notebook.panel import Board, Panel, heard_at_once
from ipy_agent.records import CellRecord, Recorder, ToolRecord, TurnRecord
from ipy_agent.secrets import Secret

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


def call(number):
    """A row of a tool call."""
    told = {"call_id": "c", "name": "python", "arguments": "{}", "output": "x" * 100}
    told |= {"duration_ms": 1_234.5, "approval": "auto", "status": "completed"}
    return ToolRecord(turn=number, started_at=DAY, **told)


def cell(number):
    """A row of a cell run."""
    told = {"branch": "main", "endpoint": "local", "prompt": "How heavy are they? " * 9}
    return CellRecord(cell=number, started_at=DAY, status="completed", **told)


def panel_of(turns, clock):
    """A panel of this many turns."""
    recorder = Recorder()
    panel = Panel(recorder, print, clock=clock)
    recorder.cells += [cell(number) for number in range(1, 1_001)]
    recorder.turns += [turn(number) for number in range(1, turns + 1)]
    return recorder, panel


def page_of(panel, view="turns"):
    """What a view shows."""
    shown = dict(zip(("turns", "cells", "tools"), panel.tabs.children, strict=True))
    return shown[view].value


def message_of(shown):
    """The bytes of the message with which a kernel brings a widget up to date, envelope and all."""
    session = Session(key=b"a-key-of-the-tests", username="a-user-with-a-long-name")
    state = {"method": "update", "state": shown.get_state("value"), "buffer_paths": []}
    parent = session.msg("execute_request") | {"subshell_id": "0" * 36}
    told = session.msg(
        "comm_msg", {"data": state, "comm_id": shown.comm.comm_id}, parent=parent, metadata={}
    )
    return sum(map(len, session.serialize(told, f"comm-{shown.comm.comm_id}".encode())))


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
    shown = page_of(panel)
    recorder.turns.append(turn(2))
    clock.now += 0.09
    assert not panel.refresh()
    assert page_of(panel) == shown
    assert panel.refresh(force=True)
    assert "<th>2<" in page_of(panel)
    clock.now += 0.09
    assert not panel.refresh()
    clock.now += 0.02
    assert panel.refresh()


@pytest.mark.parametrize("view", [0, 1, 2])
def test_a_thousand_turns_cost_what_sixty_cost(view, clock):
    """A refresh calls as many functions at turn 1,000 as at turn 60: also with a new turn."""
    costs = []
    for turns in (60, 1_000):
        recorder, panel = panel_of(0, clock)
        panel.tabs.selected_index = view
        recorder.turns += [turn(number, cell=number) for number in range(1, turns + 1)]
        recorder.tools += [call(number) for number in range(1, turns + 1)]
        panel.refresh(force=True)
        clock.now += 1
        same = calls(panel.refresh)
        recorder.turns.append(turn(turns + 1, cell=turns))
        clock.now += 1
        costs.append((same, calls(panel.refresh)))

    assert costs[0] == pytest.approx(costs[1], rel=0.02)


USUAL = {"latency_ms": 3_456.7, "tool_ms": 12.3, "approval_ms": None, "connect_ms": None}
USUAL |= {"sent_bytes": 1_234, "full_bytes": 123_456, "input_tokens": 12_345, "output_tokens": 123}


@pytest.mark.parametrize(
    ("told", "least"),
    [
        (USUAL, 50),
        ({}, 45),
        ({"status": "<'&\">" * 20, "cached_tokens": 3}, 35),
        (dict.fromkeys(("latency_ms", "connect_ms", "tool_ms", "ttft_ms"), 999_999.0), 35),
        (
            {
                "sent_bytes": 999_900,
                "full_bytes": 999_900_000,
                "held_items": 10**9,
                "latency_ms": 1e12,
            },
            35,
        ),
    ],
)
def test_it_is_small_at_a_thousand_turns(told, least, clock):
    """Fifty usual turns and the sums of a thousand are a message of at most 8,192 bytes.

    So are those with long numbers and words, of which the earliest are left out.
    """
    recorder, panel = panel_of(950, clock)
    recorder.turns += [turn(number, **told) for number in range(951, 1_001)]
    panel.refresh()
    page = page_of(panel)

    assert message_of(panel.tabs.children[0]) <= 8_192
    shown = page.count("<th>") - page[: page.index("<tbody>")].count("<th>") - 1
    assert least <= shown <= 50
    assert f"<b>1,000</b> turns, the last {shown} shown" in page


@pytest.mark.parametrize(
    "prompt",
    ["How heavy are they? " * 9, "\\" * 90, '"' * 90, "é" * 90],
    ids=["words", "backslashes", "quotes", "accents"],
)
def test_every_view_is_small_at_a_thousand(prompt, clock):
    """So are a thousand cell runs, and as many tool calls, whatever they are called."""
    recorder, panel = panel_of(0, clock)
    for row in recorder.cells:
        row.prompt = prompt
    recorder.turns += [turn(number, cell=number) for number in range(1, 1_001)]
    recorder.tools += [call(number) for number in range(1, 1_001)]
    panel.refresh(force=True)

    assert "<b>1,000</b> cell runs, the last " in page_of(panel, "cells")
    assert "<b>1,000</b> tool calls, the last 50 shown" in page_of(panel, "tools")
    assert all(message_of(shown) <= 8_192 for shown in panel.tabs.children)


def test_only_what_changed_is_drawn(clock):
    """Beside fifty turns that ended, one that runs costs a tenth of what they did."""
    recorder, panel = panel_of(1_000, clock)
    whole = calls(panel.refresh)
    recorder.turns.append(turn(1_001, status="running", latency_ms=None))
    for _ in range(3):
        clock.now += 1
        again = calls(panel.refresh)
        assert f"<td>running {clock.now - 101:.1f} s" in page_of(panel)

        assert again < whole / 10


def test_a_view_in_which_nothing_is_new_is_neither_drawn_nor_sent(clock):
    """Also where all of them are asked for; a row more is."""
    recorder, panel = panel_of(100, clock)
    recorder.tools += [call(number) for number in range(1, 101)]
    sent = []
    for shown in panel.tabs.children:
        shown.observe(sent.append, "value")
    whole = calls(lambda: panel.refresh(force=True))
    assert len(sent) == 3
    assert calls(lambda: panel.refresh(force=True)) < whole / 20
    assert len(sent) == 3

    recorder.tools.append(call(101))
    panel.refresh(force=True)
    assert [change.owner for change in sent[3:]] == [panel.tabs.children[2]]


def test_a_secret_that_becomes_known_is_masked_in_what_was_drawn(clock):
    """At the next refresh, whether or not anything else is new."""
    for number, prompt in enumerate(("new-key-9f8e7d6c5b4a", "old-key-0a1b2c3d4e5f")):
        recorder, panel = panel_of(2, clock)
        recorder.cells[0].prompt = f"use {prompt}"
        panel.refresh(force=True)
        assert prompt in page_of(panel, "cells")

        Secret(prompt)
        recorder.turns += [turn(3)] * number
        panel.refresh(force=True)
        assert prompt not in page_of(panel, "cells")
        assert "use " in page_of(panel, "cells")


def test_the_view_that_is_looked_at_is_drawn(clock):
    """The others are brought up to date when all are: before what may keep us busy."""
    recorder, panel = panel_of(1, clock)
    panel.refresh(force=True)
    recorder.turns.append(turn(2, cell=2))
    panel.tabs.selected_index = 1
    clock.now += 1
    panel.refresh()

    assert "<b>2</b> cell runs" in page_of(panel, "cells")
    assert "<b>1</b> turn " in page_of(panel, "turns")
    panel.refresh(force=True)
    assert "<b>2</b> turns" in page_of(panel, "turns")


def test_all_views_are_drawn_before_a_tool(clock):
    """A tool may keep the kernel busy for long, however shortly after the one before it."""
    recorder, panel = panel_of(1, clock)
    panel.refresh(whole=True)
    recorder.turns.append(turn(2, cell=2))
    panel.refresh(whole=True)

    assert "<b>2</b> turns" in page_of(panel)
    assert "<b>2</b> cell runs" in page_of(panel, "cells")


def test_a_burst_of_tools_does_not_draw_all_views_at_each(clock):
    """Past half a million characters only the view that is looked at is drawn, at its own pace."""
    recorder, panel = panel_of(50, clock)
    drawn = 0
    for more in range(200):
        recorder.turns.append(turn(51 + more))
        drawn += panel.refresh(whole=True)
    sent = drawn * sum(len(page_of(panel, name)) for name in ("turns", "cells", "tools"))
    assert not panel.refresh(whole=True)
    clock.now += 10

    assert 500_000 <= sent < 600_000
    assert panel.refresh(whole=True)
    assert "<b>250</b> turns" in page_of(panel)


def test_a_cell_shows_its_own_turns(clock):
    """What was there before the panel is neither shown nor counted."""
    recorder = Recorder()
    recorder.cells.append(cell(1))
    recorder.turns += [turn(number) for number in range(1, 6)]
    recorder.tools.append(call(5))
    panel = Panel(recorder, print, clock=clock)
    panel.refresh()
    assert "<b>0</b> turns" in page_of(panel)

    recorder.turns.append(turn(6))
    panel.refresh(force=True)
    assert "<b>1</b> turn " in page_of(panel)
    assert "<th>5<" not in page_of(panel)
    assert "<b>0</b> tool calls" in page_of(panel, "tools")


def test_the_button_stops(clock):
    """A click calls what the panel was given."""
    stops = []
    panel = Panel(Recorder(), stops.append, clock=clock)
    panel.button.click()

    assert stops == [panel.button]


def test_a_click_is_told_on_the_thread_that_was_asked_for(clock):
    """Else ipykernel would have it wait for the cell that it is to stop."""

    class Comm:
        """As much of ipykernel's as is asked."""

        def _reply_subshell_for(self, _data, _default):
            return None

    panel = Panel(Recorder(), print, clock=clock)
    for one in (panel.button, panel.tabs):
        comm = Comm()
        heard_at_once(comm)
        assert comm._reply_subshell_for({}, "of the front end") == "of the front end"
        assert one.comm is not None


def test_nothing_of_a_panel_stays(clock):
    """Every widget that it made, and its layout and style, is closed."""
    before = set(widgets._instances)
    panel = Panel(Recorder(), print, clock=clock)
    assert set(widgets._instances) > before

    panel.close()

    assert set(widgets._instances) == before


def test_nothing_is_announced(clock):
    """A live region would have a screen reader read every refresh aloud."""
    _, panel = panel_of(3, clock)
    panel.refresh(force=True)

    assert not any("aria-live" in shown.value for shown in panel.tabs.children)


def test_names_of_others_are_not_elements(clock):
    """No model, endpoint, branch, prompt, tool or status makes an element in the panel."""
    hostile = "<img src=x onerror=alert(1)>"
    recorder, panel = panel_of(0, clock)
    recorder.cells[0].prompt = recorder.cells[0].status = hostile
    recorder.turns.append(
        turn(1, model=hostile, endpoint=hostile, branch=hostile, status=hostile, cache_miss=hostile)
    )
    recorder.tools.append(
        ToolRecord(
            turn=1,
            call_id=hostile,
            name=hostile,
            arguments=hostile,
            output=hostile,
            started_at=DAY,
            duration_ms=None,
            approval=hostile,
            status=hostile,
        )
    )
    panel.refresh(force=True)

    shown = "".join([*(one.value for one in panel.tabs.children), *panel.static().values()])
    assert "<img" not in shown.replace(panel.static()["text/plain"], "")


def test_the_widgets_are_loaded_with_the_first_panel():
    """Importing the module loads no ipywidgets; only a panel does."""
    check = "import sys, ipy_agent.notebook.panel; print('ipywidgets' in sys.modules)"

    assert subprocess.check_output([sys.executable, "-c", check], text=True).strip() == "False"


# the board


@pytest.fixture
def shown(monkeypatch):
    """What boards displayed: each display's last state, in order."""
    displays = {}

    class Handle:
        def display(self, bundle, *, raw):
            assert raw
            displays[self] = bundle

        update = display

    monkeypatch.setattr("ipy_agent.notebook.panel.DisplayHandle", Handle)
    monkeypatch.setattr(Board, "last", None)
    return displays


def test_a_board_shows_all_of_a_session_and_follows_it(shown):
    """It is static at any time, and brought up to date after a run of its own session."""
    recorder = Recorder()
    recorder.cells += [cell(1), cell(2)]
    recorder.turns += [turn(1), turn(2, cell=2)]
    Board(recorder).show(live=True)
    recorder.turns.append(turn(3, cell=2))
    Board.refresh(Recorder())
    [board] = shown.values()
    assert "<b>2</b> turns" in board["text/html"]

    Board.refresh(recorder)

    [board] = shown.values()
    assert set(board) == {"text/html", "text/plain"}
    assert "<b>3</b> turns" in board["text/html"]
    assert "<summary>cell runs</summary>" in board["text/html"]


@pytest.mark.parametrize("live", [True, False])
def test_only_the_last_board_follows(live, shown):
    """One that was shown before stays as it is, and so does one that cannot be updated."""
    recorder = Recorder()
    Board(recorder).show(live=True)
    Board(recorder).show(live=live)
    recorder.turns.append(turn(1))
    Board.refresh(recorder)

    told = ["<b>1</b> turn " in one["text/html"] for one in shown.values()]
    assert told == [False, live]
