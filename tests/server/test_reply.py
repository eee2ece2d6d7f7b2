"""A reply says the same however it is cut."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipy_agent.server.engine import CallPiece, TextPiece
from ipy_agent.server.reply import Reply


def said(whole, cuts=(), **options):
    """Return what a reply says in all when it is cut there."""
    reply = Reply("answer", **options)
    at = [0, *sorted(cuts), len(whole)]
    pieces = [
        piece for start, end in itertools.pairwise(at) for piece in reply.feed(whole[start:end])
    ]
    text = "".join(piece.text for piece in pieces if isinstance(piece, TextPiece))
    arguments = "".join(piece.arguments for piece in pieces if isinstance(piece, CallPiece))
    names = [piece.name for piece in pieces if isinstance(piece, CallPiece) and piece.name]
    return text, arguments, names, reply.done


def whole(name, arguments, **options):
    return json.dumps({"name": name, "arguments": arguments}, **options)


@st.composite
def cut(draw, replies):
    reply = draw(replies)
    return reply, draw(st.lists(st.integers(0, len(reply)), max_size=30))


texts = st.text(st.characters(codec="utf-8")) | st.text('"\\n{}u😀d8', max_size=12)
ascii_or_not = st.booleans()


@given(st.data(), texts, ascii_or_not)
def test_the_text_of_an_answer_is_decoded_whatever_the_cuts(data, text, escaped):
    """Escapes, pairs of surrogates and quotes may be cut anywhere."""
    reply, cuts = data.draw(cut(st.just(whole("answer", {"text": text}, ensure_ascii=escaped))))

    assert said(reply, cuts) == (text, "", [], True)


@given(
    st.data(),
    st.dictionaries(texts, st.recursive(texts | st.integers(), st.lists, max_leaves=5)),
    ascii_or_not,
    st.sampled_from([None, 2]),
)
def test_the_arguments_of_a_call_are_handed_on_as_they_stand(data, arguments, escaped, indent):
    """Braces and quotes within texts do not end them, and the outer brace is not theirs."""
    written = whole("put", arguments, ensure_ascii=escaped, indent=indent)
    _, cuts = data.draw(cut(st.just(written)))

    text, got, names, done = said(written, cuts)

    assert (text, json.loads(got), names, done) == ("", arguments, ["put"], True)
    assert got in written


@given(st.data(), texts, ascii_or_not)
def test_what_a_custom_tool_takes_is_decoded_whatever_the_cuts(data, text, escaped):
    """It gets the text itself, and not the JSON around it."""
    written = whole("run", {"input": text}, ensure_ascii=escaped)
    reply, cuts = data.draw(cut(st.just(written)))

    assert said(reply, cuts, custom={"run"}) == ("", text, ["run"], True)


def test_a_custom_tool_is_named_before_it_takes_anything():
    """Whoever listens knows whose text it is that begins; other tools' arguments stay JSON."""
    reply = Reply("answer", custom={"run"})

    begun = reply.feed('{"name": "run", "arguments": {')
    more = reply.feed('"input": "a\\n')

    assert begun == [CallPiece(name="run")]
    assert more == [CallPiece("a\n")]
    assert said(whole("put", {"input": "a"}), custom={"run"})[1] == '{"input": "a"}'


def test_a_half_of_a_pair_is_replaced():
    """What no encoding can carry does not get to the wire."""
    reply = r'{"name": "answer", "arguments": {"text": "\ud83d x \ude00 \ud83d\ud83d\ude00"}}'

    assert said(reply, range(len(reply)))[0] == "\ufffd x \ufffd \ufffd😀"


def test_nothing_is_handed_on_that_could_still_change():
    """Half an escape waits for its other half."""
    reply = Reply("answer")
    reply.feed('{"name": "answer", "arguments": {"text": "a')

    assert [reply.feed(part) for part in ("\\", 'n"}}')] == [[], [TextPiece("\n")]]


def test_an_answer_may_be_an_object_of_the_clients_own():
    """With a format of the client's the arguments are the message."""
    reply = whole("answer", {"a": {"b": "}"}})

    assert said(reply, range(len(reply)), raw=True) == ('{"a": {"b": "}"}}', "", [], True)


@pytest.mark.parametrize("size", [0, 5, 20, 40, 50])
def test_a_reply_that_was_cut_off_is_not_done(size):
    """Whoever counts on the end can see that it did not come."""
    reply = whole("put", {"code": "print(1)", "and": "more"})

    assert not said(reply[:size])[3]
