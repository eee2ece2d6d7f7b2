"""The bench: the same loop in each mode, and an honest word where a mode is not there."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
from datetime import UTC, datetime

import pandas as pd
import pytest

from ipy_agent import bench
from ipy_agent.agent.tools import TOOLS, tool
from ipy_agent.bench import MODES, course
from ipy_agent.bench.course import Course, Lacking
from ipy_agent.bench.outcome import Outcome
from ipy_agent.endpoints import ENDPOINTS, Endpoint
from ipy_agent.errors import (
    AgentError,
    ConnectionFailed,
    Interrupted,
    MissingExtra,
    ModelUnavailable,
    UsageError,
)
from ipy_agent.records import Recorder, ToolRecord, TurnRecord
from ipy_agent.server import weights
from ipy_agent.tables import comparison
from ipy_agent.tables.comparison import Loop
from ipy_agent.transport import local as servers

LOCAL = ENDPOINTS["local"]
NOW = datetime(2026, 11, 27, tzinfo=UTC)


def pages(count):
    """A script of a model that reads on and on."""
    return [
        {"tool_calls": [{"name": "page", "arguments": {"number": number}}]}
        for number in range(100, 100 + count)
    ]


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """The command that starts a server of the bench's own, without a model."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    script = tmp_path / "script.json"
    script.write_text(json.dumps(pages(99)), "utf-8")
    command = [sys.executable, "-m", "ipy_agent", "serve", "--engine", "scripted"]
    yield [*command, "--script", str(script)]
    for server in servers._started:
        server.kill()
        server.wait()
    servers._started.clear()


def row(turn, **more):
    """A turn that ended."""
    told = {"cell": 1, "branch": "main", "endpoint": "x", "started_at": NOW, "status": "completed"}
    return TurnRecord(**{"turn": turn, "latency_ms": 100.0, "sent_bytes": 600, **told, **more})


def looped(mode, number, seconds, *rows):
    """A loop that was measured."""
    return Loop(mode=mode, round=number, turns=rows or (row(1),), elapsed_ms=seconds * 1_000)


def test_a_local_server_has_every_mode(serve):
    """Each loop has all its turns, goes the way of its mode, and sends what its mode sends."""
    outcome = bench.run(LOCAL, turns=4, rounds=2, chars=500, serve=serve)
    turns = outcome.turns

    assert outcome.notes == []
    assert turns.groupby(["mode", "round"]).size().to_dict() == {
        (mode, number): 4 for mode in MODES for number in (1, 2)
    }
    assert {mode: set(own) for mode, own in turns.groupby("mode")["transport"]} == {
        mode: {how.way} for mode, how in MODES.items()
    }
    goes_on = turns[turns["turn"] > 1].groupby("mode")["previous_response_id"].count()
    assert goes_on.to_dict() == {"http": 0, "http-cache": 0, "http-stored": 6, "websocket": 6}
    sent = turns[turns["round"] == 1].pivot_table("sent_bytes", "turn", "mode").astype(int)
    for mode in ("http", "http-cache"):
        assert (sent[mode].diff().dropna() > 500).all()
    for mode in ("http-stored", "websocket"):
        assert sent[mode][2:].max() - sent[mode][2:].min() <= 2
    assert (sent["websocket"] < 1_500).all()


def test_each_round_begins_with_another_mode(serve):
    """So no mode always meets the machine as the one before it left it."""
    told = []
    bench.run(LOCAL, turns=1, rounds=2, modes=["http", "websocket"], serve=serve, tell=told.append)

    ended = [line.partition(":")[0] for line in told if " s" in line and "turns in" in line]
    assert ended == [
        "round 1 of 2, http",
        "round 1 of 2, websocket",
        "round 2 of 2, websocket",
        "round 2 of 2, http",
    ]


def test_no_server_outlives_the_bench(serve):
    """There is one a cache, they are not the user's own, and they are gone at the end."""
    assert bench.run(LOCAL, turns=1, serve=serve).turns["status"].eq("completed").all()

    assert servers._started == []


def test_a_server_that_does_not_start_is_one_line(serve):
    """What it said last is in the line, and nothing is left of it."""
    with pytest.raises(ConnectionFailed, match="the local server did not start") as failed:
        bench.run(LOCAL, turns=1, serve=[*serve, "--fly"])

    assert len(failed.value.line.splitlines()) == 1
    assert all(server.poll() is not None for server in servers._started)


def test_the_tool_is_the_benchs_own(serve):
    """The user's tools are as they were, one of the same name too, and none of them is called."""
    called = []

    @tool
    def page(number: int) -> str:
        """Turn a page."""
        called.append(number)
        return "mine"

    before = dict(TOOLS)
    try:
        bench.run(LOCAL, turns=2, modes=["websocket"], serve=serve)
        assert before == TOOLS
        assert called == []
    finally:
        del TOOLS["page"]


def test_what_an_endpoint_has_not_is_a_row_with_a_reason(served):
    """The cache of somebody else's server cannot be switched off, nor is it known to store."""
    outcome = bench.run(served(pages(8)), turns=3, rounds=1)
    first = outcome.turns.groupby("mode", sort=False).first()

    assert list(first.index) == list(MODES)
    assert first["reason"].notna().to_dict() == {
        "http": True,
        "http-cache": False,
        "http-stored": True,
        "websocket": False,
    }
    assert "cannot be switched off" in first["reason"]["http"]
    absent = outcome.turns.set_index("mode").loc["http"].drop("reason")
    assert absent.isna().all()
    assert outcome.summary.set_index("mode")["loop_ms"].isna().to_dict()["http-stored"]
    assert "http: NA, the prompt cache of " in outcome.text()
    assert "<NA>" not in outcome.text() + outcome.html()


def test_an_endpoint_that_stores_has_that_mode(served):
    """As soon as its row in the table of endpoints says so."""
    endpoint = dataclasses.replace(served(pages(4)), stores=True)
    turns = bench.run(endpoint, turns=3, rounds=1, modes=["http-stored"]).turns

    assert turns["held_items"].tolist() == [0, 2, 4]
    assert set(turns["transport"]) == {"http"}


@pytest.mark.parametrize("status", [426, 404])
def test_http_is_not_counted_as_a_websocket(peer, status):
    """An endpoint that refuses the upgrade has no such mode, and no turn goes another way."""
    there = peer(status, status)
    outcome = bench.run(there.endpoint(), turns=2, rounds=2, modes=["websocket"])

    [reason] = outcome.turns["reason"]
    assert reason == f"127.0.0.1:{there.port} has no WebSocket (HTTP {status})"
    assert outcome.turns["turn"].isna().all()
    assert len(there.seen) == 1


def test_an_endpoint_without_websocket_is_not_asked_for_one():
    """Its row in the table of endpoints is believed."""
    endpoint = dataclasses.replace(Endpoint.named("http://127.0.0.1:9/v1"), websocket=False)

    [reason] = bench.run(endpoint, modes=["websocket"]).turns["reason"]
    assert reason == "127.0.0.1:9 has no WebSocket"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"held_items": None}, "does not keep the responses"),
        ({"held_items": 0}, "does not keep the responses"),
        ({"transport": "websocket"}, "was not reached by http"),
    ],
)
def test_a_mode_is_what_its_name_says(changes, said):
    """Rows that tell of another way are not counted."""
    records = Recorder()
    records.turns += [row(1, transport="http"), row(2, **{"transport": "http", **changes})]
    records.tools += [
        ToolRecord(
            turn=turn,
            call_id=f"c{turn}",
            name="page",
            arguments="{}",
            output="",
            started_at=NOW,
            duration_ms=1.0,
            approval="auto",
            status="completed",
        )
        for turn in (1, 2)
    ]

    with pytest.raises(Lacking, match=said):
        course._check(Course(turns=2, chars=10), MODES["http-stored"], LOCAL, records)


def test_an_endpoint_that_is_not_there_is_one_line(unused_port):
    """The error is typed, and it comes with the first loop."""
    with pytest.raises(ConnectionFailed) as failed:
        bench.run(Endpoint.named(f"http://127.0.0.1:{unused_port}/v1"), modes=["http-cache"])

    assert len(failed.value.line.splitlines()) == 1


@pytest.mark.parametrize(("script", "called"), [(pages(2), 0), (pages(3), 1), (pages(1) * 9, 4)])
def test_a_model_that_calls_no_tool_is_told(served, script, called):
    """Or stops to, or makes the same call over and over: at first this ends the bench."""
    with pytest.raises(AgentError, match=f"called the tool in {called} of 6 turns: take a model"):
        bench.run(served(script), turns=6)


def test_a_model_that_calls_none_at_all_is_told_by_one_turn(served):
    """No loop was begun by then."""
    told = []
    with pytest.raises(AgentError, match=r"called the tool in 0 of 1 turns: .* \(-m MODEL\)"):
        bench.run(served([{"text": "no"}]), tell=told.append)

    assert told[1:] == ["warm-up, http-cache …"]


def test_a_later_loop_that_fails_is_a_row(served):
    """What was measured before it stays, and so does what comes after it."""
    outcome = bench.run(served(pages(4)), turns=3, rounds=2, modes=["websocket"])
    turns = outcome.turns

    assert turns["round"].tolist() == [1, 1, 1, 2]
    assert turns["reason"].isna().tolist() == [True, True, True, False]
    assert outcome.summary["rounds"].tolist() == [1]
    assert "websocket, round 2: NA, scripted at " in outcome.text()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"turns": 0}, "turns must be a whole number above 0"),
        ({"rounds": -1}, "rounds must be"),
        ({"chars": 1.5}, "chars must be"),
        ({"turns": True}, "turns must be"),
        ({"modes": ["pigeon"]}, "'pigeon' is no mode: there are http, http-cache"),
        ({"modes": []}, "nothing is no mode"),
    ],
)
def test_what_cannot_be_measured_is_refused(wrong, said):
    """Before anything is started or sent."""
    with pytest.raises(UsageError, match=said):
        bench.run(LOCAL, **wrong, serve=["/no/such/command"])


def interrupting(at):
    """Return what is told what goes on, and interrupts where a loop begins for the n-th time."""
    begun = []

    def tell(line):
        if line.startswith("round") and line.endswith("…"):
            begun.append(line)
            if len(begun) == at:
                raise KeyboardInterrupt

    return tell


def test_an_interrupt_leaves_what_was_measured(serve):
    """Loops that were complete are kept, and no server is."""
    outcome = bench.run(LOCAL, turns=2, rounds=3, serve=serve, tell=interrupting(3))

    assert outcome.turns["mode"].tolist() == ["http"] * 2 + ["http-cache"] * 2
    assert servers._started == []


def test_an_interrupt_before_the_first_loop_ends_it(serve):
    """There is nothing to show, and no server is left either."""
    with pytest.raises(Interrupted):
        bench.run(LOCAL, turns=2, serve=serve, tell=interrupting(1))

    assert servers._started == []


@pytest.mark.parametrize("chars", [1, 60, 4_000])
def test_a_page_has_the_size_that_was_asked_for(chars):
    """It says which one is next, whatever the model asked for."""
    page = course._page(chars)
    first, second = page(1), page(1)

    assert first.endswith("Call page with number 2.")
    assert second.endswith("Call page with number 3.")
    assert len(first) == len(second) == max(chars, 25)


# frames


def test_columns_do_not_depend_on_what_is_in_them():
    """Empty, or with an absent mode alone, a frame has the columns and dtypes of any other."""
    loops = [looped("http", 1, 2.0), Loop(mode="websocket", reason="none")]

    for made in (comparison.turns, comparison.summary):
        dtypes = made(loops).dtypes
        pd.testing.assert_series_equal(made([]).dtypes, dtypes)
        pd.testing.assert_series_equal(made(loops[1:]).dtypes, dtypes)
    assert list(comparison.turns([]))[:3] == ["mode", "round", "turn"]


def test_a_ratio_is_of_loops_of_one_round():
    """Of several rounds it is the median; a round without the other loop does not count."""
    loops = [
        looped("http", 1, 10.0),
        looped("websocket", 1, 1.0),
        looped("http", 2, 40.0),
        looped("websocket", 2, 8.0),
        looped("http", 3, 20.0),
        looped("websocket", 3, 6.0),
        looped("websocket", 4, 900.0),
    ]
    summary = comparison.summary(loops).set_index("mode")

    assert summary["of_http"].to_dict() == {"http": 1.0, "websocket": 0.2}
    assert summary["of_http_cache"].isna().all()


def test_medians_have_quartiles_unless_there_is_one_value():
    """The cached share is that of all tokens of which it was told."""
    rows = [
        row(turn, latency_ms=ms, input_tokens=100, cached_tokens=cached)
        for turn, (ms, cached) in enumerate([(100.0, 0), (200.0, 50), (900.0, None)], 1)
    ]
    [summary] = comparison.summary([looped("http", 1, 5.0, *rows)]).to_dict("records")

    told = [summary[f"latency_ms{end}"] for end in ("", "_low", "_high")]
    assert told == [200.0, 150.0, 550.0]
    assert summary["loop_ms"] == 5_000
    assert pd.isna(summary["loop_ms_low"])
    assert summary["hit_rate"] == 0.25


def test_conversations_that_differ_are_told():
    """Modes whose loops did not read the same are not compared in silence."""
    loops = [looped("http", 1, 1.0, row(1, input_tokens=90)), looped("websocket", 1, 1.0)]
    same, differing = (
        Outcome([*loops, looped("websocket", 2, 1.0, row(1, input_tokens=last))], THREE, LOCAL)
        for last in (90, 1_092)
    )

    assert same.notes == []
    assert differing.notes == [
        "the conversations are not the same to the token: the last turn read 90 to 1,092"
    ]


THREE = Course(turns=3, chars=60, model="m")


def test_figures_stand_beside_what_they_were_measured_on():
    """Model, endpoint, machine, versions and the date are in one line, with the frame too."""
    outcome = Outcome([looped("http", 1, 1.0)], THREE, LOCAL)

    assert outcome.facts.startswith("m at local · 3 turns, tool outputs of 60 characters · ")
    assert " cores, " in outcome.facts
    assert "ipy-agent-live " in outcome.facts
    assert outcome.facts.endswith(" UTC")
    assert outcome.turns.attrs == {"facts": outcome.facts}
    assert outcome.facts in outcome.text()
    assert outcome.facts in outcome.html()


def test_what_an_endpoint_says_is_no_html():
    """A reason may hold words of an endpoint, and a model its own name."""
    loops = [Loop(mode="http", reason="<script>x</script>"), looped("websocket", 1, 1.0)]
    shown = Outcome(loops, THREE._replace(model="<img src=x>"), LOCAL).html()

    assert "<script" not in shown
    assert "<img" not in shown


# the picture


def test_a_mode_that_is_not_there_is_not_drawn():
    """The others have a line a panel, its legend, and looks that differ without colour."""
    rows = [row(1, ttft_ms=50.0), row(2, ttft_ms=None, latency_ms=300.0)]
    loops = [Loop(mode="http", reason="none"), looped("websocket", 1, 1.0, *rows)]
    loops += [looped("http-cache", 1, 1.0, *rows), looped("websocket", 2, 1.0, row(1))]
    figure = Outcome(loops, THREE, LOCAL).plot()
    times, first, sent = figure.axes

    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "http-cache",
        "websocket",
    ]
    assert [list(line.get_ydata()) for line in times.lines] == [[0.1, 0.3], [0.1, 0.3]]
    assert [list(line.get_xdata()) for line in first.lines] == [[1], [1]]
    assert len({(line.get_linestyle(), line.get_marker()) for line in sent.lines}) == 2
    assert all(axes.get_title() and axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    assert "m at local" in figure.get_supxlabel()


def test_it_can_be_drawn():
    """As a picture of a bounded size."""
    loops = [
        looped(mode, number, 1.0, *(row(turn, ttft_ms=turn * 1.0) for turn in range(1, 201)))
        for mode in MODES
        for number in (1, 2, 3)
    ]
    file = io.BytesIO()
    Outcome(loops, THREE, LOCAL).plot().savefig(file)

    assert file.getvalue().startswith(b"\x89PNG")
    assert len(file.getvalue()) < 200_000


def test_where_nothing_was_measured_nothing_is_drawn():
    """One line says so."""
    with pytest.raises(UsageError, match="no mode was measured"):
        Outcome([Loop(mode="http", reason="none")], THREE, LOCAL).plot()


def test_without_matplotlib_the_rest_is_written(monkeypatch, tmp_path):
    """The picture alone needs the extra, and comes last."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    with pytest.raises(MissingExtra, match=r"ipy-agent-live\[plot\]"):
        Outcome([looped("http", 1, 1.0)], THREE, LOCAL).write(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["summary.csv", "summary.txt", "turns.csv"]


@pytest.mark.model
def test_a_real_model_has_every_mode(figure, monkeypatch, tmp_path):
    """The smallest one calls its tool in every turn, and caches where there is a cache."""
    try:
        weights.path("smollm2-135m-instruct")
    except ModelUnavailable as missing:
        pytest.skip(str(missing))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    outcome = bench.run(LOCAL, model="smollm2-135m-instruct", turns=2)
    turns = outcome.turns

    figure(outcome.text())
    assert turns.groupby("mode").size().to_dict() == dict.fromkeys(MODES, 2)
    cached = turns.pivot_table("cached_tokens", "mode", "turn")
    assert (cached[1] < 10).all()
    assert (cached.loc["http"] == 0).all()
    assert (cached.drop("http")[2] > 200).all()
    assert servers._started == []
