"""Where journals are: a file a session, in the user's state folder, which nobody else may read.

What is older than `DAYS` goes when another session begins, and so do the oldest ones while all of
them take more than `ROOM`. What is being written stays.
"""

from __future__ import annotations

import contextlib
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import platformdirs

from ipy_agent.errors import JournalFailed, UsageError
from ipy_agent.journal.facts import Asked, Begun, Ended, Fact, Opened
from ipy_agent.journal.file import is_held, read

__all__ = ["Kept", "folder", "found", "kept", "path_of", "rows_path", "set_aside", "sweep"]

DAYS = 90
ROOM = 500 * 2**20
SUFFIX = ".sqlite3"
PREFIX = "ipy-agent-"


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A session that was kept, in a few words.

    Attributes:
        session: its id.
        path: its file.
        at: when something happened to it last.
        cells: how many runs it has.
        turns: how many turns.
        prompt: what was asked first.
        endpoint: whom, last.
        status: how its last run ended; `running` until then.
        held: whether somebody has it now.
        sound: whether all of the file can be read.
    """

    session: str
    path: Path
    at: datetime
    cells: int
    turns: int
    prompt: str
    endpoint: str
    status: str
    held: bool
    sound: bool


def folder() -> Path:
    """Return where journals are. It need not be there."""
    return Path(platformdirs.user_state_dir("ipy-agent", appauthor=False)) / "sessions"


def path_of(session: str) -> Path:
    """Return the file of a session."""
    return folder() / f"{session}{SUFFIX}"


def rows_path() -> Path:
    """Return the file of what came of rows, which all sessions share."""
    return folder().with_name(f"rows{SUFFIX}")


def kept() -> list[Kept]:
    """Return the sessions that were kept, the latest first."""
    return [_told(path) for path in _files()]


def found(session: str) -> Path:
    """Return the file of a session, by its id or the beginning of that.

    Raises:
        UsageError: there is none, or more than one.
    """
    fit = [
        path
        for path in _files()
        if path.stem.startswith(session) or path.stem.startswith(PREFIX + session)
    ]
    if len(fit) != 1 or not session:
        many = f"{len(fit)} sessions begin with" if fit else "there is no session"
        raise UsageError(f"{many} {session[:80]!r}: see %agent sessions")
    return fit[0]


def set_aside(path: Path) -> Path:
    """Give a damaged file another name, and return that.

    Raises:
        JournalFailed: the folder cannot be written.
    """
    for number in range(1, 1_000):
        aside = path.with_name(f"{path.stem}.damaged-{number}")
        if not aside.exists():
            try:
                return path.rename(aside)
            except OSError as error:
                raise JournalFailed(f"{path.parent} cannot be written ({error.strerror})") from None
    raise JournalFailed(f"{path.parent} is full of damaged files of {path.stem}: take some away")


def sweep(ours: Path) -> None:
    """Take away what is too old or too much, but for one that is ours."""
    room, oldest = ROOM, time.time() - DAYS * 86_400
    with contextlib.suppress(OSError):
        for path in _files():
            told = path.stat()
            room -= told.st_size
            gone = told.st_mtime < oldest or room < 0
            if gone and path != ours and not is_held(path):
                path.unlink()


def _files() -> list[Path]:
    """Return the files, the latest first."""
    try:
        files = [(path.stat().st_mtime, path) for path in folder().glob(f"*{SUFFIX}")]
    except OSError:
        return []
    return [path for _, path in sorted(files, reverse=True)]


def _told(path: Path) -> Kept:
    facts, sound = read(path)
    runs = [fact.cell for fact in facts if isinstance(fact, Begun)]
    ended = {fact.cell.cell: fact.cell.status for fact in facts if isinstance(fact, Ended)}
    return Kept(
        session=_session(facts, path),
        path=path,
        at=datetime.fromtimestamp(path.stat().st_mtime, UTC),
        cells=len(runs),
        turns=sum(isinstance(fact, Asked) for fact in facts),
        prompt=runs[0].prompt if runs else "",
        endpoint=runs[-1].endpoint if runs else "",
        status=ended.get(runs[-1].cell, "running") if runs else "",
        held=is_held(path),
        sound=sound,
    )


def _session(facts: list[Fact], path: Path) -> str:
    return next((fact.session for fact in facts if isinstance(fact, Opened)), path.stem)
