"""`ipy-agent demo`: the quickstart notebook, executed headless against a local model.

What it prints is what the notebook's own cells print: questions, answers and the truth as
they come, then the table and the summary.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipy_agent.errors import AgentError, MissingExtra
from ipy_agent.secrets import clean_environment
from ipy_agent.server import weights

if TYPE_CHECKING:
    from nbformat import NotebookNode

__all__ = ["DemoFailed", "run"]

NOTEBOOK = "quickstart.ipynb"
DATA = ("penguins.csv", "DATA.md")
CELL_SECONDS = 900


class DemoFailed(AgentError):
    """A cell of the notebook raised."""

    code = "demo_failed"


def run(out: Path, *, model: str | None = None) -> None:
    """Execute the notebook and leave it, an HTML page and `turns.parquet` in a folder.

    Args:
        out: the folder; made if need be, its files are replaced.
        model: a known model's name or a GGUF file; by default the default model.

    Raises:
        MissingExtra: the demo's packages are not installed.
        ModelUnavailable: no weights to be had.
        DemoFailed: a cell of the notebook raised.
    """
    try:
        import nbformat  # noqa: PLC0415 (an extra's packages)
        from nbclient import NotebookClient  # noqa: PLC0415
        from nbclient.exceptions import (  # noqa: PLC0415
            CellExecutionError,
            CellTimeoutError,
            DeadKernelError,
        )
        from nbconvert import HTMLExporter  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtra("the demo", "demo") from error

    file = weights.pull(model, weights.progress_bar(sys.stderr))
    out.mkdir(parents=True, exist_ok=True)
    for name in DATA:
        shutil.copyfile(_source(name), out / name)
    notebook = nbformat.read(_source(NOTEBOOK), as_version=4)
    print(f"{NOTEBOOK} on {file.name}, on this machine", flush=True)
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(out)}},
        on_cell_executed=_print_output,
    )
    try:
        with _own_server(model) as environment:
            client.execute(env=environment)
    except CellExecutionError as error:
        raise DemoFailed(f"the notebook stopped: {error.ename}: {error.evalue}") from None
    except (CellTimeoutError, DeadKernelError) as error:
        raise DemoFailed(f"the notebook stopped: {str(error).splitlines()[0]}") from None
    finally:
        nbformat.write(notebook, out / NOTEBOOK)
    page, _ = HTMLExporter().from_notebook_node(notebook)
    (out / NOTEBOOK).with_suffix(".html").write_text(page, encoding="utf-8")
    written = ", ".join(sorted(path.name for path in out.iterdir() if path.name not in DATA))
    print(f"\nwritten to {out.resolve()}: {written}")


@contextlib.contextmanager
def _own_server(model: str | None) -> Iterator[dict[str, str]]:
    """Give the environment of a kernel whose local server is its own, and end that server."""
    environment = {
        name: value
        for name, value in clean_environment().items()
        if not name.startswith("IPY_AGENT_")
    }
    environment["IPY_AGENT_ENDPOINT"] = "local"
    gguf = os.environ.get("IPY_AGENT_GGUF") if model is None else model
    if gguf and gguf.endswith(".gguf"):
        environment["IPY_AGENT_GGUF"] = str(Path(gguf).resolve())
    elif model:
        environment["IPY_AGENT_MODEL"] = model
    with tempfile.TemporaryDirectory(prefix="ipy-agent-") as runtime:
        environment["XDG_RUNTIME_DIR"] = runtime
        try:
            yield environment
        finally:
            for file in Path(runtime).rglob("server.json"):
                os.kill(json.loads(file.read_bytes())["pid"], signal.SIGTERM)


def _source(name: str) -> Path:
    """Return a file that travels with the package; in a checkout it lies beside it."""
    package = Path(str(importlib.resources.files("ipy_agent")))
    inside = package / "notebooks" / name
    return inside if inside.exists() else package.parent / "notebooks" / name


def _print_output(cell: NotebookNode, cell_index: int, execute_reply: Any) -> None:  # noqa: ARG001
    """Print what a cell printed, for cells that are marked so."""
    if "show-in-demo" in cell.metadata.get("tags", ()):
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stdout":
                print(output.text, end="", flush=True)
