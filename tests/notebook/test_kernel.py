"""The kernel's tools in an IPython shell of this process."""

from __future__ import annotations

import asyncio
import textwrap
import threading

import pytest
from IPython.core.async_helpers import get_asyncio_loop
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from ipy_agent.agent.tools import Result
from ipy_agent.notebook import kernel
from ipy_agent.notebook.kernel import kernel_tools


@pytest.fixture(scope="module")
def only_shell():
    quiet = Config()
    quiet.HistoryManager.enabled = False
    yield InteractiveShell.instance(config=quiet)
    InteractiveShell.clear_instance()
    get_asyncio_loop().close()


@pytest.fixture
def shell(only_shell):
    only_shell.reset()
    # As within a running cell, where a tool is always called.
    with only_shell.display_trap:
        yield only_shell


@pytest.fixture
def tools(shell):
    return {tool.name: tool.function for tool in kernel_tools(shell)}


def test_code_runs_in_the_users_namespace(shell, tools):
    """What the code makes is the user's, and the history is not touched."""
    before = shell.execution_count

    result = tools["python"](code="import math\nx = [1, 2]\nprint('hi')\nlen(x)")

    assert result == Result("hi\n2\nx: list of 2")
    assert shell.user_ns["x"] == [1, 2]
    assert shell.execution_count == before


def test_a_variable_bound_anew_is_named_and_an_old_one_is_not(shell, tools):
    """The model is told what a call changed, and only that."""
    shell.user_ns.update(old=1, anew=1)

    assert tools["python"](code="anew = 2000").text == "anew: int 2000"


def test_an_exception_is_a_failed_result_with_the_last_lines(tools):
    """A traceback reaches the model short and without colours."""
    result = tools["python"](code="def f(n):\n    return f(n + 1)\nf(0)")

    assert result.failed
    assert result.text.splitlines()[-2].startswith("RecursionError:")
    assert result.text.splitlines()[-1] == "f: function"
    assert "\x1b" not in result.text
    assert len(result.text.splitlines()) < 20


@pytest.mark.parametrize(
    "code", ["x = (", "import nonesuch", "raise SystemExit(3)", "1/0", "%nope"]
)
def test_whatever_fails_is_told_and_raises_nothing(tools, code):
    """Syntax errors, exits and exceptions all come back as text."""
    result = tools["python"](code=code)

    assert result.text != "(no output)"


def test_an_interrupt_passes_through(tools):
    """IPython swallows a KeyboardInterrupt in a cell; the run has to see it."""
    with pytest.raises(KeyboardInterrupt):
        tools["python"](code="raise KeyboardInterrupt")


def test_code_may_await_on_the_loop_of_the_shell(shell, tools):
    """Where no loop is running, what a cell made on the shell's loop is there for a call."""
    before = asyncio.run
    shell.run_cell("import asyncio\nasync def give(queue): await queue.put(5)")
    shell.run_cell("q = asyncio.Queue()\nt = asyncio.create_task(q.get())\nawait asyncio.sleep(0)")

    result = tools["python"](code="await give(q)\nprint('given')\ngot = await t\ngot + 1")

    assert result == Result("given\n6\ngot: int 5")
    assert asyncio.run is before


def test_the_shell_awaits_as_before_once_code_ran(shell, tools):
    """The shell's own runner is back, and one that the code chose stays."""
    before = shell.loop_runner

    tools["python"](code="import asyncio; await asyncio.sleep(0)")
    assert shell.loop_runner is before

    tools["python"](code="%autoawait sync")
    chosen = shell.loop_runner
    assert str(chosen) != "asyncio"
    assert tools["python"](code="import asyncio; await asyncio.sleep(0)").failed
    assert shell.loop_runner is chosen
    shell.run_line_magic("autoawait", "asyncio")


def test_an_interrupt_of_awaited_code_passes_through(shell, tools):
    """What it awaits is cancelled, and the run sees the interrupt."""
    code = """
        import asyncio, signal
        cancelled = []
        async def wait():
            asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(True)
                raise
        await wait()
    """

    with pytest.raises(KeyboardInterrupt):
        tools["python"](code=textwrap.dedent(code))

    assert shell.user_ns["cancelled"] == [True]
    assert asyncio.all_tasks(get_asyncio_loop()) == set()


def test_await_on_another_thread_is_one_line(tools):
    """The shell's loop is the main thread's."""
    results = []
    code = "import asyncio; await asyncio.sleep(0)"
    thread = threading.Thread(target=lambda: results.append(tools["python"](code=code)))
    thread.start()
    thread.join(20)

    assert results[0].failed
    assert results[0].text.startswith("ToolError: await needs the notebook's loop")
    assert len(results[0].text.splitlines()) == 1


def test_silence_says_so(tools):
    """A call without output is told as such."""
    assert tools["python"](code="None").text == "(no output)"


def test_inspect_looks_and_names_what_there_is(shell, tools):
    """An unknown variable is answered with those that there are."""
    shell.user_ns["frame"] = {"a": 1}

    assert tools["inspect"](name="frame") == "frame: dict of 1\n  'a': int 1".replace("int ", "")
    assert tools["inspect"](name="Frame") == "there is no variable 'Frame'; there are: frame"


def test_code_of_two_threads_takes_turns(shell, tools):
    """What is printed goes through one `sys.stdout`: whoever comes second waits."""
    inside, go = threading.Event(), threading.Event()
    shell.user_ns.update(inside=inside, go=go)
    order = []

    def first():
        tools["python"](code="inside.set(); go.wait(20); None")
        order.append("first")

    def second():
        tools["python"](code="1")
        order.append("second")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert inside.wait(20)
    threads[1].start()
    assert not kernel._ONE_AT_A_TIME.acquire(blocking=False)
    assert order == []
    go.set()
    for thread in threads:
        thread.join(20)
    assert order == ["first", "second"]


def test_code_does_not_wait_for_ever(tools, monkeypatch):
    """Where other code never ends, the model is told so."""
    monkeypatch.setattr(kernel, "WAIT_SECONDS", 0.0)
    held, over = threading.Event(), threading.Event()

    def hold():
        with kernel._ONE_AT_A_TIME:
            held.set()
            over.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(20)
    result = tools["python"](code="1")
    over.set()
    thread.join(20)

    assert result.failed
    assert "still running" in result.text
