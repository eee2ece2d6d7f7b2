"""Answers from a list are told as a live connection tells them."""

from __future__ import annotations

import contextlib

import pytest

from ipy_agent.errors import UsageError
from ipy_agent.protocol.events import Error, ResponseCompleted, TextDelta
from ipy_agent.protocol.items import EMPTY, calls, output_of, text, user
from ipy_agent.protocol.requests import Fields, Request
from ipy_agent.trace import RequestSent, ResponseEnded
from ipy_agent.transport.scripted import ScriptedTransport
from ipy_agent.transport.websocket import WebSocketTransport

FIELDS = Fields({"model": "m"})


async def turn(transport, items, **more):
    request = Request(fields=FIELDS, input=items, **more)
    return [event async for event in transport.stream(request)]


async def talk(transport, *prompts):
    """Return the events of each turn of a conversation."""
    items, turns = EMPTY, []
    for prompt in prompts:
        items = items.extend([user(prompt)])
        turns.append(await turn(transport, items))
        last = turns[-1][-2]
        if isinstance(last, ResponseCompleted):
            items = items.extend(last.response.output)
    return turns


def output(events):
    return events[-2].response.output


def test_a_text_is_said_in_pieces_and_whole(run):
    """The deltas are the text in pieces of `chunk_chars`; the terminal event has it whole."""
    transport = ScriptedTransport([{"text": "abcde", "chunk_chars": 2}, {"text": "fg"}])

    first, second = run(talk(transport, "one", "two"))
    deltas = [event.delta for event in first if isinstance(event, TextDelta)]
    assert deltas == ["ab", "cd", "e"]
    assert [text(item) for item in output(first)] == ["abcde"]
    assert [text(item) for item in output(second)] == ["fg"]
    assert isinstance(first[0], RequestSent)
    assert first[-1].received_bytes > 0


def test_tool_calls_have_ids_of_their_own(run):
    """Arguments are encoded; a text is said as it is, well-formed or not."""
    call = {"name": "price", "arguments": {"ticker": "X"}}
    script = [{"text": "let me see", "tool_calls": [call, {"name": "price", "arguments": "{"}]}]
    transport = ScriptedTransport([*script, *script, {"tool_calls": [{"name": "now"}]}])

    turns = run(talk(transport, "one", "two", "three"))
    made = [call for events in turns for call in calls(output(events))]
    assert [call["arguments"] for call in made] == ['{"ticker":"X"}', "{"] * 2 + ["{}"]
    assert len({call["call_id"] for call in made}) == 5
    assert text(output(turns[0])[0]) == "let me see"


def test_a_custom_tool_is_called_with_a_text(run):
    """As the embedded server calls it: what the request offers decides."""
    fields = Fields({"tools": [{"type": "custom", "name": "sql"}]})
    script = [{"tool_calls": [{"name": "sql", "arguments": "select 1"}, {"name": "other"}]}]
    request = Request(fields=fields, input=EMPTY.extend([user("go")]))

    async def asked():
        return [event async for event in ScriptedTransport(script).stream(request)]

    sql, other = output(run(asked()))
    assert (sql["type"], sql["input"]) == ("custom_tool_call", "select 1")
    assert (other["type"], other["arguments"]) == ("function_call", "{}")


def test_past_its_end_the_last_prompt_is_echoed(run):
    """A script that is empty answers every prompt with itself."""
    assert [text(output(events)[0]) for events in run(talk(ScriptedTransport(), "a", "b"))] == [
        "a",
        "b",
    ]


def test_an_error_has_its_facts_and_forgets(run):
    """Status, code, text, parameter and Retry-After are told; the next turn sends everything."""
    facts = {"status": 429, "code": "slow", "message": "wait", "param": "p", "retry_after": 2.5}
    transport = ScriptedTransport([{"text": "1"}, {"error": facts}, {"error": {}}, {"text": "4"}])

    _, failed, bare, then = run(talk(transport, "one", "two", "three", "four"))
    error = failed[-2]
    assert isinstance(error, Error)
    assert (error.status, error.reason.code, error.reason.message) == (429, "slow", "wait")
    assert error.reason.param == "p"
    assert error.reason.headers == {"Retry-After": "2.5"}
    assert bare[-2].status == 500
    assert then[0].previous_response_id is None
    assert then[0].sent_items == 5


def test_a_warm_up_uses_up_no_entry(run):
    """It has an id to continue from and no output."""
    transport = ScriptedTransport([{"text": "1"}])

    async def main():
        warmed = await turn(transport, EMPTY, generate=False)
        return warmed, await turn(transport, EMPTY.extend([user("one")]))

    warmed, asked = run(main())
    assert output(warmed) == []
    assert asked[0].previous_response_id == warmed[-2].response.id
    assert text(output(asked)[0]) == "1"


def test_it_keeps_what_was_asked_and_says_how_far_it_is(run):
    """`requests` holds the whole requests, however little was sent."""
    transport = ScriptedTransport()

    run(talk(transport, "one", "two"))
    whole = [[text(item) for item in request.input] for request in transport.requests]
    assert whole == [["one"], ["one", "one", "two"]]
    assert transport.describe() == "scripted (2 turns)"


def test_after_a_goodbye_it_is_a_new_connection(run):
    """The turn after `aclose` has the next number, is not reused and sends everything."""
    transport = ScriptedTransport()

    async def main():
        before = await talk(transport, "one", "two")
        await transport.aclose()
        await transport.aclose()
        return [*before, *await talk(transport, "three")]

    told = [events[0] for events in run(main())]
    assert [event.connection for event in told] == [1, 1, 2]
    assert [event.reused for event in told] == [False, True, False]


def test_a_turn_that_is_left_is_not_continued_from(run):
    """As on a live connection, whoever leaves a turn begins anew."""
    transport = ScriptedTransport([{"text": "1"}, {"text": "2"}])

    async def main():
        items = EMPTY.extend([user("one")])
        first = await turn(transport, items)
        items = items.extend([*output(first), user("two")])
        left = transport.stream(Request(fields=FIELDS, input=items))
        async with contextlib.aclosing(left):
            assert (await anext(left)).previous_response_id == "resp_1"
        return await turn(transport, items)

    events = run(main())
    assert events[0].connection == 2
    assert events[0].previous_response_id is None


@pytest.mark.parametrize("entry", [{}, {"txt": "a"}, {"error": 500}, "a", {"text": "a", "then": 1}])
def test_an_entry_that_does_not_fit_is_told_when_the_script_is_given(entry):
    """The error has the number of the entry."""
    with pytest.raises(UsageError, match="entry 2 of the script"):
        ScriptedTransport([{"text": "a"}, entry])


SCRIPT = [
    {"text": "a b c", "chunk_chars": 2},
    {"tool_calls": [{"name": "f", "arguments": {"x": 1}}], "text": "calling"},
    {"text": "then this"},
    {"error": {"status": 429, "code": "slow", "message": "wait", "retry_after": 3}},
    {"text": "d"},
    {"text": ""},
]


def test_it_takes_what_the_embedded_server_takes(run, served):
    """The same script over a real socket gives the same outputs, usage and errors."""

    def essence(turns):
        for events in turns:
            last, told = events[-2], events[0]
            yield [event.delta for event in events if isinstance(event, TextDelta)]
            if isinstance(last, Error):
                yield last.status, last.reason.code, last.reason.headers
            else:
                yield [text(item) for item in last.response.output], last.response.usage
            yield told.sent_items, told.held_items, told.reused

    async def main(transport):
        items, turns = EMPTY, []
        for prompt in ("one", "two", None, "three four", "five", "six"):
            if prompt is None:
                new = [output_of(call["call_id"], "o") for call in calls(output(turns[-1]))]
            else:
                new = [user(prompt)]
            items = items.extend(new)
            turns.append(await turn(transport, items))
            if isinstance(turns[-1][-2], ResponseCompleted):
                items = items.extend(output(turns[-1]))
        await transport.aclose()
        return turns

    live = run(main(WebSocketTransport(served(SCRIPT))))
    scripted = run(main(ScriptedTransport(SCRIPT)))
    assert list(essence(scripted)) == list(essence(live))
    assert all(isinstance(events[-1], ResponseEnded) for events in scripted)
