"""`%%agent --each` in a real kernel, against the embedded server's scripted engine."""

from __future__ import annotations

import re

import pytest

pytestmark = pytest.mark.kernel

ROWS = 300
FRAME = f"""
import dataclasses, pandas as pd, ipy_agent
@dataclasses.dataclass
class Kind:
    kind: str
    count: int
df = pd.DataFrame({{"word": [f"word-{{n}}" for n in range({ROWS})]}}, index=range(1, {ROWS} + 1))
"""
JSON = '{"kind": "{word}", "count": 3}'
SLOW = {"text": "done", "delay_ms": 250}


def test_rows_become_columns_of_a_frame(kernel, serve, figure):
    """One display holds the bar, as HTML and text alone; it is updated, not once for each row."""
    kernel.run(serve() + "\n%agent reset")
    kernel.run(FRAME)

    cell = kernel.run(f"%%agent --each df -o result --schema Kind\n{JSON}")

    assert cell.status == "ok", cell.error
    (bar,) = cell.displays
    assert set(bar) == {"text/html", "text/plain"}
    assert f"100 %  {ROWS} of {ROWS} rows" in bar["text/plain"]
    assert bar["text/plain"].endswith(f"\n{ROWS} rows are in result")
    assert "<style" not in bar["text/html"]
    assert "under way" not in bar["text/html"]
    assert 1 <= cell.updates <= ROWS / 5
    figure(f"{ROWS} rows, {cell.updates} updates; {bar['text/plain'].splitlines()[0]}")
    told = kernel.run(
        "print(result.index.equals(df.index), result.dtypes.astype(str).tolist()[:3],"
        " (result['kind'] == df['word']).all(), result['status'].unique().tolist())"
    )
    assert told.stdout.strip() == "True ['string', 'Int64', 'string'] True ['completed']"


def test_without_a_name_the_frame_is_displayed_below_the_bar(kernel, serve):
    """As pandas displays it."""
    kernel.run(serve() + "\n%agent reset")
    kernel.run(FRAME)

    cell = kernel.run("%%agent --each df\nSay {word}.")

    bar, frame = cell.displays
    assert f"{ROWS} of {ROWS} rows" in bar["text/plain"]
    assert "<table" in frame["text/html"]
    assert "Say word-0." in frame["text/plain"]


def test_an_interrupt_keeps_what_is_done_and_the_rest_is_asked_next_time(kernel, serve):
    """The cell says where that is, the next cell works, and nothing is asked twice."""
    kernel.run(serve(*[SLOW] * ROWS) + "\n%agent reset")
    kernel.run(FRAME)
    kernel.run("few = df.head(24)")
    slow = "%%agent --each few -o part --concurrency 2\nInterrupt {word}."

    stopped = kernel.run(
        slow,
        when=lambda cell: any(done(data) >= 4 for data in cell.displays),
        do=kernel.interrupt,
    )
    rows = int(kernel.run("print(len(part))").stdout)
    again = kernel.run(slow)
    after = kernel.run("%%agent\nStill there?")

    assert stopped.status == "error"
    assert stopped.error.splitlines() == ["Interrupted: interrupted"]
    (bar,) = stopped.displays
    assert 4 <= rows < 24
    assert 4 <= done(bar) <= rows
    assert bar["text/plain"].endswith(f"\n{rows} rows are in part")
    (bar,) = again.displays
    kept = int(re.search(r"(\d+) from before", bar["text/plain"])[1])
    assert rows <= kept < 24
    assert kernel.run("print(part['answer'].tolist() == ['done'] * 24)").stdout == "True\n"
    assert "done" in after.displays[0]["text/plain"]


def done(data):
    """Return how many rows a bar says are done."""
    found = re.search(r"([\d,]+) of [\d,]+ rows", data.get("text/plain", ""))
    return int(found[1].replace(",", "")) if found else 0


def test_a_map_that_is_called_is_shown_and_interrupted_as_a_cell_is(kernel, serve):
    """`Session.map` in a cell of Python has the bar, and an interrupt's error has what was done."""
    kernel.run(serve(*[SLOW] * ROWS) + "\n%agent reset")
    kernel.run(FRAME)

    stopped = kernel.run(
        "try:\n"
        "    ipy_agent.session().map(df, 'Call {word}.', concurrency=2)\n"
        "except KeyboardInterrupt as error:\n"
        "    held = error.result\n"
        "held['answer'].unique().tolist()",
        when=lambda cell: any(done(data) >= 4 for data in cell.displays),
        do=kernel.interrupt,
    )

    assert stopped.status == "ok", stopped.error
    assert 4 <= done(stopped.displays[0]) <= int(kernel.run("print(len(held))").stdout) < ROWS
    assert stopped.value == "['done']"
