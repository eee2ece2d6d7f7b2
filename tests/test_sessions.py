"""A session: one conversation and one live connection, driven by blocking calls."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import os
import subprocess
import sys
import threading

import pytest

import ipy_agent
from ipy_agent import sessions
from ipy_agent.agent.branches import Branches
from ipy_agent.agent.runs import Quiet
from ipy_agent.agent.tools import TOOLS, tool_of
from ipy_agent.background import Background
from ipy_agent.endpoints import Endpoint, Limits
from ipy_agent.errors import (
    AgentError,
    AuthenticationFailed,
    ConnectionFailed,
    ConnectionLost,
    Interrupted,
    MessageTooBig,
    ResponseFailed,
    ToolError,
    UsageError,
)
from ipy_agent.notebook.rehearsal import summary
from ipy_agent.protocol.events import TextDelta
from ipy_agent.protocol.items import text
from ipy_agent.sessions import Session
from ipy_agent.settings import CONFIGURED
from ipy_agent.trace import Notice, RequestSent
from ipy_agent.transport.scripted import ScriptedTransport

SECONDS = 20


@dataclasses.dataclass
class Point:
    x: int
    y: int


CALL = {"tool_calls": [{"name": "act"}]}


@pytest.fixture(autouse=True)
def tools():
    """The tools of the process are those of the test."""
    before = dict(TOOLS)
    TOOLS.clear()
    yield TOOLS
    TOOLS.clear()
    TOOLS.update(before)


@pytest.fixture
def new():
    """Return a function that makes a session and sees to its end."""
    made = []

    def make(*args, **settings):
        made.append(Session(*args, **settings))
        return made[-1]

    yield make
    for session in made:
        session.close()


@pytest.fixture
def scripted(new):
    """Return a function that makes a session which answers from a list."""
    return lambda script=(), **settings: new(transport=ScriptedTransport(script), **settings)


def completed(name):
    return {"type": "response.completed", "response": {"id": name, "output": []}}


def sent(session):
    """Return what each turn was asked with, as the scripted transport keeps it."""
    return [
        request.fields.values
        for request in session._connections.to(session.endpoint, "auto").requests
    ]


class At(Quiet):
    """Does something at the first event of a kind."""

    def __init__(self, kind, do):
        self._kind, self._do = kind, do

    def show(self, event):
        if isinstance(event, self._kind):
            self._do(self)

    def waiting(self, stop):
        self.stop = stop
        return super().waiting(stop)


# runs


def test_two_runs_share_a_connection_and_the_second_sends_only_what_is_new(new, served):
    """The four frames tell it: one connection, one sent item, the rest held and cached."""
    session = new(served([{"text": "a b"}, {"text": "c"}]))

    first, second = session.run("one"), session.run("two")
    turns = session.turns
    assert (first.text, second.text) == ("a b", "c")
    assert (str(first), second.value) == ("a b", "c")
    assert list(turns["connection"]) == [1, 1]
    assert list(turns["reused"]) == [False, True]
    assert list(turns["sent_items"]) == [1, 1]
    assert list(turns["held_items"]) == [0, 2]
    assert list(turns["cached_tokens"]) == [0, 3]
    assert turns["previous_response_id"][1] == turns["response_id"][0]
    assert turns["sent_bytes"][1] < turns["full_bytes"][1]
    assert (turns["wire_bytes"] - turns["sent_bytes"]).tolist() == [8, 8]  # a masked frame's head
    assert list(second.turns["turn"]) == [2]
    assert list(session.cells["status"]) == ["completed", "completed"]
    assert len(session.messages) == 4
    assert len(session.tools) == 0


@pytest.mark.usefixtures("tools")
def test_a_tool_loop_over_a_real_socket(new, served):
    """The model's call runs here, its output goes back, and the rows say so."""

    @ipy_agent.tool
    def act(x: int) -> int:
        """Act."""
        return x + 1

    call = {"tool_calls": [{"name": "act", "arguments": {"x": 2}}]}
    session = new(served([call, {"text": "3 it is"}]), mode="auto")

    assert session.run("go").text == "3 it is"
    assert list(session.turns["status"]) == ["completed", "completed"]
    assert list(session.tools["output"]) == ["3"]
    assert list(session.tools["approval"]) == ["auto"]
    assert [text(item) for item in session._branches.tree.said("main")] == [
        "go",
        '{"x":2}',
        "3",
        "3 it is",
    ]


@pytest.mark.parametrize("prompt", ["", " \n\t"])
def test_an_empty_prompt_is_a_usage_error(scripted, prompt):
    """Nothing is sent and nothing recorded."""
    session = scripted()

    with pytest.raises(UsageError, match="empty"):
        session.run(prompt)
    assert session.records.cells == []


def test_a_prompt_is_sent_as_it_is(scripted):
    """But for halves of surrogate pairs, which cannot be sent at all."""
    session = scripted()

    assert session.run(" {x} $y %z \\n ").text == " {x} $y %z \\n "
    assert session.run("a\ud800b").text == "a?b"


def test_a_failed_run_leaves_the_session_usable(scripted):
    """The error is typed, the row says failed, the next run works."""
    session = scripted([{"error": {"status": 503, "code": "busy"}}, {"text": "fine"}])

    with pytest.raises(ResponseFailed) as failure:
        session.run("one")
    assert (failure.value.status, failure.value.code) == (503, "busy")
    assert session.run("two").text == "fine"
    assert list(session.cells["status"]) == ["failed", "completed"]


def test_a_lost_connection_is_replaced_in_the_turn(new, served):
    """The turn is asked again over a new one, which is sent everything; its row tells."""
    lost = {"text": "half", "then": "close:1011"}
    session = new(served([{"text": "one"}, lost, {"text": "two"}, {"text": "three"}]))

    assert [session.run(one).text for one in ("first", "second", "third")] == [
        "one",
        "two",
        "three",
    ]
    turns = session.turns
    assert list(turns["connection"]) == [1, 2, 2]
    assert list(turns["retries"]) == [0, 1, 0]
    assert list(turns["held_items"]) == [0, 0, 4]
    assert list(turns["sent_items"]) == [1, 3, 1]


def test_a_connection_that_the_endpoint_will_not_have_is_replaced_by_the_next_run(new, served):
    """The failure is told, and the next run connects and sends everything."""
    lost = {"text": "half", "then": "close:1008"}
    session = new(served([{"text": "one"}, lost, {"text": "three"}]))

    session.run("first")
    with pytest.raises(ConnectionLost) as failure:
        session.run("second")
    assert failure.value.close_code == 1008
    assert session.run("third").text == "three"
    assert list(session.turns["connection"]) == [1, 1, 2]
    assert list(session.turns["status"]) == ["completed", "failed", "completed"]
    assert list(session.turns["sent_items"]) == [1, 1, 3]


def test_a_run_within_a_run_is_refused(scripted):
    """A tool that asks the agent is told so; the outer run goes on."""
    session = scripted([CALL, {"text": "done"}], mode="auto")
    refused = []

    @ipy_agent.tool
    def act() -> str:
        """Ask the agent."""
        for inner in (lambda: session.run("inner"), session.warm, session.reset):
            with pytest.raises(UsageError, match="within a tool") as error:
                inner()
            refused.append(error.value)
        return "tried"

    assert session.run("outer").text == "done"
    assert len(refused) == 3
    assert len(session.cells) == 1


def test_two_threads_ask_one_after_the_other(scripted):
    """The second waits until the first has its answer."""
    session = scripted([CALL, {"text": "one"}, {"text": "two"}], mode="auto")
    begun, asked = threading.Event(), threading.Event()
    answers = []

    @ipy_agent.tool
    def act() -> None:
        """Wait for the other to have asked."""
        begun.set()
        assert asked.wait(SECONDS)

    def ask(prompt):
        answers.append((prompt, session.run(prompt).text))

    first = threading.Thread(target=ask, args=("first",))
    first.start()
    assert begun.wait(SECONDS)
    second = threading.Thread(target=ask, args=("second",))
    second.start()
    asked.set()
    first.join(SECONDS)
    second.join(SECONDS)
    assert answers == [("first", "one"), ("second", "two")]
    assert [row.cell for row in session.records.turns] == [1, 1, 2]
    assert list(session.cells["status"]) == ["completed", "completed"]


def test_model_and_mode_of_one_run(scripted):
    """They hold for that run; the session's own stay."""
    session = scripted([CALL, {"text": "1"}, CALL, {"text": "2"}], model="big", mode="read")
    ran = []

    @ipy_agent.tool
    def act() -> None:
        """Act."""
        ran.append(1)

    session.run("one", model="small", mode="auto")
    session.run("two")
    assert [fields["model"] for fields in sent(session)] == ["small", "small", "big", "big"]
    assert ran == [1]
    assert (session.model, session.mode) == ("big", "read")


def test_an_endpoint_of_one_run(new, served):
    """The conversation goes there whole and comes back; each endpoint keeps its connection."""
    here, there = served([{"text": "1"}, {"text": "3"}]), served([{"text": "2"}])
    session = new(here)

    session.run("one")
    session.run("two", endpoint=there)
    session.run("three")
    turns = session.turns
    assert list(turns["endpoint"]) == [here.name, there.name, here.name]
    assert list(turns["connection"]) == [1, 1, 1]
    assert list(turns["sent_items"]) == [1, 3, 3]
    assert list(turns["held_items"]) == [0, 0, 2]
    assert session.endpoint == here


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"mode": "never"}, "never"),
        ({"endpoint": "nowhere"}, "'nowhere' is no endpoint"),
        ({"endpoint": "ftp://x"}, "'ftp://x' is no endpoint"),
    ],
)
def test_a_wrong_option_is_found_before_anything_is_sent(scripted, more, said):
    """One line says what is wrong."""
    session = scripted()

    with pytest.raises(UsageError, match=said):
        session.run("one", **more)
    assert session.records.cells == []
    assert session.run("one").text == "one"


def test_nothing_listens_at_the_endpoint(new, unused_port):
    """The run fails in one line, its row says failed, and the session can go elsewhere."""
    session = new(f"http://127.0.0.1:{unused_port}/v1")

    with pytest.raises(ConnectionFailed, match=str(unused_port)):
        session.run("one")
    assert list(session.turns["status"]) == ["failed"]
    assert session.turns["connection"].isna().all()


def test_a_missing_key_is_named(new, monkeypatch):
    """Nothing connects without it."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    with pytest.raises(AuthenticationFailed, match="OPENAI_API_KEY"):
        new("openai").run("one")


# what is sent beside the prompt


def test_a_request_has_what_was_set_and_nothing_empty(scripted, tools):
    """Tools and instructions travel with every turn, `store` is false, the key is the session's."""
    session = scripted(instructions="Be brief.")
    session.run("one")

    @ipy_agent.tool
    def act() -> None:
        """Act."""

    session.run("two")
    before, after = sent(session)
    assert before == {
        "instructions": "Be brief.",
        "store": False,
        "prompt_cache_key": session.id,
    }
    assert after == {**before, "tools": [tools["act"].definition]}


def test_fields_are_one_object_while_nothing_changes(scripted):
    """They are encoded once, however many turns follow."""
    session = scripted()
    for prompt in ("one", "two", "three"):
        session.run(prompt)

    requests = session._connections.to(session.endpoint, "auto").requests
    assert len({id(request.fields) for request in requests}) == 1


@pytest.mark.usefixtures("tools")
def test_a_session_may_have_tools_of_its_own(scripted):
    """Those of the process are then not on offer, and a name may be taken twice."""

    def act(x: int) -> str:
        """Act."""
        return f"did {x}"

    ipy_agent.tool(act)
    own = tool_of(lambda: "my own", name="act", description="Act.")
    session = scripted([CALL, {"text": "done"}], toolbox={"act": own}, mode="auto")
    session.run("go")

    assert session.toolbox == {"act": own}
    assert list(session.tools["output"]) == ["my own"]
    assert TOOLS["act"].function is act


def test_tools_are_offered_by_name(scripted):
    """A name that is not there is told before anything is sent."""

    @ipy_agent.tool
    def act() -> None:
        """Act."""

    @ipy_agent.tool
    def other() -> None:
        """Do another thing."""

    session = scripted(tools=("other",))
    assert list(session.toolbox) == ["other"]
    session.run("one")
    assert [tool["name"] for tool in sent(session)[0]["tools"]] == ["other"]

    session.configure("tools", ("fly",))
    with pytest.raises(ToolError, match="there is no tool 'fly': there are act, other"):
        session.run("two")


# settings


def test_settings_are_attributes_and_checked_when_set(scripted):
    """A wrong value is refused and changes nothing."""
    session = scripted()

    session.mode, session.budget_turns = "auto", 250
    assert (session.mode, session.settings.budget_turns) == ("auto", 250)
    for name, value in [("mode", "always"), ("budget_turns", 0), ("budget_seconds", "long")]:
        before = getattr(session, name)
        with pytest.raises(UsageError, match=name):
            setattr(session, name, value)
        assert getattr(session, name) == before


def test_a_setting_that_is_none_is_refused(scripted):
    """By name, when made and when set."""
    with pytest.raises(UsageError, match="'speed' is no setting"):
        Session(speed=3)
    with pytest.raises(UsageError, match="'speed' is no setting"):
        scripted().configure("speed", 3)


def test_the_endpoint_can_be_configured(scripted):
    """`endpoint` is a setting like the others, by name or as a value."""
    session = scripted()

    session.configure("endpoint", "openai")
    assert session.endpoint.name == "openai"
    session.configure("endpoint", Endpoint(name="x", url="http://x/v1"))
    assert session.endpoint.name == "x"
    with pytest.raises(UsageError):
        session.configure("endpoint", "nowhere")
    assert session.endpoint.name == "x"


# connections


def test_connect_goes_on_elsewhere(new, peer, served):
    """The old connection hears a goodbye; the new one gets the whole conversation."""
    other = peer([[completed("resp_1")]])
    session = new(other.endpoint())
    session.run("one")

    endpoint = session.connect(served([{"text": "2"}]))
    assert other.seen[0].close_code() == 1000
    assert session.endpoint is endpoint
    session.run("two")
    assert list(session.turns["sent_items"]) == [1, 2]


def test_connect_takes_a_model_and_a_key(scripted):
    """They are the endpoint's; a model that was set before gives way."""
    session = scripted(model="old")

    url = session.connect("http://127.0.0.1:1/v1", model="new", key_env="THE_KEY")
    assert (url.model, url.key_env) == ("new", "THE_KEY")
    assert session.model is None
    assert "model       new" in session.describe()
    value = session.connect(Endpoint(name="x", url="http://x/v1"), model="newer")
    assert (value.name, value.model) == ("x", "newer")


def test_disconnect_closes_and_the_next_run_sends_everything(new, peer):
    """Before the first run it does nothing."""
    other = peer([[completed("resp_1")]], [[completed("resp_2")]])
    session = new(other.endpoint())

    session.disconnect()
    session.run("one")
    session.disconnect()
    assert other.seen[0].close_code() == 1000
    session.run("two")
    assert len(other.seen[1].frames[0]["input"]) == 2
    assert session.turns["previous_response_id"].isna().all()


def test_reset_begins_a_new_conversation_on_the_same_connection(new, peer):
    """Nothing of the old one is sent; the records stay."""
    other = peer([[completed("resp_1")], [completed("resp_2")]])
    session = new(other.endpoint())

    session.run("one")
    session.reset()
    session.run("two")
    _, frame = other.seen[0].frames
    assert [text(item) for item in frame["input"]] == ["two"]
    assert "previous_response_id" not in frame
    assert len(session.turns) == 2


def test_a_warm_up_is_no_turn(new, peer):
    """It connects, sends what will be sent, and the first run goes on from it."""
    other = peer([[completed("resp_0")], [completed("resp_1")]])
    session = new(other.endpoint(), instructions="Be brief.")

    session.warm()
    assert len(session.turns) == 0
    session.run("one")
    warmed, asked = other.seen[0].frames
    assert (warmed["generate"], warmed["instructions"]) == (False, "Be brief.")
    assert asked["previous_response_id"] == "resp_0"
    assert list(session.turns["reused"]) == [True]


def test_a_warm_up_may_be_watched_and_stopped(new, peer):
    """A front sees what it waits for; a stop is an `Interrupted`, and the next run works."""
    other = peer([[]], [[completed("resp_1")]])
    session = new(other.endpoint())
    seen = []

    def stop(front):
        seen.append("sent")
        front.stop()

    with pytest.raises(Interrupted):
        session.warm(At(RequestSent, stop))
    assert seen == ["sent"]
    assert session.run("one").text == ""
    assert len(session.turns) == 1


def test_a_warm_up_that_fails_says_why(new, unused_port):
    """As a run would."""
    with pytest.raises(ConnectionFailed):
        new(f"http://127.0.0.1:{unused_port}/v1").warm()


def test_an_interrupted_run_leaves_nothing_to_the_next(new, served):
    """The socket of a run that was stopped is retired."""
    session = new(served([{"text": "old", "then": "hang"}, {"text": "new"}]))

    with pytest.raises(Interrupted):
        session.run("one", front=At(TextDelta, lambda front: front.stop()))
    assert session.run("two").text == "new"
    assert list(session.turns["status"]) == ["interrupted", "completed"]
    assert list(session.turns["connection"]) == [1, 2]


def test_describe_says_where_the_session_stands(new, served):
    """Before and after the first run."""
    session = new(served([{"text": "a"}, {"text": "b"}]), model="m")

    assert "connection  not connected" in session.describe()
    session.run("one")
    session.run("two")
    said = session.describe()
    assert f"endpoint    {session.endpoint.name} (http://127.0.0.1" in said
    assert "model       m" in said
    assert "connected (WebSocket 1, 2 turns" in said
    assert "mode        ask" in said
    assert "said        4 items" in said
    assert "turns       2 in 2 cells, 50% of the input from the cache" in said
    assert repr(session).startswith(f"<Session {session.id}: 127.0.0.1")


# the end


def test_closing_twice_is_closing_once_and_a_run_opens_again(new, peer):
    """The peer hears 1000; the session can be used on."""
    other = peer([[completed("resp_1")]], [[completed("resp_2")]])
    session = new(other.endpoint())

    session.close()
    session.run("one")
    session.close()
    session.close()
    assert other.seen[0].close_code() == 1000
    session.run("two")
    assert list(session.turns["connection"]) == [1, 2]


def test_a_session_that_is_forgotten_says_goodbye(peer):
    """Its connection closes and its thread ends."""
    other = peer([[completed("resp_1")]])
    session = Session(other.endpoint())
    session.run("one")
    thread = session._connections.loop._thread

    del session
    gc.collect()
    assert other.seen[0].close_code() == 1000
    assert not thread.is_alive()


def test_a_run_ends_when_another_thread_closes_the_session(new, served):
    """It is not left waiting for an answer that cannot come."""
    session = new(served([{"text": "old", "then": "hang"}, {"text": "new"}]))
    closing = threading.Thread(target=session.close)

    with pytest.raises(AgentError):
        session.run("one", front=At(TextDelta, lambda _: closing.start()))
    closing.join(SECONDS)
    assert not closing.is_alive()
    assert session.run("two").text == "new"


def test_a_session_of_the_process_is_made_once(monkeypatch):
    """With what the user's configuration sets."""
    monkeypatch.setattr(sessions, "_session", None)
    monkeypatch.setitem(CONFIGURED, "mode", "auto")
    monkeypatch.setitem(CONFIGURED, "endpoint", "http://127.0.0.1:1/v1")

    session = ipy_agent.session()
    assert session is ipy_agent.session()
    assert session.mode == "auto"
    assert session.endpoint.url == "http://127.0.0.1:1/v1"


# branches


def test_a_branch_is_a_lane_of_the_same_connection(new, served):
    """It shares what was said: only the new prompt travels, and the main branch goes on."""
    endpoint = dataclasses.replace(served([]), limits=Limits(lanes=32, keeps_all=True))
    session = new(endpoint)
    session.run("one")
    session.run("idea", branch="b")
    session.run("two")

    turns = session.turns
    assert list(turns["branch"]) == ["main", "b", "main"]
    assert list(turns["connection"]) == [1, 1, 1]
    assert list(turns["sent_items"]) == [1, 1, 1]
    assert list(turns["held_items"]) == [0, 2, 2]
    assert session.branches == ("main", "b")
    assert session.branch == "main"
    assert "branch      main of 2" in session.describe()


def test_a_fork_begins_where_a_turn_ended(new, served):
    """By the turn's number; what came after it is not part of the branch, nor sent again."""
    session = new(dataclasses.replace(served([]), limits=Limits(lanes=32, keeps_all=True)))
    for prompt in ("one", "two", "three"):
        session.run(prompt)
    session.fork("early", at=1)
    session.branch = "early"
    session.run("else")

    row = session.turns.iloc[3]
    assert (row["branch"], row["sent_items"], row["held_items"]) == ("early", 1, 2)
    assert row["previous_response_id"] == session.turns["response_id"][0]
    said = session._branches.tree.said("early")
    assert [text(item) for item in said] == ["one", "one", "else", "else"]


@pytest.mark.parametrize("at", [0, -1, 3, True, "1"])
def test_a_fork_needs_a_turn_that_was_answered(scripted, at):
    """A number that no turn has, and a turn that failed, are said in one line."""
    session = scripted([{"text": "1"}, {"error": {}}])
    session.run("one")
    with pytest.raises(ResponseFailed):
        session.run("two")

    for turn in (at, 2):
        with pytest.raises(UsageError, match=rf"turn {turn} has no answer"):
            session.fork("b", at=turn)
    assert session.branches == ("main",)


@pytest.mark.parametrize("name", ["", "two words", "x" * 257])
def test_a_run_on_a_branch_that_cannot_be_sends_nothing(scripted, name):
    """An invalid name is refused before anything happens."""
    session = scripted()
    with pytest.raises(UsageError, match="no name for a branch"):
        session.run("one", branch=name)
    assert len(session.turns) == 0


def test_two_branches_have_turns_at_the_same_time(new, peer):
    """Two threads, one socket: the second is answered while the first still waits."""

    def on(lane, name):
        return {**completed(name), "stream_id": lane}

    other = peer([[completed("m1")], [], [on("b", "b1"), on("a", "a1")]])
    session = new(dataclasses.replace(other.endpoint(), limits=Limits(lanes=32)))
    session.run("one")
    first = threading.Thread(target=session.run, args=("x",), kwargs={"branch": "a"})
    first.start()
    while len(other.seen[0].raw) < 2:
        pass
    session.run("y", branch="b")
    first.join(SECONDS)

    assert sorted(session.turns["branch"][1:]) == ["a", "b"]
    assert set(session.turns["status"]) == {"completed"}
    assert len(other.seen) == 1


@pytest.mark.usefixtures("tools")
def test_a_tool_may_ask_on_another_branch_from_a_thread(new, served):
    """An agent below an agent: its tools run while the tool that began it still does."""

    @ipy_agent.tool
    def below() -> str:
        """Ask below."""
        thread = threading.Thread(target=lambda: said.append(session.run("x", branch="b").text))
        thread.start()
        thread.join(SECONDS)
        return said[0]

    @ipy_agent.tool
    def act() -> str:
        """Act."""
        return "done"

    said = []
    script = [{"tool_calls": [{"name": "below"}]}, CALL, {"text": "from below"}, {"text": "above"}]
    session = new(served(script), mode="auto")

    assert session.run("go").text == "above"
    assert said == ["from below"]
    assert list(session.tools["name"]) == ["act", "below"]


def test_a_run_that_waited_for_a_reset_is_told(scripted):
    """Its branch is no more: nothing is sent, and the next run goes on."""

    class Late(Branches):
        """Has a reset while somebody waits for a branch."""

        def alone_on(self, name):
            session._branches = Branches()
            return super().alone_on(name)

    session = scripted()
    session._branches = Late()
    with pytest.raises(UsageError, match="was reset while this waited"):
        session.run("one")

    assert len(session.turns) == 0
    assert session.run("two").text == "two"


def test_a_run_that_is_refused_leaves_no_branch_behind(new):
    """What could not be sent began nothing."""
    session = new(Endpoint.named("ollama"))
    with pytest.raises(UsageError, match="-m MODEL"):
        session.run("x", branch="b")
    assert session.branches == ("main",)


def test_reset_leaves_one_empty_branch(scripted):
    """The records stay."""
    session = scripted()
    session.run("one", branch="b")
    session.branch = "b"
    session.reset()

    assert (session.branch, session.branches) == ("main", ("main",))
    assert len(session.turns) == 1


# options


def test_what_a_reasoning_model_is_asked(new):
    """Effort and summary, and its thoughts encrypted where the endpoint does not store them."""
    endpoint = dataclasses.replace(Endpoint.named("http://127.0.0.1:1/v1"), reasoning=True)
    session = new(endpoint, transport=ScriptedTransport(), effort="low", summary="auto")
    session.run("one", max_output_tokens=99)
    session.store = True
    session.run("two", effort="high")
    session.run("three")

    one, two, three = sent(session)
    assert one["reasoning"] == {"effort": "low", "summary": "auto"}
    assert one["include"] == ["reasoning.encrypted_content"]
    assert one["max_output_tokens"] == 99
    assert two["reasoning"]["effort"] == "high"
    assert "include" not in two
    assert three["reasoning"]["effort"] == "low"
    assert "max_output_tokens" not in three


def test_encrypted_thoughts_come_along_when_all_is_sent_again(new, peer):
    """On a new connection the reasoning items travel as they came."""
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"}
    first = completed("r1")
    first["response"]["output"] = [thought]
    other = peer([[first]], [[completed("r2")]])
    session = new(other.endpoint())
    session.run("one")
    session.disconnect()
    session.run("two")

    assert other.seen[1].frames[0]["input"][1] == thought


def test_an_answer_of_a_type(scripted):
    """The request says what it has to be; the answer's value is one."""
    session = scripted([{"text": '{"x": 1, "y": 2}'}])
    answer = session.run("where?", schema=Point)

    assert answer.value == Point(1, 2)
    assert answer.text == '{"x": 1, "y": 2}'
    (fields,) = sent(session)
    assert fields["text"]["format"]["name"] == "Point"
    assert fields["text"]["format"]["strict"] is True


def test_a_schema_that_is_none(scripted):
    """A value is no type: said in one line, before anything is sent."""
    session = scripted()
    with pytest.raises(UsageError):
        session.run("where?", schema=object())
    assert len(session.turns) == 0


def test_a_picture_travels_in_the_prompt(scripted, tmp_path):
    """From a path; an endpoint that is known to take none is not asked."""
    png = tmp_path / "dot.png"
    png.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    session = scripted(endpoint="http://127.0.0.1:1/v1")
    session.run("what is it?", images=png)
    with pytest.raises(UsageError, match="take no pictures"):
        session.run("and here?", images=[png], endpoint="local")

    said = session._branches.tree.said("main")
    assert said.since(0)[0]["content"][1]["type"] == "input_image"


def test_a_picture_too_large_for_a_frame_is_not_sent(new, peer, tmp_path):
    """Both sizes are told before anything leaves, and the conversation is as it was."""
    png = tmp_path / "large.png"
    png.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(9_000))
    other = peer([[completed("r1")]])
    session = new(dataclasses.replace(other.endpoint(), limits=Limits(frame_bytes=8_000)))
    with pytest.raises(MessageTooBig, match=r"has 1\d,\d\d\d bytes .* takes 8,000"):
        session.run("what is it?", images=[png])
    session.run("never mind")

    (frame,) = other.seen[0].frames
    assert len(frame["input"]) == 1


def test_an_endpoint_without_a_model_of_its_own_needs_one(new):
    """The line says how to name it."""
    session = new(dataclasses.replace(Endpoint.named("ollama")), transport=ScriptedTransport())
    with pytest.raises(UsageError, match="-m MODEL"):
        session.run("one")
    assert session.run("one", model="llama").text == "one"


# compaction


class Notices(Quiet):
    """Keeps what lasts of what is told."""

    def __init__(self):
        self.told = []

    def show(self, event):
        if isinstance(event, Notice) and event.lasting:
            self.told.append(event.text)


def test_a_conversation_can_be_compacted(new, served):
    """Its user's messages stay, a summary stands for the rest, and the next turn sends both."""
    session = new(served([{"text": "1"}, {"text": "2"}, {"text": "in short"}, {"text": "3"}]))
    session.run("one")
    session.run("two")

    assert session.compact() == (4, 3)
    kinds = [item["type"] for item in session._branches.tree.said("main")]
    assert kinds == ["message", "message", "compaction"]
    assert session.run("three").text == "3"
    assert list(session.turns["sent_items"]) == [1, 1, 4]
    assert list(session.turns["held_items"]) == [0, 2, 0]


def test_there_has_to_be_something_to_compact(scripted):
    """An empty branch, and a way that cannot: one line each, and nothing is lost."""
    session = scripted()
    with pytest.raises(UsageError, match="nothing was said"):
        session.compact()
    session.run("one")
    with pytest.raises(UsageError, match="ScriptedTransport cannot compact"):
        session.compact()
    assert session.run("two").text == "two"


def test_a_conversation_that_grew_long_is_compacted_by_itself(new, served):
    """Before the run, from so many tokens on, as the endpoint counts them; and the user is told."""
    script = [{"text": "1 2 3"}, {"text": "in short"}, {"text": "after"}]
    session = new(served(script), compact_tokens=5)
    front = Notices()
    session.run("one two three", front=front)
    assert front.told == []

    assert session.run("four", front=front).text == "after"
    assert front.told == ["compacted: 2 items are now 2"]
    assert list(session.turns["sent_items"]) == [1, 3]


def test_a_rehearsal_says_that_the_conversation_would_be_compacted_first(new, served):
    """What is sent then is not known before."""
    session = new(served([{"text": "1 2 3"}]), compact_tokens=5)
    assert not session.rehearse("one two three").compacts
    session.run("one two three")

    assert session.rehearse("four").compacts
    assert "would compact the conversation, and then send 1 of 3" in summary(
        session.rehearse("four")
    )


def test_compaction_that_left_much_is_not_tried_at_every_run(new, served):
    """Only when half as much again was said since is it worth another summary."""
    session = new(served([]), compact_tokens=5)
    front = Notices()
    session.run("a b c d e f g h i j", front=front)
    for _ in range(3):
        session.run("x", front=front)

    assert len(front.told) == 1


def test_a_conversation_that_cannot_be_compacted_goes_on(scripted):
    """The run has all of it, and the user is told why."""
    session = scripted(compact_tokens=1)
    front = Notices()
    session.run("one")

    assert session.run("two", front=front).text == "two"
    (told,) = front.told
    assert told.startswith("the conversation could not be compacted: ")


# the way


def test_the_way_is_a_setting(new, served):
    """The same session over HTTP: nothing is held there, and the column says so."""
    session = new(served([]), transport="http")
    session.run("one")
    session.run("two")
    session.transport = "websocket"
    session.run("three")

    assert list(session.turns["transport"]) == ["http", "http", "websocket"]
    assert list(session.turns["sent_items"]) == [1, 3, 5]


def test_a_refused_upgrade_is_said_once(new, served):
    """`auto` goes on over HTTP for the rest of the session."""
    real, relays = served([]), set()

    async def relay(reader, writer):
        """Refuse whatever asks for an upgrade, and pass the rest on."""
        relays.add(asyncio.current_task())
        head = await reader.readuntil(b"\r\n\r\n")
        if b"upgrade" in head.lower():
            writer.write(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n")
            writer.close()
            return
        port = int(real.url.split(":")[2].split("/")[0])
        back, forth = await asyncio.open_connection("127.0.0.1", port)
        host = f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}".encode()
        there = f"127.0.0.1:{port}".encode()
        forth.write(head.replace(host, there))

        async def copy(source, sink):
            while piece := await source.read(65_536):
                sink.write(piece.replace(host, there))
            sink.close()

        await asyncio.gather(copy(reader, forth), copy(back, writer))

    thread = Background()
    proxy = thread.call(asyncio.start_server(relay, "127.0.0.1", 0), SECONDS)
    url = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}/v1"
    session = new(dataclasses.replace(real, url=url))
    front = Notices()
    try:
        for prompt in ("one", "two"):
            assert session.run(prompt, front=front).text == prompt
    finally:
        session.close()
        thread.loop.call_soon_threadsafe(proxy.close)
        thread.call(asyncio.wait(relays), SECONDS)
        thread.stop()

    assert list(session.turns["transport"]) == ["http", "http"]
    (told,) = front.told
    assert "426" in told


# other processes


def process(code, *arguments):
    """Run a program to its end and return its lines."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout.splitlines()


ENDS = """
import sys
from ipy_agent import Session

session = Session(sys.argv[1])
print(repr(session.run("one").text))
"""


def test_the_end_of_a_process_closes_with_1000(peer):
    """Nobody has to call `close`, and nothing is printed."""
    other = peer([[completed("resp_1")]])

    assert process(ENDS, other.url) == ["''"]
    assert other.seen[0].close_code() == 1000


FORKS = """
import os, sys, threading, warnings
warnings.filterwarnings("ignore", message=".*fork")
from ipy_agent import Session
from ipy_agent.errors import UsageError

session = Session(sys.argv[1])
session.run("one")

def child():
    refused = 0
    for call in (lambda: session.run("x"), session.warm, session.disconnect, session.reset):
        try:
            call()
        except UsageError as error:
            refused += "forked" in str(error)
    session.close()
    try:
        session.run("after closing")
    except UsageError:
        refused += 1
    return refused

held = threading.Event(), threading.Event()
if sys.argv[2] == "busy":
    # Another thread of the parent has the session while this one forks.
    def hold():
        with session._branches.alone_on("main"):
            held[0].set()
            held[1].wait(20)
    threading.Thread(target=hold).start()
    held[0].wait(20)
pid = os.fork()
if pid == 0:
    if sys.argv[2] == "leaves":
        os._exit(child())
    held[1].set()
    sys.exit(child())
held[1].set()
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
session.run("two")
print(len(session.turns), session.turns["connection"].nunique())
"""


@pytest.mark.parametrize("how", ["ends", "leaves", "busy"])
def test_a_forked_child_never_touches_the_socket(peer, how):
    """It is refused, whatever it calls and however it ends; the parent's turn goes on."""
    other = peer([[completed("resp_1")], [completed("resp_2")]])

    assert process(FORKS, other.url, how) == ["5", "2 1"]
    assert len(other.seen) == 1
    assert len(other.seen[0].frames) == 2
    assert other.seen[0].frames[1]["previous_response_id"] == "resp_1"
    assert other.seen[0].close_code() == 1000


FORKING_TOOL = """
import os, sys, warnings
warnings.filterwarnings("ignore", message=".*fork")
import ipy_agent
from ipy_agent.errors import UsageError

@ipy_agent.tool
def act() -> int:
    '''Fork.'''
    pid = os.fork()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if pid else 0

session = ipy_agent.Session(ipy_agent.Endpoint.named(sys.argv[1], key_env=sys.argv[2]), mode="auto")
try:
    print(session.run("go").text, flush=True)
except UsageError as error:
    sys.exit(7 if "forked" in str(error) else 1)
print(session.tools["output"].tolist())
"""


def test_a_child_that_a_tool_forked_leaves_the_run_to_its_parent(served):
    """The child's end of the run is an error; the parent's goes on as if nothing were."""
    endpoint = served([CALL, {"text": "done"}])

    assert process(FORKING_TOOL, endpoint.url, endpoint.key_env) == ["done", "['7']"]


FRESH = """
import os, sys, warnings
warnings.filterwarnings("ignore", message=".*fork")
from ipy_agent import Session

session = Session(sys.argv[1])
session.run("one")
pid = os.fork()
if pid == 0:
    Session(sys.argv[1]).run("mine")
    sys.exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
session.run("two")
"""


def test_a_forked_child_may_have_a_session_of_its_own(peer):
    """Its connection is another one and says goodbye by itself."""
    other = peer([[completed("resp_1")], [completed("resp_2")]], [[completed("resp_3")]])

    assert process(FRESH, other.url) == ["0"]
    assert [len(seen.frames) for seen in other.seen] == [2, 1]
    assert [seen.close_code() for seen in other.seen] == [1000, 1000]


# what may run, and how far


def test_a_tool_may_be_allowed(scripted):
    """Once, or for the session, without a question; it can be taken back, and is listed."""

    @ipy_agent.tool
    def act() -> str:
        """Act."""
        return "done"

    session = scripted([CALL, CALL, {"text": "end"}] * 2, endpoint="openai")
    session.allow("act", once=True)
    assert session.allowed == {"act": "once"}
    session.run("go")
    assert list(session.tools["approval"]) == ["allowed", "no"]

    session.allow("act")
    session.run("go")
    session.disallow("act")
    assert list(session.tools["approval"][2:]) == ["allowed", "allowed"]
    assert session.allowed == {}


@pytest.mark.parametrize("name", ["allow", "disallow"])
def test_only_a_tool_can_be_allowed(scripted, name):
    """The error names those that are there."""
    with pytest.raises(UsageError, match="no tool 'nothing': there are none"):
        getattr(scripted(), name)("nothing")


def test_a_budget_of_tokens_ends_a_run_between_turns(scripted):
    """What was said stays valid, the next run goes on, and what was used can be asked."""

    @ipy_agent.tool
    def act() -> str:
        """Act."""
        return "done"

    session = scripted([CALL, CALL, {"text": "end"}], mode="auto", budget_tokens=1)
    with pytest.raises(AgentError, match="budget_tokens"):
        session.run("go")
    assert session.used(1).turns == session.used().turns == 1

    session.budget_tokens = None
    assert session.run("go on").text == "end"
    assert session.used().tokens > session.used(1).tokens
