"""The kernel's tools in an IPython shell of this process."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import io
import sys
import textwrap
import threading

import IPython.display
import pandas as pd
import pytest
from IPython.core.async_helpers import get_asyncio_loop
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from ipy_agent.agent.tools import Result
from ipy_agent.coroutines import settle
from ipy_agent.notebook import kernel
from ipy_agent.notebook.kernel import kernel_tools
from ipy_agent.notebook.substitutes import replaced


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
    settle(get_asyncio_loop)  # as when the extension is loaded
    return {tool.name: tool.function for tool in kernel_tools(shell)}


@contextlib.contextmanager
def shown_by(shell):
    """What reaches the user's screen within this context."""
    shown = []
    with replaced(shell.display_pub, publish=lambda data, *_, **__: shown.append(data)):
        yield shown


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


def test_an_interrupted_call_tells_what_came_until_then(shell, tools):
    """What it printed and bound goes with the interrupt, without a traceback; pages are shown."""
    code = "from IPython.display import HTML, display\nx = 3\nprint('half')\ndisplay(HTML('<b>'))\n"

    with shown_by(shell) as shown, pytest.raises(KeyboardInterrupt) as interrupt:
        tools["python"](code=f"{code}raise KeyboardInterrupt")

    assert interrupt.value.args == (
        "half\n(HTML, shown to the user)\nHTML: class\ndisplay: function\nx: int 3",
    )
    assert [output["text/html"] for output in shown] == ["<b>"]


@pytest.mark.parametrize("code", ["exit()\nx = 1", "quit()\nx = 1", "exit"])
def test_code_cannot_end_the_kernel(shell, tools, code):
    """It fails in one line and what follows it does not run; the user's own `exit` is as before."""
    before = dict(vars(shell))
    # As in a terminal; the shell of these tests has no end to ask for.
    asked = []
    vars(shell)["ask_exit"] = lambda: asked.append(True)

    result = tools["python"](code=code)
    assert result.failed
    assert result.text == "ToolError: not run: ending the kernel is left to the user"
    assert "x" not in shell.user_ns
    assert asked == []
    shell.run_cell("exit()")
    assert asked == [True]
    del vars(shell)["ask_exit"]
    assert vars(shell).keys() == before.keys()


def test_code_puts_nothing_into_the_next_cell(shell, tools, tmp_path):
    """Neither by a magic nor by a payload; what was there before stays."""
    file = tmp_path / "code.py"
    file.write_text("a = 1")
    theirs = {"source": "set_next_input", "text": "the user's"}
    shell.payload_manager.write_payload(theirs)
    told = "ToolError: not run: a tool puts nothing into the user's cells; print it instead"

    for code in (
        f"%load {file}",
        "get_ipython().set_next_input('b')",
        "get_ipython().payload_manager.write_payload({'source': 'set_next_input'})",
    ):
        result = tools["python"](code=code)
        assert result.failed
        assert result.text.splitlines()[-1] == told

    assert shell.payload_manager.read_payload() == [theirs]
    assert not hasattr(shell, "rl_next_input")
    shell.payload_manager.clear_payload()


def test_what_code_pages_is_told(shell, tools):
    """Help is for the one who asked, and no pager waits for the user."""
    shell.user_ns["price"] = textwrap.dedent

    text = tools["python"](code="price?").text
    assert "Signature: price(text)" in text
    assert "\x1b" not in text
    assert shell.payload_manager.read_payload() == []


def test_what_code_cleared_is_not_told(shell, tools):
    """With `wait` it is cleared by what comes next, and stays if nothing does."""
    shell.run_cell("from IPython.display import *; n = None")
    loop = "for n in range(3):\n    "

    assert tools["python"](code=f"{loop}print(n); clear_output()").text == "n: int 2"
    assert tools["python"](code=f"{loop}clear_output(wait=True); print(n)").text == "2"
    assert tools["python"](code=f"{loop}print(n); clear_output(wait=True)").text == "2"
    with shown_by(shell) as shown:
        said = tools["python"](code=f"{loop}clear_output(wait=True); display(HTML(str(n)))").text
    assert said == "(HTML, shown to the user)"
    assert [output["text/html"] for output in shown] == ["2"]


def test_control_sequences_are_not_told(tools):
    """They are for a terminal."""
    assert tools["python"](code=r"print('\x1b[31mred\x1b[0m')").text == "red"


class Named:
    """Shown as a page, with a text that says something."""

    def _repr_html_(self):
        return "<i>named</i>"

    def __repr__(self):
        return "Named(1)"


@pytest.mark.parametrize(
    ("code", "told", "kind"),
    [
        ("display(HTML('<b>bold</b>'))", "(HTML, shown to the user)", "text/html"),
        ("HTML('<b>bold</b>')", "(HTML, shown to the user)", "text/html"),
        ("Markdown('**bold**')", "(Markdown, shown to the user)", "text/markdown"),
        ("display(Latex('$x$'))", "(LaTeX, shown to the user)", "text/latex"),
        ("SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"/>')", "(a picture", "image/svg+xml"),
        ("Javascript('1')", "(JavaScript, shown to the user)", "application/javascript"),
        ("Audio([0, 1], rate=9)", "(HTML, shown to the user)", "text/html"),
        ("frame.style", "(HTML, shown to the user)", "text/html"),
        ("display(frame)", "   a\n0  1", "text/html"),
        ("display({'a/b': 1}, raw=True)", "(an output, shown to the user)", "a/b"),
        ("named", "Named(1)", "text/html"),
    ],
)
def test_what_is_more_than_text_is_shown_to_the_user(shell, tools, code, told, kind):
    """The model reads its text, if that says something."""
    shell.user_ns.update(named=Named(), frame=pd.DataFrame({"a": [1]}))
    shell.run_cell("from IPython.display import *")

    with shown_by(shell) as shown:
        result = tools["python"](code=code)

    assert result.text.startswith(told)
    assert not result.failed
    [output] = shown
    assert kind in output


@pytest.mark.parametrize("code", ["frame", "frame.a", "{'a': 1}", "display('text')", "print(1)"])
def test_what_the_model_is_told_whole_is_not_shown_again(shell, tools, code):
    """A table as the last value is its text, which stands in the call."""
    shell.user_ns["frame"] = pd.DataFrame({"a": [1]})

    with shown_by(shell) as shown:
        result = tools["python"](code=code)

    assert "1" in result.text or "text" in result.text
    assert shown == []


def test_a_question_of_code_reaches_the_screen(tools, monkeypatch, capsys):
    """Who is asked sees what for, while all else is captured."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("Ada\n"))
    before = input

    result = tools["python"](code="print('before'); name = input('who? ')")

    assert result.text == "before\nname: str 'Ada'"
    assert capsys.readouterr().out == "who? "
    assert input is before


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


FLOODS = {
    "print": ("for _ in range(100): print('x' * 10**6)", "x" * 1_000),
    "a million small writes": ("import sys\nfor _ in range(10**6): sys.stdout.write('ab')", "abab"),
    "warnings": ("import sys\nprint('e' * 10**8, file=sys.stderr)", "e" * 1_000),
    "a value": ("'v' * 10**8", "'vvvv"),
    "displays": ("for n in range(10_000): display(n)", "0\n1\n2\n"),
    "an exception": ("raise ValueError('z' * 10**8)", "z" * 1_000),
}


@pytest.mark.parametrize(("code", "begins"), FLOODS.values(), ids=FLOODS)
def test_a_flood_of_output_is_head_and_tail(shell, tools, code, begins):
    """However it is made, what is told is bounded, and the next call works."""
    shell.user_ns["display"] = IPython.display.display

    with shown_by(shell) as shown:
        told = tools["python"](code=code).text

    assert begins in told[:2_000]
    assert "left out" in told
    assert len(told) < 500_000
    assert len(shown) <= 100
    assert tools["python"](code="1 + 1").text == "2"


def test_a_thread_that_goes_on_printing_holds_little(shell, tools):
    """What it got hold of while the code ran stays bounded when the code is over."""
    code = "import sys\nkept = sys.stdout\nprint('begins')"

    assert tools["python"](code=code).text.startswith("begins")
    for _ in range(1_000):
        shell.user_ns["kept"].write("x" * 10_000)
    assert len(shell.user_ns["kept"].getvalue()) < 250_000


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("import builtins\nbuiltins.len = None", "len"),
        ("import builtins\nbuiltins.print = builtins.open = lambda *_: 1 / 0", "print, open"),
        ("import builtins\ndel builtins.isinstance", "isinstance"),
        ("import builtins\nbuiltins.input = 3\n1 / 0", "input"),
        ("import builtins\nfor n in ('str', 'type', 'dict', 'list'): setattr(builtins, n, 0)", ""),
        ("import builtins\nfor n in list(vars(builtins)): delattr(builtins, n)", ""),
    ],
    ids=range(6),
)
def test_built_ins_that_code_replaced_are_put_back(tools, code, names):
    """The model is told, and the next call works; what was added stays."""
    before = {**vars(builtins)}

    told = tools["python"](code=code).text

    assert "built-ins put back as they were: " in told
    assert names in told
    assert vars(builtins) == before
    assert tools["python"](code="print(len([1]))\nimport builtins\nbuiltins.more = 1").text == "1"
    assert vars(builtins).pop("more") == 1


@pytest.mark.parametrize(
    "code",
    [
        "import sys\nsys.stdout = sys.stderr = None",
        "import sys, io\nsys.stdout = io.StringIO()\nsys.displayhook = None",
        "import sys\nsys.stdout.close()",
        "import os, tempfile\nwith tempfile.TemporaryDirectory() as d: os.chdir(d)",
        "import threading\nthreading.Thread(target=lambda: 1 / 0).start",
        "import sys\nclass Stop(SystemExit): pass\nraise Stop('enough')",
        "import asyncio\nraise asyncio.CancelledError",
        "raise GeneratorExit",
        "get_ipython().display_pub = None",
        "import sys\nsys.exit()",
    ],
    ids=range(10),
)
def test_whatever_code_does_to_its_surroundings_the_next_call_works(
    tools, shell, code, monkeypatch, tmp_path
):
    """Streams and hooks are the cell's again; another folder is an effect like any other."""
    monkeypatch.chdir(tmp_path)
    before = sys.stdout, sys.stderr, sys.displayhook, shell.display_pub

    tools["python"](code=code)

    assert (sys.stdout, sys.stderr, sys.displayhook, shell.display_pub) == before
    assert tools["python"](code="print('fine')\n1 + 1").text == "fine\n2"
