"""What a user of JupyterLab sees."""

from __future__ import annotations

import os

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.browser

TOKEN = "a-token-for-tests"

PROMPT = "%%agent --mode auto\nHow heavy are the penguins over 3,500 g on average?"


def write(path, *cells):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, path)
    return notebook


def test_the_panel_grows_while_the_cell_runs_and_stays_as_a_table(page, lab, server, shot):
    """Rows appear turn by turn in a running cell; what is saved needs no widget."""
    write(
        lab.root / "live.ipynb",
        f"%load_ext ipy_agent\n%agent connect {server} --key-env TEST_TOKEN",
        PROMPT,
        "t = %agent turns\nt[['turn', 'latency_ms', 'sent_items', 'held_items', 'hit_rate']]",
    )

    page.goto(lab.tree("live.ipynb"))
    agent = page.locator(".jp-CodeCell").nth(1)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    live = agent.locator(".jupyter-widgets table")
    seen = []
    for rows in (1, 2, 3):
        live.locator(f"tbody tr:nth-child({rows})").wait_for()
        seen.append(agent.locator(".jp-InputPrompt").inner_text())
        shot(f"panel-live-{rows}")
    page.locator(".jp-CodeCell").nth(2).locator(".jp-OutputArea-output table").wait_for()
    shot("panel-static")

    assert seen == ["[*]:"] * 3
    assert agent.locator(".jupyter-widgets").count() == 0
    assert agent.locator(".jp-OutputArea table").count() >= 2
    with page.expect_response(lambda response: response.request.method == "PUT"):
        page.keyboard.press("Control+s")
    saved = nbformat.read(lab.root / "live.ipynb", as_version=4)
    kinds = {kind for output in saved.cells[1].outputs for kind in output.get("data", {})}
    assert kinds == {"text/html", "text/plain"}


def test_a_saved_notebook_reads_well_untrusted_and_without_a_kernel(page, lab, server, shot):
    """Opened again, sanitised as untrusted notebooks are, the answer and the table are there."""
    notebook = write(
        lab.root / "saved.ipynb",
        f"%load_ext ipy_agent\n%agent connect {server} --key-env TEST_TOKEN",
        PROMPT,
    )
    NotebookClient(notebook, timeout=60).execute(env={**os.environ, "TEST_TOKEN": TOKEN})
    notebook.metadata.kernelspec = {"name": "nonesuch", "display_name": "None"}
    nbformat.write(notebook, lab.root / "saved.ipynb")

    page.goto(lab.tree("saved.ipynb"))
    output = page.locator(".jp-CodeCell").nth(1).locator(".jp-OutputArea")
    output.locator("strong", has_text="4,075 g").wait_for()
    shot("saved-untrusted")

    assert output.locator("details").count() == 3
    table = output.locator("table", has=page.locator("th", has_text="cached"))
    assert table.locator("tbody tr").count() == 4
    drawn = (
        "cells => cells.some(cell => getComputedStyle(cell).backgroundImage.includes('gradient'))"
    )
    assert table.locator("tbody td").evaluate_all(drawn)
