"""A bad network between a client and the embedded server: what its user sees of it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import pytest

from ipy_agent.agent.runs import Quiet
from ipy_agent.errors import ConnectionLost, Interrupted
from ipy_agent.protocol.events import ResponseCompleted
from ipy_agent.protocol.items import EMPTY, text, user
from ipy_agent.protocol.requests import Fields, Request
from ipy_agent.sessions import Session
from ipy_agent.trace import Notice, RequestSent
from ipy_agent.transport.auto import AutoTransport
from ipy_agent.transport.clock import Clock
from ipy_agent.transport.recovery import Recovery
from ipy_agent.transport.websocket import WebSocketTransport

KEY_VARIABLE = "IPY_AGENT_TESTS_KEY"


def request(said):
    return Request(fields=Fields({"store": False}), input=EMPTY.extend([user(said)]))


async def ask(way, said):
    """Take a turn and return all that came of it."""
    return [event async for event in way.stream(request(said))]


def answer(came):
    (end,) = [event for event in came if isinstance(event, ResponseCompleted)]
    return "".join(map(text, end.response.output))


def of(kind, came):
    return [event for event in came if isinstance(event, kind)]


@pytest.fixture
def through(served, proxy, obedient):
    """Return a function that leads to a server through lines: its endpoint, and the proxy."""

    def lead(*lines, **options):
        direct = served(engine=obedient, **options)
        way = proxy(int(direct.url.rpartition(":")[2].partition("/")[0]), *lines)
        return way.endpoint(key_env=KEY_VARIABLE), way

    return lead


@pytest.mark.parametrize("leave", ["closed", "cancelled"])
@pytest.mark.parametrize("line", [{"piece": 40}, {"latency": 0.002}, {}], ids=str)
def test_a_turn_that_is_given_up_never_answers_the_next(run, through, line, leave):
    """Wherever in its events it is left, and however late the rest of them comes."""
    endpoint, _ = through(*[line] * 40)

    async def begin(way, said, events):
        async with contextlib.aclosing(way.stream(request(said))) as stream:
            async for _ in stream:
                events -= 1
                if events == 0:
                    if leave == "closed":
                        return
                    asyncio.current_task().cancel()

    async def main():
        way, answers = WebSocketTransport(endpoint), []
        for events in range(1, 12):
            left = asyncio.create_task(begin(way, f"old{events}", events))
            await asyncio.wait([left])
            answers.append(answer(await ask(way, f"new{events}")))
        await way.aclose()
        return answers

    assert run(main()) == [f"new{events}" for events in range(1, 12)]


def test_an_upgrade_that_is_stripped_leads_over_to_http(run, through):
    """A box on the way knows no WebSocket: the turn goes on over HTTP, which is said once."""
    stripped = {"instead": [(b"Upgrade: websocket\r\n", b"")]}
    endpoint, way = through(stripped)

    async def main():
        transport = AutoTransport(endpoint)
        first, second = await ask(transport, "one"), await ask(transport, "two")
        described = transport.describe()
        await transport.aclose()
        return first, second, described

    first, second, described = run(main())
    assert (answer(first), answer(second)) == ("one", "two")
    (told,) = of(Notice, [*first, *second])
    assert told.lasting
    assert "going on over HTTP" in told.text
    assert "over HTTP" in described
    assert way.connections == 2


def test_a_way_that_breaks_while_it_opens_is_tried_again(run, through, waits):
    """In a turn that was there already: whichever half of the handshake it breaks in."""
    endpoint, way = through(
        {"faults": [("reset", "down", 400)]},
        {"faults": [("reset", "up", 0)]},
        {"faults": [("close", "up", 30)]},
        {"faults": [("close", "down", 30)]},
    )

    async def main():
        transport = Recovery(WebSocketTransport(endpoint), endpoint, clock=waits)
        came = await ask(transport, "one")
        await transport.aclose()
        return came

    came = run(main())
    assert answer(came) == "one"
    assert way.happened == ["reset", "reset", "close", "close"]
    assert len(waits.slept) == 4
    assert [event.attempt for event in of(RequestSent, came)] == [0, 1]


def test_a_bit_that_turned_over_is_noticed(run, through, waits):
    """Text that is no text breaks the protocol; the turn is asked once more."""
    endpoint, way = through({"faults": [("corrupt", "down", 400)]})

    async def main():
        transport = Recovery(WebSocketTransport(endpoint), endpoint, clock=waits)
        came = await ask(transport, "one")
        await transport.aclose()
        return came

    assert answer(run(main())) == "one"
    assert way.happened == ["corrupt"]
    assert len(waits.slept) == 1


def test_what_a_server_said_once_may_arrive_twice(run, through, waits):
    """A frame that comes again changes nothing, wherever in the answer that happens."""

    async def main(endpoint):
        transport = Recovery(WebSocketTransport(endpoint), endpoint, clock=waits)
        answers = [answer(await ask(transport, name)) for name in ("one", "two", "three")]
        await transport.aclose()
        return answers

    for after in range(300, 3_000, 300):
        endpoint, _ = through({"faults": [("duplicate", "down", after)]})
        assert run(main(endpoint)) == ["one", "two", "three"]


def test_a_pause_that_an_endpoint_asks_for_can_be_interrupted(served):
    """It may be a minute: whoever presses Stop has the prompt back at once."""

    class Forever(Clock):
        """A clock whose sleeps do not end, and that says so."""

        def __init__(self):
            self.asleep = threading.Event()

        async def sleep(self, _):
            self.asleep.set()
            await asyncio.Event().wait()

    class Stops(Quiet):
        """Stops while an endpoint is waited for."""

        def waiting(self, stop):
            self.stop = stop
            return super().waiting(stop)

        def tick(self):
            if clock.asleep.is_set():
                self.stop()

    clock = Forever()
    busy = {"status": 429, "code": "rate_limit_exceeded", "retry_after": 60}
    endpoint = served([{"error": busy}, {"text": "fine"}])
    way = Recovery(WebSocketTransport(endpoint), endpoint, clock=clock)
    session = Session(endpoint, transport=way, journal=False)

    with pytest.raises(Interrupted):
        session.run("one", front=Stops())
    assert session.run("two").text == "fine"
    assert list(session.turns["status"]) == ["interrupted", "completed"]
    session.close()


def test_the_age_of_a_connection_counts_suspend():
    """By the clock of the machine that goes on while it sleeps."""
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    age = Clock().age()

    assert before <= age <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_without_recovery_a_lost_connection_is_told(run, through):
    """What the layer above mends is an error of its own below it."""
    endpoint, _ = through({"faults": [("close", "down", 400)]})

    async def main():
        transport = WebSocketTransport(endpoint)
        with pytest.raises(ConnectionLost) as raised:
            await ask(transport, "one")
        await transport.aclose()
        return raised.value

    assert run(main()).sent
