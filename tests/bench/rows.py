"""One prompt over many rows: `python tests/bench/rows.py [TOPIC …] [--rows N] [--model M]`.

`Session.map` on our scripted server with 50 ms to think, and with none; and on a local model. A
client and its server are processes of their own, on a core each, made anew for each figure.
Without a topic all of them, which takes five minutes at most, half of them the local model's; with
`--rows 10000`, as many as the targets speak of, ten. `bare` compares with the least that a loop can
do; `memory` with ten times as many rows, in a frame that takes next to nothing itself.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import msgspec
import pandas as pd
from loops.notes import Plan, Told
from servers import KEY, started

from ipy_agent import Endpoint, Session

HERE = Path(__file__).parent / "loops"

LANES, THINKING_MS, ROUNDS = 16, 50, 3
OURS, BARE = "map.py", "fork.py"
MANY = 10
"""How many times the rows memory is looked at with, the second time."""


@dataclass(frozen=True)
class Asked:
    """What the command line asks for."""

    rows: int
    rounds: int
    model: str | None


def measured(client: str, plan: Plan, thinking_ms: int) -> Told:
    """Have a client ask rows of a server of its own, and return what it took."""
    entry = {"text": "west", "delay_ms": thinking_ms}
    with tempfile.TemporaryDirectory() as folder:
        script, out = Path(folder, "script.json"), Path(folder, "rows.parquet")
        script.write_bytes(msgspec.json.encode([entry] * plan.rows))
        if plan.out is not None:
            plan = msgspec.structs.replace(plan, out=str(out))
        command = [sys.executable, "-m", "ipy_agent", "serve", "--engine", "scripted"]
        command += ["--script", str(script)]
        with started(*command, core=0, IPY_AGENT_SERVER_TOKEN=KEY) as server:
            url = server.stdout.readline().split()[-1]
            asks = (sys.executable, HERE / client, url, msgspec.json.encode(plan).decode())
            with started(*asks, core=1, KEY=KEY, XDG_STATE_HOME=folder) as process:
                line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{client} gave up: run it by hand, {' '.join(map(str, asks))}")
    told = msgspec.json.decode(line, type=Told)
    if told.answered != plan.rows:
        raise RuntimeError(f"{client}: {told.answered:,} of {plan.rows:,} rows were answered")
    return told


def middle(what: str, values: list[float], target: str, digits: int = 2) -> None:
    """Print a ratio: the median of its rounds, their spread, and what it is to be."""
    spread = f"{min(values):.{digits}f} to {max(values):.{digits}f}, {len(values)} rounds"
    spread = spread if len(values) > 1 else "one round"
    print(f"{what:48} {statistics.median(values):8.{digits}f} ×  ({spread}); {target}", flush=True)


def lanes(asked: Asked) -> None:
    """Print how many times the rows a second are that are asked on 16 lanes of a socket."""
    ratios = []
    for _ in range(asked.rounds):
        one, many = (
            measured(OURS, Plan(rows=60 * width, lanes=width), THINKING_MS) for width in (1, LANES)
        )
        ratios.append(LANES * one.seconds / many.seconds)
    middle(f"{LANES} lanes / one after another, rows a second", ratios, "target ≥ 12")


def bare(asked: Asked) -> None:
    """Print how long rows take, beside a bare loop on as many lanes of one socket."""
    for thinking_ms, target in ((THINKING_MS, "target ≤ 1.3"), (0, "no target")):
        plan, ratios, costs, rates = Plan(asked.rows, LANES), [], [], []
        for _ in range(asked.rounds):
            ours, least = (measured(client, plan, thinking_ms) for client in (OURS, BARE))
            ratios.append(ours.seconds / least.seconds)
            costs.append(ours.cpu_seconds / least.cpu_seconds)
            rates.append((ours, least))
        what = f"{asked.rows:,} rows, {thinking_ms} ms to think:"
        middle(f"{what} time / bare", ratios, target)
        middle(f"{what} CPU time / bare", costs, "no target")
        for name, at in (("Session.map", 0), ("bare", 1)):
            rate = statistics.median(plan.rows / each[at].seconds for each in rates)
            cost = statistics.median(each[at].cpu_seconds * 1_000 / plan.rows for each in rates)
            print(f"    {name:12} {rate:8,.0f} rows/s, {cost:.3f} CPU ms a row")


def memory(asked: Asked) -> None:
    """Print how much more a process takes at most for ten times the rows, written to parquet."""
    few, many = (
        measured(OURS, Plan(count, LANES, out="parquet"), 0)
        for count in (asked.rows, MANY * asked.rows)
    )
    what = f"{MANY * asked.rows:,} rows / {asked.rows:,}, to parquet: peak"
    middle(what, [many.peak / few.peak], "target ≤ 1.2")
    for count, told in ((asked.rows, few), (MANY * asked.rows, many)):
        print(
            f"    {count:8,} rows: {told.peak:.0f} MB at most, {told.before:.0f} before the first; "
            f"{count / told.seconds:,.0f} rows/s, "
            f"{told.cpu_seconds * 1_000 / count:.3f} CPU ms a row"
        )


SLOTS, FORKED, WHOLE = 4, 16, 4
KINDS = ("fault", "request", "praise", "question")
NOTES = {
    "fault": "the {} does not start any more since the last update",
    "request": "please add a second {} to the order of last week",
    "praise": "the new {} works better than all that we had before",
    "question": "where can the {} be seen before it is bought?",
}
THINGS = ("pump", "lamp", "door", "scale", "printer", "kettle", "heater", "radio", "clock", "oven")
EXAMPLES = [
    f"Note: {said.format(thing)}\nKind: {kind}" for thing in THINGS for kind, said in NOTES.items()
]
TOLD = "You are given a note of a customer. Say of what kind it is, one of: " + ", ".join(KINDS)
INSTRUCTIONS = f"{TOLD}.\n\nExamples:\n\n" + "\n\n".join(EXAMPLES)


@contextlib.contextmanager
def session(asked: Asked, cache: str, transport: str) -> Iterator[Session]:
    """A session with a server of its own."""
    command = [sys.executable, "-m", "ipy_agent", "serve", "--slots", SLOTS, "--cache", cache]
    command += ["--model", asked.model] if asked.model else []
    with started(*command, core=None, IPY_AGENT_SERVER_TOKEN=KEY) as server:
        url = server.stdout.readline().split()[-1]
        os.environ["KEY"] = KEY
        live = Session(Endpoint.named(url, key_env="KEY"), instructions=INSTRUCTIONS)
        live.transport = transport
        try:
            yield live
        finally:
            live.close()


def asked_by(live: Session, count: int) -> tuple[float, pd.DataFrame]:
    """Have a session ask the first rows; return rows a minute, and what came of them."""
    things = ("bicycle", "camera", "tent", "sewing machine")
    notes = [said.format(thing) for thing in things for said in NOTES.values()][:count]
    began = time.perf_counter()
    found = live.map(
        pd.DataFrame({"note": notes}),
        "Note: {note}",
        schema=Literal[KINDS],
        concurrency=SLOTS,
    )
    return 60 * count / (time.perf_counter() - began), found


def local(asked: Asked) -> None:
    """Print how many times the rows a minute are where what they share is forked."""
    found: dict[str, tuple[float, Any]] = {}
    for name, cache, transport, count in (
        ("forked", "all", "websocket", FORKED),
        ("whole, --cache off", "off", "http", WHOLE),
    ):
        with session(asked, cache, transport) as live:
            found[name] = asked_by(live, count)
    forked, whole = found.values()
    middle("local model, forked / whole, rows a minute", [forked[0] / whole[0]], "target ≥ 3")
    for name, (rate, frame) in found.items():
        read, cached = frame["input_tokens"].sum(), frame["cached_tokens"].sum()
        print(
            f"    {name:18} {rate:6.1f} rows/min, {len(frame)} rows, "
            f"{read / len(frame):.0f} tokens in a row, {cached / read:.1%} of them cached; "
            f"{', '.join(f'{n} {status}' for status, n in frame['status'].value_counts().items())}"
        )


TOPICS: dict[str, Callable[[Asked], None]] = {
    "lanes": lanes,
    "bare": bare,
    "memory": memory,
    "local": local,
}


def main() -> None:
    """Print the figures of some topics."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=", ".join(TOPICS))
    parser.add_argument("--rows", type=int, default=2_000, help="rows of a map (2000)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often each is done (3)")
    parser.add_argument("--model", help="a local model's name or file; by default the default one")
    told = parser.parse_args()
    if unknown := set(told.topics) - set(TOPICS):
        parser.error(f"no topic: {', '.join(unknown)}; there are {', '.join(TOPICS)}")
    packages = ", ".join(f"{name} {version(name)}" for name in ("msgspec", "websockets", "pandas"))
    print(
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}, Python {platform.python_version()}, {packages}"
    )
    for name in told.topics or TOPICS:
        print(f"\n== {name}: {TOPICS[name].__doc__.splitlines()[0]}", flush=True)
        TOPICS[name](Asked(told.rows, told.rounds, told.model))


if __name__ == "__main__":
    main()
