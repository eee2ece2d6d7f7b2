"""A session that goes on in another process, from its journal.

Rule: a file that cannot be read to its end is set aside, and the sound part goes on in a new one.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ipy_agent.agent.branches import Branches
from ipy_agent.errors import UsageError
from ipy_agent.journal.facts import Opened
from ipy_agent.journal.file import is_held, read
from ipy_agent.journal.folder import PREFIX, found, path_of, set_aside
from ipy_agent.journal.journal import Journal
from ipy_agent.journal.names import mentioned
from ipy_agent.journal.past import Past
from ipy_agent.protocol.items import Item
from ipy_agent.records import Recorder

__all__ = ["Resumed", "new_id", "resume"]


class Resumed(msgspec.Struct, frozen=True, kw_only=True):
    """A session that goes on.

    Attributes:
        session: its id.
        branches: its conversation.
        journal: what it is kept by from now on.
        aborted: the numbers of the runs that were cut off when its process ended.
        names: the variables that the conversation talks about.
        damaged: where the file is that could not be read to its end, if so.
    """

    session: str
    branches: Branches
    journal: Journal
    aborted: tuple[int, ...]
    names: frozenset[str]
    damaged: Path | None


def new_id() -> str:
    """Return an id that no session has."""
    return f"{PREFIX}{uuid.uuid4().hex[:12]}"


def resume(session: str, records: Recorder, *, copy: bool = False) -> Resumed:
    """Go on with a session. No tool runs again.

    Args:
        session: its id, or the beginning of that.
        records: where its rows go.
        copy: leave it as it is, and go on with a copy, under another id.

    Raises:
        UsageError: there is no such session, or somebody else has it.
        JournalFailed: the folder cannot be written.
    """
    path = found(session)
    if is_held(path) and not copy:
        raise UsageError(
            f"session {path.stem} is open in another kernel: end that one, "
            f"or go on with a copy (%agent resume {path.stem} --copy)"
        )
    facts, whole = read(path)
    past = Past(facts, records)
    sound = facts[: past.done]
    name = next((one.session for one in sound if isinstance(one, Opened)), path.stem)
    name = new_id() if copy else name
    damaged = None
    if not copy and not (whole and len(sound) == len(facts)):
        damaged = set_aside(path)
    anew = copy or damaged is not None
    journal = Journal(
        path_of(name) if anew else path, name, runs=past.runs, facts=sound if anew else ()
    )
    journal.open()
    past.settle(journal)
    journal.check()  # and so the file is ours
    return Resumed(
        session=name,
        branches=past.branches,
        journal=journal,
        aborted=tuple(row.cell for row in past.aborted),
        names=mentioned(_items(past.branches)),
        damaged=damaged,
    )


def _items(branches: Branches) -> Iterator[Item]:
    for name in branches.names:
        yield from branches.tree.said(name)
