"""The figure of the turns: what is drawn, and what is left alone."""

from __future__ import annotations

import io
import math
import subprocess
import sys

import pytest

from ipy_agent.errors import MissingExtra, UsageError
from ipy_agent.records import Recorder
from ipy_agent.tables.plot import plot


def test_the_parts_of_a_turn_stand_on_each_other(turn):
    """Connecting, the model, tools and approval add up to the turn; NA has no height."""
    recorder = Recorder()
    recorder.turns += [
        turn(1, connect_ms=100.0, latency_ms=1_100.0, tool_ms=500.0, approval_ms=2_000.0),
        turn(2, latency_ms=None),
        turn(3, status="running"),
    ]
    times, _ = plot(recorder).axes
    bars = {
        bars.get_label(): [(bar.get_y(), bar.get_height()) for bar in bars]
        for bars in times.containers
    }

    assert {name: drawn[0] for name, drawn in bars.items()} == {
        "connect": (0.0, 0.1),
        "model": (0.1, 1.0),
        "tools": (1.1, 0.5),
        "waiting for approval": (1.6, 2.0),
    }
    assert [drawn[1][1] for drawn in bars.values()] == [0.0] * 4
    assert {len(drawn) for drawn in bars.values()} == {2}


def test_the_cached_share_is_drawn_below(turn):
    """A turn that did not tell its share is a gap, not a zero."""
    recorder = Recorder()
    recorder.turns += [turn(1), turn(2, cached_tokens=None), turn(3, cached_tokens=0)]
    _, cache = plot(recorder).axes
    [line] = cache.lines

    assert list(line.get_xdata()) == [1, 2, 3]
    first, gap, last = line.get_ydata()
    assert (first, last) == (0.4, 0.0)
    assert math.isnan(gap)


def test_everything_has_a_name(turn):
    """Both axes are labelled, and a legend tells the parts apart, in grey by their hatching."""
    recorder = Recorder()
    recorder.turns.append(turn(1))
    figure = plot(recorder)
    times, cache = figure.axes
    [legend] = figure.legends

    assert all((times.get_title(), times.get_ylabel(), cache.get_title(), cache.get_xlabel()))
    assert len(legend.get_texts()) == 4
    assert len({bars.patches[0].get_hatch() for bars in times.containers[1:]}) == 3


@pytest.mark.parametrize("turns", [1, 150, 1_000])
def test_it_can_be_drawn_however_many_turns_there_are(turns, turn):
    """As a picture of a bounded size."""
    recorder = Recorder()
    recorder.turns += [turn(number) for number in range(1, turns + 1)]
    file = io.BytesIO()
    plot(recorder).savefig(file)

    assert file.getvalue().startswith(b"\x89PNG")
    assert len(file.getvalue()) < 200_000


def test_without_turns_there_is_nothing_to_draw():
    """One line says what to do."""
    with pytest.raises(UsageError, match="run an %%agent cell first"):
        plot(Recorder())


def test_without_matplotlib_one_line_names_the_extra(turn, monkeypatch):
    """It is an extra of ours."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    recorder = Recorder()
    recorder.turns.append(turn(1))

    with pytest.raises(MissingExtra, match=r"ipy-agent-live\[plot\]"):
        plot(recorder)


def test_no_pyplot_comes_with_it():
    """Importing loads no matplotlib; drawing loads no pyplot, whose state is the user's."""
    check = (
        "import sys, ipy_agent.tables.plot as p; print('matplotlib' in sys.modules)\n"
        "from ipy_agent.records import Recorder, TurnRecord; from datetime import datetime\n"
        "r = Recorder(); r.turns.append(TurnRecord(turn=1, cell=1, branch='main', endpoint='x', "
        "started_at=datetime.now(), status='completed'))\n"
        "p.plot(r); print('matplotlib.pyplot' in sys.modules)"
    )

    told = subprocess.check_output([sys.executable, "-c", check], text=True)
    assert told.split() == ["False", "False"]
