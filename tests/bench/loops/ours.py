"""This package: a session in a plain script; with `--journal`, one that is kept."""

from __future__ import annotations

import sys

from offer import FILLER, INSTRUCTIONS, NAMES, look

from ipy_agent.agent.tools import tool_of
from ipy_agent.endpoints import Endpoint
from ipy_agent.sessions import Session

look.__doc__ = f"Look at a row. {FILLER}"
for name in NAMES:
    tool_of(look, name=name, register=True)
session = Session(
    Endpoint.named(sys.argv[1]),
    instructions=INSTRUCTIONS,
    mode="auto",
    budget_turns=None,
    journal="--journal" in sys.argv,
)
for run in range(int(sys.argv[2])):
    session.run(f"question {run}")
session.close()
