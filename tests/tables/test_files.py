"""Tables as files: what is written is what is read."""

from __future__ import annotations

import csv
import html.parser
import json
import re
import sys

import msgspec
import pandas as pd
import pytest

from ipy_agent import tables
from ipy_agent.errors import AgentError, MissingExtra, UsageError
from ipy_agent.records import MessageRecord, Recorder

TABLES = ("turns", "cells", "tools", "messages")


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_parquet_keeps_values_and_dtypes(name, empty, records, tmp_path):
    """A parquet file reads as the very frame that was written, without rows too."""
    recorder = Recorder() if empty else records
    path = tables.export(recorder, tmp_path / "t.parquet", name)

    pd.testing.assert_frame_equal(pd.read_parquet(path), getattr(tables, name)(recorder))


def test_parquet_holds_the_turns_unless_asked(records, tmp_path):
    """The table of a format that holds one is that of the turns."""
    path = tables.export(records, tmp_path / "t.parquet")

    assert list(pd.read_parquet(path)) == list(tables.COLUMNS["turns"])


@pytest.mark.parametrize("name", TABLES)
def test_json_keeps_values(name, records, tmp_path):
    """JSON holds all tables, row by row, with null for NA and times that say UTC."""
    told = json.loads(tables.export(records, tmp_path / "t.json").read_text("utf-8"))
    frame = getattr(tables, name)(records)

    assert list(told) == list(TABLES)
    again = pd.DataFrame(told[name], columns=list(frame)).astype(tables.COLUMNS[name])
    pd.testing.assert_frame_equal(again, frame)


@pytest.mark.parametrize("name", TABLES)
def test_jsonl_has_a_row_a_line(name, records, tmp_path):
    """Each line of a .jsonl file is one row of one table."""
    path = tables.export(records, str(tmp_path / "t.jsonl"), name)
    whole = json.loads(tables.export(records, tmp_path / "t.json").read_text("utf-8"))

    lines = path.read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == whole[name]


@pytest.mark.parametrize("name", TABLES)
def test_csv_keeps_values(name, records, tmp_path):
    """A CSV file, read with the documented dtypes, is the frame again."""
    path = tables.export(records, tmp_path / "T.CSV", name)
    dtypes = {key: kind for key, kind in tables.COLUMNS[name].items() if "[" not in kind}

    again = pd.read_csv(path, dtype=dtypes).astype(tables.COLUMNS[name])
    frame = getattr(tables, name)(records)
    pd.testing.assert_frame_equal(again, frame.replace("", pd.NA))


FORMULAS = ["=1+1", "+1", "-1", "@SUM(1)", " =1", "\t=1", "\uff1d1", "|x", "%x", "\r=1", "\n=1"]
HARMLESS = ["1=1", "a-b", "'=1", "x\n=1", "1e5", ""]


def test_formulas_are_defused_on_request(records, tmp_path):
    """A text that a spreadsheet would calculate has a ' before it then; numbers and others stay."""
    told = [*FORMULAS, *HARMLESS]
    for said in told:
        item = {"type": "message", "role": "user", "content": said}
        records.messages.append(MessageRecord(cell=1, turn=2, branch="main", item=item))
    records.turns[0].ttft_ms = -1.5

    as_said = tables.export(records, tmp_path / "a.csv", "messages")
    defused = tables.export(records, tmp_path / "b.csv", "messages", defuse=True)
    turns = tables.export(records, tmp_path / "t.csv", "turns", defuse=True)

    assert texts(as_said)[-len(told) :] == told
    expected = [*(f"'{said}" for said in FORMULAS), *HARMLESS]
    assert texts(defused)[-len(told) :] == expected
    assert ",-1.5," in turns.read_text("utf-8")


def texts(path):
    with path.open(encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]


def test_only_what_holds_formulas_is_defused(records, tmp_path):
    """To ask it of another format is an error that says what it is for."""
    with pytest.raises(UsageError, match=r"defuse is for \.csv"):
        tables.export(records, tmp_path / "t.json", defuse=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "table", "says"),
    [
        ("t.xlsx", "turns", ".parquet, .csv, .jsonl, .json, .html, .md"),
        ("t", "turns", ".parquet"),
        ("t.csv", "turn", "turns, cells, tools, messages"),
        ("nowhere/t.csv", "turns", "make it first"),
    ],
)
def test_a_wrong_place_says_what_is_possible(file, table, says, records, tmp_path):
    """An unknown suffix or table, or no folder, is an error of one line, and nothing is written."""
    with pytest.raises(UsageError, match=re.escape(says)) as caught:
        tables.export(records, tmp_path / file, table)

    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_parquet_without_pyarrow_names_the_extra(records, tmp_path, monkeypatch):
    """Where pyarrow is missing the error says how to get it."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    with pytest.raises(MissingExtra, match=re.escape("ipy-agent-live[parquet]")):
        tables.export(records, tmp_path / "t.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_whole(records, tmp_path):
    """An older export is replaced, and nothing is left beside it."""
    path = tmp_path / "t.md"
    path.write_text("older")

    assert tables.export(records, path) == path
    assert "older" not in path.read_text("utf-8")
    assert list(tmp_path.iterdir()) == [path]


def test_a_refusing_disk_is_one_error(records, tmp_path):
    """What the disk refuses is an error of ours, and no half file stays."""
    place = tmp_path / "t.csv"
    place.mkdir()

    with pytest.raises(AgentError, match="cannot write") as caught:
        tables.export(records, place)
    assert caught.value.code == "export"
    assert list(tmp_path.iterdir()) == [place]


class Page(html.parser.HTMLParser):
    """The elements, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


HOSTILE = (
    "</pre></details><script>alert(1)</script><img src=x onerror=alert(1)>\n```\n\n# x | y\u202e"
)


@pytest.fixture
def hostile(records, turn):
    """Return a session in which everybody says something hostile."""
    records.turns.append(turn(4, model=HOSTILE, status=HOSTILE, endpoint=HOSTILE))
    records.cells[0].status = HOSTILE
    [tool] = records.tools
    told = {"name": HOSTILE, "arguments": msgspec.json.encode({"code": HOSTILE}).decode()}
    records.tools[0] = msgspec.structs.replace(tool, output=HOSTILE, status=HOSTILE, **told)
    for role in ("user", "assistant", HOSTILE):
        said = {"role": role, "content": [{"type": "output_text", "text": HOSTILE}]}
        item = {"type": "message", **said}
        records.messages.append(MessageRecord(cell=1, turn=2, branch="main", item=item))
    item = {"type": HOSTILE, "content": HOSTILE}
    records.messages.append(MessageRecord(cell=1, turn=2, branch="main", item=item))
    return records


def test_a_page_runs_nothing(hostile, tmp_path):
    """No script, picture or handler comes out of what was said, and the page forbids them too."""
    text = tables.export(hostile, tmp_path / "t.html").read_text("utf-8")
    page = Page(text)

    assert page.tags & {"script", "img", "iframe", "link", "svg", "object", "form"} == set()
    assert not [name for name in page.attributes if name.startswith("on") or name == "src"]
    assert "default-src 'none'" in text
    assert "\u202e" not in text


def test_a_page_names_a_few_models(records, turn, tmp_path):
    """However many there were, and however an endpoint called them."""
    records.turns += [turn(number, model=f"m{number}-" + "x" * 500) for number in range(10, 20)]
    text = tables.export(records, tmp_path / "t.html").read_text("utf-8")
    facts = Page(text[text.index("<p>") : text.index("</p>")]).text

    assert "gpt-4o at openai, m10-xxx" in facts
    assert "8 more" in facts
    assert len(facts) < 300


def test_a_page_tells_the_session(records, tmp_path):
    """The page has the totals, the turns, what was said and what the tools did."""
    page = Page(tables.export(records, tmp_path / "t.html").read_text("utf-8"))

    for said in (
        "gpt-4o at openai · 2026-11-22 09:30 UTC · 1 cell run · 1 tool call · US$ 0.0037",
        "66.7% of the input tokens came from the cache",
        "1,000",
        "Cell run 1 · 4.2 s · completed",
        "How *many*?",
        "There are 344 rows.",
        "python · 30 ms · completed",
        "len(df)",
    ):
        assert said in page.text
    assert "strong" in page.tags


def fences(text):
    """What stands in fences, and what stands outside, by CommonMark's rule for backticks."""
    inside, outside, fence = [], [], None
    for line in text.splitlines():
        ticks = re.match("`{3,}", line)
        if fence is None and ticks:
            fence = ticks[0]
        elif fence is not None and re.fullmatch(fence + "`*", line):
            fence = None
        else:
            (outside if fence is None else inside).append(line)
    assert fence is None
    return "\n".join(inside), "\n".join(outside)


def test_markdown_keeps_hostile_text_in_fences(hostile, tmp_path):
    """What was said cannot end its fence; outside of fences there is no HTML and no cell more."""
    text = tables.export(hostile, tmp_path / "t.md").read_text("utf-8")
    inside, outside = fences(text)

    assert inside.count("<script>") == 6
    assert not re.search(r"(?<!\\)<", outside)
    rows = [line for line in outside.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {14}
    assert len(rows) == 2 + 3 + 1


def test_markdown_tells_the_session(records, tmp_path):
    """The Markdown has the totals, the turns, what was said and what the tools did."""
    text = tables.export(records, tmp_path / "t.md").read_text("utf-8")

    assert "| turn | model ms | tools ms |" in text
    assert "| 1 | 950 | 30 | 2,050 |" in text
    assert "**assistant**\n\n```\nThere are **344** rows.\n```" in text
    assert "**python · 30 ms · completed**\n\n```python\nlen(df)\n```\n\n```\n344\n```" in text


@pytest.mark.parametrize("suffix", [".json", ".html", ".md", ".csv", ".jsonl", ".parquet"])
def test_an_empty_session_can_be_exported(suffix, tmp_path):
    """A session in which nothing happened yet has files of every kind."""
    path = tables.export(Recorder(), tmp_path / f"t{suffix}")

    assert path.exists()
    assert path.stat().st_size > 0 or suffix == ".jsonl"
