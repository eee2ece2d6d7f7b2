"""Clients compared, each as a ratio to the least that a loop can do.

`python tests/bench/clients.py [TOPIC…] [--rounds N]`; without a topic, all of them.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version

import kernels
from environments import PINS, Missing
from processes import Loop, Plan, Told, environment, measured, middle

BARE, OURS, RESENT = "bare", "ipy_agent", "openai SDK, full resend"
SCRIPTS = {
    BARE: Loop("bare.py"),
    OURS: Loop("ours.py"),
    f"{OURS}, journal": Loop("ours.py", ("--journal",)),
}
PEERS = {
    "openai SDK": Loop("sdk.py", environment="openai"),
    RESENT: Loop("resend.py", environment="openai", http=True),
    "openai-agents": Loop("agents_sdk.py", environment="openai-agents"),
}
OVER_HTTP = {
    "chatlas": Loop("chat.py", environment="chatlas", http=True),
    "pydantic-ai": Loop("pydantic_agent.py", environment="pydantic-ai", http=True),
}
PEERS_ROUNDS = 2
"""How many rounds the peers take part in: they take longer, and are further away."""

KERNELS = {
    f"{BARE}, awaited": partial(kernels.bare, kernels.AWAITED),
    f"{BARE}, on a thread": partial(kernels.bare, kernels.THREADED),
    OURS: kernels.agent,
}

Clients = Mapping[str, Loop | Callable[[Plan], Told]]
Values = dict[str, list[float]]

SEVERAL = Plan(((20, 20),) * 6)
LONG = Plan(((2, 20), (210, 20)))
NOVEL = Plan(((1, 20), (1, 100_000)))


def rounds_of(clients: Clients, plan: Plan, rounds: int) -> dict[str, list[Told]]:
    """Return what was measured in so many rounds, in each of which all clients take turns."""
    told: dict[str, list[Told]] = {name: [] for name in clients}
    missing = set()
    for number in range(rounds):
        for name, client in clients.items():
            is_peer = name in PEERS or name in OVER_HTTP
            if name in missing or (is_peer and number >= PEERS_ROUNDS):
                continue
            try:
                told[name].append(
                    measured(client, plan) if isinstance(client, Loop) else client(plan)
                )
            except Missing as error:
                missing.add(name)
                print(error)
    return {name: many for name, many in told.items() if many}


def taken(told: dict[str, list[Told]], figure: Callable[[Told], float]) -> Values:
    return {name: [figure(one) for one in many] for name, many in told.items()}


def compare(what: str, values: Values, target: str = "", digits: int = 2) -> None:
    """Print a figure of all clients: medians, spread, and ratios to the quickest bare loop.

    A ratio is the median of each round's, since what slows a machine down slows a whole round.
    """
    base = min((name for name in values if name.startswith(BARE)), key=lambda n: middle(values[n]))
    print(f"\n{what:33} median  (      rounds      )   × bare  {target and 'target'}")
    for name, found in values.items():
        ratios = [one / least for one, least in zip(found, values[base], strict=False)]
        spread = f"{min(found):.{digits}f} to {max(found):.{digits}f}"
        aim = target if name.startswith(OURS) else ""
        told = f"{middle(found):10.{digits}f}  ({spread:>18}) {middle(ratios):8.2f}  {aim}"
        print(f"{name:29} {told}", flush=True)


def gap(told: Told) -> float:
    """Return the median overhead of a turn, the first run left out."""
    return middle([gap for run in range(1, len(told.runs)) for gap in told.gaps(run)])


def cpu_ms(told: Told) -> float:
    """Return the CPU time of the last run."""
    return told.cpu_ms(len(told.runs) - 1)


def around(turn: int) -> Callable[[Told], float]:
    """Return what tells the overhead of the turns around one, in the last run."""
    return lambda told: middle(told.gaps(-1)[turn - 5 : turn + 5])


def overhead(rounds: int) -> None:
    """Overhead a turn, in a script."""
    told = rounds_of(SCRIPTS | PEERS, SEVERAL, rounds)
    compare("ms a turn", taken(told, gap), "≤ 2 ×")


def tail(rounds: int) -> None:
    """Overhead a turn, in a script, with 20 ms between a call and the turn's end."""
    told = rounds_of(SCRIPTS | PEERS, replace(SEVERAL, tail_ms=20), rounds)
    compare("ms a turn", taken(told, gap), "≤ 2 ×")


def kernel(rounds: int) -> None:
    """Overhead a turn, in a real kernel with everything on."""
    told = rounds_of(KERNELS, SEVERAL, rounds)
    compare("ms a turn", taken(told, gap), "≤ 3 ×")


def growth(rounds: int) -> None:
    """Overhead and CPU over 200 turns, in a script."""
    told = rounds_of(SCRIPTS | PEERS, LONG, rounds)
    early, late = taken(told, around(6)), taken(told, around(200))
    compare("ms a turn around turn 6", early)
    compare("ms a turn around turn 200", late)
    for name, found in late.items():
        ratios = [last / first for last, first in zip(found, early[name], strict=True)]
        target = "(≤ 1.1 ×)" if name.startswith(OURS) else ""
        print(f"{name:29} turn 200 / turn 6: {middle(ratios):.2f} × {target}")
    turns = LONG.runs[-1][0]
    compare("CPU ms a turn", taken(told, lambda one: cpu_ms(one) / turns), "≤ 3 ×")


def first(rounds: int) -> None:
    """The very first tool turn of a process, in a script and in a kernel."""
    for clients in (SCRIPTS | PEERS | OVER_HTTP, KERNELS):
        told = rounds_of(clients, Plan(((2, 20),)), rounds)
        compare("ms", taken(told, lambda one: one.gaps(0)[0]), "≤ 20 ms")


def stream(rounds: int) -> None:
    """100,000 small deltas, in a script."""
    told = rounds_of(SCRIPTS | PEERS | OVER_HTTP, NOVEL, rounds)
    compare("CPU ms", taken(told, cpu_ms), "≤ 2 ×", 0)
    compare("MB grown", taken(told, lambda one: one.grown(1)), "≤ 20 MB", 1)


def screen(rounds: int) -> None:
    """100,000 small deltas, in a kernel with everything on."""
    half = {OURS: KERNELS[OURS]}
    before = rounds_of(half, replace(NOVEL, runs=((1, 20), (1, NOVEL.runs[-1][1] // 2))), rounds)
    told = rounds_of(KERNELS, NOVEL, rounds)
    compare("CPU ms", taken(told, cpu_ms), "≤ 2.5 ×", 0)
    compare("MB grown", taken(told, lambda one: one.grown(1)), "≤ 20 MB", 1)
    for what, many in (("half of them: ", before[OURS]), ("all: ", told[OURS])):
        tell_updates(what, [one.cells[-1] for one in many])


def tell_updates(what: str, cells: list[kernels.Cell]) -> None:
    """Print how often, and with how much, cells brought the screen up to date."""
    for kinds, where in ((kernels.SCREEN, "answer"), (("comm_msg",), "panel")):
        counts = [len(cell.of(*kinds)) for cell in cells]
        sizes = [sum(size for _, size in cell.of(*kinds)) for cell in cells]
        most = max(cell.busiest(*kinds) for cell in cells)
        print(
            f"{what}{middle(counts):.0f} updates of the {where}, {most} at most in a second "
            f"(≤ 20), {middle(sizes) / 1_000:,.0f} kB"
        )


def size(_: int) -> None:
    """Bytes of 21 requests with 20 outputs of 3 kB, beside a full resend; they are counted."""
    for tools in (1, 24):
        plan = Plan(((21, 20),), tools=tools, output=3_000)
        told = {name: many[0] for name, many in rounds_of(SCRIPTS | PEERS, plan, 1).items()}
        least = [told[name] for name in (BARE, RESENT)]
        base, full = (sum(one.sizes(0)) for one in least)
        print(f"\n{tools} tools{'':16} kB in all   × bare  less than a full resend   kB a turn")
        for name, one in told.items():
            sizes = one.sizes(0)
            saved, turns = (
                1 - sum(sizes) / full,
                f"{sizes[1] / 1_000:.2f} to {sizes[-1] / 1_000:.2f}",
            )
            aim = "≤ 1.02 ×, 82 % less, flat" if name == OURS else ""
            print(
                f"{name:24} {sum(sizes) / 1_000:8.1f} {sum(sizes) / base:8.3f} {saved:11.0%}"
                f" {turns:>28}  {aim}"
            )


def idle(rounds: int) -> None:
    """The kernel's main thread while 50 tokens a second stream for five seconds."""
    plan = Plan(((1, 20), (1, 250)), pace_ms=20)
    clients = {name: KERNELS[name] for name in (f"{BARE}, awaited", OURS)}
    told = rounds_of(clients, plan, min(rounds, 3))
    compare("% busy", taken(told, busy), "≤ 5 %")
    tell_updates("", [one.cells[-1] for one in told[OURS]])


def busy(told: Told) -> float:
    """Return the share of the last run in which the thread that measures used a CPU, in %."""
    before, after = told.costs[-2:]
    return 100 * (after["main_ms"] - before["main_ms"]) / (after["wall_ms"] - before["wall_ms"])


def panel(rounds: int) -> None:
    """A refresh of the panel at 1,000 turns, in a kernel."""
    count = 200
    with kernels.kernel(SEVERAL) as live:
        live.run(kernels.PATH)
        cells = [
            live.run(f"import panel; took = panel.refreshes({count})", "took")
            for _ in range(rounds)
        ]
    took = [middle(cell.cost) for cell in cells]
    sizes = [middle([size for _, size in cell.of("comm_msg")[-count:]]) for cell in cells]
    print(
        f"{middle(took):.2f} ms ({min(took):.2f} to {max(took):.2f}; ≤ 1 ms), and "
        f"{middle(sizes) / 1_000:.1f} kB a message (≤ 8 kB)"
    )


def load(rounds: int) -> None:
    """What `%load_ext ipy_agent` adds to IPython's start."""
    took: Values = {BARE: [], OURS: []}
    used: Values = {BARE: [], OURS: []}
    with tempfile.TemporaryDirectory() as state:
        for _ in range(5 * rounds + 1):
            for name, line in ((BARE, "pass"), (OURS, "%load_ext ipy_agent")):
                command = [sys.executable, "-m", "IPython", "-c", line]
                began = time.perf_counter()
                process = subprocess.Popen(command, env=environment(SEVERAL, state))
                cost = os.wait4(process.pid, 0)[2]
                took[name].append((time.perf_counter() - began) * 1_000)
                used[name].append((cost.ru_utime + cost.ru_stime) * 1_000)
    for what, values in (("ms", took), ("CPU ms", used)):
        compare(what, {name: many[1:] for name, many in values.items()}, "≤ 1.05 ×", 0)
        least = min(values[OURS]) / min(values[BARE])
        print(f"the least of each: {least:.2f} ×")


TOPICS = {
    one.__name__: one
    for one in (kernel, stream, screen, growth, overhead, tail, first, size, load, panel, idle)
}


def main() -> None:
    """Print the figures of some topics."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("topics", nargs="*", choices=[*TOPICS, []], metavar="TOPIC")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    names = ("ipykernel", "msgspec", "websockets")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    print(
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} × {platform.machine()}, "
        f"load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, {versions}"
    )
    for name in asked.topics or TOPICS:
        print(f"\n== {name}: {TOPICS[name].__doc__}", flush=True)
        TOPICS[name](asked.rounds)
    print("\npeers:", "; ".join(", ".join(pins) for pins in PINS.values()))


if __name__ == "__main__":
    main()
