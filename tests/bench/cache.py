"""What the cache saves on a local model: `python tests/bench/cache.py [MODEL]`.

The same conversation over two servers of the same model, one of them with `--cache off`, turn
by turn in alternation. Prints the time to the first token of each turn and the ratio.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator

from ipy_agent import Endpoint, Session

TOKEN = "a-token-for-the-bench"
TURNS = 4
FILLER = "The ship's log of day {n} tells of wind from the west, a calm sea and {n} birds.\n"
OPENING = "".join(FILLER.format(n=n) for n in range(50)) + "Read this log. Answer with one word."
FOLLOWING = "And how many birds on day {n}? Answer with one number."


@contextlib.contextmanager
def session(cache: str, model: str | None) -> Iterator[Session]:
    """A session with a server of its own."""
    command = [sys.executable, "-m", "ipy_agent", "serve", "--slots", "1", "--cache", cache]
    command += ["--model", model] if model else []
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = server.stdout.readline().split()[-1]
    live = Session(Endpoint.named(url, key_env="IPY_AGENT_SERVER_TOKEN"))
    yield live
    live.close()
    server.terminate()
    server.wait()
    server.stdout.close()


def main(model: str | None) -> None:
    """Run both conversations in alternation and print their turns side by side."""
    os.environ["IPY_AGENT_SERVER_TOKEN"] = TOKEN
    with session("all", model) as kept, session("off", model) as forgotten:
        for turn in range(TURNS):
            for each in (kept, forgotten):
                each.run(OPENING if turn == 0 else FOLLOWING.format(n=turn))
        ratios = []
        print("turn  input  cached   ttft ms  |  input  cached   ttft ms   ratio")
        for with_, without in zip(kept.records.turns, forgotten.records.turns, strict=True):
            ratio = with_.ttft_ms / without.ttft_ms
            row = f"{with_.input_tokens:6} {with_.cached_tokens:7} {with_.ttft_ms:9.0f}  |"
            row += f" {without.input_tokens:6} {without.cached_tokens:7} {without.ttft_ms:9.0f}"
            print(f"{with_.turn:4} {row}  {ratio:6.3f}")
            if with_.turn > 1:
                ratios.append(ratio)
        print(f"{kept.records.turns[-1].model}: median ratio {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
