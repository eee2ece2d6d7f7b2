"""What tools do to a real kernel and to the process: the cell ends, and the next one works."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.kernel

STATUS = "[(r.name, r.status) for r in __import__('ipy_agent').session().records.tools][-{}:]"


def python(code):
    return {"tool_calls": [{"name": "python", "arguments": {"code": code}}]}


def said(cell):
    return "\n".join(one.get("text/plain", "") for one in cell.displays)


FORKS = """
import os
child = os.fork()
if child == 0:
    import ipy_agent
    try:
        ipy_agent.session().run('from the child')
    except BaseException as error:
        with open({log!r}, 'a') as log:
            log.write(type(error).__name__ + ' ')
{end}
os.waitpid(child, 0)[1]
"""


@pytest.mark.parametrize(
    "end",
    [
        "    raise SystemExit",
        "    raise KeyboardInterrupt",
        "    1 / 0",
        "    import os; os._exit(0)",
    ],
)
def test_a_child_that_a_tool_forks_touches_nothing_of_the_parents(kernel, serve, tmp_path, end):
    """However it ends: its session refuses it, and it never comes back as a second kernel."""
    log = tmp_path / "log"
    code = FORKS.format(log=str(log), end=end)
    kernel.run(serve(python(code), {"text": "forked"}, {"text": "alone"}))
    kernel.run("%agent reset\nimport ipy_agent\ns = ipy_agent.session()")

    cell = kernel.run("%%agent --mode auto\nFork.")
    after = kernel.run("%%agent\nStill there?")

    assert cell.status == "ok", cell.error
    assert log.read_text("utf-8") == "UsageError "
    assert "forked" in said(cell)
    assert "alone" in said(after)
    assert kernel.run("[row.prompt for row in s.records.cells][-2:]").value == (
        "['Fork.', 'Still there?']"
    )
    assert kernel.run("s._notes.trouble").outputs == []


def test_a_tool_that_forks_and_returns_in_both_returns_once(kernel, serve):
    """The child ends where the tool does."""
    kernel.run(serve({"tool_calls": [{"name": "twice"}]}, {"text": "once"}, {"text": "alone"}))
    kernel.run(
        "import os, ipy_agent\n@ipy_agent.tool\ndef twice() -> str:\n    'Fork.'\n"
        "    child = os.fork()\n    if child:\n        os.waitpid(child, 0)\n"
        "    return 'parent' if child else 'child'"
    )

    cell = kernel.run("%%agent --mode auto\nFork.")

    assert "-> parent" in said(cell)
    assert "child" not in said(cell)
    assert "alone" in said(kernel.run("%%agent\nStill there?"))


LEFT = """
import asyncio, subprocess, sys, threading
stop = threading.Event()
def chatter():
    while not stop.wait(0.001):
        print('x' * 100)
threads = [threading.Thread(target=chatter) for _ in range(3)]
[t.start() for t in threads]
async def forever():
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass
async def begin():
    return asyncio.get_running_loop().create_task(forever())
task = await begin()
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
"""


def test_threads_tasks_and_processes_that_a_tool_leaves_behind_disturb_nobody(own_kernel, serve):
    """They are its effects, and go on; so does the run, and the next cell."""
    own_kernel.run(serve(python(LEFT), {"text": "left"}, {"text": "next"}))

    cell = own_kernel.run("%%agent --mode auto\nLeave.")
    after = own_kernel.run("%%agent\nGo on.")

    assert cell.status == "ok", cell.error
    assert "left" in said(cell)
    assert "next" in said(after)
    assert (
        own_kernel.run(
            "stop.set(); child.kill(); child.wait(); [t.join() for t in threads]; task.done()"
        ).value
        == "False"
    )


def test_a_folder_that_is_gone_is_no_end(own_kernel, serve):
    """Code that goes into a folder and takes it away leaves a cell, a journal and a next cell."""
    gone = "import os, tempfile\nwith tempfile.TemporaryDirectory() as d: os.chdir(d)"
    own_kernel.run(serve(python(gone), {"text": "gone"}, python("x = 1"), {"text": "next"}))

    assert "gone" in said(own_kernel.run("%%agent --mode auto\nGo."))
    assert "next" in said(own_kernel.run("%%agent --mode auto\nGo on."))
    assert own_kernel.run(STATUS.format(2)).value == str([("python", "completed")] * 2)


def test_a_model_that_goes_round_in_circles_ends_with_one_line_and_the_next_cell_goes_on(
    kernel, serve
):
    """At the fifth same call."""
    kernel.run(serve(*[python("turn = 1")] * 5, {"text": "another way"}))

    cell = kernel.run("%%agent --mode auto\nGo.")
    after = kernel.run("%%agent\nGo on.")

    assert cell.error == (
        "BudgetExceeded: the model made the same call of python 5 times in a row: "
        "ask the next cell to go on in another way"
    )
    assert "another way" in said(after)


def test_a_flood_reaches_the_cell_as_head_and_tail(kernel, serve):
    """100 MB of output and ten thousand displays; the kernel does not keep them either."""
    flood = "for n in range(100): print('x' * 10**6)\nfor n in range(10_000): display(HTML('<i>'))"
    kernel.run("from IPython.display import HTML, display")
    kernel.run(serve(python(flood), {"text": "dry"}))

    cell = kernel.run("%%agent --mode auto\nFlood.")

    assert cell.status == "ok", cell.error
    assert "dry" in said(cell)
    assert sum(one.get("text/html") == "<i>" for one in cell.displays) == 100
    assert sum(len(str(one)) for one in cell.outputs) < 10**6
    kernel.run("row = ipy_agent.session().records.tools[-1]\nlong = len(row.output)")
    assert int(kernel.run("long").value) < 10**6


def test_a_call_that_takes_long_says_so_in_the_cell_and_is_ended_by_nobody_else(own_kernel, serve):
    """Below the table, while the main thread is busy; the user's interrupt then ends it."""
    own_kernel.run(serve(python("while True: pass"), {"text": "next"}))
    own_kernel.run("import ipy_agent.notebook.answer as answer\nanswer.LONG_SECONDS = 0.5")

    client, told = own_kernel.client, []
    asked = client.execute("%%agent --mode auto\nLoop.")
    while True:
        message = client.get_iopub_msg(timeout=60)
        content = message["content"]
        if message["msg_type"] == "comm_msg":
            value = str(content["data"].get("state", {}).get("value", ""))
            if "this call takes more than 0.5 s" in value:
                told.append(value)
                own_kernel.interrupt()
        idle = message["msg_type"] == "status" and content["execution_state"] == "idle"
        if idle and message["parent_header"].get("msg_id") == asked:
            break

    assert len(told) == 1
    assert own_kernel.run(STATUS.format(1)).value == "[('python', 'interrupted')]"
    assert "next" in said(own_kernel.run("%%agent\nGo on."))


def test_a_question_that_nobody_answers_is_over_with_the_budget(own_kernel, serve):
    """The cell ends at its deadline with one line, nothing ran, and the next cell works."""
    own_kernel.run(serve(python("ran = 1"), {"text": "next"}))
    own_kernel.run("%agent budget --seconds 1")

    cell = own_kernel.run("%%agent\nAsk.", answer=lambda: None)

    assert cell.error.startswith("BudgetExceeded: the run took 1 s: raise budget_seconds")
    assert own_kernel.run("'ran' in globals()").value == "False"
    own_kernel.run("%agent budget --seconds 60")
    assert "next" in said(own_kernel.run("%%agent\nGo on."))


def test_a_tool_that_outlives_the_budget_is_not_killed_and_the_cell_then_ends(own_kernel, serve):
    """What it did stays; the run has one output for it, and ends with one line."""
    slow = f"import ctypes\n{'ctypes.CDLL(None).usleep(999_000); ' * 2}\nran = 1"
    own_kernel.run(serve(python(slow), {"text": "next"}))
    own_kernel.run("%agent budget --seconds 1")

    cell = own_kernel.run("%%agent --mode auto\nWork.")

    assert cell.error.startswith("BudgetExceeded: the run took 1 s: raise budget_seconds")
    assert own_kernel.run("ran").value == "1"
    own_kernel.run("%agent budget --seconds 60")
    assert "next" in said(own_kernel.run("%%agent\nGo on."))
