"""What the modes let run, and what is asked before."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from ipy_agent.agent.approval import Allowances, Reply, Verdict, question, reply, verdict
from ipy_agent.agent.tools import tool_of
from ipy_agent.settings import MODES


def f(x: Any = None, y: int = 0):
    """F."""


LOOKING = tool_of(f, read_only=True)
ACTING = tool_of(f)


@pytest.mark.parametrize(
    ("mode", "looking", "acting"),
    [
        ("read", Verdict.RUN, Verdict.REFUSE),
        ("ask", Verdict.RUN, Verdict.ASK),
        ("auto", Verdict.RUN, Verdict.RUN),
    ],
)
def test_each_mode_says_what_runs(mode, looking, acting):
    """A tool without side effects always runs; the others as the mode says."""
    assert verdict(LOOKING, mode) is looking
    assert verdict(ACTING, mode) is acting


def test_every_mode_has_its_verdicts():
    """There is no mode without an answer."""
    for mode in MODES:
        assert {verdict(LOOKING, mode), verdict(ACTING, mode)} <= set(Verdict)


def test_a_call_is_shown_with_its_arguments():
    """The question shows the values as the model wrote them."""
    asked = question(ACTING, '{"x": "a", "y": 3}')

    assert (asked.tool, asked.code, asked.language) == ("f", "f(x='a', y=3)", "python")
    assert str(asked) == (
        "f(x='a', y=3)\n\nRun f? [y = this call, a = f for this session, anything else = no] "
    )


def test_code_is_shown_as_it_runs():
    """A tool that shows a parameter is asked about by that text; what else is passed is told."""

    def python(code: str, quiet: bool = False):
        """Run."""

    made = tool_of(python, shows="code")
    asked = question(made, '{"code": "a = 1\\nprint(a)", "quiet": false}')
    assert (asked.code, asked.language) == ("a = 1\nprint(a)", "python")
    assert str(asked).startswith("a = 1\nprint(a)\n\nRun python with quiet=False? [y = this call, ")


def test_a_text_that_is_not_python_is_asked_about_as_a_text():
    """Nobody knows the language of another tool's parameter."""
    asked = question(tool_of(_run, shows="code"), '{"code": "SELECT 1"}')
    assert (asked.code, asked.language) == ("SELECT 1", "text")

    asked = question(tool_of(_run, custom=True), "SELECT 2")
    assert (asked.code, asked.language) == ("SELECT 2", "text")


def test_a_lone_carriage_return_is_a_new_line_as_python_takes_it():
    """Code behind one does not pass for the end of a comment."""
    asked = question(tool_of(_run, shows="code"), r'{"code": "# harmless\revil()"}')

    assert str(asked).startswith("# harmless\nevil()\n")
    assert asked.code == "# harmless\revil()"


def test_what_hides_or_reorders_text_is_shown_by_its_code():
    """The question has no character that a terminal obeys, or that turns text around."""
    hidden = r"\u001b[2K\u202e\u200b\r"
    asked = str(question(ACTING, f'{{"x": 1, "y": "{hidden}"}}'))
    code = str(question(tool_of(_run, shows="code"), f'{{"code": "safe(){hidden}evil()"}}'))

    for sign in "\x1b\u202e\u200b\r":
        assert sign not in asked
        assert sign not in code
    assert "evil()" in code


def _run(code: str):
    """Run."""


@dataclasses.dataclass
class Job:
    path: str
    force: bool = dataclasses.field(default=False, repr=False)


def wipe(job: Job):
    """Wipe."""


def test_what_a_class_hides_of_itself_is_shown():
    """Its repr is its own matter: the question shows what the model wrote."""
    asked = question(tool_of(wipe), '{"job": {"path": "tmp", "force": true}}')

    assert asked.code == "wipe(job={'path': 'tmp', 'force': True})"


@pytest.mark.parametrize("sign", ["\u3164", "\u115f", "\uffa0", "\u2800", "\ufe00", "\U000e0100"])
def test_letters_that_leave_no_trace_are_shown_by_their_code(sign):
    """Some of them may be part of a name: two names would look like one."""
    asked = question(ACTING, f'{{"x": "a{sign}b"}}')

    assert sign not in str(asked)
    assert f"U+{ord(sign):04X}" in str(asked)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        *(("y", Reply.YES), (" YES ", Reply.YES), ("a", Reply.ALWAYS), ("A\n", Reply.ALWAYS)),
        *((said, Reply.NO) for said in ("", " ", "n", "no", "yes please", "all", "ja", "yy", "1")),
    ],
)
def test_only_a_plain_yes_is_a_yes(said, meant):
    """Anything but `y`, `yes` and `a` is a no; an empty answer too."""
    assert reply(said) is meant


# allowances


def test_without_an_allowance_nothing_is_allowed():
    """Nobody said so."""
    one = Allowances()

    assert not one.use("f")
    assert list(one) == []


def test_an_allowance_for_the_session_is_not_used_up():
    """It holds until it is taken back, for its tool alone."""
    one = Allowances()
    one.allow("f")

    assert [one.use("f"), one.use("f"), one.use("g")] == [True, True, False]
    assert list(one) == [("f", "session")]
    one.withdraw("f")
    one.withdraw("g")
    assert not one.use("f")


def test_an_allowance_for_once_is_used_up_by_one_call():
    """The call after it is asked about, however often it was said."""
    one = Allowances()
    one.allow("f", once=True)
    one.allow("f", once=True)

    assert list(one) == [("f", "once")]
    assert [one.use("f"), one.use("f")] == [True, False]
    assert list(one) == []


def test_what_was_said_last_of_a_tool_holds():
    """Once after always is once, and the other way round."""
    one = Allowances()
    one.allow("f")
    one.allow("f", once=True)
    one.allow("g", once=True)
    one.allow("g")

    assert sorted(one) == [("f", "once"), ("g", "session")]
