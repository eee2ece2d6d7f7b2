"""The turns at a glance: the same numbers in every form, whatever they are."""

from __future__ import annotations

import html.parser
import json
import math
import re
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ipy_agent.records import CellRecord, ToolRecord
from ipy_agent.tables import picture
from ipy_agent.tables.columns import COLUMNS, count, rate, size
from ipy_agent.tables.lines import CallLine, CallTotals, Line, Totals
from ipy_agent.tables.picture import summary, turns_html, turns_text
from ipy_agent.tables.style import LIVE

SECTIONS = {"table", "colgroup", "thead", "tbody", "tfoot"}
DASH = "\N{EN DASH}"


@pytest.mark.parametrize("live", [True, False])
def test_a_page_finds_no_formula_where_words_are_free(live):
    """A prompt or a tool's name may hold one: MathJax leaves such a table alone."""
    line, call = Line(turn="1", said="$x$"), CallLine(turn="1", name="$x$")
    shown = (picture.cells([line], Totals(), 1), picture.calls([call], CallTotals()))

    for one in shown:
        page = one.html(live=live)
        assert "$x$" in page
        assert re.match('<table class="?mathjax_ignore[ >]', page)


class Table(html.parser.HTMLParser):
    """The rows of a table, cell by cell, with the elements and attributes that it is made of."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.scopes, self.tags, self.styles, self.caption = [], [], set(), [], ""
        self._in = None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        self.styles.append(attrs.get("style") or "")
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")
            self.scopes.append(attrs.get("scope"))
        if tag in {"td", "th", "caption"}:
            self._in = tag

    def handle_endtag(self, tag):
        self._in = None if tag == "caption" else self._in

    def handle_data(self, data):
        if self._in == "caption":
            self.caption += data
        else:
            self.rows[-1][-1] += data.replace("\N{NO-BREAK SPACE}", " ")


def totals_of(rows):
    totals = Totals()
    for row in rows:
        totals.add(row)
    return totals


def pictures(rows):
    """The same turns as a parsed table, and as the cells of lines of text."""
    lines, totals = [Line.of(row) for row in rows], totals_of(rows)
    head, _, *text = turns_text(lines, totals).splitlines()
    return Table(turns_html(lines, totals)), head, [re.split(r" {2,}", t.strip()) for t in text]


def test_html_and_text_say_the_same(turn):
    """Every cell of the HTML, but for the bar, stands in the plain text, and so do the totals."""
    rows = [turn(1, connect_ms=40.0, cached_tokens=0), turn(2, tool_ms=1_300.0), turn(3)]
    table, head, text = pictures(rows)

    drawn = [[turn, *cells] for turn, _bar, *cells in table.rows[2:]]
    assert drawn[-1].pop() == ""
    assert drawn == text[1:]
    assert table.caption == head


def test_it_is_a_real_table(turn):
    """There are two rows of headings with scopes, and a cell a column in every other row."""
    table, _, text = pictures([turn(1), turn(2)])

    assert table.rows[0] == ["turn", "ms", "items", "bytes", "tokens", "status"]
    assert set(table.scopes[:18]) == {"col", "colgroup"}
    assert {len(row) for row in table.rows[2:]} == {len(COLUMNS) + 1}
    assert len(table.rows) == 2 + 2 + 1
    assert text[0] == [column.title for column in COLUMNS]
    assert table.tags <= SECTIONS | {"caption", "tr", "th", "td", "b"}


def test_a_line_says_what_happened(turn):
    """Model time is without the connection's, waiting is connection and approval."""
    row = turn(7, connect_ms=50.0, approval_ms=2_000.0, tool_ms=30.4, latency_ms=12_345.6)
    line = [column.text(Line.of(row)).replace("\xa0", " ") for column in COLUMNS]

    assert line[:5] == ["7", "12,296", "30", "2,050", "120"]
    assert line[5:9] == ["1", "12", "1.5 kB", "6.0 kB"]
    assert line[9:] == ["1,000", "40.0%", "10", "ok"]


def test_what_did_not_happen_is_a_dash(turn):
    """NA is a dash and has no width in a bar."""
    nothing = turn(1, **dict.fromkeys(TOLD), status="failed")
    line = Line.of(nothing)

    assert {column.text(line) for column in COLUMNS[1:-1]} == {DASH}
    assert line.times == (0.0, 0.0, 0.0)
    assert "(90deg,#8883,#8883 0)" in turns_html([line], totals_of([nothing]))


TOLD = (
    *("latency_ms", "ttft_ms", "tool_ms", "approval_ms", "connect_ms", "sent_items", "held_items"),
    *("sent_bytes", "full_bytes", "input_tokens", "cached_tokens", "output_tokens"),
)


def test_a_running_turn_shows_its_time(turn):
    """Until the model has answered its time goes on; after that the status still tells it."""
    line = Line.of(turn(1, status="running", latency_ms=None), 3_210.0)
    assert (line.model_ms, line.status) == (3_210.0, "running 3.2 s")

    line = Line.of(turn(1, status="running", latency_ms=1_000.0), 3_210.0)
    assert (line.model_ms, line.status) == (1_000.0, "running 3.2 s")

    assert Line.of(turn(1), 3_210.0).status == "completed"


def test_totals_are_sums_of_what_is_known(turn):
    """Turns that told nothing are counted, and leave sums and the cached share alone."""
    rows = [
        turn(1, connect_ms=100.0, tool_ms=5.0),
        turn(2, input_tokens=3_000, cached_tokens=2_600, latency_ms=2_000.0),
        turn(3, input_tokens=500, cached_tokens=None),
        turn(4, **dict.fromkeys(TOLD), status="interrupted"),
    ]
    totals = totals_of(rows)

    assert totals.turns == 4
    assert totals.line == Line(
        turn="all",
        model_ms=1_000.25 - 100 + 2_000.0 + 1_000.25,
        tool_ms=5.0,
        waiting_ms=100.0,
        sent_items=3,
        held_items=0 + 2 + 4,
        sent_bytes=4_500,
        full_bytes=18_000,
        input_tokens=4_500,
        hit_rate=3_000 / 4_000,
        output_tokens=30,
        status="3 of 4",
        turns=4,
    )


def test_the_summary_says_what_is_left_out(turn):
    """The line above the table counts the turns, the cached tokens and the bytes saved."""
    totals = totals_of([turn(1), turn(2)])

    assert summary(totals, 2) == (
        "2 turns · 40.0% of the input tokens came from the cache · "
        "75.0% of the bytes did not have to be sent"
    )
    assert summary(totals, 1).startswith("2 turns, the last 1 shown · ")
    assert summary(totals_of([turn(1)]), 1).startswith("1 turn · ")
    assert summary(Totals(), 0) == "0 turns"


@pytest.mark.parametrize(
    ("form", "value", "said"),
    [
        (count, None, DASH),
        (count, 0, "0"),
        (count, 12_345.6, "12,346"),
        (count, 999_999.4, "999,999"),
        (count, 999_999.6, "1.00 M"),
        (count, 123_456_789, "123.46 M"),
        (count, 2**62, "4.6e+18"),
        (size, None, DASH),
        (size, 0, "0 B"),
        (size, 999, "999 B"),
        (size, 1_000, "1.0 kB"),
        (size, 999_940, "999.9 kB"),
        (size, 1_500_000, "1.5 MB"),
        (size, 2_000_000_000, "2.0 GB"),
        (size, 2**62, "4.6e+18 B"),
        (rate, None, DASH),
        (rate, 0.0, "0.0%"),
        (rate, 0.9634, "96.3%"),
        (rate, 1.0, "100.0%"),
        (rate, 7.0, "?"),
    ],
)
def test_numbers_are_short(form, value, said):
    """A number is written in at most nine characters."""
    assert form(value).replace("\N{NO-BREAK SPACE}", " ") == said
    assert len(said) <= 9


TIMES = st.fixed_dictionaries({name: st.none() | st.floats() for name in TOLD[:5]})
COUNTS = st.fixed_dictionaries({name: st.none() | st.integers() for name in TOLD[5:]})


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TIMES, COUNTS, st.text(st.characters(), max_size=30))
@example({}, {"input_tokens": 10**400, "cached_tokens": 10**400}, "running")
def test_nothing_breaks_the_picture(turn, times, counts, status):
    """Whatever an endpoint told, the table has its form, and what was said is text."""
    table, _, _ = pictures([turn(1, **times, **counts, status=status), turn(2)])

    assert [len(row) for row in table.rows[2:]] == [len(COLUMNS) + 1] * 3
    assert "script" not in table.tags
    for style in table.styles:
        assert all(0 < int(at) <= 100 for at in re.findall(r"(\d+)%,", style))


def test_words_of_others_are_harmless(turn):
    """A status that is no word of ours is cut and loses what HTML would read."""
    row = turn(1, status="<script>alert('x')</script>", model="<img src=x onerror=alert(1)>")
    page = turns_html([Line.of(row)], totals_of([row]))

    assert '<td style="color:#d44">?script?alert??x????<' in page
    assert "<script" not in page
    assert "<img" not in page


def test_bars_are_shares_of_the_longest_turn(turn):
    """The longest turn fills its bar, the others are in proportion to it."""
    rows = [turn(1, latency_ms=300.0, tool_ms=200.0), turn(2, latency_ms=125.0, connect_ms=75.0)]
    page = turns_html([Line.of(row) for row in rows], totals_of(rows))
    _, first, second, _ = page.split("<tr><th scope=row>")

    assert "(90deg,#38d 0 60%,#e90 0 100%,#8883 0)" in first
    assert "(90deg,#38d 0 10%,#999 0 25%,#8883 0)" in second


def test_room_is_kept_by_leaving_out_the_earliest(turn):
    """What does not fit goes, from the first line on, and the summary says how many are left."""
    rows = [turn(number) for number in range(1, 101)]
    lines, totals = [Line.of(row) for row in rows], totals_of(rows)
    page = turns_html(lines, totals, 5_000)

    shown = len(Table(page).rows) - 3
    assert 0 < shown < 20
    assert f"the last {shown} shown" in page
    assert "<th scope=row>100<" in page
    assert len(page.encode()) <= 5_000
    assert len(Table(turns_html(lines, totals)).rows) == 103
    assert math.isclose(totals.line.model_ms, 100_025.0)


# live


def test_a_live_table_says_what_the_static_one_says(turn):
    """Only the looks differ: the cells, the headings and the caption are the same."""
    rows = [turn(1, connect_ms=40.0, cached_tokens=0), turn(2, tool_ms=1_300.0), turn(3)]
    shown = picture.turns([Line.of(row) for row in rows], totals_of(rows))
    static, live = Table(shown.html()), Table(shown.html(live=True))

    assert live.rows == static.rows
    assert live.caption == static.caption
    assert live.tags == static.tags


def test_fifty_live_turns_fit_into_a_refresh(turn):
    """Fifty turns with long numbers, and the totals of a thousand, take at most 8,192 bytes."""
    long = {"input_tokens": 123_456, "cached_tokens": 119_876, "output_tokens": 1_234}
    long |= {"latency_ms": 12_345.6, "sent_bytes": 12_345, "full_bytes": 523_456, "held_items": 120}
    rows = [turn(number, **long) for number in range(1, 1_001)]
    shown = picture.turns([Line.of(row) for row in rows[-50:]], totals_of(rows))
    page = shown.html(8_192, live=True)

    assert len(page.encode()) <= 8_192
    assert len(Table(page).rows) == 2 + 50 + 1


def test_a_live_bar_ends_where_the_static_one_does(turn):
    """The style sheet is given where each part ends; one that is not there is left out."""
    rows = [turn(1, latency_ms=300.0, tool_ms=200.0), turn(2, latency_ms=125.0, connect_ms=75.0)]
    page = picture.turns([Line.of(row) for row in rows], totals_of(rows)).html(live=True)
    _, first, second, _ = page.split("<tr style=")

    assert first.startswith("--a:60;--b:100;--h:40>")
    assert second.startswith("--a:10;--c:25;--h:40>")
    assert all(f"var(--{name}" in LIVE for name in "abch")


def test_what_was_drawn_before_is_drawn_the_same(turn):
    """Whatever is kept: bars are drawn to the longest that is shown now, and no more is kept."""
    rows = [turn(number, latency_ms=100.0 * number, tool_ms=30.0) for number in range(1, 9)]
    kept = {}
    for shown in (rows[:3], rows[1:6], rows[4:], rows[2:5], []):
        one = picture.turns([Line.of(row) for row in shown], totals_of(shown))
        assert one.html(live=True, kept=kept) == one.html(live=True)
        assert len(kept) == len(shown) + 1


def test_room_is_counted_as_json(turn):
    """A backslash takes two bytes in a message."""
    totals = totals_of([turn(1)])
    lines = [totals.of(cell(number, prompt="\\" * 40)) for number in range(1, 51)]
    page = picture.cells(lines, totals, 50).html(5_000, live=True)

    assert 4_800 < len(json.dumps(page, ensure_ascii=False).encode()) - 2 <= 5_000


def test_what_failed_is_marked_in_a_live_table(turn):
    """By its word, and for the style sheet by a class."""
    rows = [turn(1, status="failed"), turn(2, status="running")]
    page = picture.turns([Line.of(row) for row in rows], Totals()).html(live=True)

    assert page.count(" class=bad") == 1
    assert "<td>failed<" in page


# cell runs and tool calls


def cell(number, **changes):
    told = {"branch": "main", "endpoint": "openai", "prompt": "How?", "status": "completed"}
    started_at = datetime(2026, 11, 22, tzinfo=UTC)
    return CellRecord(cell=number, started_at=started_at, **(told | changes))


def call(name="python", **changes):
    told = {"turn": 1, "call_id": "c", "name": name, "arguments": "{}", "output": "42"}
    told |= {"duration_ms": 12.4, "approval": "auto", "status": "completed"}
    return ToolRecord(started_at=datetime(2026, 11, 22, tzinfo=UTC), **(told | changes))


def test_a_cell_run_is_the_sum_of_its_turns(turn):
    """With the beginning of its prompt, and what became of what it said."""
    totals = totals_of([turn(1), turn(2, tool_ms=5.0)])
    run = cell(3, prompt="Why <b>\n" + "so " * 40, standing="stale")
    shown = picture.cells([totals.of(run)], totals, 9)
    _, _, row, sums = Table(shown.html()).rows

    assert row[0] == "3"
    assert row[1].startswith("Why <b> so so")
    assert len(row[1]) == 40
    assert row[2] == "2"
    assert row[-1] == "ok, stale"
    assert sums[:3] == ["all", DASH, "2"]
    assert shown.text().startswith("9 cell runs, the last 1 shown · 40.0% of the input tokens")


@pytest.mark.parametrize("live", [True, False])
def test_a_prompt_is_a_text(live, turn):
    """Nothing in it becomes an element, or turns the text round."""
    totals = totals_of([turn(1)])
    page = picture.cells([totals.of(cell(1, prompt="<img src=x>\u202e"))], totals, 1).html(
        live=live
    )

    assert "<img" not in page
    assert "\u202e" not in page


def test_a_tool_call_says_how_it_ended():
    """Its time, how much it said, who let it run; below them the sums."""
    totals = CallTotals()
    rows = [call(), call("price", turn=2, status="refused", approval="no", duration_ms=None)]
    for row in rows:
        totals.add(row)
    shown = picture.calls([CallLine.of(row) for row in rows], totals)

    assert [re.split(r" {2,}", line.strip()) for line in shown.text().splitlines()] == [
        ["2 tool calls · 12 ms in tools"],
        [""],
        ["turn", "tool", "ms", "characters", "approval", "status"],
        ["1", "python", "12", "2", "auto", "ok"],
        ["2", "price", DASH, "2", "no", "refused"],
        ["all", DASH, "12", "4", "1 of 2"],
    ]
    assert [row[:2] + row[3:] for row in Table(shown.html()).rows[1:3]] == [
        ["1", "python", "12", "2", "auto", "ok"],
        ["2", "price", DASH, "2", "no", "refused"],
    ]
