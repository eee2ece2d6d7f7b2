"""Whatever happens to the connections of a map, or at the keyboard, these hold when it ended.

It ends, with a result or one typed error that has what was done. Every row is there once, in its
place; one that was answered has the answer to its prompt, any other says why not. Asked again,
nothing is asked that was answered, and all the rest is.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter

import msgspec
import pandas as pd
import pytest

from ipy_agent.agent.runs import Quiet
from ipy_agent.errors import AgentError, Interrupted
from ipy_agent.fleet.maps import Maps
from ipy_agent.protocol.items import text
from ipy_agent.protocol.script import Entry
from ipy_agent.server.scripted import ScriptedEngine
from ipy_agent.sessions import Session
from ipy_agent.transport.http import HttpTransport
from ipy_agent.transport.recovery import Recovery
from ipy_agent.transport.websocket import WebSocketTransport

from .conftest import KEY_VARIABLE, Waits

SILENT_SECONDS = 1.0
MAPS_A_SESSION = 4
ENDS = (
    *({"then": f"close:{code}"} for code in (1000, 1001, 1002, 1008, 1011, 1012, 1013)),
    {"then": "reset"},
    {"then": "hang"},
    {"error": {"status": 500}},
    {"error": {"status": 429, "code": "rate_limit_exceeded", "retry_after": 3}},
    {"error": {"status": 429, "code": "rate_limit_exceeded"}},
    {"error": {"status": 400, "code": "previous_response_not_found"}},
    {"error": {"status": 400, "code": "context_length_exceeded"}},
    {"error": {"status": 400, "code": "websocket_connection_limit_reached"}},
    {"text": None, "error": {"status": 503}},
)
FAULTS = ("close", "reset", "blackhole", "deaf", "corrupt", "duplicate")


class Passing(Waits):
    """A clock on which a sleep is over at once, and has taken its time."""

    async def sleep(self, seconds):
        self.ahead += seconds
        await super().sleep(seconds)


class Moody(ScriptedEngine):
    """An engine that echoes, or does something else by chance.

    Attributes:
        asked: how often each prompt was heard.
        mood: how likely something else is.
        at: at which prompts from now on something happens, and what.
    """

    def __init__(self, chance):
        super().__init__()
        self.asked = Counter()
        self.mood = 0.0
        self.at = {}
        self._chance = chance
        self._heard = 0

    def plan(self, mood, **at):
        self.mood, self.at, self._heard = mood, {n: do for do, n in at.values()}, 0

    async def generate(self, job, seat):
        told = {}
        if job.generate:
            told["text"] = next(text(it) for it in reversed(list(job.input)) if "role" in it)
            self.asked[told["text"]] += 1
            self._heard += 1
            self.at.pop(self._heard, lambda: None)()
            if self._chance.random() < self.mood:
                told |= self._chance.choice(ENDS)
            self._entries = iter([msgspec.convert(told | {"chunk_chars": 4}, Entry)])
        async with contextlib.aclosing(super().generate(job, seat)) as pieces:
            async for piece in pieces:
                yield piece


class Stopping(Quiet):
    """Can be told to stop from anywhere."""

    stop = staticmethod(lambda: None)

    def waiting(self, stop):
        self.stop = stop
        return super().waiting(stop)


class Chaos:
    """Sessions to whose maps things happen by chance, and what is counted of them."""

    def __init__(self, chance, engine, proxies):
        self.chance, self.engine, self.proxies = chance, engine, proxies
        self.bad = []
        self.ended, self.ways, self.statuses = Counter(), Counter(), Counter()
        self.rows = self.tables = 0

    @contextlib.contextmanager
    def session(self):
        self.proxy = self.chance.choice(self.proxies)
        self.proxy.harms, self.proxy.lines, self.clock = False, [], Passing()
        endpoint = self.proxy.endpoint(key_env=KEY_VARIABLE)
        silent = {"first_event": SILENT_SECONDS, "idle": SILENT_SECONDS}
        way = self.chance.choice([WebSocketTransport, WebSocketTransport, HttpTransport])
        self.ways[way.__name__] += 1
        probe = {} if way is HttpTransport else {"probe": 0.5, "clock": self.clock}
        # Half a body that comes twice is another request to a server, and its refusal no frame.
        self.faults = FAULTS[:-1] if way is HttpTransport else FAULTS
        made = way(endpoint, **silent, **probe)
        made = Recovery(made, endpoint, clock=self.clock, chance=self.chance)
        self.open = Session(endpoint, transport=made, journal=False, budget_seconds=30.0)
        self.open._maps = Maps(
            self.open._connections, self.open._execution.spending, clock=self.clock
        )
        before = set(threading.enumerate())
        yield
        self.open.close()
        left = {one.name for one in set(threading.enumerate()) - before}
        self.bad += [f"the thread {name} is left" for name in left]

    def round(self):
        """Make a map to which something happens, and then once more without."""
        if self.chance.random() < 0.5:
            self.open.run(f"before {self.tables}")
        frame = self.table()
        self.harm(frame)
        done = self.map(frame)
        completed = {text for text, status in done if status == "completed"}
        self.proxy.harms, self.proxy.lines = False, []
        self.engine.plan(0.0)
        self.clock.ahead += 16  # after a while, so that a dead connection is noticed
        asked = Counter(self.engine.asked)
        again = self.map(frame, clean=True)
        twice = [one for one in completed if self.engine.asked[one] > asked[one]]
        self.bad += [f"{one} was answered, and asked again" for one in twice]
        open_ = [one for one, status in again if status != "completed" and "None" not in one]
        self.bad += [f"{one} was clean and failed" for one in open_]

    def table(self):
        """Draw a table: with rows that ask the same, and such that cannot be asked."""
        self.tables += 1
        count = self.chance.randint(1, 200)
        values = [self.chance.choice([f"{n}", f"{n}", f"{n // 2}", None]) for n in range(count)]
        labels = self.chance.sample(range(1_000), count)
        return pd.DataFrame({"n": pd.Series(values, dtype=object, index=labels)})

    def harm(self, frame):
        """Have things happen to the map to come."""
        self.proxy.harms, self.front = True, Stopping()
        self.proxy.lines = [self.line() for _ in range(self.chance.randint(0, 4))]
        at = {}
        if self.chance.random() < 0.4:
            front = self.front  # which is told later how to stop
            at["stop"] = lambda: front.stop(), self.chance.randint(1, len(frame))  # noqa: PLW0108 (see there)
        if self.chance.random() < 0.4:
            at["cut"] = self.cut, self.chance.randint(1, len(frame))
        self.engine.plan(self.chance.choice([0.0, 0.02, 0.1]), **at)

    def cut(self):
        loop, proxy = self.proxy._thread.loop, self.proxy
        loop.call_soon_threadsafe(lambda: loop.create_task(proxy._cut()))

    def line(self):
        """Draw a connection."""
        fault = self.chance.choice(self.faults)
        # A handshake that nobody answers takes its time, and has a test of its own.
        after = self.chance.randrange(700 if fault in ("blackhole", "deaf") else 0, 20_000)
        told = (fault, self.chance.choice(["up", "down"]), after)
        return {"faults": [told], "piece": self.chance.choice([100, 2**16])}

    def map(self, frame, *, clean=False):
        """Make a map, check how it ended, and return prompts and how their rows ended."""
        result = None
        front = Quiet() if clean else self.front
        concurrency = self.chance.choice([1, 4, 16, 40, None])
        template = f"table {self.tables} row {{n}}"
        try:
            result = self.open.map(frame, template, concurrency=concurrency, front=front)
            ended = "result"
        except AgentError as error:
            ended = type(error).__name__
            result = error.result
            if clean or not error.code or "\n" in error.line:
                self.bad.append(f"table {self.tables} ended with {error!r}")
        except BaseException as error:  # noqa: BLE001 (whatever it is)
            ended = type(error).__name__
            self.bad.append(f"table {self.tables} broke: {error!r}")
        self.ended[ended] += 1
        return self.judged(frame, result, whole=ended == "result")

    def judged(self, frame, result, *, whole):
        """Take note of rows that came out as none may; return prompts and statuses."""
        if result is None:
            self.bad.append(f"table {self.tables} has no result")
            return []
        self.rows += len(result)
        labels = list(result.index)
        wanted = list(frame.index) if whole else [it for it in frame.index if it in set(labels)]
        if labels != wanted:
            self.bad.append(f"table {self.tables} has the rows {labels}, not {wanted}")
        told = []
        for label, row in result.iterrows():
            prompt = f"table {self.tables} row {frame.loc[label, 'n']}"
            told.append((prompt, row["status"]))
            self.statuses[row["status"]] += 1
            if row["status"] == "completed":
                fits = row["answer"] == prompt and pd.isna(row["error"])
            else:
                fits = pd.isna(row["answer"]) and row["error"] and "\n" not in row["error"]
            if not fits:
                self.bad.append(f"{prompt} came out as {row.to_dict()}")
        return told


@pytest.fixture
def chaos(chance, served, proxy):
    """Return a chaos of servers that keep all responses, and of such that keep the latest."""
    engine = Moody(chance)
    endpoints = [served(engine=engine, cache=cache) for cache in ("all", "latest")]
    ports = [int(endpoint.url.rpartition(":")[2].partition("/")[0]) for endpoint in endpoints]
    return Chaos(chance, engine, [proxy(port) for port in ports])


@pytest.mark.long
@pytest.mark.timeout(1_200)
def test_whatever_happens_every_row_comes_out_once(chaos, amount, figure):
    """And what was answered is not asked again."""
    while chaos.tables < amount(12, 400):
        with chaos.session():
            for _ in range(MAPS_A_SESSION):
                chaos.round()
                assert chaos.bad == []
        assert chaos.bad == []

    assert Interrupted.__name__ in chaos.ended or chaos.tables < 100
    figure(f"{chaos.rows} rows of {chaos.tables} tables, over {dict(chaos.ways)}")
    figure(f"maps ended {dict(chaos.ended)}, rows {dict(chaos.statuses)}")
