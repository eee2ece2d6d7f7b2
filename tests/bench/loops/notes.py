"""What is asked of rows, and how a client of them is run: `python CLIENT.py URL PLAN`.

The plan is JSON, see `Plan`. A client asks all rows, and prints a line of JSON, see `Told`.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

INSTRUCTIONS = "You are given a note from a ship's log. Say in one word what the wind was. " * 8
PROMPT = """\
The note is: day {day}, wind from the west, a calm sea, some birds, and nothing that was seen before
One word:"""
"""Of a row its number is put in, so that the frame itself takes next to nothing."""


class Plan(msgspec.Struct):
    """How many rows are asked on how many lanes, and the parquet file they go to, if any."""

    rows: int
    lanes: int
    out: str | None = None


class Told(msgspec.Struct):
    """What that took: the process's peak of memory, and that before the first row, in MB."""

    seconds: float
    cpu_seconds: float
    peak: float
    before: float
    answered: int


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024


def tell(ask: Callable[[str, Plan], Any], answered: Callable[[Any], int]) -> None:
    """Have a client ask as the command line says, and print what it took.

    Args:
        ask: asks all rows.
        answered: returns how many of what that returned are answers; this is not measured.
    """
    url, plan = sys.argv[1], msgspec.json.decode(sys.argv[2], type=Plan)
    before = peak()
    began, used = time.perf_counter(), time.process_time()
    found = ask(url, plan)
    seconds, cpu, most = time.perf_counter() - began, time.process_time() - used, peak()
    told = Told(seconds, cpu, most, before, answered(found))
    print(msgspec.json.encode(told).decode(), flush=True)
