"""OpenAI's own client over HTTP: created, streamed, retrieved, compacted, parsed, refused."""

from __future__ import annotations

import openai
import pydantic
import pytest

MODEL = "scripted"
CALL = {"tool_calls": [{"name": "add", "arguments": {"x": 1, "y": 2}}]}
ADD = {
    "type": "function",
    "name": "add",
    "parameters": {
        "type": "object",
        "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
    },
}


class Point(pydantic.BaseModel):
    x: int
    y: int


def test_a_response_in_one_piece(guest):
    """Text, usage, status and what was asked for stand in the SDK's own object."""
    response = guest([{"text": "Hello there"}]).responses.create(model=MODEL, input="hi you")

    assert response.output_text == "Hello there"
    assert (response.status, response.model, response.object) == ("completed", MODEL, "response")
    assert response.usage.input_tokens == 2
    assert response.usage.output_tokens == 2
    assert response.usage.total_tokens == 4
    assert response.error is None


def test_a_stream_says_what_the_whole_response_says(guest):
    """The pieces add up to the text, and the last event holds the response."""
    client = guest([{"text": "Hello there", "chunk_chars": 4}])
    with client.responses.create(model=MODEL, input="hi", stream=True) as stream:
        events = list(stream)

    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == events[-1].response.output_text == "Hello there"
    assert len(deltas) == 3
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.completed"


def test_the_streaming_helper_gives_the_final_response(guest):
    """The SDK puts snapshots together from our deltas, of a text and of a call's arguments."""
    client = guest([{"text": "so", "chunk_chars": 1, **CALL}])
    grown = ("response.output_text.delta", "response.function_call_arguments.delta")
    with client.responses.stream(model=MODEL, input="1 + 2?", tools=[ADD]) as stream:
        seen = [event.snapshot for event in stream if event.type in grown]
        final = stream.get_final_response()

    assert seen[:2] == ["s", "so"]
    assert seen[-1] == '{"x":1,"y":2}'
    assert final.output_text == "so"
    assert final.output[1].name == "add"


def test_what_was_stored_can_be_retrieved_and_continued(guest):
    """By its id, and nothing is there of what was not to be stored."""
    client = guest([{"text": "one"}, {"text": "two"}, {"text": "three"}])
    first = client.responses.create(model=MODEL, input="a")
    second = client.responses.create(model=MODEL, input="b", previous_response_id=first.id)
    unstored = client.responses.create(model=MODEL, input="c", store=False)

    assert client.responses.retrieve(first.id).output_text == "one"
    assert client.responses.retrieve(second.id).previous_response_id == first.id
    assert second.usage.input_tokens == 3
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.retrieve(unstored.id)
    assert caught.value.body["message"] == f"Response with id '{unstored.id}' not found."


def test_a_tool_loop_by_id_and_by_full_input(guest):
    """The call's output continues the stored response, or follows the SDK's own items."""
    client = guest([CALL, {"text": "by id"}, CALL, {"text": "in full"}])
    for store in (True, False):
        asked = client.responses.create(model=MODEL, input="1 + 2?", tools=[ADD], store=store)
        (call,) = asked.output
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "3"}
        whole = [{"role": "user", "content": "1 + 2?"}, *asked.output, output]
        end = client.responses.create(
            model=MODEL,
            input=[output] if store else whole,
            previous_response_id=asked.id if store else None,
            tools=[ADD],
            store=store,
        )

        assert (call.type, call.name, call.arguments) == ("function_call", "add", '{"x":1,"y":2}')
        assert end.output_text == ("by id" if store else "in full")


def test_a_custom_tool_is_called_with_a_text(guest):
    """Its call holds an input and no JSON, streamed as such, and takes its own kind of output."""
    call = {"tool_calls": [{"name": "shell", "arguments": "ls -l"}], "chunk_chars": 3}
    client = guest([call, {"text": "two files"}])
    shell = {"type": "custom", "name": "shell"}
    with client.responses.stream(model=MODEL, input="list", tools=[shell]) as stream:
        kinds = {event.type for event in stream}
        asked = stream.get_final_response()
    (called,) = asked.output
    output = {"type": "custom_tool_call_output", "call_id": called.call_id, "output": "a b"}
    end = client.responses.create(
        model=MODEL, input=[output], previous_response_id=asked.id, tools=[shell]
    )

    assert (called.type, called.name, called.input) == ("custom_tool_call", "shell", "ls -l")
    assert "response.custom_tool_call_input.delta" in kinds
    assert end.output_text == "two files"


# To the SDK every message of an output is the assistant's: it warns of the user's own.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")
def test_a_conversation_goes_on_from_its_compaction(guest):
    """What it returns is sent as the input of a new conversation, as the SDK says to do."""
    client = guest([{"text": "one"}, {"text": "a summary"}, {"text": "on"}])
    first = client.responses.create(model=MODEL, input="begin")
    small = client.responses.compact(model=MODEL, previous_response_id=first.id)
    after = client.responses.create(
        model=MODEL, input=[*small.output, {"role": "user", "content": "and now"}]
    )

    assert small.object == "response.compaction"
    assert [item.type for item in small.output] == ["message", "compaction"]
    assert small.usage.output_tokens == 2
    assert after.output_text == "on"


def test_a_message_in_a_compaction_has_parts(guest):
    """Asked as a plain text, it comes back as the API tells messages: a list of parts."""
    client = guest([{"text": "a summary"}])
    said = client.responses.with_raw_response.compact(model=MODEL, input="begin")
    message, _ = said.http_response.json()["output"]
    assert message["content"] == [{"type": "input_text", "text": "begin"}]


def test_an_answer_of_a_type_is_parsed(guest):
    """A text that is JSON becomes the pydantic model that was asked for."""
    client = guest([{"text": '{"x": 1, "y": 2}'}])
    parsed = client.responses.parse(model=MODEL, input="where?", text_format=Point)
    assert parsed.output_parsed == Point(x=1, y=2)


def test_a_failure_in_the_middle_of_a_stream_is_the_responses_own(guest):
    """What has begun ends with `response.failed`; in one piece the response says it failed."""
    half = {"text": "half", "error": {"status": 500, "message": "it broke"}}
    client = guest([half, half])
    with client.responses.create(model=MODEL, input="x", stream=True) as stream:
        *_, last = stream
    whole = client.responses.create(model=MODEL, input="x")

    assert last.type == "response.failed"
    for response in (last.response, whole):
        assert (response.status, response.error.message) == ("failed", "it broke")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (429, openai.RateLimitError),
        (503, openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_refusal_is_the_sdks_own_exception(guest, status, kind, streamed):
    """Its class follows the status, its code and message are those of the refusal."""
    client = guest([{"error": {"status": status, "code": "a_code", "message": "no"}}])
    with pytest.raises(kind) as caught:
        client.responses.create(model=MODEL, input="x", stream=streamed)
    assert (caught.value.status_code, caught.value.code) == (status, "a_code")
    assert caught.value.body["message"] == "no"


def test_an_id_that_is_not_held_and_a_call_without_its_output(guest):
    """The documented refusals, with the field that is to blame."""
    client = guest([CALL])
    with pytest.raises(openai.BadRequestError) as gone:
        client.responses.create(model=MODEL, input="x", previous_response_id="resp_gone")
    asked = client.responses.create(model=MODEL, input="1 + 2?", tools=[ADD])
    with pytest.raises(openai.BadRequestError) as open_call:
        client.responses.create(model=MODEL, input="well?", previous_response_id=asked.id)

    assert gone.value.code == "previous_response_not_found"
    assert gone.value.param == "previous_response_id"
    assert (open_call.value.code, open_call.value.param) == ("missing_tool_output", "input")


def test_the_sdk_waits_as_long_as_it_is_told_and_asks_again(guest):
    """A 429 has its Retry-After as a header: the SDK's own retry finds it and succeeds."""
    limit = {"error": {"status": 429, "code": "rate_limit_exceeded", "retry_after": 0.01}}
    client = guest([limit, {"text": "now"}], retries=1)
    assert client.responses.create(model=MODEL, input="x").output_text == "now"

    client = guest([limit])
    with pytest.raises(openai.RateLimitError) as caught:
        client.responses.create(model=MODEL, input="x")
    assert caught.value.response.headers["retry-after"] == "0.01"


def test_a_wrong_token_is_an_authentication_error(guest):
    """Whatever is asked for."""
    client = guest(key="wrong")
    for ask in (lambda: client.responses.create(model=MODEL, input="x"), client.models.list):
        with pytest.raises(openai.AuthenticationError):
            ask()


def test_the_models_are_listed(guest):
    """So that a client can offer them."""
    assert [model.id for model in guest().models.list()] == [MODEL]


def test_the_async_client_gets_the_same(guest, run):
    """In one piece, and streamed."""
    client = guest([{"text": "one"}, {"text": "two"}], kind=openai.AsyncOpenAI)

    async def both():
        async with client:
            first = await client.responses.create(model=MODEL, input="a")
            async with client.responses.stream(
                model=MODEL, input="b", previous_response_id=first.id
            ) as stream:
                return first, await stream.get_final_response()

    first, second = run(both())
    assert (first.output_text, second.output_text) == ("one", "two")
    assert second.usage.input_tokens == 3
