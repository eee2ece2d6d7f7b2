"""A file imports its own part and floors below it: never above, never the same floor."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

import ipy_agent

HOUSE = Path(ipy_agent.__file__).parent

FLOORS = {
    "secrets": -1,
    "errors": 0,
    "protocol": 1,
    "endpoints": 1,
    "colours": 1,
    "settings": 1,
    "trace": 1,
    "background": 2,
    "install": 2,
    "coroutines": 2,
    "records": 2,
    "rendering": 2,
    "transport": 2,
    "agent": 3,
    "server": 3,
    "tables": 3,
    "connections": 3,
    "journal": 4,
    "answers": 4,
    "execution": 4,
    "planning": 4,
    "fleet": 4,
    "sessions": 5,
    "bench": 6,
    "demo": 6,
    "doctor": 6,
    "notebook": 7,
    "__init__": 8,
    "__main__": 8,
    "cli": 8,
}
ENTRANCE = {"__init__", "__main__", "cli"}  # one part: what a user imports or runs

ONLY_IN = {
    "IPython": {"notebook"},
    "ipywidgets": {"notebook"},
    "pandas": {"tables", "fleet"},
    "nbclient": {"cli", "demo"},
    "nbconvert": {"cli", "demo"},
    "websockets": {"transport"},
    "starlette": {"server"},
    "uvicorn": {"server"},
    "xllamacpp": {"server"},
    "nest_asyncio2": {"coroutines"},
    "dask": {"fleet"},
    "distributed": {"fleet"},
    "cloudpickle": {"fleet"},
}
LAZY = {
    *("nbclient", "nbconvert"),  # optional, and slow to load: inside a function only
    "nest_asyncio2",  # not before there is a coroutine to run
}

IMPURE = {
    *("_thread", "asyncio", "concurrent", "datetime", "http", "logging", "multiprocessing"),
    *("os", "queue", "random", "sched", "secrets", "select", "selectors", "signal", "socket"),
    *("socketserver", "ssl", "subprocess", "threading", "time", "urllib", "uuid"),
}


class Import(NamedTuple):
    """One import: the dotted name (`None` where nobody can tell), and where it stands."""

    name: str | None
    line: int
    in_function: bool = False
    for_types_only: bool = False


class Imports(ast.NodeVisitor):
    """Collects every import of a file of the package, wherever it stands."""

    def __init__(self, package):
        self.package = package
        self.found = []
        self.functions = 0
        self.types = 0

    def add(self, name, node):
        self.found.append(Import(name, node.lineno, self.functions > 0, self.types > 0))

    def visit_Import(self, node):
        for alias in node.names:
            self.add(alias.name, node)

    def visit_ImportFrom(self, node):
        near = "." * node.level + (node.module or "")
        module = importlib.util.resolve_name(near, self.package)
        for alias in node.names:
            self.add(f"{module}.{alias.name}", node)

    def visit_Call(self, node):
        called = ast.unparse(node.func).rpartition(".")[2]
        if called in {"import_module", "__import__"}:
            literal = isinstance(node.args[0], ast.Constant)
            name = node.args[0].value if literal else None
            if literal and name.startswith("."):
                name = importlib.util.resolve_name(name, ast.literal_eval(node.args[1]))
            self.add(name, node)
        self.generic_visit(node)

    def visit_FunctionDef(self, node):
        self.functions += 1
        self.generic_visit(node)
        self.functions -= 1

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 (ast's name for it)

    def visit_If(self, node):
        for_types = ast.unparse(node.test).endswith("TYPE_CHECKING")
        self.types += for_types
        for child in node.body:
            self.visit(child)
        self.types -= for_types
        for child in node.orelse:
            self.visit(child)


def part_of(name, house):
    """Return the part that a dotted name of the package belongs to."""
    first = name.split(".")[1:2]
    known = first and ((house / first[0]).is_dir() or (house / f"{first[0]}.py").is_file())
    return first[0] if known else "__init__"


def fault_of(part, found, house):
    """Return what is wrong with one import of a part, if anything is."""
    if found.name is None:
        return None if part in ENTRANCE else "imports what cannot be read from the source"
    top = found.name.split(".")[0]
    if top == house.name:
        other = part_of(found.name, house)
        own = other == part or {part, other} <= ENTRANCE
        below = FLOORS.get(other, 99) < FLOORS[part]
        return None if own or below else f"{part} is not above {other}"
    if part == "protocol" and top in IMPURE:
        return f"the protocol is pure and has no {top}"
    if top in ONLY_IN and not found.for_types_only:
        if part not in ONLY_IN[top]:
            return f"{top} is not for {part}"
        if top in LAZY and not found.in_function:
            return f"{top} is imported where it is used, inside a function"
    return None


def faults_of(file, house):
    """Yield what is wrong with the imports of one file, in words."""
    inside = file.relative_to(house)
    part = inside.parts[0].removesuffix(".py")
    if part not in FLOORS:
        yield f"{inside}: the part {part!r} has no floor in the table"
        return
    imports = Imports(".".join((house.name, *inside.parts[:-1])))
    imports.visit(ast.parse(file.read_text(encoding="utf-8")))
    for found in imports.found:
        if fault := fault_of(part, found, house):
            yield f"{inside}:{found.line}: {fault}"


def faults(house):
    return [fault for file in sorted(house.rglob("*.py")) for fault in faults_of(file, house)]


def test_the_house_stands():
    """No file of the package imports what is above it or beside it, or what is not its own."""
    assert faults(HOUSE) == []


def test_every_floor_is_known():
    """Each file of the package belongs to a part of the table."""
    parts = {file.relative_to(HOUSE).parts[0].removesuffix(".py") for file in HOUSE.rglob("*.py")}

    assert parts - FLOORS.keys() == set()


@pytest.fixture
def house(tmp_path):
    """Return a small house in which everything stands where it should."""
    root = tmp_path / "ipy_agent"
    for name, source in {
        "__init__.py": "import importlib\ndef f(name): importlib.import_module(name)",
        "cli.py": "from ipy_agent import __version__\nfrom ipy_agent.demo import run",
        "errors.py": "",
        "trace.py": "import time",
        "protocol/__init__.py": "",
        "protocol/lanes.py": "import enum\nfrom . import items\nfrom .items import Item",
        "protocol/items.py": "from ..errors import AgentError",
        "records.py": "from ipy_agent import errors, trace\nimport ipy_agent.protocol.items",
        "sessions.py": "if TYPE_CHECKING:\n    import pandas\nelse:\n    import time",
        "demo.py": "def run():\n    import nbclient\n    from ipy_agent.sessions import Session",
        "notebook/__init__.py": "import IPython, ipywidgets",
        "tables/__init__.py": "def f():\n    import pandas as pd",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return root


def test_what_is_allowed_is_allowed(house):
    """The rules do not forbid what the house is built of."""
    assert faults(house) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("errors.py", "import ipy_agent.trace"),
        ("errors.py", "from ipy_agent import anything"),
        ("errors.py", "import ipy_agent"),
        ("trace.py", "from ipy_agent.protocol.items import Item"),
        ("trace.py", "from ipy_agent import protocol"),
        ("trace.py", "from . import protocol"),
        ("trace.py", "from .protocol import items"),
        ("trace.py", "def f():\n    from ipy_agent.protocol import items"),
        ("trace.py", "async def f():\n    import ipy_agent.records"),
        ("trace.py", "class A:\n    try:\n        import ipy_agent.records\n    except E: pass"),
        ("trace.py", "if TYPE_CHECKING:\n    from ipy_agent.records import Recorder"),
        ("trace.py", "import importlib\nimportlib.import_module('ipy_agent.records')"),
        ("trace.py", "from importlib import import_module\nimport_module('.records', 'ipy_agent')"),
        ("trace.py", "__import__('ipy_agent.records')"),
        ("trace.py", "import importlib\nimportlib.import_module(name)"),
        ("protocol/items.py", "from ..trace import Trace"),
        ("protocol/items.py", "from .. import records"),
        ("protocol/items.py", "from time import monotonic"),
        ("protocol/items.py", "def f():\n    import asyncio.queues"),
        ("protocol/items.py", "import logging as l"),
        ("protocol/deep/er.py", "from ...records import Recorder"),
        ("sessions.py", "import pandas"),
        ("sessions.py", "def f():\n    from pandas import DataFrame"),
        ("sessions.py", "if TYPE_CHECKING:\n    pass\nelse:\n    import pandas"),
        ("sessions.py", "from IPython.display import display"),
        ("demo.py", "def f():\n    import ipywidgets"),
        ("demo.py", "from nbclient import NotebookClient"),
        ("notebook/panel.py", "def f():\n    import pandas"),
        ("cli.py", "import xllamacpp"),
        ("unheard.py", ""),
        ("utils/__init__.py", ""),
    ],
)
def test_what_is_forbidden_is_found(house, file, source):
    """Each way to import what one should not is seen, and nothing else is reported."""
    path = house / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")

    assert [fault.split(":")[0] for fault in faults(house)] == [file]


HEAVY = (
    *("pandas", "ipywidgets", "websockets", "httpx2", "starlette", "xllamacpp", "nest_asyncio2"),
    *("dask", "distributed"),
)

LIGHT = {
    *("ipy_agent", "ipy_agent.agent", "ipy_agent.coroutines", "ipy_agent.errors"),
    "ipy_agent.fleet",
    *("ipy_agent.notebook", "ipy_agent.notebook.cells", "ipy_agent.notebook.interrupt"),
    *("ipy_agent.notebook.magics", "ipy_agent.settings"),
    "IPython.core.magic_arguments",
}
"""All that `%load_ext` may add to IPython's own modules: together a fiftieth of its start."""

LOAD = """
    import sys
    from IPython.terminal.interactiveshell import TerminalInteractiveShell

    shell = TerminalInteractiveShell.instance()
    before = set(sys.modules)
    network = []
    sys.addaudithook(
        lambda event, _: network.append(event)
        if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto")
        else None
    )
    import ipy_agent

    imported = set(sys.modules)
    if hasattr(ipy_agent, "load_ipython_extension"):
        assert shell.extension_manager.load_extension("ipy_agent") is None
        assert "agent" in shell.magics_manager.magics["cell"], "there is no %%agent"
    loaded = set(sys.modules)
    heavy, light = (set(names.split()) for names in sys.argv[1:])
    assert not heavy & imported, ("import", heavy & imported)
    assert not heavy & loaded, ("load", heavy & loaded)
    assert loaded - before <= light, ("load", loaded - before - light)
    assert not network, network
    print("light")
"""


def test_loading_brings_in_nothing_heavy_and_touches_no_network(tmp_path):
    """`import ipy_agent` and `%load_ext ipy_agent` are quick, in a fresh process."""
    places = {"HOME": str(tmp_path), "IPYTHONDIR": str(tmp_path / "ipython")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LOAD), " ".join(HEAVY), " ".join(LIGHT)],
        cwd=tmp_path,
        env={**os.environ, **places, "PYTHONPATH": str(HOUSE.parent)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert (done.stdout.strip(), done.returncode) == ("light", 0), done.stderr
