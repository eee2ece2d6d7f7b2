"""The bar of a map over rows, in a cell and in a terminal, by a clock of the test's own."""

from __future__ import annotations

import io
import itertools
import re
import sys

import msgspec
import pytest
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from ipy_agent.agent.approval import Question, Reply
from ipy_agent.notebook.bar import MORE, REMARKS, Bar, PlainBar
from ipy_agent.tables.columns import MODEL, WAITING
from ipy_agent.tables.style import BAD
from ipy_agent.trace import Notice, RowsProgress

BEGIN = RowsProgress(
    rows=1_000,
    done=0,
    failed=0,
    held=0,
    under_way=16,
    seconds=0.0,
    input_tokens=0,
    cached_tokens=0,
    output_tokens=0,
    cost_usd=None,
)


class Clock:
    def __init__(self):
        self.now = 5.0

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def shell():
    quiet = Config()
    quiet.HistoryManager.enabled = False
    yield InteractiveShell.instance(config=quiet)
    InteractiveShell.clear_instance()


@pytest.fixture
def messages(shell, monkeypatch):
    """What is sent to the front end, in its order."""
    captured = CapturingDisplayPublisher(outputs=[])
    monkeypatch.setattr(shell, "display_pub", captured)
    return captured.outputs


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def bar(messages, clock):  # noqa: ARG001 (it shows itself there)
    return Bar(clock)


class Tty(io.StringIO):
    """Standard output that is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Return a function that makes standard output a terminal of 70 columns."""

    def use():
        monkeypatch.setattr(sys, "stdout", Tty())
        monkeypatch.setenv("COLUMNS", "70")
        return sys.stdout

    return use


def progress(**told):
    return msgspec.structs.replace(BEGIN, **told)


def text(messages):
    return messages[-1]["data"]["text/plain"]


def html(messages):
    return messages[-1]["data"]["text/html"]


def run(bar, clock, *, rows, seconds, looks):
    """Have all rows done one after another, and look on so often in the meantime."""
    for number in range(looks + 1):
        done = rows * number // looks
        bar.show(progress(rows=rows, done=done, seconds=seconds * number / looks))
        bar.tick()
        clock.now += seconds / looks


@pytest.mark.parametrize("looks", [5, 200, 5_000])
def test_a_second_brings_at_most_ten_updates_of_one_display(looks, bar, messages, clock):
    """However often it is told how far the map came, one display is updated ten times a second."""
    run(bar, clock, rows=10_000, seconds=2.0, looks=looks)
    bar.close()

    assert 5 <= len(messages) <= 2 * 10 + 2
    assert len({one["transient"]["display_id"] for one in messages}) == 1
    assert [one["update"] for one in messages] == [False] + [True] * (len(messages) - 1)


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ({}, "0 of 1,000 rows · 0 s"),
        ({"under_way": 3, "seconds": 61.0}, "0 of 1,000 rows · 1 min 1 s · 3 under way"),
        (
            {"done": 100, "seconds": 10.0},
            "100 of 1,000 rows · 10 rows/s · 10 s · about 1 min 30 s left",
        ),
        (
            {"rows": 99, "done": 60, "held": 50, "failed": 2, "seconds": 10.0},
            "60 of 99 rows · 2 failed · 50 from before · 1 rows/s · 10 s · about 39 s left",
        ),
        (
            {"rows": 999, "done": 900, "seconds": 90_000.0, "cost_usd": 1.25},
            "900 of 999 rows · 0.01 rows/s · 1 d 1 h · about 2 h 45 min left · US$ 1.2500",
        ),
        (
            {"input_tokens": 2_000, "cached_tokens": 1_863},
            "0 of 1,000 rows · 0 s · 93.2% of the input cached",
        ),
        ({"done": 500, "held": 500}, "500 of 1,000 rows · 500 from before · 0 s"),
    ],
)
def test_the_line_tells_what_is_known_and_no_more(told, wanted, bar, messages):
    """Rows, failures, rows from before, pace, time, what is left, price and cached share."""
    bar.show(progress(**told))
    bar.tick()

    wanted = wanted if "under_way" in told else f"{wanted} · 16 under way"
    assert text(messages).split(" %  ")[1] == wanted
    assert re.sub("<[^>]*>", "", html(messages)) == wanted


def test_the_bar_has_a_stripe_for_rows_from_before_new_and_failed_ones(bar, messages):
    """Each as long as its share; only what failed has a colour in the line as well."""
    bar.show(progress(done=600, held=300, failed=100))
    bar.tick()

    stops = f"{WAITING} 0 30%,{MODEL} 0 50%,{BAD} 0 60%"
    assert f"background:linear-gradient(90deg,{stops}," in html(messages)
    assert re.findall('[";]color:([^";]*)', html(messages)) == [BAD]
    assert text(messages).startswith("[######....]  60 %  ")


def test_time_goes_on_while_nothing_is_told(bar, messages, clock):
    """Rows that take long are waited for under a clock that runs."""
    bar.show(progress(seconds=1.0))
    bar.tick()
    clock.now += 2
    bar.tick()

    assert "· 3 s" in text(messages)


def test_what_stays_the_same_is_sent_once(bar, messages, clock):
    """A look that finds nothing new sends nothing."""
    bar.show(progress())
    for _ in range(5):
        bar.tick()
        clock.now += 0.1

    assert len(messages) == 1


def test_the_end_is_static_html_and_text(bar, messages, clock):
    """No more is said of what is under way or left, and nothing needs a kernel or a style sheet."""
    run(bar, clock, rows=1_000, seconds=5.0, looks=50)
    clock.now += 60
    bar.close()

    assert text(messages) == "[##########] 100 %  1,000 of 1,000 rows · 200 rows/s · 5 s"
    assert set(messages[-1]["data"]) == {"text/html", "text/plain"}
    assert set(re.findall(r"<(\w+)", html(messages))) == {"div"}


def test_a_map_that_ends_early_stays_where_it_was(bar, messages):
    """What is not done is not drawn as done."""
    bar.show(progress(done=250, seconds=5.0))
    bar.close()

    assert text(messages) == "[##........]  25 %  250 of 1,000 rows · 50 rows/s · 5 s"


def test_what_does_not_begin_shows_nothing(bar, messages, capsys):
    """A prompt that does not fit leaves no empty bar behind."""
    for one in (bar, PlainBar()):
        one.tick()
        one.close()

    assert messages == []
    assert capsys.readouterr().out == ""


def test_lasting_notices_stay_below_the_bar_once_each(bar, messages, clock):
    """What concerns many rows is said once, as text; what gives way is not said at all."""
    bar.show(progress())
    for notice in ("over <b>HTTP</b>", "over <b>HTTP</b>", "not kept"):
        bar.show(Notice(text=notice, lasting=True))
    bar.show(Notice(text="asking again in 7.0 s"))
    bar.tick()
    clock.now += 1
    bar.close()

    assert text(messages).splitlines()[1:] == ["over <b>HTTP</b>", "not kept"]
    assert "over &lt;b&gt;HTTP&lt;/b&gt;" in html(messages)
    assert "asking" not in html(messages)


def test_why_it_takes_a_while_is_said_until_rows_go_on(bar, messages, clock):
    """Such as that a server starts, or is asked again later."""
    bar.show(progress(done=0))
    bar.show(Notice(text="starting the local server"))
    bar.tick()
    assert text(messages).endswith(" · starting the local server")

    clock.now += 1
    bar.show(progress(done=1))
    bar.tick()
    assert "starting" not in text(messages)


def test_a_notice_for_each_row_does_not_fill_the_cell(bar, messages):
    """Some are shown, and that there are more; what is said of the whole map is shown, too."""
    bar.show(progress())
    for number in range(1_000):
        bar.show(Notice(text=f"row {number} went another way", lasting=True))
    bar.close()
    bar.remark("1,000 rows are in result")

    lines = text(messages).splitlines()[1:]
    assert len(lines) == REMARKS + 2
    assert lines[-2:] == [MORE, "1,000 rows are in result"]


def test_a_question_is_answered_by_nobody_and_says_how_to_allow_the_tool(bar, messages, capsys):
    """A tool of many rows asks nobody; once it is said what allows it."""
    plain = PlainBar()
    for front in (bar, plain):
        front.show(progress())
        assert front.approve(Question("it", "it(1)", "python")) is Reply.NOBODY
        assert front.approve(Question("it", "it(2)", "python")) is Reply.NOBODY
        front.close()

    assert text(messages).count("%agent allow it --session") == 1
    assert capsys.readouterr().out.count("%agent allow it --session") == 1


# a terminal


def test_a_terminal_has_one_line_that_is_written_over(terminal, clock):
    """A line never wraps, a shorter one leaves nothing of a longer one, and the end has its own."""
    out, bar = terminal(), PlainBar(clock)
    run(bar, clock, rows=1_000, seconds=3.0, looks=100)
    bar.close()

    *lines, last = out.getvalue().split("\r")
    assert 20 <= len(lines) <= 32
    assert "\n" not in "".join(lines)
    assert all(len(line) < 70 for line in lines)
    assert all(len(line) >= len(old.rstrip()) for old, line in itertools.pairwise(lines))
    assert last.rstrip() == "[##########] 100 %  1,000 of 1,000 rows · 333 rows/s · 3 s"
    assert last.endswith("\n")


def test_a_notice_takes_the_place_of_the_line_and_the_line_goes_on_below(terminal, clock):
    """What stays to be read is not written over."""
    out, bar = terminal(), PlainBar(clock)
    bar.show(progress(done=100, seconds=1.0))
    bar.tick()
    bar.show(Notice(text="not kept", lasting=True))
    clock.now += 1
    bar.tick()
    bar.close()

    assert on_screen(out.getvalue()) == [
        "not kept",
        "[#.........]  10 %  100 of 1,000 rows · 100 rows/s · 1 s",
    ]


def on_screen(written):
    """Return the lines of a terminal: what is written over another line may leave its end."""
    lines = []
    for line in written.removesuffix("\n").split("\n"):
        shown = ""
        for over in line.split("\r"):
            shown = over + shown[len(over) :]
        lines.append(shown.rstrip())
    return lines


def test_what_is_no_terminal_has_a_line_every_tenth(capsys, clock):
    """A file or a pipe has eleven lines at the most, however long it takes."""
    bar = PlainBar(clock)
    run(bar, clock, rows=1_000, seconds=300.0, looks=3_000)
    bar.close()

    told = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in told] == [str(tenth) for tenth in range(10, 101, 10)]
    assert told[-1].endswith("1,000 of 1,000 rows · 3.3 rows/s · 5 min")


def test_a_terminal_is_not_driven_by_a_notice(capsys):
    """Control characters are shown, and do nothing."""
    PlainBar().show(Notice(text="a\x1b[2Jb\u202e", lasting=True))

    assert capsys.readouterr().out == "ab⟨U+202E⟩\n"
