"""What a map may take: it is kept between turns, as for a run."""

from __future__ import annotations

import contextlib

import pandas as pd
import pytest

from ipy_agent.agent.tools import TOOLS, tool_of
from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import BudgetExceeded, Interrupted, UsageError
from ipy_agent.fleet.maps import Maps
from ipy_agent.sessions import Session
from ipy_agent.transport.clock import Clock
from ipy_agent.transport.scripted import ScriptedTransport


@pytest.fixture
def look():
    """A tool without side effects."""

    def look(at: int) -> str:
        """Look."""
        return f"saw {at}"

    TOOLS["look"] = tool_of(look, read_only=True)
    yield
    del TOOLS["look"]


def looks(*at):
    return [{"tool_calls": [{"name": "look", "arguments": {"at": one}}]} for one in at]


@pytest.mark.usefixtures("look")
def test_a_limit_is_kept_within_a_row(scripted):
    """What its turns took counts when each is over, and not when the row is."""
    session, transport = scripted(looks(1, 2, 3, 4, 5), budget_tokens=1)
    with pytest.raises(BudgetExceeded, match="budget_tokens"):
        session.map(pd.DataFrame({"n": range(2)}), "row {n}", tools=["look"], concurrency=1)

    assert len(transport.requests) == 1
    assert session.used().tokens > 0


def test_a_number_of_turns_is_kept_however_many_are_under_way(scripted):
    """A turn counts when it begins."""
    session, transport = scripted(session_turns=5)
    with pytest.raises(BudgetExceeded, match="session_turns") as caught:
        session.map(pd.DataFrame({"n": range(100)}), "row {n}", concurrency=16)

    assert len(transport.requests) == len(caught.value.result) == 5
    assert session.used().turns == 5


@pytest.mark.usefixtures("look")
def test_what_an_interrupted_row_took_counts(scripted):
    """Its turns that were over were paid for."""

    def stop(at: int) -> str:  # noqa: ARG001 (a call has to have some)
        """Stop."""
        raise KeyboardInterrupt

    TOOLS["stop"] = tool_of(stop, read_only=False)
    try:
        last = {"tool_calls": [{"name": "stop", "arguments": {"at": 1}}]}
        session, transport = scripted([*looks(1), last], mode="auto")
        with pytest.raises(Interrupted):
            session.map(pd.DataFrame({"n": [1]}), "row {n}", tools=["look", "stop"])
    finally:
        del TOOLS["stop"]

    assert len(transport.requests) == session.used().turns == 2
    assert session.used().tokens > 0


class Ticking(Clock):
    """A clock on which a second passes whenever it is looked at."""

    def __init__(self):
        self.seconds = 0.0

    def now(self):
        self.seconds += 1
        return self.seconds


def test_the_seconds_of_a_map_count_while_it_goes_on(scripted):
    """A limit of the session's seconds ends it, between rows."""
    session, transport = scripted(session_seconds=50)
    session._maps = Maps(session._connections, session._execution.spending, Ticking())
    with pytest.raises(BudgetExceeded, match="session_seconds") as caught:
        session.map(pd.DataFrame({"n": range(500)}), "row {n}", concurrency=1)

    assert 0 < len(transport.requests) == len(caught.value.result) < 50


def test_a_limit_in_dollars_without_a_price_is_refused_before_anything_is_sent(scripted):
    """As for a run."""
    session, transport = scripted(budget_usd=1.0)
    with pytest.raises(UsageError, match="no price is known"):
        session.map(pd.DataFrame({"n": range(5)}), "row {n}")

    assert transport.requests == []


def test_dollars_end_a_map_between_rows():
    """With an endpoint and a model whose price is known."""
    transport = ScriptedTransport()
    endpoint = Endpoint.named("openai")
    session = Session(endpoint, transport=transport, model="gpt-5.2", session_usd=1e-9)
    with contextlib.closing(session), pytest.raises(BudgetExceeded, match="session_usd"):
        session.map(pd.DataFrame({"n": range(50)}), "row {n}", concurrency=1)

    assert len(transport.requests) == 1
    assert session.used().usd > 0


def test_a_rows_own_seconds_are_its_failure(served):
    """`budget_seconds` is each row's, as it is each run's: the others are answered."""
    endpoint = served([{"text": "well", "then": "hang"}])
    with contextlib.closing(Session(endpoint, budget_seconds=0.3)) as session:
        result = session.map(pd.DataFrame({"n": range(10)}), "row {n}", concurrency=2)

    assert result["status"].value_counts().to_dict() == {"completed": 9, "failed": 1}
    assert result["error"].dropna().tolist()[0].startswith("the run took 0.3 s")
