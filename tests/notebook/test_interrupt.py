"""The user's interrupt, as real signals in this process: to the run or to the tool, never lost."""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import functools
import signal
import threading
from types import SimpleNamespace

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from ipy_agent.agent.approval import Question
from ipy_agent.agent.tools import TOOLS, tool_of
from ipy_agent.errors import Interrupted
from ipy_agent.notebook import interrupt
from ipy_agent.notebook.answer import CellFront
from ipy_agent.notebook.interrupt import (
    Gate,
    Interrupts,
    interrupts_go_to,
    interrupts_raise,
)
from ipy_agent.notebook.kernel import kernel_tools
from ipy_agent.notebook.terminal import PlainFront
from ipy_agent.protocol.events import TextDelta
from ipy_agent.records import Recorder
from ipy_agent.sessions import Session
from ipy_agent.trace import RequestSent
from ipy_agent.transport.scripted import ScriptedTransport


def press():
    """Press Ctrl-C: the handler has run when this returns."""
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def handler():
    """The handler of the test's surroundings, which is back at its end."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    try:
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def shell():
    quiet = Config()
    quiet.HistoryManager.enabled = False
    yield InteractiveShell.instance(config=quiet)
    InteractiveShell.clear_instance()


@pytest.fixture
def tools():
    """The tools of the process are those of the test."""
    before = dict(TOOLS)
    TOOLS.clear()
    yield TOOLS
    TOOLS.clear()
    TOOLS.update(before)


@pytest.fixture
def session(tools):  # noqa: ARG001 (its tools are the test's)
    """Return a function that makes a session which answers from a list."""
    made = []

    def make(*script, **settings):
        made.append(Session(transport=ScriptedTransport(script), **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


# contexts


def test_while_a_run_waits_an_interrupt_only_calls():
    """While a run waits nothing is raised, however often the user presses."""
    calls = []

    with Interrupts().waiting(lambda: calls.append(1)):
        press()
        press()

    assert calls == [1, 1]


def test_around_a_tool_an_interrupt_is_pythons():
    """Within `interrupts_raise` there is a KeyboardInterrupt, whatever was set around it."""
    calls = []

    with interrupts_go_to(lambda *_: calls.append(1)):
        with pytest.raises(KeyboardInterrupt), interrupts_raise():
            press()
        press()

    assert calls == [1]


def test_while_a_tool_works_an_interrupt_is_the_tools_and_the_runs():
    """Within `working` a press calls and raises; before it and after it a press only calls."""
    calls, interrupts = [], Interrupts()

    with interrupts.waiting(lambda: calls.append(1)):
        press()
        with pytest.raises(KeyboardInterrupt), interrupts.working():
            press()
        press()

    assert calls == [1, 1, 1]


def ignore_in_c(number):
    """Have a signal ignored as a library does, behind Python's back."""
    ctypes.CDLL(None).signal(number, ctypes.c_void_p(1))


@pytest.mark.parametrize(
    "leave",
    [
        *(functools.partial(signal.signal, signal.SIGINT, h) for h in (signal.SIG_IGN, print)),
        functools.partial(ignore_in_c, signal.SIGINT),
    ],
    ids=["ignored", "print", "ignored in C"],
)
def test_a_tool_that_leaves_a_handler_of_its_own_keeps_no_run_from_being_stopped(leave):
    """Behind the tool a press calls again, and at the end the handler from before is back."""
    calls, interrupts, before = [], Interrupts(), signal.getsignal(signal.SIGINT)

    with interrupts.waiting(lambda: calls.append(1)):
        with interrupts.working():
            leave()
        assert callable(signal.getsignal(signal.SIGINT))
        press()

    assert calls == [1]
    assert signal.getsignal(signal.SIGINT) is before


def test_contexts_nest_and_each_gives_back_what_it_found(handler):
    """Inside out, every handler is the one that stood before."""
    heard = []
    outer, inner = (lambda *_, name=name: heard.append(name) for name in ("outer", "inner"))

    with interrupts_go_to(outer):
        with interrupts_go_to(inner):
            with interrupts_raise():
                assert signal.getsignal(signal.SIGINT) is handler
            press()
            assert signal.getsignal(signal.SIGINT) is inner
        press()
        assert signal.getsignal(signal.SIGINT) is outer

    assert heard == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize(
    "context",
    [interrupts_raise, lambda: interrupts_go_to(print), lambda: Interrupts().waiting(print)],
)
def test_an_error_gives_the_handler_back_too(context, error, handler):
    """However a context is left, the handler before it is back."""
    with pytest.raises(error), context():
        raise error

    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("ignored", [signal.SIG_IGN, signal.SIG_DFL])
def test_what_was_ignored_is_ignored_again(ignored):
    """A disposition that is no function is given back as it was."""
    signal.signal(signal.SIGINT, ignored)
    try:
        with interrupts_go_to(print):
            assert callable(signal.getsignal(signal.SIGINT))
        assert signal.getsignal(signal.SIGINT) is ignored
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_off_the_main_thread_nothing_is_touched(handler):
    """On another thread the contexts let their body run and leave the process's handler alone."""
    seen = []

    def body():
        for context in (interrupts_raise(), interrupts_go_to(print), Interrupts().waiting(print)):
            with context:
                seen.append(signal.getsignal(signal.SIGINT))
        with contextlib.suppress(ValueError), interrupts_raise():
            raise ValueError
        seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join(20)

    assert seen == [handler] * 4


# the gate


def test_a_gate_that_nobody_pressed_at_opens_silently():
    """Opening is nothing without an interrupt."""
    gate = Gate()
    gate.open()

    assert gate.asked is False


def test_a_gate_holds_an_interrupt_back_until_it_opens():
    """One that comes before is noted, and raised by the opening; once is enough."""
    gate = Gate()

    with interrupts_go_to(gate):
        press()
        press()
        assert gate.asked
        with pytest.raises(KeyboardInterrupt):
            gate.open()


def test_an_open_gate_raises_at_once_and_remembers():
    """One that comes after is raised where the code is; who swallows it can still be told."""
    gate = Gate()
    gate.open()

    with interrupts_go_to(gate), contextlib.suppress(KeyboardInterrupt):
        press()
        pytest.fail("the interrupt was held back")

    assert gate.asked


# from the beginning to the end


def cell(presses, *, waits=True, error=None, ends=None):
    """Run a cell in which the user presses while it is closed."""
    interrupts = Interrupts()
    with interrupts.held():
        try:
            if waits:
                with interrupts.waiting(print):
                    if error is not None:
                        raise error
        finally:
            for _ in range(presses):
                press()
            if ends is not None:
                ends.append(True)


@pytest.mark.parametrize(
    ("presses", "waits", "closes"),
    [(1, True, True), (4, True, True), (5, True, False), (1, False, False)],
    ids=["once", "often", "something hangs", "before the run waits"],
)
def test_a_cell_is_closed_however_often_the_user_presses(presses, waits, closes):
    """One line tells of it at the end; who presses on and on, or before the run, gets out."""
    ends = []

    with pytest.raises(Interrupted):
        cell(presses, waits=waits, ends=ends)

    assert bool(ends) is closes


def test_what_went_wrong_before_an_interrupt_is_what_is_told():
    """An interrupt while its cell is closed does not hide an error."""
    with pytest.raises(ValueError, match="this"):
        cell(1, error=ValueError("this"))


def test_a_cell_that_nobody_pressed_at_ends_well():
    """Nothing is raised without an interrupt."""
    ends = []
    cell(0, ends=ends)

    assert ends


# runs


class InSilence(PlainFront):
    """A user who presses when nothing happens, once it was asked."""

    asked = False

    def show(self, event):
        super().show(event)
        self.asked = self.asked or isinstance(event, RequestSent)

    def tick(self):
        if self.asked:
            press()


class AtTheFirstWord(PlainFront):
    """A user who presses, twice, while words come."""

    def show(self, event):
        super().show(event)
        if isinstance(event, TextDelta):
            press()
            press()


CREATED = {"type": "response.created", "response": {"id": "r"}}
WORD = {"type": "response.output_text.delta", "delta": "word ", "item_id": "m", "output_index": 0}
DONE = {"type": "response.completed", "response": {"id": "r", "output": []}}


@pytest.mark.parametrize(
    ("said", "front"), [([], InSilence), ([CREATED, WORD], AtTheFirstWord), ([CREATED], InSilence)]
)
def test_an_interrupt_ends_a_run_that_waits(said, front, peer, handler):
    """It is told once, its socket is not used again, and the next run works."""
    server = peer([said], [[DONE]])
    session = Session(server.endpoint())
    try:
        with pytest.raises(Interrupted) as raised:
            session.run("What?", front=front())
        assert isinstance(raised.value, KeyboardInterrupt)
        assert signal.getsignal(signal.SIGINT) is handler
        session.run("Again?")
    finally:
        session.close()

    assert session.turns["status"].tolist() == ["interrupted", "completed"]
    assert len(server.seen) == 2


@pytest.mark.parametrize("front", [PlainFront, lambda: CellFront(Recorder())])
def test_a_front_says_whose_an_interrupt_is(front, shell, monkeypatch, handler):
    """While the run waits it is the run's, in a tool it is both's, at a question the question's."""
    monkeypatch.setattr(builtins, "input", lambda _: press())
    stops = []

    with shell.display_trap:
        shown = front()
        with shown.waiting(lambda: stops.append(1)):
            press()
            with pytest.raises(KeyboardInterrupt), shown.working():
                press()
            with pytest.raises(KeyboardInterrupt):
                shown.approve(Question("it", "it()", "python"))
            press()
        shown.close()

    assert stops == [1, 1, 1]
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("front", [PlainFront, CellFront])
def test_an_interrupt_in_a_tool_is_the_tools(front, session, tools, shell, handler):
    """The tool gets a KeyboardInterrupt; its output says so, and the run ends."""
    caught = []

    def work() -> str:
        """Work until the user has enough."""
        try:
            press()
        except KeyboardInterrupt:
            caught.append(1)
            raise
        return "done"

    tools["work"] = tool_of(work)
    s = session({"tool_calls": [{"name": "work"}]}, {"text": "fresh"}, mode="auto")
    shown = front(s.records) if front is CellFront else front()

    with shell.display_trap, pytest.raises(Interrupted):
        s.run("Work.", front=shown)
    shown.close()

    assert caught == [1]
    assert signal.getsignal(signal.SIGINT) is handler
    assert s.tools["status"].tolist() == ["interrupted"]
    assert s.run("Again?").text == "fresh"


def test_a_tool_that_lives_through_its_interrupt_ends_the_run(session, tools):
    """What it returns is kept as its output, and the next run goes on from there."""

    def work() -> str:
        """Work on."""
        with contextlib.suppress(KeyboardInterrupt):
            press()
        return "done all the same"

    tools["work"] = tool_of(work)
    s = session({"tool_calls": [{"name": "work"}]}, {"text": "fresh"}, mode="auto")

    with pytest.raises(Interrupted):
        s.run("Work.", front=PlainFront())

    assert s.tools[["output", "status"]].values.tolist() == [["done all the same", "interrupted"]]
    assert "done all the same" in s.messages["text"].tolist()
    assert s.run("Again?").text == "fresh"


@pytest.mark.parametrize("swallow", [True, False])
def test_an_interrupt_in_code_ends_the_run(swallow, session, tools, shell):
    """IPython swallows an interrupt of code; the run ends all the same."""
    shell.push({"press": press})
    tools.update({tool.name: tool for tool in kernel_tools(shell)})
    code = "try:\n    press()\nexcept KeyboardInterrupt:\n    pass" if swallow else "press()"
    call = {"tool_calls": [{"name": "python", "arguments": {"code": f"{code}\nafter = 1"}}]}
    s = session(call, {"text": "fresh"}, mode="auto")

    with shell.display_trap, pytest.raises(Interrupted):
        s.run("Go.", front=PlainFront())

    assert ("after" in shell.user_ns) is swallow
    shell.user_ns.pop("after", None)
    assert s.tools["status"].tolist() == ["interrupted"]
    assert s.run("Again?").text == "fresh"


@pytest.mark.parametrize("front", [PlainFront, CellFront])
def test_an_interrupt_at_the_question_is_a_no(front, session, tools, shell, monkeypatch):
    """The tool does not run, its output says why, and the run ends."""
    ran = []

    def act() -> str:
        """Act."""
        ran.append(1)
        return "done"

    tools["act"] = tool_of(act)
    monkeypatch.setattr(builtins, "input", lambda _: press())
    s = session({"tool_calls": [{"name": "act"}]}, {"text": "fresh"}, mode="ask")
    shown = front(s.records) if front is CellFront else front()

    with shell.display_trap, pytest.raises(Interrupted):
        s.run("Act.", front=shown)
    shown.close()

    assert ran == []
    assert s.tools[["approval", "status"]].values.tolist() == [["no", "interrupted"]]
    assert s.run("Again?").text == "fresh"


# when the cell is over


@pytest.fixture
def ended(monkeypatch):
    """Return a function that tells of an ended cell, in a kernel whose front end sent `sent`."""

    class Kernel:
        def __init__(self, sent):
            self.kernel = self
            self.get_parent = lambda: {"content": {"code": sent}}

    def tell(cell, sent):
        monkeypatch.setattr(interrupt, "get_ipython", lambda: sent and Kernel(sent))
        interrupt.interrupts_come_too_late(SimpleNamespace(info=SimpleNamespace(raw_cell=cell)))

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield tell
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_while_the_kernel_sends_a_cells_end_does_nothing(ended):
    """It would be ipykernel's, whose reply is then lost."""
    ended("%%agent\nGo.", "%%agent\nGo.")

    press()


@pytest.mark.parametrize(
    ("cell", "sent"),
    [
        ("x = 1", "x = 1"),
        ("%%agent\nGo.", "run_cell('%%agent\\nGo.')\nlong()"),
        ("%%agent\nGo.", None),
        (None, "%%agent\nGo."),
    ],
    ids=["another cell", "a cell within a cell", "no kernel", "no cell"],
)
def test_what_is_not_over_can_be_interrupted(ended, cell, sent):
    """Only the cell that the front end sent ends with its end, and only ours are held."""
    ended(cell, sent)

    with pytest.raises(KeyboardInterrupt):
        press()
