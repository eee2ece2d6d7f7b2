"""A run as its caller sees it: events and tools on the caller's thread, and a way to stop."""

from __future__ import annotations

import contextlib
import sys
import threading

import pytest

from ipy_agent.agent.approval import Reply
from ipy_agent.agent.calls import Worker
from ipy_agent.agent.conversation import Conversation
from ipy_agent.agent.loop import Ask, answer
from ipy_agent.agent.runs import Quiet, attend
from ipy_agent.agent.tools import tool_of
from ipy_agent.background import Background
from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import BudgetExceeded, Interrupted, ResponseFailed
from ipy_agent.protocol.events import TextDelta
from ipy_agent.protocol.items import text
from ipy_agent.protocol.requests import Fields
from ipy_agent.records import Recorder
from ipy_agent.trace import RunEnded, ToolBegan, ToolEnded
from ipy_agent.transport.scripted import ScriptedTransport

HERE = Endpoint(name="here", url="http://127.0.0.1:1/v1")
SECONDS = 20


class Watching(Quiet):
    """Keeps what it is shown; stops the run at the first event that it waits for."""

    def __init__(self, at=lambda _: False, answer=Reply.NO, when_idle=None):
        self.shown = []
        self.threads = set()
        self.questions = []
        self.holds = []
        self._at = at
        self._answer = answer
        self._when_idle = when_idle

    def show(self, event):
        self.threads.add(threading.current_thread())
        self.shown.append(event)
        if self._at(event):
            self.stop()

    def tick(self):
        if self._when_idle is not None:
            self._when_idle(self)

    def approve(self, question):
        self.questions.append(question)
        if isinstance(self._answer, BaseException):
            raise self._answer
        return self._answer

    @contextlib.contextmanager
    def waiting(self, stop):
        self.stop = stop
        with self._held("waiting"):
            yield

    def working(self):
        return self._held("working")

    @contextlib.contextmanager
    def _held(self, name):
        self.holds.append(f"{name} begins")
        try:
            yield
        finally:
            self.holds.append(f"{name} ends")


class Hanging(ScriptedTransport):
    """Answers the first turn up to its first delta, and then nothing any more."""

    async def stream(self, request):
        async with contextlib.aclosing(super().stream(request)) as stream:
            async for event in stream:
                yield event
                if isinstance(event, TextDelta) and len(self.requests) == 1:
                    import asyncio

                    await asyncio.Event().wait()


class Cell:
    """What runs share, as a session holds it."""

    def __init__(self, script, *functions, transport=ScriptedTransport):
        self.transport = transport(script)
        self.conversation = Conversation()
        self.recorder = Recorder()
        self.background = Background()
        self.tools = {function.__name__: tool_of(function) for function in functions}

    def run(self, front, *, mode="auto", record=None, **budget):
        ask = Ask(
            prompt="go",
            fields=Fields({"model": "m"}),
            endpoint="here",
            budget_turns=25,
            budget_seconds=budget.get("budget_seconds", SECONDS),
        )
        said = attend(
            lambda perform, hear: answer(ask, self.conversation, self.transport, perform, hear),
            Worker(self.tools, mode, front.approve, HERE),
            front,
            self.background,
            record or self.recorder.listener(),
        )
        return said.text

    @property
    def said(self):
        return [text(item) for item in self.conversation.items]

    @property
    def statuses(self):
        return [row.status for row in self.recorder.cells]


@pytest.fixture
def cell():
    made = []

    def start(*args, **more):
        made.append(Cell(*args, **more))
        return made[-1]

    yield start
    for one in made:
        one.background.stop()


def calls(*names):
    return {"tool_calls": [{"name": name} for name in names]}


def is_delta(event):
    return isinstance(event, TextDelta)


def test_everything_is_shown_in_order_on_the_callers_thread(cell):
    """What is shown is what is recorded, and the last words come back."""
    one, front, recorded = cell([{"text": "abc", "chunk_chars": 1}]), Watching(), []

    assert one.run(front, record=recorded.append) == "abc"
    assert front.shown == recorded
    assert isinstance(front.shown[-1], RunEnded)
    assert front.threads == {threading.current_thread()}


def test_tools_run_on_the_callers_thread_while_it_works(cell):
    """A front knows when a tool has the thread."""
    front, ran = Watching(), []

    def act():
        """Act."""
        ran.append((threading.current_thread(), list(front.holds)))

    one = cell([calls("act", "act"), {"text": "done"}], act)
    assert one.run(front) == "done"
    assert [thread for thread, _ in ran] == [threading.current_thread()] * 2
    assert ran[0][1] == ["waiting begins", "working begins"]
    assert front.holds[-2:] == ["working ends", "waiting ends"]


def test_nobody_looking_on_says_no(cell):
    """Without a front no call is approved, and nothing is shown anywhere."""
    ran = []

    def act():
        """Act."""
        ran.append(1)

    one = cell([calls("act"), {"text": "done"}], act)
    assert one.run(Quiet(), mode="ask") == "done"
    assert ran == []
    assert one.recorder.tools[0].status == "refused"


def test_a_failure_is_raised_where_the_run_was_asked_for(cell):
    """As it is, and the next run works."""
    one = cell([{"error": {"status": 429, "code": "slow"}}, {"text": "done"}])

    with pytest.raises(ResponseFailed) as failure:
        one.run(Watching())
    assert failure.value.status == 429
    assert one.run(Watching()) == "done"


def test_a_stop_while_it_streams_ends_the_run(cell):
    """The prompt is taken back, the rows say interrupted, and the next run works."""
    one = cell([{"text": "old"}, {"text": "new"}], transport=Hanging)

    with pytest.raises(Interrupted):
        one.run(Watching(at=is_delta))
    assert one.said == []
    assert one.statuses == ["interrupted"]
    assert one.recorder.turns[0].status == "interrupted"
    assert one.run(Watching()) == "new"
    assert one.said == ["go", "new"]


def test_a_stop_while_nothing_happens_ends_the_run(cell):
    """A front is called ten times a second, and may stop the run."""
    one = cell([{"text": "old"}, {"text": "new"}], transport=Hanging)

    with pytest.raises(Interrupted):
        one.run(Watching(when_idle=lambda front: front.stop()))
    assert one.statuses == ["interrupted"]
    assert one.run(Watching()) == "new"


def test_pythons_own_interrupt_ends_the_run_as_well(cell):
    """Wherever the KeyboardInterrupt comes up, it is an `Interrupted` for the caller."""

    def interrupt(_):
        raise KeyboardInterrupt

    one = cell([{"text": "old"}, {"text": "new"}], transport=Hanging)

    with pytest.raises(Interrupted) as stopped:
        one.run(Watching(when_idle=interrupt))
    assert isinstance(stopped.value, KeyboardInterrupt)
    assert one.statuses == ["interrupted"]
    assert one.run(Watching()) == "new"


def test_an_interrupt_in_a_tool_ends_the_run(cell):
    """The tool's output and row say so, those behind it did not run, the next run works."""
    ran = []

    def act():
        """Act."""
        ran.append(1)
        raise KeyboardInterrupt

    one = cell([calls("act", "act"), {"text": "new"}], act)

    with pytest.raises(Interrupted):
        one.run(Watching())
    assert ran == [1]
    assert [row.status for row in one.recorder.tools] == ["interrupted"]
    assert one.said[-2:] == ["interrupted by the user; side effects unknown", "not run"]
    assert one.statuses == ["interrupted"]
    assert one.run(Watching()) == "new"


def test_an_interrupt_at_the_question_ends_the_run(cell):
    """Nothing ran."""
    ran = []

    def act():
        """Act."""
        ran.append(1)

    one = cell([calls("act"), {"text": "new"}], act)

    with pytest.raises(Interrupted):
        one.run(Watching(answer=KeyboardInterrupt()), mode="ask")
    assert ran == []
    assert [(row.status, row.approval) for row in one.recorder.tools] == [("interrupted", "no")]
    assert one.said[-1] == "not run: interrupted by the user"
    assert one.run(Watching()) == "new"


class Late(Watching):
    """Says yes when it is too late."""

    def __init__(self, begun=None):
        super().__init__(answer=Reply.YES)
        self._begun = begun

    def approve(self, question):
        if self._begun is None:
            self.stop()
        else:
            assert self._begun.wait(SECONDS)
        return super().approve(question)


def test_a_stop_while_the_question_is_open_is_a_no(cell):
    """Whatever is answered then."""
    ran = []

    def act():
        """Act."""
        ran.append(1)

    one = cell([calls("act"), {"text": "new"}], act)

    with pytest.raises(Interrupted):
        one.run(Late(), mode="ask")
    assert ran == []
    assert [row.status for row in one.recorder.tools] == ["interrupted"]
    assert one.run(Watching()) == "new"


def test_a_yes_after_the_end_of_the_run_runs_nothing(cell):
    """Its time was up while the question was open: the conversation says that it was cut off."""
    ran, over = [], threading.Event()

    def act():
        """Act."""
        ran.append(1)

    one = cell([calls("act"), {"text": "new"}], act)
    listen = one.recorder.listener()

    def record(event):
        listen(event)
        if isinstance(event, RunEnded):
            over.set()

    with pytest.raises(BudgetExceeded):
        one.run(Late(over), mode="ask", budget_seconds=0.05, record=record)
    assert ran == []
    assert one.said[-1] == "cut off by the end of the run; side effects unknown"
    assert one.run(Watching()) == "new"


def test_a_stop_before_a_tool_begins_keeps_it_from_running(cell):
    """What was asked for and not begun any more has an output and a row."""
    ran = []

    def act():
        """Act."""
        ran.append(1)

    one = cell([calls("act"), {"text": "new"}], act)

    with pytest.raises(Interrupted):
        one.run(Watching(at=lambda event: isinstance(event, ToolBegan)))
    assert ran == []
    assert [row.status for row in one.recorder.tools] == ["interrupted"]
    assert one.said[-1] == "cut off by the end of the run; side effects unknown"
    assert one.run(Watching()) == "new"


def test_a_stop_while_a_tool_is_being_begun_keeps_it_from_running(cell):
    """Up to the moment when interrupts are the tool's, they are the run's."""
    ran = []

    def act():
        """Act."""
        ran.append(1)

    class AtOnce(Watching):
        def working(self):
            self.stop()
            return super().working()

    one = cell([calls("act"), {"text": "new"}], act)

    with pytest.raises(Interrupted):
        one.run(AtOnce())
    assert ran == []
    assert one.run(Watching()) == "new"


def test_a_stop_within_a_stop_is_one_stop(cell):
    """A second signal may come while the first is being handled."""
    one = cell([{"text": "old"}, {"text": "new"}], transport=Hanging)
    ended = []

    class Twice(Watching):
        def show(self, event):
            if is_delta(event):
                sys.settrace(self.again)
                self.stop()
                sys.settrace(None)

        def again(self, frame, kind, _):  # noqa: ARG002
            sys.settrace(None)
            self.stop()
            sys.settrace(self.again)
            return self.again

    def run():
        try:
            one.run(Twice())
        except Interrupted as stopped:
            ended.append(stopped)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert len(ended) == 1


def test_a_front_that_breaks_ends_the_run_with_its_own_error(cell):
    """The run is not left behind, and the next one works."""

    class Broken(Watching):
        def show(self, event):
            if is_delta(event):
                raise RuntimeError("the display")

    one = cell([{"text": "old"}, {"text": "new"}], transport=Hanging)

    with pytest.raises(RuntimeError, match="the display"):
        one.run(Broken())
    assert one.statuses == ["interrupted"]
    assert one.run(Watching()) == "new"


def test_a_tool_that_outlives_its_budget_has_one_output(cell, caplog):
    """The run has ended when it returns; its late value changes nothing."""
    over = threading.Event()

    def act():
        """Act."""
        assert over.wait(SECONDS)
        return "late"

    one = cell([calls("act"), {"text": "new"}], act)
    recorder = one.recorder
    listen = recorder.listener()

    def record(event):
        listen(event)
        if isinstance(event, RunEnded):
            over.set()

    front = Watching()
    with pytest.raises(BudgetExceeded):
        one.run(front, record=record, budget_seconds=0.05)
    assert one.said[-1] == "cut off by the end of the run; side effects unknown"
    assert [row.status for row in recorder.tools] == ["interrupted"]
    assert one.statuses == ["failed"]
    assert sum(isinstance(event, ToolEnded) for event in front.shown) == 1
    assert one.run(Watching()) == "new"
    assert caplog.records == []


def test_a_loop_that_ends_under_a_tool_ends_the_run(cell):
    """Whoever closes everything from within a tool has an interrupted run."""
    one = None

    def close():
        """Close."""
        one.background.stop()

    one = cell([calls("close")], close)
    with pytest.raises(Interrupted):
        one.run(Watching())
    assert one.statuses == ["interrupted"]
