"""Hold what a demo left against what it has to reach: `python tests/demo_gate.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

RIGHT, CACHED, SLACK = 5, 0.9, 8


def main(folder: Path) -> str:
    """Return what is wrong, or nothing."""
    answers = pd.read_csv(folder / "answers.csv")["right"]
    turns = pd.read_parquet(folder / "turns.parquet")
    before = turns["input_tokens"].shift() + turns["output_tokens"].shift()
    lost = (before - turns["cached_tokens"]).iloc[1:]
    share = turns["hit_rate"].iloc[1:].median()
    print(
        f"gate: {answers.sum()} of {len(answers)} right; median cached {share:.1%}; "
        f"at most {lost.max()} tokens of the turn before computed again"
    )
    faults = {
        f"fewer than {RIGHT} answers are right": answers.sum() < RIGHT,
        f"less than {CACHED:.0%} of the input is cached": not share >= CACHED,
        f"a turn lost more than {SLACK} tokens of the one before": not (lost <= SLACK).all(),
        "there is no page": not (folder / "quickstart.html").is_file(),
    }
    return "; ".join(fault for fault, found in faults.items() if found)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])) or 0)
