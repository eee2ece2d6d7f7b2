"""Our client with a server that others wrote: fastresponses, which has its own ways.

It answers one turn at a time on a connection, knows no `stream_id` and no `generate`, closes a
connection that is too old, ends a stream over HTTP with `[DONE]`, and counts no tokens unless
it is told to.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import threading

import fastresponses.server
import pytest
import uvicorn
from fastresponses import create_app
from fastresponses.adapter import (
    AdapterError,
    AgentAdapter,
    Incomplete,
    ItemDone,
    ReasoningDelta,
    TextDelta,
    UsageDelta,
)
from fastresponses.models import FunctionCallItem, FunctionCallOutputItem, ReasoningItem
from fastresponses.store import InMemoryResponseStore

import ipy_agent
from ipy_agent.background import Background
from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import (
    AuthenticationFailed,
    MessageTooBig,
    ResponseFailed,
    UpgradeRefused,
)
from ipy_agent.protocol.events import ResponseCreated
from ipy_agent.protocol.items import EMPTY, text, user
from ipy_agent.protocol.requests import Fields, Request
from ipy_agent.trace import RequestSent
from ipy_agent.transport.websocket import WebSocketTransport

SECONDS = 20
KEY = "IPY_AGENT_TESTS_NEIGHBOUR_KEY"


@dataclasses.dataclass
class Point:
    x: int
    y: int


class Neighbour(AgentAdapter):
    """An agent behind the server: says how many items it saw, and what the user said last.

    Attributes:
        seen: how many items each turn sent, and how many it saw in all.
        seconds: how long it thinks.
    """

    name = "neighbour"

    def __init__(self, seconds=0.0):
        self.seen = []
        self.seconds = seconds

    async def run(self, run):
        self.seen.append((len(run.new_items), len(run.context_items)))
        await asyncio.sleep(self.seconds)
        yield UsageDelta(input_tokens=len(run.context_items), output_tokens=1)
        if not run.context_items:
            raise AdapterError("there is nothing to answer", type="invalid_request")
        last = run.context_items[-1]
        if isinstance(last, FunctionCallOutputItem):
            yield TextDelta(f"the tool said {last.output}")
        elif last.text() == "fail":
            raise AdapterError("it broke", code="broken")
        elif last.text() == "call":
            yield ItemDone(FunctionCallItem(id="fc_1", call_id="c_1", name="act", arguments="{}"))
        else:
            yield TextDelta(f"{len(run.context_items)}: ")
            yield TextDelta(last.text())


class Forgetful(InMemoryResponseStore):
    """A store that holds nothing."""

    async def put(self, stored):
        pass


class Server(uvicorn.Server):
    """uvicorn, which says when it is ready."""

    def __init__(self, app, **options):
        own = {"log_config": None, "lifespan": "off", "loop": "asyncio"}
        super().__init__(uvicorn.Config(app, **own, **options))
        self.ready = threading.Event()

    async def startup(self, sockets=None):
        await super().startup(sockets)
        self.ready.set()


@pytest.fixture
def neighbour():
    """Return a function that serves an agent by fastresponses and returns its endpoint."""
    running = []

    def start(agent, *, key_env=None, ws="auto", ws_max_size=2**24, **options):
        listener = socket.create_server(("127.0.0.1", 0))
        server = Server(create_app(agent, **options), ws=ws, ws_max_size=ws_max_size)
        thread = Background()
        work = thread.start(server.serve(sockets=[listener]))
        running.append((server, thread, work, listener))
        assert server.ready.wait(SECONDS)
        return Endpoint.named(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", key_env=key_env)

    yield start
    for server, thread, work, listener in running:
        server.should_exit = True
        work.result.result(SECONDS)
        listener.close()
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


def test_a_response_that_is_gone_is_mended_by_one_full_resend(neighbour, run, monkeypatch):
    """The server keeps one response a connection: going on from the one before it sends all."""
    monkeypatch.setattr(fastresponses.server, "WS_LOCAL_CACHE_LIMIT", 1)
    agent = Neighbour()
    transport = WebSocketTransport(neighbour(agent))

    async def turn(items):
        request = Request(fields=Fields({"store": False}), input=items)
        events = [event async for event in transport.stream(request)]
        return events[-2].response.output, [one for one in events if isinstance(one, RequestSent)]

    async def back_and_forth():
        async with contextlib.aclosing(transport):
            first = EMPTY.extend([user("one")])
            output, _ = await turn(first)
            await turn(first.extend([*output, user("two")]))
            return await turn(first.extend([*output, user("else")]))

    again, sent = run(back_and_forth())
    assert text(again[0]) == "3: else"
    assert [(one.sent_items, one.held_items, one.attempt) for one in sent] == [(1, 2, 0), (3, 0, 1)]
    assert {one.connection for one in sent} == {1}
    assert agent.seen == [(1, 1), (1, 3), (3, 3)]


def test_a_failed_turn_is_followed_by_a_whole_one(new, neighbour):
    """A failure takes its parent from the connection: the next turn does not ask for it."""
    agent = Neighbour()
    session = new(neighbour(agent))
    session.run("one")
    with pytest.raises(ResponseFailed, match="it broke"):
        session.run("fail")

    assert session.run("two").text.endswith(": two")
    assert list(session.turns["status"]) == ["completed", "failed", "completed"]
    assert list(session.turns["connection"]) == [1, 1, 1]
    assert list(session.turns["retries"]) == [0, 0, 0]
    assert agent.seen[-1][0] == agent.seen[-1][1]


def test_a_branch_has_a_connection_of_its_own(new, neighbour):
    """The server knows no lanes: that is found out, and nobody notices.

    The branch goes on where what it shares is held; the main one finds another connection.
    """
    session = new(neighbour(Neighbour()))
    asked = [("one", None), ("idea", "b"), ("two", None), ("more", "b"), ("three", None)]

    assert [session.run(prompt, branch=branch).text for prompt, branch in asked] == [
        "1: one",
        "3: idea",
        "3: two",
        "5: more",
        "5: three",
    ]
    turns = session.turns
    assert list(turns["connection"]) == [1, 1, 2, 1, 2]
    assert list(turns["held_items"]) == [0, 2, 0, 4, 4]
    assert list(turns["retries"]) == [0] * 5


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
    session = new(neighbour(Neighbour(), ws_connection_limit_seconds=0.3))
    session.run("one")
    while "not connected" not in session.describe():
        pass

    assert session.run("two").text == "3: two"
    assert list(session.turns["connection"]) == [1, 2]
    assert list(session.turns["held_items"]) == [0, 0]
    assert list(session.turns["status"]) == ["completed", "completed"]


def test_a_limit_within_a_turn_is_unseen_too(new, neighbour):
    """Each turn outlasts its connection, whose end comes right behind the answer."""
    session = new(neighbour(Neighbour(seconds=0.2), ws_connection_limit_seconds=0.1))
    prompts = ["one", "two", "three"]

    assert [session.run(prompt).text for prompt in prompts] == ["1: one", "3: two", "5: three"]
    assert list(session.turns["status"]) == ["completed"] * 3
    assert list(session.turns["connection"]) == [1, 2, 3]


def test_a_warm_up_that_is_not_understood_does_no_harm(new, neighbour):
    """The server answers it like any turn; nothing of that is shown or goes on."""
    session = new(neighbour(Neighbour()))
    session.run("one")
    session.warm()

    assert session.run("two").text == "3: two"
    assert len(session.turns) == 2
    assert list(session.messages["text"]) == ["one", "1: one", "two", "3: two"]
    assert list(session.turns["connection"]) == [1, 1]


def test_a_warm_up_of_nothing_is_refused_in_one_line_and_does_no_harm(new, neighbour):
    """To this server a warm-up is a question without words; the first run is answered."""
    session = new(neighbour(Neighbour()))
    with pytest.raises(ResponseFailed, match="there is nothing to answer"):
        session.warm()

    assert session.run("one").text == "1: one"
    assert list(session.messages["text"]) == ["one", "1: one"]


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
    endpoint = dataclasses.replace(neighbour(agent), stores=True)
    session = new(endpoint, transport="http", store=True)

    assert [session.run(prompt).text for prompt in ("one", "two")] == ["1: one", "3: two"]
    assert agent.seen == [(1, 1), (1, 3)]


def test_a_store_that_forgot_is_mended_over_http(new, neighbour):
    """The refusal leads to one full resend in the same turn."""
    agent = Neighbour()
    endpoint = dataclasses.replace(neighbour(agent, store=Forgetful()), stores=True)
    session = new(endpoint, transport="http", store=True)

    assert [session.run(prompt).text for prompt in ("one", "two")] == ["1: one", "3: two"]
    assert agent.seen == [(1, 1), (3, 3)]
    assert list(session.turns["retries"]) == [0, 1]
    assert list(session.turns["status"]) == ["completed", "completed"]


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
    endpoint = neighbour(Neighbour(), api_key="right", key_env=KEY)
    session = new(endpoint, transport=way)
    with pytest.raises(AuthenticationFailed, match=KEY):
        session.run("one")


def test_the_right_key_opens_the_door(new, neighbour, monkeypatch):
    """It travels as a bearer token."""
    monkeypatch.setenv(KEY, "right")
    session = new(neighbour(Neighbour(), api_key="right", key_env=KEY))
    assert session.run("one").text == "1: one"


def test_a_conversation_is_compacted(new, neighbour):
    """Its one item is sent back as it came, and the conversation goes on from it."""
    agent = Neighbour()
    session = new(neighbour(agent), model="any")
    session.run("one")
    session.run("two")

    assert session.compact() == (4, 1)
    assert session.run("three").text == "2: three"


def test_an_answer_of_a_type(new, neighbour):
    """The schema reaches the server as it knows it, and the text comes back as a value."""

    class Pointing(Neighbour):
        async def run(self, run):
            wanted = run.request.text.format
            self.seen.append((wanted.type, sorted(wanted.json_schema["properties"])))
            yield TextDelta('{"x": 1, "y": 2}')

    agent = Pointing()
    session = new(neighbour(agent))

    assert session.run("where?", schema=Point).value == Point(1, 2)
    assert agent.seen == [("json_schema", ["x", "y"])]


@pytest.mark.parametrize("way", ["websocket", "http"])
def test_thoughts_are_kept_and_travel_with_all_the_rest(new, neighbour, way):
    """A reasoning item comes back to its server as it was, sealed thoughts included."""

    class Thinking(Neighbour):
        async def run(self, run):
            self.seen += [one for one in run.context_items if isinstance(one, ReasoningItem)]
            yield ReasoningDelta("Hm.", encrypted_content="sealed")
            yield TextDelta("so")

    agent = Thinking()
    session = new(neighbour(agent), transport=way)
    session.run("one")
    session.run("two")

    (thought,) = agent.seen
    assert (thought.summary[0].text, thought.encrypted_content) == ("Hm.", "sealed")
    assert list(session.messages["type"]) == ["message", "reasoning", "message"] * 2


@pytest.mark.parametrize("way", ["websocket", "http"])
def test_an_answer_that_was_cut_short(new, neighbour, way):
    """What there is of it is returned, its turn is incomplete, and the next run works."""

    class Brief(Neighbour):
        async def run(self, run):
            async for event in super().run(run):
                yield event
            if run.context_items[-1].text() == "long":
                yield Incomplete("max_output_tokens")

    session = new(neighbour(Brief()), transport=way)

    assert session.run("long").text == "1: long"
    assert session.run("one").text == "3: one"
    assert list(session.turns["status"]) == ["incomplete", "completed"]


def test_an_abandoned_turn_does_not_answer_the_next(neighbour, run):
    """The connection is left to itself: the next turn has another, and its own answer."""
    agent = Neighbour(seconds=0.2)
    transport = WebSocketTransport(neighbour(agent))

    def asking(prompt):
        return Request(fields=Fields({}), input=EMPTY.extend([user(prompt)]))

    async def leave_and_ask():
        async with contextlib.aclosing(transport):
            async with contextlib.aclosing(transport.stream(asking("one"))) as first:
                while not isinstance(await anext(first), ResponseCreated):
                    pass
            return [event async for event in transport.stream(asking("two"))]

    events = run(leave_and_ask())
    assert text(events[-2].response.output[0]) == "1: two"
    assert [one.connection for one in events if isinstance(one, RequestSent)] == [2]


def test_a_server_without_websockets_is_talked_to_over_http(new, neighbour):
    """Uvicorn that has none leaves the upgrade to the app, which refuses it: that is enough."""
    session = new(neighbour(Neighbour(), ws="none"))

    assert [session.run(prompt).text for prompt in ("one", "two")] == ["1: one", "3: two"]
    assert list(session.turns["transport"]) == ["http", "http"]
    with pytest.raises(UpgradeRefused):
        new(session.endpoint, transport="websocket").run("one")


def test_a_frame_that_the_server_does_not_take_is_sent_once(new, neighbour):
    """The close code says that it is too big: no retry, one error, and smaller ones go on."""
    agent = Neighbour()
    session = new(neighbour(agent, ws_max_size=20_000))
    session.run("one")
    with pytest.raises(MessageTooBig):
        session.run("x" * 30_000)

    session.reset()
    assert session.run("two").text == "1: two"
    assert agent.seen == [(1, 1), (1, 1)]
    assert list(session.turns["retries"]) == [0, 0, 0]
