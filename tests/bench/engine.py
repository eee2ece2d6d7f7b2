"""What llama.cpp does best with here: `python tests/bench/engine.py [MODEL.gguf [ROUNDS [ROW …]]]`.

Each row is one option changed against what `server/gguf.py` sets, in a process of its own, one
after another in several rounds. A prompt of this package's own source is computed, and a call of a
tool is written, held to its schema. Told are tokens a second, beside those of the first row of the
same round; the CPU time of a token, for when other processes took the cores; the longest time for
which a prefill could not be stopped; and whether the answer is the first row's, id by id.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import xllamacpp

from ipy_agent.server import weights
from ipy_agent.server.gguf import Gguf

ROUNDS, PROMPT, ANSWER = 1, 256, 40
MODEL = "smollm2-135m-instruct"
Q8_0 = 8
SOURCE = Path(__file__).parents[2] / "ipy_agent" / "server" / "slots.py"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"const": "python"}, "arguments": {"type": "object"}},
    "required": ["name", "arguments"],
}
ROWS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "1 thread": {"cpuparams.n_threads": 1, "cpuparams_batch.n_threads": 1},
    "batch 32": {"n_batch": 32, "n_ubatch": 32},
    "batch 128": {"n_batch": 128, "n_ubatch": 128},
    "batch 256": {"n_batch": 256, "n_ubatch": 256},
    "batch 256 by 64": {"n_batch": 256, "n_ubatch": 64},
    "flash attention": {"flash_attn_type": 1},
    "no flash attention": {"flash_attn_type": 0},
    "KV q8_0": {"cache_type_k": Q8_0, "cache_type_v": Q8_0},
    "spin 0": {"GOMP_SPINCOUNT": "0"},
    "spin 100": {"GOMP_SPINCOUNT": "100"},
    "spin 10,000": {"GOMP_SPINCOUNT": "10000"},
    "spin 1,000,000": {"GOMP_SPINCOUNT": "1000000"},
    "poll 0": {"cpuparams.poll": 0, "cpuparams_batch.poll": 0},
    "strict cores": {"cpuparams.strict_cpu": True, "cpuparams_batch.strict_cpu": True},
    "high priority": {"cpuparams.priority": 2, "cpuparams_batch.priority": 2},
    "no repacking": {"no_extra_bufts": True},
    "no checkpoints": {"n_ctx_checkpoints": 0},
    "ngram-simple": {"speculative.types": "NGRAM_SIMPLE"},
    "ngram-map-k": {"speculative.types": "NGRAM_MAP_K"},
    "ngram-mod": {"speculative.types": "NGRAM_MOD"},
    "ngram-cache": {"speculative.types": "NGRAM_CACHE"},
}


class Figures(NamedTuple):
    """One round of one row: tokens a second, CPU milliseconds a token, and seconds."""

    prefill: float
    decode: float
    prefill_cpu: float
    decode_cpu: float
    deaf: float


def one(path: str, options: dict[str, Any]) -> None:
    """Measure one row in this process, and print what came of it."""
    if kinds := options.get("speculative.types"):
        kind = xllamacpp.common_speculative_type
        options["speculative.types"] = [getattr(kind, f"COMMON_SPECULATIVE_TYPE_{kinds}")]
    model = Gguf(Path(path), slots=1, context=2048, options=options)
    prompt = model.tokenise([SOURCE.read_text()])[:PROMPT]
    model.complete(0, prompt[:8], max_tokens=2, temperature=0, schema=SCHEMA)
    stops: list[float] = []

    def look() -> bool:
        stops.append(time.perf_counter())
        return False

    clocks = [time.process_time()]
    first = model.complete(0, prompt, stop=look, max_tokens=1, temperature=0).timings
    clocks.append(time.process_time())
    done = model.complete(0, prompt, max_tokens=ANSWER, temperature=0, schema=SCHEMA)
    clocks.append(time.process_time())
    read, said = first["prompt_n"], done.timings["predicted_n"]
    figures = Figures(
        read / first["prompt_ms"] * 1_000,
        said / done.timings["predicted_ms"] * 1_000,
        (clocks[1] - clocks[0]) * 1_000 / read,
        (clocks[2] - clocks[1]) * 1_000 / said,
        max(after - before for before, after in pairwise(stops)),
    )
    print(json.dumps([figures, done.ids]), flush=True)
    os._exit(0)


def measured(path: str, row: str) -> tuple[Figures, list[int]] | None:
    """Return one round of a row and the ids of its answer; nothing if it cannot be had."""
    options = dict(ROWS[row])
    names = [name for name in options if name.isupper() or name.startswith("GOMP")]
    environment = {**os.environ, **{name: options.pop(name) for name in names}}
    command = [sys.executable, __file__, "--one", path, json.dumps(options)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        return None
    figures, ids = json.loads(done.stdout.splitlines()[-1])
    return Figures(*figures), ids


def main(path: str, rounds: int, rows: list[str]) -> None:
    """Measure all rows in alternation, and print their medians beside the first one's."""
    found: dict[str, list[Any]] = {row: [] for row in rows}
    for _ in range(rounds):
        for row in rows:
            found[row].append(measured(path, row))
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    print(f"{Path(path).name}, xllamacpp {version('xllamacpp')}, {rounds} rounds")
    print("                     prefill         decode        CPU ms a token   deaf")
    print("                     /s      ×       /s      ×     prefill  decode     s  same answer")
    base = found[rows[0]]
    for row, figures in found.items():
        if None in figures or None in base:
            print(f"{row:18} cannot be had")
            continue
        middle = Figures(*map(statistics.median, zip(*(each for each, _ in figures), strict=True)))
        beside = [
            statistics.median(
                each[at] / first[at] for (each, _), (first, _) in zip(figures, base, strict=True)
            )
            for at in (0, 1)
        ]
        same = all(ids == first for (_, ids), (_, first) in zip(figures, base, strict=True))
        print(
            f"{row:18} {middle.prefill:7.1f} {beside[0]:5.2f} {middle.decode:8.1f} {beside[1]:6.2f}"
            f" {middle.prefill_cpu:9.1f} {middle.decode_cpu:8.1f} {middle.deaf:6.2f}"
            f"  {'yes' if same else 'no'}"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], json.loads(sys.argv[3]))
    else:
        told = sys.argv[1:]
        main(
            str(weights.path((told or [MODEL])[0])),
            int((told[1:] or [ROUNDS])[0]),
            told[2:] or list(ROWS),
        )
