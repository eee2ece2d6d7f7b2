"""Branches on one socket: lanes, forks, and what is learnt of an endpoint on the way."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from ipy_agent.endpoints import Limits
from ipy_agent.errors import ConnectionLost, MessageTooBig
from ipy_agent.protocol.events import TERMINAL, Error, TextDelta
from ipy_agent.protocol.items import EMPTY, text, user
from ipy_agent.protocol.lanes import State
from ipy_agent.protocol.requests import Fields, Request
from ipy_agent.trace import RequestSent
from ipy_agent.transport.websocket import WebSocketTransport

KNOWN = Limits(lanes=32, keeps_all=False)


def message(said):
    content = [{"type": "output_text", "text": said}]
    return {"type": "message", "id": f"msg_{said}", "role": "assistant", "content": content}


def created(name, lane=None):
    return on(lane, {"type": "response.created", "response": {"id": name}})


def in_progress(name, lane=None):
    return on(lane, {"type": "response.in_progress", "response": {"id": name}})


def delta(said, lane=None):
    return on(lane, {"type": "response.output_text.delta", "delta": said})


def completed(name, said, lane=None):
    response = {"id": name, "status": "completed", "output": [message(said)]}
    return on(lane, {"type": "response.completed", "response": response})


def refusal(code, param=None, lane=None, status=400):
    error = {"code": code, "message": "no", "param": param}
    return on(lane, {"type": "error", "status": status, "error": error})


def on(lane, frame):
    return frame if lane is None else {**frame, "stream_id": lane}


class Branches:
    """Conversations over one transport, each on a branch of its own."""

    def __init__(self, peer, limits=KNOWN, **more):
        endpoint = dataclasses.replace(peer.endpoint(), limits=limits, **more)
        self.peer = peer
        self.transport = WebSocketTransport(endpoint)
        self.said = {}

    async def ask(self, prompt, branch=None, *, of=None, model="m"):
        """Take a turn on a branch, forked `of` another if it is new; return what came of it."""
        items = self.said.get(branch, self.said.get(of, EMPTY)).extend([user(prompt)])
        request = Request(fields=Fields({"model": model}), input=items, stream_id=branch)
        events = [event async for event in self.transport.stream(request)]
        last = events[-2]
        if isinstance(last, TERMINAL):
            self.said[branch] = items.extend(last.response.output)
        return events

    async def seen(self, frames, connection=0):
        """Wait until the peer has seen so many frames, then let all else go as far as it can."""
        while len(self.peer.seen) <= connection or len(self.frames(connection)) < frames:  # noqa: ASYNC110 (no bell rings)
            await asyncio.sleep(0)

    def frames(self, connection=0):
        return self.peer.seen[connection].frames

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.transport.aclose()


def sent(events):
    return next(event for event in events if isinstance(event, RequestSent))


def said(events):
    return "".join(event.delta for event in events if isinstance(event, TextDelta))


def prompts(frame):
    return [text(item) for item in frame["input"]]


def test_turns_on_two_lanes_share_a_socket_at_the_same_time(run, peer):
    """Their events interleave, and each turn hears its own."""
    other = peer(
        [
            [created("a1", "a"), delta("1", "a")],
            [
                *(created("b1", "b"), delta("2", "b"), delta("3", "a"), delta("4", "b")),
                *(completed("b1", "24", "b"), completed("a1", "13", "a")),
            ],
        ]
    )

    async def main():
        async with Branches(other) as branches:
            one = asyncio.create_task(branches.ask("x", "a"))
            await branches.seen(1)
            return await branches.ask("y", "b"), await one

    b, a = run(main())
    assert (said(a), said(b)) == ("13", "24")
    assert [frame["stream_id"] for frame in other.seen[0].frames] == ["a", "b"]
    assert sent(a).connection == sent(b).connection == 1


def test_a_fork_sends_what_is_new_and_the_id_that_it_shares(run, peer):
    """The main branch has the default lane, which has no name on the wire."""
    other = peer([[completed("m1", "1")], [completed("f1", "f", "f")], [completed("m2", "2")]])

    async def main():
        async with Branches(other) as branches:
            await branches.ask("one")
            fork = await branches.ask("else", "f", of=None)
            return fork, await branches.ask("two")

    fork, two = run(main())
    main_1, forked, main_2 = other.seen[0].frames
    assert "stream_id" not in main_1
    assert (forked["stream_id"], forked["previous_response_id"]) == ("f", "m1")
    assert prompts(forked) == ["else"]
    assert (sent(fork).held_items, sent(two).held_items) == (2, 2)
    assert main_2["previous_response_id"] == "m1"


def test_the_source_of_a_fork_stands_still_until_the_fork_has_begun(run, peer):
    """Only when the fork is in progress does the lane that it came from go on."""
    other = peer(
        [
            [completed("m1", "1")],
            [created("f1", "f")],
            [in_progress("f1", "f"), completed("x1", "x", "x")],
            [completed("m2", "2"), completed("f1", "f", "f")],
        ]
    )

    async def main():
        async with Branches(other) as branches:
            await branches.ask("one")
            fork = asyncio.create_task(branches.ask("fork", "f", of=None))
            await branches.seen(2)
            source = asyncio.create_task(branches.ask("two"))
            await asyncio.sleep(0)
            branches.said["x"] = EMPTY
            await branches.ask("third", "x")
            await asyncio.gather(fork, source)

    run(main())
    order = [frame.get("stream_id", "main") for frame in other.seen[0].frames]
    assert order == ["main", "f", "x", "main"]


def test_a_fork_of_a_lane_in_a_turn_sends_everything(run, peer):
    """The shared response may be gone at any moment: nothing is risked."""
    other = peer(
        [
            [completed("m1", "1")],
            [created("m2")],
            [completed("f1", "f", "f"), completed("m2", "2")],
        ]
    )

    async def main():
        async with Branches(other) as branches:
            await branches.ask("one")
            before = branches.said[None]
            source = asyncio.create_task(branches.ask("two"))
            await branches.seen(2)
            branches.said["f"] = before
            fork = await branches.ask("fork", "f")
            await source
            return fork

    fork = run(main())
    frame = other.seen[0].frames[2]
    assert frame.get("previous_response_id") is None
    assert prompts(frame) == ["one", "1", "fork"]
    assert sent(fork).resent == "evicted"


def test_no_more_turns_are_in_flight_than_the_endpoint_takes(run, peer):
    """One more waits, unsent, until another has ended."""
    other = peer([[], [], [completed(f"{lane}1", lane, lane) for lane in "abc"]])

    async def main():
        async with Branches(other, Limits(lanes=32, in_flight=2)) as branches:
            turns = [asyncio.create_task(branches.ask("x", lane)) for lane in "abc"]
            await branches.seen(2)
            (connection,) = branches.transport._pool._connections
            while not all(lane in connection.lanes for lane in "abc"):  # noqa: ASYNC110 (no bell)
                await asyncio.sleep(0)
            states = [connection.lanes[lane].moves.state for lane in "abc"]
            turns[0].cancel()
            return states

    assert run(main()) == [State.ASKED, State.ASKED, State.IDLE]


def test_the_turn_that_waited_goes_on(run, served):
    """Forty branches at once are all answered by a real server, over two sockets."""
    endpoint = dataclasses.replace(served([]), limits=Limits(lanes=32, keeps_all=True))

    async def main():
        transport = WebSocketTransport(endpoint)

        async def ask(number):
            request = Request(
                fields=Fields({"model": "m"}),
                input=EMPTY.extend([user(f"echo {number}")]),
                stream_id=f"row{number}",
            )
            events = [event async for event in transport.stream(request)]
            return text(events[-2].response.output[0]), sent(events).connection

        try:
            return await asyncio.gather(*map(ask, range(40)))
        finally:
            await transport.aclose()

    answers = run(main())
    assert [said for said, _ in answers] == [f"echo {number}" for number in range(40)]
    assert {connection for _, connection in answers} == {1, 2}


def test_names_that_are_used_up_mean_another_connection(run, peer):
    """The branch goes to a new socket, unseen; the others stay where they are."""
    other = peer(
        [
            [completed("m1", "1")],
            [completed("a1", "a", "a")],
            [completed("b1", "b", "b")],
            [completed("m2", "2")],
        ],
        [[completed("c1", "c", "c")]],
    )

    async def main():
        async with Branches(other, Limits(lanes=2, keeps_all=False)) as branches:
            await branches.ask("one")
            for lane in "abc":
                events = await branches.ask("x", lane)
            return events, await branches.ask("two")

    c, two = run(main())
    assert (sent(c).connection, sent(c).previous_response_id) == (2, None)
    assert (sent(two).connection, sent(two).previous_response_id) == (1, "m1")


def test_a_branch_has_a_connection_of_its_own_where_there_are_no_lanes(run, peer):
    """No `stream_id` travels; each branch goes on by id on its own socket."""
    other = peer(
        [[completed("m1", "1")], [completed("m2", "2")]],
        [[completed("f1", "f")], [completed("f2", "g")]],
    )

    async def main():
        async with Branches(other, Limits(lanes=0)) as branches:
            await branches.ask("one")
            await branches.ask("fork", "f", of=None)
            again = await branches.ask("more", "f")
            return again, await branches.ask("two")

    again, two = run(main())
    assert all("stream_id" not in frame for seen in other.seen for frame in seen.frames)
    assert (sent(again).connection, sent(again).previous_response_id) == (2, "f1")
    assert (sent(two).connection, sent(two).previous_response_id) == (1, "m1")
    assert prompts(other.seen[1].frames[0]) == ["one", "1", "fork"]


# what is learnt


def test_a_peer_that_ignores_lanes_is_known_by_its_answer(run, peer):
    """It answers without a `stream_id`: the branch keeps that socket, the others get their own."""
    other = peer(
        [[completed("m1", "1")], [created("f1"), completed("f1", "f")], [completed("f2", "g")]],
        [[completed("m2", "2")]],
    )

    async def main():
        async with Branches(other, Limits()) as branches:
            await branches.ask("one")
            await branches.ask("fork", "f", of=None)
            two = await branches.ask("two")
            return two, await branches.ask("more", "f")

    two, more = run(main())
    assert (sent(two).connection, sent(two).previous_response_id) == (2, None)
    assert (sent(more).connection, sent(more).previous_response_id) == (1, "f1")
    assert "stream_id" not in other.seen[0].frames[2]


def test_a_peer_with_lanes_is_known_by_its_answer(run, peer):
    """It names the lane in its answer: all branches stay on its socket."""
    other = peer([[completed("m1", "1")], [completed("f1", "f", "f")], [completed("m2", "2")]])

    async def main():
        async with Branches(other, Limits()) as branches:
            await branches.ask("one")
            await branches.ask("fork", "f", of=None)
            return await branches.ask("two")

    assert sent(run(main())).connection == 1


@pytest.mark.parametrize(
    "frame",
    [
        refusal("invalid_stream_id", "stream_id"),
        refusal("unknown_parameter", "stream_id"),
        refusal("websocket_stream_limit_reached", "stream_id", lane="f"),
    ],
)
def test_a_peer_that_refuses_a_lane_is_asked_without(run, peer, frame):
    """The same turn goes to a connection of its own, once and unseen, and so does the next."""
    other = peer(
        [[completed("m1", "1")], [frame]],
        [[completed("f1", "f")]],
        [[completed("g1", "g")]],
    )

    async def main():
        async with Branches(other, Limits()) as branches:
            await branches.ask("one")
            fork = await branches.ask("fork", "f", of=None)
            return fork, await branches.ask("fork", "g", of=None)

    fork, other_fork = run(main())
    assert not any(isinstance(event, Error) for event in fork)
    assert "stream_id" not in other.seen[1].frames[0]
    assert [frame.get("stream_id") for frame in other.seen[2].frames] == [None]
    assert sent(other_fork).connection == 3


def test_a_peer_that_keeps_only_the_latest_is_known_by_what_it_lost(run, peer):
    """An older response is tried once; from then on no older one is."""
    gone = refusal("previous_response_not_found", "previous_response_id")
    other = peer(
        [
            *([completed(f"m{number}", str(number))] for number in (1, 2, 3)),
            [gone],
            [completed("m4", "4")],
            [completed("m5", "5")],
        ]
    )

    async def main():
        async with Branches(other, Limits()) as branches:
            earlier = []
            for prompt in ("one", "two", "three"):
                await branches.ask(prompt)
                earlier.append(branches.said[None])
            for said in earlier[:2]:
                branches.said[None] = said
                await branches.ask("again")

    run(main())
    ids = [frame.get("previous_response_id") for frame in other.seen[0].frames]
    assert ids == [None, "m1", "m2", "m1", None, None]


def test_a_lane_is_tried_out_alone(run, peer):
    """While nobody knows whether a peer has lanes, no second turn goes on the same socket."""
    other = peer([[]], [[completed("b1", "b", "b")]])

    async def main():
        async with Branches(other, Limits()) as branches:
            first = asyncio.create_task(branches.ask("x", "a"))
            while not other.seen or not other.seen[0].raw:
                (connection,) = branches.transport._pool._connections or [None]
                if connection is not None and connection.lanes.get("a"):
                    break
                await asyncio.sleep(0)
            second = await branches.ask("y", "b")
            first.cancel()
            return second

    assert sent(run(main())).connection == 2


def test_the_end_of_a_connections_life_is_not_seen(run, peer):
    """The same turn goes out again on a new socket, whole, even in the middle of an answer."""
    limit = refusal("websocket_connection_limit_reached")
    other = peer(
        [[completed("m1", "1")], [created("m2"), delta("hal"), limit, ("close", 1000)]],
        [[delta("2"), completed("m3", "2")]],
    )

    async def main():
        async with Branches(other, Limits(lanes=32)) as branches:
            await branches.ask("one")
            return await branches.ask("two"), branches.transport._pool.limits.seconds

    events, seconds = run(main())
    requests = [event for event in events if isinstance(event, RequestSent)]
    assert [(request.connection, request.attempt) for request in requests] == [(1, 0), (2, 1)]
    assert requests[1].previous_response_id is None
    assert not any(isinstance(event, Error) for event in events)
    assert seconds == 60  # what is planned with at least


def test_the_end_of_life_is_heard_on_every_lane(run, peer):
    """Its frame names no lane: all that are in a turn go on elsewhere."""
    limit = refusal("websocket_connection_limit_reached")
    other = peer(
        [[], [limit, ("close", 1000)]],
        [[], [completed("a", "a", "a"), completed("m", "m")]],
    )

    async def main():
        async with Branches(other) as branches:
            return await asyncio.gather(branches.ask("x"), branches.ask("y", "a"))

    for events in run(main()):
        assert sent(list(reversed(events))).connection == 2
        assert isinstance(events[-2], TERMINAL)


def test_a_lost_connection_is_an_error_of_its_own_on_each_lane(run, peer):
    """What led to one is cleared when its run ends, and another's run goes on meanwhile."""
    other = peer([[], [("reset",)]])

    async def main():
        async with Branches(other) as branches:
            asked = branches.ask("x", "a"), branches.ask("y", "b")
            return await asyncio.gather(*asked, return_exceptions=True)

    one, another = run(main())
    assert type(one) is type(another) is ConnectionLost
    assert str(one) == str(another)
    assert one is not another


def test_a_limit_that_comes_back_is_told(run, peer):
    """A turn is renewed once; what the second connection says is the turn's answer."""
    limit = refusal("websocket_connection_limit_reached")
    other = peer([[limit]], [[limit]])

    async def main():
        async with Branches(other) as branches:
            return await branches.ask("one")

    assert run(main())[-2].reason.code == "websocket_connection_limit_reached"


@pytest.mark.parametrize("limits", [Limits(seconds=1e-9), Limits(idle_seconds=1e-9)])
def test_a_worn_connection_is_replaced_between_turns(run, peer, limits):
    """A turn never begins on a connection that is about to end, and nobody sees the change."""
    other = peer([[completed("m1", "1")]], [[completed("m2", "2")]])

    async def main():
        async with Branches(other, limits) as branches:
            await branches.ask("one")
            return await branches.ask("two")

    events = run(main())
    assert (sent(events).connection, sent(events).resent) == (2, "new_connection")
    assert other.seen[0].close_code() == 1000


def test_another_model_needs_another_connection_where_one_has_one(run, peer):
    """Each model goes on where it is; going back to the first resends nothing."""
    other = peer([[completed("m1", "1")], [completed("m3", "3")]], [[completed("n2", "2")]])

    async def main():
        async with Branches(other, Limits(one_model=True)) as branches:
            await branches.ask("one")
            switched = await branches.ask("two", model="n")
            return switched, await branches.ask("three")

    switched, back = run(main())
    assert (sent(switched).connection, sent(back).connection) == (2, 1)


def test_that_a_connection_has_one_model_is_learnt(run, peer):
    """A refused model is asked for once more on a new connection; so is every other one then."""
    other = peer(
        [[completed("m1", "1")], [refusal("invalid_value", "model")]],
        [[completed("n2", "2")]],
        [[completed("o3", "3")]],
    )

    async def main():
        async with Branches(other, Limits()) as branches:
            await branches.ask("one")
            await branches.ask("two", model="n")
            return await branches.ask("three", model="o")

    assert sent(run(main())).connection == 3


def test_a_model_that_nobody_has_is_told(run, peer):
    """Where a new connection refuses it too, that is the answer, and nothing was learnt."""
    no = refusal("model_not_found", "model", status=404)
    other = peer([[completed("m1", "1")], [no]], [[no]])

    async def main():
        async with Branches(other, Limits()) as branches:
            await branches.ask("one")
            refused = await branches.ask("two", model="n")
            return refused, branches.transport._pool.limits.one_model

    refused, one_model = run(main())
    assert refused[-2].reason.code == "model_not_found"
    assert not one_model


def test_a_request_too_large_for_a_frame_is_not_sent(run, peer):
    """Both sizes are told, and the connection stays as it was."""
    other = peer([[completed("m1", "1")], [completed("m2", "2")]])

    async def main():
        async with Branches(other, Limits(frame_bytes=2_000)) as branches:
            await branches.ask("one")
            with pytest.raises(
                MessageTooBig, match=r"has 3,\d\d\d bytes .* takes 2,000"
            ) as failure:
                await branches.ask("x" * 3_000)
            return failure.value, await branches.ask("two")

    failure, events = run(main())
    assert not failure.sent
    assert (sent(events).connection, sent(events).previous_response_id) == (1, "m1")


def test_a_limit_is_learnt_from_the_largest_request_only(run, peer):
    """Another request on the socket lost its connection, and no more than that."""
    other = peer([[], [("close", 1009)]], [[completed("a1", "a", "a")]])

    async def main():
        async with Branches(other) as branches:
            small = asyncio.create_task(branches.ask("x", "a"))
            await branches.seen(1)
            with pytest.raises(MessageTooBig, match=r"no message of 20,\d\d\d bytes"):
                await branches.ask("x" * 20_000)
            with pytest.raises(ConnectionLost):
                await small
            branches.said.clear()
            return await branches.ask("x", "a"), branches.transport._pool.limits.frame_bytes

    again, limit = run(main())
    assert isinstance(again[-2], TERMINAL)
    assert 20_000 < limit < 21_000


def test_nothing_is_learnt_from_a_reply_that_is_too_large(run, peer):
    """It says nothing of what the endpoint takes."""
    large = {"type": "response.output_text.delta", "delta": "x" * (16 * 2**20)}
    other = peer([[large]], [[completed("m2", "2")]])

    async def main():
        async with Branches(other) as branches:
            with pytest.raises(MessageTooBig):
                await branches.ask("one")
            return await branches.ask("two" * 100)

    assert isinstance(run(main())[-2], TERMINAL)


def test_what_is_learnt_of_lanes_counts_for_the_next_connection(run, peer):
    """A peer that ignores lanes is not asked with one again."""
    other = peer(
        [[completed("a1", "a")]],
        [[completed("b1", "b")]],
    )

    async def main():
        async with Branches(other, Limits()) as branches:
            await branches.ask("x", "a")
            await branches.ask("y", "b")

    run(main())
    assert other.seen[0].frames[0]["stream_id"] == "a"
    assert "stream_id" not in other.seen[1].frames[0]


# what must not mix


def test_what_comes_late_of_a_turn_does_not_end_the_next(run, peer):
    """A response that was over is told again: it is not the next turn's."""
    late = completed("m1", "1")
    other = peer([[completed("m1", "1")], [late, created("m2"), completed("m2", "2")]])

    async def main():
        async with Branches(other) as branches:
            await branches.ask("one")
            return await branches.ask("two")

    assert run(main())[-2].response.id == "m2"


def test_an_abandoned_lane_lets_the_others_finish(run, peer):
    """The socket takes no more turns, and closes when the last one under way has ended."""
    other = peer(
        [[created("a1", "a"), delta("a", "a")], [created("b1", "b")], [completed("b1", "b", "b")]],
        [[completed("a2", "2", "a")]],
    )

    async def main():
        async with Branches(other) as branches:
            left = asyncio.create_task(branches.ask("x", "a"))
            await branches.seen(1)
            stays = asyncio.create_task(branches.ask("y", "b"))
            await branches.seen(2)
            left.cancel()
            with pytest.raises(asyncio.CancelledError):
                await left
            again = await branches.ask("x", "a")
            (connection,) = (c for c in branches.transport._pool._connections if c.number == 1)
            await connection.socket.send("go on")
            return again, await stays

    again, stayed = run(main())
    assert sent(again).connection == 2
    assert sent(stayed).connection == 1
    assert isinstance(stayed[-2], TERMINAL)
    assert other.seen[0].close_code() == 1000


# why the cache missed


def test_an_endpoint_that_diagnoses_is_told_what_to_compare_with(run, peer):
    """From the second turn on the response before is named, and it is no change of settings."""
    other = peer([[completed("m1", "1")], [completed("m2", "2")], [completed("m3", "3")]])

    async def main():
        async with Branches(other, diagnoses=True) as branches:
            for prompt in ("one", "two"):
                await branches.ask(prompt)
            return await branches.ask("three", model="n")

    events = run(main())
    asked = [frame.get("prompt_cache_options") for frame in other.seen[0].frames]
    assert asked == [None, {"comparison_response_id": "m1"}, {"comparison_response_id": "m2"}]
    assert other.seen[0].frames[1]["previous_response_id"] == "m1"
    assert sent(events).resent == "model_changed"


def test_a_model_that_cannot_diagnose_is_not_asked_again(run, peer):
    """The turn goes out again without the question, and so do those after it."""
    no = refusal("unknown_parameter", "prompt_cache_options.comparison_response_id")
    other = peer([[completed("m1", "1")], [no], [completed("m2", "2")], [completed("m3", "3")]])

    async def main():
        async with Branches(other, diagnoses=True) as branches:
            for prompt in ("one", "two", "three"):
                events = await branches.ask(prompt)
            return events

    assert not any(isinstance(event, Error) for event in run(main()))
    assert "prompt_cache_options" in other.seen[0].frames[1]
    assert all("prompt_cache_options" not in frame for frame in other.seen[0].frames[2:])
