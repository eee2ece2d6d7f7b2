"""This package: a session in a plain script; with `--journal`, one that is kept."""

from __future__ import annotations

from offer import INSTRUCTIONS, NAMES, Meter, look, tell

from ipy_agent.agent.tools import tool_of
from ipy_agent.endpoints import Endpoint
from ipy_agent.sessions import Session


def loop(url: str, runs: int, meter: Meter, *options: str) -> None:
    """Ask a question a run."""
    for name in NAMES:
        tool_of(look, name=name, register=True)
    session = Session(
        Endpoint.named(url),
        instructions=INSTRUCTIONS,
        mode="auto",
        budget_turns=None,
        journal="--journal" in options,
    )
    for run in range(runs):
        with meter.run():
            session.run(f"question {run}")
    session.close()


if __name__ == "__main__":
    tell(loop)
