"""Rows' outcomes, made by hand."""

from __future__ import annotations

import pytest

from ipy_agent.fleet.outcome import RowOutcome


@pytest.fixture
def outcome():
    """Return a function that makes the outcome of a row that was answered."""

    def make(text="yes", **changes):
        told = {
            "text": text,
            "status": "completed",
            "latency_ms": 120.5,
            "input_tokens": 1_000,
            "cached_tokens": 900,
            "output_tokens": 10,
            "cost_usd": 0.001,
        }
        return RowOutcome(**(told | changes))

    return make
