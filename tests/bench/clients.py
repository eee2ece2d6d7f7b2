"""Clients compared, each as a ratio to the least that a loop can do.

`python tests/bench/clients.py [TOPIC…] [--rounds N]`; without a topic, all of them, which takes
twenty minutes. A topic takes three at most where nothing else runs; a first one makes the
environments of the peers.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version

import kernels
from comparison import (
    AWAITED,
    BARE,
    KERNELS,
    OURS,
    OVER_HTTP,
    PEERS,
    RESENT,
    SCRIPTS,
    Clients,
    Figures,
    aim,
    compare,
    rounds_of,
    taken,
)
from environments import PINS
from processes import Plan, Told, environment, middle

SEVERAL = Plan(((20, 20),) * 6)
LONG = Plan(((2, 20), (210, 20)))
NOVEL = Plan(((1, 20), (1, 100_000)))


def gap(told: Told) -> float:
    """Return the median overhead of a turn, the first run left out."""
    return middle([gap for run in range(1, len(told.runs)) for gap in told.gaps(run)])


def around(turn: int) -> Callable[[Told], float]:
    """Return what tells the overhead of the turns around one, in the last run."""
    return lambda told: middle(told.gaps(-1)[turn - 5 : turn + 5])


def cpu_ms(told: Told) -> float:
    """Return the CPU time of the last run."""
    return told.cpu_ms(len(told.runs) - 1)


def grown(told: Told) -> float:
    """Return by how many MB the last run made the process larger, at most."""
    return told.grown(len(told.runs) - 1)


def busy(told: Told) -> float:
    """Return the share of the last run in which the thread that measures used a CPU, in %."""
    before, after = told.costs[-2:]
    return 100 * (after["main_ms"] - before["main_ms"]) / (after["wall_ms"] - before["wall_ms"])


def overhead(rounds: int, clients: Clients, target: str, tail_ms: float = 0) -> None:
    """Print the overhead of a turn, in runs of 20 with 20 kB of tools."""
    told = rounds_of(clients, replace(SEVERAL, tail_ms=tail_ms), rounds)
    compare("ms a turn", taken(told, gap), target)


def growth(rounds: int, clients: Clients) -> None:
    """Print the overhead of early and late turns, and what they cost."""
    told = rounds_of(clients, LONG, rounds)
    early, late = taken(told, around(6)), taken(told, around(200))
    turns = LONG.runs[-1][0]
    compare("ms a turn around turn 6", early)
    compare("ms a turn around turn 200", late)
    compare("CPU ms a turn", taken(told, lambda one: cpu_ms(one) / turns), "≤ 3 ×")
    print("\nturn 200 / turn 6")
    for name, found in late.items():
        ratios = [last / first for last, first in zip(found, early[name], strict=True)]
        print(f"{name:29} {middle(ratios):10.2f}  {aim(name, '≤ 1.1 ×')}")


def first(rounds: int, clients: Clients) -> None:
    """Print the overhead of the very first turn of a process."""
    told = rounds_of(clients, Plan(((2, 20),)), rounds)
    compare("ms", taken(told, lambda one: one.gaps(0)[0]), "≤ 20 ms")


def stream(rounds: int, clients: Clients, target: str) -> None:
    """Print what 100,000 small deltas cost."""
    told = rounds_of(clients, NOVEL, rounds, peers=1)
    compare("CPU ms", taken(told, cpu_ms), target, 0)
    compare("MB grown", taken(told, grown), "≤ 20 MB", 1)


def updates(_: int) -> None:
    """Print what is sent to the screen while 5,000 deltas a second stream, and at half as many."""
    for deltas in (50_000, 100_000):
        told = kernels.agent(Plan(((1, 20), (1, deltas)), pace_ms=0.2))
        tell_updates(f"{deltas:7,} deltas: ", told.cells[-1])


def idle(rounds: int) -> None:
    """Print how busy the main thread is while 50 tokens a second stream for five seconds."""
    clients = {name: KERNELS[name] for name in (AWAITED, OURS)}
    told = rounds_of(clients, Plan(((1, 20), (1, 250)), pace_ms=20), rounds)
    compare("% busy", taken(told, busy), "≤ 5 %")
    tell_updates("", told[OURS][-1].cells[-1])


def tell_updates(what: str, cell: kernels.Cell) -> None:
    """Print how often, and with how much, a cell brought the screen up to date."""
    for kinds, where in ((kernels.SCREEN, "answer"), (("comm_msg",), "panel")):
        sizes = [size for _, size in cell.of(*kinds)]
        print(
            f"{what}{len(sizes)} updates of the {where}, {cell.busiest(*kinds)} at most in a "
            f"second (≤ 20), {sum(sizes) / 1_000:,.0f} kB"
        )


def size(_: int) -> None:
    """Print the bytes of 21 requests with 20 outputs of 3 kB: they are counted, once."""
    for tools in (1, 24):
        plan = Plan(((21, 20),), tools=tools, output=3_000)
        told = {name: many[0] for name, many in rounds_of(SCRIPTS | PEERS, plan, 1).items()}
        base, full = (sum(told[name].sizes(0)) for name in (BARE, RESENT))
        print(f"\n{tools:2} tools{'':18} kB in all   × bare  less than resent      kB a turn")
        for name, one in told.items():
            sizes = one.sizes(0)
            saved, turns = (
                1 - sum(sizes) / full,
                f"{sizes[1] / 1_000:.2f} to {sizes[-1] / 1_000:.2f}",
            )
            print(
                f"{name:24} {sum(sizes) / 1_000:9.1f} {sum(sizes) / base:8.3f} {saved:17.0%} "
                f"{turns:>14}  {aim(name, '≤ 1.02 ×, 82 % less, flat')}"
            )


def panel(rounds: int) -> None:
    """Print what a refresh of the panel takes at 1,000 turns."""
    count = 200
    with kernels.kernel(SEVERAL) as live:
        live.run(kernels.PATH)
        code = f"import panel; took = panel.refreshes({count})"
        cells = [live.run(code, "took") for _ in range(rounds)]
    took = [middle([ms for ms, _ in cell.cost]) for cell in cells]
    pages = [middle([size for _, size in cell.cost]) for cell in cells]
    sizes = [middle([size for _, size in cell.of("comm_msg")[-count:]]) for cell in cells]
    print(
        f"{middle(took):.2f} ms ({min(took):.2f} to {max(took):.2f}; ≤ 1 ms), {middle(pages):,.0f} "
        f"bytes (≤ 8,192), as a message {middle(sizes):,.0f}"
    )


def load(rounds: int) -> None:
    """Print what `%load_ext ipy_agent` adds to the start of IPython."""
    took: Figures = {BARE: [], OURS: []}
    used: Figures = {BARE: [], OURS: []}
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
        print(f"the least of each: {min(values[OURS]) / min(values[BARE]):.2f} ×")


TAIL_MS = 20
EVERYBODY = SCRIPTS | PEERS | OVER_HTTP
TOPICS: dict[str, tuple[str, Callable[[int], None]]] = {
    "overhead": ("a turn, in a script", partial(overhead, clients=SCRIPTS | PEERS, target="≤ 2 ×")),
    "tail": (
        "a turn, in a script, 20 ms between a call and the turn's end",
        partial(overhead, clients=SCRIPTS | PEERS, target="≤ 2 ×", tail_ms=TAIL_MS),
    ),
    "kernel": ("a turn, in a kernel", partial(overhead, clients=KERNELS, target="≤ 3 ×")),
    "kernel-tail": (
        "a turn, in a kernel, 20 ms between a call and the turn's end",
        partial(overhead, clients=KERNELS, target="≤ 3 ×", tail_ms=TAIL_MS),
    ),
    "growth": ("200 turns, in a script", partial(growth, clients=SCRIPTS | PEERS)),
    "kernel-growth": ("200 turns, in a kernel", partial(growth, clients=KERNELS)),
    "first": ("the first tool turn of a script", partial(first, clients=EVERYBODY)),
    "kernel-first": ("the first tool turn of a kernel", partial(first, clients=KERNELS)),
    "stream": (
        "100,000 small deltas, in a script",
        partial(stream, clients=EVERYBODY, target="≤ 2 ×"),
    ),
    "kernel-stream": (
        "100,000 small deltas, in a kernel",
        partial(stream, clients=KERNELS, target="≤ 2.5 ×"),
    ),
    "updates": ("of the screen, while much streams", updates),
    "idle": ("the kernel's main thread, while 50 tokens a second stream", idle),
    "panel": ("a refresh at 1,000 turns, in a kernel", panel),
    "size": ("bytes sent, with 20 outputs of 3 kB", size),
    "load": ("IPython's start, without and with the extension", load),
}


def main() -> None:
    """Print the figures of some topics."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=", ".join(TOPICS))
    parser.add_argument("--rounds", type=int, default=5, help="how often all take turns (5)")
    asked = parser.parse_args()
    if unknown := set(asked.topics) - set(TOPICS):
        parser.error(f"no topic: {', '.join(unknown)}; there are {', '.join(TOPICS)}")
    names = ("ipython", "ipykernel", "msgspec", "websockets")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    print(
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} × {platform.machine()}, "
        f"load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, {versions}"
    )
    for name in asked.topics or TOPICS:
        what, measure = TOPICS[name]
        print(f"\n== {name}: {what}", flush=True)
        measure(asked.rounds)
    print("\npeers:", "; ".join(", ".join(pins) for pins in PINS.values()))


if __name__ == "__main__":
    main()
