"""Calls that begin before their response is complete, and those that wait."""

from __future__ import annotations

import asyncio

import pytest

from ipy_agent.agent.calls import Worker
from ipy_agent.agent.early import EarlyCalls
from ipy_agent.agent.tools import tool_of
from ipy_agent.endpoints import Endpoint
from ipy_agent.protocol.events import ItemDone, ResponseCompleted
from ipy_agent.protocol.response import Response
from ipy_agent.trace import RequestSent, ToolBegan, ToolEnded

HERE = Endpoint(name="here", url="http://127.0.0.1:1/v1")


def look(at: str) -> str:
    """Look."""
    return f"a look at {at}"


def change(what: str) -> str:
    """Change."""
    return f"changed {what}"


TOOLS = {"look": tool_of(look, read_only=True), "change": tool_of(change)}


def call(name, number=1, value="x"):
    parameter = "at" if name == "look" else "what"
    return {
        "type": "function_call",
        "call_id": f"call_{number}",
        "name": name,
        "arguments": f'{{"{parameter}": "{value}"}}',
    }


def done(item):
    return ItemDone(output_index=0, item=item)


class Turn:
    """The calls of one turn, carried out as soon as somebody waits."""

    def __init__(self, mode="auto"):
        self.heard = []
        self.performed = []
        self.worker = Worker(TOOLS, mode, lambda _: True, HERE)
        self.calls = EarlyCalls(self.worker.begins_early, self.perform, self.heard.append)

    async def perform(self, call):
        self.performed.append(call["call_id"])
        return self.worker.carry_out(call)

    async def hears(self, *events):
        for event in events:
            self.calls.hear(event)
            for _ in range(3):
                await asyncio.sleep(0)

    @property
    def order(self):
        return [type(event).__name__ for event in self.heard]


END = ResponseCompleted(response=Response(id="resp_1"))


def test_a_look_begins_when_its_call_is_complete(run):
    """It ran before the response ended, once, and what it found is told afterwards."""
    turn = Turn()

    async def main():
        await turn.hears(done(call("look")), END)
        outcome = await turn.calls.outcome(call("look"))
        await turn.calls.close()
        return outcome.output

    assert run(main()) == "a look at x"
    assert turn.order == ["ItemDone", "ToolBegan", "ToolEnded", "ResponseCompleted"]
    assert turn.performed == ["call_1"]


def test_a_change_waits_for_the_end_and_what_follows_it_waits_too(run):
    """A look behind a change must see what the change made."""
    turn = Turn()

    async def main():
        calls = [call("look", 1), call("change", 2), call("look", 3)]
        await turn.hears(*map(done, calls), END)
        assert turn.performed == ["call_1"]
        for each in calls:
            await turn.calls.outcome(each)
        await turn.calls.close()

    run(main())
    assert turn.performed == ["call_1", "call_2", "call_3"]


@pytest.mark.parametrize("mode", ["read", "ask", "auto"])
def test_a_look_asks_nobody_in_any_mode(mode):
    """What changes nothing may begin early; an unknown tool and a change never do."""
    worker = Worker(TOOLS, mode, lambda _: True, HERE)

    early = [worker.begins_early(call(name)) for name in ("look", "change", "nothing")]
    assert early == [True, False, False]


@pytest.mark.parametrize(
    ("other", "seen"), [(call("look", 1, "y"), "a look at y"), (call("look", 2), "a look at x")]
)
def test_the_complete_response_wins(run, other, seen):
    """Where it holds another call than was begun, that one runs, and the other was for nothing."""
    turn = Turn()

    async def main():
        await turn.hears(done(call("look")), END)
        outcome = await turn.calls.outcome(other)
        await turn.calls.close()
        return outcome.ended.call_id, outcome.output

    name, output = run(main())
    assert name == other["call_id"]
    assert output == seen
    assert turn.performed == ["call_1", other["call_id"]]


def test_a_call_that_is_told_twice_runs_once(run):
    """A server may repeat itself."""
    turn = Turn()

    async def main():
        await turn.hears(done(call("look")), done(call("look")), END)
        await turn.calls.outcome(call("look"))

    run(main())
    assert turn.performed == ["call_1"]


def test_what_was_begun_for_nothing_is_cut_off(run):
    """Its end is told all the same, as interrupted, before the turn ends."""
    turn = Turn()

    async def never(call):
        turn.performed.append(call["call_id"])
        await asyncio.Event().wait()

    async def main():
        turn.calls = EarlyCalls(lambda _: True, never, turn.heard.append)
        await turn.hears(done(call("look")))
        await turn.calls.close()

    run(main())
    (ended,) = (event for event in turn.heard if isinstance(event, ToolEnded))
    assert ended.status == "interrupted"


def test_a_turn_that_is_sent_again_begins_anew(run):
    """After a resend a look may begin early again, whatever was called before."""
    turn = Turn()
    again = RequestSent(
        transport="websocket",
        connection=1,
        reused=True,
        connect_ms=None,
        previous_response_id=None,
        sent_items=1,
        held_items=0,
        sent_bytes=1,
        full_bytes=1,
    )

    async def main():
        await turn.hears(done(call("change", 1)), again, done(call("look", 2)))
        await turn.calls.close()

    run(main())
    assert turn.performed == ["call_2"]
    assert [event.call_id for event in turn.heard if isinstance(event, ToolBegan)] == ["call_2"]
