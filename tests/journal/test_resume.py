"""A session that goes on in another process: what is as it was, what is told, what never runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import pandas as pd
import pytest

import ipy_agent
from ipy_agent.agent.notes import Notes
from ipy_agent.agent.runs import Quiet
from ipy_agent.agent.tools import TOOLS
from ipy_agent.errors import UsageError
from ipy_agent.journal import folder as folders
from ipy_agent.journal.file import read
from ipy_agent.journal.folder import folder, kept, path_of
from ipy_agent.journal.names import mentioned
from ipy_agent.journal.past import Past
from ipy_agent.protocol.items import is_call, text, user
from ipy_agent.records import Recorder
from ipy_agent.sessions import Session
from ipy_agent.trace import Notice
from ipy_agent.transport.scripted import ScriptedTransport

SECONDS = 30
ACT = {"tool_calls": [{"name": "act"}]}


@pytest.fixture(autouse=True)
def act():
    """The process has one tool, which counts how often it ran."""
    before, ran = dict(TOOLS), []
    TOOLS.clear()

    @ipy_agent.tool
    def act() -> str:
        """Act."""
        ran.append(1)
        return f"acted {len(ran)}"

    yield ran
    TOOLS.clear()
    TOOLS.update(before)


@pytest.fixture
def new():
    """Return a function that makes a session which answers from a list."""
    made = []

    def make(script=(), **more):
        told = {"mode": "auto", "journal": True, **more}
        made.append(Session(transport=ScriptedTransport(script), **told))
        return made[-1]

    yield make
    for session in made:
        session.close()


class Notices(Quiet):
    """Keeps the lasting notices that it is shown."""

    def __init__(self):
        self.told = []

    def show(self, event):
        if isinstance(event, Notice) and event.lasting:
            self.told.append(event.text)


def said(session, branch="main"):
    return [text(item) for item in session._branches.tree.said(branch)]


def ended(new, *script):
    """Return a session that did much, and is closed."""
    session = new([{"text": "one"}, ACT, {"text": "two"}, *script])
    session.run("first", cell="a")
    session.run("second", cell="b")
    session.fork("idea")
    session.run("third", cell="c", branch="idea")
    session.fork("early", at=1)
    session.run("first, better", cell="a")
    session.undo()
    session.branch = "idea"
    session.close()
    return session


def test_a_session_goes_on_as_it_was(new, act):
    """Its conversation on each branch, its tree and its tables; nothing ran again."""
    before = ended(new)
    ran, session = len(act), new([{"text": "next"}])
    found = session.resume(before.id.removeprefix("ipy-agent-")[:5])

    assert (found.session, session.id) == (before.id, before.id)
    assert (found.aborted, found.damaged) == ((), None)
    assert session.tree == before.tree
    assert session.branch == "idea"
    for name in before.branches:
        assert said(session, name) == said(before, name)
    for table in ("turns", "cells", "tools", "messages"):
        pd.testing.assert_frame_equal(getattr(session, table), getattr(before, table))
    assert len(act) == ran


def test_whatever_a_file_begins_with_is_a_conversation(new):
    """Cut off behind any fact, each call has one output, and no run is under way any more."""
    facts, _ = read(path_of(ended(new, ACT, {"text": "and three"}).id))

    for count in range(len(facts) + 1):
        records = Recorder()
        past = Past(facts[:count], records)
        past.settle(Notes())
        assert past.done == count
        for run in past.runs:
            items = list(run.said)
            called = [item["call_id"] for item in items if is_call(item)]
            outputs = [item["call_id"] for item in items if item["type"] == "function_call_output"]
            assert called == outputs
        assert "running" not in {row.status for row in (*records.turns, *records.cells)}
    assert count > 30


def test_the_first_run_sends_all_and_the_next_is_short(new):
    """A connection holds nothing of a session that another one said."""
    before = ended(new)
    session = new([{"text": "next"}, {"text": "more"}])
    session.resume(before.id)
    session.run("go on", cell="d")
    session.run("and on", cell="e")

    turns = session.turns.tail(2)
    assert list(turns["sent_items"]) == [9, 1]
    assert list(turns["held_items"]) == [0, 10]


def test_what_was_said_can_be_changed_afterwards(new):
    """Run again, taken back, forked from a turn: as before, and kept as before."""
    before = ended(new)
    session = new()
    session.resume(before.id)
    session.run("third, better", cell="c")
    assert session.undo().prompt == "third, better"
    session.fork("again", at=3)
    session.branch = "again"
    session.run("new", cell="z")
    session.close()

    last = new()
    last.resume(before.id)
    assert last.tree == session.tree
    assert said(last, "again") == said(session, "again")
    assert len(kept()) == 1


def test_without_the_setting_nothing_is_kept(new):
    """By default a session of a program leaves no file; switched off, one leaves no more."""
    new(journal=False).run("a")
    assert not Session(transport=ScriptedTransport()).settings.journal
    assert kept() == []

    session = new()
    session.run("a")
    session.journal = False
    session.run("b")
    assert [one.cells for one in kept()] == [1]
    with pytest.raises(UsageError, match="set it before the first cell"):
        session.journal = True


def test_a_session_that_said_nothing_leaves_no_file(new):
    """The file comes with the first run."""
    new().close()

    assert not folder().exists()


def test_the_sessions_are_listed_the_latest_first(new):
    """With what tells them apart."""
    ended(new)
    session = new()
    session.run("something else")
    latest, first = kept()

    assert (latest.session, latest.prompt, latest.held) == (session.id, "something else", True)
    assert (first.cells, first.turns, first.prompt, first.held) == (4, 5, "first", False)
    assert (first.status, first.sound) == ("completed", True)


def test_another_kernel_has_it(new):
    """The second one is told, and may go on with a copy; the first one never notices."""
    first = new([{"text": "1"}, {"text": "2"}])
    first.run("one", cell="a")
    second = new([{"text": "3"}])
    with pytest.raises(UsageError, match="is open in another kernel"):
        second.resume(first.id)
    found = second.resume(first.id, copy=True)
    second.run("three", cell="b")
    first.run("two", cell="b")

    assert found.session != first.id
    assert said(first) == ["one", "1", "two", "2"]
    assert said(second) == ["one", "1", "three", "3"]
    assert sorted(one.cells for one in kept()) == [2, 2]


@pytest.mark.parametrize("wanted", ["", "nobody", "ipy-agent-"])
def test_a_session_that_is_not_one_is_told(new, wanted):
    """None, or more than one."""
    for _ in range(2):
        new().run("a")

    with pytest.raises(UsageError, match="see %agent sessions"):
        new().resume(wanted)


def test_a_session_with_runs_is_not_replaced(new):
    """What was said would be lost."""
    before = ended(new)
    session = new()
    session.run("a")

    with pytest.raises(UsageError, match="runs of its own"):
        session.resume(before.id)
    assert said(session) == ["a", "a"]


def test_a_damaged_session_goes_on_with_its_sound_part(new):
    """The file is set aside under another name, and what could be read goes on."""
    before = new()
    for number in range(60):
        before.run(f"prompt {number} {'x' * 200}")
    before.close()
    path = path_of(before.id)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    session = new()
    found = session.resume(before.id)
    count = len(session.cells)
    session.run("go on")
    session.close()

    assert 0 < count < 60
    assert found.damaged.name == f"{before.id}.damaged-1"
    assert found.damaged.stat().st_size == len(whole) * 2 // 3
    again = new()
    assert again.resume(before.id).damaged is None
    assert said(again) == said(session)


def test_a_session_of_which_nothing_is_left_begins_anew(new):
    """It is not fatal."""
    before = ended(new)
    path_of(before.id).write_bytes(b"nothing of the kind")
    session = new()
    found = session.resume(before.id)

    assert found.damaged is not None
    assert session.run("a").text == "a"


def test_where_nothing_can_be_kept_no_tool_with_side_effects_runs(new, state, act):
    """The model is told, the user once, with the way on; the session goes on."""
    state.parent.mkdir(exist_ok=True)
    state.write_text("a file where the folder should be")
    session, seen = new([ACT, {"text": "1"}, ACT, {"text": "2"}, ACT, {"text": "3"}]), Notices()
    session.run("one", front=seen)
    session.run("two", front=seen)

    assert act == []
    assert list(session.tools["status"]) == ["refused", "refused"]
    assert "cannot be written" in session.tools["output"][0]
    (told,) = seen.told
    assert "%config AgentMagics.journal = False" in told
    session.journal = False
    assert session.run("three").text == "3"
    assert act == [1]


def test_old_sessions_go(new, monkeypatch):
    """When another one begins: what was not touched for 90 days, and what is too much."""
    old, big, small = new(), new(), new()
    for session in (old, big, small):
        session.run("x" * (20_000 if session is big else 10))
        session.close()
    now = path_of(small.id).stat().st_mtime
    os.utime(path_of(old.id), (now - 91 * 86_400,) * 2)
    os.utime(path_of(big.id), (now - 60,) * 2)
    folders.sweep(path_of(small.id))
    assert {one.session for one in kept()} == {big.id, small.id}

    monkeypatch.setattr(folders, "ROOM", 30_000)
    folders.sweep(path_of(small.id))
    assert {one.session for one in kept()} == {small.id}


def test_what_is_being_written_does_not_go(new):
    """However old it looks."""
    session = new()
    session.run("a")
    os.utime(path_of(session.id), (0, 0))
    folders.sweep(path_of("another"))

    assert [one.session for one in kept()] == [session.id]


def test_the_variables_that_a_conversation_talks_about():
    """Told of by themselves, handed over, or bound by code of the model's."""
    code = "import numpy as np\ntotal = df.sum()\nfor i in range(3):\n    a, b = i, i\n"
    code += "def f():\n    y = 1"
    call = {"type": "function_call", "call_id": "c", "name": "python"}
    told = "Variables in the notebook:\n"
    items = [
        user("hi", before=f"{told}new: x (list of 2), pd (module), old (int)\n\n"),
        user("What is in `df`?", before="df: DataFrame 3×2\n  a: int64; 1 to 2\n\n"),
        {**call, "arguments": json.dumps({"code": code})},
        {**call, "arguments": '{"code": "broken ("}'},
        {**call, "arguments": "no JSON"},
        user("go", before=f"{told}gone: old\n\n"),
    ]

    assert mentioned(items) == {"x", "pd", "df", "np", "total", "i", "a", "b", "f"}


KILLED = """
import sys, time
import ipy_agent
from ipy_agent.records import Recorder
from ipy_agent.sessions import Session
from ipy_agent.transport.scripted import ScriptedTransport

log = open(sys.argv[2], "a", buffering=1)

@ipy_agent.tool
def act(word: str) -> str:
    "Act."
    log.write(word + "\\n")
    return "did " + word

session = Session(transport=ScriptedTransport(), mode="auto", journal=True)
if sys.argv[1] != "new":
    session.resume(sys.argv[1])
print(session.id, flush=True)
way = session._connections.to(session.endpoint, "auto")
from ipy_agent.protocol.script import entries
number = len(session.cells)
while True:
    number += 1
    call = {"tool_calls": [{"name": "act", "arguments": {"word": f"{number}"}}]}
    way._script[:] = entries([call, {"text": f"end {number}"}])
    session.run(f"prompt {number}", cell=f"c{number % 7}")
    print(number, flush=True)
"""


@pytest.mark.long
def test_a_session_survives_kills(new, tmp_path, amount, chance, figure):
    """Killed at any moment and resumed, again and again.

    What was seen is there, each call has one output, no tool ran twice, and what was cut off is
    told as aborted.
    """
    kills, log, name, cut = amount(3, 250), tmp_path / "log", "new", 0
    for _ in range(kills):
        command = [sys.executable, "-c", KILLED, name, str(log)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        name = process.stdout.readline().strip()
        shown = 0
        for _ in range(chance.randrange(1, 20)):
            shown = int(process.stdout.readline())
        killer = threading.Timer(chance.random() / 50, process.send_signal, [signal.SIGKILL])
        killer.start()
        for line in process.stdout:
            shown = int(line)
        process.wait(SECONDS)
        process.stdout.close()
        killer.join()
        session = new()
        found = session.resume(name, copy=True)
        cut += len(found.aborted)

        ran = log.read_text().split()
        assert len(ran) == len(set(ran))
        assert len(session.cells) >= shown
        assert set(session.cells["status"][:shown]) <= {"completed", "aborted"}
        for run in session._branches.tree.runs:
            items = list(run.said)
            called = [item["call_id"] for item in items if is_call(item)]
            outputs = [item["call_id"] for item in items if item["type"] == "function_call_output"]
            assert called == outputs
        assert session.run("still there?").text == "still there?"
        session.close()
    figure(
        f"{kills} kills of a session, {cut} runs cut off, {len(ran):,} tools run, "
        f"{len(ran) - len(set(ran))} twice"
    )
