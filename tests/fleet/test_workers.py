"""One prompt over many rows, beyond this process: on Dask's own threads, and on two workers."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import inspect
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from typing import Literal

import cloudpickle
import dask
import dask.dataframe as dd
import msgspec
import pandas as pd
import pytest
from distributed import Client, LocalCluster
from distributed.client import _set_global_client
from pandas.testing import assert_frame_equal

from ipy_agent import Session
from ipy_agent.agent.runs import Quiet
from ipy_agent.agent.tools import tool_of
from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import AgentError, AuthenticationFailed, Interrupted, UsageError
from ipy_agent.fleet.maps import Job
from ipy_agent.fleet.parcel import packed, unpacked
from ipy_agent.fleet.workers import LiveSession
from ipy_agent.journal.folder import rows_path
from ipy_agent.planning import Planner
from ipy_agent.protocol.items import EMPTY
from ipy_agent.server.scripted import ScriptedEngine, _last_user_text
from ipy_agent.settings import Settings
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
    """Echoes, counts what it was asked, and may hold back what comes after so many answers.

    An answer takes `think` seconds.
    """

    def __init__(self, script=(), *, think=0.0, hold_after=None):
        super().__init__(script)
        self.asked = collections.Counter()
        self.answered = set()
        self.warmed = 0
        self.lengths = set()
        self.holds = threading.Event()
        self.gave_up = threading.Event()
        self._think = think
        self._hold_after = hold_after
        self._free = asyncio.Event()

    def release(self):
        self._hold_after = None
        self._loop.call_soon_threadsafe(self._free.set)

    async def generate(self, job, seat):
        if job.generate:
            prompt = _last_user_text(job.input)
            self.asked[prompt] += 1
            self.lengths.add(job.input.length)
            await self._thought()
            self.answered.add(prompt)
        else:
            self.warmed += 1
        async for piece in super().generate(job, seat):
            yield piece

    async def _thought(self):
        await asyncio.sleep(self._think)
        if self._hold_after is not None and len(self.answered) >= self._hold_after:
            self._loop = asyncio.get_running_loop()
            self.holds.set()
            try:
                await self._free.wait()
            except asyncio.CancelledError:
                self.gave_up.set()
                raise


@pytest.fixture(scope="module", autouse=True)
def main():
    """Processes can be started also where the shell of another test has emptied `__main__`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["__main__"], "__spec__", None, raising=False)
        yield


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


@pytest.mark.usefixtures("cluster")
def test_a_lazy_frame_is_asked_when_it_is_computed(served, session, table):
    """A dask frame gives a lazy one with what it declared, an empty partition among the others."""
    engine = Counting([{"text": '{"label": "good", "stars": 5}'}] * 30)
    frame = table("lazy", 40)
    lazy = dd.from_pandas(frame, npartitions=4)
    lazy = lazy[lazy["n"] >= 10]  # the first partition is empty
    asking = session(served(engine=engine))

    result = asking.map(lazy, "Rate {said}", schema=Verdict)

    assert not engine.asked
    computed = result.compute()
    assert computed.dtypes.equals(result.dtypes)
    assert computed.dtypes.equals(asking.map(frame[:0], "Rate {said}", schema=Verdict).dtypes)
    assert computed.index.equals(frame.index[10:])
    assert (computed["stars"] == 5).all()
    assert set(engine.asked.values()) == {1}


def test_the_default_scheduler_asks_from_this_process(served, session, table):
    """Without a cluster Dask's threads ask, one partition after another, over one connection."""
    engine = Counting()
    asking = session(served(engine=engine))

    result = asking.map(dd.from_pandas(table("threads", 60), npartitions=6), "Echo {said}")
    computed = result.compute(scheduler="threads")

    assert computed["answer"].tolist() == [f"Echo threads {n}" for n in range(60)]
    assert computed.dtypes.equals(result.dtypes)
    assert engine.warmed == 1


def test_a_worker_keeps_its_connection(cluster, served, session, table):
    """What rows share is taken in once on each worker, however many partitions come there."""
    engine = Counting()
    asking = session(served(engine=engine))
    asking.run("My name is Ada.")

    asking.map(table("warm", 200), "Echo {said}", client=cluster)

    assert engine.warmed <= len(cluster.nthreads())
    assert engine.lengths == {1, 3}, "rows go on from the question and its answer"


def test_a_cluster_whose_client_is_not_known_asks_too(cluster, served, session, table):
    """A lazy frame carries what a worker needs: it makes its session when it has to."""
    engine = Counting()
    asking = session(served(engine=engine))
    with unset_as_default(cluster):
        lazy = asking.map(dd.from_pandas(table("unseen", 20), npartitions=2), "Echo {said}")
        cluster.unregister_worker_plugin(LiveSession.name)

    computed = cluster.compute(lazy).result()

    assert computed["answer"].tolist() == [f"Echo unseen {n}" for n in range(20)]
    assert set(cluster.run(has_session).values()) >= {True}


def test_what_a_row_meets_is_its_own(cluster, served, session, table):
    """A row that the endpoint refuses carries its error, and the others are answered."""
    engine = Counting([{"error": {"status": 400, "message": "no such thing"}}])
    asking = session(served(engine=engine))

    result = asking.map(table("own", 40), "Echo {said}", client=cluster)

    assert sorted(result["status"]) == ["completed"] * 39 + ["failed"]
    assert result["error"].dropna().str.contains("no such thing").all()


def test_what_ends_a_map_ends_it_as_without_workers(cluster, served, session, table):
    """Workers without the key fail with the error's own class; the frame so far has its dtypes."""
    engine = Counting()
    endpoint = dataclasses.replace(served(engine=engine), key_env="NOBODY_HAS_THIS_KEY")
    asking = session(endpoint)

    with pytest.raises(AuthenticationFailed, match="NOBODY_HAS_THIS_KEY is not set") as told:
        asking.map(table("keyless", 50), "Echo {said}", client=cluster)

    assert told.value.code == "missing_key"
    assert told.value.result.dtypes.equals(asking.map(table("", 0), "Echo {said}").dtypes)
    assert not engine.asked


def test_what_was_done_comes_with_the_error(cluster, served, session, table):
    """A map that ends in the middle has the finished rows in its error, of all partitions."""
    refusal = {"error": {"status": 403, "code": "forbidden", "message": "not for you"}}
    engine = Counting([*({"text": "yes"} for _ in range(60)), *(refusal for _ in range(140))])
    asking = session(served(engine=engine))
    frame = table("ends", 200).set_index("said", drop=False)

    with pytest.raises(AgentError, match="not for you") as told:
        asking.map(frame, "Echo {said}", client=cluster, concurrency=8)

    done = told.value.result
    assert done["answer"].tolist() == ["yes"] * len(done)
    assert done.index.tolist() == sorted(done.index, key=frame.index.get_loc)
    assert 25 <= len(done) <= 60


def test_an_empty_frame_comes_back_empty(cluster, served, session, table):
    """Without rows nobody is asked, and the frame has its dtypes and its kind of index."""
    asking = session(served())
    frame = table("none", 0).set_index(["said", "n"], drop=False)

    result = asking.map(frame, "Echo {said}", client=cluster)

    assert_frame_equal(result, asking.map(frame, "Echo {said}"))


def test_an_interrupt_reaches_the_workers(cluster, served, session, table):
    """What is under way on workers is given up, they live on, and only the rest is asked again."""
    engine = Counting(hold_after=60)
    frame, looker = table("stop", 200), Looker(engine)
    asking, workers = session(served(engine=engine), journal=True), cluster.run(os.getpid)

    with pytest.raises(Interrupted) as told:
        asking.map(frame, "Echo {said}", client=cluster, concurrency=8, front=looker)

    assert engine.gave_up.wait(SECONDS), "rows are not asked to their end"
    assert set(told.value.result.index) <= set(frame.index)
    engine.release()
    result = asking.map(frame, "Echo {said}", client=cluster, concurrency=8)
    assert result["answer"].tolist() == [f"Echo stop {n}" for n in range(200)]
    assert cluster.run(os.getpid) == workers
    assert sum(engine.asked.values()) <= 200 + 2 * 8


def test_how_far_it_came_is_told(cluster, served, session, table):
    """Each partition that comes back is told, and in the end all rows are done."""
    looker = Looker()
    asking = session(served(engine=Counting()))

    asking.map(table("far", 160), "Echo {said}", client=cluster, front=looker)

    done = [told.done for told in looker.progress]
    assert done == sorted(done)
    assert (done[0], done[-1], len(set(done))) == (0, 160, 9)
    assert looker.progress[-1].under_way == 0
    assert looker.progress[-1].output_tokens == 3 * 160


@pytest.mark.parametrize(
    ("settings", "changes", "why"),
    [
        ({}, {"tools": ["look"]}, "tools run in this kernel"),
        ({}, {"out": "rows.parquet"}, "to_parquet"),
        ({}, {"concurrency": 0}, "from 1 to 256"),
        ({}, {"client": "tcp://127.0.0.1:8786"}, "dask.distributed.Client"),
        ({"transport": ScriptedTransport()}, {}, "ScriptedTransport is in this process only"),
        ({"budget_usd": 1.0}, {}, "budget_usd cannot be kept"),
        ({"session_tokens": 1_000}, {}, "session_tokens cannot be kept"),
    ],
)
def test_what_workers_cannot_do_is_refused(served, session, table, settings, changes, why):
    """It is said before anything is asked."""
    engine = Counting()
    asking = session(served(engine=engine), toolbox={"look": tool_of(look)}, **settings)
    lazy = dd.from_pandas(table("refused", 4), npartitions=1)

    with pytest.raises(UsageError, match=why):
        asking.map(lazy, "Echo {said}", **changes)

    assert not engine.asked


def test_a_missing_column_is_found_before_anything_is_computed(served, session, table):
    """A lazy frame is checked by its columns."""
    lazy = dd.from_pandas(table("column", 4), npartitions=1)

    with pytest.raises(UsageError, match="did you mean 'said'"):
        session(served()).map(lazy, "Echo {siad}")


def test_no_key_travels(served, session, table, monkeypatch, canary, leaks):
    """What workers are sent has the name of the key's variable, and its value nowhere."""
    monkeypatch.setenv("CANARY_API_KEY", canary)
    endpoint = dataclasses.replace(served(), key_env="CANARY_API_KEY")
    asking = session(endpoint, instructions="Be brief.")
    asking.records.turns  # noqa: B018 (a session that has been looked at)

    lazy = asking.map(dd.from_pandas(table("key", 4), npartitions=2), "Echo {said}", schema=Verdict)
    graph = cloudpickle.dumps(lazy) + cloudpickle.dumps(dict(lazy.__dask_graph__()))
    sent = {"graph": graph, "plugin": cloudpickle.dumps(LiveSession())}

    assert leaks({"control": f"key {canary}".encode()}) == ["control"]
    assert leaks(sent) == []
    assert b"CANARY_API_KEY" in graph


def test_a_type_of_a_notebook_travels_by_value():
    """A class that nobody can import arrives whole, whatever kind of class it is."""
    job = inspect.getsource(a_job)
    packed_there = subprocess.run(
        [sys.executable, "-c", PACK + job + PACK_ALL], stdout=subprocess.PIPE, check=True
    ).stdout

    assert elsewhere(packed_there, '{"inner": {"stars": 3}}') == ["3 a"] * 4
    assert elsewhere(packed_there, '{"inner": {"stars": "x"}}') == ["Misfit"] * 4


def test_a_type_that_would_arrive_empty_is_refused():
    """Of a msgspec Struct of a notebook, inside another type too, nothing would be left."""
    inner = msgspec.defstruct("Inner", [("stars", int)])
    outer = dataclasses.make_dataclass("Outer", [("inner", inner)])

    with pytest.raises(UsageError, match=r"Inner cannot be sent .* put it into a module"):
        packed(a_job(outer), outer, None)


def test_a_process_knows_a_parcel_again():
    """The same bytes are the same job: what its rows share stays warm."""
    sent = packed(a_job(Verdict), Verdict, rows_path)

    assert unpacked(sent) is unpacked(bytes(bytearray(sent)))
    assert unpacked(sent).kept == rows_path()


def test_a_worker_that_leaves_gives_its_rows_back(served, session, table):
    """A worker that is closed in the middle closes its session, and others ask its rows."""
    engine = Counting(hold_after=30)
    asking = session(served(engine=engine), journal=True)
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
        ) as made,
        Client(made) as client,
    ):

        def retire():
            assert engine.holds.wait(SECONDS)
            client.retire_workers([next(iter(client.nthreads()))])
            engine.gave_up.wait(SECONDS)
            engine.release()

        retiring = threading.Thread(target=retire)
        retiring.start()
        result = asking.map(table("leave", 100), "Echo {said}", client=client, concurrency=4)
        retiring.join()

    assert engine.gave_up.is_set()
    assert result["answer"].tolist() == [f"Echo leave {n}" for n in range(100)]
    assert max(engine.asked.values()) == 2


class Counted(Quiet):
    """Looks on, and says when so many rows are there."""

    def __init__(self, rows):
        self.there = threading.Event()
        self._rows = rows

    def show(self, event):
        if isinstance(event, RowsProgress) and event.done >= self._rows:
            self.there.set()


def test_a_cluster_that_is_closed_is_told_so(served, session, table):
    """Who closes the client in the middle hears of it, and has what was done."""
    engine, front = Counting(hold_after=30), Counted(25)
    asking = session(served(engine=engine))
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
    ) as made:
        client = Client(made)

        def close():
            if engine.holds.wait(SECONDS) and front.there.wait(SECONDS):
                client.close()

        closing = threading.Thread(target=close)
        closing.start()

        with pytest.raises(AgentError, match="is it closed") as told:
            asking.map(
                table("closed", 100), "Echo {said}", client=client, concurrency=4, front=front
            )
        closing.join()

    assert told.value.code == "given_up"
    assert told.value.result["answer"].tolist() == [f"Echo closed {n}" for n in range(25)]


def test_rows_that_lose_every_worker_end_the_map(served, session, table):
    """What Dask gives up as deadly is an error of ours, which says what to look at."""
    engine = Counting(hold_after=30)
    asking = session(served(engine=engine))
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(
            n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as made,
        Client(made) as client,
    ):
        (pid,) = client.run(os.getpid).values()
        killer = threading.Thread(
            target=lambda: engine.holds.wait(SECONDS) and os.kill(pid, signal.SIGKILL)
        )
        killer.start()

        with pytest.raises(AgentError, match="look at the cluster") as told:
            asking.map(table("deadly", 100), "Echo {said}", client=client, concurrency=4)
        killer.join()

    assert told.value.code == "workers_lost"


def test_without_dask_all_but_workers_is_there():
    """A map in this process needs no Dask; one beyond says which extra it needs."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], stdout=subprocess.PIPE, text=True, check=True
    )

    assert done.stdout.splitlines() == [
        "0",
        "a map over Dask's workers needs more packages: pip install 'ipy-agent-live[dask]'",
    ]


@pytest.mark.long
def test_a_lost_worker_doubles_nothing(cluster, served, session, table, amount, figure):
    """After a SIGKILL all rows are there once, and none that was kept is asked again."""
    rows = amount(600, 6_000)
    engine = Counting(think=0.02, hold_after=rows // 3)
    asking, kept = session(served(engine=engine), journal=True), []

    def kill():
        assert engine.holds.wait(SECONDS)
        os.kill(next(iter(cluster.run(os.getpid).values())), signal.SIGKILL)
        kept.extend((len(engine.answered), kept_rows() - before))
        engine.release()

    before = kept_rows()
    killer = threading.Thread(target=kill)
    killer.start()
    result = asking.map(table("lost", rows), "Echo {said}", client=cluster, concurrency=8)
    killer.join()

    answered, stored = kept
    twice = [prompt for prompt, times in engine.asked.items() if times > 1]
    figure(f"{rows} rows, {answered} answered and {stored} kept at the kill, {len(twice)} twice")
    assert result["answer"].tolist() == [f"Echo lost {n}" for n in range(rows)]
    assert stored > rows // 6
    assert len(twice) <= answered - stored + 8, "more than what was under way there"
    assert max(engine.asked.values()) <= 2


class Looker(Quiet):
    """Looks on, and stops a map once an engine holds back."""

    def __init__(self, engine=None):
        self.progress = []
        self._engine = engine

    def show(self, event):
        if isinstance(event, RowsProgress):
            self.progress.append(event)

    @contextlib.contextmanager
    def waiting(self, stop):
        if self._engine is not None:
            stopper = threading.Thread(target=lambda: self._engine.holds.wait(SECONDS) and stop())
            stopper.start()
        yield


def look() -> str:
    """Look."""
    return ""


def has_session(dask_worker):
    return LiveSession.name in dask_worker.plugins


@contextlib.contextmanager
def unset_as_default(client):
    with dask.config.set(scheduler="threads"):
        _set_global_client(None)
        try:
            yield
        finally:
            _set_global_client(client)


def kept_rows():
    if not rows_path().exists():
        return 0
    with contextlib.closing(sqlite3.connect(rows_path())) as file:
        return file.execute("SELECT count(*) FROM outcomes").fetchone()[0]


def a_job(kind):
    planner = Planner(Settings(), Endpoint.named("http://127.0.0.1:9/v1"), "key", {})
    plan = planner.plan("Rate {said}", {}, endpoint=None, schema=kind, images=(), cell=None)
    return Job(plan=plan, shared=EMPTY)


PACK = """
import dataclasses, pickle, sys, typing
import pydantic
from ipy_agent.endpoints import Endpoint
from ipy_agent.fleet.maps import Job
from ipy_agent.fleet.parcel import packed
from ipy_agent.planning import Planner
from ipy_agent.protocol.items import EMPTY
from ipy_agent.settings import Settings

@dataclasses.dataclass
class Inner:
    stars: int

@dataclasses.dataclass
class Data:
    inner: Inner
    label: typing.Literal["a", "b"] = "a"

class Tuple(typing.NamedTuple):
    inner: Inner
    label: str = "a"

class Inside(pydantic.BaseModel):
    stars: int

class Model(pydantic.BaseModel):
    inner: Inside
    label: str = "a"

class Dict(typing.TypedDict, total=False):
    inner: Inner
    label: str

"""

PACK_ALL = """
kinds = Data, Tuple, Model, Dict
sys.stdout.buffer.write(pickle.dumps([packed(a_job(kind), kind, None) for kind in kinds]))
"""

WITHOUT = """
import sys
sys.modules |= dict.fromkeys(["dask", "distributed", "cloudpickle"])
import pandas as pd
from ipy_agent import Session
from ipy_agent.errors import MissingExtra
session, frame = Session("http://127.0.0.1:9/v1"), pd.DataFrame({"said": []})
print(len(session.map(frame, "Echo {said}")))
try:
    session.map(frame, "Echo {said}", client=object())
except MissingExtra as error:
    print(error)
"""

READ = """
import pickle, sys
from ipy_agent.agent.schemas import Misfit
from ipy_agent.fleet.parcel import unpacked
for parcel in pickle.load(sys.stdin.buffer):
    try:
        found = unpacked(parcel).plan.shape.parse(sys.argv[1])
        if isinstance(found, dict):
            print(found["inner"].stars, found.get("label", "a"))
        else:
            print(found.inner.stars, found.label)
    except Misfit:
        print("Misfit")
"""


def elsewhere(parcels, said):
    """Return what another process makes of an answer, by the types in parcels."""
    done = subprocess.run(
        [sys.executable, "-c", READ, said], input=parcels, stdout=subprocess.PIPE, check=True
    )
    return done.stdout.decode().splitlines()
