"""The notebooks, executed as a reader would: in a fresh folder, on a server of their own.

What was executed is put into the place of what is stored if `IPY_AGENT_STORE_NOTEBOOKS` is set:
that is how the notebooks get their outputs.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from ipy_agent import demo
from ipy_agent.errors import ModelUnavailable
from ipy_agent.server import weights

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
CELL_SECONDS = 300
TABLES = "tables-for-the-tests.json"
EXPORT = f"__import__('ipy_agent').session().export({TABLES!r})"


@dataclass
class Executed:
    """A notebook that was executed: its cells by their ids, its folder, its session's tables."""

    folder: Path
    cells: dict[str, Any]
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def said(self, cell: str) -> str:
        """Return all that a cell printed and showed, as plain text."""
        outputs = self.cells[cell].outputs
        return "\n".join(o.get("text") or o["data"].get("text/plain", "") for o in outputs)

    def kinds(self, cell: str) -> set[str]:
        """Return the mime types of what a cell showed."""
        return {kind for output in self.cells[cell].outputs for kind in output.get("data", ())}


@pytest.fixture(scope="session")
def executed(tmp_path_factory):
    """Return a function that executes a notebook, once."""
    try:
        weights.path(None)
    except ModelUnavailable as missing:
        pytest.skip(f"no notebook is executed: {missing}")
    done = {}

    def execute(name):
        if name not in done:
            done[name] = _executed(name, tmp_path_factory.mktemp(name))
        return done[name]

    return execute


def _executed(name, folder):
    for file in (*FOLDER.glob("*.csv"), FOLDER / "DATA.md"):
        shutil.copyfile(file, folder / file.name)
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(EXPORT, id="export-for-the-tests"))
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    with demo._own_server(None) as environment:
        client.execute(env={**environment, "IPYTHONDIR": str(folder / "ipython")})
    del notebook.cells[-1]
    if os.environ.get("IPY_AGENT_STORE_NOTEBOOKS"):
        notebook.metadata.language_info = {"name": "python"}
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")
    tables = json.loads((folder / TABLES).read_text("utf-8"))
    return Executed(folder, {cell.id: cell for cell in notebook.cells}, tables)
