"""This package: `Session.map` over a frame, kept on disk as in a kernel."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from notes import INSTRUCTIONS, PROMPT, Plan, tell

from ipy_agent import Endpoint, Session


def rows(url: str, plan: Plan) -> pd.DataFrame | Path:
    """Ask all rows, and return what came of them, or the file that it is in."""
    frame = pd.DataFrame({"day": range(plan.rows)})
    session = Session(
        Endpoint.named(url, key_env="KEY", model="scripted"),
        instructions=INSTRUCTIONS,
        journal=True,
    )
    found = session.map(frame, PROMPT, concurrency=plan.lanes, out=plan.out)
    session.close()
    return found


def answered(found: pd.DataFrame | Path) -> int:
    """Return how many answers there are."""
    if isinstance(found, Path):
        found = pd.read_parquet(found, columns=["status"])
    return int((found["status"] == "completed").sum())


if __name__ == "__main__":
    tell(rows, answered)
