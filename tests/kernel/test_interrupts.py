"""SIGINTs at random moments: every cell ends, nothing runs twice, and no answer goes astray.

The server answers a prompt with its own nonce, so that an answer that belongs to another cell
would be seen, and it looks through each whole conversation that it is sent.

The interrupts come once a cell shows something: before its code begins, within IPython's reading
of it, any cell's reply is lost by ipykernel itself.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import threading
import time
from collections import Counter

import pytest

from ipy_agent.protocol.items import text
from ipy_agent.protocol.script import Call, Entry
from ipy_agent.server.scripted import ScriptedEngine

pytestmark = [pytest.mark.kernel, pytest.mark.long, pytest.mark.timeout(3_600)]

SECONDS = 60
NONCE = re.compile(r"nonce-\d+;")  # with its end: an answer may be cut off within it
ASKED = re.compile(r"(nonce-\d+;) (\w+)")  # what is told of variables may stand before it
KINDS = ("stream", "tool", "look", "ask", "await")
WITHIN = 0.9
"""How many seconds after a cell began to show something the last interrupts come."""

TOOLS = """
import asyncio, os, threading, ipy_agent
os.environ["IPY_AGENT_TESTS_KEY"] = "a-token-of-the-tests"
def note(serial):
    with open({log!r}, "a") as log:
        log.write(f"{{serial}}\\n")
    for _ in range(30):
        threading.Event().wait(0.01)
    return serial
@ipy_agent.tool(read_only=True)
def look(serial: str) -> str:
    "Look."
    return note(serial)
@ipy_agent.tool
async def awaits(serial: str) -> str:
    "Await."
    note(serial)
    await asyncio.sleep(0.2)
    return serial
"""


class Echo(ScriptedEngine):
    """Says the nonce of the prompt, at once or when the call that it makes has its output."""

    def __init__(self):
        super().__init__()
        self.wrong = []
        self.serials = (f"call {number}" for number in itertools.count())

    async def generate(self, job, seat):
        items = list(job.input)
        self.wrong += faults(items)
        self._entries = iter([self.entry(items)])
        async with contextlib.aclosing(super().generate(job, seat)) as pieces:
            async for piece in pieces:
                yield piece

    def entry(self, items):
        asked = next(text(item) for item in reversed(items) if item.get("role") == "user")
        nonce, kind = ASKED.search(asked).groups()
        if items[-1].get("role") != "user" or kind not in KINDS[1:]:
            said = f"echo {nonce} {'and so on ' * 10}"
            return Entry(text=said, chunk_chars=6, delay_ms=15 if kind != "next" else 0)
        serial = next(self.serials)
        name = {"look": "look", "await": "awaits"}.get(kind, "python")
        said = {"code": f"note({serial!r})"} if name == "python" else {"serial": serial}
        return Entry(tool_calls=[Call(name, said)], chunk_chars=8, delay_ms=15)


def faults(items):
    """Return what is wrong with a conversation: a call without its one output, or the reverse."""
    made = [item["call_id"] for item in items if item["type"] == "function_call"]
    told = [item["call_id"] for item in items if item["type"] == "function_call_output"]
    return [] if made == told and len(set(made)) == len(made) else [(made, told)]


def press(kernel, pressed):
    pressed.append(time.monotonic())
    os.kill(kernel.manager.provisioner.pid, signal.SIGINT)


def shown(cell):
    return "\n".join(one.get("text/plain", "") for one in cell.displays)


def test_an_interrupt_at_any_moment_ends_one_cell_and_nothing_else(
    kernel, served, tmp_path, amount, chance, figure
):
    """No tool runs twice, no cell hangs, no conversation breaks, no answer is another cell's."""
    engine, log = Echo(), tmp_path / "log"
    log.touch()
    url = served(engine=engine).url
    kernel.run(TOOLS.format(log=str(log)))
    kernel.run(f"%agent connect {url} --key-env IPY_AGENT_TESTS_KEY")
    ends, waits, shifted, broken = Counter(), [], [], []

    count = amount(8, 200)
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        nonce, following, pressed = f"nonce-{2 * number};", f"nonce-{2 * number + 1};", []
        pause = chance.uniform(0, 0.3)

        def yes(pause=pause):
            threading.Event().wait(pause)
            return "y"

        timer = threading.Timer(chance.uniform(0, WITHIN), press, (kernel, pressed))
        cell = kernel.run(
            f"%%agent --mode {'ask' if kind == 'ask' else 'auto'}\n{nonce} {kind}",
            answer=yes,
            when=lambda cell: bool(cell.displays),
            do=timer.start,
        )
        ended = time.monotonic()
        timer.join()
        after = kernel.run(f"%%agent\n{following} next")

        ends[(kind, cell.status)] += 1
        if cell.status == "error":
            waits.append(ended - pressed[0])
            assert re.match(r"(Interrupted|.*KeyboardInterrupt)", cell.error, re.DOTALL), cell.error
        if after.status != "ok" or f"echo {following}" not in shown(after):
            broken.append((nonce, kind, after.error or shown(after)))
        said = {*NONCE.findall(shown(cell)), *NONCE.findall(shown(after))}
        if not said <= {nonce, following} or following in shown(cell) or nonce in shown(after):
            shifted.append((nonce, kind, shown(cell), shown(after)))
        if number % 25 == 24:
            kernel.run("%agent reset")

    ran = Counter(log.read_text("utf-8").splitlines())
    stopped = sum(ends[kind, "error"] for kind in KINDS)
    waits.sort()
    figure(
        f"{count} interrupts, {stopped} ended a run, median {waits[len(waits) // 2]:.2f} s, "
        f"slowest {waits[-1]:.2f} s; 0 cells hung; {len(ran)} tools ran, "
        f"{sum(ran.values()) - len(ran)} twice; {len(broken)} next cells broken, "
        f"{len(shifted)} answers shifted, {len(engine.wrong)} conversations invalid; {dict(ends)}"
    )
    assert stopped
    assert max(ran.values(), default=0) <= 1
    assert broken == []
    assert shifted == []
    assert engine.wrong == []
