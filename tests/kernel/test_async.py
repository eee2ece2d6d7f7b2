"""Tools that await, on the loop of a real kernel, beside what the user has on that loop."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.kernel

SECONDS = 60

# A client as people have them: its task waits on a queue, which belongs to one loop for ever.
CLIENT = """
import asyncio, ipy_agent
class Client:
    def __init__(self):
        self.asked, self.ticks, self.lock = asyncio.Queue(), 0, asyncio.Lock()
        self.tasks = [asyncio.create_task(self.serve()), asyncio.create_task(self.tick())]
    async def serve(self):
        while True:
            number, reply = await self.asked.get()
            reply.set_result(number * 2)
    async def tick(self):
        while True:
            self.ticks += 1
            await asyncio.sleep(0.001)
    async def ticked(self, more=3):
        wanted = self.ticks + more
        while self.ticks < wanted:
            await asyncio.sleep(0.001)
    async def double(self, number):
        async with self.lock:
            reply = asyncio.get_running_loop().create_future()
            await self.asked.put((number, reply))
            await self.ticked()
            return await reply
async def made():
    client = Client()
    assert await client.double(1) == 2
    return client
"""

TOOL = """
@ipy_agent.tool
async def double(number: int) -> int:
    "Double a number."
    print("asked for", number)
    doubled = await client.double(number)
    print("got", doubled)
    return doubled
"""

ASYNCIO = """
import asyncio, sys
def asyncio_as_it_is():
    loop = asyncio.get_running_loop()
    parts = asyncio.run, asyncio.Task, asyncio.Future, asyncio.get_event_loop
    methods = loop.run_until_complete, loop.run_forever, loop._run_once
    policy = asyncio.get_event_loop_policy().get_event_loop
    seen = {part.__module__ for part in (*parts, *methods, policy)}
    return "nest_asyncio2" in sys.modules, sorted(seen)
"""

SAY = """
def say(text):
    k = get_ipython().kernel
    k.session.send(k.iopub_socket, 'stream', {'name': 'stdout', 'text': text},
                   parent=k.get_parent())
"""


def call(name: str, **arguments: object) -> dict[str, object]:
    return {"tool_calls": [{"name": name, "arguments": arguments}]}


def outputs(kernel, count):
    """Return what the last calls of tools gave, as the model saw it."""
    code = f"ipy_agent.session().tools['output'].tail({count}).tolist()"
    return ast.literal_eval(kernel.run(code).value)


def test_a_client_of_an_earlier_cell_is_used_by_an_async_tool_and_by_await(kernel, serve):
    """Its queue, lock and tasks belong to the kernel's loop, and all go on while a tool awaits."""
    kernel.run(
        serve(
            call("double", number=21),
            call("python", code="got = await client.double(4)\nprint('so')\ngot + 1"),
            {"text": "Done."},
        )
    )
    kernel.run(CLIENT)
    kernel.run("client = await made()")
    kernel.run(TOOL)

    cell = kernel.run("%%agent --mode auto\nDouble.")

    assert cell.status == "ok", cell.error
    assert outputs(kernel, 2) == ["42", "so\n9\ngot: int 8"]
    assert kernel.run("[task.done() for task in client.tasks]").value == "[False, False]"
    assert kernel.run("await client.double(5)").value == "10"


def test_what_an_async_tool_prints_lands_in_the_cell_that_called_it(kernel, serve):
    """Before and after it awaited, and not in the cell that made the client or the tool."""
    kernel.run(serve(call("double", number=3), {"text": "Done."}))
    kernel.run(CLIENT)
    kernel.run("client = await made()")
    kernel.run(TOOL)

    cell = kernel.run("%%agent --mode auto\nDouble.")

    assert "asked for 3\ngot 6\n" in cell.stdout


def test_awaited_code_that_fails_is_told_as_other_code_is(kernel, serve):
    """The model gets the traceback's last lines, and the next call works."""
    kernel.run(
        serve(
            call("python", code="await asyncio.sleep(0)\nx = 1\n1 / 0"),
            call("python", code="async with asyncio.timeout(0): await asyncio.Event().wait()"),
            call("python", code="await = 3"),
            call("python", code="await asyncio.sleep(0, 'fine')"),
            {"text": "Done."},
        )
    )
    kernel.run("import asyncio, ipy_agent")

    cell = kernel.run("%%agent --mode auto\nGo.")

    assert cell.status == "ok", cell.error
    kernel.run("failed, late, wrong, fine = ipy_agent.session().tools['output'].tail(4)")
    assert kernel.run("failed.splitlines()[-2:]").value == (
        "['ZeroDivisionError: division by zero', 'x: int 1']"
    )
    assert kernel.run("late.splitlines()[-1], 'SyntaxError' in wrong, fine").value == (
        "('TimeoutError: ', True, \"'fine'\")"
    )


def test_asyncio_stays_as_it_is_until_a_tool_awaits(own_kernel, serve):
    """Loading and ordinary tools change nothing; then one loop changes, and not the socket's."""
    kernel = own_kernel
    untouched = kernel.run(f"{ASYNCIO}\nasyncio_as_it_is()")
    kernel.run(
        serve(
            call("python", code="6 * 7"),
            call("plain"),
            {"text": "Done."},
            call("python", code="await asyncio.sleep(0)"),
            {"text": "Done."},
            {"text": "Again."},
        )
    )
    kernel.run(
        "import ipy_agent\n@ipy_agent.tool\ndef plain() -> int:\n    'Plain.'\n    return 1\n"
        "@ipy_agent.tool\nasync def double() -> int:\n    'Not called.'"
    )

    kernel.run("%%agent --mode auto\nGo.")
    after = kernel.run("asyncio_as_it_is()")
    kernel.run("%%agent --mode auto\nAwait.")
    kernel.run(
        "import gc\nloops = [o for o in gc.get_objects() if isinstance(o, asyncio.BaseEventLoop)]\n"
        "here = asyncio.get_running_loop()"
    )
    awaited = kernel.run("asyncio_as_it_is()[0], hasattr(here, '_nest_patched')")
    others = kernel.run("{hasattr(loop, '_nest_patched') for loop in loops if loop is not here}")

    own = ["_asyncio", "asyncio.base_events", "asyncio.events", "asyncio.runners"]
    assert ast.literal_eval(untouched.value) == (False, own)
    assert ast.literal_eval(after.value) == (False, own)
    assert awaited.value == "(True, True)"
    assert others.value == "{False}"
    assert "Again." in kernel.run("%%agent\nAgain?").displays[0]["text/html"]


@pytest.mark.parametrize(
    ("tool", "code"),
    [
        ("endless", "say('begun')\nawait asyncio.Event().wait()"),
        ("endless", "say('begun')\nawait asyncio.gather(*[asyncio.sleep(60) for _ in range(3)])"),
        ("endless", "say('begun')\ntime.sleep(60)\nawait asyncio.sleep(0)"),
        ("python", "say('begun')\nawait asyncio.Event().wait()"),
        ("python", "say('begun')\ntime.sleep(60)\nawait asyncio.sleep(0)"),
    ],
)
def test_an_interrupt_ends_a_tool_that_awaits_and_none_of_the_users_tasks(
    kernel, serve, tool, code
):
    """Waiting or computing, it counts as interrupted and leaves no task; the run ends too."""
    body = "\n".join(f"    {line}" for line in code.splitlines())
    kernel.run(serve(call(tool, **({"code": code} if tool == "python" else {})), {"text": "fresh"}))
    kernel.run(f"{CLIENT}\nimport time\n{SAY}")
    kernel.run("client = await made()\nbefore = asyncio.all_tasks()")
    kernel.run(f"@ipy_agent.tool\nasync def endless() -> str:\n    'Endless.'\n{body}")

    stopped = kernel.run(
        "%%agent --mode auto\nGo.",
        when=lambda cell: "begun" in cell.stdout,
        do=kernel.interrupt,
    )
    after = kernel.run("%%agent\nAgain.")

    assert stopped.error.splitlines() == ["Interrupted: interrupted"]
    assert "fresh" in after.displays[0]["text/plain"]
    row = "ipy_agent.session().tools.iloc[-1][['name', 'status', 'output']].tolist()"
    assert kernel.run(row).value == repr(
        [tool, "interrupted", "interrupted by the user; side effects unknown"]
    )
    assert kernel.run("await client.double(2)").value == "4"
    left = kernel.run("{task.get_coro().__name__ for task in asyncio.all_tasks() - before}")
    assert not {"endless", "run_cell_async", "sleep"} & ast.literal_eval(left.value)


def test_a_cell_that_waits_does_not_begin_within_a_tool_that_awaits(kernel, serve):
    """Cells run one after the other, also while the loop is run from within a tool."""
    kernel.run(serve(call("slow"), {"text": "Done."}))
    kernel.run(f"{CLIENT}\norder = []\n{SAY}")
    kernel.run("client = await made()")
    kernel.run(
        "@ipy_agent.tool\nasync def slow() -> str:\n    'Slow.'\n    say('begun')\n"
        "    await client.ticked(300)\n    order.append('tool')\n    return 'done'"
    )

    kernel.run(
        "%%agent --mode auto\nGo.",
        when=lambda cell: "begun" in cell.stdout,
        do=lambda: kernel.client.execute("order.append('next cell')"),
    )

    assert kernel.run("order").value == "['tool', 'next cell']"


def test_an_await_on_another_thread_is_one_line_for_the_model(kernel, serve):
    """The notebook's loop is not that thread's; an async tool has a loop of the thread's own."""
    kernel.run(serve(call("python", code="await asyncio.sleep(0)"), call("nap"), {"text": "Done."}))
    kernel.run(
        "import asyncio, ipy_agent, threading\n@ipy_agent.tool\nasync def nap() -> str:\n"
        "    'Nap.'\n    await asyncio.sleep(0)\n    return 'rested'"
    )

    kernel.run(
        "s = ipy_agent.session()\n"
        "t = threading.Thread(target=lambda: s.run('Go.', mode='auto'))\nt.start(); t.join()"
    )

    line, rested = outputs(kernel, 2)
    assert line == (
        "ToolError: await needs the notebook's loop, and this call runs on a thread without it: "
        "do it without await, or from a cell's own thread"
    )
    assert rested == "rested"


def test_in_a_terminal_tools_await_on_the_loop_of_its_cells(serve):
    """A client of an earlier cell works, though no loop is running, and asyncio stays as it is."""
    connect = serve(
        call("double", number=21),
        call("python", code="got = await client.double(4)\ngot + 1"),
        {"text": "Done."},
    )
    cells = [
        "%load_ext ipy_agent",
        connect,
        CLIENT,
        "client = await made()",
        TOOL,
        "%%agent --mode auto\nDouble.",
        "print(ipy_agent.session().tools['output'].tolist())",
        "print('nest_asyncio2' in __import__('sys').modules, await client.double(5))",
    ]
    code = f"for cell in {cells!r}:\n    get_ipython().run_cell(cell).raise_error()"

    run = subprocess.run(
        [sys.executable, "-m", "IPython", "--no-banner", "--colors=nocolor", "-c", code],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, "TEST_TOKEN": "a-token-for-tests"},
        check=True,
    )

    assert "asked for 21\n" in run.stdout
    assert run.stdout.splitlines()[-2:] == [repr(["42", "9\ngot: int 8"]), "False 10"]
