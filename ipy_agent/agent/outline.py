"""The tree of a conversation as a picture in text.

One line a run: its number, how its prompt begins, what became of it, and the branches that end
there. A run stands below the one that it followed. Where several followed one, the last in the
picture is the one that leads to the current branch; the others are set off to the right.
"""

from __future__ import annotations

from collections.abc import Iterator

from ipy_agent.agent.tree import Run, Tree, back
from ipy_agent.rendering import plain

__all__ = ["drawn"]

WIDTH = 60
LINES = 100
"""How many lines are drawn: the last ones, since the current branch ends there."""


def drawn(tree: Tree, current: str) -> str:
    """Return the picture; `*` marks the branch that the next run is on.

    Args:
        tree: the runs and the branches.
        current: the name of that branch.
    """
    path = {id(run) for run in back(tree.tip(current))}
    behind: dict[int, list[Run]] = {}
    for run in sorted(tree.runs, key=lambda run: id(run) in path):
        behind.setdefault(id(run.parent), []).append(run)
    ends: dict[int, list[str]] = {}
    for name in tree.branches:
        marked = f"{name} *" if name == current else name
        ends.setdefault(id(tree.tip(name)), []).append(marked)
    empty = [f"  {name}: nothing said yet" for name in ends.pop(id(None), [])]
    runs = list(_walk(behind))
    left_out = [f"  … {len(runs) - LINES:,} runs above"] if len(runs) > LINES else []
    shown = (
        f"{rail}{_line(run, tree.standing(run), ends.get(id(run), []))}"
        for rail, run in runs[-LINES:]
    )
    return "\n".join([*empty, *left_out, *shown])


def _walk(behind: dict[int, list[Run]]) -> Iterator[tuple[str, Run]]:
    """Yield each run with the rails at its left, without a stack as deep as the conversation."""
    waiting = _side_by_side(behind.get(id(None), []), "")
    while waiting:
        rail, within, run = waiting.pop()
        yield rail, run
        waiting += _side_by_side(behind.get(id(run), []), within)


def _side_by_side(runs: list[Run], rail: str) -> list[tuple[str, str, Run]]:
    """Return runs that followed the same one, the first to be drawn last."""
    if not runs:
        return []
    *others, last = runs
    return [
        (f"{rail}  ", rail, last),
        *((f"{rail}  ├─", f"{rail}  │ ", run) for run in reversed(others)),
    ]


def _line(run: Run, standing: str, ends: list[str]) -> str:
    said = " ".join(plain(run.prompt).split()) or "(compacted)"
    prompt = said if len(said) <= WIDTH else f"{said[: WIDTH - 1]}…"
    number = "·" if run.is_compaction else str(run.number)
    told = [] if standing == "live" else [standing]
    return "  ".join([f"{number} {prompt}", *told, *(f"<- {name}" for name in ends)])
