"""Rows become frames whose columns and dtypes never depend on the rows."""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys

import msgspec
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipy_agent import tables
from ipy_agent.records import MessageRecord, Recorder, ToolRecord

FRAMES = {name: getattr(tables, name) for name in ("turns", "cells", "tools", "messages")}

TURNS = (
    "turn, cell, branch, model, endpoint, transport, connection, reused, response_id, "
    "previous_response_id, started_at, sent_items, held_items, sent_bytes, wire_bytes, full_bytes, "
    "received_bytes, connect_ms, ttft_ms, latency_ms, tool_ms, approval_ms, input_tokens, "
    "cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens, hit_rate, cost_usd, "
    "cache_miss, retries, status"
)
TOOLS = "turn, call_id, name, arguments, output, started_at, duration_ms, approval, status"


@pytest.mark.parametrize("name", FRAMES)
def test_an_empty_frame_is_like_a_full_one(name, records):
    """Columns, their order and their dtypes are the documented ones, with rows and without."""
    for recorder in (Recorder(), records):
        frame = FRAMES[name](recorder)
        assert {column: str(dtype) for column, dtype in frame.dtypes.items()} == (
            tables.COLUMNS[name]
        )
        assert list(frame) == list(tables.COLUMNS[name])

    assert len(FRAMES[name](Recorder())) == 0
    assert len(FRAMES[name](records)) > 0


def test_the_columns_are_the_documented_ones():
    """The tables that people type against do not change by accident."""
    assert ", ".join(tables.COLUMNS["turns"]) == TURNS
    assert ", ".join(tables.COLUMNS["tools"]) == TOOLS


def test_what_did_not_happen_is_na(records):
    """A turn without a tool has no tool time, rather than one of 0."""
    second = tables.turns(records).iloc[1]

    assert second["tool_ms"] is pd.NA
    assert second["connect_ms"] is pd.NA
    assert second["cache_miss"] is pd.NA
    assert second["latency_ms"] == 1_000.25
    assert second["retries"] == 0


def test_what_still_runs_is_left_out(records):
    """A turn or cell run is in its table when it has ended, and not before."""
    assert list(tables.turns(records)["turn"]) == [1, 2]
    assert list(tables.cells(records)["cell"]) == [1]

    records.turns[2].status = records.cells[1].status = "interrupted"

    assert list(tables.turns(records)["status"]) == ["completed", "completed", "interrupted"]
    assert list(tables.cells(records)["turns"]) == [2, 1]


def test_a_frame_is_a_copy(records):
    """Nobody's changes to a frame are seen by the next one."""
    frame = tables.turns(records)
    frame["turn"] += 7

    assert list(tables.turns(records)["turn"]) == [1, 2]


@pytest.mark.parametrize(
    ("told", "rate"),
    [
        ({"input_tokens": 1_000, "cached_tokens": 400}, 0.4),
        ({"input_tokens": 1_000, "cached_tokens": 0}, 0.0),
        ({"input_tokens": 1_000, "cached_tokens": None}, None),
        ({"input_tokens": None, "cached_tokens": 400}, None),
        ({"input_tokens": 0, "cached_tokens": 0}, None),
    ],
)
def test_hit_rate_is_the_cached_share(turn, told, rate):
    """It is cached over input tokens, and NA where one of them is not known."""
    recorder = Recorder()
    recorder.turns.append(turn(**told))

    [found] = tables.turns(recorder)["hit_rate"]
    assert found is pd.NA if rate is None else found == rate


@pytest.mark.parametrize(
    ("told", "cost"),
    [
        ({}, (600 * 2.5 + 400 * 1.25 + 10 * 10) / 1e6),
        ({"cached_tokens": 0}, (1_000 * 2.5 + 10 * 10) / 1e6),
        ({"endpoint": "api.openai.com"}, 0.0021),
        ({"endpoint": "local"}, None),
        ({"endpoint": "127.0.0.1:8000"}, None),
        ({"model": None}, None),
        ({"model": "no-such-model"}, None),
        ({"input_tokens": None}, None),
        ({"cached_tokens": None}, None),
        ({"output_tokens": None}, None),
        ({"cached_tokens": 2_000}, None),
    ],
)
def test_a_turn_costs_what_its_tokens_cost(turn, told, cost):
    """Cached tokens are priced as cache reads; where anything is unknown, so is the cost."""
    recorder = Recorder()
    recorder.turns.append(turn(**told))

    [found] = tables.turns(recorder)["cost_usd"]
    assert found is pd.NA if cost is None else math.isclose(found, cost)


@pytest.mark.parametrize(
    ("endpoint", "model"), [("openai", "gpt-6.1-sol"), ("xai", "grok-4.7"), ("xai", "grok-4")]
)
def test_the_presets_have_prices(turn, endpoint, model):
    """The models that the presets name are in the price table."""
    recorder = Recorder()
    recorder.turns.append(turn(endpoint=endpoint, model=model))

    assert tables.turns(recorder)["cost_usd"][0] > 0


def test_a_cell_sums_up_its_turns(records):
    """A row of cells is the sum of what is known of its turns."""
    [row] = tables.cells(records).to_dict("records")

    assert {name: row[name] for name in ("turns", "tools", "prompt", "elapsed_ms", "status")} == {
        "turns": 2,
        "tools": 1,
        "prompt": "How *many*?",
        "elapsed_ms": 4_200.0,
        "status": "completed",
    }
    assert row["model_ms"] == 1_000.25 - 50 + 1_000.25
    assert (row["tool_ms"], row["approval_ms"]) == (30.0, 2_000.0)
    assert (row["input_tokens"], row["cached_tokens"], row["output_tokens"]) == (2_100, 1_400, 20)
    assert row["hit_rate"] == 1_400 / 2_100
    assert (row["sent_bytes"], row["full_bytes"]) == (3_000, 12_000)
    assert math.isclose(row["cost_usd"], 0.0021 + (100 * 2.5 + 1_000 * 1.25 + 100) / 1e6)


def test_a_cell_without_numbers_has_none(turn, records):
    """Sums of nothing are NA, and a turn that told nothing does not spoil the others' share."""
    silent = dict.fromkeys(("input_tokens", "cached_tokens", "output_tokens"))
    records.turns[:2] = [turn(1, **silent, latency_ms=None), turn(2, cached_tokens=None)]

    [row] = tables.cells(records).to_dict("records")
    assert row["input_tokens"] == 1_000
    unknown = ("cached_tokens", "hit_rate", "cost_usd", "tool_ms", "approval_ms")
    assert all(pd.isna(row[name]) for name in unknown)
    assert row["model_ms"] == 1_000.25

    records.turns[0] = turn(1)
    assert tables.cells(records)["hit_rate"][0] == 0.4


def test_a_message_is_a_row_an_item(records):
    """Each item has its place, its kind, what it says and how many bytes it is."""
    frame = tables.messages(records)

    assert list(frame["message"]) == [1, 2, 3, 4, 5]
    assert list(frame["turn"]) == [1, 1, 1, 1, 2]
    assert list(frame["text"]) == [
        "How *many*?",
        "",
        '{"code": "len(df)"}',
        "344",
        "There are **344** rows.",
    ]
    assert frame["role"].fillna("").tolist() == ["user", "", "", "", "assistant"]
    assert frame["call_id"].fillna("").tolist() == ["", "", "call_1", "call_1", ""]
    assert frame["bytes"][3] == len(msgspec.json.encode(records.messages[3].item))


ANY_TEXT = st.text(st.characters(), max_size=20)
ANY_NUMBER = st.integers() | st.just(10**400) | st.just(-(10**400)) | st.none()
ANY_FLOAT = st.floats() | st.none()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ANY_TEXT, ANY_NUMBER, ANY_NUMBER, ANY_FLOAT, st.none() | ANY_TEXT | st.lists(ANY_TEXT))
def test_nothing_that_an_endpoint_says_breaks_a_frame(turn, text, tokens, cached, ms, content):
    """Lone surrogates, NaN and endless integers are mended: all frames are made, and stored."""
    recorder = Recorder()
    told = {"input_tokens": tokens, "cached_tokens": cached, "output_tokens": tokens}
    row = turn(model=text, status=text + "!", latency_ms=ms, tool_ms=ms, sent_bytes=tokens, **told)
    recorder.turns.append(row)
    recorder.tools.append(
        ToolRecord(
            turn=1,
            call_id=text,
            name=text,
            arguments=text,
            output=text,
            started_at=row.started_at,
            duration_ms=ms,
            approval="no",
            status="failed",
        )
    )
    item = {"type": content, "role": text, "content": content, "name": 7}
    recorder.messages.append(MessageRecord(cell=1, turn=1, branch="main", item=item))

    for frame in (make(recorder) for make in FRAMES.values()):
        file = io.BytesIO()
        frame.to_parquet(file)
        assert pd.read_parquet(file).dtypes.equals(frame.dtypes)


def test_what_is_no_number_is_na(turn):
    """NaN and infinity are no times, and integers over 64 bits no counts."""
    recorder = Recorder()
    recorder.turns.append(turn(ttft_ms=math.nan, latency_ms=math.inf, sent_bytes=2**63))

    assert tables.turns(recorder)[["ttft_ms", "latency_ms", "sent_bytes"]].isna().all(axis=None)


def test_paired_surrogates_are_one_character(records):
    """Halves of a character that came apart are joined; a lone half is marked."""
    records.cells[0].prompt = "\ud83d\ude00 \ud83d"

    assert tables.cells(records)["prompt"][0] == "😀 \ufffd"


def test_a_terminal_finds_nothing_to_obey_in_a_frame(records):
    """Control characters are shown as marks in any table; lines and tabs stay."""
    records.cells[0].prompt = "a\x1b]0;title\x07b\x9bc\td\r\n"
    cells = tables.cells(records)

    assert cells["prompt"][0] == "a␛]0;title␇b⟨U+009B⟩c\td\r\n"
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", repr(cells))


def test_a_page_finds_no_formula_in_a_frame(records):
    """Nor in what is made of it: MathJax would make a link of one that hides where it leads."""
    records.cells[0].prompt = "$\\href{https://evil.example}{good.example}$ <b>"
    cells = tables.cells(records)

    for frame in (cells, cells.merge(cells, on="cell"), cells["prompt"].to_frame()):
        page = frame._repr_html_()
        assert 'class="dataframe tex2jax_ignore mathjax_ignore"' in page
        assert "<b>" not in page


def test_importing_it_loads_no_pandas():
    """pandas, the parser and the price table come with the first use."""
    heavy = "{'pandas', 'markdown_it', 'nh3', 'genai_prices', 'pyarrow'}"
    check = f"import sys, ipy_agent.tables; print({heavy} & set(sys.modules))"

    assert subprocess.check_output([sys.executable, "-c", check], text=True).strip() == "set()"
