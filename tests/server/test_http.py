"""Responses over HTTP: over a real socket, with a client that does not know our code."""

from __future__ import annotations

import asyncio
import json

import httpx2
import pytest

from ipy_agent.server.compaction import summary_of
from ipy_agent.server.engine import HangUp, TextPiece
from ipy_agent.server.gate import MAX_BODY
from ipy_agent.server.responses import SUMMARY_TOKENS
from ipy_agent.server.scripted import ScriptedEngine

CUSTOM = [{"type": "custom", "name": "shell"}]


class Caller:
    """An HTTP client of a server."""

    def __init__(self, served, client):
        self.served = served
        self.client = client

    async def post(self, body, path="/responses", **headers):
        return await self.client.post(path, json=body, headers=headers)

    async def stream(self, body):
        """Return the events of a stream, each with the name before it."""
        async with self.client.stream("POST", "/responses", json={**body, "stream": True}) as got:
            assert got.headers["content-type"] == "text/event-stream; charset=utf-8"
            return events(await got.aread())

    async def turn(self, client, said, **more):
        """Return the events of a turn over WebSocket."""
        await client.send(json.dumps({"type": "response.create", "input": said, **more}))
        told = [json.loads(await client.recv())]
        while told[-1]["type"] not in ("response.completed", "error"):
            told.append(json.loads(await client.recv()))
        return told


def events(body):
    """Return what a stream of events holds; each part has exactly the two lines."""
    *parts, rest = body.decode().split("\n\n")
    assert rest == ""
    told = []
    for part in parts:
        name, data = part.split("\n")
        told.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {told[-1]['type']}"
    return told


@pytest.fixture
def calling(listening, run):
    """Return a function that serves an engine and runs a coroutine with its caller."""

    def call(engine, work, **options):
        async def main():
            async with listening(engine, **options) as served:
                url = f"http://127.0.0.1:{served.port}/v1"
                async with httpx2.AsyncClient(
                    base_url=url, headers=served.headers, trust_env=False, timeout=20
                ) as client:
                    return await work(Caller(served, client))

        return run(main())

    return call


def plain(told):
    """Return events without what is each response's own."""
    said = json.dumps(told)
    name = told[0]["response"]["id"].removeprefix("resp_")
    said = said.replace(name, "NAME")
    born = json.dumps(told[0]["response"]["created_at"])
    return json.loads(said.replace(born, "0"))


ENTRIES = [
    {"text": "Hello there", "chunk_chars": 4},
    {"tool_calls": [{"name": "f", "arguments": {"a": 1}}], "text": "so:"},
    {"tool_calls": [{"name": "shell", "arguments": "ls -l"}]},
    {"text": "half", "error": {"status": 500, "code": "broken"}},
]


@pytest.mark.parametrize("entry", ENTRIES)
def test_each_way_tells_the_same(calling, entry):
    """WebSocket, a stream over HTTP and one JSON object hold the same response."""

    async def work(caller):
        asked = {"input": "hi", "model": "m", "tools": CUSTOM, "store": False}
        streamed = await caller.stream(asked)
        whole = (await caller.post(asked)).json()
        async with caller.served.connect() as client:
            await client.send(json.dumps({"type": "response.create", **asked}))
            told = [json.loads(await client.recv()) for _ in streamed]
        return told, streamed, whole

    told, streamed, whole = calling(ScriptedEngine([entry] * 3), work)

    assert plain(streamed) == plain(told)
    assert not any("stream_id" in event for event in streamed)
    (end,) = plain(streamed[-1:])
    assert plain([{"response": whole}])[0]["response"] == end["response"]


def test_a_conversation_goes_on_from_the_store(calling):
    """What was stored is continued from, over HTTP and from WebSocket to HTTP and back."""

    async def work(caller):
        first = (await caller.post({"input": "one"})).json()
        second = (await caller.post({"input": "two", "previous_response_id": first["id"]})).json()
        async with caller.served.connect() as client:
            third = (await caller.turn(client, "3", previous_response_id=second["id"]))[-1]
        name = third["response"]["id"]
        return (
            first,
            second,
            (await caller.post({"input": "4", "previous_response_id": name})).json(),
        )

    first, second, fourth = calling(ScriptedEngine(), work)

    assert first["store"] is second["store"] is True
    assert second["previous_response_id"] == first["id"]
    assert [each["usage"]["input_tokens"] for each in (first, second, fourth)] == [1, 3, 7]
    assert fourth["usage"]["input_tokens_details"]["cached_tokens"] == 0


def test_a_stored_response_can_be_fetched(calling):
    """It is the very object that was told last, whichever way it was made."""

    async def work(caller):
        made = (await caller.post({"input": "hi"})).json()
        async with caller.served.connect() as client:
            told = (await caller.turn(client, "hi", stream_id="a"))[-1]["response"]
        fetched = [(await caller.client.get(f"/responses/{each['id']}")) for each in (made, told)]
        return made, told, [answer.json() for answer in fetched]

    made, told, fetched = calling(ScriptedEngine(), work)

    assert fetched == [made, told]


def test_what_was_not_to_be_stored_is_not(calling):
    """It says so, cannot be fetched, and is not continued from."""

    async def work(caller):
        made = (await caller.post({"input": "hi", "store": False})).json()
        fetched = await caller.client.get(f"/responses/{made['id']}")
        more = await caller.post({"input": "hi", "previous_response_id": made["id"]})
        return made, fetched, more

    made, fetched, more = calling(ScriptedEngine(), work)

    assert made["store"] is False
    assert fetched.status_code == 404
    assert fetched.json()["error"] == {
        "message": f"Response with id '{made['id']}' not found.",
        "type": "not_found_error",
        "param": None,
        "code": "not_found",
    }
    assert more.status_code == 400
    assert more.json()["error"] == {
        "message": f"Previous response with id '{made['id']}' not found.",
        "type": "invalid_request_error",
        "param": "previous_response_id",
        "code": "previous_response_not_found",
    }


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_is_the_answers_status(calling, stream):
    """A failure before the response began has no stream; what is known of waiting is a header."""
    error = {"status": 429, "code": "slow", "message": "wait", "retry_after": 2}

    async def work(caller):
        return await caller.post({"input": "hi", "stream": stream})

    answer = calling(ScriptedEngine([{"error": error}]), work)

    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert answer.json()["error"]["code"] == "slow"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"[]", 400, "invalid_json"),
        (b'"hi"', 400, "invalid_json"),
        (b'{"input":5}', 400, "invalid_json"),
        (b'{"previous_response_id":5}', 400, "invalid_json"),
        (b"\xff", 400, "invalid_json"),
        (b"{}", 400, "missing_input"),
        (b'{"input":[]}', 400, "missing_input"),
        (b" " * (MAX_BODY + 1), 413, "body_too_large"),
    ],
)
@pytest.mark.parametrize("path", ["/responses", "/responses/compact"])
def test_a_body_that_cannot_be_answered_is_refused(calling, path, body, status, code):
    """Nothing that can be posted is more than a bad request."""

    async def work(caller):
        kind = {"content-type": "application/json"}
        return await caller.client.post(path, content=body, headers=kind)

    answer = calling(ScriptedEngine(), work)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_fields_that_mean_nothing_here_are_ignored(calling):
    """A lane, a warm-up, a background and whatever nobody knows: the answer is an answer."""

    async def work(caller):
        odd = {"stream_id": "a b", "generate": False, "background": True, "never_heard_of": {}}
        return (await caller.post({"input": "hi", **odd})).json()

    answer = calling(ScriptedEngine(), work)

    assert answer["status"] == "completed"
    assert answer["output"][0]["content"][0]["text"] == "hi"


class Endless(ScriptedEngine):
    """Never ends its turn, and tells who has left."""

    def __init__(self):
        super().__init__()
        self.began, self.left = asyncio.Event(), asyncio.Event()
        self.stopped = False

    async def generate(self, job, seat):  # noqa: ARG002
        self.began.set()
        try:
            yield TextPiece("")
            await asyncio.Event().wait()
        finally:
            self.stopped = True

    async def leave(self, seat):  # noqa: ARG002
        assert self.stopped, "a seat is given back when nothing runs on it any more"
        self.left.set()


BEGUN = ["response.created", "response.in_progress"]
WAYS = [
    ("/responses", {"input": "hi"}),
    ("/responses", {"input": "hi", "stream": True}),
    ("/responses/compact", {"input": "hi"}),
]


@pytest.mark.parametrize(("path", "body"), WAYS)
def test_a_client_that_goes_stops_what_runs_for_it(calling, path, body):
    """A silent generation too: nobody waits until there is something to send."""
    engine = Endless()

    async def work(caller):
        asking = asyncio.create_task(caller.post(body, path))
        await engine.began.wait()
        asking.cancel()
        await engine.left.wait()

    calling(engine, work)


@pytest.mark.parametrize(("path", "body"), WAYS)
def test_a_server_that_ends_lets_go_of_what_runs(calling, caplog, path, body):
    """What has not begun hears 503, a stream breaks off, and nothing is left or logged."""
    engine = Endless()

    async def work(caller):
        asking = asyncio.create_task(caller.post(body, path))
        await engine.began.wait()
        caller.served.server.should_exit = True
        return await asking

    answer = calling(engine, work)

    assert engine.left.is_set()
    assert caplog.text == ""
    if body.get("stream"):
        assert [told["type"] for told in events(answer.content)] == BEGUN
    else:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")


@pytest.mark.parametrize("begun", [False, True])
def test_what_nobody_expected_ends_the_turn(calling, watched, caplog, begun):
    """A fault inside the engine is a failed response, and a trace in the log."""

    class Faulty(watched):
        async def generate(self, job, seat):  # noqa: ARG002
            if begun:
                yield TextPiece("a")
            raise KeyError("odd")

    async def work(caller):
        return [await caller.post({"input": "hi"}, path) for path, _ in WAYS[1:]]

    made, compacted = calling(Faulty(), work)

    assert made.status_code == (200 if begun else 500)
    assert made.json()["error"]["code"] == "server_error"
    assert compacted.status_code == 500
    assert "KeyError" in compacted.json()["error"]["message"]
    assert "a turn failed" in caplog.text


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [(*way, status) for way, status in zip(WAYS, (500, 200, 500), strict=True)],
)
def test_an_order_to_hang_up_breaks_the_answer_off(calling, watched, path, body, status):
    """A stream ends without a terminal event; where nothing was said the status tells it."""

    class Breaking(watched):
        async def generate(self, job, seat):  # noqa: ARG002
            yield TextPiece("a")
            raise HangUp(1011)

    async def work(caller):
        return await caller.post(body, path)

    answer = calling(Breaking(), work)

    assert answer.status_code == status
    if status == 200:
        assert events(answer.content)[-1]["type"] == "response.output_text.delta"
    else:
        assert answer.json()["error"]["code"] == "server_error"


def test_seats_are_given_back(calling, watched):
    """Each request sits for itself, and leaves."""
    engine = watched()

    async def work(caller):
        for _ in range(2):
            await caller.post({"input": "hi"})

    calling(engine, work)

    assert len(set(engine.seats)) == 2
    assert engine.left == engine.seats


def test_a_compaction_is_what_the_user_said_and_a_summary(calling):
    """The user's messages stay as they are; everything else is in one item that continues it."""
    message = {"role": "user", "content": "find it", "id": "own"}
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "42"}

    async def work(caller):
        first = (await caller.post({"input": [message, call, output]})).json()
        asked = {"model": "m", "previous_response_id": first["id"], "input": "and now?"}
        done = await caller.post(asked, "/responses/compact")
        after = await caller.post(
            {"input": [*done.json()["output"], {"role": "user", "content": "go"}]}
        )
        return done.json(), after.json()

    done, after = calling(ScriptedEngine([{"text": "It is."}, {"text": " It was 42. "}]), work)

    assert done["object"] == "response.compaction"
    assert done["id"].startswith("cmp_")
    assert isinstance(done["created_at"], int)
    assert done["usage"]["output_tokens"] == 3
    assert [item.get("content") for item in done["output"][:-1]] == [
        [{"type": "input_text", "text": "find it"}],
        [{"type": "input_text", "text": "and now?"}],
    ]
    assert done["output"][0]["id"] == message["id"]
    assert summary_of(done["output"][-1]) == "It was 42."
    assert after["status"] == "completed"


def test_a_compaction_offers_no_tools(calling, watched):
    """The engine is asked for a short summary, with the same model and instructions."""
    engine = watched()

    async def work(caller):
        asked = {"model": "m", "instructions": "be brief", "tools": CUSTOM, "input": "hi"}
        return await caller.post(asked, "/responses/compact")

    answer = calling(engine, work)

    (job,) = engine.jobs
    told = {"model": "m", "instructions": "be brief", "max_output_tokens": SUMMARY_TOKENS}
    assert job.fields.values == told
    assert len(job.input) == 2
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "compaction_failed"


def test_a_compaction_of_open_calls_is_refused(calling):
    """As for a response: a call has its output first."""

    async def work(caller):
        call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
        return await caller.post({"input": [call]}, "/responses/compact")

    answer = calling(ScriptedEngine(), work)

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "missing_tool_output")
