"""The same few cells wherever notebooks and scripts are run: the right answer, and its rows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import nbformat
import pexpect
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.kernel

SECONDS = 90
BIN = Path(sys.executable).parent
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
PROMPT = "What is 6 times {seven}? Leave $seven and {'this'} and %s as they are."
SCRIPT = (
    {"tool_calls": [{"name": "python", "arguments": {"code": "made = 6 * seven\nmade"}}]},
    {"text": "It is **42**."},
)
ROWS = """\
s = __import__('ipy_agent').session()
print('ANSWER', said, made)
print('TURNS', s.turns['status'].tolist(), (s.turns['held_items'] > 0).tolist())
print('TOOLS', s.tools['output'].tolist(), s.tools['status'].tolist())
print('PROMPT', s.messages['text'].iloc[0].rpartition('\\n\\n')[2])
"""
TOLD = f"""\
ANSWER It is **42**. 42
TURNS ['completed', 'completed'] [False, True]
TOOLS ['42\\nmade: int 42'] ['completed']
PROMPT {PROMPT}
"""


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """The variables of a user with an IPython of their own and the server's token."""
    monkeypatch.setenv("TEST_TOKEN", "a-token-for-tests")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.delenv("IPY_AGENT_ENDPOINT", raising=False)
    return os.environ


@pytest.fixture
def notebook(serve, tmp_path, environment):  # noqa: ARG001 (its kernel inherits the variables)
    """Return a function that writes a notebook and returns its file."""

    def write(seven="seven = 7", prompt=f"%%agent --mode auto -o said\n{PROMPT}", rows=ROWS):
        made = nbformat.v4.new_notebook(metadata={"kernelspec": KERNEL})
        connect = serve(*SCRIPT)
        sources = (seven, "%load_ext ipy_agent", connect, prompt, "%agent turns", rows)
        made.cells = [nbformat.v4.new_code_cell(source) for source in sources]
        made.cells[0].metadata.tags = ["parameters"]
        file = tmp_path / "notebook.ipynb"
        nbformat.write(made, file)
        return file

    return write


def seen(command, **more):
    """See a command through; return what it printed, once nothing went wrong."""
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=SECONDS, check=False, **more
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(file):
    """Check a notebook that was executed: the answer, the table of turns, and the rows."""
    cells = [cell for cell in nbformat.read(file, 4).cells if cell.cell_type == "code"]
    *_, answer, turns, rows = cells
    displays = [output.data for output in answer.outputs if output.output_type == "display_data"]
    html = "".join(data.get("text/html", "") for data in displays)
    assert "<strong>42</strong>" in html
    assert "It is **42**." in "".join(data.get("text/plain", "") for data in displays)
    (frame,) = turns.outputs
    assert "[2 rows x " in frame.data["text/plain"]
    assert "".join(output.text for output in rows.outputs) == TOLD


def test_jupyter_execute(notebook):
    """It runs the notebook from top to bottom and leaves it with its outputs."""
    file = notebook()

    seen([BIN / "jupyter", "execute", "--inplace", file])

    check(file)


def test_papermill_with_parameters(notebook, tmp_path):
    """A parameter reaches the tool; the prompt's braces and dollars are nobody's template."""
    done = tmp_path / "done.ipynb"

    seen(
        [BIN / "papermill", notebook("seven = 1"), done, "-p", "seven", 7, "--no-progress-bar"],
    )

    check(done)
    assert "injected-parameters" in done.read_text()


def test_nbclient(notebook, tmp_path):
    """A program that runs notebooks gets the outputs in the notebook's cells."""
    done, made = tmp_path / "done.ipynb", nbformat.read(notebook(), 4)

    NotebookClient(made, timeout=SECONDS, kernel_name="python3").execute()

    nbformat.write(made, done)
    check(done)


def test_where_nobody_can_be_asked_nothing_runs(notebook, tmp_path):
    """Without stdin the answer is no, and the cell says how to allow it; the notebook goes on."""
    rows = "print('made' in dir(), __import__('ipy_agent').session().tools['status'].tolist())"
    file = notebook(prompt="%%agent\nWhat is 6 times 7?", rows=rows)

    seen([BIN / "papermill", file, tmp_path / "done.ipynb", "--no-progress-bar"])

    *_, asked, _, rows = nbformat.read(tmp_path / "done.ipynb", 4).cells
    assert rows.outputs[0].text == "False ['refused']\n"
    assert "--mode auto" in str(asked.outputs)


@pytest.fixture
def terminal(environment):
    """A person's terminal, in which IPython has just started."""
    quiet = {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
    started = pexpect.spawn(
        sys.executable,
        ["-m", "IPython", "--no-banner", "--no-confirm-exit", "--colors=nocolor"],
        env={**environment, **quiet},
        encoding="utf-8",
        timeout=SECONDS,
        dimensions=(50, 160),
    )
    yield started
    started.close(force=True)


BEGUN = re.escape("\x1b[?2004l")
"""What IPython says to a terminal when a cell begins: no more pasting."""
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def typed(terminal, number, *lines):
    """Type lines at a prompt, as fast as a person, and start them."""
    terminal.expect_exact(f"In [{number}]:")
    for line in lines:
        terminal.send(f"{line}\r")


def test_a_terminal_that_a_person_types_into(terminal, serve):
    """A cell ends with empty lines, its question is answered with y; no escapes but colours."""
    typed(terminal, 1, "%load_ext ipy_agent")
    typed(terminal, 2, serve(*SCRIPT))
    typed(terminal, 3, "seven = 7")
    typed(terminal, 4, "%%agent -o said", PROMPT, "", "")
    terminal.expect(BEGUN)
    terminal.expect(r"Run python\?[^\r\n]*\] ")
    question = COLOUR.sub("", terminal.before)
    terminal.send("y\r")
    terminal.expect_exact("It is **42**.\r\n")
    answer = terminal.before
    typed(terminal, 5, ROWS.partition("\n")[0])
    typed(terminal, 6, "; ".join(ROWS.splitlines()[1:]))
    terminal.expect_exact("ANSWER It is **42**. 42\r\n")
    terminal.expect_exact("\x1b")
    rows = terminal.before

    assert question.count("made = 6 * seven") == 1
    assert "42\r\nmade: int 42" in answer
    assert "\x1b" not in question + answer
    assert ("ANSWER It is **42**. 42\r\n" + rows).replace("\r\n", "\n").strip() == TOLD.strip()


def test_a_file_that_ipython_runs(serve, tmp_path, environment):
    """A script of IPython's, with magics, and no terminal to ask at."""
    file = tmp_path / "script.ipy"
    ask = f"get_ipython().run_cell_magic('agent', '--mode auto -o said', {PROMPT!r})"
    file.write_text(f"%load_ext ipy_agent\n{serve(*SCRIPT)}\nseven = 7\n{ask}\n{ROWS}")

    said = seen([sys.executable, "-m", "IPython", file], env=environment)

    called = said.index("[python]\nmade = 6 * seven\nmade\n-> 42\nmade: int 42\n[turn 1 ")
    assert called < said.index("\nIt is **42**.\n[turn 2 ")
    assert said.endswith(TOLD)
    assert "\x1b" not in said


def test_a_plain_script_with_a_session(serve, tmp_path, environment):
    """No IPython and no notebook: a session, a tool of one's own, an answer and its rows."""
    url = serve(
        {"tool_calls": [{"name": "times", "arguments": {"a": 6, "b": 7}}]}, {"text": "It is 42."}
    ).split()[2]
    file = tmp_path / "script.py"
    file.write_text(
        "import sys\nimport ipy_agent\n\n"
        "@ipy_agent.tool(read_only=True)\n"
        "def times(a: int, b: int) -> int:\n    'Multiply.'\n    return a * b\n\n"
        f"here = ipy_agent.Endpoint.named({url!r}, key_env='TEST_TOKEN')\n"
        "session = ipy_agent.Session(here)\n"
        "print(session.run('What is {6} times 7?').text)\n"
        "print(session.turns['status'].tolist(), session.tools['output'].tolist())\n"
        "print('IPython' in sys.modules)\n"
    )

    said = seen([sys.executable, file], env=environment)

    assert said == "It is 42.\n['completed', 'completed'] ['42']\nFalse\n"


@pytest.fixture(params=["--user", "--sys-prefix"])
def everywhere(request, tmp_path, environment):
    """Return a Python in whose every IPython `%%agent` was installed, and its variables."""
    folder = tmp_path / "venv"
    venv.create(folder)
    python = folder / "bin" / "python"
    variables = {**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    profile = tmp_path / "ipython" / "profile_default"
    profile.mkdir(parents=True)
    assigned = "c = get_config()\nc.InteractiveShellApp.extensions = ['autoreload']"
    (profile / "ipython_config.py").write_text(assigned)

    seen([python, "-m", "ipy_agent", "install", request.param], env=variables)
    yield python, variables
    seen([python, "-m", "ipy_agent", "install", request.param, "--undo"], env=variables)
    assert (profile / "ipython_config.py").read_text() == assigned
    assert not (folder / "etc" / "ipython" / "ipython_config.py").exists()


CHECK = (
    "loaded = get_ipython().extension_manager.loaded\n"
    "print('ipy_agent' in loaded, 'IPython.extensions.autoreload' in loaded)\n"
    "get_ipython().run_line_magic('load_ext', 'ipy_agent')\n"
    "get_ipython().run_line_magic('agent', 'mode read')"
)
LOADED = "True True\nThe ipy_agent extension is already loaded. To reload it, use:\n"


def test_an_installed_line_is_read_by_terminals(everywhere):
    """`%%agent` is there from the start, beside what the profile loads, and may be loaded again."""
    python, variables = everywhere

    said = seen([python, "-m", "IPython", "--colors=nocolor", "-c", CHECK], env=variables)

    assert said.startswith(LOADED)


def test_an_installed_line_is_read_by_kernels(everywhere, tmp_path):
    """In notebooks as well."""
    python, variables = everywhere
    folder = tmp_path / "kernels" / "here"
    folder.mkdir(parents=True)
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "here", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    file = tmp_path / "notebook.ipynb"
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CHECK)])
    nbformat.write(made, file)

    seen(
        [BIN / "jupyter", "execute", "--inplace", "--kernel_name=here", file],
        env={**variables, "JUPYTER_PATH": str(tmp_path)},
    )

    assert nbformat.read(file, 4).cells[0].outputs[0].text.startswith(LOADED)


def test_the_doctor_of_a_kernel_knows_more(kernel, unused_port):
    """It looks at the session's endpoint, and at what this kernel's front end can do."""
    kernel.run(f"%agent connect http://127.0.0.1:{unused_port}/v1")

    lines = kernel.run("%agent doctor").stdout.splitlines()

    marks = {line.split()[1]: line.split()[0] for line in lines}
    assert marks["endpoint"] == "ok"
    assert marks["answers"] == "missing"
    assert marks["stdin"] == "note"
    assert marks["cells"] == "note"
    assert marks["comm"] == "ok"
    assert any(line.endswith("this session's") for line in lines)
