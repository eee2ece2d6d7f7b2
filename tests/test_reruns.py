"""What a session sends when cells run again, and what becomes of what they said."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import ipy_agent
from ipy_agent.agent.runs import Quiet
from ipy_agent.agent.tools import TOOLS
from ipy_agent.errors import ResponseFailed, UsageError
from ipy_agent.journal.file import read
from ipy_agent.journal.folder import path_of
from ipy_agent.journal.past import Past
from ipy_agent.notebook.context import told
from ipy_agent.protocol.events import ItemDone
from ipy_agent.protocol.items import is_call, text
from ipy_agent.protocol.script import entries
from ipy_agent.records import Recorder
from ipy_agent.sessions import Session
from ipy_agent.trace import Notice, ToolEnded
from ipy_agent.transport.scripted import ScriptedTransport

ACT = {"tool_calls": [{"name": "act"}]}
FAIL = {"error": {"status": 500}}


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
        made.append(Session(transport=ScriptedTransport(script), mode="auto", **more))
        return made[-1]

    yield make
    for session in made:
        session.close()


class Seen(Quiet):
    """Keeps what it is shown."""

    def __init__(self):
        self.events = []

    def show(self, event):
        self.events.append(event)

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


def asked(session):
    """Return what the last request asked, as words."""
    way = session._connections.to(session.endpoint, "auto")
    return [text(item) for item in way.requests[-1].input]


def test_a_cell_that_runs_again_sends_what_came_before_it(new):
    """And goes on by the id of what came before: nothing is sent again."""
    session = new()
    for word in ("one", "two", "three"):
        session.run(word, cell=word)
    session.run("two, better", cell="two")

    assert asked(session) == ["one", "one", "two, better"]
    row = session.turns.iloc[-1]
    assert row["previous_response_id"] == session.turns["response_id"][0]
    assert (row["sent_items"], row["held_items"]) == (1, 2)


def test_cells_tell_what_became_of_what_they_said(new):
    """A column says it; another which run each followed, another which cell it was."""
    session = new()
    for word in ("one", "two", "three"):
        session.run(word, cell=word)
    session.run("two", cell="two")
    session.run("aside")
    cells = session.cells

    assert list(cells["standing"]) == ["live", "replaced", "stale", "live", "live"]
    assert cells["follows"].to_numpy(dtype=float, na_value=0).tolist() == [0, 1, 2, 1, 4]
    assert cells["cell_id"].fillna("none").tolist() == ["one", "two", "three", "two", "none"]


def test_a_run_that_said_nothing_replaces_nothing(new):
    """It never got an answer: what its cell said before stands, and has no standing itself."""
    session = new([{"text": "1"}, {"text": "2"}, FAIL])
    session.run("one", cell="a")
    session.run("two", cell="b")
    with pytest.raises(ResponseFailed):
        session.run("one", cell="a")
    session.run("three", cell="c")

    assert asked(session) == ["one", "1", "two", "2", "three"]
    assert session.cells["standing"].fillna("nothing").tolist() == [
        "live",
        "live",
        "nothing",
        "live",
    ]


def test_a_run_that_failed_after_it_acted_keeps_its_place(new):
    """The tool ran: the conversation has to know."""
    session = new([{"text": "1"}, ACT, FAIL])
    session.run("one", cell="a")
    with pytest.raises(ResponseFailed):
        session.run("two", cell="b")
    session.run("three", cell="c")

    assert asked(session) == ["one", "1", "two", "{}", "acted 1", "three"]
    assert list(session.cells["standing"]) == ["live", "live", "live"]


def test_a_cell_may_append(new):
    """What it said before stays."""
    session = new()
    session.run("one", cell="a")
    session.run("two", cell="a", append=True)

    assert asked(session) == ["one", "one", "two"]


def test_undo_takes_the_last_run_back(new):
    """The next run does not follow it; its rows stay."""
    session = new()
    session.run("one", cell="a")
    session.run("two", cell="b")
    run = session.undo()
    session.run("three", cell="c")

    assert (run.number, run.prompt) == (2, "two")
    assert asked(session) == ["one", "one", "three"]
    assert list(session.cells["standing"]) == ["live", "undone", "live"]


def test_there_has_to_be_something_to_undo(new):
    """One clear line."""
    with pytest.raises(UsageError, match="nothing ran on branch 'main'"):
        new().undo()


def test_a_cell_whose_past_was_reset_says_so_once(new):
    """It goes on from where the new conversation ends."""
    session, seen = new(), Seen()
    session.run("one", cell="a")
    session.run("two", cell="b")
    session.reset()
    session.run("new", cell="c")
    for _ in range(2):
        session.run("two", cell="b", front=seen)

    assert asked(session) == ["new", "new", "two"]
    told = [event for event in seen.of(Notice) if "was reset" in event.text]
    assert [event.lasting for event in told] == [True]
    assert list(session.cells["standing"][:2]) == ["reset", "reset"]


def test_a_branch_is_a_fork_of_what_is_live(new):
    """A cell on a new branch replaces nothing on the one that it left."""
    session = new()
    session.run("one", cell="a")
    session.run("two", cell="b")
    session.run("two, other", cell="b", branch="idea")
    assert asked(session) == ["one", "one", "two, other"]

    session.run("three", cell="c")
    assert asked(session) == ["one", "one", "two", "two", "three"]


def test_a_branch_that_is_not_there_cannot_be_switched_to(new):
    """A typing mistake begins nothing."""
    session = new()
    with pytest.raises(UsageError, match="there is no branch 'idae': there are main"):
        session.branch = "idae"


def test_the_tree_is_a_picture(new):
    """Of all runs, with the branches at their ends."""
    session = new()
    session.run("one", cell="a")
    session.run("one, better", cell="a")

    assert session.tree.splitlines() == ["  ├─1 one  replaced", "  2 one, better  <- main *"]


# stored answers


def test_a_question_that_did_not_change_is_answered_from_store(new, act):
    """Nothing is sent, no tool runs, and what is shown says so."""
    session, seen = new([ACT, {"text": "done"}], replay=True), Seen()
    first = session.run("go", cell="a")
    again = session.run("go", cell="a", front=seen)

    assert (first.text, again.text) == ("done", "done")
    assert (len(session.turns), len(session.cells), len(act)) == (2, 1, 1)
    assert len(again.turns) == 2
    assert "stored answer of run 1" in seen.of(Notice)[0].text
    assert seen.of(Notice)[0].lasting
    assert [event.output for event in seen.of(ToolEnded)] == ["acted 1"]
    assert text(seen.of(ItemDone)[-1].item) == "done"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"prompt": "go on"}, id="prompt"),
        pytest.param({"model": "other"}, id="model"),
        pytest.param({"images": [b"GIF89a"]}, id="picture"),
        pytest.param({"schema": list[int]}, id="schema"),
        pytest.param({"append": True}, id="append"),
    ],
)
def test_a_question_that_changed_is_asked(new, change):
    """Whatever is part of it."""
    session = new([{"text": "1"}, {"text": '{"value": [1]}'}], endpoint="openai", replay=True)
    session.run("go", cell="a", images=[])
    session.run(change.pop("prompt", "go"), cell="a", **change)

    assert len(session.turns) == 2


def test_what_came_before_is_part_of_the_question(new):
    """A cell behind one that ran again is asked anew; one before it is not."""
    session = new(replay=True)
    for word in ("one", "two", "three"):
        session.run(word, cell=word[:3])
    session.run("one", cell="one")
    session.run("two, better", cell="two")
    session.run("three", cell="thr")

    assert len(session.turns) == 5
    assert asked(session) == ["one", "one", "two, better", "two, better", "three"]


def test_a_run_that_failed_has_no_answer_to_show(new):
    """It is asked again."""
    session = new([ACT, FAIL, {"text": "2"}], replay=True)
    with pytest.raises(ResponseFailed):
        session.run("go", cell="a")

    assert session.run("go", cell="a").text == "2"


def test_a_run_that_was_refused_something_is_asked_again(new, act):
    """What was said then is of a no that may be a yes by now."""
    session = new([ACT, {"text": "could not"}, ACT, {"text": "did"}], replay=True)
    session.mode = "ask"
    assert session.run("go", cell="a").text == "could not"
    session.allow("act")

    assert session.run("go", cell="a").text == "did"
    assert act == [1]


def test_a_stored_value_is_made_anew(new):
    """What its first reader did to it stays there, and the class may have been defined again."""
    session = new([{"text": '{"value": [1]}'}], replay=True)
    session.run("go", cell="a", schema=list[int]).value.append(2)

    assert session.run("go", cell="a", schema=list[int]).value == [1]


def test_a_stored_call_is_shown_with_its_own_output(peer):
    """An endpoint may give the calls of two responses one id."""
    call = {"type": "function_call", "call_id": "c", "name": "act", "arguments": "{}"}

    def ended(name, *output):
        return [{"type": "response.completed", "response": {"id": name, "output": output}}]

    other = peer([ended("r1", call), ended("r2"), ended("r3", call), ended("r4")])
    session, seen = Session(other.endpoint(), mode="auto", replay=True), Seen()
    session.run("one", cell="a")
    session.run("two", cell="b")
    session.run("one", cell="a", front=seen)
    session.close()

    assert [event.output for event in seen.of(ToolEnded)] == ["acted 1"]


def test_what_a_tool_bound_is_told_with_the_next_run(new):
    """Nobody else may have told the model of it."""
    names = {"__name__": "__main__"}
    session = new([ACT, {"text": "done"}], context="delta")

    def background(before, how):
        return told(names, {}, before, how)

    class Binds(Seen):
        def show(self, event):
            if isinstance(event, ToolEnded):
                names["bound"] = [1, 2]

    session.run("go", background=background, front=Binds())
    session.run("and now?", background=background)

    assert "new: bound (list of 2)" in asked(session)[-1]


def test_without_the_setting_every_run_asks(new):
    """Stored answers are shown to who wants them."""
    session = new()
    session.run("go", cell="a")
    session.run("go", cell="a")

    assert len(session.turns) == 2


# any sequence


class Said(NamedTuple):
    """A run as the oracle knows it: who said what, on which branch."""

    number: int
    cell: str | None
    branch: str
    words: tuple[str, ...]


def heard(items):
    """Return what is said, whichever time it was that the tool acted."""
    words = map(text, items)
    return ["acted" if word.startswith("acted") else word for word in words]


class Conversations(RuleBasedStateMachine):
    """Runs, re-runs, undo and branches in any order, against lists kept by hand.

    The oracle holds, for each branch, a list of `[run, live, follows]` in the order of the cells'
    places, and for undo a copy of all of it before each run.
    """

    def __init__(self):
        super().__init__()
        self.transport = ScriptedTransport()
        self.session = Session("openai", transport=self.transport, mode="auto", journal=True)
        self.places = {"main": []}
        self.undos = []
        self.branch = "main"
        self.number = 0

    def teardown(self):
        """What was kept of it comes to the same conversation and the same rows."""
        self.session.close()
        if not self.number:
            return
        facts, sound = read(path_of(self.session.id))
        records = Recorder()
        past = Past(facts, records)
        assert sound
        assert past.done == len(facts)
        tree = self.session._branches.tree
        assert past.branches.names == tree.branches
        assert past.branches.current == self.session.branch
        for name in tree.branches:
            entries = tree.line(name), past.branches.tree.line(name)
            one, other = ([(run.number, stale) for run, stale in line] for line in entries)
            assert one == other
            assert past.branches.tree.said(name) == tree.said(name)
        assert records.cells == self.session.records.cells
        assert records.messages == self.session.records.messages
        assert records.tools == self.session.records.tools
        for one, other in zip(records.turns, self.session.records.turns, strict=True):
            assert (one.turn, one.status) == (other.turn, other.status)
            if other.response_id is not None:  # of any other nothing goes on
                assert one.said == other.said

    def live(self, branch):
        return [run for run, live, _ in self.places[branch] if live]

    def copy(self):
        return {name: [list(place) for place in line] for name, line in self.places.items()}

    @rule(
        cell=st.sampled_from(["a", "b", "c", "d", None]),
        branch=st.sampled_from([None, "main", "x", "y"]),
        append=st.booleans(),
        goes=st.sampled_from(["answers", "acts", "acts twice", "fails", "acts and fails"]),
    )
    def run(self, cell, branch, append, goes):
        """Run a cell, and check what its request held."""
        self.number += 1
        name = branch or self.branch
        if name not in self.places:
            live = [list(place) for place in self.places[self.branch] if place[1]]
            self.places[name] = live
        line = self.places[name]
        at = [i for i, (run, _, _) in enumerate(line) if cell and run.cell == cell]
        where = at[-1] if at and not append else len(line)
        before = [run for run, live, _ in line[:where] if live]
        prompt = f"p{self.number}"
        script, words = self.script(goes, prompt)
        self.transport._script[:] = entries(script)

        first = len(self.transport.requests)
        with contextlib.suppress(ResponseFailed):
            self.session.run(prompt, cell=cell, branch=branch, append=append)

        sent = heard(self.transport.requests[first].input)
        assert sent == [*(word for run in before for word in run.words), prompt]
        if words:
            self.put(name, where, before, Said(self.number, cell, name, tuple(words)))

    def script(self, goes, prompt):
        """Return what the endpoint answers, and the words that the run leaves."""
        act = {"tool_calls": [{"name": "act"}]}
        acted = ["{}", "acted"]
        return {
            "answers": ([{"text": "yes"}], [prompt, "yes"]),
            "acts": ([act, {"text": "yes"}], [prompt, *acted, "yes"]),
            "acts twice": ([act, act, {"text": "yes"}], [prompt, *acted, *acted, "yes"]),
            "fails": ([FAIL], []),
            "acts and fails": ([act, FAIL], [prompt, *acted]),
        }[goes]

    def put(self, name, where, before, said):
        follows = before[-1].number if before else None
        gone = self.places[name][where][0] if where < len(self.places[name]) else None
        saved = self.copy()
        changed = [name]
        if gone is not None and gone.branch == name:
            changed = [n for n, line in self.places.items() if any(p[0] is gone for p in line)]
        for branch in changed:
            line = self.places[branch]
            at = where if branch == name else [p[0] is gone for p in line].index(True)
            ahead = [run.number for run, live, _ in line[:at] if live]
            holds = (ahead[-1] if ahead else None) == follows
            behind = [[run, False, was] for run, _, was in line[at + 1 :] if run.cell]
            head = line[:at]
            while head and not head[-1][1]:  # what it passes over comes behind it
                behind.insert(0, head.pop())
            self.places[branch] = [*head, [said, holds, follows], *behind]
        self.undos.append((name, changed, saved, self.copy()))

    @rule()
    def undo(self):
        """Take the last run of the branch back, where that is possible."""
        own = [i for i, undo in enumerate(self.undos) if undo[0] == self.branch]
        possible = bool(own) and bool(self.places[self.branch])
        if possible:
            _, changed, saved, after = self.undos[own[-1]]
            possible = self.places[self.branch] == after[self.branch] and not any(
                self.branch in undo[1] for undo in self.undos[own[-1] + 1 :]
            )
        if not possible:
            with pytest.raises(UsageError):
                self.session.undo()
            return
        self.session.undo()
        later = self.undos[own[-1] + 1 :]
        del self.undos[own[-1]]
        for name in changed:
            before = next((undo[2] for undo in later if name in undo[1]), self.places)
            before[name] = saved[name]  # now, or when what was built on it is taken back

    @rule(name=st.sampled_from(["main", "x", "y"]))
    def switch(self, name):
        """Go on with a branch that is there; one that is not is an error."""
        if name in self.places:
            self.session.branch = self.branch = name
        else:
            with pytest.raises(UsageError):
                self.session.branch = name

    @rule(name=st.sampled_from(["main", "x", "y"]))
    def fork(self, name):
        """Begin a branch where this one is; a name is taken once."""
        if name in self.places:
            with pytest.raises(UsageError):
                self.session.fork(name)
        else:
            self.session.fork(name)
            self.places[name] = [list(place) for place in self.places[self.branch] if place[1]]

    @rule()
    def reset(self):
        """Begin anew."""
        self.session.reset()
        self.places, self.undos, self.branch = {"main": []}, [], "main"

    @invariant()
    def every_call_has_one_output(self):
        """On every branch, whatever happened."""
        for name in self.places:
            items = list(self.session._branches.tree.said(name))
            called = [item["call_id"] for item in items if is_call(item)]
            answered = [item["call_id"] for item in items if item["type"] == "function_call_output"]
            assert called == answered
            assert len(set(called)) == len(called)

    @invariant()
    def the_tree_says_what_the_oracle_says(self):
        """On every branch: who is live, in which order, and what they said."""
        for name in self.places:
            entries = self.session._branches.tree.line(name)
            told = [(entry.run.number, not entry.stale) for entry in entries]
            assert told == [(run.number, live) for run, live, _ in self.places[name]]
            words = heard(self.session._branches.tree.said(name))
            assert words == [word for run in self.live(name) for word in run.words]

    @invariant()
    def the_table_says_how_runs_stand(self):
        """Live somewhere is live; else stale somewhere is stale."""
        cells = {row.cell: row.standing for row in self.session.records.cells}
        live = {run.number for name in self.places for run in self.live(name)}
        stale = {run.number for line in self.places.values() for run, alive, _ in line if not alive}
        assert {number for number, stands in cells.items() if stands == "live"} == live
        assert stale - live <= {number for number, stands in cells.items() if stands == "stale"}


TestConversations = Conversations.TestCase
TestConversations.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
