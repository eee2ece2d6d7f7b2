"""One way or the other: a WebSocket where there is one, HTTP where the upgrade is refused."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses

import pytest

from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    ConnectionLost,
    UpgradeRefused,
    UsageError,
)
from ipy_agent.protocol.events import TERMINAL, Error
from ipy_agent.protocol.items import EMPTY, text, user
from ipy_agent.protocol.requests import Fields, Request
from ipy_agent.trace import Notice, RequestSent
from ipy_agent.transport.auto import AutoTransport

FIELDS = Fields({"model": "m"})


def completed(name, said):
    item = {"type": "message", "role": "assistant", "content": [{"type": "text", "text": said}]}
    response = {"id": name, "status": "completed", "output": [item]}
    return {"type": "response.completed", "response": response}


def refusal(status):
    """Return how a server refuses, and hangs up."""
    return [("json", status, {"error": {"message": "no"}}, {"Connection": "close"}), ("close",)]


def told(name, said):
    return [("stream", completed(name, said))]


class Talk:
    """A conversation over a transport, as an agent holds it."""

    def __init__(self, endpoint, **options):
        self.transport = AutoTransport(endpoint, **options)
        self.items = EMPTY

    async def ask(self, prompt, **more):
        """Take a turn and return all that came of it."""
        self.items = self.items.extend([user(prompt)])
        request = Request(fields=FIELDS, input=self.items, **more)
        events = [event async for event in self.transport.stream(request)]
        if isinstance(events[-2], TERMINAL):
            self.items = self.items.extend(events[-2].response.output)
        return events

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.transport.aclose()


def asked(run, endpoint, *prompts, **options):
    """Ask one thing after another; return what came of each."""

    async def main():
        async with Talk(endpoint, **options) as talk:
            return [await talk.ask(prompt) for prompt in prompts]

    return run(main())


def ways(events):
    return [event.transport for event in events if isinstance(event, RequestSent)]


def said(events):
    return text(events[-2].response.output[0])


def notices(*turns):
    return [event for events in turns for event in events if isinstance(event, Notice)]


def asked_for(other):
    return [one.line.split()[0] for one in other.seen]


def test_a_websocket_is_used_where_there_is_one(run, peer):
    """Nothing is said, and nothing goes over HTTP."""
    other = peer([[completed("resp_1", "1")], [completed("resp_2", "2")]])

    async def main():
        async with Talk(other.endpoint()) as talk:
            turns = await talk.ask("one"), await talk.ask("two")
            return *turns, talk.transport.describe()

    first, second, line = run(main())
    assert (ways(first), ways(second)) == (["websocket"], ["websocket"])
    assert (said(first), said(second)) == ("1", "2")
    assert notices(first, second) == []
    assert "WebSocket" in line
    assert len(other.seen) == 1


@pytest.mark.parametrize("status", [200, 403, 404, 405, 426])
def test_a_refused_upgrade_leads_over_to_http(run, http_peer, status):
    """The same turn goes on at once; it is said once, and the next begins there."""
    other = http_peer(refusal(status), told("resp_1", "1"), told("resp_2", "2"))

    async def main():
        async with Talk(other.endpoint()) as talk:
            turns = await talk.ask("one"), await talk.ask("two")
            return *turns, talk.transport.describe()

    first, second, line = run(main())
    assert asked_for(other) == ["GET", "POST", "POST"]
    assert (said(first), said(second)) == ("1", "2")
    assert (ways(first), ways(second)) == (["http"], ["http"])
    name = other.endpoint().name
    notice = f"{name} answers no WebSocket (HTTP {status}): going on over HTTP"
    assert first[0] == Notice(text=notice, lasting=True)
    assert notices(first, second) == [first[0]]
    assert line == "over HTTP (2 turns)"


def test_the_way_stays_known_after_a_goodbye(run, http_peer):
    """A closed transport does not ask for a WebSocket again."""
    other = http_peer(refusal(426), told("resp_1", "1"), told("resp_2", "2"))

    async def main():
        async with Talk(other.endpoint()) as talk:
            await talk.ask("one")
            await talk.transport.aclose()
            return await talk.ask("two")

    assert notices(run(main())) == []
    assert asked_for(other) == ["GET", "POST", "POST"]


def test_it_is_said_once_to_turns_that_begin_together(run, http_peer):
    """Two branches are refused, and one of them says so."""
    other = http_peer(refusal(426), refusal(426), told("resp_1", "1"), told("resp_2", "2"))

    async def main():
        async with Talk(other.endpoint()) as talk:
            return await asyncio.gather(
                talk.ask("one", stream_id="a"), talk.ask("two", stream_id="b")
            )

    first, second = run(main())
    assert (ways(first), ways(second)) == (["http"], ["http"])
    assert len(notices(first, second)) == 1


def test_an_endpoint_known_to_have_none_is_not_asked_for_one(run, http_peer):
    """Its row says so: HTTP from the start, unsaid."""
    other = http_peer(told("resp_1", "1"))
    (events,) = asked(run, dataclasses.replace(other.endpoint(), websocket=False), "one")

    assert asked_for(other) == ["POST"]
    assert (said(events), notices(events)) == ("1", [])


@pytest.mark.parametrize("status", [400, 500, 502, 503])
def test_any_other_refusal_is_a_failure(run, http_peer, status):
    """A server in trouble may have a WebSocket: the next turn asks for it again."""
    other = http_peer(refusal(status), refusal(status))

    async def main():
        async with Talk(other.endpoint()) as talk:
            for _ in range(2):
                with pytest.raises((UpgradeRefused, ConnectionFailed)):
                    await talk.ask("one")

    run(main())
    assert asked_for(other) == ["GET", "GET"]


def test_a_key_that_is_not_taken_is_not_tried_over_http(run, http_peer):
    """HTTP 401 is the key, whatever the way."""
    other = http_peer(refusal(401))

    with pytest.raises(AuthenticationFailed):
        asked(run, other.endpoint(), "one")
    assert asked_for(other) == ["GET"]


def test_nothing_there_is_not_tried_over_http(run, unused_port):
    """Where nothing answers, no other way leads."""
    with pytest.raises(ConnectionFailed):
        asked(run, Endpoint.named(f"http://127.0.0.1:{unused_port}/v1"), "one")


@pytest.mark.parametrize("status", [401, 403])
def test_forbidden_both_ways_is_the_key(run, http_peer, status):
    """The error is the key's, and tells nothing of WebSockets: with another key they are asked."""
    other = http_peer(refusal(403), refusal(status), refusal(403), told("resp_1", "1"))

    async def main():
        async with Talk(other.endpoint()) as talk:
            with pytest.raises(AuthenticationFailed, match="does not take the key"):
                await talk.ask("one")
            return await talk.ask("two")

    assert said(run(main())) == "1"
    assert asked_for(other) == ["GET", "POST", "GET", "POST"]


def test_forbidden_over_http_alone_is_a_refusal(run, http_peer):
    """Where the upgrade was refused for another reason, it says nothing of the key."""
    other = http_peer(refusal(426), refusal(403))
    (events,) = asked(run, other.endpoint(), "one")

    assert isinstance(events[-2], Error)
    assert events[-2].status == 403


def test_a_later_refusal_leads_over_too_while_nothing_was_sent(run, peer):
    """A gateway may take its WebSockets back between two turns."""
    other = peer([[completed("resp_1", "1"), ("close", 1001)]], 426)

    async def main():
        async with Talk(other.endpoint()) as talk:
            await talk.ask("one")
            await asyncio.to_thread(other.seen[0].close_code)
            request = Request(fields=FIELDS, input=talk.items.extend([user("two")]))
            stream = talk.transport.stream(request)
            begun = [await anext(stream), await anext(stream)]
            await stream.aclose()
            return begun

    notice, request = run(main())
    assert isinstance(notice, Notice)
    assert request.transport == "http"


def test_a_turn_that_was_sent_is_not_sent_another_way(run, peer):
    """A connection that is lost in a turn is lost: the request may have run."""
    other = peer([[("reset",)]], 426)

    with pytest.raises(ConnectionLost):
        asked(run, other.endpoint(), "one")
    assert len(other.seen) == 1


def test_an_upgrade_that_is_refused_after_something_was_sent_ends_the_turn(run, peer):
    """The turn has its row already; the one after it goes over HTTP."""
    limit = {"code": "websocket_connection_limit_reached", "message": "no"}
    other = peer([[{"type": "error", "status": 400, "error": limit}]], 426, 426)

    async def main():
        async with Talk(other.endpoint()) as talk:
            with pytest.raises(UpgradeRefused):
                await talk.ask("one")
            request = Request(fields=FIELDS, input=talk.items)
            async with contextlib.aclosing(talk.transport.stream(request)) as stream:
                return await anext(stream)

    assert run(main()).lasting


def test_a_warm_up_needs_a_websocket(run, http_peer):
    """Where there is none, one line says so and nothing is posted."""
    other = http_peer(refusal(426))

    async def main():
        async with Talk(other.endpoint()) as talk:
            with pytest.raises(UsageError, match="needs a WebSocket"):
                await talk.ask("", generate=False)

    run(main())
    assert asked_for(other) == ["GET"]


def test_a_conversation_is_compacted_over_http(run, http_peer):
    """Whichever way the turns go, compaction is a request of its own."""
    other = http_peer([("json", 200, {"output": [user("one")]})])

    async def main():
        async with Talk(other.endpoint()) as talk:
            items = EMPTY.extend([user("one"), user("two")])
            return await talk.transport.compact(Request(fields=FIELDS, input=items))

    assert run(main()) == [user("one")]
    assert asked_for(other) == ["POST"]


def test_a_turn_that_is_closed_early_is_given_up(run, http_peer):
    """Closing the outer stream closes the inner one."""
    other = http_peer(refusal(426), [])

    async def main():
        async with Talk(other.endpoint()) as talk:
            request = Request(fields=FIELDS, input=EMPTY.extend([user("one")]))
            stream = talk.transport.stream(request)
            assert isinstance(await anext(stream), Notice)
            assert isinstance(await anext(stream), RequestSent)
            for _ in range(2):
                assert await asyncio.to_thread(other.heard)
            await stream.aclose()
            return await asyncio.to_thread(other.seen[1].hung_up)

    assert run(main())
