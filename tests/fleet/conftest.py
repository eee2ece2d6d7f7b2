"""Rows' outcomes, made by hand; sessions that answer from a script."""

from __future__ import annotations

import pandas as pd
import pytest

from ipy_agent.endpoints import Endpoint
from ipy_agent.fleet.outcome import RowOutcome
from ipy_agent.sessions import Session
from ipy_agent.transport.scripted import ScriptedTransport


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


@pytest.fixture
def scripted():
    """Return a function that makes a session and its transport."""
    made = []

    def make(script=(), **settings):
        transport = ScriptedTransport(list(script))
        made.append(Session(Endpoint(name="x", url="http://x/v1"), transport=transport, **settings))
        return made[-1], transport

    yield make
    for session in made:
        session.close()


@pytest.fixture
def frame():
    return pd.DataFrame({"name": ["ann", "bob", "cem"]}, index=[7, 3, 5])
