"""What a rehearsal foresees, and what is then sent: the same bytes, each time."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from ipy_agent.endpoints import Limits
from ipy_agent.errors import MessageTooBig, UsageError
from ipy_agent.protocol.events import TERMINAL, ResponseCreated
from ipy_agent.protocol.items import EMPTY, user
from ipy_agent.protocol.requests import Fields, Request
from ipy_agent.trace import RequestSent
from ipy_agent.transport.auto import AutoTransport
from ipy_agent.transport.http import HttpTransport
from ipy_agent.transport.scripted import ScriptedTransport
from ipy_agent.transport.websocket import WebSocketTransport

KNOWN = Limits(lanes=32, keeps_all=False)


def message(said):
    content = [{"type": "output_text", "text": said}]
    return {"type": "message", "id": f"msg_{said}", "role": "assistant", "content": content}


def completed(name, lane=None):
    response = {"id": name, "status": "completed", "output": [message(name)]}
    frame = {"type": "response.completed", "response": response}
    return frame if lane is None else {**frame, "stream_id": lane}


class Rehearsed:
    """Conversations in which every turn is rehearsed right before it is taken."""

    def __init__(self, transport, **fields):
        self.transport = transport
        self.fields = {"model": "m", **fields}
        self.said = {}
        self.foreseen = []
        self.sent = []

    def request(self, prompt, branch=None, *, of=None, **fields):
        items = self.said.get(branch, self.said.get(of, EMPTY)).extend([user(prompt)])
        return Request(fields=Fields(self.fields | fields), input=items, stream_id=branch)

    async def ask(self, prompt, branch=None, *, of=None, **fields):
        """Rehearse a turn, then take it; return what was foreseen."""
        request = self.request(prompt, branch, of=of, **fields)
        self.foreseen.append(await self.transport.rehearse(request))
        events = [event async for event in self.transport.stream(request)]
        self.sent += [event for event in events if isinstance(event, RequestSent)][:1]
        if isinstance(events[-2], TERMINAL):
            self.said[branch] = request.input.extend(events[-2].response.output)
        return self.foreseen[-1]

    def check(self):
        """See that each turn was told to the recorder as it was foreseen."""
        assert len(self.foreseen) == len(self.sent) > 0
        for foreseen, sent in zip(self.foreseen, self.sent, strict=True):
            assert foreseen.transport == sent.transport
            assert len(foreseen.frame) == sent.sent_bytes
            assert foreseen.full_bytes == sent.full_bytes
            assert foreseen.previous_response_id == sent.previous_response_id
            assert (foreseen.sent_items, foreseen.held_items) == (sent.sent_items, sent.held_items)
            assert foreseen.connection == (sent.connection if sent.reused else None)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.transport.aclose()


def over(peer, limits=KNOWN, kind=WebSocketTransport, **more):
    return Rehearsed(kind(dataclasses.replace(peer.endpoint(), limits=limits, **more)))


def frames(peer):
    return [raw.encode() for seen in peer.seen for raw in seen.raw]


@pytest.mark.parametrize("kind", [WebSocketTransport, AutoTransport])
def test_turns_of_a_conversation_are_sent_as_rehearsed(run, peer, kind):
    """The first turn is whole, the next ones are what is new, a changed setting is whole again."""
    other = peer([[completed(f"r{n}")] for n in range(4)])

    async def main():
        async with over(other, kind=kind) as talk:
            await talk.ask("one")
            await talk.ask("two")
            await talk.ask("three", model="m2")
            await talk.ask("four", model="m2")
            return talk

    talk = run(main())
    assert [one.frame for one in talk.foreseen] == frames(other)
    assert [one.connection for one in talk.foreseen] == [None, 1, 1, 1]
    assert [one.held_items for one in talk.foreseen] == [0, 2, 0, 6]
    assert [one.previous_response_id for one in talk.foreseen] == [None, "r0", None, "r2"]
    talk.check()


def test_a_fork_is_sent_as_rehearsed(run, peer):
    """A new branch continues from the response that it shares, on a lane of its own."""
    other = peer([[completed("m1")], [completed("f1", "f")], [completed("m2")]])

    async def main():
        async with over(other) as talk:
            await talk.ask("one")
            fork = await talk.ask("else", "f", of=None)
            await talk.ask("two")
            return talk, fork

    talk, fork = run(main())
    assert [one.frame for one in talk.foreseen] == frames(other)
    assert (fork.previous_response_id, fork.held_items) == ("m1", 2)
    talk.check()


@pytest.mark.parametrize(
    ("keeps_all", "parent"), [(True, "r1"), (False, None)], ids=["all is kept", "the latest is"]
)
def test_a_rerun_from_an_older_place_is_sent_as_rehearsed(run, peer, keeps_all, parent):
    """What is continued from an older response is short only where the peer keeps it."""
    other = peer([[completed("r1")], [completed("r2")], [completed("r3")]])

    async def main():
        async with over(other, Limits(lanes=32, keeps_all=keeps_all)) as talk:
            await talk.ask("one")
            older = talk.said[None]
            await talk.ask("two")
            talk.said[None] = older
            return talk, await talk.ask("two, but better")

    talk, rerun = run(main())
    assert [one.frame for one in talk.foreseen] == frames(other)
    assert rerun.previous_response_id == parent
    talk.check()


def test_after_a_lost_connection_all_is_sent_as_rehearsed(run, peer):
    """A rehearsal sees that the socket is gone, and opens no other."""
    other = peer([[completed("r1"), ("close", 1001)]], [[completed("r2")]])

    async def main():
        async with over(other) as talk:
            await talk.ask("one")
            await asyncio.to_thread(other.seen[0].close_code)
            while talk.transport.describe() != "not connected":  # noqa: ASYNC110 (no bell rings)
                await asyncio.sleep(0)
            request = talk.request("two")
            await talk.transport.rehearse(request)
            opened = len(other.seen)
            return talk, opened, await talk.ask("two")

    talk, opened, second = run(main())
    assert opened == 1
    assert [one.frame for one in talk.foreseen] == frames(other)
    assert (second.connection, second.held_items, second.sent_items) == (None, 0, 3)
    talk.check()


def test_without_lanes_a_branch_is_sent_as_rehearsed(run, peer):
    """Where a connection has one stream a branch has no name on the wire."""
    other = peer([[completed("m1")], [completed("m2")]], [[completed("f1")]])

    async def main():
        async with over(other, Limits(lanes=0)) as talk:
            await talk.ask("one")
            fork = await talk.ask("else", "f", of=None)
            await talk.ask("two")
            return talk, fork

    talk, fork = run(main())
    assert sorted(one.frame for one in talk.foreseen) == sorted(frames(other))
    assert b"stream_id" not in fork.frame
    assert fork.connection is None
    talk.check()


def test_an_endpoint_whose_limits_are_unknown_is_sent_as_rehearsed(run, peer):
    """Before anything is learnt the first attempt is what is foreseen."""
    other = peer([[completed("m1", "a")], [completed("f1", "f")]])

    async def main():
        async with over(other, Limits()) as talk:
            await talk.ask("one", "a")
            await talk.ask("else", "f", of="a")
            return talk

    talk = run(main())
    assert [one.frame for one in talk.foreseen] == frames(other)
    talk.check()


def test_a_diagnosis_is_asked_for_as_rehearsed(run, peer):
    """The response that a prompt is compared with is in the rehearsal too."""
    other = peer([[completed("r1")], [completed("r2")]])

    async def main():
        async with over(other, diagnoses=True) as talk:
            await talk.ask("one")
            return talk, await talk.ask("two")

    talk, second = run(main())
    assert b'"comparison_response_id":"r1"' in second.frame
    assert [one.frame for one in talk.foreseen] == frames(other)
    talk.check()


def test_a_rehearsal_of_a_fork_holds_nobody_up(run, peer):
    """The lane that it would fork from goes on, and no lane is made for it."""
    other = peer([[completed("m1")], [completed("m2")]])

    async def main():
        async with over(other) as talk:
            await talk.ask("one")
            fork = talk.request("else", "f", of=None)
            twice = [await talk.transport.rehearse(fork) for _ in range(2)]
            await talk.ask("two")
            (connection,) = talk.transport._pool._connections
            return talk, twice, list(connection.lanes)

    talk, (first, second), lanes = run(main())
    assert first == second
    assert [one.frame for one in talk.foreseen] == frames(other)
    assert lanes == [None]


def test_while_its_source_answers_a_fork_is_rehearsed_whole(run, peer):
    """The response it shares may be replaced at any moment, so nothing is left out."""
    created = {"type": "response.created", "response": {"id": "m2"}}
    other = peer([[completed("m1")], [created]])

    async def main():
        async with over(other) as talk:
            await talk.ask("one")
            fork = talk.request("else", "f", of=None)
            going = talk.transport.stream(talk.request("two"))
            async for event in going:
                if isinstance(event, ResponseCreated):
                    break
            foreseen = await talk.transport.rehearse(fork)
            await going.aclose()
            return foreseen

    foreseen = run(main())
    assert (foreseen.connection, foreseen.held_items, foreseen.sent_items) == (1, 0, 3)
    assert foreseen.previous_response_id is None


def test_what_is_too_big_is_told_before_it_is_sent(run, peer, http_peer):
    """A request over the endpoint's limit is the same error as when it is sent."""
    small = Limits(lanes=0, frame_bytes=60)

    async def tried(talk):
        async with talk:
            with pytest.raises(MessageTooBig, match="send less"):
                await talk.transport.rehearse(talk.request("x" * 60))

    run(tried(over(peer(), small)))
    run(tried(over(http_peer(), small, kind=HttpTransport)))


def test_a_rehearsal_needs_neither_a_server_nor_a_key(run, unused_port, monkeypatch):
    """Nothing is opened: the local server is not looked for, a key is not read."""
    from ipy_agent.endpoints import ENDPOINTS, Endpoint

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    looked = []

    async def locate(*_, **__):
        looked.append(1)

    async def main():
        request = Request(fields=Fields({"model": "m"}), input=EMPTY.extend([user("hi")]))
        nowhere = Endpoint.named(f"http://127.0.0.1:{unused_port}/v1")
        kinds = (WebSocketTransport, HttpTransport, AutoTransport)
        return [
            await kind(endpoint, locate=locate).rehearse(request)
            for kind in kinds
            for endpoint in (ENDPOINTS["local"], ENDPOINTS["openai"], nowhere)
        ]

    for foreseen in run(main()):
        assert foreseen.connection is None
        assert foreseen.sent_items == 1
        assert foreseen.full_bytes == len(foreseen.frame)
    assert looked == []


@pytest.mark.parametrize("stores", [True, False])
def test_a_post_is_sent_as_rehearsed(run, http_peer, stores):
    """Over HTTP a stored response is continued from; else all of the conversation goes along."""
    other = http_peer(*([("stream", completed(f"r{n}"))] for n in range(3)))

    async def main():
        async with over(other, kind=HttpTransport, stores=stores, diagnoses=True) as talk:
            talk.fields["store"] = stores
            for prompt in ("one", "two", "three"):
                await talk.ask(prompt)
            return talk

    talk = run(main())
    assert [one.frame for one in talk.foreseen] == [heard.body for heard in other.seen]
    assert [one.held_items for one in talk.foreseen] == ([0, 2, 4] if stores else [0, 0, 0])
    assert {one.connection for one in talk.foreseen} == {None}
    sizes = [(len(one.frame), one.full_bytes) for one in talk.foreseen]
    assert sizes == [(sent.sent_bytes, sent.full_bytes) for sent in talk.sent]


def test_a_warm_up_over_http_is_refused_as_when_it_is_sent(run, http_peer):
    """There is nothing to warm, and the rehearsal says so."""

    async def main():
        async with over(http_peer(), kind=HttpTransport) as talk:
            warm = Request(fields=Fields({}), generate=False)
            with pytest.raises(UsageError, match="needs a WebSocket"):
                await talk.transport.rehearse(warm)

    run(main())


def test_after_the_upgrade_was_refused_the_post_is_rehearsed(run, http_peer):
    """What was found out about the endpoint is foreseen: the body, as it is posted."""
    refusal = ("json", 404, {}, {})
    other = http_peer([refusal], [("stream", completed("r1"))], [("stream", completed("r2"))])

    async def main():
        async with over(other, kind=AutoTransport) as talk:
            first = await talk.ask("one")
            return first, await talk.ask("two")

    first, second = run(main())
    assert (first.transport, second.transport) == ("websocket", "http")
    assert second.frame == other.seen[-1].body


def test_a_script_is_rehearsed_like_the_live_connection(run):
    """The shipped fake foresees what its stream then tells, and uses up no entry."""

    async def main():
        async with Rehearsed(ScriptedTransport([{"text": "1"}, {"text": "2"}])) as talk:
            await talk.ask("one")
            await talk.ask("two")
            await talk.ask("else", "f", of=None)
            return talk

    talk = run(main())
    assert [one.held_items for one in talk.foreseen] == [0, 2, 4]
    assert len(talk.transport.requests) == 3
    talk.check()


def test_both_ends_agree_on_what_was_rehearsed(run, served):
    """Against the embedded server: forks and re-runs too are what the recorder is told."""

    async def main():
        transport = WebSocketTransport(served([{"text": str(n)} for n in range(5)]))
        async with Rehearsed(transport) as talk:
            await talk.ask("one")
            older = talk.said[None]
            await talk.ask("two")
            await talk.ask("else", "f", of=None)
            talk.said[None] = older
            await talk.ask("two again")
            await transport.aclose()
            await talk.ask("three")
            return talk

    run(main()).check()


def test_a_connection_near_its_end_is_not_foreseen(run, peer):
    """No turn begins on it any more, so all is sent over a new one."""
    other = peer([[completed("r1")]], [[completed("r2")]])

    async def main():
        async with over(other, Limits(lanes=0, seconds=3_600)) as talk:
            await talk.ask("one")
            talk.transport._pool._connections[0].opened_at -= 3_500
            await talk.ask("two")
            return talk

    talk = run(main())
    assert [one.frame for one in talk.foreseen] == frames(other)
    assert [one.connection for one in talk.foreseen] == [None, None]
    talk.check()
