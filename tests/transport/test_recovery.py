"""A turn that is asked again: when, how often, after how long, and what is told of it."""

from __future__ import annotations

import contextlib
import random
import socket

import pytest

from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    ConnectionLost,
    MessageTooBig,
    NoAnswer,
    ProtocolError,
    ResponseFailed,
    UpgradeRefused,
)
from ipy_agent.protocol.events import Error, ResponseCompleted, TextDelta
from ipy_agent.protocol.items import EMPTY, user
from ipy_agent.protocol.requests import Fields, Request
from ipy_agent.trace import Notice, RequestSent, Throttled
from ipy_agent.transport.auto import AutoTransport
from ipy_agent.transport.clock import Clock
from ipy_agent.transport.http import HttpTransport
from ipy_agent.transport.recovery import Recovery
from ipy_agent.transport.websocket import WebSocketTransport

AGAIN = ["reset", 1000, 1001, 1011, 1012, 1013]
DELTA = {"type": "response.output_text.delta", "delta": "ha", "output_index": 0}
REMOTE = Endpoint.named("https://api.example/v1")


class Waits(Clock):
    """A clock whose sleeps are over at once, and kept."""

    def __init__(self):
        self.slept = []

    async def sleep(self, seconds):
        self.slept.append(seconds)


class Breaking:
    """A transport that ends as told, an entry a try: what it yields, and what it raises."""

    def __init__(self, *script):
        self.script = list(script)
        self.tries = 0

    async def stream(self, _):
        self.tries += 1
        for event in self.script.pop(0) if self.script else [answered()]:
            if isinstance(event, BaseException):
                raise event
            yield event

    async def aclose(self):
        pass


def created(name="resp_1"):
    return {"type": "response.created", "response": {"id": name}}


def completed(name="resp_1"):
    return {"type": "response.completed", "response": {"id": name, "output": []}}


def answered():
    return ResponseCompleted(response={"id": "r"})


def sent(attempt=0):
    return RequestSent(
        transport="websocket",
        connection=1,
        reused=False,
        connect_ms=None,
        previous_response_id=None,
        sent_items=1,
        held_items=0,
        sent_bytes=1,
        full_bytes=1,
        attempt=attempt,
    )


def request():
    return Request(fields=Fields({"store": False}), input=EMPTY.extend([user("hi")]))


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


async def keep(came, way):
    """Ask, and keep what comes, also what comes before an error."""
    async with contextlib.aclosing(way.stream(request())) as stream:
        async for event in stream:
            came.append(event)


@pytest.fixture
def clock():
    return Waits()


@pytest.fixture
def ask(run, clock):
    """Return a function that asks by a transport, and returns what came, also before an error."""

    def asked(transport, endpoint=REMOTE):
        came = []

        async def turn():
            way = Recovery(transport, endpoint, clock=clock, chance=random.Random(1))
            await keep(came, way)

        try:
            run(turn())
        except Exception as error:  # noqa: BLE001 (whatever ended it)
            came.append(error)
        return came

    return asked


@pytest.fixture
def over(run, peer, clock):
    """Return a function that asks once over a real socket, and returns what came and the peer."""

    def asked(*script, way=WebSocketTransport):
        other, came = peer(*script), []

        async def turn():
            inner = way(other.endpoint())
            recovery = Recovery(inner, other.endpoint(), clock=clock)
            try:
                await keep(came, recovery)
            except Exception as error:  # noqa: BLE001 (whatever ended it)
                came.append(error)
            finally:
                await recovery.aclose()

        run(turn())
        return came, other

    return asked


def breaks(how):
    return ("reset",) if how == "reset" else ("close", how)


@pytest.mark.parametrize("how", AGAIN)
@pytest.mark.parametrize("begun", [[], [created("half"), DELTA]], ids=["unheard", "half"])
def test_a_turn_whose_connection_broke_is_asked_again(over, clock, how, begun):
    """Over a new connection, which is sent everything; who looks on is told."""
    came, other = over([[*begun, breaks(how)]], [[created(), completed()]])

    assert isinstance(came[-2], ResponseCompleted)
    assert [event.attempt for event in of(RequestSent, came)] == [0, 1]
    assert len(other.seen) == 2
    (told,) = of(Notice, came)
    assert told.text.startswith("the connection was lost: asking again in 0.")
    assert "(try 2 of 5)" in told.text
    assert len(clock.slept) == 1


def test_five_tries_are_enough(over, clock):
    """The pauses grow, and none is the one before; then the failure is told."""
    came, other = over(*[[[("close", 1011)]]] * 6)

    assert isinstance(came[-1], ConnectionLost)
    assert len(other.seen) == 5
    assert len(clock.slept) == 4
    for pause, longest in zip(clock.slept, (0.5, 1, 2, 4), strict=True):
        assert longest / 2 <= pause <= longest


def test_pauses_have_an_end(clock):
    """However often something is tried, nobody waits longer than eight seconds."""
    recovery = Recovery(Breaking(), REMOTE, clock=clock)

    assert all(4 <= recovery._pause(tries) <= 8 for tries in (5, 6, 10))


def test_what_the_endpoint_will_not_have_is_not_asked_again(over, clock):
    """It said so: a close with 1008 is about us."""
    came, other = over([[created(), ("close", 1008)]])

    assert isinstance(came[-1], ConnectionLost)
    assert (len(other.seen), clock.slept) == (1, [])


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param("no JSON", id="malformed"),
        pytest.param(b"\x00", id="binary"),
        pytest.param(("text", b"\xff\xfe"), id="not UTF-8"),
        *(pytest.param(("close", code), id=str(code)) for code in (1002, 1003, 1007, 1010)),
    ],
)
def test_a_broken_protocol_is_tried_once_more(over, bad):
    """It may have been a frame that was damaged on its way; twice is no accident."""
    came, other = over([[bad]], [[bad]], [[created(), completed()]])
    assert isinstance(came[-1], ProtocolError)
    assert len(other.seen) == 2

    came, other = over([[bad]], [[created(), completed()]])
    assert isinstance(came[-2], ResponseCompleted)


def test_tries_are_counted_by_what_broke(over):
    """A frame that is damaged behind a reset has its one try left, and so on."""
    came, other = over(
        [[("reset",)]], [["no JSON"]], [[("reset",)]], [[busy("1")], [created(), completed()]]
    )

    assert isinstance(came[-2], ResponseCompleted)
    numbers = [event.text.rpartition("(")[2] for event in of(Notice, came)]
    assert numbers == ["try 2 of 5)", "try 2 of 2)", "try 3 of 5)", "try 2 of 5)"]
    assert len(other.seen) == 4


def test_a_message_that_is_too_big_stays_so(over):
    """Trying again would send as much again."""
    came, other = over([[("close", 1009)]])

    assert isinstance(came[-1], MessageTooBig)
    assert len(other.seen) == 1


def test_nothing_is_asked_again_after_its_end(ask):
    """The answer was there: what breaks then is told, and costs no second one."""
    way = Breaking([sent(), answered(), ConnectionLost("gone", sent=True)])

    assert isinstance(ask(way)[-1], ConnectionLost)
    assert way.tries == 1


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (ConnectionFailed("no such host", transient=True), 3),
        (ConnectionFailed("the certificate does not hold"), 1),
        *((UpgradeRefused("no", status=status), 3) for status in (500, 502, 503, 504)),
        *((UpgradeRefused("no", status=status), 1) for status in (400, 403, 404, 426)),
        (AuthenticationFailed("the key"), 1),
        (NoAnswer("silent", sent=True), 1),
    ],
    ids=str,
)
def test_what_cannot_be_reached_is_tried_three_times_if_it_may_pass(ask, error, tries):
    """A certificate, a key, a refusal and a deadline are what they are."""
    way = Breaking(*[[error]] * 4)

    assert ask(way)[-1] is error
    assert way.tries == tries


def test_an_address_on_this_machine_where_nobody_is_is_told_at_once(ask, clock):
    """It was typed wrong, or the server is not started: waiting helps neither."""
    way = Breaking([ConnectionFailed("refused", transient=True)])

    assert isinstance(ask(way, Endpoint.named("http://127.0.0.1:1/v1"))[-1], ConnectionFailed)
    assert (way.tries, clock.slept) == (1, [])


def test_a_server_that_was_there_may_be_starting_again(ask):
    """In a turn that had reached it, an address where nobody is counts as lost."""
    gone = ConnectionFailed("refused", transient=True)
    way = Breaking(
        [sent(), ConnectionLost("gone", sent=True)], [gone], [gone], [sent(), answered()]
    )
    came = ask(way, Endpoint.named("http://127.0.0.1:1/v1"))

    assert isinstance(came[-1], ResponseCompleted)
    assert [event.attempt for event in of(RequestSent, came)] == [0, 1]


def busy(seconds):
    headers = {} if seconds is None else {"Retry-After": seconds}
    return {
        "type": "error",
        "status": 429,
        "error": {"code": "rate_limit_exceeded", "message": "slow down", "headers": headers},
    }


def test_an_endpoint_that_asks_for_time_gets_it(over, clock):
    """On the same connection, after as long as it asked for; who asks much learns of it."""
    came, other = over([[busy("7")], [created(), completed()]])

    assert isinstance(came[-2], ResponseCompleted)
    assert clock.slept == [7.0]
    assert len(other.seen) == 1
    assert of(Error, came) == []
    text = "the endpoint has too much to do: asking again in 7.0 s (try 2 of 5)"
    assert of(Notice, came) == [Throttled(text=text, seconds=7.0)]


@pytest.mark.parametrize("seconds", ["61", None, "soon"])
def test_an_endpoint_that_asks_for_more_than_a_minute_is_told_of(over, clock, seconds):
    """So is one that does not say for how long."""
    came, _ = over([[busy(seconds)]])

    (error,) = of(Error, came)
    assert error.status == 429
    assert clock.slept == []


def test_an_endpoint_that_never_has_time_is_told_of(over, clock):
    """After five tries its own words are passed on."""
    came, _ = over([[busy("1")]] * 6)

    (error,) = of(Error, came)
    assert error.reason.message == "slow down"
    assert clock.slept == [1.0] * 4


@pytest.mark.parametrize("way", [WebSocketTransport, AutoTransport])
def test_an_endpoint_may_ask_for_time_before_it_lets_anybody_in(over, clock, way):
    """A refused upgrade that says for how long is waited for; it leads to no other way."""
    refusal = (429, {"Retry-After": "9"})
    came, _ = over(refusal, refusal, [[created(), completed()]], way=way)

    assert isinstance(came[-2], ResponseCompleted)
    assert clock.slept == [9.0, 9.0]
    assert of(RequestSent, came)[0].transport == "websocket"


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "61"}])
def test_an_endpoint_that_lets_nobody_in_is_told_of(over, clock, headers):
    """With the status and the time that it asks for, if it does."""
    came, other = over((429, headers))

    assert isinstance(came[-1], ResponseFailed)
    assert (came[-1].status, came[-1].code) == (429, "rate_limit_exceeded")
    assert came[-1].retry_after == (61.0 if headers else None)
    assert (len(other.seen), clock.slept) == (1, [])


def test_the_end_of_a_connections_life_costs_no_try(over, clock):
    """A turn that was renewed has all of its tries left."""
    limit = {
        "type": "error",
        "status": 400,
        "error": {"code": "websocket_connection_limit_reached", "message": "too old"},
    }
    lost = [[created(), ("reset",)]]
    came, other = over([[created(), limit]], *[lost] * 4, [[created("r9"), completed("r9")]])

    assert isinstance(came[-2], ResponseCompleted)
    assert len(other.seen) == 6
    assert len(clock.slept) == 4


def test_a_healthy_response_gives_all_tries_back(run, peer, clock):
    """The next turn has five again."""
    lost = [[("reset",)]]
    good = [[created(), completed()], [("reset",)]]
    other = peer(*[lost] * 4, good, *[lost] * 3, [[created("r2"), completed("r2")]])
    came = []

    async def main():
        way = Recovery(WebSocketTransport(other.endpoint()), other.endpoint(), clock=clock)
        await keep(came, way)
        await keep(came, way)
        await way.aclose()

    run(main())
    assert len(of(ResponseCompleted, came)) == 2
    assert len(clock.slept) == 8


def test_a_healthy_response_is_no_failure_of_the_websocket(ask):
    """Only failures in a row lead over to HTTP."""

    class Half(AutoTransport):
        def __init__(self, endpoint):
            super().__init__(endpoint)
            bad = [UpgradeRefused("no", status=503)]
            self._websocket = Breaking(bad, bad, [sent(), answered()], bad, bad)
            self._http = Breaking()
            self._way = self._websocket

    way = Half(REMOTE)
    first, second = ask(way), ask(way)

    assert [isinstance(came[-1], ResponseCompleted) for came in (first, second)] == [True, True]
    assert (way._websocket.tries, way._http.tries) == (6, 0)


def test_http_recovers_as_well(run, http_peer, clock):
    """A POST that is cut off in its answer is posted again, and a busy endpoint is waited for."""
    told = {"Retry-After": "2", "Content-Type": "application/json"}
    other = http_peer(
        [("reset",)],
        [("json", 429, {"error": {"message": "slow down"}}, told)],
        [("stream", created(), completed())],
    )
    came = []

    async def turn():
        way = Recovery(HttpTransport(other.endpoint()), other.endpoint(), clock=clock)
        await keep(came, way)
        await way.aclose()

    run(turn())

    assert isinstance(came[-2], ResponseCompleted)
    assert [event.attempt for event in of(RequestSent, came)] == [0, 1, 2]
    assert clock.slept[1] == 2.0


def test_after_three_failures_the_endpoint_is_asked_over_http(ask, clock):
    """A WebSocket may fail where a POST does not: at a proxy that is half broken."""

    class Half(AutoTransport):
        def __init__(self, endpoint):
            super().__init__(endpoint)
            self._websocket = Breaking(*[[UpgradeRefused("no", status=503)]] * 6)
            self._http = Breaking([sent(), answered()], [sent(), answered()])
            self._way = self._websocket

    way = Half(REMOTE)
    first, second = ask(way), ask(way)

    assert [isinstance(came[-1], ResponseCompleted) for came in (first, second)] == [True, True]
    assert [notice.text for notice in of(Notice, first)][-1] == (
        "no WebSocket to api.example: trying HTTP"
    )
    assert len(clock.slept) == 2
    assert (way._websocket.tries, way._http.tries) == (4, 2)


def test_a_name_that_nobody_knows_is_asked_for_three_times(ask, clock, monkeypatch):
    """It may be the network: the last time over HTTP; then one line says what was not found."""

    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    *_, told, error = ask(AutoTransport(REMOTE))

    assert told.text == "no WebSocket to api.example: trying HTTP"
    assert isinstance(error, ConnectionFailed)
    assert "Name or service not known" in str(error)
    assert len(clock.slept) == 2


@pytest.mark.parametrize("when", ["in the turn", "in the pause"])
def test_a_turn_whose_way_was_closed_is_not_asked_again(run, clock, when):
    """Who closes a session in a turn wants no other connection of it."""
    lost, way = ConnectionLost("let go", sent=True), Breaking()
    recovery = Recovery(way, REMOTE, clock=clock)

    async def closed(*_):
        await recovery.aclose()

    async def breaks(_):
        way.tries += 1
        yield sent()
        if when == "in the turn":
            await closed()
        raise lost

    way.stream = breaks
    if when == "in the pause":
        clock.sleep = closed
    with pytest.raises(ConnectionLost):
        run(keep([], recovery))

    assert way.tries == 1


def test_what_came_of_an_earlier_try_is_not_the_answer(over):
    """It was passed on, since it was shown; the terminal event is of the last try alone."""
    whole = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "whole"}],
    }
    ended = {"type": "response.completed", "response": {"id": "r2", "output": [whole]}}
    came, _ = over([[created("r1"), DELTA, ("close", 1001)]], [[created("r2"), ended]])

    assert [event.delta for event in of(TextDelta, came)] == ["ha"]
    (end,) = of(ResponseCompleted, came)
    assert end.response.output == [whole]
