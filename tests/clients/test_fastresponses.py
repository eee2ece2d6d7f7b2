"""Our client with a server that others wrote: fastresponses, which has its own ways.

It answers one turn at a time on a connection, knows no `stream_id` and no `generate`, closes a
connection that is too old, ends a stream over HTTP with `[DONE]`, and counts no tokens unless
it is told to.
"""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest
import uvicorn
from fastresponses import create_app
from fastresponses.adapter import AdapterError, AgentAdapter, ItemDone, TextDelta, UsageDelta
from fastresponses.models import FunctionCallItem, FunctionCallOutputItem
from fastresponses.store import InMemoryResponseStore

import ipy_agent
from ipy_agent.background import Background
from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import AuthenticationFailed, ResponseFailed

SECONDS = 20
KEY = "IPY_AGENT_TESTS_NEIGHBOUR_KEY"


class Neighbour(AgentAdapter):
    """An agent behind the server: says how many items it saw, and what the user said last.

    Attributes:
        seen: how many items each turn sent, and how many it saw in all.
    """

    name = "neighbour"

    def __init__(self):
        self.seen = []

    async def run(self, run):
        self.seen.append((len(run.new_items), len(run.context_items)))
        last = run.context_items[-1] if run.context_items else None
        yield UsageDelta(input_tokens=len(run.context_items), output_tokens=1)
        if last is None:
            raise AdapterError("there is nothing to answer", type="invalid_request")
        if isinstance(last, FunctionCallOutputItem):
            yield TextDelta(f"the tool said {last.output}")
        if last.text() == "fail":
            raise AdapterError("it broke", code="broken")
        elif last.text() == "call":
            yield ItemDone(FunctionCallItem(id="fc_1", call_id="c_1", name="act", arguments="{}"))
        else:
            yield TextDelta(f"{len(run.context_items)}: ")
            yield TextDelta(last.text())


class Forgetful(InMemoryResponseStore):
    """A store that holds nothing."""

    async def get(self, response_id):
        return None


@pytest.fixture
def neighbour():
    """Return a function that serves an agent by fastresponses and returns its endpoint."""
    running = []

    def start(agent, *, more=None, **options):
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(
            create_app(agent, **options), log_config=None, lifespan="off", loop="asyncio"
        )
        server, thread, ready = uvicorn.Server(config), Background(), threading.Event()

        async def serve():
            work = asyncio.create_task(server.serve(sockets=[listener]))
            while not server.started:
                await asyncio.sleep(0)
            ready.set()
            await work
            listener.close()

        running.append((server, thread, thread.start(serve())))
        assert ready.wait(SECONDS)
        port = listener.getsockname()[1]
        return Endpoint.named(f"http://127.0.0.1:{port}/v1", **(more or {}))

    yield start
    for server, thread, work in running:
        server.should_exit = True
        work.result.result(SECONDS)
        thread.stop()


def test_the_second_turn_sends_only_what_is_new(new, neighbour):
    """One connection; the server puts back what was left out, of responses that it never stored."""
    agent = Neighbour()
    session = new(neighbour(agent))

    assert [session.run(prompt).text for prompt in ("one", "two", "three")] == [
        "1: one",
        "3: two",
        "5: three",
    ]
    turns = session.turns
    assert agent.seen == [(1, 1), (1, 3), (1, 5)]
    assert list(turns["transport"]) == ["websocket"] * 3
    assert list(turns["connection"]) == [1, 1, 1]
    assert list(turns["held_items"]) == [0, 2, 4]
    assert list(turns["previous_response_id"][1:]) == list(turns["response_id"][:2])
    assert list(turns["input_tokens"]) == [1, 3, 5]


@pytest.mark.parametrize("way", ["websocket", "http"])
def test_a_tool_loop(new, neighbour, way):
    """The call runs here, its output goes back, and the answer is made from it."""

    @ipy_agent.tool
    def act() -> int:
        """Act."""
        return 3

    agent = Neighbour()
    session = new(neighbour(agent), transport=way, mode="auto")

    assert session.run("call").text == "the tool said 3"
    assert list(session.tools["output"]) == ["3"]
    assert list(session.messages["type"]) == [
        "message",
        "function_call",
        "function_call_output",
        "message",
    ]
    assert agent.seen == [(1, 1), (1, 3) if way == "websocket" else (3, 3)]


def test_a_response_that_is_gone_is_mended_by_one_full_resend(new, neighbour):
    """A failed turn takes its parent from the connection: the next turn is whole, unseen."""
    agent = Neighbour()
    session = new(neighbour(agent))
    session.run("one")
    with pytest.raises(ResponseFailed, match="it broke"):
        session.run("fail")
    after = session.run("two")

    assert after.text.endswith(": two")
    assert list(session.turns["status"]) == ["completed", "failed", "completed"]
    assert list(session.turns["connection"]) == [1, 1, 1]
    assert agent.seen[-1][0] == agent.seen[-1][1]


def test_a_branch_has_a_connection_of_its_own(new, neighbour):
    """The server knows no lanes: that is found out, and nobody notices."""
    agent = Neighbour()
    session = new(neighbour(agent))
    session.run("one")
    said = [session.run(*ask).text for ask in ()]
    idea = session.run("idea", branch="b")
    two = session.run("two")
    more = session.run("more", branch="b")

    assert said == []
    assert [idea.text, two.text, more.text] == ["3: idea", "3: two", "5: more"]
    turns = session.turns
    print(turns[["branch","connection","sent_items","held_items","retries","status","cache_miss"]].to_string())
    assert list(turns["branch"]) == ["main", "b", "main", "b"]
    assert list(turns["connection"]) == [1, 2, 1, 2]
    assert list(turns["held_items"]) == [0, 0, 2, 4]
    assert list(turns["status"]) == ["completed"] * 4
    assert list(turns["retries"]) == [0] * 4


def test_branches_at_the_same_time(new, neighbour):
    """Two threads ask at once: each gets its own answer."""
    session = new(neighbour(Neighbour()))
    session.fork("a")
    session.fork("b")
    answers = {}

    def ask(name):
        for number in range(5):
            answers[name, number] = session.run(f"{name}{number}", branch=name).text

    threads = [threading.Thread(target=ask, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)

    assert answers == {
        (name, number): f"{2 * number + 1}: {name}{number}" for name in "ab" for number in range(5)
    }
    assert session.turns.groupby("branch")["connection"].nunique().tolist() == [1, 1]


def test_a_connection_that_reached_its_limit_is_renewed_unseen(new, neighbour):
    """It is closed between two turns; the next one opens another and sends everything."""
    agent = Neighbour()
    session = new(neighbour(agent, ws_connection_limit_seconds=0.3))
    session.run("one")
    (way,) = session._connections._transports.values()
    (connection,) = way._websocket._pool._connections
    session._connections.loop.call(asyncio.wait([connection._reader]), SECONDS)

    assert session.run("two").text == "3: two"
    turns = session.turns
    assert list(turns["connection"]) == [1, 2]
    assert list(turns["held_items"]) == [0, 0]
    assert list(turns["status"]) == ["completed", "completed"]


def test_a_warm_up_that_is_not_understood_does_no_harm(new, neighbour):
    """The server answers it like any turn; nothing of that is shown or goes on."""
    agent = Neighbour()
    session = new(neighbour(agent))
    session.run("one")
    session.warm()
    after = session.run("two")

    assert after.text == "3: two"
    assert len(session.turns) == 2
    assert list(session.messages["text"]) == ["one", "1: one", "two", "3: two"]
    assert list(session.turns["connection"]) == [1, 1]


def test_a_warm_up_before_anything_was_said(new, neighbour):
    """There is nothing to answer, which the server may take amiss: the first turn is answered."""
    session = new(neighbour(Neighbour()))
    session.warm()

    assert session.run("one").text.endswith(": one")
    assert list(session.messages["text"][:1]) == ["one"]


def test_a_stream_over_http(new, neighbour):
    """`[DONE]` ends it. Nothing is stored, so that everything travels every time."""
    agent = Neighbour()
    session = new(neighbour(agent), transport="http")

    assert [session.run(prompt).text for prompt in ("one", "two")] == ["1: one", "3: two"]
    assert agent.seen == [(1, 1), (3, 3)]
    assert list(session.turns["transport"]) == ["http", "http"]
    assert list(session.turns["reused"]) == [False, True]


def test_what_is_stored_is_continued_over_http(new, neighbour):
    """Where the endpoint is said to store, the second turn sends only what is new."""
    agent = Neighbour()
    session = new(neighbour(agent), transport="http", store=True)
    session.connect(_storing(session.endpoint))

    assert [session.run(prompt).text for prompt in ("one", "two")] == ["1: one", "3: two"]
    assert agent.seen == [(1, 1), (1, 3)]


def test_a_store_that_forgot_is_mended_over_http(new, neighbour):
    """The refusal leads to one full resend in the same turn."""
    agent = Neighbour()
    session = new(neighbour(agent, store=Forgetful()), transport="http", store=True)
    session.connect(_storing(session.endpoint))

    assert [session.run(prompt).text for prompt in ("one", "two")] == ["1: one", "3: two"]
    assert agent.seen == [(1, 1), (3, 3)]
    assert list(session.turns["retries"]) == [0, 1]
    assert list(session.turns["status"]) == ["completed", "completed"]


def _storing(endpoint):
    import dataclasses

    return dataclasses.replace(endpoint, stores=True)


@pytest.mark.parametrize("way", ["websocket", "http"])
def test_a_failure_is_one_error_and_the_next_run_works(new, neighbour, way):
    """Its code and words are the server's, over either transport."""
    session = new(neighbour(Neighbour()), transport=way)
    with pytest.raises(ResponseFailed, match="it broke") as caught:
        session.run("fail")

    assert caught.value.code == "broken"
    assert session.run("one").text.endswith(": one")
    assert list(session.turns["status"]) == ["failed", "completed"]


@pytest.mark.parametrize("way", ["auto", "http"])
def test_a_wrong_key_is_said_to_be_the_key(new, neighbour, monkeypatch, way):
    """This server lets a socket in and then refuses it: it is the key all the same."""
    monkeypatch.setenv(KEY, "wrong")
    endpoint = neighbour(Neighbour(), api_key="right", more={"key_env": KEY})
    session = new(endpoint, transport=way)
    with pytest.raises(AuthenticationFailed, match=KEY):
        session.run("one")


def test_the_right_key_opens_the_door(new, neighbour, monkeypatch):
    """It travels as a bearer token."""
    monkeypatch.setenv(KEY, "right")
    session = new(neighbour(Neighbour(), api_key="right", more={"key_env": KEY}))
    assert session.run("one").text == "1: one"


def test_a_conversation_is_compacted(new, neighbour):
    """Its one item is sent back as it came, and the conversation goes on from it."""
    agent = Neighbour()
    session = new(neighbour(agent), model="any")
    session.run("one")
    session.run("two")

    assert session.compact() == (4, 1)
    assert session.run("three").text == "2: three"
