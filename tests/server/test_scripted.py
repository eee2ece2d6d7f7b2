"""The scripted engine keeps its contract."""

from __future__ import annotations

import asyncio
import json

import pytest

from ipy_agent.errors import ResponseFailed, UsageError
from ipy_agent.protocol.items import EMPTY, output_of, user
from ipy_agent.protocol.requests import Fields
from ipy_agent.server.engine import CallPiece, Finish, HangUp, Job, TextPiece
from ipy_agent.server.scripted import ScriptedEngine, load


def job(*items, **more):
    return Job(fields=Fields({}), input=EMPTY.extend(items), **more)


def played(engine, *jobs):
    """Return the pieces of each job."""

    async def main():
        return [[piece async for piece in engine.generate(each, None)] for each in jobs]

    return asyncio.run(main())


def said(pieces):
    return "".join(piece.text for piece in pieces if isinstance(piece, TextPiece))


def test_entries_are_drawn_in_order_and_then_the_user_is_echoed():
    """Past the script's end the last user text comes back, outputs of tools notwithstanding."""
    hi = user("hi there")

    first, second, third = played(
        ScriptedEngine([{"text": "a"}, {"text": "b"}]),
        job(hi),
        job(hi),
        job(hi, output_of("c", "1")),
    )

    assert [said(pieces) for pieces in (first, second, third)] == ["a", "b", "hi there"]


def test_a_text_comes_in_chunks():
    """Each chunk has so many characters, the last one what is left."""
    (pieces,) = played(ScriptedEngine([{"text": "abcde", "chunk_chars": 2}]), job(user("x")))

    assert pieces[:-1] == [TextPiece(""), TextPiece("ab"), TextPiece("cd"), TextPiece("e")]


def test_each_piece_waits_for_the_delay(monkeypatch):
    """A slow script is slow at every piece, and at an error."""
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    script = [{"text": "ab", "chunk_chars": 1, "error": {}, "delay_ms": 250}]

    with pytest.raises(ResponseFailed):
        played(ScriptedEngine(script), job(user("x")))

    assert slept == [0.25, 0.25, 0.25]


def test_calls_come_with_their_arguments_as_json():
    """An object is encoded, and a text is said as it stands, well-formed or not."""
    calls = [
        {"name": "f", "arguments": {"a": 1}},
        {"name": "g", "arguments": "{oops"},
        {"name": "h"},
    ]
    (pieces,) = played(ScriptedEngine([{"tool_calls": calls}]), job(user("x")))

    assert pieces[1:-1] == [
        CallPiece(name="f"),
        CallPiece('{"a":1}'),
        CallPiece(name="g"),
        CallPiece("{oops"),
        CallPiece(name="h"),
        CallPiece("{}"),
    ]


def test_a_warm_up_uses_up_no_entry():
    """It takes the input in and says nothing."""
    engine = ScriptedEngine([{"text": "a"}])

    warm, turn = played(engine, job(user("one two"), generate=False), job(user("x")))

    assert [type(piece) for piece in warm] == [Finish]
    assert warm[0].memory == 2
    assert said(turn) == "a"


def test_tokens_are_words():
    """Input, what was held of it, and output are counted in words; memory is their sum."""
    (pieces,) = played(
        ScriptedEngine([{"text": "four words are said"}]),
        job(user("held"), user("two new"), held=1, memory=7),
    )

    end = pieces[-1]
    assert end.usage.input_tokens == 9
    assert end.usage.detail("cached_tokens") == 7
    assert end.usage.output_tokens == 4
    assert end.memory == 13


def test_what_was_stored_is_known_and_not_cached():
    """A conversation out of the server's store has its length, but is read anew."""
    (pieces,) = played(
        ScriptedEngine([{"text": "b"}]),
        job(user("held"), user("two new"), held=1, memory=7, cold=True),
    )

    end = pieces[-1]
    assert (end.usage.input_tokens, end.usage.detail("cached_tokens"), end.memory) == (9, 0, 10)


def test_what_is_held_counts_as_much_as_what_is_sent_again():
    """The memory of a turn equals the words of the conversation that it left behind."""
    call = {"name": "f", "arguments": {"code": "a = 1"}}
    engine = ScriptedEngine([{"text": "b c", "tool_calls": [call]}])
    (pieces,) = played(engine, job(user("a")))
    message = {"type": "message", "role": "assistant", "content": [{"text": "b c"}]}
    called = {"type": "function_call", "arguments": '{"code":"a = 1"}'}

    (again,) = played(ScriptedEngine(), job(user("a"), message, called, generate=False))

    assert again[0].usage.input_tokens == pieces[-1].memory


def test_an_error_refuses_a_turn():
    """Without a text before it, nothing is said before the refusal."""
    error = {"status": 429, "code": "slow", "message": "wait", "param": "p", "retry_after": 2}
    with pytest.raises(ResponseFailed, match="wait") as refused:
        played(ScriptedEngine([{"error": error}]), job(user("x")))

    failure = refused.value
    assert (failure.status, failure.code, failure.param) == (429, "slow", "p")
    assert failure.retry_after == 2


@pytest.mark.parametrize(("then", "code"), [("close:1011", 1011), ("reset", None)])
def test_a_connection_is_hung_up_after_the_text(then, code):
    """The order comes before the turn has ended."""

    async def main():
        pieces = ScriptedEngine([{"text": "a", "then": then}]).generate(job(user("x")), None)
        assert [await anext(pieces), await anext(pieces)] == [TextPiece(""), TextPiece("a")]
        with pytest.raises(HangUp) as order:
            await anext(pieces)
        return order.value.code

    assert asyncio.run(main()) == code


def test_a_hang_lasts_until_it_is_cancelled():
    """After the text nothing comes any more."""

    async def main():
        pieces = ScriptedEngine([{"text": "a", "then": "hang"}]).generate(job(user("x")), None)
        assert [await anext(pieces), await anext(pieces)] == [TextPiece(""), TextPiece("a")]
        waiting = asyncio.ensure_future(anext(pieces))
        await asyncio.wait({waiting}, timeout=0)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.wait({waiting})
        return waiting.cancelled()

    assert asyncio.run(main())


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"then": "hang"},
        {"text": 5},
        {"texts": "a"},
        {"tool_calls": [{"arguments": {}}]},
        {"tool_calls": [{"name": "f", "arguments": [1]}]},
        {"error": {"status": 200}},
        {"error": {"status": "429"}},
        {"error": {}, "then": "hang"},
        {"text": "a", "delay_ms": -1},
        {"text": "a", "chunk_chars": 0},
        {"text": "a", "then": "close"},
        {"text": "a", "then": "close:1006"},
        {"text": "a", "then": "close:²"},
        {"text": "a", "then": "explode"},
        "a",
        None,
    ],
)
def test_an_entry_is_checked_when_the_script_is_loaded(entry):
    """A wrong entry is found before any turn, and told by its number."""
    with pytest.raises(UsageError, match="entry 2 of the script") as wrong:
        ScriptedEngine([{"text": "fine"}, entry])

    assert "\n" not in str(wrong.value)


def test_a_script_is_read_from_a_file(tmp_path):
    """A file holds a list with an entry a turn."""
    file = tmp_path / "script.json"
    file.write_text(json.dumps([{"text": "a"}]))

    assert load(file) == [{"text": "a"}]


@pytest.mark.parametrize("content", [None, b"", b"{", b"{}", b"\xff"])
def test_a_file_that_holds_no_script_is_refused(tmp_path, content):
    """The message names the file and says what is wrong."""
    file = tmp_path / "script.json"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(UsageError, match=r"script\.json"):
        load(file)
