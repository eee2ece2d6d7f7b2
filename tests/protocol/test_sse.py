"""Events in a body of bytes, however it is cut and whatever ends its lines."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipy_agent.protocol.sse import Parser, encode

BODY = (
    "\ufeffdata: begun\r\n\r\n: hello\r\n\r\n"
    'event: response.created\r\ndata: {"type":"é"}\r\n\r\n'
    "id: 7\rretry: 10\rdata:bare\r\r"
    "data: one\ndata: two\ndata\n\n"
    "data: [DONE]\n\n"
    "event: nothing\n\ndata:\n\n"
    "unheard: of\ndata:  kept\n\n"
    "data: cut off\n"
).encode()
EVENTS = [b"begun", '{"type":"é"}'.encode(), b"bare", b"one\ntwo\n", b" kept"]


def read(*chunks, **options):
    parser = Parser(**options)
    return [data for chunk in chunks for data in parser.feed(chunk)]


def test_a_body_is_read_as_the_format_says():
    """Comments, other fields, `[DONE]` and what holds nothing or has no end are passed over."""
    assert read(BODY) == EVENTS


def test_a_body_may_come_byte_by_byte():
    """No cut is too small, nor is one of no bytes at all."""
    pieces = [BODY[at : at + 1] for at in range(len(BODY))]

    assert read(*pieces) == EVENTS
    assert read(*itertools.chain.from_iterable((piece, b"") for piece in pieces)) == EVENTS


@given(st.lists(st.integers(0, len(BODY))))
def test_any_cut_gives_the_same_events(places):
    """Where a body is cut never shows."""
    edges = sorted({0, len(BODY), *places})

    assert read(*(BODY[a:b] for a, b in itertools.pairwise(edges))) == EVENTS


_LINES = st.lists(
    st.sampled_from([b"data: a", b"data:", b"data", b":", b"event: x", b"data: \xc3\xa9", b""])
)
_ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])


@given(st.lists(st.tuples(_LINES, _ENDS)), st.data())
def test_no_mixture_of_line_ends_depends_on_the_cut(parts, data):
    """Returns and line feeds that are parted from each other end the same lines."""
    body = b"".join(end.join([*lines, b"", b""]) for lines, end in parts)
    places = data.draw(st.lists(st.integers(0, len(body))))
    edges = sorted({0, len(body), *places})

    assert read(*(body[a:b] for a, b in itertools.pairwise(edges))) == read(body)


def test_an_event_is_told_as_soon_as_it_is_whole():
    """Nobody waits for the line feed behind a return."""
    parser = Parser()

    assert parser.feed(b"data: a\r\n\r") == [b"a"]
    assert parser.feed(b"\ndata: b\r\n\r\n") == [b"b"]


@pytest.mark.parametrize(
    "body",
    [
        b"data: 4567890123",
        b"data: 456789012\n",
        b"data: 45\ndata: 45\n",
        b"data\ndata\ndata\nda",
        b":234567890123456",
    ],
    ids=["no end", "a line", "lines", "empty lines", "a comment"],
)
def test_a_larger_event_is_refused_at_any_cut(body):
    """One of as many bytes as the limit is taken, and one of more is not."""
    limit = len(body.rstrip(b"\n")) - 1

    for cut in (1, 2, len(body)):
        pieces = [body[at : at + cut] for at in range(0, len(body), cut)]
        with pytest.raises(ValueError, match=f"more than {limit} bytes"):
            read(*pieces, limit=limit)
        assert read(*pieces, limit=len(body)) == []


def test_the_limit_is_that_of_one_event():
    """Many events, comments and other fields never add up to it."""
    body = (b": comment\n" + b"id: 12345\n" * 5 + b"data: 7\n\n") * 50

    assert read(body, limit=16) == [b"7"] * 50


@pytest.mark.parametrize("data", [b'{"a":1}', b"one\ntwo", b"one\n\ntwo", "é".encode()])
def test_what_is_encoded_is_read_again(data):
    """An event is a name and its data, and the data comes back."""
    assert read(encode("response.created", data)) == [data]


def test_an_event_names_its_kind():
    """Clients that listen to an event by its name hear it."""
    assert encode("error", b"{}") == b"event: error\ndata: {}\n\n"
    assert encode("error", b"") == b"event: error\ndata: \n\n"
