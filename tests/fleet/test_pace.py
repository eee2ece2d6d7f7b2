"""How many rows are under way at once."""

from __future__ import annotations

import asyncio

import pytest

from ipy_agent.fleet.pace import Pace
from ipy_agent.transport.clock import Clock


class Hand(Clock):
    """A clock that is moved by those who sleep."""

    def __init__(self):
        self.time = 100.0

    def now(self):
        return self.time

    async def sleep(self, seconds):
        self.time += seconds
        await asyncio.sleep(0)


async def begun(pace, rows):
    """Return tasks of rows that begin as soon as they may, after all had the chance."""
    tasks = [asyncio.create_task(pace.begin()) for _ in range(rows)]
    for _ in range(rows):
        await asyncio.sleep(0)
    return tasks


def test_no_more_than_the_limit_are_under_way(run):
    """What ends makes room for one more."""

    async def main():
        pace = Pace(2, Hand())
        tasks = await begun(pace, 5)
        assert [task.done() for task in tasks] == [True, True, False, False, False]

        pace.end(answered=True)
        await begun(pace, 0)
        await asyncio.sleep(0)
        assert [task.done() for task in tasks] == [True, True, True, False, False]
        for task in tasks:
            task.cancel()

    run(main())


def test_a_busy_endpoint_halves_the_limit_once_a_pause(run):
    """Rows that were sent at the same time hear the same: that is one refusal."""
    pace = Pace(16, Hand())
    for _ in range(5):
        pace.throttle(2.0)

    assert pace.limit == 8

    async def main():
        await pace.begin()
        return pace._clock.time

    assert run(main()) == pytest.approx(102.0)
    pace.throttle(1.0)
    assert pace.limit == 4


def test_the_limit_never_falls_below_one_and_comes_back_answer_by_answer():
    """As many answers as there may be rows under way allow one more."""
    clock = Hand()
    pace = Pace(3, clock)
    for _ in range(6):
        pace.throttle(1.0)
        clock.time += 2
    assert pace.limit == 1

    limits = []
    for _ in range(8):
        pace.under_way += 1
        pace.end(answered=True)
        limits.append(pace.limit)
    assert limits == [2, 2, 3, 3, 3, 3, 3, 3]


def test_what_failed_allows_nothing_more():
    """Only an answer shows that the endpoint can bear it."""
    clock = Hand()
    pace = Pace(4, clock)
    pace.throttle(1.0)
    for _ in range(10):
        pace.under_way += 1
        pace.end(answered=False)

    assert pace.limit == 2
