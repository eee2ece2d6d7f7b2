"""Clients compared, each as a ratio to the least that a loop can do.

`python tests/bench/clients.py [TOPIC…] [--rounds N]`; without a topic, all of them.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version

import kernels
from processes import Loop, Plan, Told, measured, middle

BARE, OURS = "bare", "ipy_agent"
SCRIPTS = {
    BARE: partial(measured, Loop("bare.py")),
    OURS: partial(measured, Loop("ours.py")),
    f"{OURS}, journal": partial(measured, Loop("ours.py", ("--journal",))),
    "openai SDK": partial(measured, Loop("sdk.py")),
}
KERNELS = {
    f"{BARE}, awaited": partial(kernels.bare, kernels.AWAITED),
    f"{BARE}, on a thread": partial(kernels.bare, kernels.THREADED),
    OURS: kernels.agent,
}

Clients = dict[str, Callable[[Plan], Told]]
Values = dict[str, list[float]]

SEVERAL = Plan(((20, 20),) * 6)
LONG = Plan(((2, 20), (210, 20)))
NOVEL = Plan(((1, 20), (1, 100_000)))


def rounds_of(clients: Clients, plan: Plan, rounds: int) -> dict[str, list[Told]]:
    """Return what was measured in so many rounds, in each of which all clients take turns."""
    told: dict[str, list[Told]] = {name: [] for name in clients}
    for _ in range(rounds):
        for name, measure in clients.items():
            told[name].append(measure(plan))
    return told


def taken(told: dict[str, list[Told]], figure: Callable[[Told], float]) -> Values:
    return {name: [figure(one) for one in many] for name, many in told.items()}


def compare(what: str, values: Values, target: str = "", digits: int = 2) -> None:
    """Print a figure of all clients: medians, spread, and ratios to the quickest bare loop.

    A ratio is the median of each round's, since what slows a machine down slows a whole round.
    """
    base = min((name for name in values if name.startswith(BARE)), key=lambda n: middle(values[n]))
    print(f"\n{what:33} median  (      rounds      )   × bare  {target and 'target'}")
    for name, found in values.items():
        ratios = [one / least for one, least in zip(found, values[base], strict=True)]
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
    told = rounds_of(SCRIPTS, SEVERAL, rounds)
    compare("ms a turn", taken(told, gap), "≤ 2 ×")


def tail(rounds: int) -> None:
    """Overhead a turn, in a script, with 20 ms between a call and the turn's end."""
    told = rounds_of(SCRIPTS, replace(SEVERAL, tail_ms=20), rounds)
    compare("ms a turn", taken(told, gap), "≤ 2 ×")


def kernel(rounds: int) -> None:
    """Overhead a turn, in a real kernel with everything on."""
    told = rounds_of(KERNELS, SEVERAL, rounds)
    compare("ms a turn", taken(told, gap), "≤ 3 ×")


def growth(rounds: int) -> None:
    """Overhead and CPU over 200 turns, in a script."""
    told = rounds_of(SCRIPTS, LONG, rounds)
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
    for clients in (SCRIPTS, KERNELS):
        told = rounds_of(clients, Plan(((2, 20),)), rounds)
        compare("ms", taken(told, lambda one: one.gaps(0)[0]), "≤ 20 ms")


def stream(rounds: int) -> None:
    """100,000 small deltas, in a script."""
    told = rounds_of(SCRIPTS, NOVEL, rounds)
    compare("CPU ms", taken(told, cpu_ms), "≤ 2 ×", 0)
    compare("MB grown", taken(told, lambda one: one.grown(1)), "≤ 20 MB", 1)


def screen(rounds: int) -> None:
    """100,000 small deltas, in a kernel with everything on."""
    half = {OURS: KERNELS[OURS]}
    before = rounds_of(half, replace(NOVEL, runs=((1, 20), (1, NOVEL.runs[-1][1] // 2))), rounds)
    told = rounds_of(KERNELS, NOVEL, rounds)
    compare("CPU ms", taken(told, cpu_ms), "≤ 2.5 ×", 0)
    compare("MB grown", taken(told, lambda one: one.grown(1)), "≤ 20 MB", 1)
    for kinds, what in ((kernels.SCREEN, "of the answer"), (("comm_msg",), "of the panel")):
        for deltas, many in (("half of them", before[OURS]), ("all", told[OURS])):
            cells = [one.cells[-1] for one in many]
            counts = [len(cell.of(*kinds)) for cell in cells]
            sizes = [sum(size for _, size in cell.of(*kinds)) for cell in cells]
            most = max(cell.busiest(*kinds) for cell in cells)
            print(
                f"updates {what}, {deltas}: {middle(counts):.0f}, {most} at most in a second "
                f"(≤ 20), {middle(sizes) / 1_000:,.0f} kB"
            )


TOPICS = {one.__name__: one for one in (kernel, stream, screen, growth, overhead, tail, first)}


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
        print(f"\n== {name}: {TOPICS[name].__doc__}")
        TOPICS[name](asked.rounds)


if __name__ == "__main__":
    main()
