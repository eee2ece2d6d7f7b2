"""Asking the user before a call runs, over `input()`: the one way that every front end has.

Rule 1: all of what would run is on the screen before the answer is waited for.
Rule 2: what was typed before the question was shown is no answer. A kernel drops such answers
by itself; a terminal's are dropped here.
"""

from __future__ import annotations

import contextlib
import select
import sys

from ipy_agent import rendering
from ipy_agent.agent.approval import Question, Reply, reply

__all__ = ["Pending", "asked", "asked_in_terminal", "how_to_allow", "listed"]

TYPED_AHEAD = "what was typed before the question is no answer to it"


class Pending:
    """A call in a cell's answer while its question waits: exactly what would run."""

    def __init__(self, question: Question) -> None:
        self.question = question

    def html(self) -> str:
        said = rendering.code(self.question.code, self.question.language)
        return rendering.fold(f"{self.question.tool} … may it run?", said, open=True)

    def plain(self) -> str:
        return f"[{self.question.tool} … may it run?]\n{rendering.listing(self.question.code)}"


def asked(question: Question) -> Reply:
    """Ask in a front end, where a question is plain text."""
    try:
        return reply(input(str(question)))
    except EOFError:  # the user's Ctrl-D
        return Reply.NO
    except (RuntimeError, OSError, ValueError):  # no front end that can ask, or no stdin at all
        return Reply.NOBODY


def listed(code: str, language: str) -> str:
    """Return code for standard output, with nothing left out; a terminal has colours."""
    return rendering.coloured(code, language) if sys.stdout.isatty() else rendering.listing(code)


def asked_in_terminal(question: Question, *, shown: bool = False) -> Reply:
    """Ask in a terminal; where the code that would run is `shown` just above, it is not again."""
    code = "" if shown else f"{listed(question.code, question.language)}\n"
    sys.stdout.write(f"{code}\n")
    sys.stdout.flush()
    try:
        typing = sys.stdin.isatty()
        if typing and _forgot_typed():
            sys.stdout.write(f"{TYPED_AHEAD}\n")
        return reply(input(question.line))
    except EOFError:  # Ctrl-D; or there was nothing to read, and nobody who could write it
        sys.stdout.write("\n")
        return Reply.NO if typing else Reply.NOBODY
    except (AttributeError, RuntimeError, OSError, ValueError):  # there is no stdin to read
        return Reply.NOBODY


def how_to_allow(tool: str) -> str:
    """Return the line that tells how a tool runs where nobody can answer."""
    return (
        f"{tool} was not run: nobody can be asked here. To allow it: "
        f"%agent allow {tool} --session, or %%agent --mode auto"
    )


def _forgot_typed() -> bool:
    """Drop what was typed into the terminal and not yet read; return whether there was any."""
    with contextlib.suppress(ImportError):
        import termios  # noqa: PLC0415 (not everywhere)

        typed = bool(select.select([sys.stdin], [], [], 0)[0])
        termios.tcflush(sys.stdin, termios.TCIFLUSH)
        return typed
    return False
