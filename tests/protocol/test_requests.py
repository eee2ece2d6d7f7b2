"""A request is a frame on the wire, and the same request again at the other end."""

from __future__ import annotations

import contextlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipy_agent.protocol.events import decode
from ipy_agent.protocol.items import EMPTY, user
from ipy_agent.protocol.requests import Fields, Request

TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS | st.floats(-1e9, 1e9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
OURS = {"type", "input", "previous_response_id", "generate", "stream_id"}
REQUESTS = st.builds(
    Request,
    fields=st.dictionaries(TEXTS.filter(lambda name: name not in OURS), JSON, max_size=4).map(
        Fields
    ),
    input=st.lists(st.dictionaries(TEXTS, JSON, max_size=3), max_size=4).map(EMPTY.extend),
    previous_response_id=st.none() | TEXTS,
    generate=st.booleans(),
    stream_id=st.none() | TEXTS,
)


@given(REQUESTS)
def test_a_request_travels_unchanged(request):
    """What a server parses is what its client framed, and the size is known beforehand."""
    frame = request.frame()

    assert Request.parse(frame) == request
    assert Request.parse(frame.decode()) == request
    assert Request.parse(json.loads(frame)) == request
    assert request.size() == len(frame)
    assert json.loads(frame)["type"] == "response.create"


def test_a_plain_request_holds_nothing_that_was_not_set():
    """No nulls, no `generate`, no lane: as little as the endpoint needs."""
    request = Request(fields=Fields({"model": "m"}), input=EMPTY.extend([user("hi")]))

    assert json.loads(request.frame()) == {
        "type": "response.create",
        "model": "m",
        "input": [user("hi")],
    }


def test_what_is_shared_is_nobodys_business_on_the_wire():
    """A beginning that other requests have too changes nothing of a frame, a body or a size."""
    items = EMPTY.extend([user("all"), user("one")])
    alone = Request(fields=Fields({"model": "m"}), input=items)
    shared = Request(fields=Fields({"model": "m"}), input=items, shared=items.back(1))

    assert shared.frame() == alone.frame()
    assert shared.body() == alone.body()
    assert shared.size() == alone.size()


def test_a_warm_up_says_so():
    """A warm-up on a lane tells all three of the members that only WebSocket has."""
    request = Request(
        fields=Fields({}), generate=False, stream_id="a", previous_response_id="resp_1"
    )

    assert json.loads(request.frame()) == {
        "type": "response.create",
        "stream_id": "a",
        "generate": False,
        "previous_response_id": "resp_1",
        "input": [],
    }


@pytest.mark.parametrize(
    ("said", "items"),
    [
        ("hi", [{"type": "message", "role": "user", "content": "hi"}]),
        ([user("hi")], [user("hi")]),
        ([], []),
        (None, []),
    ],
)
def test_input_is_a_text_a_list_or_nothing(said, items):
    """Whatever form the input has, a request holds items."""
    assert list(Request.parse({"input": said}).input) == items
    assert list(Request.parse({}).input) == []


def test_members_that_are_not_ours_are_settings():
    """What real clients add, `stream: true` for one, is kept and does no harm."""
    request = Request.parse('{"type":"response.create","stream":true,"client_metadata":{"a":1}}')

    assert request.fields.values == {"stream": True, "client_metadata": {"a": 1}}
    assert request.generate


def test_null_is_as_good_as_nothing():
    """A client that says null for what it does not set asks for the usual."""
    request = Request.parse(dict.fromkeys(OURS))

    assert request == Request(fields=Fields({}))


def test_parsing_leaves_the_body_as_it_was():
    """The caller of `parse` keeps what he handed over."""
    body = {"type": "response.create", "input": "hi"}
    Request.parse(body)

    assert body == {"type": "response.create", "input": "hi"}


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "[]",
        "null",
        '{"input":7}',
        '{"input":["text"]}',
        '{"input":[[]]}',
        '{"input":{}}',
        '{"previous_response_id":7}',
        '{"generate":"no"}',
        '{"stream_id":7}',
        b'{"input":"\xff"}',
        '{"input":"\ud800"}',
        '{"input":[{"a":' + "[" * 100_000 + "]" * 100_000 + "}]}",
    ],
    ids=lambda frame: repr(frame[:60]),
)
def test_what_is_no_request_is_a_decode_error(frame):
    """A server needs one handler for whatever a client sends."""
    with pytest.raises(msgspec.DecodeError):
        Request.parse(frame)


@given(st.binary(max_size=40) | st.text(max_size=40))
def test_noise_is_read_or_a_decode_error(noise):
    """Random bytes and texts raise nothing that a server has not thought of."""
    with contextlib.suppress(msgspec.DecodeError):
        Request.parse(noise)


@given(st.integers(100, 1_100))
def test_deep_nesting_is_read_or_refused(depth):
    """Between what is fine and what is too deep there is no third way out."""
    nested = "[" * depth + "]" * depth
    for read, frame in (
        (decode, f'{{"type":"keepalive","value":{nested}}}'),
        (Request.parse, f'{{"input":[{{"value":{nested}}}]}}'),
    ):
        try:
            read(frame)
        except msgspec.DecodeError:
            assert depth > 100


def test_fields_are_equal_when_they_would_be_sent_alike():
    """The same members in another order are other bytes, which an endpoint's cache would miss."""
    fields = Fields({"model": "m", "tools": []})

    assert fields == Fields({"model": "m", "tools": []})
    assert hash(fields) == hash(Fields({"model": "m", "tools": []}))
    assert fields != Fields({"tools": [], "model": "m"})
    assert fields != Fields({"model": "m"})
    assert fields != {"model": "m", "tools": []}
    assert repr(fields) == "Fields(model, tools)"


def test_fields_are_encoded_once():
    """Instructions and tools travel with every turn and become JSON a single time."""
    fields = Fields({"instructions": "long"})
    first = Request(fields=fields).frame()
    fields.values["instructions"] = "not looked at any more"

    assert Request(fields=fields).frame() == first
    assert fields.encoded is fields.encoded
