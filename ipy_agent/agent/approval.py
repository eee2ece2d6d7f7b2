"""read / ask / auto: which calls run, and what is asked before.

Rule 1: the question shows exactly what then runs; characters that hide or reorder text are
shown by their code.
Rule 2: only a plain yes is a yes. An empty answer, no way to answer and an interrupt are a no.
Rule 3: an allowance answers the question of mode `ask`, and nothing else: in mode `read`
nothing with side effects runs, whatever was allowed.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

import msgspec

from ipy_agent.agent.tools import Tool
from ipy_agent.rendering import listing, visible
from ipy_agent.settings import Mode

__all__ = ["Allowances", "Question", "Reply", "Verdict", "called", "question", "reply", "verdict"]


class Verdict(enum.Enum):
    """What the mode says of a call."""

    RUN = "run"
    ASK = "ask"
    REFUSE = "refuse"


_VERDICTS: dict[tuple[Mode, bool], Verdict] = {
    ("read", True): Verdict.RUN,
    ("read", False): Verdict.REFUSE,
    ("ask", True): Verdict.RUN,
    ("ask", False): Verdict.ASK,
    ("auto", True): Verdict.RUN,
    ("auto", False): Verdict.RUN,
}


def verdict(tool: Tool, mode: Mode) -> Verdict:
    """Return what is to be done with a call of `tool`."""
    return _VERDICTS[mode, tool.read_only]


class Reply(enum.Enum):
    """What came of a question; `NOBODY` where there was no way to answer it."""

    YES = "yes"
    ALWAYS = "always"
    NO = "no"
    NOBODY = "nobody"


_REPLIES = {"y": Reply.YES, "yes": Reply.YES, "a": Reply.ALWAYS}


def reply(said: str) -> Reply:
    """Return what the words of an answer mean."""
    return _REPLIES.get(said.strip().lower(), Reply.NO)


class Question(msgspec.Struct, frozen=True):
    """What the user is asked before a call runs. As a text, it is the whole question.

    `code` is what runs, as it runs, and `language` what that is written in; `rest` are the
    arguments that are not part of the code.
    """

    tool: str
    code: str
    language: str
    rest: str = ""

    @property
    def line(self) -> str:
        """The question itself, and what its answers mean."""
        rest = f" with {visible(self.rest)}" if self.rest else ""
        answers = f"y = this call, a = {self.tool} for this session, anything else = no"
        return f"Run {self.tool}{rest}? [{answers}] "

    def __str__(self) -> str:
        return f"{listing(self.code)}\n\n{self.line}"


def question(tool: Tool, arguments: str) -> Question:
    """Return what the user is asked before a call runs.

    What the model wrote is shown, not what was made of it: a class may hide some of that.
    """
    if tool.custom:
        return Question(tool.name, arguments, "text")
    if tool.shows is None:
        return Question(tool.name, called(tool.name, arguments), "python")
    said = msgspec.json.decode(arguments)
    code = str(said.pop(tool.shows, ""))
    return Question(tool.name, code, "python" if tool.name == "python" else "text", _listed(said))


def called(name: str, arguments: str) -> str:
    """Return a call with JSON arguments as Python writes one; what is no object, as it is."""
    said = msgspec.json.decode(arguments)
    return f"{name}({_listed(said)})" if isinstance(said, dict) else arguments


def _listed(said: dict[str, object]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in said.items())


class Allowances:
    """The tools that run without a question, as the user said: once, or for the session."""

    def __init__(self) -> None:
        self._how: dict[str, str] = {}

    def allow(self, name: str, *, once: bool = False) -> None:
        """Let a tool run; what was said last of it holds."""
        self._how[name] = "once" if once else "session"

    def withdraw(self, name: str) -> None:
        """Have a tool asked about again."""
        self._how.pop(name, None)

    def use(self, name: str) -> bool:
        """Return whether a call may run without a question; that may use the allowance up."""
        how = self._how.get(name)
        if how == "once":
            # Of two branches that ask at a time, one has it.
            return self._how.pop(name, None) is not None
        return how is not None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Each tool, and whether it is allowed `once` or for the `session`."""
        return iter(tuple(self._how.items()))
