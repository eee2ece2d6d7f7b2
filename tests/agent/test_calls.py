"""A call ends in one output, whatever the model, the user or the tool does."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime

import pytest

from ipy_agent.agent.approval import Allowances, Reply
from ipy_agent.agent.calls import INTERRUPTED, NOBODY, Worker, cut_off
from ipy_agent.agent.tools import Result, tool_of
from ipy_agent.coroutines import settled
from ipy_agent.endpoints import Endpoint

HERE = Endpoint(name="here", url="http://127.0.0.1:1/v1")


def add(x: int, y: int = 1) -> int:
    """Add."""
    return x + y


def look() -> str:
    """Look."""
    return "seen"


def plot() -> Result:
    """Plot."""
    return Result("a plot", pictures=["data:image/png;base64,AA=="])


def long() -> str:
    """Say much."""
    return "x" * 10_000


def wrong() -> Result:
    """Run, and go wrong."""
    return Result("Traceback: no", failed=True)


def shout(text: str) -> str:
    """Shout."""
    return text.upper()


def other() -> str:
    """Do something else."""
    return "done"


TOOLS = {
    "add": tool_of(add),
    "look": tool_of(look, read_only=True),
    "plot": tool_of(plot, read_only=True),
    "long": tool_of(long, read_only=True),
    "wrong": tool_of(wrong, read_only=True),
}


class Asked:
    """A user who is asked: answers as told and keeps the questions."""

    def __init__(self, answer=Reply.NO):
        self.questions = []
        self._answer = answer

    def __call__(self, question):
        self.questions.append(question)
        if isinstance(self._answer, BaseException):
            raise self._answer
        return self._answer


def worker(mode="auto", answer=Reply.NO, endpoint=HERE, allowances=None, **tools):
    asked = Asked(answer)
    made = {name: tool_of(function, name=name) for name, function in tools.items()}
    return Worker({**TOOLS, **made}, mode, asked, endpoint, allowances), asked


def call(name, arguments="{}", call_id="call_1"):
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


def test_a_call_that_runs_has_its_value_and_its_row():
    """Output and record say the same; nobody was asked."""
    one, asked = worker()

    outcome = one.carry_out(call("add", '{"x": 2}', "call_7"))
    row = outcome.ended
    assert outcome.output == "3"
    assert (row.call_id, row.name, row.arguments, row.output) == ("call_7", "add", '{"x": 2}', "3")
    assert (row.approval, row.approval_ms, row.status) == ("auto", None, "completed")
    assert row.duration_ms >= 0
    assert row.started_at.tzinfo is UTC
    assert asked.questions == []


@pytest.mark.parametrize("nothing", ["", None])
def test_no_arguments_are_empty_ones(nothing):
    """A model may leave them out."""
    one, _ = worker()

    assert one.carry_out(call("look", nothing)).output == "seen"


def test_an_unknown_tool_is_told_which_there_are():
    """The call fails, and nothing ran."""
    one, _ = worker()
    none = Worker({}, "auto", Asked(), HERE)

    outcome = one.carry_out(call("fly"))
    assert outcome.output == ("there is no tool 'fly'; the tools are: add, look, plot, long, wrong")
    assert (outcome.ended.status, outcome.ended.approval) == ("failed", "none")
    assert outcome.ended.duration_ms is None
    assert "none" in none.carry_out(call("fly")).output


def test_bad_arguments_are_told_before_anybody_is_asked():
    """The call fails with what is wrong with them."""
    one, asked = worker("ask", answer=Reply.YES)

    outcome = one.carry_out(call("add", '{"x": "2"}'))
    assert outcome.output.startswith("add: bad arguments: Expected `int`")
    assert (outcome.ended.status, outcome.ended.approval) == ("failed", "none")
    assert asked.questions == []


@pytest.mark.parametrize("mode", ["read", "ask", "auto"])
def test_a_tool_without_side_effects_runs_unasked(mode):
    """In every mode."""
    one, asked = worker(mode)

    outcome = one.carry_out(call("look"))
    assert (outcome.output, outcome.ended.approval) == ("seen", "auto")
    assert asked.questions == []


def test_the_mode_read_refuses_side_effects():
    """The model is told why; nobody is asked, nothing waited for."""
    one, asked = worker("read", answer=Reply.YES)

    outcome = one.carry_out(call("add", '{"x": 2}'))
    assert outcome.output == "not run: add has side effects and the mode is read"
    assert (outcome.ended.status, outcome.ended.approval) == ("refused", "no")
    assert (outcome.ended.duration_ms, outcome.ended.approval_ms) == (None, None)
    assert asked.questions == []


def test_a_yes_runs_the_call_and_its_wait_is_measured():
    """The time of the question is not the tool's."""
    one, asked = worker("ask", answer=Reply.YES)

    outcome = one.carry_out(call("add", '{"x": 2}'))
    row = outcome.ended
    assert outcome.output == "3"
    assert [question.code for question in asked.questions] == ["add(x=2)"]
    assert (row.approval, row.status) == ("yes", "completed")
    assert row.approval_ms >= 0
    assert row.duration_ms >= 0


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Reply.NO, "not run: the user said no"),
        (Reply.NOBODY, NOBODY),
        (None, "not run: the user said no"),
        (False, "not run: the user said no"),
    ],
)
def test_a_no_is_told_and_its_wait_is_measured(answer, told):
    """The tool did not run: it has no duration. A reply that is none is a no as well."""
    ran = []

    def act():
        """Act."""
        ran.append(1)

    one, _ = worker("ask", answer=answer, act=act)

    outcome = one.carry_out(call("act"))
    assert outcome.output == told
    assert (outcome.ended.approval, outcome.ended.status) == ("no", "refused")
    assert outcome.ended.approval_ms >= 0
    assert outcome.ended.duration_ms is None
    assert ran == []


def test_a_tool_that_the_user_allows_at_the_question_is_not_asked_about_again():
    """The first call is a yes, the next is allowed, and another tool is asked about."""
    allowances = Allowances()
    one, asked = worker("ask", answer=Reply.ALWAYS, allowances=allowances, other=other)

    first = one.carry_out(call("add", '{"x": 1}'))
    second = one.carry_out(call("add", '{"x": 2}'))
    assert [first.output, second.output] == ["2", "3"]
    assert [first.ended.approval, second.ended.approval] == ["yes", "allowed"]
    assert second.ended.approval_ms is None
    assert list(allowances) == [("add", "session")]
    one.carry_out(call("other"))
    assert [question.tool for question in asked.questions] == ["add", "other"]


def test_an_allowance_for_once_is_used_by_a_call_that_runs():
    """A call that cannot run does not use it up; the second that can is asked about."""
    allowances = Allowances()
    allowances.allow("add", once=True)
    one, asked = worker("ask", allowances=allowances)

    bad, first, second = (
        one.carry_out(call("add", said)) for said in ('{"x": "a"}', '{"x": 1}', '{"x": 2}')
    )
    assert bad.ended.approval == "none"
    assert (first.output, first.ended.approval) == ("2", "allowed")
    assert (second.output, second.ended.approval) == ("not run: the user said no", "no")
    assert len(asked.questions) == 1


def test_mode_read_runs_nothing_with_side_effects_whatever_was_allowed():
    """An allowance answers a question, and in that mode there is none."""
    allowances = Allowances()
    allowances.allow("add", once=True)
    one, asked = worker("read", answer=Reply.YES, allowances=allowances)

    outcome = one.carry_out(call("add", '{"x": 1}'))
    assert outcome.output == "not run: add has side effects and the mode is read"
    assert list(allowances) == [("add", "once")]
    assert asked.questions == []


def test_mode_auto_uses_no_allowance_up():
    """Nobody would have been asked: the record says auto."""
    allowances = Allowances()
    allowances.allow("add", once=True)
    one, _ = worker("auto", allowances=allowances)

    assert one.carry_out(call("add", '{"x": 1}')).ended.approval == "auto"
    assert list(allowances) == [("add", "once")]


def test_an_interrupt_at_the_question_is_a_no_and_ends_the_run():
    """Nothing ran, and the record says so."""
    ran = []

    def act():
        """Act."""
        ran.append(1)

    one, _ = worker("ask", answer=KeyboardInterrupt(), act=act)

    outcome = one.carry_out(call("act"))
    assert (outcome.ended.approval, outcome.ended.status) == ("no", "interrupted")
    assert outcome.output == "not run: interrupted by the user"
    assert outcome.ended.duration_ms is None
    assert outcome.ended.approval_ms >= 0
    assert ran == []


def test_an_interrupt_in_a_tool_leaves_its_effects_unknown():
    """The model is told that, and the row has how long it ran."""

    def act():
        """Act."""
        raise KeyboardInterrupt

    one, _ = worker(act=act)

    outcome = one.carry_out(call("act"))
    assert outcome.output == INTERRUPTED
    assert "side effects unknown" in INTERRUPTED
    assert (outcome.ended.approval, outcome.ended.status) == ("auto", "interrupted")
    assert outcome.ended.duration_ms >= 0


def test_an_interrupted_tool_may_say_what_it_did():
    """It stands in the KeyboardInterrupt, and is bounded as any output."""

    def act():
        """Act."""
        raise KeyboardInterrupt("one row\n" + "x" * 10_000, 3)

    one, _ = worker(endpoint=dataclasses.replace(HERE, output_limit=300), act=act)

    outcome = one.carry_out(call("act"))
    assert outcome.output.startswith(f"{INTERRUPTED}\none row\nxx")
    assert len(outcome.output) < 400
    assert outcome.ended.output == f"{INTERRUPTED}\none row\n{'x' * 10_000}"


def test_a_tool_may_return_a_future():
    """It is awaited as a coroutine is."""

    async def later():
        """Return something that is to come."""
        return asyncio.gather(asyncio.sleep(0, 1), asyncio.sleep(0, 2))

    def now():
        """Return what a loop has yet to do."""
        return settled(later())

    one, _ = worker(now=now)

    assert one.carry_out(call("now")).output == "[1,2]"


class UnsayableError(Exception):
    def __str__(self):
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("no such row"), "ValueError: no such row"),
        (SystemExit(3), "SystemExit: 3"),
        (GeneratorExit(), "GeneratorExit"),
        (asyncio.CancelledError(), "CancelledError"),
        (MemoryError(), "MemoryError"),
        (RecursionError("deep"), "RecursionError: deep"),
        (UnsayableError(), "UnsayableError"),
        (ValueError("\ud800"), "ValueError: ?"),
    ],
)
def test_whatever_a_tool_raises_is_told_to_the_model(error, said):
    """The run goes on."""

    def act():
        """Act."""
        raise error

    one, _ = worker(act=act)

    outcome = one.carry_out(call("act"))
    assert outcome.output == said
    assert (outcome.ended.approval, outcome.ended.status) == ("auto", "failed")


def test_a_tool_that_says_it_failed_has_failed():
    """A result that is marked so is a failed row, with its text."""
    one, _ = worker()

    outcome = one.carry_out(call("wrong"))
    assert outcome.output == "Traceback: no"
    assert outcome.ended.status == "failed"


@dataclasses.dataclass
class Spiteful:
    x: int

    def __repr__(self):
        raise RuntimeError("no")


def test_a_value_whose_repr_fails_is_an_output_all_the_same():
    """The question shows what the model wrote, and an output does not depend on a good repr."""

    def act(it: Spiteful):
        """Act."""
        return {1j: it}

    one, asked = worker("ask", answer=Reply.YES, act=act)

    outcome = one.carry_out(call("act", '{"it": {"x": 1}}'))
    assert asked.questions[0].code == "act(it={'x': 1})"
    assert outcome.output == "<dict whose repr failed: RuntimeError>"
    assert outcome.ended.status == "completed"


def test_an_output_is_as_long_as_its_model_can_take():
    """The model sees head and tail; the record has it whole."""
    one, _ = worker(endpoint=dataclasses.replace(HERE, output_limit=300))

    outcome = one.carry_out(call("long"))
    assert 300 <= len(outcome.output) < 400
    assert "9,700 characters left out" in outcome.output
    assert outcome.ended.output == "x" * 10_000


def test_pictures_go_only_where_they_can_be_seen():
    """The record has the text."""
    blind, _ = worker()
    seeing, _ = worker(endpoint=dataclasses.replace(HERE, images=True))

    assert blind.carry_out(call("plot")).output == "a plot"
    outcome = seeing.carry_out(call("plot"))
    assert [part["type"] for part in outcome.output] == ["input_text", "input_image"]
    assert outcome.ended.output == "a plot"


def test_a_call_made_twice_in_a_row_gets_a_hint_where_the_endpoint_asks_for_it():
    """The second does not run; after another call it may run again."""
    ran = []

    def act(x: int = 0):
        """Act."""
        ran.append(x)
        return "done"

    one, asked = worker("ask", Reply.YES, dataclasses.replace(HERE, hint_repeats=True), act=act)

    outcomes = [
        one.carry_out(call("act", arguments)) for arguments in ("{}", "{}", "{}", '{"x": 1}', "{}")
    ]
    said = [outcome.output[:8] for outcome in outcomes]
    assert said == ["done", "this is ", "this is ", "done", "done"]
    assert ran == [0, 1, 0]
    assert len(asked.questions) == 3
    assert [outcome.ended.status for outcome in outcomes[:2]] == ["completed", "failed"]


def test_elsewhere_a_call_may_be_made_twice():
    """Without the hint it simply runs again."""
    one, _ = worker()

    assert [one.carry_out(call("look")).output for _ in range(2)] == ["seen", "seen"]


def custom(name, said):
    return {"type": "custom_tool_call", "call_id": "call_1", "name": name, "input": said}


def with_shout(mode="auto", answer=False, **options):
    asked = Asked(answer)
    return Worker({"shout": tool_of(shout, custom=True, **options)}, mode, asked, HERE), asked


@pytest.mark.parametrize("said", ["a\nb", "", '{"text": "x"}', "3"])
def test_a_custom_tool_runs_with_the_text_of_its_call(said):
    """The text is what it is called with, what is asked about, and what is recorded."""
    one, asked = with_shout("ask", answer=Reply.YES)

    outcome = one.carry_out(custom("shout", said))
    assert outcome.output == said.upper()
    assert outcome.ended.arguments == said
    assert outcome.ended.status == "completed"
    assert [question.code for question in asked.questions] == [said]


def test_a_custom_tool_that_is_called_with_json_is_not_run():
    """The model is told how to call it."""
    one, asked = with_shout("ask", answer=Reply.YES)

    outcome = one.carry_out(call("shout", '{"text": "x"}'))
    assert "shout takes a plain text" in outcome.output
    assert outcome.ended.status == "failed"
    assert asked.questions == []


def test_a_text_for_a_tool_that_takes_json_does_not_fit():
    """It is read as JSON, as any call of that tool."""
    one, _ = worker()

    assert "bad arguments" in one.carry_out(custom("add", "two")).output
    assert one.carry_out(custom("add", '{"x": 2}')).output == "3"


@pytest.mark.parametrize(
    ("item", "arguments"), [(call("f", '{"x":1}'), '{"x":1}'), (custom("f", "text"), "text")]
)
def test_a_call_that_was_cut_off_keeps_what_it_was_called_with(item, arguments):
    """Whatever its kind, the row says what may have run."""
    assert cut_off(item, datetime.now(UTC), 1.0).ended.arguments == arguments


@pytest.mark.parametrize("mode", ["read", "ask", "auto"])
@pytest.mark.parametrize(
    ("name", "early"), [("look", True), ("long", True), ("add", False), ("fly", False)]
)
def test_only_what_changes_nothing_begins_early(name, early, mode):
    """A tool with side effects does not, even where nobody is asked; nor one that is not there."""
    one, asked = worker(mode)

    assert one.begins_early(call(name)) is early
    assert asked.questions == []


def test_a_custom_tool_without_side_effects_begins_early_too():
    """The kind of call changes nothing."""
    assert with_shout(read_only=True)[0].begins_early(custom("shout", "a"))
    assert not with_shout()[0].begins_early(custom("shout", "a"))
