"""A peer and its client, each a process of its own, and what both tell of it."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import environments

HERE = Path(__file__).parent
SECONDS = 300


@dataclass(frozen=True)
class Plan:
    """What the peer says: see `peer.py`. Tools and outputs are what the client has."""

    runs: tuple[tuple[int, int], ...]
    tail_ms: float = 0
    pace_ms: float = 0
    tools: int = 24
    output: int = 200


@dataclass(frozen=True)
class Loop:
    """A client: its file in `loops/`, its options, and its environment, by default ours."""

    file: str
    options: tuple[str, ...] = ()
    http: bool = False
    environment: str = ""


@dataclass
class Told:
    """What was measured: of each run by the peer, and before and after each by the client."""

    runs: list[dict[str, list[float]]]
    costs: list[dict[str, float]]
    cells: list[Any] = field(default_factory=list)

    def gaps(self, run: int) -> list[float]:
        return self.runs[run]["gaps_ms"]

    def sizes(self, run: int) -> list[float]:
        return self.runs[run]["bytes"]

    def cpu_ms(self, run: int) -> float:
        return self.costs[run + 1]["cpu_ms"] - self.costs[run]["cpu_ms"]

    def grown(self, run: int) -> float:
        """Return by how many MB the process was larger at most, during a run, than before it."""
        return self.costs[run + 1]["peak"] - self.costs[run]["rss"]


@contextlib.contextmanager
def peer(plan: Plan, *, http: bool = False) -> Iterator[tuple[str, list[Any]]]:
    """Have a peer run; yield its address, and a list that has at the end what it measured."""
    said = {"runs": plan.runs, "tail_ms": plan.tail_ms, "pace_ms": plan.pace_ms, "http": http}
    command = [sys.executable, str(HERE / "peer.py"), json.dumps(said)]
    told: list[Any] = []
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), told
            told += json.loads(process.communicate(timeout=SECONDS)[0])
        finally:
            process.kill()


def environment(plan: Plan, state: str) -> dict[str, str]:
    """Return the environment of a client, in which nothing of the user's is read or kept.

    What it imports is kept compiled, as that of an installed package is.
    """
    dropped = [name for name in os.environ if name.endswith("_API_KEY")]
    dropped.append("PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    sizes = {"BENCH_TOOLS": str(plan.tools), "BENCH_OUTPUT": str(plan.output)}
    return {**kept, **sizes, "XDG_STATE_HOME": state, "IPYTHONDIR": state}


def measured(loop: Loop, plan: Plan) -> Told:
    """Have a client ask all of a plan, and return what was measured.

    Raises:
        Missing: its environment cannot be made.
    """
    python = environments.python(loop.environment)
    with tempfile.TemporaryDirectory() as state, peer(plan, http=loop.http) as (url, runs):
        command = [python, str(HERE / "loops" / loop.file), url, str(len(plan.runs))]
        done = subprocess.run(
            [*command, *loop.options],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            timeout=SECONDS,
            env=environment(plan, state),
        )
    return Told(runs, json.loads(done.stdout.splitlines()[-1]))


def middle(values: list[float]) -> float:
    """Return the median."""
    return statistics.median(values)
