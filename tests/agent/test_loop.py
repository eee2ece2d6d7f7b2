"""A run asks, runs tools and asks again; however it ends, the conversation can be sent."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipy_agent.agent.calls import Worker
from ipy_agent.agent.conversation import Conversation
from ipy_agent.agent.loop import Ask, answer, warm
from ipy_agent.agent.schemas import shape_of
from ipy_agent.agent.tools import tool_of
from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import (
    AgentError,
    AnswerMisfit,
    BudgetExceeded,
    ConnectionLost,
    ProtocolError,
    ResponseFailed,
)
from ipy_agent.protocol.events import (
    Error,
    ItemDone,
    ResponseCompleted,
    ResponseFailedEvent,
    ResponseIncomplete,
    TextDelta,
)
from ipy_agent.protocol.items import text
from ipy_agent.protocol.requests import Fields
from ipy_agent.protocol.response import Reason, Response
from ipy_agent.records import Recorder
from ipy_agent.trace import (
    ItemsAdded,
    Notice,
    RequestSent,
    RunEnded,
    ToolBegan,
    ToolEnded,
    TurnEnded,
)
from ipy_agent.transport.scripted import ScriptedTransport

HERE = Endpoint(name="here", url="http://127.0.0.1:1/v1")
FIELDS = Fields({"model": "m"})


def add(x: int, y: int = 1) -> int:
    """Add."""
    return x + y


def fail() -> None:
    """Fail."""
    raise ValueError("no such row")


def stop() -> None:
    """Be interrupted."""
    raise KeyboardInterrupt


TOOLS = {function.__name__: tool_of(function) for function in (add, fail, stop)}


def calls(*names, **more):
    made = [{"name": name, "arguments": {"x": 1} if name == "add" else {}} for name in names]
    return {"tool_calls": made, **more}


class Runs:
    """A conversation, its endpoint and its records, without threads."""

    def __init__(self, transport, **ask):
        self.transport = ScriptedTransport(transport) if isinstance(transport, list) else transport
        self.conversation = Conversation()
        self.recorder = Recorder()
        self.heard = []
        self.ask = {"budget_turns": 25, "budget_seconds": 20.0, **ask}
        self.worker = Worker(TOOLS, "auto", lambda _: False, HERE)

    async def run(self, prompt="go", hear=lambda _: None):
        record = self.recorder.listener()

        def listen(event):
            record(event)
            self.heard.append(event)
            hear(event)

        ask = Ask(prompt=prompt, fields=FIELDS, endpoint="here", **self.ask)
        said = await answer(ask, self.conversation, self.transport, self.perform, listen)
        self.value = said.value
        return said.text

    async def perform(self, call):
        return self.worker.carry_out(call)

    @property
    def items(self):
        return list(self.conversation.items)

    @property
    def said(self):
        return [text(item) for item in self.items]

    @property
    def statuses(self):
        return [row.status for row in self.recorder.turns], self.recorder.cells[-1].status

    def outputs(self):
        return [item["output"] for item in self.items if item["type"] == "function_call_output"]


def assert_can_be_sent(items):
    """Every call has one output, and that comes after it."""
    called, answered = [], []
    for item in items:
        if item["type"] == "function_call":
            called.append(item["call_id"])
        elif item["type"] == "function_call_output":
            assert item["call_id"] in called
            answered.append(item["call_id"])
    assert sorted(called) == sorted(answered)
    assert len(set(answered)) == len(answered)


# how it goes


def test_a_prompt_gets_an_answer(run):
    """The run returns the last words, and both are in the conversation."""
    runs = Runs([{"text": "3"}])

    assert run(runs.run("what is 1 + 2?")) == "3"
    assert runs.said == ["what is 1 + 2?", "3"]
    assert runs.statuses == (["completed"], "completed")


def test_tools_run_until_the_model_needs_none(run):
    """Their outputs are what the next turn adds."""
    runs = Runs([calls("add"), calls("fail"), {"text": "done"}])

    assert run(runs.run()) == "done"
    assert runs.said == ["go", '{"x":1}', "2", "{}", "ValueError: no such row", "done"]
    assert runs.statuses == (["completed"] * 3, "completed")
    sent = [event.sent_items for event in runs.heard if isinstance(event, RequestSent)]
    assert sent == [1, 1, 1]


def test_calls_of_one_response_run_in_order(run):
    """Each has its output, and the next request has them all."""
    runs = Runs([calls("add", "fail", "add"), {"text": "done"}])

    run(runs.run())
    assert runs.outputs() == ["2", "ValueError: no such row", "2"]
    assert [row.status for row in runs.recorder.tools] == ["completed", "failed", "completed"]
    assert [row.turn for row in runs.recorder.tools] == [1, 1, 1]


def test_an_unknown_tool_is_the_models_mistake(run):
    """It is told which tools there are, and the run goes on."""
    runs = Runs([calls("fly"), {"text": "sorry"}])

    assert run(runs.run()) == "sorry"
    assert runs.outputs() == ["there is no tool 'fly'; the tools are: add, fail, stop"]


def test_bad_arguments_are_the_models_mistake(run):
    """It is told what is wrong, and the run goes on."""
    runs = Runs([{"tool_calls": [{"name": "add", "arguments": "{"}]}, {"text": "sorry"}])

    assert run(runs.run()) == "sorry"
    assert runs.outputs()[0].startswith("add: bad arguments")


def test_several_messages_are_one_answer(run):
    """The last words are all messages of the last response."""

    class Two(Terminal):
        output = (message("one"), {"type": "reasoning", "id": "rs"}, message("two"))

    assert run(Runs(Two()).run()) == "one\n\ntwo"


def test_a_second_run_goes_on_from_the_first(run):
    """The conversation grows, and only the new prompt is sent."""
    runs = Runs([{"text": "1"}, {"text": "2"}])

    async def main():
        await runs.run("one")
        return await runs.run("two")

    assert run(main()) == "2"
    assert runs.said == ["one", "1", "two", "2"]
    assert runs.recorder.turns[1].held_items == 2


def test_what_is_told_is_what_is_said(run):
    """The items that the listeners hear are those of the conversation."""
    runs = Runs([calls("add", "add"), {"text": "done"}])

    run(runs.run())
    told = [item for event in runs.heard if isinstance(event, ItemsAdded) for item in event.items]
    assert told == runs.items
    assert [row.item for row in runs.recorder.messages] == runs.items


def test_a_warm_up_says_nothing_and_adds_nothing(run):
    """The next run continues from it."""
    runs = Runs([{"text": "1"}])

    async def main():
        await warm(FIELDS, runs.conversation, runs.transport, runs.heard.append)
        before = runs.items
        await runs.run("one")
        return before

    assert run(main()) == []
    assert runs.transport.requests[0].generate is False
    assert runs.recorder.turns[0].previous_response_id == "resp_1"
    assert not any(isinstance(event, RunEnded) for event in runs.heard[:4])


# how it ends otherwise


def message(said):
    return {"type": "message", "role": "assistant", "content": said}


class Terminal(ScriptedTransport):
    """Answers every request with one terminal event."""

    kind, status, output, more = ResponseCompleted, "completed", (), {}

    async def stream(self, request):
        self.requests.append(request)
        yield self.kind(
            response=Response(id="resp", status=self.status, output=list(self.output), **self.more)
        )


class Breaking(ScriptedTransport):
    """Loses the connection before the event of this number."""

    def __init__(self, script, at):
        super().__init__(script)
        self.at = at

    async def stream(self, request):
        async with contextlib.aclosing(super().stream(request)) as stream:
            async for event in stream:
                self.at -= 1
                if self.at < 0:
                    self.at = 10**9
                    raise ConnectionLost("gone", sent=True, close_code=1011)
                yield event


def test_a_run_stops_at_its_budget_of_turns(run):
    """The error names the setting; what was done stays, whole."""
    runs = Runs([calls("add")] * 9, budget_turns=3)

    with pytest.raises(BudgetExceeded, match="3 turns: raise budget_turns"):
        run(runs.run())
    assert len(runs.transport.requests) == 3
    assert runs.outputs() == ["2", "2", "2"]
    assert runs.statuses == (["completed"] * 3, "failed")
    assert_can_be_sent(runs.items)


def test_a_run_stops_at_its_budget_of_seconds(run):
    """The tool that took too long has an output, a row and an unknown effect."""
    runs = Runs([calls("add", "add")], budget_seconds=0.05)

    async def for_ever(_):
        await asyncio.Event().wait()

    runs.perform = for_ever
    with pytest.raises(BudgetExceeded, match=r"0\.05 s: raise budget_seconds"):
        run(runs.run())
    assert_can_be_sent(runs.items)
    assert runs.outputs()[0] == "cut off by the end of the run; side effects unknown"
    assert runs.outputs()[1] == "not run"
    assert runs.statuses == (["failed"], "failed")
    assert [(row.status, row.output) for row in runs.recorder.tools] == [
        ("interrupted", "cut off by the end of the run; side effects unknown")
    ]
    assert runs.recorder.tools[0].duration_ms > 0


def test_a_timeout_of_something_else_is_not_the_budget(run):
    """An error keeps its own name."""

    class Slow(ScriptedTransport):
        async def stream(self, request):  # noqa: ARG002
            raise TimeoutError("the disk")
            yield

    with pytest.raises(TimeoutError, match="the disk"):
        run(Runs(Slow()).run())


@pytest.mark.parametrize("broken", [True, False])
def test_a_failure_on_the_first_turn_takes_the_prompt_back(run, broken):
    """The conversation is as it was, and the next run can be the same prompt again."""
    script = [{"text": "1"}, {"text": "2"}] if broken else [{"text": "1"}, {"error": {}}]
    runs = Runs(Breaking(script, 8) if broken else script)

    async def main():
        await runs.run("one")
        with pytest.raises(AgentError):
            await runs.run("two")
        between = runs.said
        await runs.run("two")
        return between

    assert run(main()) == ["one", "1"]
    assert runs.said[:3] == ["one", "1", "two"]
    assert [row.status for row in runs.recorder.cells] == ["completed", "failed", "completed"]


def test_a_failure_on_a_later_turn_keeps_what_was_done(run):
    """The calls and their outputs stay: they happened."""
    runs = Runs([calls("add"), {"error": {"status": 500}}, {"text": "done"}])

    async def main():
        with pytest.raises(ResponseFailed):
            await runs.run("one")
        between = runs.said
        return between, await runs.run("two")

    between, said = run(main())
    assert between == ["one", '{"x":1}', "2"]
    assert said == "done"
    assert runs.said == [*between, "two", "done"]
    assert [row.status for row in runs.recorder.turns] == ["completed", "failed", "completed"]


def test_an_empty_answer_is_an_answer(run):
    """The prompt stays: it was answered, with nothing."""
    runs = Runs([{"text": ""}, {"text": "2"}])

    async def main():
        return [await runs.run("one"), await runs.run("two")]

    assert run(main()) == ["", "2"]
    assert runs.said == ["one", "two", "2"]
    assert runs.recorder.turns[1].held_items == 1


def test_a_refusal_has_its_facts(run):
    """Status, code, parameter and seconds to wait are attributes; the text is one line."""
    facts = {"status": 429, "code": "slow", "message": "too\nfast", "param": "p"}
    runs = Runs([{"error": {**facts, "retry_after": 2.5}}])

    with pytest.raises(ResponseFailed) as failure:
        run(runs.run())
    error = failure.value
    assert str(error) == "too fast"
    assert (error.status, error.code, error.param, error.retry_after) == (429, "slow", "p", 2.5)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after": 0.5}, 0.5),
        ({"RETRY-AFTER": "Fri, 27 Nov 2026 07:00:00 GMT"}, None),
        ({"Retry-After": "²"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": None}, None),
        ({}, None),
        (None, None),
    ],
)
def test_seconds_to_wait_are_a_number_or_nothing(run, headers, seconds):
    """Whatever the header holds."""

    class Refusing(ScriptedTransport):
        async def stream(self, request):  # noqa: ARG002
            yield Error(status=429, error=Reason(message="wait", headers=headers))

    with pytest.raises(ResponseFailed) as failure:
        run(Runs(Refusing()).run())
    assert failure.value.retry_after == seconds


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        ({"code": "server_error", "message": "no"}, "server_error", "no"),
        ({"code": 7, "message": "no", "param": "p"}, "7", "no"),
        ({}, "response_failed", "the endpoint gave no reason"),
        (None, "response_failed", "the endpoint gave no reason"),
        ({"message": {"deep": 1}}, "response_failed", "the endpoint gave no reason"),
    ],
)
def test_a_response_that_failed_is_a_typed_error(run, error, code, said):
    """Whatever its error looks like."""

    class Failed(Terminal):
        kind, status, more = ResponseFailedEvent, "failed", {"error": error}

    runs = Runs(Failed())
    with pytest.raises(ResponseFailed, match=said) as failure:
        run(runs.run())
    assert failure.value.code == code
    assert runs.items == []
    assert runs.statuses == (["failed"], "failed")


def test_an_incomplete_response_runs_no_tools(run):
    """Its calls get an output that says so, and the run ends with what was said."""

    class Incomplete(Terminal):
        kind, status = ResponseIncomplete, "incomplete"
        output = (
            message("so far"),
            {"type": "function_call", "call_id": "c", "name": "add", "arguments": '{"x'},
        )

    runs = Runs(Incomplete())
    assert run(runs.run()) == "so far"
    assert runs.outputs() == ["not run"]
    assert runs.recorder.tools == []
    assert runs.statuses == (["incomplete"], "incomplete")


def test_a_call_told_twice_runs_once(run):
    """Of two calls with one id the first counts, and there is one output."""
    twice = {"type": "function_call", "call_id": "c", "name": "add", "arguments": '{"x":1}'}

    class Twice(Terminal):
        output = (twice, {**twice, "arguments": '{"x":2}'})

    runs = Runs(Twice(), budget_turns=1)
    with pytest.raises(BudgetExceeded):
        run(runs.run())
    assert runs.outputs() == ["2"]
    assert len(runs.recorder.tools) == 1
    assert [item["type"] for item in runs.items[1:]] == ["function_call", "function_call_output"]


def test_an_output_that_the_endpoint_makes_up_is_left_out(run):
    """It answers no call of ours, and would make the conversation one that nobody takes."""

    class MadeUp(Terminal):
        output = ({"type": "function_call_output", "call_id": "x", "output": "ok"}, message("hi"))

    runs = Runs(MadeUp())
    assert run(runs.run()) == "hi"
    assert [item["type"] for item in runs.items] == ["message", "message"]


def test_the_same_call_five_times_in_a_row_ends_the_run_and_the_next_goes_on(run):
    """Four of them ran; the fifth has an output that says why it did not."""
    runs = Runs([*[calls("add")] * 5, {"text": "better"}])

    with pytest.raises(BudgetExceeded, match="the same call of add 5 times in a row") as error:
        run(runs.run())

    assert error.value.code == "same_call"
    *ran, last = runs.outputs()
    assert ran == ["2"] * 4
    assert last.startswith("not run: this same call was made 5 times in a row")
    assert [row.status for row in runs.recorder.tools] == ["completed"] * 4 + ["failed"]
    assert_can_be_sent(runs.items)
    runs.worker = Worker(TOOLS, "auto", lambda _: False, HERE)
    assert run(runs.run("go on")) == "better"


def test_another_call_in_between_is_no_circle(run):
    """Neither is one with other arguments."""
    again = [calls("add"), calls("add"), calls("fail")]
    runs = Runs([*again * 4, {"text": "done"}])

    assert run(runs.run()) == "done"


def test_calls_of_one_response_count_as_those_of_several(run):
    """What is called behind the fifth is not run."""
    runs = Runs([calls(*["add"] * 5, "fail")])

    with pytest.raises(BudgetExceeded, match="5 times in a row"):
        run(runs.run())
    assert runs.outputs()[-1] == "not run"
    assert_can_be_sent(runs.items)


@pytest.mark.parametrize("name", ["", "a" * 100_000, "x\n../\x00; rm", "\u202eevil", "add "])
def test_a_tool_of_an_odd_name_is_the_models_mistake(run, name):
    """It is told which tools there are, in a bounded text, and the run goes on."""
    odd = {"type": "function_call", "call_id": "c", "name": name, "arguments": "{}"}

    class Odd(Terminal):
        output = (odd,)

    runs = Runs(Odd(), budget_turns=1)
    with pytest.raises(BudgetExceeded):
        run(runs.run())
    (said,) = runs.outputs()
    assert said.startswith("there is no tool")
    assert len(said) <= HERE.output_limit + 100
    assert runs.recorder.tools[0].status == "failed"


@pytest.mark.parametrize(
    "item",
    [
        {},
        {"type": 3},
        {"type": "function_call"},
        {"type": "function_call", "call_id": "c", "name": "add"},
        {"type": "function_call", "call_id": 1, "name": "add", "arguments": "{}"},
        {"type": "function_call", "call_id": "c", "name": "add", "arguments": {}},
    ],
)
def test_an_item_that_is_none_breaks_the_protocol(run, item):
    """The error is typed, nothing ran, and the conversation is as it was."""

    class Strange(Terminal):
        output = (item,)

    runs = Runs(Strange())
    with pytest.raises(ProtocolError):
        run(runs.run())
    assert runs.items == []
    assert runs.recorder.tools == []
    assert runs.statuses == (["failed"], "failed")


def test_a_stream_without_an_end_breaks_the_protocol(run):
    """A transport that stops early is told as such."""

    class Mute(ScriptedTransport):
        async def stream(self, request):  # noqa: ARG002
            yield TextDelta(delta="a")

    with pytest.raises(ProtocolError):
        run(Runs(Mute()).run())


def test_an_interrupt_in_a_tool_ends_the_run(run):
    """Its call and those behind it have outputs, and the task counts as cancelled."""
    runs = Runs([calls("add", "stop", "add"), {"text": "after"}])

    async def main():
        task = asyncio.create_task(runs.run())
        await asyncio.wait([task])
        return task.cancelled(), await runs.run("again")

    cancelled, said = run(main())
    assert cancelled
    assert said == "after"
    assert runs.outputs() == [
        "2",
        "interrupted by the user; side effects unknown",
        "not run",
    ]
    assert [row.status for row in runs.recorder.tools] == ["completed", "interrupted"]
    assert [row.status for row in runs.recorder.turns] == ["interrupted", "completed"]
    assert [row.status for row in runs.recorder.cells] == ["interrupted", "completed"]


def test_a_cancelled_run_is_an_interrupted_one(run):
    """While it streams, the prompt is taken back and the rows say so."""
    runs = Runs([{"text": "abc", "chunk_chars": 1}, {"text": "after"}])

    async def main():
        def hear(event):
            if isinstance(event, TextDelta):
                task.cancel()

        task = asyncio.create_task(runs.run("one", hear))
        await asyncio.wait([task])
        between = runs.items, task.cancelled(), runs.statuses
        return between, await runs.run("two")

    between, said = run(main())
    assert between == ([], True, (["interrupted"], "interrupted"))
    assert said == "after"


ENTRIES = st.one_of(
    st.builds(calls, st.sampled_from(["add", "fail", "fly", "stop"])),
    st.lists(st.sampled_from(["add", "fail", "fly", "add", "stop"]), min_size=1, max_size=3).map(
        lambda names: calls(*names, text="let me see")
    ),
    st.just({"text": "done"}),
    st.just({"error": {"status": 500}}),
)


@settings(deadline=None, max_examples=150)
@given(
    script=st.lists(ENTRIES, max_size=5),
    cut=st.integers(0, 40),
    how=st.sampled_from(["lost", "cancelled", "whole"]),
    turns=st.integers(1, 4),
)
def test_whatever_happens_the_conversation_can_be_sent(script, cut, how, turns):
    """After any script, cut off anywhere, each call has one output and the next run works."""
    transport = Breaking(script, cut) if how == "lost" else ScriptedTransport(script)
    runs = Runs(transport, budget_turns=turns)
    left = cut

    async def main():
        def hear(event):  # noqa: ARG001
            nonlocal left
            left -= 1
            if how == "cancelled" and left == 0:
                task.cancel()

        for prompt in ("one", "two"):
            task = asyncio.create_task(runs.run(prompt, hear))
            await asyncio.wait([task])
            assert task.cancelled() or isinstance(task.exception(), AgentError | None)
            assert_can_be_sent(runs.items)
        runs.transport = ScriptedTransport([{"text": "the end"}])
        return await runs.run("three")

    assert asyncio.run(main()) == "the end"
    assert_can_be_sent(runs.transport.requests[0].input)
    assert all(row.status != "running" for row in runs.recorder.turns)
    assert all(row.status != "running" for row in runs.recorder.cells)
    kinds = [type(event) for event in runs.heard]
    assert kinds.count(ToolBegan) == kinds.count(ToolEnded)
    assert kinds.count(TurnEnded) == len(runs.recorder.turns)


# answers of a type


def test_an_answer_may_have_to_be_of_a_type(run):
    """What fits is there as a value, beside its text; without a type the text is the value."""
    runs = Runs([{"text": "[1, 2]"}], shape=shape_of(list[int]))
    runs.transport = ScriptedTransport([{"text": '{"value": [1, 2]}'}])
    assert run(runs.run()) == '{"value": [1, 2]}'
    assert runs.value == [1, 2]

    plain = Runs([{"text": "one"}])
    assert run(plain.run()) == plain.value == "one"


def test_an_answer_that_does_not_fit_is_asked_for_again(run):
    """Once, with what was wrong with it, and the user is told."""
    runs = Runs([{"text": "one"}, {"text": '{"value": 1}'}], shape=shape_of(int))

    run(runs.run("how many?"))
    assert runs.value == 1
    assert len(runs.transport.requests) == 2
    asked = [text(item) for item in runs.items if item.get("role") == "user"]
    assert asked[0] == "how many?"
    assert asked[1].startswith("That does not fit the schema: ")
    assert [event.lasting for event in runs.heard if isinstance(event, Notice)] == [True]
    assert runs.statuses == (["completed", "completed"], "completed")


def test_an_answer_that_never_fits_is_an_error_with_its_text(run):
    """The second misfit ends the run; the conversation goes on from there."""
    runs = Runs([{"text": "one"}, {"text": "two"}, {"text": "3"}], shape=shape_of(int))

    with pytest.raises(AnswerMisfit) as failure:
        run(runs.run())
    assert failure.value.text == "two"
    assert "\n" not in str(failure.value)
    assert runs.recorder.cells[-1].status == "failed"

    runs.ask["shape"] = None
    assert run(runs.run()) == "3"


def test_an_answer_that_does_not_fit_at_the_end_of_the_budget_is_told_as_that(run):
    """Its text is not lost to the budget, and nothing is asked that nobody will answer."""
    runs = Runs([{"text": "one"}], shape=shape_of(int), budget_turns=1)

    with pytest.raises(AnswerMisfit) as failure:
        run(runs.run())
    assert failure.value.text == "one"
    assert runs.items[-1]["role"] == "assistant"


def test_an_interrupt_of_an_early_look_ends_the_run_at_once(run):
    """Nobody waits for the rest of the response."""

    def look() -> str:
        """Be interrupted."""
        raise KeyboardInterrupt

    class Hanging(ScriptedTransport):
        async def stream(self, request):
            self.requests.append(request)
            call = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
            yield ItemDone(output_index=0, item=call)
            await asyncio.Event().wait()

    runs = Runs(Hanging())
    runs.worker = Worker({"look": tool_of(look, read_only=True)}, "auto", lambda _: False, HERE)
    runs.ask["early"] = runs.worker.begins_early
    with pytest.raises(asyncio.CancelledError):
        run(runs.run())

    assert runs.statuses == (["interrupted"], "interrupted")
    assert runs.recorder.tools[0].status == "interrupted"


def test_an_answer_that_was_cut_off_is_not_asked_for_again(run):
    """It would be cut off again."""

    class Cut(ScriptedTransport):
        async def stream(self, request):
            self.requests.append(request)
            yield ResponseIncomplete(
                response=Response(id="resp_1", status="incomplete", output=[said_so('{"value"')])
            )

    runs = Runs(Cut(), shape=shape_of(int))
    with pytest.raises(AnswerMisfit):
        run(runs.run())
    assert len(runs.transport.requests) == 1


def said_so(words):
    content = [{"type": "output_text", "text": words, "annotations": []}]
    return {"type": "message", "id": "m", "role": "assistant", "content": content}


# what a run asks with


def test_pictures_stand_behind_the_prompt(run):
    """They are parts of the user's message."""
    part = {"type": "input_image", "image_url": "data:,"}
    runs = Runs([{"text": "a cat"}], pictures=[part])
    run(runs.run("what is it?"))

    assert runs.items[0]["content"] == [{"type": "input_text", "text": "what is it?"}, part]


def test_a_run_asks_on_the_lane_of_its_branch(run):
    """The recorder knows the branch, the transport the lane."""
    runs = Runs([{"text": "1"}])
    runs.conversation = Conversation("idea")
    run(runs.run())

    assert runs.transport.requests[0].stream_id == "idea"
    assert runs.recorder.turns[0].branch == "idea"
    assert runs.recorder.turns[0].said is runs.conversation.items


def test_a_custom_call_gets_a_custom_output(run):
    """Its input is what the tool is called with, as it is."""

    class Custom(ScriptedTransport):
        async def stream(self, request):
            self.requests.append(request)
            call = {"type": "custom_tool_call", "call_id": "c", "name": "sql", "input": "SELECT 1"}
            output = [said_so("done")] if len(self.requests) > 1 else [call]
            yield ResponseCompleted(response=Response(id="r", status="completed", output=output))

    def sql(query: str) -> str:
        """Ask a database."""
        return f"ran {query}"

    runs = Runs(Custom())
    runs.worker = Worker({"sql": tool_of(sql, custom=True)}, "auto", lambda _: False, HERE)
    run(runs.run())

    output = {"type": "custom_tool_call_output", "call_id": "c", "output": "ran SELECT 1"}
    assert runs.items[2] == output
    assert runs.recorder.tools[0].arguments == "SELECT 1"


def test_a_look_is_over_before_its_response_is(run):
    """A tool without side effects does not wait for the terminal event."""

    def look() -> str:
        """Look."""
        return "seen"

    runs = Runs([calls("look"), {"text": "done"}])
    runs.worker = Worker({"look": tool_of(look, read_only=True)}, "read", lambda _: False, HERE)
    runs.ask["early"] = runs.worker.begins_early
    run(runs.run())

    kinds = [type(event) for event in runs.heard]
    assert kinds.index(ToolBegan) < kinds.index(ResponseCompleted)
    assert [text(item) for item in runs.items][-2:] == ["seen", "done"]
