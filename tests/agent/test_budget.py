"""What runs used, summed up from the records, and what happens at a limit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from ipy_agent.agent.budget import Spending, Used
from ipy_agent.errors import BudgetExceeded, UsageError
from ipy_agent.protocol.events import ResponseCompleted
from ipy_agent.protocol.response import Response
from ipy_agent.records import Recorder
from ipy_agent.settings import Settings
from ipy_agent.trace import RunBegan, RunEnded, TurnBegan, TurnEnded

FULL = {
    "input_tokens": 100,
    "input_tokens_details": {"cached_tokens": 40},
    "output_tokens": 20,
}
UNTOLD = {"input_tokens": 100, "output_tokens": 20}


class House:
    """A recorder that is told of runs, with a clock that goes when it is told to."""

    def __init__(self):
        self.seconds = 0.0
        day = datetime(2026, 11, 22, tzinfo=UTC)
        self.recorder = Recorder(
            clock=lambda: self.seconds, now=lambda: day + timedelta(seconds=self.seconds)
        )
        self.priced = []
        self.spending = Spending(self.recorder, self.price)

    def price(self, row):
        """A dollar a token, of model `m` alone, and where all was told."""
        told = (row.input_tokens, row.cached_tokens, row.output_tokens)
        if row.model != "m" or None in told:
            return None
        if row.turn:
            self.priced.append(row.turn)
        return float(row.input_tokens + row.output_tokens)

    def begin(self, endpoint="here"):
        tell = self.recorder.listener()
        tell(RunBegan(prompt="go", endpoint=endpoint))
        return tell

    def turn(self, tell, usage=FULL, model="m", status="completed"):
        tell(TurnBegan(model=model))
        self.seconds += 1
        if status == "completed":
            tell(ResponseCompleted(response=response(usage)))
        tell(TurnEnded(status=status))

    def run(self, *usages, endpoint="here", **more):
        tell = self.begin(endpoint)
        for usage in usages:
            self.turn(tell, usage, **more)
        tell(RunEnded(status="completed"))

    def check(self, cell=1, endpoint="here", model="m", **limits):
        self.spending.check(Settings().replace(**limits), cell, endpoint, model)


def response(usage):
    return msgspec.convert({"id": "r", "usage": usage}, Response)


@pytest.fixture
def house():
    return House()


# sums


def test_a_run_and_the_session_have_their_sums(house):
    """Turns, seconds, tokens in and out, and what they cost."""
    house.run(FULL, FULL)
    house.run(FULL)

    assert house.spending.used(1) == Used(turns=2, seconds=2.0, tokens=240, usd=240.0)
    assert house.spending.used(2) == Used(turns=1, seconds=1.0, tokens=120, usd=120.0)
    assert house.spending.used() == Used(turns=3, seconds=3.0, tokens=360, usd=360.0)


def test_what_is_still_running_counts_as_far_as_it_went(house):
    """Its turn counts from its beginning, its seconds so far; its tokens when they are told."""
    one, other = house.begin(), house.begin()
    house.turn(one)
    other(TurnBegan(model="m"))
    house.seconds += 3

    assert house.spending.used(2) == Used(turns=1, seconds=4.0)
    assert house.spending.used() == Used(turns=2, seconds=8.0, tokens=120, usd=120.0)
    other(ResponseCompleted(response=response(FULL)))
    other(TurnEnded(status="completed"))
    other(RunEnded(status="completed"))
    one(RunEnded(status="completed"))
    house.seconds += 100
    assert house.spending.used() == Used(turns=2, seconds=8.0, tokens=240, usd=240.0)


def test_each_row_is_counted_and_priced_once(house):
    """However often one asks, and only when a price is wanted."""
    house.run(FULL)
    house.spending.used(priced=False)
    assert house.priced == []

    house.run(FULL)
    for _ in range(3):
        assert house.spending.used().usd == 240.0
    assert house.priced == [1, 2]


def test_a_turn_without_a_price_is_counted_as_such(house):
    """It is not a turn that cost nothing; one that broke off has nothing to tell."""
    house.run(FULL, model="other")
    house.run(UNTOLD)
    house.run(FULL, status="failed")

    assert house.spending.used() == Used(turns=3, seconds=3.0, tokens=240, usd=0.0, unpriced=2)


# limits


def test_without_limits_nothing_is_refused_or_priced(house):
    """The usual settings limit a run's own turns and seconds, which the loop counts."""
    house.run(*[FULL] * 30)

    house.check()
    assert house.priced == []


@pytest.mark.parametrize(
    ("name", "enough", "reached", "told"),
    [
        ("budget_tokens", 361, 360, "the run took 360 tokens, and budget_tokens is 360"),
        ("budget_usd", 360.5, 360, "the run took 360.0000 usd, and budget_usd is 360.0000"),
        ("session_turns", 5, 4, "the session took 4 turns, and session_turns is 4"),
        ("session_seconds", 4.5, 4, "the session took 4.0 seconds, and session_seconds is 4.0"),
        ("session_tokens", 481, 480, "the session took 480 tokens, and session_tokens is 480"),
        ("session_usd", 481, 480.0, "the session took 480.0000 usd, and session_usd is 480.0000"),
    ],
)
def test_a_limit_that_is_reached_is_told_with_the_way_on(house, name, enough, reached, told):
    """Below it a run goes on; at it, one line names the setting and the command."""
    house.run(FULL)
    house.run(FULL, FULL, FULL)

    house.check(2, **{name: enough})
    with pytest.raises(BudgetExceeded) as refused:
        house.check(2, **{name: reached})
    scope, kind = name.split("_")
    line = str(refused.value)
    assert line.startswith(told)
    assert f"%agent budget{' --session' if scope == 'session' else ''} --{kind} N" in line
    assert "\n" not in line


def test_a_new_run_has_its_own_budget_and_shares_the_sessions(house):
    """What another run took is nothing to a run's limits."""
    house.run(FULL, FULL)
    house.begin()

    house.check(2, budget_tokens=1, budget_usd=0.01)
    with pytest.raises(BudgetExceeded, match="session_tokens is 240"):
        house.check(2, session_tokens=240)


@pytest.mark.parametrize("name", ["budget_usd", "session_usd"])
@pytest.mark.parametrize("model", ["other", None])
def test_dollars_are_refused_where_no_price_is_known(house, name, model):
    """Before anything is sent: a limit that nobody can keep is not set aside in silence."""
    house.begin()

    with pytest.raises(UsageError, match=f"{name} cannot be kept, since no price is known") as one:
        house.check(1, model=model, **{name: 5})
    assert "--usd off" in str(one.value)
    assert (model or "the model") in str(one.value)


def test_dollars_are_refused_once_an_answer_has_no_price(house):
    """The endpoint may answer with another model than the one that was asked for."""
    tell = house.begin()
    house.turn(tell, model="other")

    with pytest.raises(UsageError, match="no price is known for m at here"):
        house.check(1, budget_usd=5)


@pytest.mark.parametrize(
    ("usage", "refused"),
    [
        (None, {"budget_tokens", "session_tokens", "budget_usd", "session_usd"}),
        ({"input_tokens": 1}, {"budget_tokens", "session_tokens", "budget_usd", "session_usd"}),
        (UNTOLD, {"budget_usd", "session_usd"}),
        (FULL, set()),
    ],
)
def test_a_limit_is_refused_where_the_endpoint_does_not_tell(house, usage, refused):
    """Not what it may have used is checked, but what it told; elsewhere the limit holds."""
    house.run(usage)
    house.begin()

    for name in ("budget_tokens", "session_tokens", "budget_usd", "session_usd", "session_turns"):
        if name in refused:
            with pytest.raises(UsageError, match=f"{name} cannot be kept, since here does not"):
                house.check(2, **{name: 1_000})
        else:
            house.check(2, **{name: 1_000})
        house.check(2, endpoint="elsewhere", **{name: 1_000})


def test_a_turn_that_broke_off_does_not_condemn_its_endpoint(house):
    """That it told no tokens is the failure's doing."""
    house.run(None, status="failed")

    house.check(1, budget_tokens=10, session_usd=10)


def test_an_endpoint_that_tells_again_is_believed_again(house):
    """One turn of which nobody told is no reason to refuse all that follow."""
    house.run(None)
    house.begin()
    with pytest.raises(UsageError):
        house.check(2, budget_tokens=1_000)
    house.run(FULL)
    house.begin()

    house.check(4, budget_tokens=1_000)
