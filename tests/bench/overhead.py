"""What a client adds to a turn: `python tests/bench/overhead.py [TAIL_MS] [ROUNDS]`.

The loops in `loops/` ask an endpoint with no time to think, runs of 20 turns with a tool call each
and 20 kB of tools, one after another, in several rounds. What is told is measured at the endpoint
(`peer.py`): the time from a turn's terminal event to the next request, the first 20 turns left out,
and the bytes of a request. `TAIL_MS` is a pause between a turn's last item and its terminal event.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
TURNS, RUNS = 20, 6
LOOPS = {
    "bare": ("bare.py",),
    "ipy_agent": ("ours.py",),
    "ipy_agent, journal": ("ours.py", "--journal"),
    "openai SDK": ("sdk.py",),
}


def measured(loop: tuple[str, ...], tail: float) -> tuple[list[float], list[int]]:
    """Return the gaps in milliseconds, and the bytes of the requests, of one loop."""
    name, *options = loop
    command = [sys.executable, str(HERE / "peer.py"), str(TURNS), str(tail)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as peer,
        tempfile.TemporaryDirectory() as state,
    ):
        assert peer.stdout is not None
        url = peer.stdout.readline().strip()
        asks = [sys.executable, str(HERE / "loops" / name), url, str(RUNS), *options]
        subprocess.run(asks, check=True, env={**os.environ, "XDG_STATE_HOME": state})
        told = json.loads(peer.stdout.readline())
        peer.terminate()
    # Between two runs there is more than a turn: the last one's end, and the next one's beginning.
    gaps = [gap for at, gap in enumerate(told["gaps_ms"], 1) if at > TURNS and at % TURNS]
    return gaps, told["bytes"][TURNS:]


def main(tail: float, rounds: int) -> None:
    """Run all loops in alternation, and print their medians beside the bare loop's."""
    gaps: dict[str, list[float]] = {name: [] for name in LOOPS}
    sizes: dict[str, int] = {}
    for _ in range(rounds):
        for name, loop in LOOPS.items():
            found, sent = measured(loop, tail)
            gaps[name].append(statistics.median(found))
            sizes[name] = round(statistics.median(sent))
    packages = ", ".join(f"{name} {version(name)}" for name in ("websockets", "msgspec", "openai"))
    print(f"{rounds} rounds of {RUNS} × {TURNS} turns, {tail:g} ms before the end; {packages}")
    print("loop                 ms a turn (rounds)         × bare   bytes a turn")
    base = statistics.median(gaps["bare"])
    for name, found in gaps.items():
        middle, spread = statistics.median(found), f"{min(found):.2f} to {max(found):.2f}"
        print(f"{name:20} {middle:6.2f}  ({spread:>14}) {middle / base:9.1f} {sizes[name]:14,}")


if __name__ == "__main__":
    main(float((sys.argv[1:] or ["0"])[0]), int((sys.argv[2:] or ["3"])[0]))
