"""Whatever happens to a session, on the wire or at the keyboard, five things hold after every run.

A run ends, with an answer or one typed error. No tool with side effects ran twice. The
conversation can be sent again. No answer is another run's. And the next run works.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

import ipy_agent
from ipy_agent.agent.approval import Reply
from ipy_agent.agent.runs import Quiet
from ipy_agent.agent.tools import TOOLS
from ipy_agent.answers import Answer
from ipy_agent.errors import AgentError, BudgetExceeded
from ipy_agent.protocol.items import calls, text
from ipy_agent.sessions import Session
from ipy_agent.transport.http import HttpTransport
from ipy_agent.transport.recovery import Recovery
from ipy_agent.transport.websocket import WebSocketTransport

KEY_VARIABLE = "IPY_AGENT_TESTS_KEY"
RUNS_A_SESSION = 20
HUNG_SECONDS = 30.0
SILENT_SECONDS = 1.0
BRANCHES = ("main", "idea")
CELLS = (None, None, "a", "b", "c")
ROUNDS = ("", "act", "act,look", "look act", "act,act look,act act")
ENDS = (
    *({"then": f"close:{code}"} for code in (1000, 1001, 1011, 1012, 1013)),
    {"then": "close:1008"},
    {"then": "close:1002"},
    {"then": "reset"},
    {"then": "hang"},
    {"error": {"status": 500}},
    {"error": {"status": 429, "code": "rate_limit_exceeded", "retry_after": 3}},
    {"error": {"status": 400, "code": "previous_response_not_found"}},
    {"error": {"status": 400, "code": "websocket_connection_limit_reached"}},
    {"text": None, "tool_calls": None, "error": {"status": 503}},
)
FAULTS = ("close", "reset", "blackhole", "deaf", "corrupt", "duplicate")


class Onlooker(Quiet):
    """Does something at one event of a run, and answers questions."""

    def __init__(self, at, do, reply):
        self._left, self._do, self._reply = at, do, reply

    def show(self, event):  # noqa: ARG002 (any will do)
        self._left -= 1
        if self._left == 0:
            self._do(self)

    def waiting(self, stop):
        self.stop = stop
        return super().waiting(stop)

    def approve(self, question):  # noqa: ARG002 (any will do)
        if self._reply is None:
            raise KeyboardInterrupt
        return self._reply


class Chaos:
    """Sessions to which things happen by chance, and what is counted of them."""

    def __init__(self, chance, engine, proxies, clock):
        self.chance, self.engine, self.proxies, self.clock = chance, engine, proxies, clock
        self.names = (f"n{number}" for number in itertools.count(1))
        self.ran = []
        self.interrupting = set()
        self.happened = Counter()
        self.ended = Counter()
        self.ways = Counter()
        self.turns = self.kept = 0
        self.bad = []

    def act(self, name: str, step: str, serial: int) -> str:
        """Act."""
        self.ran.append((name, step, serial))
        if name in self.interrupting:
            raise KeyboardInterrupt
        return f"{name} {step}"

    def session(self):
        """Begin a session, and see to it for a number of runs."""
        self.proxy = self.chance.choice(self.proxies)
        endpoint = self.proxy.endpoint(key_env=KEY_VARIABLE)
        silent = {"first_event": SILENT_SECONDS, "idle": SILENT_SECONDS}
        way = self.chance.choice(
            [
                WebSocketTransport(endpoint, probe=0.5, clock=self.clock, **silent),
                WebSocketTransport(endpoint, probe=0.5, clock=self.clock, **silent),
                HttpTransport(endpoint, **silent),
            ]
        )
        self.ways[type(way).__name__] += 1
        # Half a body that comes twice is another request to a server, and its refusal no frame.
        self.faults = FAULTS[:-1] if isinstance(way, HttpTransport) else FAULTS
        self.open = Session(
            endpoint,
            transport=Recovery(way, endpoint, clock=self.clock, chance=self.chance),
            journal=True,
            budget_seconds=HUNG_SECONDS,
        )
        return self.open

    def harm(self):
        """Have things happen to the runs to come; return what."""
        self.proxy.harms = True
        told = self.chance.choice(["line", "line", "end", "cut", "stop", "tool", "no", "piece"])
        if told in ("line", "piece"):
            self.proxy.lines = [self.line() for _ in range(self.chance.randint(1, 3))]
            if self.chance.random() < 0.8:
                self.proxy.cut()
        return told

    def line(self):
        """Draw a connection."""
        draw = self.chance.randrange
        fault = self.chance.choice(self.faults)
        # A handshake that nobody answers takes its time, and has a test of its own.
        after = draw(700 if fault in ("blackhole", "deaf") else 0, 5_000)
        told = (fault, self.chance.choice(["up", "down"]), after)
        return {"faults": [told], "piece": self.chance.choice([7, 100, 2**16])}

    def run(self, branch, told, clean=False):
        """Make a run and check how it ended."""
        name = next(self.names)
        do = {"cut": lambda _: self.proxy.cut(), "stop": lambda front: front.stop()}
        at = self.chance.randint(1, 40) if told in do else 0
        reply = self.chance.choice([Reply.NO, None, Reply.YES]) if told == "no" else Reply.YES
        if told == "end":
            self.engine.ends[name] = self.chance.choices(ENDS, k=self.chance.randint(1, 2))
        if told == "tool":
            self.interrupting.add(name)
        prompt = f"{name} {self.chance.choice(ROUNDS)}".strip()
        try:
            ended = self.open.run(
                prompt,
                branch=branch,
                cell=None if clean else self.chance.choice(CELLS),
                mode="ask" if told == "no" else "auto",
                front=Onlooker(at, do.get(told), reply),
            )
        except BaseException as error:  # noqa: BLE001 (whatever it is)
            ended = error
        self.ended[type(ended).__name__] += 1
        self.judge(name, ended, clean=clean)
        return branch, name, ended

    def judge(self, name, ended, *, clean):
        """Take note of a run that ended as none may."""
        if isinstance(ended, Answer):
            if ended.text != name:
                self.bad.append(f"{name} was answered {ended.text!r}")
        elif isinstance(ended, BudgetExceeded) or not isinstance(ended, AgentError):
            self.bad.append(f"{name} hung or broke: {ended!r}")
        elif not ended.code or "\n" in ended.line:
            self.bad.append(f"{name} has no code or more than a line: {ended!r}")
        if clean and not isinstance(ended, Answer):
            self.bad.append(f"{name} was clean and failed: {ended!r}")

    def round(self):
        """Have something happen to one run or two, check all, and see that the next run works."""
        told = self.harm()
        self.happened[told] += 1
        branches = BRANCHES if self.chance.random() < 0.2 else (self.chance.choice(BRANCHES),)
        if "idea" in branches and "idea" not in self.open.branches:
            self.open.fork("idea")
        with ThreadPoolExecutor(len(branches)) as threads:
            runs = list(threads.map(lambda branch: self.run(branch, told), branches))
        self.check(runs)
        self.proxy.harms, self.proxy.lines = False, []
        self.interrupting.clear()
        self.clock.ahead += 16  # after a while, so that a dead connection is noticed
        self.check([self.run(self.chance.choice(self.open.branches), None, clean=True)])

    def check(self, runs):
        """Check what must hold after every run."""
        for branch in self.open.branches:
            self.check_conversation(list(self.open._branches.tree.said(branch)))
        for _, name, ended in runs:
            if isinstance(ended, Answer):
                self.check_arrived(name, runs)
        for what in (lambda one: one[2], lambda one: one[:2]):
            twice = [one for one, times in Counter(map(what, self.ran)).items() if times > 1]
            self.bad += [f"{one} ran twice" for one in twice]
        self.ran.clear()

    def check_conversation(self, items):
        """A conversation is valid, and all that follows a prompt belongs to it."""
        name = None
        for item in items:
            if item.get("role") == "user":
                name = text(item).split()[0]
            elif item["type"] == "message" and text(item) != name:
                self.bad.append(f"{name} is followed by {text(item)!r}")
            elif item["type"] == "function_call" and json.loads(item["arguments"])["name"] != name:
                self.bad.append(f"{name} is followed by the call {item['arguments']}")
        asked = [item["call_id"] for item in calls(items)]
        answered = [item["call_id"] for item in items if item["type"] == "function_call_output"]
        if asked != answered or len(set(asked)) != len(asked):
            self.bad.append(f"calls {asked} have outputs {answered}")
        places = {item["call_id"]: at for at, item in enumerate(items) if "arguments" in item}
        late = [at for at, item in enumerate(items) if at < places.get(item.get("call_id"), 0)]
        if late:
            self.bad.append(f"outputs at {late} stand before their calls")

    def check_arrived(self, name, runs):
        """What the server put together last is what the session holds, up to the answer."""
        branch = next(branch for branch, other, _ in runs if other == name)
        said = list(self.open._branches.tree.said(branch))
        ends = [at for at, item in enumerate(said) if text(item) == name]
        if not ends and len(runs) > 1:
            return  # the other run replaced what it followed: it is stale from the start
        whole = said[: ends[-1]] if ends else None
        if whole not in self.engine.heard[name]:
            self.bad.append(f"{name} was asked with another conversation")

    def end(self):
        """End the session, and see that its journal holds what it held."""
        rows = self.open.records
        pairs = Counter((rows.turns[one.turn - 1].response_id, one.call_id) for one in rows.tools)
        self.bad += [f"{one} has two rows" for one, times in pairs.items() if times > 1]
        self.turns += len(rows.turns)
        tree = self.open._branches.tree
        held = {branch: list(tree.said(branch)) for branch in tree.branches}
        self.open.close()
        with_all = Session(self.open.endpoint, journal=True)
        with_all.resume(self.open.id)
        tree = with_all._branches.tree
        kept = {branch: list(tree.said(branch)) for branch in tree.branches}
        with_all.close()
        if kept != held:
            self.bad.append(f"the journal holds {kept}, not {held}")
        self.engine.heard.clear()


@pytest.fixture
def chaos(chance, obedient, served, proxy, waits):
    """Return a chaos of servers that keep all responses, and of such that keep the latest."""
    endpoints = [served(engine=obedient, cache=cache) for cache in ("all", "latest")]
    ports = [int(endpoint.url.rpartition(":")[2].partition("/")[0]) for endpoint in endpoints]
    before = dict(TOOLS)
    TOOLS.clear()
    made = Chaos(chance, obedient, [proxy(port) for port in ports], waits)

    def look(name: str, step: str, serial: int) -> str:
        """Look."""
        return f"{name} {step} {serial > 0}"

    ipy_agent.tool(made.act)
    ipy_agent.tool(read_only=True)(look)
    yield made
    TOOLS.clear()
    TOOLS.update(before)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_whatever_happens_a_run_ends_and_the_next_works(chaos, amount, figure):
    """After two thousand turns to which something happened, nothing was run twice or mixed up."""
    while chaos.turns < amount(60, 2_000):
        chaos.session()
        for _ in range(RUNS_A_SESSION):
            chaos.round()
            assert chaos.bad == []
        chaos.end()
        assert chaos.bad == []

    figure(f"{chaos.turns} turns in {sum(chaos.ended.values())} runs: {dict(chaos.ended)}")
    figure(f"of what happened: {dict(chaos.happened)}, in sessions over {dict(chaos.ways)}")
