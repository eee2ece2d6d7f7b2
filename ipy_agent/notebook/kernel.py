"""The kernel's own tools: `python` runs code in the user's namespace, `inspect` looks at it.

Both run on the main thread, where output belongs to the cell that is running. What the code
prints, shows and raises goes to the model as text and, bounded, into the cell; pictures and
pages are shown in the cell where they arise, and pictures to models that take them. Code with
`await` runs on the loop that a cell's `await` runs on; code without it never meets a loop.
"""

from __future__ import annotations

import ast
import contextlib
import re
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from types import ModuleType
from typing import Annotated, Any

from IPython.core.interactiveshell import InteractiveShell
from msgspec import Meta

from ipy_agent.agent.tools import Result, Tool, tool_of
from ipy_agent.coroutines import awaited
from ipy_agent.errors import ToolError
from ipy_agent.notebook.capture import captured
from ipy_agent.notebook.interrupt import Gate, interrupts_go_to
from ipy_agent.notebook.preview import brief, preview, shown
from ipy_agent.notebook.substitutes import builtins_put_back, replaced

__all__ = ["kernel_tools"]

CHANGES = 12
WAIT_SECONDS = 120.0

_ONE_AT_A_TIME = threading.RLock()
"""Code of several branches takes turns: all that it prints goes through one `sys.stdout`."""

# `np.float64(4.2)` says no more than `4.2`, and small models copy it.
_NUMPY = re.compile(r"\bnp\.(?:float|int|uint|bool|str)\w*\(([^()]*)\)")


def kernel_tools(shell: InteractiveShell) -> list[Tool]:
    """Return the tools of a shell: `python` and `inspect`."""

    def python(code: Annotated[str, Meta(description=_CODE)]) -> Result:
        return _run(shell, code)

    def inspect(name: str) -> str:
        if name not in shell.user_ns:
            close = [known for known in _names(shell) if known.lower() == name.lower()]
            known = ", ".join(close or sorted(_names(shell))[:40]) or "none"
            return f"there is no variable {name!r}; there are: {known}"
        return preview(name, shell.user_ns[name], head=True)

    return [
        tool_of(python, description=_PYTHON, shows="code"),
        tool_of(inspect, description=_INSPECT, read_only=True),
    ]


_PYTHON = """\
Run Python code in the notebook, where variables stay. Returns what it printed, the value of \
its last line and the variables it made."""

_CODE = """\
For example: small = df[df['a'] < 3]
small.groupby('b')['c'].mean().sort_values()"""
"""The example is what teaches a small model to write lines within JSON."""

_INSPECT = """\
Look at one variable of the user's notebook without running code: its type, shape, columns \
with dtypes and ranges, and first rows."""


def _run(shell: InteractiveShell, code: str) -> Result:
    if not _ONE_AT_A_TIME.acquire(timeout=WAIT_SECONDS):
        return Result("not run: other code is still running in this kernel", failed=True)
    try:
        return _run_alone(shell, code)
    finally:
        _ONE_AT_A_TIME.release()


def _run_alone(shell: InteractiveShell, code: str) -> Result:
    before = {name: shell.user_ns[name] for name in _names(shell)}
    gate = Gate()
    with (
        interrupts_go_to(gate),
        _called_before_code(shell, gate.open),
        _awaiting(shell),
        _kept_from_code(shell),
        captured(shell) as capture,
        builtins_put_back() as broken,
    ):
        ended = shell.run_cell(code, store_history=False)
    error = ended.error_before_exec or ended.error_in_exec
    interrupted = gate.asked or isinstance(error, KeyboardInterrupt)
    capture.display()
    said = capture.texts(raised=not interrupted)
    tell = brief if said else shown
    made = [f"{name}: {tell(value)}" for name, value in _changed(shell, before)]
    if broken:
        made.append(f"built-ins put back as they were: {', '.join(broken)}")
    text = _NUMPY.sub(r"\1", "\n".join(said + made))
    if interrupted:
        # IPython swallows it; the run has to know, and the model what there was until then.
        raise KeyboardInterrupt(text)
    return Result(text or "(no output)", pictures=capture.pictures(), failed=error is not None)


@contextlib.contextmanager
def _kept_from_code(shell: InteractiveShell) -> Iterator[None]:
    """Keep from the code what is the user's: to end the kernel, and what the next cell holds.

    What it pages, such as help, is printed: a pager would wait for the user.
    """
    with (
        replaced(shell, ask_exit=_refuse_exit, set_next_input=_refuse_payload),
        replaced(shell.payload_manager, write_payload=_refuse_payload),
        replaced(shell.hooks, show_in_pager=_print_page),
    ):
        yield


def _refuse_exit() -> None:
    raise ToolError("not run: ending the kernel is left to the user")


def _refuse_payload(*_: object, **__: object) -> None:
    raise ToolError("not run: a tool puts nothing into the user's cells; print it instead")


def _print_page(data: Any, **_: object) -> None:
    text = data.get("text/plain", "") if isinstance(data, dict) else data
    sys.stdout.write(f"{text}\n")


class _Caller(ast.NodeTransformer):
    """An AST transformer that changes nothing: IPython applies it right before code runs."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def visit(self, tree: Any) -> Any:
        self._call()
        return tree


@contextlib.contextmanager
def _called_before_code(shell: InteractiveShell, call: Callable[[], None]) -> Iterator[None]:
    caller = _Caller(call)
    shell.ast_transformers.append(caller)
    try:
        yield
    finally:
        shell.ast_transformers.remove(caller)


@contextlib.contextmanager
def _awaiting(shell: InteractiveShell) -> Iterator[None]:
    """Have code with `await` run within the loop that is running; IPython's own way starts one."""
    before = shell.loop_runner
    if str(before) != "asyncio":  # the user chose another kind of loop, or none
        yield
        return
    shell.loop_runner = _at_home
    try:
        yield
    finally:
        if shell.loop_runner is _at_home:
            shell.loop_runner = before


def _at_home(coroutine: Coroutine[Any, Any, Any]) -> Any:
    if threading.current_thread() is not threading.main_thread():
        coroutine.close()
        raise ToolError(
            "await needs the notebook's loop, and this call runs on a thread without it: "
            "do it without await, or from a cell's own thread"
        )
    return awaited(coroutine)


def _changed(shell: InteractiveShell, before: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return the variables that were made or bound anew."""
    now = {name: shell.user_ns[name] for name in _names(shell)}
    changed = [name for name in now if name not in before or before[name] is not now[name]]
    return [(name, now[name]) for name in changed[:CHANGES]]


def _names(shell: InteractiveShell) -> list[str]:
    """Return the user's own variables: no private ones, no modules, nothing of IPython's."""
    return [
        name
        for name, value in shell.user_ns.items()
        if not name.startswith("_")
        and name not in shell.user_ns_hidden
        and not isinstance(value, ModuleType)
    ]
