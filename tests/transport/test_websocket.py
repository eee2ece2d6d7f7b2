"""One live connection: what is sent on it, and what becomes of it when its peer misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import time

import pytest
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.utils import accept_key

from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    ConnectionLost,
    MessageTooBig,
    NoAnswer,
    ProtocolError,
    UpgradeRefused,
)
from ipy_agent.protocol.events import (
    TERMINAL,
    Error,
    ItemDone,
    Other,
    ResponseFailedEvent,
    TextDelta,
)
from ipy_agent.protocol.items import EMPTY, text, user
from ipy_agent.protocol.requests import Fields, Request
from ipy_agent.trace import Notice, RequestSent, ResponseEnded
from ipy_agent.transport.clock import Clock
from ipy_agent.transport.connection import MAX_FRAME
from ipy_agent.transport.websocket import WebSocketTransport

FIELDS = Fields({"model": "m", "instructions": "Be brief."})


def message(said):
    return {
        "type": "message",
        "id": f"msg_{said}",
        "role": "assistant",
        "content": [{"type": "output_text", "text": said}],
    }


def completed(name, *output):
    response = {"id": name, "status": "completed", "output": list(output)}
    return {"type": "response.completed", "response": response}


def answer(name, said):
    """Return the frames of a response that says something."""
    return [
        {"type": "response.created", "response": {"id": name}},
        {"type": "response.output_text.delta", "delta": said},
        {"type": "response.output_item.done", "output_index": 0, "item": message(said)},
        completed(name, message(said)),
    ]


def refusal(code="server_error", status=500):
    return {"type": "error", "status": status, "error": {"code": code, "message": "no"}}


BEGUN = answer("resp_old", "old")[:2]
NOT_FOUND = refusal("previous_response_not_found", 400)


class Talk:
    """A conversation over a transport, as an agent holds it."""

    def __init__(self, endpoint, **options):
        self.transport = WebSocketTransport(endpoint, **options)
        self.items = EMPTY

    async def ask(self, prompt):
        """Take a turn and return all that came of it."""
        self.items = self.items.extend([user(prompt)])
        events = await self.stream()
        last = events[-2]
        if isinstance(last, TERMINAL):
            self.items = self.items.extend(last.response.output)
        return events

    async def stream(self, **more):
        request = Request(fields=FIELDS, input=self.items, **more)
        return [event async for event in self.transport.stream(request)]

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


# what is sent


def test_two_turns_share_a_connection_and_the_second_sends_only_what_is_new(run, peer):
    """The second frame holds one item and the id of the first response."""
    other = peer([answer("resp_1", "1"), answer("resp_2", "2")])

    async def main():
        async with Talk(other.endpoint()) as talk:
            return await talk.ask("one"), await talk.ask("two"), talk.items

    first, second, items = run(main())
    before, then = other.seen[0].frames
    assert len(other.seen) == 1
    assert prompts(before) == ["one"]
    assert prompts(then) == ["two"]
    assert "previous_response_id" not in before
    assert then["previous_response_id"] == "resp_1"
    assert {name: then[name] for name in FIELDS.values} == FIELDS.values
    assert (sent(first).reused, sent(second).reused) == (False, True)
    assert (sent(first).connection, sent(second).connection) == (1, 1)
    assert sent(first).connect_ms > 0
    assert sent(second).connect_ms is None
    assert (sent(second).sent_items, sent(second).held_items) == (1, 2)
    assert sent(second).previous_response_id == "resp_1"
    assert [text(item) for item in items] == ["one", "1", "two", "2"]


def test_bytes_are_those_on_the_wire(run, peer):
    """Sent, full and received bytes are exact."""
    other = peer([answer("resp_1", "été"), answer("resp_2", "2")])

    async def main():
        async with Talk(other.endpoint()) as talk:
            first = await talk.ask("où?")
            return first, await talk.ask("two"), talk.items

    first, second, items = run(main())
    raw = [len(frame.encode()) for frame in other.seen[0].raw]
    whole = [Request(fields=FIELDS, input=items.back(back)).frame() for back in (3, 1)]
    received = sum(len(json.dumps(frame).encode()) for frame in answer("resp_1", "été"))
    assert [sent(first).sent_bytes, sent(second).sent_bytes] == raw
    assert [sent(first).full_bytes, sent(second).full_bytes] == [len(frame) for frame in whole]
    assert sent(first).sent_bytes == sent(first).full_bytes
    assert first[-1] == ResponseEnded(received_bytes=received)


def test_the_embedded_server_really_holds_what_is_not_sent(run, served):
    """Its cached words are all that was said in the turns before."""
    endpoint = served([{"text": "a b c", "chunk_chars": 2}, {"text": "d"}])

    async def main():
        async with Talk(endpoint) as talk:
            return await talk.ask("one two"), await talk.ask("three")

    first, second = run(main())
    before, then = first[-2].response.usage, second[-2].response.usage
    assert said(first) == "a b c"
    assert (before.input_tokens, before.output_tokens) == (2, 3)
    assert then.detail("cached_tokens") == 5
    assert then.input_tokens == 6


def test_a_turn_goes_on_from_a_warm_up(run, served, peer):
    """A warm-up says `generate: false`; the first turn sends its prompt and the warm-up's id."""
    other = peer([[completed("resp_warm")], answer("resp_1", "1")])

    async def main(endpoint):
        async with Talk(endpoint) as talk:
            await talk.stream(generate=False)
            return await talk.ask("one")

    events = run(main(other.endpoint()))
    warmed, asked = other.seen[0].frames
    assert (warmed["generate"], warmed["input"]) == (False, [])
    assert "generate" not in asked
    assert asked["previous_response_id"] == "resp_warm"
    assert prompts(asked) == ["one"]
    assert sent(events).reused
    assert said(run(main(served([{"text": "yes"}])))) == "yes"


def test_another_setting_sends_everything(run, peer):
    """A turn with other instructions does not go on from the one before."""
    other = peer([answer("resp_1", "1"), answer("resp_2", "2")])

    async def main():
        async with Talk(other.endpoint()) as talk:
            await talk.ask("one")
            fields = Fields({**FIELDS.values, "instructions": "Be long."})
            request = Request(fields=fields, input=talk.items.extend([user("two")]))
            async for _ in talk.transport.stream(request):
                pass

    run(main())
    _, then = other.seen[0].frames
    assert "previous_response_id" not in then
    assert prompts(then) == ["one", "1", "two"]


def test_the_key_travels_in_its_header_and_only_if_there_is_one(run, peer, monkeypatch):
    """A variable that is named is sent as a bearer; without a name there is no header."""
    monkeypatch.setenv("THE_KEY", " k-123\n")
    other = peer([answer("resp_1", "1")], [answer("resp_2", "2")])

    async def main():
        async with Talk(other.endpoint()) as talk:
            await talk.ask("one")
        async with Talk(other.endpoint(key_env="THE_KEY")) as talk:
            await talk.ask("one")

    run(main())
    without, with_key = (seen.headers for seen in other.seen)
    assert "Authorization" not in without
    assert with_key["Authorization"] == "Bearer k-123"


def test_loopback_never_goes_through_a_proxy(run, peer, monkeypatch, unused_port):
    """A proxy that is set for everything is not asked."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{unused_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    other = peer([answer("resp_1", "1")])

    async def main():
        async with Talk(other.endpoint()) as talk:
            return await talk.ask("one")

    assert said(run(main())) == "1"


def test_the_local_server_is_located_at_the_first_turn(run, peer):
    """What locating tells is told in the stream, and it is asked for the turn's model."""
    other = peer([answer("resp_1", "1"), answer("resp_2", "2")])
    asked = []

    async def locate(notice, *, model):
        asked.append(model)
        notice("starting")
        await asyncio.sleep(0)
        notice("fetching")
        return other.url, "the-token"

    async def main():
        async with Talk(Endpoint.named("local"), locate=locate) as talk:
            return await talk.ask("one"), await talk.ask("two")

    first, second = run(main())
    assert first[:2] == [Notice(text="starting"), Notice(text="fetching")]
    assert sent(second).reused
    assert asked == ["m"]
    assert other.seen[0].headers["Authorization"] == "Bearer the-token"


def test_connecting_begins_with_locating(run, peer):
    """A local server that has to start first takes its time from nobody's model."""
    other = peer([answer("resp_1", "1")])
    took = []

    async def locate(notice, *, model):  # noqa: ARG001
        began = time.perf_counter()
        hashlib.pbkdf2_hmac("sha256", b"work", b"for a while", 20_000)
        took.append((time.perf_counter() - began) * 1_000)
        return other.url, None

    async def main():
        async with Talk(Endpoint.named("local"), locate=locate) as talk:
            return await talk.ask("one")

    assert sent(run(main())).connect_ms >= took[0]


def test_a_turn_that_is_given_up_stops_locating(run):
    """Whoever leaves while a server starts cancels its start."""
    stopped = []

    async def locate(notice, *, model):  # noqa: ARG001
        notice("starting")
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append(True)

    async def main():
        async with Talk(Endpoint.named("local"), locate=locate) as talk:
            async with contextlib.aclosing(talk.transport.stream(Request(fields=FIELDS))) as stream:
                assert await anext(stream) == Notice(text="starting")
            await asyncio.sleep(0)
            return list(stopped)

    assert run(main()) == [True]


# what is understood


@pytest.mark.parametrize("empty", [{}, {"output": None}, {"output": []}])
def test_a_terminal_event_without_output_gets_what_was_done(run, peer, empty):
    """The output is rebuilt from the items that were done, and remembered as such."""
    frames = answer("resp_1", "1")
    frames[-1] = {"type": "response.completed", "response": {"id": "resp_1", **empty}}
    other = peer([frames, answer("resp_2", "2")])

    async def main():
        async with Talk(other.endpoint()) as talk:
            first = await talk.ask("one")
            await talk.ask("two")
            return first

    first = run(main())
    assert first[-2].response.output == [message("1")]
    assert prompts(other.seen[0].frames[1]) == ["two"]


def test_the_terminal_output_wins_over_what_was_done(run, peer):
    """Where the two differ, the terminal event is what was said."""
    frames = answer("resp_1", "draft")
    frames[-1] = completed("resp_1", message("final"))
    other = peer([frames])

    async def main():
        async with Talk(other.endpoint()) as talk:
            return await talk.ask("one")

    events = run(main())
    assert events[-2].response.output == [message("final")]


def test_the_id_is_that_of_the_terminal_event(run, peer):
    """A proxy's `created` may name another response: it is not continued from."""
    frames = answer("resp_proxy", "1")
    frames[-1] = completed("resp_1", message("1"))
    other = peer([frames, answer("resp_2", "2")])

    async def main():
        async with Talk(other.endpoint()) as talk:
            await talk.ask("one")
            await talk.ask("two")

    run(main())
    assert other.seen[0].frames[1]["previous_response_id"] == "resp_1"


def test_a_server_that_says_only_completed_is_enough(run, peer):
    """One terminal event is a whole answer."""
    other = peer([[completed("resp_1", message("1"))]])

    async def main():
        async with Talk(other.endpoint()) as talk:
            return await talk.ask("one")

    assert run(main())[-2].response.output == [message("1")]


def test_unknown_events_pass_through_and_change_nothing(run, peer):
    """Before, in and after the known ones they are handed up whole."""
    limits = {"type": "codex.rate_limits", "limits": {"primary": 7}}
    alive = {"type": "keepalive", "stream_id": None}
    other = peer([[limits, *BEGUN, alive, completed("resp_1", message("1"))]])

    async def main():
        async with Talk(other.endpoint()) as talk:
            return await talk.ask("one")

    events = run(main())
    others = [event.frame for event in events if isinstance(event, Other)]
    assert others == [limits, alive]
    assert events[-2].response.id == "resp_1"


def test_events_on_an_idle_lane_are_ignored(run, peer):
    """What comes after a turn's end, or for a lane that nobody opened, reaches no turn."""
    late = {"type": "response.output_text.delta", "delta": "late"}
    foreign = {**late, "stream_id": "elsewhere"}
    first = [*answer("resp_1", "1"), late, refusal(), completed("resp_9")]
    second = [foreign, *answer("resp_2", "2")]
    other = peer([first, second])

    async def main():
        async with Talk(other.endpoint()) as talk:
            await talk.ask("one")
            # What was sent before the pong has arrived when the pong has.
            (connection,) = talk.transport._pool._connections
            await (await connection.socket.ping())
            return await talk.ask("two"), connection.ignored

    events, ignored = run(main())
    assert said(events) == "2"
    assert sent(events).previous_response_id == "resp_1"
    assert ignored == 4


def test_an_answer_that_nobody_asked_for_ends_its_connection(run, peer):
    """A request may arrive twice on a bad way: what is answered next there may be the copy."""
    other = peer([[*answer("resp_1", "1"), *answer("resp_2", "1")]], [answer("resp_3", "2")])

    async def main():
        async with Talk(other.endpoint()) as talk:
            await talk.ask("one")
            while talk.transport.describe() != "not connected":  # noqa: ASYNC110 (no bell rings)
                await asyncio.sleep(0)
            return await talk.ask("two")

    events = run(main())
    assert said(events) == "2"
    assert sent(events).connection == 2


# what fails and goes on


def test_a_parent_that_is_gone_costs_one_full_resend(run, peer):
    """The same turn goes out again, whole, on the same socket; the refusal is not shown."""
    other = peer([answer("resp_1", "1"), [NOT_FOUND], answer("resp_3", "3"), answer("resp_4", "4")])

    async def main():
        async with Talk(other.endpoint()) as talk:
            return [await talk.ask(prompt) for prompt in ("one", "two", "three")]

    _, second, third = run(main())
    frames = other.seen[0].frames
    requests = [event for event in second if isinstance(event, RequestSent)]
    assert len(other.seen) == 1
    assert len(frames) == 4
    assert frames[1]["previous_response_id"] == "resp_1"
    assert "previous_response_id" not in frames[2]
    assert prompts(frames[2]) == ["one", "1", "two"]
    assert [request.attempt for request in requests] == [0, 1]
    assert (requests[1].sent_items, requests[1].held_items) == (3, 0)
    assert not any(isinstance(event, Error) for event in second)
    answered = [NOT_FOUND, *answer("resp_3", "3")]
    assert second[-1].received_bytes == sum(len(json.dumps(frame)) for frame in answered)
    assert sent(third).previous_response_id == "resp_3"
    assert sent(third).attempt == 0


def test_the_resend_is_full_whatever_else_may_be_held(run, peer):
    """No older response is tried in the place of the one that is gone."""
    other = peer([answer("resp_1", "1"), answer("resp_2", "2"), [NOT_FOUND], answer("resp_3", "3")])
    endpoint = other.endpoint()
    limits = dataclasses.replace(endpoint.limits, keeps_all=True)

    async def main():
        async with Talk(dataclasses.replace(endpoint, limits=limits)) as talk:
            return [await talk.ask(prompt) for prompt in ("one", "two", "three")][-1]

    assert said(run(main())) == "3"
    *_, short, full = other.seen[0].frames
    assert short["previous_response_id"] == "resp_2"
    assert "previous_response_id" not in full
    assert prompts(full) == ["one", "1", "two", "2", "three"]


def test_a_parent_that_stays_gone_is_told(run, peer):
    """There is no third try, and a request that named no parent is not sent again."""
    other = peer([answer("resp_1", "1"), [NOT_FOUND], [NOT_FOUND], [NOT_FOUND]])

    async def main():
        async with Talk(other.endpoint()) as talk:
            return [await talk.ask(prompt) for prompt in ("one", "two", "three")]

    _, second, third = run(main())
    assert len(other.seen[0].frames) == 4
    for events in (second, third):
        assert [event.reason.code for event in events if isinstance(event, Error)] == [
            "previous_response_not_found"
        ]


@pytest.mark.parametrize(
    ("frames", "kind"),
    [
        ([refusal("rate_limit_exceeded", 429)], Error),
        ([*BEGUN, refusal()], Error),
        ([{"type": "error", "code": "flat", "message": "as over SSE"}], Error),
        (
            [
                *BEGUN,
                {
                    "type": "response.failed",
                    "response": {"id": "resp_x", "error": {"code": "c", "message": "no"}},
                },
            ],
            ResponseFailedEvent,
        ),
    ],
)
def test_a_failed_turn_keeps_the_connection_and_forgets(run, peer, frames, kind):
    """The failure is the turn's last event; the next turn sends everything on the same socket."""
    other = peer([answer("resp_1", "1"), frames, answer("resp_3", "3")])

    async def main():
        async with Talk(other.endpoint()) as talk:
            await talk.ask("one")
            return await talk.ask("two"), await talk.ask("three")

    failed, then = run(main())
    assert isinstance(failed[-2], kind)
    assert isinstance(failed[-1], ResponseEnded)
    assert len(other.seen) == 1
    assert sent(then).reused
    assert sent(then).previous_response_id is None
    assert prompts(other.seen[0].frames[2])[:2] == ["one", "1"]


def test_an_incomplete_response_is_not_continued_from(run, peer):
    """The turn after it sends everything."""
    response = {"id": "resp_1", "status": "incomplete", "output": [message("1")]}
    frames = [{"type": "response.incomplete", "response": response}]
    other = peer([frames, answer("resp_2", "2")])

    async def main():
        async with Talk(other.endpoint()) as talk:
            await talk.ask("one")
            return await talk.ask("two")

    assert sent(run(main())).previous_response_id is None


def lost(run, other, error, **options):
    """Let the second turn of a talk fail, go on, and return the failure."""

    async def main():
        async with Talk(other.endpoint(), **options) as talk:
            await talk.ask("one")
            with pytest.raises(error) as failure:
                await talk.ask("two")
            talk.items = talk.items.back(1)
            return failure.value, await talk.ask("three")

    failure, events = run(main())
    assert failure.sent
    assert "\n" not in str(failure)
    assert sent(events).connection == 2
    assert not sent(events).reused
    assert sent(events).previous_response_id is None
    assert said(events) == "3"
    assert prompts(other.seen[1].frames[0]) == ["one", "1", "three"]
    return failure


@pytest.mark.parametrize("begun", [[], BEGUN])
@pytest.mark.parametrize("code", [1000, 1001, 1008, 1011, 4402])
def test_a_close_in_a_turn_is_a_lost_connection(run, peer, begun, code):
    """The error has the close code, and the next turn sends everything on a new socket."""
    other = peer([answer("resp_1", "1"), [*begun, ("close", code)]], [answer("resp_3", "3")])

    assert lost(run, other, ConnectionLost).close_code == code


@pytest.mark.parametrize("begun", [[], BEGUN])
def test_a_reset_in_a_turn_is_a_lost_connection(run, peer, begun):
    """Without a goodbye there is no close code."""
    other = peer([answer("resp_1", "1"), [*begun, ("reset",)]], [answer("resp_3", "3")])

    assert lost(run, other, ConnectionLost).close_code is None


def test_a_message_too_big_for_the_peer(run, peer):
    """A close with 1009 is told with the size that was sent; what is larger is not sent again."""
    other = peer([answer("resp_1", "1"), [("close", 1009)]], [])

    async def main():
        async with Talk(other.endpoint()) as talk:
            await talk.ask("one")
            for _ in range(2):
                with pytest.raises(MessageTooBig) as failure:
                    await talk.ask("two")
                yield failure.value

    async def both():
        return [failure async for failure in main()]

    told, spared = run(both())
    size = len(other.seen[0].raw[1])
    assert told.sent
    assert f"no message of {size} bytes" in str(told)
    assert not spared.sent
    assert f"takes {size - 1}" in str(spared)


def test_a_message_too_big_for_us(run, peer):
    """A frame over our limit ends the turn, and the peer hears why."""
    big = {"type": "response.output_text.delta", "delta": "x" * MAX_FRAME}
    other = peer([answer("resp_1", "1"), [*BEGUN, big]], [answer("resp_3", "3")])

    failure = lost(run, other, MessageTooBig)
    assert f"more than {MAX_FRAME:,} bytes" in str(failure)
    assert other.seen[0].close_code() == 1009


@pytest.mark.parametrize(
    "bad",
    [
        "{",
        "[]",
        '{"no": "type"}',
        b'{"type":"response.completed","response":{"id":"binary"}}',
        ("text", b'{"type":"\xff"}'),
        {"type": "response.completed"},
        {"type": "response.created", "response": {"id": "again"}},
        '{"type": "x", "deep": ' + "[" * 100_000,
    ],
    ids=["cut", "list", "untyped", "binary", "not UTF-8", "hollow", "twice", "deep"],
)
def test_a_peer_that_breaks_the_protocol_is_left(run, peer, bad):
    """What cannot be read, or may not be said, ends the turn; the next one has a new socket."""
    other = peer([answer("resp_1", "1"), [*BEGUN, bad]], [answer("resp_3", "3")])

    lost(run, other, ProtocolError)
    assert other.seen[0].close_code() in (1002, 1003, 1007)


@pytest.mark.parametrize("begun", [[], BEGUN])
def test_silence_ends_a_turn_at_its_deadline(run, peer, begun):
    """Both deadlines, for the first event and between events, are parameters."""
    other = peer([answer("resp_1", "1"), begun], [answer("resp_3", "3")])

    failure = lost(run, other, NoAnswer, first_event=0.1 if not begun else 20, idle=0.1)
    assert "silent" in str(failure)
    assert other.seen[0].close_code() == 1000


def test_a_connection_that_closed_while_idle_is_replaced_unseen(run, peer):
    """The next turn succeeds on a new socket."""
    other = peer([[*answer("resp_1", "1"), ("close", 1001)]], [answer("resp_2", "2")])

    async def main():
        async with Talk(other.endpoint()) as talk:
            await talk.ask("one")
            for connection in talk.transport._pool._connections:
                while connection.socket.state is State.OPEN:  # noqa: ASYNC110 (no bell rings)
                    await asyncio.sleep(0)
            return await talk.ask("two")

    events = run(main())
    assert sent(events).connection == 2
    assert sent(events).previous_response_id is None
    assert said(events) == "2"


class Late(Clock):
    """A clock that is set forward by hand, and one whose machine slept."""

    ahead = asleep = 0.0

    def now(self):
        return super().now() + self.ahead

    def age(self):
        return super().now() + self.ahead + self.asleep


def test_a_connection_that_was_not_used_for_a_while_is_asked_first(run, peer):
    """If its peer answers a ping the turn goes there, and on by id."""
    other = peer([answer("resp_1", "1"), answer("resp_2", "2")])
    clock = Late()

    async def main():
        async with Talk(other.endpoint(), clock=clock) as talk:
            await talk.ask("one")
            clock.ahead = 16
            return await talk.ask("two")

    events = run(main())
    assert sent(events).connection == 1
    assert sent(events).previous_response_id == "resp_1"


def test_a_connection_that_died_in_silence_is_replaced_unseen(run, peer):
    """Its peer answers no ping: nothing was sent there, and nobody waits for a deadline."""
    other = peer([[*answer("resp_1", "1"), ("deaf",)]], [answer("resp_2", "2")])
    clock = Late()

    async def main():
        async with Talk(other.endpoint(), clock=clock, probe=0.1) as talk:
            await talk.ask("one")
            clock.ahead = 16
            return await talk.ask("two")

    events = run(main())
    assert (sent(events).connection, sent(events).attempt) == (2, 0)
    assert said(events) == "2"
    assert len(other.seen[0].frames) == 1


def test_any_sign_of_life_counts_in_a_turn(run, served):
    """Between events it is asked when anything was heard, a pong too: thinking is silent."""

    class Just(Clock):
        """A clock by which something was heard just now."""

        def now(self):
            return 0.0

    endpoint = served([{"text": "slow thoughts", "chunk_chars": 5, "delay_ms": 100}] * 2)

    async def main(**more):
        async with Talk(endpoint, idle=0.02, **more) as talk:
            return said(await talk.ask("one"))

    assert run(main(clock=Just())) == "slow thoughts"
    with pytest.raises(NoAnswer):
        run(main())


def test_what_came_before_or_too_late_is_ignored(run, peer):
    """Events have numbers: a copy is no second event, and one that was overtaken no next one."""

    def numbered(*frames):
        return [{**frame, "sequence_number": number} for number, frame in frames]

    created, _, done, ended = answer("resp_1", "ab")
    a, b = ({"type": "response.output_text.delta", "delta": one} for one in "ab")
    came = [(0, created), (2, a), (2, a), (1, b), (0, created), (3, b), (4, done), (0, ended)]
    other = peer([numbered(*came), answer("resp_2", "2")])

    async def main():
        async with Talk(other.endpoint()) as talk:
            return await talk.ask("one"), await talk.ask("two"), talk.transport

    one, two, transport = run(main())
    assert (said(one), said(two)) == ("ab", "2")
    assert transport._pool._opened == 1


def test_an_endpoint_that_does_not_count_is_heard(run, peer):
    """All numbers may be 0."""
    frames = [{**frame, "sequence_number": 0} for frame in answer("resp_1", "1")]
    other = peer([[*frames[:2], *frames[1:]]])

    async def main():
        async with Talk(other.endpoint()) as talk:
            return said(await talk.ask("one"))

    assert run(main()) == "11"


def test_a_connection_ages_while_the_machine_sleeps(run, peer):
    """Its endpoint counts that time too: it is renewed before the end, between two turns."""
    other = peer([answer("resp_1", "1")], [answer("resp_2", "2")])
    endpoint = other.endpoint()
    limited = dataclasses.replace(
        endpoint, limits=dataclasses.replace(endpoint.limits, seconds=3_600)
    )
    clock = Late()

    async def main():
        async with Talk(limited, clock=clock) as talk:
            await talk.ask("one")
            clock.asleep = 3_301
            return await talk.ask("two")

    assert sent(run(main())).connection == 2


def test_garbage_on_an_idle_connection_costs_no_turn(run, peer):
    """A connection that broke the protocol between turns is replaced unseen, and closed."""
    other = peer([[*answer("resp_1", "1"), "garbage"]], [answer("resp_2", "2")])

    async def main():
        async with Talk(other.endpoint()) as talk:
            await talk.ask("one")
            while talk.transport.describe() != "not connected":  # noqa: ASYNC110 (no bell rings)
                await asyncio.sleep(0)
            return await talk.ask("two")

    assert said(run(main())) == "2"
    assert other.seen[0].close_code() == 1002


# leaving


async def _closed_early(talk):
    request = Request(fields=FIELDS, input=talk.items.extend([user("old")]))
    async with contextlib.aclosing(talk.transport.stream(request)) as stream:
        async for event in stream:
            if isinstance(event, TextDelta):
                return


async def _cancelled(talk):
    begun = asyncio.Event()

    async def read():
        request = Request(fields=FIELDS, input=talk.items.extend([user("old")]))
        async for event in talk.transport.stream(request):
            if isinstance(event, TextDelta):
                begun.set()

    reading = asyncio.create_task(read())
    await begun.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


@pytest.mark.parametrize("leave", [_closed_early, _cancelled])
def test_an_abandoned_turn_retires_its_socket(run, peer, served, leave):
    """The peer sees the socket close, and nothing of that turn reaches the next one."""
    other = peer([BEGUN], [answer("resp_2", "new")])
    real = served([{"text": "old", "then": "hang"}, {"text": "new"}])

    async def main(endpoint):
        async with Talk(endpoint) as talk:
            await leave(talk)
            assert talk.transport.describe() == "not connected"
            return await talk.ask("two")

    events = run(main(other.endpoint()))
    assert other.seen[0].close_code() == 1000
    assert sent(events).connection == 2
    assert said(events) == "new"
    assert said(run(main(real))) == "new"


def test_an_answer_that_had_arrived_when_its_turn_was_given_up_is_not_the_next(run, peer):
    """It was over on the wire, so its connection is kept, and all of it unread."""
    other = peer([answer("resp_1", "old"), answer("resp_2", "new")])

    async def main():
        async with Talk(other.endpoint()) as talk:
            request = Request(fields=FIELDS, input=EMPTY.extend([user("old")]))
            async with contextlib.aclosing(talk.transport.stream(request)) as stream:
                await anext(stream)
                (connection,) = talk.transport._pool._connections
                lane = connection.lanes[None]
                arrived = lane.arrived
                while len(arrived) < 4:  # noqa: ASYNC110 (no bell rings)
                    await asyncio.sleep(0)
            return await talk.ask("new")

    events = run(main())
    assert said(events) == "new"
    assert sent(events).connection == 1


def test_an_abandoned_turn_that_is_closed_late_leaves_the_next_one_alone(run, peer):
    """Each turn lets go of its own connection only."""
    other = peer([BEGUN], [answer("resp_2", "new"), answer("resp_3", "3")])

    async def main():
        async with Talk(other.endpoint()) as talk:
            old = talk.transport.stream(Request(fields=FIELDS, input=EMPTY.extend([user("old")])))
            async for event in old:
                if isinstance(event, TextDelta):
                    break
            await talk.ask("two")
            await old.aclose()
            return await talk.ask("three")

    events = run(main())
    assert sent(events).reused
    assert len(other.seen) == 2


def test_it_closes_with_1000_and_can_be_used_again(run, peer):
    """The peer hears a proper goodbye; the next turn connects anew. Twice is as good as once."""
    other = peer([answer("resp_1", "1")], [answer("resp_2", "2")])

    async def main():
        async with Talk(other.endpoint()) as talk:
            assert talk.transport.describe() == "not connected"
            await talk.ask("one")
            assert talk.transport.describe().startswith("connected (WebSocket 1, 1 turns")
            await talk.transport.aclose()
            await talk.transport.aclose()
            assert talk.transport.describe() == "not connected"
            return await talk.ask("two")

    events = run(main())
    assert other.seen[0].close_code() == 1000
    assert sent(events).connection == 2


# not getting in


def refused(run, endpoint, error):
    """Return why a turn could not even begin."""

    async def main():
        async with Talk(endpoint) as talk:
            with pytest.raises(error) as failure:
                await talk.ask("one")
            assert talk.transport.describe() == "not connected"
            return failure.value

    failure = run(main())
    assert not failure.sent
    assert "\n" not in str(failure)
    return failure


@pytest.mark.parametrize("status", [200, 403, 404, 405, 426, 503])
def test_a_refused_upgrade_has_its_status(run, peer, status):
    """The error says what answered, and how."""
    failure = refused(run, peer(status).endpoint(), UpgradeRefused)

    assert failure.status == status
    assert str(status) in str(failure)


@pytest.mark.parametrize("key_env", ["THE_KEY", None])
def test_a_refused_key_is_named_and_never_shown(run, peer, monkeypatch, key_env):
    """A 401 names the key's variable, or says how to name one."""
    monkeypatch.setenv("THE_KEY", "k-123-secret")
    failure = refused(run, peer(401).endpoint(key_env=key_env), AuthenticationFailed)

    assert failure.code == "authentication_failed"
    assert (key_env or "--key-env") in str(failure)
    assert "k-123-secret" not in repr(failure) + str(failure)


def test_a_key_may_be_refused_on_an_open_socket(run, peer, monkeypatch):
    """Some servers let everybody in and say so afterwards: the key's variable is named."""
    monkeypatch.setenv("THE_KEY", "k-123-secret")
    other = peer([[refusal("invalid_api_key", 401), ("close", 1008)]])

    async def main():
        async with Talk(other.endpoint(key_env="THE_KEY")) as talk:
            with pytest.raises(AuthenticationFailed, match="check THE_KEY"):
                await talk.ask("one")

    run(main())


def test_a_missing_key_connects_nowhere(run, peer, monkeypatch):
    """The variable is named before anything is sent."""
    monkeypatch.delenv("THE_KEY", raising=False)
    other = peer([])
    failure = refused(run, other.endpoint(key_env="THE_KEY"), AuthenticationFailed)

    assert failure.code == "missing_key"
    assert "THE_KEY" in str(failure)
    assert other.seen == []


def test_a_key_never_follows_a_redirect(run, peer, monkeypatch):
    """A redirect is a refusal: where it points to hears nothing."""
    monkeypatch.setenv("THE_KEY", "k-123")
    elsewhere = peer([answer("resp_1", "1")])
    away = peer((307, {"Location": f"ws://127.0.0.1:{elsewhere.port}/v1/responses"}))
    failure = refused(run, away.endpoint(key_env="THE_KEY"), UpgradeRefused)

    assert failure.status == 307
    assert elsewhere.seen == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/v1", "http://a..b/v1"])
def test_an_address_where_nothing_answers(run, url, unused_port):
    """The error names the address and what to do."""
    url = url.format(port=unused_port)
    failure = refused(run, Endpoint.named(url), ConnectionFailed)

    assert url in str(failure)
    assert "%agent connect" in str(failure)


def test_a_certificate_that_does_not_hold_is_not_accepted(run, http_peer, certificate):
    """Nothing is sent to a server that cannot say who it is, and it is not tried again."""
    other = http_peer(tls=certificate)
    failure = refused(run, other.endpoint(), ConnectionFailed)

    assert f"the certificate of {other.url} does not hold" in str(failure)
    assert not failure.transient
    assert other.seen == []


def test_a_conversation_over_tls(run, peer, trusted):
    """With a certificate that holds, turns go over `wss` as over `ws`."""
    other = peer([answer("resp_1", "1"), answer("resp_2", "2")], ssl=trusted)

    async def main():
        async with Talk(Endpoint.named(f"https://localhost:{other.port}/v1")) as talk:
            return [said(await talk.ask(one)) for one in ("one", "two")]

    assert run(main()) == ["1", "2"]


def test_a_conversation_over_tls_through_a_proxy(run, peer, trusted, tunnel):
    """The proxy is asked for the host; TLS is begun with that, and turns go on as ever."""
    other = peer([answer("resp_1", "1"), answer("resp_2", "2")], ssl=trusted)
    proxy = tunnel(other.port)

    async def main():
        async with Talk(Endpoint.named("https://model.invalid/v1")) as talk:
            return [said(await talk.ask(one)) for one in ("one", "two")]

    assert run(main()) == ["1", "2"]
    assert proxy.asked == ["CONNECT model.invalid:443 HTTP/1.1"]


def test_a_remote_endpoint_is_reached_through_the_proxy(run, http_peer, monkeypatch):
    """A proxy of the environment is asked for what is not on this machine, TLS or not.

    What it says may pass if it is in trouble itself.
    """
    said = (b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status for status in (403, 503))
    proxy = http_peer(*([one, ("close",)] for one in said))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    forbidden = refused(run, Endpoint.named("http://model.invalid/v1"), ConnectionFailed)
    in_trouble = refused(run, Endpoint.named("https://model.invalid/v1"), ConnectionFailed)

    assert (forbidden.transient, in_trouble.transient) == (False, True)
    asked = ["CONNECT model.invalid:80 HTTP/1.1", "CONNECT model.invalid:443 HTTP/1.1"]
    assert [heard.line for heard in proxy.seen] == asked


@pytest.mark.parametrize("reply", [b"220 mail.example.org ready\r\n", b""])
def test_something_else_answers_there(run, reply):
    """A server that does not speak HTTP is a failed connection."""

    async def main():
        async def speak(_, writer):
            writer.write(reply)
            writer.close()

        async with await asyncio.start_server(speak, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with Talk(Endpoint.named(f"http://127.0.0.1:{port}/v1")) as talk:
                with pytest.raises(ConnectionFailed) as failure:
                    await talk.ask("one")
                return str(failure.value)

    assert "\n" not in run(main())


def test_items_done_are_handed_up_as_they_come(run, peer):
    """Every event of a turn is yielded, in order, between the request and its end."""
    other = peer([answer("resp_1", "1")])

    async def main():
        async with Talk(other.endpoint()) as talk:
            return await talk.ask("one")

    kinds = [type(event).__name__ for event in run(main())]
    assert kinds == [
        "RequestSent",
        "ResponseCreated",
        "TextDelta",
        ItemDone.__name__,
        "ResponseCompleted",
        "ResponseEnded",
    ]


def test_what_comes_with_the_handshake_is_the_first_turns(run):
    """A server that lets a client in, and says in the same breath why not, is heard."""

    async def speak(reader, writer):
        asked = await reader.readuntil(b"\r\n\r\n")
        key = next(
            line[19:]
            for line in asked.decode().split("\r\n")
            if line.startswith("Sec-WebSocket-Key")
        )
        told = Frame(Opcode.TEXT, json.dumps(refusal("invalid_api_key", 401)).encode())
        head = (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept_key(key)}\r\n\r\n"
        )
        writer.write(head.encode() + told.serialize(mask=False))
        await reader.read()
        writer.close()

    async def main():
        async with await asyncio.start_server(speak, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            async with Talk(Endpoint.named(url)) as talk:
                return await talk.ask("one")

    with pytest.raises(AuthenticationFailed):
        run(main())
