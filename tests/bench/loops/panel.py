"""Refreshes of the live panel of a session with a thousand turns, in the cell that calls."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from IPython.display import display

from ipy_agent.notebook.panel import Panel
from ipy_agent.records import CellRecord, Recorder, TurnRecord


def turn(number: int) -> TurnRecord:
    return TurnRecord(
        turn=number,
        cell=number // 20 + 1,
        branch="main",
        endpoint="local",
        started_at=datetime.now(UTC),
        ttft_ms=123.4,
        latency_ms=12_345.6,
        tool_ms=1_234.5,
        sent_items=3,
        held_items=120,
        sent_bytes=12_345,
        full_bytes=523_456,
        input_tokens=123_456,
        cached_tokens=119_876,
        output_tokens=1_234,
        status="completed",
    )


def cell(number: int) -> CellRecord:
    return CellRecord(
        cell=number,
        started_at=datetime.now(UTC),
        branch="main",
        endpoint="local",
        prompt="How heavy are they? " * 9,
        status="completed",
    )


def refreshes(count: int) -> list[tuple[float, int]]:
    """Return how many ms each took, a turn after another, and its bytes; display the panel."""
    recorder, now, took = Recorder(), 0.0, []
    panel = Panel(recorder, lambda *_: None, clock=lambda: now)
    display(panel.widget)
    recorder.cells += map(cell, range(1, 1_001))
    recorder.turns += map(turn, range(1, 1_001))
    panel.refresh(force=True)
    for number in range(1_001, 1_001 + count):
        recorder.turns.append(turn(number))
        now += 1
        began = time.perf_counter()
        panel.refresh()
        spent = (time.perf_counter() - began) * 1_000
        took.append((spent, len(panel.tabs.children[0].value.encode())))
    return took
