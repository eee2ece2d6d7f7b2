"""What the modes let run, and what is asked before."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from ipy_agent.agent.approval import YES, Verdict, question, verdict
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
    """The question shows the values that will be passed."""
    assert question(ACTING, {"x": "a", "y": 3}) == "f(x='a', y=3)\n\nRun f? [y/N] "


def test_code_is_shown_as_it_runs():
    """A tool that shows a parameter is asked about by that text alone."""

    def python(code: str, quiet: bool = False):
        """Run."""

    made = tool_of(python, shows="code")
    asked = question(made, {"code": "a = 1\nprint(a)", "quiet": False})
    assert asked == "a = 1\nprint(a)\n\nRun python? [y/N] "


def test_what_hides_or_reorders_text_is_shown_by_its_code():
    """The question has no character that a terminal obeys, or that turns text around."""
    asked = question(ACTING, {"x": 1, "y": "\x1b[2K\u202e\u200b\r"})
    code = question(tool_of(_run, shows="code"), {"code": "safe()\r\x1b[2K\u202eevil()"})

    for sign in "\x1b\u202e\u200b\r":
        assert sign not in asked
        assert sign not in code
    assert "evil()" in code


def _run(code: str):
    """Run."""


@dataclasses.dataclass
class Unsayable:
    x: int

    def __repr__(self):
        raise RuntimeError("no")


def test_a_value_that_cannot_be_shown_is_asked_about_all_the_same():
    """A repr that raises does not end the run."""
    assert "whose repr failed" in question(ACTING, {"x": Unsayable(1)})


def test_only_a_plain_yes_is_a_yes():
    """Nothing else is in the list."""
    assert frozenset({"y", "yes"}) == YES
