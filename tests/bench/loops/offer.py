"""What every loop offers, and how it is run: `python LOOP.py URL RUNS [OPTIONS]`.

Instructions and tools are 20 kB, of which `look` is called. A loop asks a question a run, in one
conversation, and prints a line of JSON at its end: what each run cost its process.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

COUNT = int(os.environ.get("BENCH_TOOLS", "24"))
LETTERS = int(os.environ.get("BENCH_OUTPUT", "200"))
INSTRUCTIONS = "You look at rows, and say what stands in them. " * (40 if COUNT > 1 else 1)
FILLER = "It tells all that stands in a row, in the order of its columns, one a line. " * 8

NAMES = ["look", *(f"other_{number}" for number in range(1, COUNT))]


def look(at: str) -> str:
    return (f"what stands in {at}: " + "value " * LETTERS)[:LETTERS]


look.__doc__ = f"Look at a row. {FILLER}"


def schema(name: str) -> dict[str, Any]:
    return {
        "type": "function",
        "name": name,
        "description": look.__doc__,
        "parameters": {
            "type": "object",
            "properties": {"at": {"type": "string"}},
            "required": ["at"],
            "additionalProperties": False,
        },
        "strict": False,
    }


TOOLS = [schema(name) for name in NAMES]


def memory(name: str) -> float:
    """Return how many MB the process has (`VmRSS`), or had at most (`VmHWM`)."""
    told = Path("/proc/self/status").read_text("ascii")
    return int(re.search(rf"{name}:\s+(\d+)", told)[1]) / 1_000


def cost() -> dict[str, float]:
    """Return what this process has used so far; the most memory is counted anew from here."""
    told = {"cpu_ms": time.process_time() * 1_000, "peak": memory("VmHWM"), "rss": memory("VmRSS")}
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    return told | {"main_ms": time.thread_time() * 1_000, "wall_ms": time.perf_counter() * 1_000}


class Meter:
    """What the runs cost, in the order in which they were measured."""

    def __init__(self) -> None:
        self.told: list[dict[str, float]] = [cost()]

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        yield
        self.told.append(cost())


def tell(loop: Callable[..., Any]) -> None:
    """Have a loop run as the command line says, and print what its runs cost."""
    meter = Meter()
    loop(sys.argv[1], int(sys.argv[2]), meter, *sys.argv[3:])
    print(json.dumps(meter.told), flush=True)
