"""A session that is kept: a kernel that is killed and starts again goes on with it."""

from __future__ import annotations

import threading

import pytest

pytestmark = pytest.mark.kernel

SECONDS = 60


def python(code):
    return {"tool_calls": [{"name": "python", "arguments": {"code": code}}]}


def restart(kernel):
    """Kill the kernel and start it again."""
    kernel.manager.restart_kernel(now=True)
    kernel.client.wait_for_ready(timeout=SECONDS)
    kernel.run("%load_ext ipy_agent")


def test_a_killed_kernel_goes_on_where_it_was(own_kernel, serve, tmp_path):
    """The conversation and its branches are there; what was cut off and what is gone is told."""
    kernel, log = own_kernel, tmp_path / "log"
    slow = f"open({str(log)!r}, 'a').write('ran ')\nimport time\ntime.sleep(600)"
    endpoint = serve(python("total = 1 + 1"), {"text": "It is 2."}, python(slow), {"text": "new"})
    kernel.run(f"{endpoint}\n%agent mode auto\nrows = [1, 2]")
    kernel.run("%%agent\nHow many in $`rows`?", cell_id="a")
    kernel.run("%agent fork idea")
    listed = kernel.run("%agent sessions").stdout
    name = listed.split()[0]
    assert "this one" in listed
    kernel.client.execute("%%agent\nSleep.")
    waiting = threading.Event()
    while not log.exists():
        waiting.wait(0.05)
    restart(kernel)

    assert "was cut off" in kernel.run("%agent sessions").stdout
    told = kernel.run(f"%agent resume {name.removeprefix('ipy-agent-')[:6]}").stdout
    assert f"resumed {name}: 2 cell runs on 2 branches (main, idea); no tool ran again" in told
    assert "cut off when its kernel ended: run 2; side effects unknown" in told
    assert "variables that it talks about and that are gone: rows, time, total" in told
    kernel.run(f"{endpoint}\nimport ipy_agent\ns = ipy_agent.session()")
    assert kernel.run("list(s.cells['status'])").value == "['completed', 'aborted']"
    assert kernel.run("list(s.turns['status'])").value == "['completed', 'completed', 'aborted']"
    answer = kernel.run("%%agent\nGo on.", cell_id="b")
    assert "new" in answer.displays[0]["text/plain"]
    said = "[i.get('output') for i in s._branches.tree.said('main') if 'output' in i]"
    assert "cut off when its kernel ended; side effects unknown" in kernel.run(said).value
    assert log.read_text() == "ran "


def test_a_session_that_is_not_there_is_one_line(kernel):
    """And says where to look."""
    told = kernel.run("%agent resume nobody")

    assert told.status == "error"
    assert "UsageError: there is no session 'nobody': see %agent sessions" in told.error
