"""Client against server over real sockets: whatever happens, in whichever order, both agree.

What the server puts together is the whole conversation, and each turn has its own answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from ipy_agent.errors import AgentError
from ipy_agent.protocol.events import Error, ResponseCompleted, TextDelta
from ipy_agent.protocol.items import EMPTY, calls, output_of, text, user
from ipy_agent.protocol.requests import Fields, Request
from ipy_agent.trace import RequestSent
from ipy_agent.transport.recovery import Recovery
from ipy_agent.transport.websocket import WebSocketTransport

KEY_VARIABLE = "IPY_AGENT_TESTS_KEY"
SECONDS = 20
LIFE_SECONDS = 3_600.0
LANES = (None, "idea", "other")
LANE = st.sampled_from(LANES)
GOES_WELL = {}
END = st.sampled_from(
    [
        *[GOES_WELL] * 6,
        {"then": "reset"},
        {"then": "close:1011"},
        {"then": "close:1001"},
        {"error": {"status": 500}},
        {"text": None, "tool_calls": None, "error": {"status": 503}},
        {"text": None, "tool_calls": None, "error": {"status": 429, "retry_after": 2}},
        {
            "text": None,
            "tool_calls": None,
            "error": {"status": 400, "code": "websocket_connection_limit_reached"},
        },
    ]
)
PROMPT = st.sampled_from(["{}", "{}", "{} act", "{} act,look act"])
SETTINGS = st.sampled_from([{"instructions": "Be brief."}, {"instructions": "Be exact."}])


class BothEnds(RuleBasedStateMachine):
    """One client, several branches, a server, and a way between them that breaks.

    `said` holds the conversations as plain lists, beside the chains that are sent.
    """

    names = (f"n{number}" for number in itertools.count(1))

    def __init__(self, engine, proxies, clock, counts):
        super().__init__()
        self.counts = counts
        self.engine, self.proxies, self.clock = engine, proxies, clock
        self.runner = asyncio.Runner()

    @initialize(
        cache=st.sampled_from(["all", "latest", "off"]),
        lanes=st.sampled_from([None, 0, 1, 32]),
        values=SETTINGS,
    )
    def begin(self, cache, lanes, values):
        self.proxy = self.proxies[cache]
        endpoint = self.proxy.endpoint(key_env=KEY_VARIABLE)
        limits = dataclasses.replace(endpoint.limits, lanes=lanes, seconds=LIFE_SECONDS)
        endpoint = dataclasses.replace(endpoint, limits=limits)
        way = WebSocketTransport(endpoint, first_event=5, idle=5, clock=self.clock)
        self.way = Recovery(way, endpoint, clock=self.clock, chance=random.Random(1))
        self.values = values
        self.chains = dict.fromkeys(LANES, EMPTY)
        self.said = {lane: [] for lane in LANES}

    @rule(lane=LANE, prompt=PROMPT, end=END)
    def ask(self, lane, prompt, end):
        self.do(self.turns(lane, prompt, end))

    @rule(prompt=PROMPT, ends=st.tuples(END, END, END))
    def ask_together(self, prompt, ends):
        """All branches at once: what happens to one of them is heard on its connection."""

        async def together():
            both = zip(LANES, ends, strict=True)
            await asyncio.gather(*(self.turns(lane, prompt, end) for lane, end in both))

        self.do(together())

    @rule(lane=LANE, events=st.integers(1, 12), cancels=st.booleans())
    def give_up(self, lane, events, cancels):
        """Leave a turn somewhere in the middle; its prompt is taken back."""

        async def leave():
            request = self.request(lane, self.chains[lane].extend([user(next(self.names))]))
            left = events
            async with contextlib.aclosing(self.way.stream(request)) as stream:
                async for _ in stream:
                    left -= 1
                    if left == 0 and cancels:
                        asyncio.current_task().cancel()
                    elif left == 0:
                        return

        async def main():
            await asyncio.wait([asyncio.create_task(leave())])

        self.do(main())

    @rule(lane=LANE)
    def warm(self, lane):
        async def warm():
            if self.said[lane]:
                async for _ in self.way.stream(self.request(lane, self.chains[lane], False)):
                    pass

        self.do(warm())

    @rule(source=LANE, lane=LANE)
    def fork(self, source, lane):
        self.chains[lane], self.said[lane] = self.chains[source], list(self.said[source])

    @rule(lane=LANE, steps=st.integers(1, 4))
    def go_back(self, lane, steps):
        """As a cell that runs again: to what was said before some prompt."""
        prompts = [at for at, item in enumerate(self.said[lane]) if item.get("role") == "user"]
        if prompts:
            at = prompts[-min(steps, len(prompts))]
            self.chains[lane] = self.chains[lane].back(len(self.said[lane]) - at)
            del self.said[lane][at:]

    @rule(values=SETTINGS)
    def change_settings(self, values):
        self.values = values

    @rule()
    def cut(self):
        """All connections break between two turns."""
        self.proxy.cut()

    @rule(seconds=st.sampled_from([16.0, LIFE_SECONDS - 299]))
    def wait(self, seconds):
        self.clock.ahead += seconds

    @rule()
    def disconnect(self):
        self.do(self.way.aclose())

    def teardown(self):
        if hasattr(self, "way"):
            self.do(self.way.aclose())
        self.runner.close()

    def do(self, coroutine):
        async def limited():
            async with asyncio.timeout(SECONDS):
                await coroutine

        self.runner.run(limited())

    def request(self, lane, chain, generate=True):
        fields = Fields({"model": "m", "store": False, **self.values})
        return Request(fields=fields, input=chain, stream_id=lane, generate=generate)

    async def turns(self, lane, prompt, end):
        """Ask, answer the calls, ask again; a turn that fails leaves all as it was."""
        name = next(self.names)
        chain, said = self.chains[lane], list(self.said[lane])
        self.engine.ends[name] = [dict(end)] if end else []
        new = [user(prompt.format(name))]
        while new:
            chain, said = chain.extend(new), said + new
            try:
                output = await self.turn(name, self.request(lane, chain), said)
            except AgentError:
                return
            if output is None:
                return
            chain, said = chain.extend(output), said + output
            new = [output_of(call["call_id"], "done") for call in calls(output)]
        assert text(said[-1]) == name
        self.chains[lane], self.said[lane] = chain, said

    async def turn(self, name, request, said):
        """Take a turn, check it, and return its output; none, if the endpoint refused."""
        self.counts["turns"] += 1
        deltas, output = "", None
        async for event in self.way.stream(request):
            if isinstance(event, RequestSent):
                deltas = ""
                self.counts["continued"] += event.previous_response_id is not None
                self.counts["sent again"] += event.attempt > 0
            elif isinstance(event, TextDelta):
                deltas += event.delta
            elif isinstance(event, ResponseCompleted):
                assert self.engine.heard[name][-1] == said
                output = event.response.output
                assert deltas == "".join(text(one) for one in output if one["type"] == "message")
            elif isinstance(event, Error):
                assert event.reason.code != "previous_response_not_found"
        return output


@pytest.mark.long
@pytest.mark.timeout(900)
def test_both_ends_agree_whatever_happens(obedient, served, proxy, waits, amount, figure):
    """Over forks, re-runs, other settings, failures, goodbyes, evictions and limits: always."""
    proxies, counts = {}, Counter()
    for cache in ("all", "latest", "off"):
        direct = served(engine=obedient, cache=cache)
        proxies[cache] = proxy(int(direct.url.rpartition(":")[2].partition("/")[0]))

    run_state_machine_as_test(
        lambda: BothEnds(obedient, proxies, waits, counts),
        settings=settings(
            max_examples=amount(15, 500),
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    figure(", ".join(f"{name} {number}" for name, number in counts.items()))
