"""The parts of an answer: what each says, as HTML and as plain text."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipy_agent.notebook.parts import (
    Call,
    Document,
    Footer,
    Remark,
    Thoughts,
    kinds,
    row_of,
    summary,
)
from ipy_agent.records import Recorder, TurnRecord
from ipy_agent.rendering import Growing, markdown
from ipy_agent.trace import ToolBegan


@given(
    st.lists(st.sampled_from(['{"a": ', "1", ' "x" ', "}", "\n", "**b** ", "<b>"])), st.booleans()
)
def test_however_json_was_cut_it_ends_alike(pieces, looked):
    """What a document shows depends on all that came, not on how it came."""
    cut, whole = Document(), Document("".join(pieces))
    for piece in pieces:
        cut.add(piece)
        if looked:
            cut.html()

    assert cut.html() == whole.html()
    assert cut.plain() == whole.plain()


@pytest.mark.parametrize("said", ["It is **42**.", "", "[1, 2]", '```json\n{"a": 1}\n```'])
def test_what_is_no_object_is_shown_as_any_answer(said):
    """A model may answer in words after all, or in a fence."""
    assert Document(said).html() == markdown(said)
    assert Document(said).plain() == Growing(said).plain()


def test_json_that_has_not_ended_is_shown_as_it_is():
    """It is laid out when it is whole; numbers keep all their digits."""
    growing = Document('{"n": 0.10000000000000000001')
    assert growing.plain() == '{"n": 0.10000000000000000001'

    growing.add("}")

    assert growing.plain() == '{\n  "n": 0.10000000000000000001\n}'


def test_half_a_surrogate_pair_does_no_harm():
    """An answer may hold one, as any text of a model's."""
    assert Document('{"a": "\ud83d"}').html()
    assert Thoughts("\ud83d").html()


def test_thoughts_are_folded_and_marked():
    """Unfolded they are Markdown; in plain text a mark tells them from the answer."""
    thoughts = Thoughts()
    for section, piece in enumerate(["**One**", "two"]):
        thoughts.add(piece, section)

    assert thoughts.text == "**One**\n\ntwo"
    assert "<summary>thoughts</summary>" in thoughts.html()
    assert "<strong>One</strong>" in thoughts.html()
    assert " open" not in thoughts.html()
    assert thoughts.plain() == "[thoughts] **One**\n\ntwo"


def test_a_remark_is_a_small_line():
    """It is shown literally."""
    assert "over &lt;HTTP&gt;" in Remark("over <HTTP>").html()
    assert Remark("over <HTTP>").plain() == "over <HTTP>"


def test_nothing_of_a_call_is_hidden():
    """What a terminal would swallow is shown of arguments; of an output it is left out."""
    code = "safe() \x1b]0;\x07evil()"
    call = Call(ToolBegan(call_id="c", name="run", arguments=code), "custom_tool_call")
    for said in (call.html(), call.plain()):
        assert "safe() ␛]0;␇evil()" in said

    call = Call(ToolBegan(call_id="c", name="run\x1b[1m", arguments=f'{{"x": "{code[:6]}"}}'), None)
    assert call.plain() == "[run …]\nsafe()"


def test_calls_are_known_by_their_ids():
    """Only calls of ours count."""
    items = [
        {"type": "function_call", "call_id": "a"},
        {"type": "custom_tool_call", "call_id": "b"},
        {"type": "message", "call_id": "c"},
        {"type": "custom_tool_call"},
        {},
    ]

    assert kinds(items) == {"a": "function_call", "b": "custom_tool_call"}


def test_a_summary_is_the_text_of_its_sections():
    """What is malformed says nothing."""
    sections = [{"type": "summary_text", "text": "a"}, "?", {"text": "b"}]

    assert summary({"type": "reasoning", "summary": sections}) == "a\n\nb"
    assert summary({"type": "reasoning", "summary": "a"}) == ""


def turn(number=3, **changes):
    told = {"branch": "main", "endpoint": "openai", "status": "completed", "model": "gpt-4o"}
    told |= {"response_id": f"r{number}", "latency_ms": 1_234.5}
    told |= {"input_tokens": 1_000, "cached_tokens": 400, "output_tokens": 10}
    day = datetime(2026, 11, 22, tzinfo=UTC)
    return TurnRecord(turn=number, cell=1, started_at=day, **(told | changes))


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({}, "turn 3 · 1.23 s · tokens: 1,000 in (40.0% cached), 10 out · US$ 0.0021"),
        ({"endpoint": "local"}, "turn 3 · 1.23 s · tokens: 1,000 in (40.0% cached), 10 out"),
        ({"cached_tokens": None}, "turn 3 · 1.23 s · tokens: 1,000 in, 10 out"),
        (
            {"input_tokens": None, "tool_ms": 400.0},
            "turn 3 · 1.23 s · tools 0.40 s · tokens: 10 out",
        ),
        ({"input_tokens": None}, "turn 3 · 1.23 s · tokens: 10 out"),
        (
            {"input_tokens": None, "output_tokens": None, "latency_ms": None},
            "turn 3",
        ),
    ],
)
def test_a_footer_tells_what_is_known_of_a_turn(told, said):
    """What was not told is left out; the numbers are the record's."""
    assert Footer(turn(**told)).plain() == f"[{said}]"
    assert said in Footer(turn(**told)).html()


def test_the_row_of_a_response_is_found_by_its_id():
    """Also behind turns that other branches began; without an id there is none."""
    recorder = Recorder()
    recorder.turns += [turn(1), turn(2), turn(3, response_id=None), turn(4, status="running")]

    assert row_of(recorder, "r2").turn == 2
    assert row_of(recorder, "r9") is None
    assert row_of(recorder, None) is None
