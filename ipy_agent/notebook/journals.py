"""What `%agent sessions` and `%agent resume` say."""

from __future__ import annotations

from collections.abc import Container, Iterator
from datetime import datetime
from typing import TYPE_CHECKING

from ipy_agent.rendering import plain

if TYPE_CHECKING:
    from ipy_agent.journal.folder import Kept
    from ipy_agent.journal.resume import Resumed
    from ipy_agent.sessions import Session

__all__ = ["resume", "sessions"]

PROMPT = 50


def sessions(ours: str) -> None:
    """Print a line for each session that was kept, the latest first."""
    from ipy_agent.journal.folder import folder, kept  # noqa: PLC0415 (files come with a use)

    found = kept()
    if not found:
        print(f"no session was kept in {folder()}")
    for one in found:
        print(_line(one, ours))
    if found:
        print("%agent resume ID goes on with one, before the first cell of a kernel")


def _line(one: Kept, ours: str) -> str:
    state = {"completed": "", "running": "was cut off"}.get(one.status, one.status)
    if one.session == ours:
        state = "this one"
    elif one.held:
        state = "open in another kernel"
    elif not one.sound:
        state = "damaged: a part of it can be read"
    count = f"{one.cells} cell{'' if one.cells == 1 else 's'}, {one.turns} turns"
    told = " ".join(plain(one.prompt).split())
    told = told if len(told) <= PROMPT else f"{told[: PROMPT - 1]}…"
    parts = (one.session, _local(one.at), count, one.endpoint, repr(told), state)
    return "  ".join(part for part in parts if part)


def _local(at: datetime) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M")


def resume(session: Session, wanted: str, names: Container[str], *, copy: bool) -> None:
    """Go on with a session that was kept, and print what there is to know of it.

    Args:
        session: the kernel's own, which becomes that one.
        wanted: its id, or the beginning of that.
        names: the variables that the notebook has.
        copy: go on with a copy.
    """
    found = session.resume(wanted, copy=copy)
    for line in _told(found, session.branches, len(session.records.cells)):
        print(line)
    gone = [name for name in sorted(found.names) if name not in names]
    if gone:
        print(f"variables that it talks about and that are gone: {', '.join(gone)}")


def _told(found: Resumed, branches: tuple[str, ...], cells: int) -> Iterator[str]:
    on = "" if len(branches) == 1 else f" on {len(branches)} branches ({', '.join(branches)})"
    yield f"resumed {found.session}: {cells} cell runs{on}; no tool ran again"
    if found.aborted:
        runs = ", ".join(map(str, found.aborted))
        yield f"cut off when its kernel ended: run {runs}; side effects unknown"
    if found.damaged is not None:
        yield f"its file was damaged: the sound part was kept, the rest is in {found.damaged}"
