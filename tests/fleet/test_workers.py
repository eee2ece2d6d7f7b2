"""One prompt over many rows, beyond this process: on Dask's own threads, and on two workers."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import os
import signal
import sqlite3
import threading
from typing import Literal

import dask.dataframe as dd
import msgspec
import pandas as pd
import pytest
from distributed import Client, LocalCluster
from pandas.testing import assert_frame_equal

from ipy_agent import Session
from ipy_agent.agent.runs import Quiet
from ipy_agent.errors import AuthenticationFailed, Interrupted, UsageError
from ipy_agent.fleet.workers import LiveSession
from ipy_agent.journal.folder import rows_path
from ipy_agent.protocol.items import text
from ipy_agent.server.frames import from_user
from ipy_agent.server.scripted import ScriptedEngine
from ipy_agent.trace import RowsProgress
from ipy_agent.transport.scripted import ScriptedTransport

KEY_VARIABLE = "IPY_AGENT_TESTS_KEY"
SECONDS = 60
VARYING = ["latency_ms", "cached_tokens"]


@dataclasses.dataclass
class Verdict:
    """What a row is asked for."""

    label: Literal["good", "bad"]
    stars: int


class Counting(ScriptedEngine):
    """Echoes, and counts what it was asked; holds all answers past a number until it is told.

    Its `think` is seconds that an answer takes.
    """

    def __init__(self, script=(), *, think=0.0, hold_after=None):
        super().__init__(script)
        self.asked = collections.Counter()
        self.answered = set()
        self.warmed = 0
        self.full = threading.Event()
        self.go_on = threading.Event()
        self._think = think
        self._hold_after = hold_after

    async def generate(self, job, seat):
        prompt = text(next(item for item in reversed(list(job.input)) if from_user(item)))
        if job.generate:
            self.asked[prompt] += 1
            await asyncio.sleep(self._think)
            if self._hold_after is not None and len(self.answered) >= self._hold_after:
                self.full.set()
                while not self.go_on.is_set():
                    await asyncio.sleep(0.01)
            self.answered.add(prompt)
        else:
            self.warmed += 1
        async for piece in super().generate(job, seat):
            yield piece


@pytest.fixture(scope="module")
def cluster():
    """Two workers, each a process, with the key in their environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, "a-token-of-the-tests")
        with (
            LocalCluster(
                n_workers=2,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
            ) as made,
            Client(made) as client,
        ):
            yield client


@pytest.fixture
def session():
    """Return a function that makes a session."""
    made = []

    def make(*args, **settings):
        made.append(Session(*args, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def table():
    """Return a function that makes a table of texts that nothing else asks for."""

    def make(name, rows):
        return pd.DataFrame({"said": [f"{name} {n}" for n in range(rows)], "n": range(rows)})

    return make


def test_a_frame_goes_through_two_workers(cluster, served, session, table):
    """A pandas frame comes back as it does without workers: same order, index and dtypes."""
    engine = Counting()
    frame = table("two", 150).set_axis([n // 2 for n in range(150)])
    asking = session(served(engine=engine))

    result = asking.map(frame, "Echo {said}", client=cluster)
    alone = asking.map(frame, "Echo {said}")

    assert result["answer"].tolist() == [f"Echo two {n}" for n in range(150)]
    assert_frame_equal(result.drop(columns=VARYING), alone.drop(columns=VARYING))
    assert result.dtypes.equals(alone.dtypes)
    assert set(engine.asked.values()) == {2}
