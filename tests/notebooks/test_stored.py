"""The notebooks as they are stored: sound files, with outputs, and nothing private in them."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NAMES = sorted(file.stem for file in FOLDER.glob("*.ipynb"))
EXECUTED = [name for name in NAMES if name != "quickstart"]  # `ipy-agent demo` executes that
PRIVATE = {
    "a path of a machine": re.compile(r"(?<![\w.:/])/(?:home|root|Users|tmp|work|var|opt|usr)/\w"),
    "a key": re.compile(r"\bsk-\w{8}|Bearer [\w-]{8}"),
    "a token": re.compile(r"(?<![\w-])(?![0-9a-f]+\b)[\w-]{43}(?![\w-])"),
}


@pytest.fixture(params=NAMES)
def file(request):
    return FOLDER / f"{request.param}.ipynb"


@pytest.fixture(params=EXECUTED)
def stored(request):
    return nbformat.read(FOLDER / f"{request.param}.ipynb", as_version=4)


def texts(notebook):
    """Yield the sources and all outputs that can be read."""
    for cell in notebook.cells:
        yield cell.source
        for output in cell.get("outputs", ()):
            yield output.get("text", "")
            yield from (
                str(data) for kind, data in output.get("data", {}).items() if "text" in kind
            )


def private(text):
    """Return what in a text is not for others to see."""
    found = [what for what, pattern in PRIVATE.items() if pattern.search(text)]
    return found + (["this user's home"] if str(Path.home()) in text else [])


def test_each_is_a_sound_notebook_saved_as_jupyter_saves_it(file):
    """So that a difference between two versions shows what was changed."""
    notebook = nbformat.read(file, as_version=4)

    nbformat.validate(notebook)
    assert nbformat.writes(notebook) + "\n" == file.read_text("utf-8")


def test_each_says_what_it_is_about(file):
    """A title first, and below it a few sentences."""
    first = nbformat.read(file, as_version=4).cells[0]

    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert len(first.source.splitlines()) > 2


def test_each_was_executed_from_top_to_bottom(stored):
    """Once, on a fresh kernel, and nothing went wrong."""
    cells = [cell for cell in stored.cells if cell.cell_type == "code"]

    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]


def test_none_holds_what_only_a_kernel_or_another_day_needs(stored):
    """No widgets, no times of execution: what is stored shows without a kernel."""
    assert set(stored.metadata) == {"kernelspec", "language_info"}
    assert not any(cell.metadata for cell in stored.cells)
    kinds = {
        kind
        for cell in stored.cells
        for output in cell.get("outputs", ())
        for kind in output.get("data", ())
    }
    assert kinds <= {"text/plain", "text/html", "image/png"}


def test_none_holds_a_key_or_a_path_of_the_machine_where_it_ran(stored):
    """Neither in what was typed nor in what came of it."""
    found = [(what, text[:200]) for text in texts(stored) for what in private(text)]

    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        'File "/tmp/ipykernel_1/2.py", line 1',
        "written: /home/me/turns.parquet",
        str(Path.home() / "x"),
        "sk-abcdefgh12345678",
        "Authorization: Bearer abcdefgh",
        "the token is 4XcN7v2_kQ9Zb-1oPLmWe8RtYu3sDfGhJkVxCyBnM0A",
    ],
)
def test_what_is_private_would_be_found(text):
    """The patterns see what they are there to see."""
    assert private(text)
