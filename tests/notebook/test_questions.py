"""What is asked before a call runs, and what counts as an answer."""

from __future__ import annotations

import builtins
import io
import os
import pty
import sys
import threading

import pytest
from IPython.core.error import StdinNotImplementedError

from ipy_agent.agent.approval import Question, Reply
from ipy_agent.notebook.questions import (
    TYPED_AHEAD,
    Pending,
    asked,
    asked_in_terminal,
    how_to_allow,
)

QUESTION = Question("python", "total = 1 + 2", "python")
HIDDEN = Question("python", "safe()  # \x1b[8m\u202e\x1b]0;\nevil()\x07", "python")


@pytest.fixture
def answers(monkeypatch):
    """Return a function that sets what `input` returns or raises; and what it was asked with."""
    prompts = []

    def set_to(said):
        def answer(prompt):
            prompts.append(prompt)
            if isinstance(said, str):
                return said
            raise said

        monkeypatch.setattr(builtins, "input", answer)
        return prompts

    return set_to


# in a front end


@pytest.mark.parametrize(
    ("said", "meant"),
    [("y", Reply.YES), ("a", Reply.ALWAYS), ("", Reply.NO), ("n", Reply.NO), ("ja", Reply.NO)],
)
@pytest.mark.parametrize("ask", [asked, asked_in_terminal])
def test_only_a_plain_yes_is_a_yes(ask, said, meant, answers):
    """The question says what its answers mean."""
    prompts = answers(said)

    assert ask(QUESTION) is meant
    assert prompts[0].endswith(
        "Run python? [y = this call, a = python for this session, anything else = no] "
    )


def test_a_question_is_plain_text_with_all_of_the_code(answers):
    """A front end shows terminal colours as rubbish, and cuts nothing off that is not there."""
    prompts = answers("y")
    code = "\n".join(f"line_{number} = {number}" for number in range(3_000))

    asked(Question("python", code, "python"))

    assert prompts[0].startswith(f"{code}\n\nRun python? ")


@pytest.mark.parametrize(
    ("error", "meant"),
    [
        (EOFError(), Reply.NO),
        (StdinNotImplementedError("no input here"), Reply.NOBODY),
        (RuntimeError("input(): lost sys.stdin"), Reply.NOBODY),
        (OSError("reading from stdin"), Reply.NOBODY),
        (ValueError("I/O operation on closed file"), Reply.NOBODY),
    ],
)
def test_who_cannot_be_asked_is_nobody(error, meant, answers):
    """That is no error; the user's own end of input is a no."""
    answers(error)

    assert asked(QUESTION) is meant


@pytest.mark.parametrize("ask", [asked, asked_in_terminal])
def test_an_interrupt_at_the_question_is_not_an_answer(ask, answers):
    """It goes to who asked."""
    answers(KeyboardInterrupt())

    with pytest.raises(KeyboardInterrupt):
        ask(QUESTION)


def test_nothing_in_the_code_can_hide_the_rest_of_it(answers, capsys):
    """What turns text round, or would be taken for a terminal's command, is shown as a mark."""
    prompts = answers("")
    asked(HIDDEN)
    asked_in_terminal(HIDDEN)
    pending = Pending(HIDDEN)

    for shown in (prompts[0], capsys.readouterr().out, pending.plain(), pending.html()):
        assert "evil()" in shown.replace('<span style="color:#2f7dd1">', "")
        assert not {"\x1b", "\u202e", "\x07"} & set(shown)


def test_while_it_waits_a_call_stands_in_the_cell_in_colours():
    """The page shows exactly the code that would run, unfolded."""
    page = Pending(QUESTION).html()

    assert " open>" in page
    assert 'total = <span style="color:#b8671a">1</span> + ' in page
    assert Pending(QUESTION).plain() == "[python … may it run?]\ntotal = 1 + 2"


def test_the_way_to_allow_a_tool_is_one_line_with_both_ways():
    """What to type, for who reads it when the run is over."""
    line = how_to_allow("python")

    assert "%agent allow python --session" in line
    assert "%%agent --mode auto" in line
    assert "\n" not in line


# in a terminal


class Terminal:
    """A terminal with somebody in front of it; what it shows is kept."""

    def __init__(self):
        self.screen = ""
        self._ours, self._theirs = pty.openpty()

    def ask(self, question):
        """Ask with this terminal as standard input and output."""
        with (
            open(self._theirs, closefd=False) as keyboard,
            open(self._theirs, "w", closefd=False) as screen,
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(sys, "stdin", keyboard)
            patch.setattr(sys, "stdout", screen)
            return asked_in_terminal(question)

    def type(self, keys):
        os.write(self._ours, keys.encode())

    def wait_for(self, text):
        while text not in self.screen:
            self.screen += os.read(self._ours, 4_096).decode()

    def answer(self, keys):
        """Return a thread that types once the question is on the screen."""

        def see_and_type():
            self.wait_for("anything else = no] ")
            self.type(keys)

        thread = threading.Thread(target=see_and_type)
        thread.start()
        return thread

    def close(self):
        os.close(self._theirs)
        os.close(self._ours)


@pytest.fixture
def terminal():
    one = Terminal()
    yield one
    one.close()


@pytest.mark.parametrize(
    ("keys", "meant"),
    [("y\n", Reply.YES), ("a\n", Reply.ALWAYS), ("\n", Reply.NO), ("\x04", Reply.NO)],
)
def test_a_terminal_shows_the_code_in_colours_and_takes_the_answer(terminal, keys, meant):
    """All of it is on the screen before the answer is waited for; Ctrl-D is a no."""
    typing = terminal.answer(keys)

    assert terminal.ask(QUESTION) is meant
    typing.join()
    assert "total = \x1b[33m1\x1b[0m + \x1b[33m2\x1b[0m\r\n\r\nRun python? " in terminal.screen
    assert TYPED_AHEAD not in terminal.screen


def test_what_was_typed_before_the_question_is_no_answer(terminal):
    """It is dropped and that is said; what is typed then is the answer."""
    terminal.type("y\n")
    terminal.wait_for("y\r\n")
    typing = terminal.answer("\n")

    assert terminal.ask(QUESTION) is Reply.NO
    typing.join()
    assert f"{TYPED_AHEAD}\r\n" in terminal.screen


@pytest.mark.parametrize("stdin", [None, io.StringIO("")])
def test_a_program_without_a_terminal_has_nobody_to_ask(stdin, monkeypatch, capsys):
    """The end of a file is not a user's answer."""
    monkeypatch.setattr(sys, "stdin", stdin)

    assert asked_in_terminal(QUESTION) is Reply.NOBODY
    assert capsys.readouterr().out.startswith("total = 1 + 2\n\n")
