"""What a user of JupyterLab and Notebook 7 sees."""

from __future__ import annotations

import os
import time

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.browser

TOKEN = "a-token-for-tests"
BOTH = pytest.mark.parametrize("app", ["lab", "notebook"])
PROMPT = "%%agent --mode auto\nHow heavy are the penguins over 3,500 g on average?"
STATUSES = "from ipy_agent import session\n[row.status for row in session().records.turns]"
CALLS = "[row.status for row in session().records.tools]"


def calls(*codes, delay_ms=500):
    """Entries of a script that call the `python` tool, each in a turn of its own."""
    return [
        {"tool_calls": [{"name": "python", "arguments": {"code": code}}], "delay_ms": delay_ms}
        for code in codes
    ]


ANSWER = {
    "text": "The three heavy ones weigh **4,075 g** on average.\n\n"
    "| measure | g |\n|---|---|\n| mean | 4,075 |\n| heaviest | 4,675 |\n",
    "chunk_chars": 4,
    "delay_ms": 40,
}
PENGUINS = [
    *calls(
        "import pandas as pd\nmasses = pd.Series([3750, 3800, 3250, 4675], name='body_mass_g')",
        "masses.describe()",
        "import matplotlib.pyplot as plt\nfig, ax = plt.subplots(figsize=(4, 2))\n"
        "ax.bar(range(4), masses)\nax.set_ylabel('g')\nplt.show()",
    ),
    ANSWER,
]
LONG = {"text": "word " * 2_000, "chunk_chars": 5, "delay_ms": 100}


@BOTH
def test_rows_appear_while_the_cell_runs_and_stay_as_a_table(app, notebook, jupyter, shot):
    """Rows appear turn by turn in a running cell; what is saved needs no widget, nor this page."""
    opened = notebook(app, PENGUINS, PROMPT)
    live = opened.start(1).locator(".ipy-agent-live table")
    seen = []
    for rows in (1, 2, 3):
        live.locator(f"tbody tr:nth-child({rows})").wait_for()
        seen.append(opened.prompt(1))
        shot(f"{app}-live-{rows}")
    opened.finish(1)
    shot(f"{app}-static")
    assert seen == ["[*]:"] * 3
    assert opened.outputs(1).locator(".jupyter-widgets").count() == 0
    assert parts(opened) == FOLLOW

    opened.save()
    opened.page.reload()
    opened.outputs(1).locator("strong", has_text="4,075 g").wait_for()

    assert parts(opened) == FOLLOW
    saved = jupyter.saved(opened.name).cells[1].outputs
    kinds = [kind for output in saved for kind in output.data]
    assert sorted(set(kinds)) == ["image/png", "text/html", "text/plain"]


FOLLOW = ["details"] * 3 + ["img", "strong", "table", "table", "details", "table"]


def parts(opened):
    """The parts of an answer, in the order in which they are read."""
    found = opened.outputs(1).locator("details, img, strong, table:not(td *)")
    shown = found.evaluate_all(
        "parts => parts.map(part => part.closest('th,b') ? '' : part.localName)"
    )
    return [name for name in shown if name]


@BOTH
def test_a_click_on_stop_ends_the_run_while_the_model_speaks(app, notebook, shot, figure):
    """The button works while its cell runs; the cells that follow do, too."""
    opened = notebook(app, [LONG, {"text": "Here I am."}], PROMPT, STATUSES, PROMPT)
    cell = opened.start(1)
    cell.get_by_text("word word word").first.wait_for()
    took = click_stop(opened, 1)
    shot(f"{app}-stopped")

    assert "word word word" in opened.text(1)
    assert "interrupted" in opened.text(1)
    assert opened.run(2).strip() == "['interrupted']"
    assert "Here I am." in opened.run(3)
    figure(f"{app}: from the click to the end of the cell: {took:.2f} s")


@BOTH
def test_a_click_on_stop_interrupts_a_tool(app, notebook, figure):
    """A tool that would run for a minute is interrupted, as by the kernel's own interrupt."""
    sleep = calls("import time\nprint('begun')\ntime.sleep(60)", delay_ms=0)
    opened = notebook(app, [*sleep, {"text": "Here I am."}], PROMPT, STATUSES, CALLS, PROMPT)
    cell = opened.start(1)
    cell.locator("details[open]", has_text="time.sleep").wait_for()
    took = click_stop(opened, 1)

    assert opened.run(2).strip() == "['interrupted']"
    assert opened.run(3).strip() == "['interrupted']"
    assert "Here I am." in opened.run(4)
    figure(f"{app}: from the click to the end of the cell: {took:.2f} s")


def click_stop(opened, number):
    """Click on Stop in a running cell, and return the seconds until it ended."""
    assert opened.prompt(number) == "[*]:"
    began = time.monotonic()
    opened.cell(number).get_by_role("button", name="Stop").click()
    opened.finish(number)
    return time.monotonic() - began


@BOTH
def test_views_switch_while_a_tool_keeps_the_kernel_busy(app, notebook, shot):
    """Turns, cells and tools are tabs of the browser's own: a busy kernel does not matter."""
    codes = ("6 * 7", "import time\ntime.sleep(60)")
    opened = notebook(app, calls(*codes, delay_ms=0), PROMPT)
    cell = opened.start(1)
    cell.locator("details[open]", has_text="time.sleep").wait_for()
    shown = cell.locator(".ipy-agent-live table:visible")
    seen = []
    for name in ("tools", "cells", "turns"):
        cell.get_by_role("tab", name=name).click()
        seen.append(shown.locator("caption").inner_text().split(" · ")[0])
        shot(f"{app}-view-{name}")
    assert opened.prompt(1) == "[*]:"
    click_stop(opened, 1)

    assert seen == ["1 tool call", "1 cell run", "1 turn"]
    assert opened.outputs(1).locator(".jupyter-widgets").count() == 0


def test_a_page_that_is_loaded_again_finds_its_kernel_at_work(notebook):
    """The run goes on without the page; what is run next sees all of it."""
    slow = {"text": "word " * 20, "chunk_chars": 5, "delay_ms": 100}
    opened = notebook("lab", [slow, {"text": "Here I am."}], PROMPT, STATUSES, PROMPT)
    opened.start(1).get_by_text("word word").first.wait_for()
    opened.page.reload()
    opened.ready()

    assert opened.run(2).strip() == "['completed']"
    assert "Here I am." in opened.run(3)


@BOTH
def test_a_saved_notebook_reads_well_untrusted_and_without_a_kernel(
    app, page, jupyter, serve, shot
):
    """Opened again, sanitised as untrusted notebooks are, the answer and the table are there."""
    name = f"saved-{app}.ipynb"
    connect = f"%load_ext ipy_agent\n%agent connect {serve(PENGUINS)} --key-env TEST_TOKEN"
    written = jupyter.write(name, connect, PROMPT)
    NotebookClient(written, timeout=60).execute(env={**os.environ, "TEST_TOKEN": TOKEN})
    written.metadata.kernelspec = {"name": "nonesuch", "display_name": "None"}
    nbformat.write(written, jupyter.root / name)

    page.goto(jupyter.place(app, name))
    output = page.locator(".jp-CodeCell").nth(1).locator(".jp-Cell-outputArea")
    output.locator("strong", has_text="4,075 g").wait_for()
    shot(f"{app}-untrusted")

    assert output.get_by_text("model not found").count() == 0
    assert output.locator("details").count() == 4
    assert output.locator("img").count() == 1
    table = output.locator("table", has=page.locator("th", has_text="cached"))
    assert table.locator("tbody tr").count() == 4
    drawn = (
        "cells => cells.some(cell => getComputedStyle(cell).backgroundImage.includes('gradient'))"
    )
    assert table.locator("tbody td").evaluate_all(drawn)


def test_a_board_follows_the_runs_and_a_plot_draws_them(notebook, jupyter, shot):
    """In the dark, too: `%agent panel` is brought up to date after a run, a plot is a picture."""
    with jupyter.theme("Dark"):
        opened = notebook("lab", PENGUINS, "%agent panel", PROMPT, "%agent plot")
        board = opened.outputs(1).locator("tbody tr")
        opened.run(1)
        assert board.count() == 0
        live = opened.start(2).locator(".ipy-agent-live table")
        live.locator("tbody tr:nth-child(3)").wait_for()
        shot("dark-live")
        opened.finish(2)
        shot("dark-static")
        assert board.count() == 4 + 3
        opened.run(3)
        opened.outputs(3).locator("img").wait_for()
        shot("dark-plot")


@BOTH
def test_a_cell_that_runs_again_replaces_what_it_said(app, notebook):
    """Both front ends name their cells: run all twice is said once, and the tree shows it."""
    opened = notebook(app, [], "%%agent\none", "%%agent\ntwo", "%agent branch", "%agent cells")
    for _ in range(2):
        opened.run(1)
        opened.run(2)

    tree = " ".join(opened.run(3).split())
    assert tree == "├─1 one replaced │ 2 two replaced 3 one 4 two <- main *"


@BOTH
def test_a_question_shows_the_code_and_is_answered_below_it(app, notebook, shot):
    """Highlighted, what cannot be seen made visible; a yes runs it."""
    code = 'total = sum(range(10))  # safe \u202e\nprint(f"total {total}")'
    opened = notebook(app, [*calls(code), {"text": "Done."}], "%%agent\nDo it.")
    cell = opened.start(1)
    box = cell.locator("input.jp-Stdin-input")
    box.wait_for()
    shot(f"{app}-question")
    shown = opened.outputs(1).locator("pre code").first

    assert "# safe ⟨U+202E⟩" in shown.inner_text()
    colours = shown.locator("span").evaluate_all(
        "all => all.map(one => getComputedStyle(one).color)"
    )
    assert len(set(colours)) > 2
    box.fill("y")
    box.press("Enter")
    opened.finish(1)
    assert "Done." in opened.text(1)


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_a_bench_shows_its_picture_and_its_summary(theme, notebook, jupyter, shot):
    """One line of progress at a time, then a figure, a table and the facts, in both themes."""
    script = [
        {"tool_calls": [{"name": "page", "arguments": {"number": number}}], "delay_ms": 20}
        for number in range(42)
    ]
    with jupyter.theme(theme):
        opened = notebook("lab", script, "df = %agent bench --rounds 1")
        opened.start(1)
        opened.outputs(1).get_by_text("round 1 of 1, http-cache").wait_for()
        opened.finish(1)
        opened.outputs(1).locator("img").wait_for()
        shot(f"bench-{theme.lower()}")

    text = opened.text(1)
    assert opened.outputs(1).locator("table").count() == 1
    assert text.count("round 1 of 1") == 1
    assert "http-stored: NA, " in text
    assert " cores, " in text
