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
    try:
        yield live
    finally:
        live.close()
        server.terminate()
        server.wait()
        server.stdout.close()


def main(model: str | None) -> None:
    """Run both conversations in alternation and print their turns side by side."""
    os.environ["IPY_AGENT_SERVER_TOKEN"] = TOKEN
    ratios = []
    with session("all", model) as kept, session("off", model) as forgotten:
        print("turn | input cached   ttft ms | input cached   ttft ms | ratio")
        for turn in range(1, TURNS + 1):
            rows = []
            for each in (kept, forgotten):
                each.run(OPENING if turn == 1 else FOLLOWING.format(n=turn))
                rows.append(each.records.turns[-1])
            told = (f"{r.input_tokens:5} {r.cached_tokens:6} {r.ttft_ms:9.0f}" for r in rows)
            ratio = rows[0].ttft_ms / rows[1].ttft_ms
            print(f"{turn:4} | {' | '.join(told)} | {ratio:.3f}", flush=True)
            ratios.append(ratio)
        print(
            f"{rows[0].model}: from the second turn on, median {statistics.median(ratios[1:]):.3f}"
        )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
