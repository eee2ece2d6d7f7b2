"""read / ask / auto: which calls run, and what is asked before.

Rule 1: the question shows exactly what then runs; characters that hide or reorder text are
shown by their code.
Rule 2: only a plain yes is a yes. An empty answer, no way to answer and an interrupt are a no.
"""

from __future__ import annotations

import enum

from ipy_agent.agent.tools import Tool, repr_of
from ipy_agent.rendering import visible
from ipy_agent.settings import Mode

__all__ = ["YES", "Verdict", "question", "verdict"]

YES = frozenset({"y", "yes"})


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


def question(tool: Tool, arguments: dict[str, object]) -> str:
    """Return what the user is asked before a call runs."""
    if tool.shows is not None:
        call = str(arguments[tool.shows])
    else:
        said = ", ".join(f"{name}={repr_of(value)}" for name, value in arguments.items())
        call = f"{tool.name}({said})"
    return f"{visible(call)}\n\nRun {tool.name}? [y/N] "
