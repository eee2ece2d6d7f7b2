"""What a user of JupyterLab sees of a prompt over many rows."""

from __future__ import annotations

import nbformat
import pytest

pytestmark = pytest.mark.browser

FRAME = """\
import pandas as pd
df = pd.DataFrame({"word": [f"word {n}" for n in range(60)] + [None] * 3})
"""
EACH = "%%agent --each df -o result --concurrency 4\nIs {word} a word?"
SLOW = [{"text": "yes", "delay_ms": 200}] * 60
AGAIN = EACH.replace("df", "more")
MORE = "more = pd.concat([df.head(40), df.head(60).map(str.upper)])\nresult.head(3)"


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_rows_are_counted_while_the_cell_runs_and_the_bar_stays(
    theme, page, notebook, jupyter, shot
):
    """A bar grows in a running cell; saved and opened again, untrusted, it is there as it ended."""
    name = theme.lower()
    with jupyter.theme(theme):
        opened = notebook("lab", SLOW * 3, FRAME, EACH, MORE, AGAIN)
        opened.run(1)
        cell = opened.start(2)
        cell.get_by_text("under way").wait_for()
        before = done(opened, 2)
        page.wait_for_function(f"{TOLD}(2) > {before} + 10")
        seen = opened.prompt(2), done(opened, 2)
        shot(f"rows-{name}-live")
        opened.finish(2)
        assert seen[0] == "[*]:"
        assert before < seen[1] < 63
        assert "63 of 63 rows · 3 failed" in opened.text(2)
        assert "63 rows are in result" in opened.text(2)
        opened.run(3)
        opened.start(4)
        opened.outputs(4).get_by_text("40 from before").wait_for()
        shot(f"rows-{name}-again")
        opened.finish(4)
        shot(f"rows-{name}-static")
        opened.save()

        saved = jupyter.saved(opened.name)
        outputs = saved.cells[2].outputs
        assert [set(one.data) for one in outputs] == [{"text/html", "text/plain"}]
        saved.metadata.signature = ""
        saved.metadata.kernelspec = {"name": "nonesuch", "display_name": "None"}
        nbformat.write(saved, jupyter.root / f"rows-{name}.ipynb")
        page.goto(jupyter.place("lab", f"rows-{name}.ipynb"))
        output = page.locator(".jp-CodeCell").nth(2).locator(".jp-Cell-outputArea")
        output.get_by_text("63 of 63 rows").wait_for()
        shot(f"rows-{name}-untrusted")
        assert output.locator("div").evaluate_all(DRAWN)


TOLD = (
    "(n => parseInt("
    "document.querySelectorAll('.jp-CodeCell')[n].innerText.match(/(\\d+) of 63/)[1]"
    "))"
)
DRAWN = "all => all.some(one => getComputedStyle(one).backgroundImage.includes('gradient'))"


def done(opened, number):
    """Return how many rows a running cell says are done."""
    return opened.page.evaluate(f"{TOLD}({number})")
