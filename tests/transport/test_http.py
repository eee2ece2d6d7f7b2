"""Turns by POST: what is sent, and what becomes of a turn whose answer is not as it should be."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gzip
import json
import subprocess
import sys

import msgspec
import pytest

from ipy_agent.endpoints import Endpoint, Limits
from ipy_agent.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    ConnectionLost,
    MessageTooBig,
    NoAnswer,
    ProtocolError,
    ResponseFailed,
    UsageError,
)
from ipy_agent.protocol.events import (
    TERMINAL,
    Error,
    ItemDone,
    Other,
    ResponseCompleted,
    ResponseFailedEvent,
    ResponseIncomplete,
    TextDelta,
)
from ipy_agent.protocol.items import EMPTY, calls, output_of, text, user
from ipy_agent.protocol.requests import Fields, Request
from ipy_agent.trace import Notice, RequestSent, ResponseEnded
from ipy_agent.transport import reply
from ipy_agent.transport.http import HttpTransport
from ipy_agent.transport.livelane import MAX_RESPONSE
from ipy_agent.transport.websocket import WebSocketTransport

FIELDS = Fields({"model": "m", "instructions": "Be brief.", "store": False})
STORED = Fields({"model": "m", "store": True})


def message(said):
    return {
        "type": "message",
        "id": f"msg_{said}",
        "role": "assistant",
        "content": [{"type": "output_text", "text": said}],
    }


def completed(name, *output, **more):
    response = {"id": name, "status": "completed", "output": list(output), **more}
    return {"type": "response.completed", "response": response}


def answer(name, said):
    """Return the frames of a response that says something."""
    return [
        {"type": "response.created", "response": {"id": name}},
        {"type": "response.output_text.delta", "delta": said},
        {"type": "response.output_item.done", "output_index": 0, "item": message(said)},
        completed(name, message(said)),
    ]


def told(name, said):
    return [("stream", *answer(name, said))]


def refusal(status, code="server_error", message="no", **headers):
    return [("json", status, {"error": {"code": code, "message": message}}, headers)]


BEGUN = answer("resp_old", "old")[:2]
NOT_FOUND = refusal(400, "previous_response_not_found")


class Talk:
    """A conversation over a transport, as an agent holds it."""

    def __init__(self, endpoint, fields=FIELDS, **options):
        self.transport = HttpTransport(endpoint, **options)
        self.fields = fields
        self.items = EMPTY

    async def ask(self, prompt, **more):
        """Take a turn and return all that came of it."""
        self.items = self.items.extend([user(prompt)])
        request = Request(fields=self.fields, input=self.items, **more)
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
            return [await talk.ask(prompt) for prompt in prompts or ["one"]]

    return run(main())


def failed(run, endpoint, kind, **options):
    """Ask something, and return the error that it ends with."""
    with pytest.raises(kind) as failure:
        asked(run, endpoint, **options)
    assert "\n" not in str(failure.value)
    return failure.value


def sent(events):
    return next(event for event in events if isinstance(event, RequestSent))


def said(events):
    return "".join(event.delta for event in events if isinstance(event, TextDelta))


def prompts(body):
    return [text(item) for item in body["input"]]


def storing(other):
    return having(other.endpoint(), stores=True)


def having(endpoint, **more):
    return dataclasses.replace(endpoint, **more)


# what is sent


def test_every_turn_sends_all_on_one_connection(run, http_peer):
    """Nothing is held where nothing is stored; the connection is kept all the same."""
    other = http_peer(told("resp_1", "1"), told("resp_2", "2"))
    first, second = asked(run, other.endpoint(), "one", "two")

    before, then = other.seen
    assert before.line == "POST /v1/responses HTTP/1.1"
    assert [prompts(before.json), prompts(then.json)] == [["one"], ["one", "1", "two"]]
    assert all(one.json["stream"] is True for one in other.seen)
    assert all("previous_response_id" not in one.json for one in other.seen)
    assert {name: then.json[name] for name in FIELDS.values} == FIELDS.values
    assert (before.connection, then.connection) == (1, 1)
    assert (sent(first).transport, sent(first).connection) == ("http", None)
    assert (sent(first).reused, sent(second).reused) == (False, True)
    assert sent(first).connect_ms > 0
    assert sent(second).connect_ms is None
    assert (sent(second).sent_items, sent(second).held_items) == (3, 0)
    assert sent(second).resent is None


def test_the_stream_is_that_of_any_transport(run, http_peer):
    """The request, its events in order, and its end."""
    other = http_peer(told("resp_1", "1"))
    ((request, *events, end),) = asked(run, other.endpoint())

    assert isinstance(request, RequestSent)
    assert [event.KIND for event in events] == ["created", "progress", "progress", "terminal"]
    assert said(events) == "1"
    assert isinstance(events[2], ItemDone)
    body = b"".join(other.event(frame) for frame in answer("resp_1", "1"))
    assert end == ResponseEnded(received_bytes=len(body))


def test_any_cut_of_the_bytes_gives_the_same_answer(run, http_peer):
    """An answer may come byte by byte, with comments in between and `[DONE]` behind."""
    whole = b"".join(http_peer().event(frame) for frame in answer("resp_1", "été"))
    body = b": hello\n\n" + whole + b"data: [DONE]\n\n"
    other = http_peer([("stream", *(body[at : at + 1] for at in range(len(body))))])
    (events,) = asked(run, other.endpoint())

    assert said(events) == "été"
    assert events[-1] == ResponseEnded(received_bytes=len(body))


def test_what_follows_an_answer_does_not_cost_the_connection(run, http_peer):
    """The next turn has the same connection, and nothing of the turn before."""
    frames = [*answer("resp_1", "1"), *answer("resp_x", "x")]
    body = b"".join(http_peer().event(frame) for frame in frames)
    other = http_peer([("stream", body, body, b"data: [DONE]\n\n")], told("resp_2", "2"))
    first, second = asked(run, other.endpoint(), "one", "two")

    assert (said(first), said(second)) == ("1", "2")
    assert [one.connection for one in other.seen] == [1, 1]


def test_a_connection_that_was_let_go_is_not_used_again(run, http_peer):
    """A server that closes after its answer is connected to anew."""
    other = http_peer([*told("resp_1", "1"), ("close",)], told("resp_2", "2"))

    async def main():
        async with Talk(other.endpoint()) as talk:
            await talk.ask("one")
            assert await asyncio.to_thread(other.seen[0].hung_up)
            return await talk.ask("two")

    second = run(main())
    assert said(second) == "2"
    assert (sent(second).reused, other.seen[1].connection) == (False, 2)


def test_bytes_are_those_on_the_wire(run, http_peer):
    """What was sent is the body; what would have been is the body of the whole conversation."""
    other = http_peer(told("resp_1", "été"), told("resp_2", "2"), told("resp_3", "3"))
    turns = asked(run, storing(other), "où?", "two", "three", fields=STORED)

    bodies = [one.body for one in other.seen]
    items = [user("où?"), message("été"), user("two"), message("2"), user("three")]
    whole = [Request(fields=STORED, input=EMPTY.extend(items[:end])).body() for end in (1, 3, 5)]
    assert [sent(turn).sent_bytes for turn in turns] == [len(body) for body in bodies]
    assert [sent(turn).full_bytes for turn in turns] == [len(body) for body in whole]
    assert [sent(turn).wire_bytes for turn in turns] == [None, None, None]
    assert bodies[0] == whole[0]


def test_an_answer_that_is_squeezed_all_the_same_is_read(run, http_peer):
    """Nobody asked for that, since it comes late; what it holds is what counts."""
    body = b"".join(http_peer().event(frame) for frame in answer("resp_1", "1"))
    head = http_peer().HEAD.replace(b"\r\n", b"\r\nContent-Encoding: gzip\r\n", 1)
    other = http_peer([head, http_peer().chunk(gzip.compress(body)), b"0\r\n\r\n"])
    (events,) = asked(run, other.endpoint())

    assert other.seen[0].headers["accept-encoding"] == "identity"
    assert said(events) == "1"
    assert events[-1] == ResponseEnded(received_bytes=len(body))


def test_a_lane_is_not_told_over_http(run, http_peer):
    """A branch is a matter of one's own: the body has no `stream_id`."""
    other = http_peer(told("resp_1", "1"))

    async def main():
        async with Talk(other.endpoint()) as talk:
            return await talk.ask("one", stream_id="idea")

    assert said(run(main())) == "1"
    assert "stream_id" not in other.seen[0].json


def test_turns_run_at_the_same_time(run, http_peer):
    """Two branches have a connection each, and neither waits for the other."""
    other = http_peer(told("resp_1", "1"), told("resp_2", "2"))

    async def main():
        async with Talk(other.endpoint()) as talk:
            request = Request(fields=FIELDS, input=talk.items.extend([user("one")]))
            one, two = talk.transport.stream(request), talk.transport.stream(request)
            begun = [await anext(one), await anext(two)]
            return begun, [[event async for event in rest] for rest in (two, one)]

    begun, rests = run(main())
    assert [event.reused for event in begun] == [False, False]
    assert sorted(map(said, rests)) == ["1", "2"]


# what an endpoint stores


def test_a_stored_response_is_continued_from(run, http_peer):
    """The second body holds what is new and the first response's id."""
    other = http_peer(told("resp_1", "1"), told("resp_2", "2"))
    first, second = asked(run, storing(other), "one", "two", fields=STORED)

    assert prompts(other.seen[1].json) == ["two"]
    assert other.seen[1].json["previous_response_id"] == "resp_1"
    assert (sent(second).sent_items, sent(second).held_items) == (1, 2)
    assert (sent(first).resent, sent(second).resent) == ("new_connection", None)


@pytest.mark.parametrize("stores", [True, False])
def test_nothing_is_continued_from_that_is_not_stored(run, http_peer, stores):
    """It takes both: an endpoint that stores, and a request that says so."""
    other = http_peer(told("resp_1", "1"), told("resp_2", "2"))
    endpoint = having(other.endpoint(), stores=stores)
    _, second = asked(run, endpoint, "one", "two", fields=FIELDS if stores else STORED)

    assert prompts(other.seen[1].json) == ["one", "1", "two"]
    assert sent(second).resent is None


def test_a_response_that_was_not_stored_after_all_is_not_continued_from(run, http_peer):
    """An endpoint that was asked to store may say that it does not."""
    first = completed("resp_1", message("1"), store=False)
    other = http_peer([("stream", first)], told("resp_2", "2"))
    asked(run, storing(other), "one", "two", fields=STORED)

    assert prompts(other.seen[1].json) == ["one", "1", "two"]


def test_a_parent_that_is_gone_costs_one_resend(run, http_peer):
    """The same turn goes out in full, its row says why, and the next goes on from it."""
    other = http_peer(told("resp_1", "1"), NOT_FOUND, told("resp_2", "2"), told("resp_3", "3"))
    _, second, _ = asked(run, storing(other), "one", "two", "three", fields=STORED)

    tries = [event for event in second if isinstance(event, RequestSent)]
    assert [event.attempt for event in tries] == [0, 1]
    assert [event.resent for event in tries] == [None, "evicted"]
    assert prompts(other.seen[2].json) == ["one", "1", "two"]
    assert "previous_response_id" not in other.seen[2].json
    assert said(second) == "2"
    assert other.seen[3].json["previous_response_id"] == "resp_2"


def test_a_parent_that_is_gone_in_a_stream_costs_one_resend(run, http_peer):
    """Some endpoints notice it only when the stream has begun: then the error is flat."""
    gone = {"type": "error", "code": "previous_response_not_found", "message": "no"}
    other = http_peer(told("resp_1", "1"), [("stream", gone)], told("resp_2", "2"))
    _, second = asked(run, storing(other), "one", "two", fields=STORED)

    assert said(second) == "2"
    assert not [event for event in second if isinstance(event, Error)]


def test_a_parent_that_is_gone_is_not_asked_for_again(run, http_peer):
    """Also where the resend came to nothing."""
    other = http_peer(told("resp_1", "1"), NOT_FOUND, refusal(429), told("resp_2", "2"))
    asked(run, storing(other), "one", "two", "three", fields=STORED)

    assert "previous_response_id" not in other.seen[3].json
    assert prompts(other.seen[3].json) == ["one", "1", "two", "three"]


def test_there_is_no_second_resend(run, http_peer):
    """An endpoint that finds nothing missing in a full request is told so to the user."""
    other = http_peer(told("resp_1", "1"), NOT_FOUND, NOT_FOUND)
    _, second = asked(run, storing(other), "one", "two", fields=STORED)

    assert len(other.seen) == 3
    assert second[-2].reason.code == "previous_response_not_found"


def test_an_endpoint_that_diagnoses_is_told_what_to_compare_with(run, http_peer):
    """The response before, whether it is continued from or not."""
    other = http_peer(told("resp_1", "1"), told("resp_2", "2"))
    asked(run, having(other.endpoint(), diagnoses=True), "one", "two")

    first, second = (seen.json for seen in other.seen)
    assert "prompt_cache_options" not in first
    assert second["prompt_cache_options"] == {"comparison_response_id": "resp_1"}
    assert "previous_response_id" not in second


def test_a_model_that_cannot_diagnose_is_not_asked_again(run, http_peer):
    """The turn goes out again without the question, and so do those after it."""
    error = {"code": "unknown_parameter", "message": "no", "param": "prompt_cache_options"}
    no = [("json", 400, {"error": error}, {})]
    other = http_peer(told("resp_1", "1"), no, told("resp_2", "2"), told("resp_3", "3"))
    turns = asked(run, having(other.endpoint(), diagnoses=True), "one", "two", "three")

    assert ["prompt_cache_options" in seen.json for seen in other.seen] == [
        False,
        True,
        False,
        False,
    ]
    assert not any(isinstance(event, Error) for events in turns for event in events)
    assert [event.resent for event in turns[1] if isinstance(event, RequestSent)] == [None, None]


def test_a_failed_turn_leaves_what_is_stored(run, http_peer):
    """A rate limit lets nothing go: the next turn goes on from the same response."""
    other = http_peer(told("resp_1", "1"), refusal(429), told("resp_2", "2"))
    asked(run, storing(other), "one", "two", "three", fields=STORED)

    assert other.seen[2].json["previous_response_id"] == "resp_1"


# how a turn ends


@pytest.mark.parametrize("output", [None, []])
def test_an_output_that_is_not_told_again_is_what_was_done(run, http_peer, output):
    """The terminal response has its output whole, whatever its server left out."""
    *rest, last = answer("resp_1", "1")
    last = {**last, "response": {**last["response"], "output": output}}
    other = http_peer([("stream", *rest, last)])
    (events,) = asked(run, other.endpoint())

    assert events[-2].response.output == [message("1")]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("completed", ResponseCompleted),
        (None, ResponseCompleted),
        ("failed", ResponseFailedEvent),
        ("incomplete", ResponseIncomplete),
    ],
)
def test_an_answer_in_one_piece_is_its_terminal_event(run, http_peer, status, kind):
    """A server that does not stream answers with the response itself."""
    response = {"id": "resp_1", "status": status, "output": [message("1")]}
    other = http_peer([("json", 200, response, {"Content-Type": "application/json; charset=u"})])
    ((_, event, end),) = asked(run, other.endpoint())

    assert type(event) is kind
    assert (event.response.id, event.response.output) == ("resp_1", [message("1")])
    assert end == ResponseEnded(received_bytes=len(json.dumps(response)))


def test_an_error_in_one_piece_is_an_error(run, http_peer):
    """Some servers refuse with status 200."""
    other = http_peer([("json", 200, {"error": {"code": "overloaded", "message": "later"}})])
    ((_, event, _),) = asked(run, other.endpoint())

    assert (event.reason.code, event.reason.message) == ("overloaded", "later")


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "error", "code": "overloaded", "message": "later"},
        {"type": "error", "error": {"code": "overloaded", "message": "later"}},
        b'data: {"error": {"code": "overloaded", "message": "later"}}\n\n',
    ],
    ids=["flat", "nested", "untyped"],
)
def test_an_error_in_a_stream_ends_the_turn(run, http_peer, frame):
    """Flat, nested or with no type: the reason is the same, and the next turn works."""
    other = http_peer([("stream", *BEGUN, frame)], told("resp_2", "2"))
    first, second = asked(run, other.endpoint(), "one", "two")

    assert isinstance(first[-2], Error)
    assert (first[-2].reason.code, first[-2].reason.message) == ("overloaded", "later")
    assert said(second) == "2"


def test_a_failed_response_is_told_as_it_is(run, http_peer):
    """`response.failed` is a terminal event like any other."""
    end = {"type": "response.failed", "response": {"id": "r", "status": "failed"}}
    other = http_peer([("stream", *BEGUN, end)])
    (events,) = asked(run, other.endpoint())

    assert isinstance(events[-2], ResponseFailedEvent)


def test_events_of_unknown_types_pass_through(run, http_peer):
    """They are told whole, and end nothing."""
    new = {"type": "keepalive", "n": 1}
    other = http_peer([("stream", new, *answer("resp_1", "1"))])
    (events,) = asked(run, other.endpoint())

    assert isinstance(events[1], Other)
    assert events[1].frame == new


@pytest.mark.parametrize("status", [400, 403, 404, 405, 409, 429, 500, 503])
def test_a_refusal_is_an_error_event(run, http_peer, status):
    """It holds the status, the reason and when to come back, as an error frame does."""
    reason = {"code": "slow_down", "message": "later", "param": "input", "type": "t"}
    other = http_peer([("json", status, {"error": reason}, {"Retry-After": "7"})], told("r", "2"))
    first, second = asked(run, other.endpoint(), "one", "two")

    (_, error, _) = first
    assert error.status == status
    assert (error.reason.code, error.reason.param) == ("slow_down", "input")
    assert error.reason.headers == {"Retry-After": "7"}
    assert said(second) == "2"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"error": "a plain word"}, "a plain word"),
        ({"error": {"message": 7}}, None),
        ({"detail": "x"}, "HTTP 500"),
        (["x"], "HTTP 500"),
    ],
)
def test_a_refusal_of_another_shape_still_has_a_status(run, http_peer, value, told):
    """What cannot be read of it is left out."""
    other = http_peer([("json", 500, value)])
    ((_, error, _),) = asked(run, other.endpoint())

    assert error.status == 500
    assert error.reason.headers is None
    assert (told or "") in (error.reason.message or "")


def test_a_refusal_that_is_no_json_still_has_a_status(run, http_peer):
    """A gateway's page is not shown."""
    page = b"HTTP/1.1 502 Bad\r\nContent-Type: text/html\r\nContent-Length: 7\r\n\r\n<p>\xff</p"
    other = http_peer([page])
    ((_, error, _),) = asked(run, other.endpoint())

    assert error.status == 502
    assert "gave no reason" in error.reason.message
    assert "<p>" not in error.reason.message


# what is refused before, or for good


def test_a_warm_up_is_not_for_http(run, http_peer):
    """One line says so, and nothing is sent."""
    other = http_peer()

    async def main():
        async with Talk(other.endpoint()) as talk:
            with pytest.raises(UsageError, match="a warm-up needs a WebSocket"):
                await talk.ask("", generate=False)

    run(main())
    assert other.seen == []


def test_a_request_that_is_too_large_is_not_sent(run, http_peer):
    """Both sizes are told, and the request surely did not run."""
    other = http_peer(told("resp_1", "1"))
    size = len(Request(fields=FIELDS, input=EMPTY.extend([user("one")])).body())
    limited = having(other.endpoint(), limits=Limits(frame_bytes=size - 1))
    failure = failed(run, limited, MessageTooBig)

    assert not failure.sent
    assert f"{size:,}" in str(failure)
    assert f"{size - 1:,}" in str(failure)
    assert other.seen == []
    exact = having(other.endpoint(), limits=Limits(frame_bytes=size))
    assert said(asked(run, exact)[0]) == "1"


def test_a_server_may_find_a_request_too_large(run, http_peer):
    """HTTP 413 is what a close with 1009 is over a WebSocket."""
    failure = failed(run, http_peer([("json", 413, {})]).endpoint(), MessageTooBig)

    assert failure.sent


def test_the_key_is_shown_and_only_where_there_is_one(run, http_peer, monkeypatch):
    """No key variable, no Authorization header."""
    monkeypatch.setenv("THE_KEY", "k-123")
    other = http_peer(told("resp_1", "1"), told("resp_2", "2"))
    asked(run, other.endpoint())
    asked(run, other.endpoint(key_env="THE_KEY"))

    without, with_key = (one.headers for one in other.seen)
    assert "authorization" not in without
    assert with_key["authorization"] == "Bearer k-123"


@pytest.mark.parametrize("key_env", ["THE_KEY", None])
def test_a_key_that_is_not_taken(run, http_peer, monkeypatch, key_env):
    """The error names the key's variable, never its value."""
    monkeypatch.setenv("THE_KEY", "k-123")
    other = http_peer(refusal(401, message="bad key k-123"))
    failure = failed(run, other.endpoint(key_env=key_env), AuthenticationFailed)

    assert (key_env or "--key-env") in str(failure)
    assert "k-123" not in str(failure)


def test_a_key_that_cannot_be_sent(run, http_peer, monkeypatch):
    """A key is ASCII; what was pasted beside it is not shown."""
    monkeypatch.setenv("THE_KEY", "clé")
    other = http_peer()
    failure = failed(run, other.endpoint(key_env="THE_KEY"), AuthenticationFailed)

    assert "clé" not in str(failure)
    assert other.seen == []


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_key_never_follows_a_redirect(run, http_peer, monkeypatch, status):
    """A redirect is told with its place, less what may be secret there."""
    monkeypatch.setenv("THE_KEY", "k-123")
    elsewhere = http_peer(told("resp_1", "1"))
    away = http_peer([("json", status, {}, {"Location": f"{elsewhere.url}/there?code=s3"})])
    failure = failed(run, away.endpoint(key_env="THE_KEY"), ConnectionFailed)

    assert f"{elsewhere.url}/there (HTTP {status})" in str(failure)
    assert "s3" not in str(failure)
    assert elsewhere.seen == []


@pytest.mark.parametrize("status", [307, 401])
def test_an_answer_that_nobody_reads_is_let_go(run, http_peer, status):
    """What follows such a head keeps no connection."""
    head = f"HTTP/1.1 {status} No\r\nContent-Length: 9\r\n\r\n".encode()
    other = http_peer([head])

    async def main():
        async with Talk(other.endpoint()) as talk:
            with pytest.raises((ConnectionFailed, AuthenticationFailed)):
                await talk.ask("one")
            return await asyncio.to_thread(other.seen[0].hung_up)

    assert run(main())


@pytest.mark.parametrize("status", [404, 405])
@pytest.mark.parametrize("value", [{"detail": "Not Found"}, {}, {"error": None}, "no"])
def test_nothing_there_speaks_the_responses_api(run, http_peer, status, value):
    """A server that knows no such path is another server."""
    other = http_peer([("json", status, value)])
    failure = failed(run, other.endpoint(), ConnectionFailed)

    assert f"{other.url} speaks the Responses API (HTTP {status})" in str(failure)


def test_a_page_is_no_answer(run, http_peer):
    """A portal that answers everything with a page is told apart."""
    page = b"HTTP/1.1 200 OK\r\nContent-Type: Text/HTML; charset=x\r\nContent-Length: 3\r\n\r\n<p>"
    failure = failed(run, http_peer([page]).endpoint(), ConnectionFailed)

    assert "text/html" in str(failure)


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/v1", "http://a..b/v1", "http://é..:1/v1"])
def test_an_address_where_nothing_answers(run, url, unused_port):
    """The error names the address and what to do; nothing was sent."""
    url = url.format(port=unused_port)
    failure = failed(run, Endpoint.named(url), ConnectionFailed)

    assert url in str(failure)
    assert "%agent connect" in str(failure)
    assert not failure.sent


def test_something_that_does_not_speak_http_answers_there(run, http_peer):
    """A mail server is a failed connection."""
    other = http_peer([b"220 mail.example.org ready\r\n\r\n", ("close",)])
    failure = failed(run, other.endpoint(), ConnectionFailed)

    assert "does not speak HTTP" in str(failure)


def test_a_certificate_that_does_not_hold_is_not_accepted(run, http_peer, certificate):
    """Nothing is sent to a server that cannot say who it is."""
    other = http_peer(told("resp_1", "1"), tls=certificate)
    failure = failed(run, other.endpoint(), ConnectionFailed)

    assert f"the certificate of {other.url} does not hold" in str(failure)
    assert not failure.transient
    assert other.seen == []


def test_a_server_without_tls_is_not_tried_again(run):
    """Where TLS fails it is never left out, and it does not pass."""

    async def main():
        async def refuse(reader, writer):
            await reader.read(1)
            writer.write(b"HTTP/1.1 400 No\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            transport = HttpTransport(Endpoint.named(f"https://127.0.0.1:{port}/v1"))
            try:
                async for _ in transport.stream(Request(fields=FIELDS, input=EMPTY)):
                    pass
            finally:
                await transport.aclose()

    with pytest.raises(ConnectionFailed) as raised:
        run(main())
    assert "no TLS with https://127.0.0.1" in str(raised.value)
    assert not raised.value.transient


def test_loopback_never_goes_through_a_proxy(run, http_peer, monkeypatch, unused_port):
    """A proxy that is set for everything is not asked."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{unused_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    (events,) = asked(run, http_peer(told("resp_1", "1")).endpoint())

    assert said(events) == "1"


def test_any_other_address_does(run, http_peer, monkeypatch):
    """A proxy of the environment is asked for what is not on this machine."""
    proxy = http_peer(told("resp_1", "1"))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
    (events,) = asked(run, Endpoint.named("http://model.invalid/v1"))

    assert said(events) == "1"
    assert proxy.seen[0].line == "POST http://model.invalid/v1/responses HTTP/1.1"


# when the way breaks


@pytest.mark.parametrize(
    "steps",
    [
        [("reset",)],
        [("close",)],
        [b"HTTP/1.1 200 OK\r\nContent-", ("close",)],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", ("reset",)],
        [("stream", *BEGUN)],
        [("stream",)],
        [("stream", b"data: {")],
        [b"HTTP/1.1 200 OK\r\n\r\n", ("close",)],
        [b"HTTP/1.1 204 No\r\n\r\n"],
        [b"HTTP/1.1 500 No\r\nContent-Length: 9\r\n\r\n{", ("close",)],
    ],
    ids=[
        *("reset", "close", "half a head", "no body", "no end", "empty", "half an event"),
        *("nothing", "no content", "half a refusal"),
    ],
)
def test_an_answer_that_breaks_off_is_a_lost_connection(run, http_peer, steps):
    """The request may have run, and it is not sent again; the next turn works."""
    other = http_peer(steps, told("resp_2", "2"))

    async def main():
        async with Talk(other.endpoint()) as talk:
            with pytest.raises(ConnectionLost) as failure:
                await talk.ask("one")
            return failure.value, await talk.ask("two")

    failure, second = run(main())
    assert failure.sent
    assert "run the cell again" in str(failure)
    assert said(second) == "2"
    assert len(other.seen) == 2


def test_the_request_is_told_before_its_answer_begins(run, http_peer):
    """Whoever listens knows what was sent, also where nothing comes back."""
    other = http_peer([])

    async def main():
        async with Talk(other.endpoint()) as talk:
            request = Request(fields=FIELDS, input=talk.items.extend([user("one")]))
            async with contextlib.aclosing(talk.transport.stream(request)) as stream:
                told = await anext(stream)
                assert await asyncio.to_thread(other.heard)
                return told

    assert run(main()).sent_bytes == len(other.seen[0].body)
    assert other.seen[0].hung_up()


@pytest.mark.parametrize(
    ("steps", "seconds"),
    [
        ([], (0.05, 10)),
        ([b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"], (0.05, 10)),
        ([b"HTTP/1.1 200 OK\r\n\r\ndata: {"], (10, 0.05)),
        ([b"HTTP/1.1 200 OK\r\n\r\n: I think\n\n"], (10, 0.05)),
    ],
    ids=["no answer", "no event", "half an event", "a comment"],
)
def test_silence_past_a_deadline(run, http_peer, steps, seconds):
    """The first event has a deadline of its own; any byte is a sign of life."""
    first, idle = seconds
    other = http_peer(steps)
    failure = failed(run, other.endpoint(), NoAnswer, first_event=first, idle=idle)

    assert failure.sent
    assert "silent for 0.05 s" in str(failure)
    assert other.seen[0].hung_up()


@pytest.mark.parametrize(
    "piece",
    [
        b"data: no json\n\n",
        b"data: [1]\n\n",
        b'data: {"n": 1}\n\n',
        b'data: {"type": "response.completed"}\n\n',
        b'data: {"type": "response.output_text.delta", "delta": "\xff"}\n\n',
        b"data: " + b"[" * 5_000 + b"\n\n",
        b'data: {"type": "response.created", "response": {"id": "r"}}\n\n' * 2,
    ],
    ids=["text", "list", "no type", "no response", "no utf-8", "deep", "created twice"],
)
def test_what_is_no_event_breaks_the_protocol(run, http_peer, piece):
    """The turn ends in one line, and its connection is not used again."""
    other = http_peer([("stream", piece)], told("resp_2", "2"))

    async def main():
        async with Talk(other.endpoint()) as talk:
            with pytest.raises(ProtocolError) as failure:
                await talk.ask("one")
            return failure.value, await talk.ask("two")

    failure, second = run(main())
    assert failure.sent
    assert "\n" not in str(failure)
    assert said(second) == "2"


@pytest.mark.parametrize(
    "value",
    [{"id": "r", "status": "queued"}, {"id": "r", "status": "in_progress"}, {}, [], 7, {"id": 7}],
)
def test_an_answer_in_one_piece_that_is_no_response_breaks_the_protocol(run, http_peer, value):
    """One that is not over is not waited for."""
    assert failed(run, http_peer([("json", 200, value)]).endpoint(), ProtocolError).sent


def test_a_response_beyond_all_measure_is_given_up(run, http_peer):
    """No more than 64 MiB are read, however it is cut into events."""
    comment = b": " + b"x" * (2**20 - 3) + b"\n"
    chunk = http_peer().chunk(comment)
    other = http_peer([http_peer().HEAD, *[chunk] * (MAX_RESPONSE // 2**20 + 1)])
    failure = failed(run, other.endpoint(), MessageTooBig)

    assert f"{MAX_RESPONSE:,}" in str(failure)


def test_an_event_beyond_all_measure_is_given_up(run, http_peer):
    """No more than 16 MiB are kept of one."""
    other = http_peer([http_peer().HEAD, *[http_peer().chunk(b"x" * 2**20)] * 17])
    failure = failed(run, other.endpoint(), MessageTooBig)

    assert f"{16 * 2**20:,}" in str(failure)


def test_a_turn_that_is_closed_early_is_given_up(run, http_peer):
    """Its server sees the client go, and the next turn hears nothing of it."""
    begun = [http_peer().HEAD, *(http_peer().chunk(http_peer().event(one)) for one in BEGUN)]
    other = http_peer(begun, told("resp_2", "2"))

    async def main():
        async with Talk(other.endpoint()) as talk:
            request = Request(fields=FIELDS, input=talk.items.extend([user("one")]))
            async with contextlib.aclosing(talk.transport.stream(request)) as stream:
                async for event in stream:
                    if isinstance(event, TextDelta):
                        break
            await asyncio.to_thread(other.seen[0].hung_up)
            return await talk.ask("two")

    assert said(run(main())) == "2"
    assert other.seen[0].hung_up()


def test_a_turn_that_is_cancelled_is_given_up(run, http_peer):
    """Cancelled while it waits for an answer, too."""
    other = http_peer([], told("resp_2", "2"))

    async def main():
        async with Talk(other.endpoint()) as talk:
            request = Request(fields=FIELDS, input=talk.items.extend([user("one")]))
            stream = talk.transport.stream(request)
            await anext(stream)
            waiting = asyncio.create_task(anext(stream))
            assert await asyncio.to_thread(other.heard)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await asyncio.to_thread(other.seen[0].hung_up)
            return await talk.ask("two")

    assert said(run(main())) == "2"


def test_an_answer_that_never_closes_does_not_keep_a_turn(run, http_peer, monkeypatch):
    """Past its terminal event a body is waited for no longer than it takes to be polite."""
    monkeypatch.setattr(reply, "DRAIN_SECONDS", 0.01)
    frames = [http_peer().chunk(http_peer().event(one)) for one in answer("resp_1", "1")]
    other = http_peer([http_peer().HEAD, *frames], told("resp_2", "2"))
    first, second = asked(run, other.endpoint(), "one", "two")

    assert (said(first), said(second)) == ("1", "2")
    assert other.seen[0].hung_up()


# the local server


def test_the_local_server_is_located_at_the_first_turn(run, http_peer):
    """What locating tells is told in the stream, and it is asked for the turn's model."""
    other = http_peer(told("resp_1", "1"), told("resp_2", "2"))
    asked_for = []

    async def locate(notice, *, model):
        asked_for.append(model)
        notice("starting")
        return other.url, "the-token"

    first, second = asked(run, Endpoint.named("local"), "one", "two", locate=locate)

    assert first[0] == Notice(text="starting")
    assert sent(second).reused
    assert asked_for == ["m"]
    assert [one.headers["authorization"] for one in other.seen] == ["Bearer the-token"] * 2


def test_a_local_server_that_has_ended_is_located_again(run, http_peer):
    """Nothing was sent to the one that is gone, so nobody hears of it."""
    old, new = http_peer(told("resp_1", "1")), http_peer(told("resp_2", "2"))
    places = [old, new]

    async def locate(_, *, model):
        return places.pop(0).url, model

    async def main():
        async with Talk(Endpoint.named("local"), locate=locate) as talk:
            first = await talk.ask("one")
            await asyncio.to_thread(old.stop)
            second = await talk.ask("two")
            await asyncio.to_thread(new.stop)
            places.append(old)
            with pytest.raises(ConnectionFailed):
                await talk.ask("three")
            return first, second

    first, second = run(main())
    assert (said(first), said(second)) == ("1", "2")
    assert places == []


def test_a_token_that_is_not_taken_is_asked_for_again(run, http_peer):
    """Another server may have the place of the one that was found."""
    other = http_peer(told("resp_1", "1"), refusal(401), told("resp_2", "2"))
    tokens = ["old", "new"]

    async def locate(_, *, model):
        assert model == "m"
        return other.url, tokens.pop(0)

    async def main():
        async with Talk(Endpoint.named("local"), locate=locate) as talk:
            await talk.ask("one")
            with pytest.raises(AuthenticationFailed):
                await talk.ask("two")
            return await talk.ask("two")

    assert said(run(main())) == "2"
    assert other.seen[2].headers["authorization"] == "Bearer new"


# the embedded server


def test_the_embedded_server_really_holds_what_is_not_sent(run, served):
    """It reads all that was said in the turns before, where it was asked to store."""
    endpoint = having(served([{"text": "a b c", "chunk_chars": 2}, {"text": "d"}]), stores=True)
    first, second = asked(run, endpoint, "one two", "three", fields=STORED)

    assert said(first) == "a b c"
    assert sent(second).held_items == 2
    assert second[-2].response.usage.input_tokens == 6


def test_the_same_conversation_is_told_alike_over_a_websocket(run, served):
    """Event by event, but for the names that a server gives."""
    script = [
        {"text": "one two", "chunk_chars": 3},
        {"tool_calls": [{"name": "f", "arguments": {"x": 1}}]},
        {"error": {"status": 429, "code": "slow_down", "retry_after": 3}},
    ]

    async def turns(transport):
        items, told = EMPTY, []
        for prompt in ("a", "b", "c"):
            items = items.extend([user(prompt)])
            request = Request(fields=FIELDS, input=items)
            events = [event async for event in transport.stream(request)]
            told += [shape(event) for event in events[1:-1]]
            if isinstance(events[-2], TERMINAL):
                output = events[-2].response.output
                done = [output_of(call["call_id"], "7") for call in calls(output)]
                items = items.extend([*output, *done])
        await transport.aclose()
        return told, [shape(item) for item in items]

    def shape(told):
        value = json.loads(msgspec.json.encode(told))
        names = {"id", "item_id", "call_id", "created_at", "previous_response_id", "usage"}
        return without(value, names | {"timings"})

    def without(value, names):
        if isinstance(value, dict):
            return {name: without(one, names) for name, one in value.items() if name not in names}
        return [without(one, names) for one in value] if isinstance(value, list) else value

    by_http, by_socket = (
        run(turns(way(served(script)))) for way in (HttpTransport, WebSocketTransport)
    )
    assert by_http == by_socket
    assert len(by_http[1]) == 6
    assert by_http[0][-1]["status"] == 429


# compaction


COMPACTED = [user("one"), {"type": "compaction", "id": "c", "encrypted_content": "x"}]


def compacted(run, other, endpoint=None, **options):
    async def main():
        async with Talk(endpoint or other.endpoint(), **options) as talk:
            items = EMPTY.extend([user("one"), message("1")])
            return await talk.transport.compact(Request(fields=FIELDS, input=items))

    return run(main())


def test_a_conversation_is_compacted(run, http_peer):
    """Model, instructions and all items go there; other settings do not."""
    other = http_peer([("json", 200, {"object": "response.compaction", "output": COMPACTED})])

    assert compacted(run, other) == COMPACTED
    (heard,) = other.seen
    assert heard.line == "POST /v1/responses/compact HTTP/1.1"
    assert heard.json == {
        "model": "m",
        "instructions": "Be brief.",
        "input": [user("one"), message("1")],
    }


def test_the_path_of_compaction_stands_before_a_query(run, http_peer):
    """An address may end in a query, as Azure's do."""
    other = http_peer([("json", 200, {"output": []})])

    assert compacted(run, other, Endpoint.named(f"{other.url}?api-version=2")) == []
    assert other.seen[0].line == "POST /v1/responses/compact?api-version=2 HTTP/1.1"


@pytest.mark.parametrize("status", [404, 405, 501])
def test_an_endpoint_that_cannot_compact(run, http_peer, status):
    """One line says so, with the endpoint's own words where it has any."""
    other = http_peer([("json", status, {})], refusal(status, message="Invalid\nURL"))
    endpoint = other.endpoint()

    with pytest.raises(UsageError, match=rf"{endpoint.name} cannot compact \(HTTP {status}\)"):
        compacted(run, other)
    with pytest.raises(UsageError, match=rf"HTTP {status}: Invalid URL\)"):
        compacted(run, other)


def test_a_compaction_that_is_refused(run, http_peer):
    """It fails as a turn does."""
    reason = {"code": 7, "message": "too\nlong", "param": "input"}
    with pytest.raises(ResponseFailed, match="too long") as failure:
        compacted(run, http_peer([("json", 400, {"error": reason})]))

    assert (failure.value.status, failure.value.code) == (400, "7")
    assert failure.value.param == "input"


@pytest.mark.parametrize("value", [{}, [], {"output": None}, {"output": [7]}])
def test_a_compaction_of_another_shape_breaks_the_protocol(run, http_peer, value):
    """What are no items never become a conversation."""
    with pytest.raises(ProtocolError):
        compacted(run, http_peer([("json", 200, value)]))


def test_a_compaction_may_take_as_long_as_silence_may(run, http_peer):
    """It is no stream: nothing comes of it until it is done."""
    other = http_peer([])

    with pytest.raises(NoAnswer, match=r"0\.05 s"):
        compacted(run, other, first_event=10, idle=0.05)


# what it is


def test_it_says_what_it_was_used_for(run, http_peer):
    """One line, before and after."""
    other = http_peer(told("resp_1", "1"))

    async def main():
        async with Talk(other.endpoint()) as talk:
            before = talk.transport.describe()
            await talk.ask("one")
            return before, talk.transport.describe()

    assert run(main()) == ("over HTTP (0 turns)", "over HTTP (1 turns)")


def test_it_can_be_used_again_after_it_was_closed(run, http_peer):
    """A closed transport connects anew, and closing twice is no matter."""
    other = http_peer(told("resp_1", "1"), told("resp_2", "2"))

    async def main():
        async with Talk(other.endpoint()) as talk:
            await talk.transport.aclose()
            await talk.ask("one")
            await talk.transport.aclose()
            await talk.transport.aclose()
            return await talk.ask("two")

    assert said(run(main())) == "2"
    assert [one.connection for one in other.seen] == [1, 2]


def test_a_transport_that_was_made_has_loaded_nothing():
    """httpx2 is loaded when the first request goes over HTTP, not before."""
    source = """
import sys
from ipy_agent.endpoints import Endpoint
from ipy_agent.transport.http import HttpTransport
from ipy_agent.transport.websocket import WebSocketTransport
HttpTransport(Endpoint.named("openai"))
sys.exit("httpx2" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == 0
