"""What a cell run and the session may take: turns, seconds, tokens, dollars, and what they took.

The sums are a fold over the recorder's rows, each of which is looked at once; a limit is checked
between turns. A cell run's own turns and seconds are the loop's to count.

Rule 1: what nobody told is unknown, not nothing: a limit that cannot be kept is refused.
Rule 2: an error names the setting, and how to go on.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from ipy_agent.errors import BudgetExceeded, UsageError
from ipy_agent.records import Recorder, TurnRecord
from ipy_agent.settings import Settings

__all__ = ["KINDS", "Spending", "Used"]

KINDS = {
    "turns": "{:,}",
    "seconds": "{:,.1f}",
    "tokens": "{:,}",
    "usd": "{:,.4f}",
}
"""What can be limited, and how an amount of it is written."""

_CHECKED = (
    *("budget_tokens", "budget_usd"),
    *("session_turns", "session_seconds", "session_tokens", "session_usd"),
)
_TOLD = {
    "tokens": ("input_tokens", "output_tokens"),
    "usd": ("input_tokens", "output_tokens", "cached_tokens"),
}
"""What an endpoint has to tell of a turn, for a limit to be kept."""

_ANSWERED = ("completed", "incomplete")
"""Turns whose end was heard: of any other it is no wonder that nobody told what it took."""

Price = Callable[[TurnRecord], float | None]


class Used(msgspec.Struct):
    """What was used so far. Of `unpriced` turns nobody knows the price."""

    turns: int = 0
    seconds: float = 0.0
    tokens: int = 0
    usd: float = 0.0
    unpriced: int = 0


class Spending:
    """What the runs of a session used.

    Args:
        records: whose rows are summed up.
        price: what a turn cost in US dollars, if that is known.
    """

    def __init__(self, records: Recorder, price: Price) -> None:
        self._records = records
        self._price = price
        self._lock = threading.Lock()  # a run checks on the loop's thread, a user asks on another
        self._seen = 0
        self._running: list[TurnRecord] = []
        self._unpriced: list[TurnRecord] = []
        self._session = Used()
        self._cells: defaultdict[int, Used] = defaultdict(Used)
        self._seen_cells = 0
        self._running_cells: list[int] = []
        self._silent: dict[str, set[str]] = {kind: set() for kind in _TOLD}

    def check(self, settings: Settings, cell: int, endpoint: str, model: str | None) -> None:
        """Say whether a run may ask once more.

        Args:
            settings: its limits.
            cell: its number.
            endpoint: whom it asks.
            model: which model it asks for.

        Raises:
            BudgetExceeded: a limit is reached.
            UsageError: a limit cannot be kept, since nobody tells what is used.
        """
        limits = {name: getattr(settings, name) for name in _CHECKED}
        limits = {name: limit for name, limit in limits.items() if limit is not None}
        if not limits:
            return
        priced = "budget_usd" in limits or "session_usd" in limits
        run, session = self.used(cell, priced=priced), self.used(priced=priced)
        for name, limit in limits.items():
            scope, _, kind = name.partition("_")
            if endpoint in self._silent.get(kind, ()):
                raise _untold(name, f"{endpoint} does not tell what a turn took")
            if kind == "usd" and (run.unpriced or not self._has_price(endpoint, model)):
                raise _untold(name, f"no price is known for {model or 'the model'} at {endpoint}")
            used = getattr(run if scope == "budget" else session, kind)
            if used >= limit:
                raise _exceeded(name, used, limit)

    def charge(self, cell: int, row: TurnRecord) -> None:
        """Count a turn that is in no records, for a run with a number below 0.

        Once while it is running, which is one turn more, and once when it ended.
        """
        with self._lock:
            if row.status == "running":
                for sums in (self._session, self._cells[cell]):
                    sums.turns += 1
            else:
                own = msgspec.structs.replace(row, cell=cell)
                self._count(own)
                self._price_of(own)

    def took(self, cell: int, seconds: float) -> None:
        """Count more of the time of such a run."""
        with self._lock:
            self._session.seconds += seconds
            self._cells[cell].seconds += seconds

    def used(self, cell: int | None = None, *, priced: bool = True) -> Used:
        """Return what a run used, or the whole session; without `priced`, no price is looked up."""
        with self._lock:
            self._take_in()
            if priced:
                self._take_in_prices()
            sums = msgspec.structs.replace(self._session if cell is None else self._cells[cell])
            for number in self._running_cells if cell is None else [cell]:
                sums.seconds += self._seconds(number) if number > 0 else 0
            return sums

    def _take_in(self) -> None:
        """Count what happened since the last time: new rows, and those that were running."""
        new = self._records.turns[self._seen :]
        self._seen += len(new)
        for row in new:
            self._session.turns += 1
            self._cells[row.cell].turns += 1
        rows, self._running = [*self._running, *new], []
        for row in rows:
            if row.status == "running":
                self._running.append(row)
            else:
                self._count(row)
                self._unpriced.append(row)
        count = len(self._records.cells)
        cells = [*self._running_cells, *range(self._seen_cells + 1, count + 1)]
        self._seen_cells, self._running_cells = count, []
        for number in cells:
            if self._records.cells[number - 1].elapsed_ms is None:
                self._running_cells.append(number)
            else:
                self._session.seconds += self._seconds(number)

    def _count(self, row: TurnRecord) -> None:
        for sums in (self._session, self._cells[row.cell]):
            sums.tokens += (row.input_tokens or 0) + (row.output_tokens or 0)
        if row.status in _ANSWERED:
            for kind, wanted in _TOLD.items():
                if any(getattr(row, name) is None for name in wanted):
                    self._silent[kind].add(row.endpoint)
                else:  # as a rule it tells: one turn of which it did not is no reason to stop
                    self._silent[kind].discard(row.endpoint)

    def _take_in_prices(self) -> None:
        """Price the turns that nobody asked the price of so far."""
        rows, self._unpriced = self._unpriced, []
        for row in rows:
            self._price_of(row)

    def _price_of(self, row: TurnRecord) -> None:
        cost = self._price(row)
        for sums in (self._session, self._cells[row.cell]):
            sums.usd += cost or 0.0
            sums.unpriced += cost is None and row.status in _ANSWERED

    def _seconds(self, cell: int) -> float:
        row = self._records.cells[cell - 1]
        if row.elapsed_ms is not None:
            return row.elapsed_ms / 1_000
        return (self._records.now() - row.started_at).total_seconds()

    def _has_price(self, endpoint: str, model: str | None) -> bool:
        turn = TurnRecord(
            turn=0,
            cell=0,
            branch="",
            model=model,
            endpoint=endpoint,
            started_at=datetime.now(UTC),
            input_tokens=1,
            cached_tokens=0,
            output_tokens=1,
        )
        return self._price(turn) is not None


def _options(name: str) -> str:
    """Return how a setting is set: the words behind `%agent budget`, without a value."""
    scope, _, kind = name.partition("_")
    return f"%agent budget{' --session' if scope == 'session' else ''} --{kind}"


def _exceeded(name: str, used: float, limit: float) -> BudgetExceeded:
    scope, _, kind = name.partition("_")
    took, may = KINDS[kind].format(used), KINDS[kind].format(limit)
    if scope == "budget":
        return BudgetExceeded(
            f"the run took {took} {kind}, and {name} is {may}: ask the next cell to go on, "
            f"or raise it with {_options(name)} N"
        )
    return BudgetExceeded(
        f"the session took {took} {kind}, and {name} is {may}: to go on, raise it "
        f"with {_options(name)} N, or take it away with {_options(name)} off"
    )


def _untold(name: str, why: str) -> UsageError:
    return UsageError(
        f"{name} cannot be kept, since {why}: limit turns or seconds instead, "
        f"and take it away with {_options(name)} off"
    )
