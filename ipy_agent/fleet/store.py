"""What came of rows, by a key, in one SQLite file that processes share.

It is there so that nobody pays for an answer twice, and for nothing else: where it cannot be kept,
it says why in `trouble`, and rows are asked as if there were no store.

A commit is not synced: what it wrote outlives the process all the same. There is no write-ahead
log, whose locks some file systems do not have. A transaction is short, since others wait for it.

Rule 1: neither `held` nor `keep` raises, whatever the disk or the file is like; after a failure
nothing is held and nothing kept.
Rule 2: no key is in it: an outcome is redacted as it is written.
Rule 3: a damaged file is never written: it is set aside with what belongs to it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from ipy_agent.fleet.outcome import RowOutcome
from ipy_agent.secrets import holds_secret, redacted

__all__ = ["Store", "sweep"]

DAYS = 90
ROOM = 5 * 2**30
"""Bytes. Ten million rows of a few words fit; what goes is asked, and paid for, once more."""
BUSY_SECONDS = 5.0
"""How long another process may write before the file counts as locked."""
AT_ONCE = 500
"""Keys of one SELECT."""
SLICE = 2_000
"""Rows that are swept in one transaction."""

_MAKE = (
    "PRAGMA journal_mode=DELETE",
    "PRAGMA synchronous=OFF",
    # A row that is kept again gets a new number: they are in the order of their age.
    """CREATE TABLE IF NOT EXISTS outcomes (
        number INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, at INTEGER NOT NULL,
        outcome BLOB NOT NULL)""",
)
_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB")

_T = TypeVar("_T")


class Store:
    """What came of rows; in a forked child, nothing.

    Args:
        path: the file; it and its folder are made, for nobody else to read. `None` is a file of
            nobody's, which is gone when it is closed.

    Attributes:
        trouble: why it holds nothing any more, if it does not.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.trouble: str | None = None
        self._pid = os.getpid()
        self._is_closed = False
        self._file: sqlite3.Connection | None = None
        self._known: tuple[int, int] | None = None
        self._done(sweep)

    def held(self, keys: Sequence[bytes]) -> dict[bytes, RowOutcome]:
        """Return what came of the rows of these keys, of those that it holds."""
        return self._done(lambda file: dict(_found(file, keys))) or {}

    def keep(self, outcomes: Mapping[bytes, RowOutcome]) -> None:
        """Keep what came of rows, in place of what came of them before."""
        now = int(time.time())
        told = [(key, _encoded(outcome)) for key, outcome in outcomes.items()]
        rows = [(key, now, said) for key, said in told if said is not None]
        if rows:
            self._done(lambda file: _keep(file, rows))

    def close(self) -> None:
        """Let go of the file."""
        if os.getpid() == self._pid:
            self._is_closed = True
            self._let_go()

    def _done(self, work: Callable[[sqlite3.Connection], _T]) -> _T | None:
        """Return what some work on the file returns, or `None` where it cannot be done.

        What finds the file damaged is done once more, on a new one.
        """
        if self.trouble or self._is_closed or os.getpid() != self._pid:
            return None
        for again in (True, False):
            try:
                if self._file is None:
                    self._known = _made(self.path)
                    self._file = _opened(self.path)
                return work(self._file)
            except (sqlite3.Error, OSError, UnicodeError) as error:
                self._let_go()
                if not (again and _is_damage(error) and self._is_set_aside()):
                    self._fail(error)
                    break
        return None

    def _let_go(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _fail(self, error: Exception) -> None:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        place = "the temporary folder" if self.path is None else str(self.path)
        self.trouble = f"{place} cannot be read and written ({why})"

    def _is_set_aside(self) -> bool:
        """Give the damaged file another name; whether a new one can be in its place."""
        path = self.path
        if path is None:
            return False
        try:
            told = path.stat()
            if (told.st_dev, told.st_ino) != self._known:
                return True  # another process was quicker
            free = (path.with_name(f"{path.stem}.damaged-{n}") for n in range(1, 1_000))
            aside = next((one for one in free if not one.exists()), None)
            if aside is None or not stat.S_ISREG(told.st_mode):
                return False
            # First what was to be undone in it: by its old name it would be undone in the new one.
            undo = path.with_name(f"{path.name}-journal")
            if undo.exists():
                undo.rename(aside.with_name(f"{aside.name}-journal"))
            path.rename(aside)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


def sweep(file: sqlite3.Connection, room: int = ROOM) -> None:
    """Take away what is too old, and the oldest of what is too much; a slice at a time."""
    old = int(time.time()) - DAYS * 86_400
    gone = 1
    while gone > 0:
        values = {"all": _size(file) > room, "old": old, "slice": SLICE}
        first = file.execute(
            "SELECT :all OR at < :old FROM outcomes ORDER BY number LIMIT 1", values
        ).fetchone()
        if first is None or not first[0]:
            return  # others are not kept waiting for nothing
        with file:
            file.execute("BEGIN IMMEDIATE")
            gone = file.execute(
                "DELETE FROM outcomes WHERE number IN "
                "(SELECT number FROM outcomes ORDER BY number LIMIT :slice) "
                "AND (:all OR at < :old)",
                values,
            ).rowcount
        # Not by `execute`, which gives back a single page.
        file.executescript("PRAGMA incremental_vacuum")


def _size(file: sqlite3.Connection) -> int:
    """Return how many bytes of the file are in use."""
    used = _number(file, "page_count") - _number(file, "freelist_count")
    return used * _number(file, "page_size")


def _number(file: sqlite3.Connection, name: str) -> int:
    return int(file.execute(f"PRAGMA {name}").fetchone()[0])


def _made(path: Path | None) -> tuple[int, int] | None:
    """Make a file if there is none, and return what it is known by whatever its name."""
    if path is None:
        return None
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # One that is there is not opened here: to close it would end the locks that other stores of
    # this process have on it.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    told = path.stat()
    return told.st_dev, told.st_ino


def _opened(path: Path | None) -> sqlite3.Connection:
    # Without a name it is a temporary file of SQLite's.
    file = sqlite3.connect(
        path or "", timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        if not _number(file, "page_count"):
            # What is swept is given back a slice at a time; a VACUUM would write all of the file.
            # In one that is there this would wait for others.
            file.execute("PRAGMA auto_vacuum=INCREMENTAL")
        for statement in _MAKE:
            file.execute(statement)
    except BaseException:
        file.close()
        raise
    return file


def _is_damage(error: Exception) -> bool:
    # Of a damaged file even the message of an error may be no text.
    told = str(getattr(error, "sqlite_errorname", ""))
    return told.startswith(_DAMAGE) or isinstance(error, UnicodeError)


def _found(file: sqlite3.Connection, keys: Sequence[bytes]) -> Iterator[tuple[bytes, RowOutcome]]:
    for at in range(0, len(keys), AT_ONCE):
        some = keys[at : at + AT_ONCE]
        rows = file.execute(
            f"SELECT key, outcome FROM outcomes WHERE key IN (?{',?' * (len(some) - 1)})",  # noqa: S608 (no data in it)
            some,
        ).fetchall()
        for key, said in rows:
            with contextlib.suppress(msgspec.MsgspecError, ValueError, TypeError):
                yield key, msgspec.json.decode(said, type=RowOutcome)


def _keep(file: sqlite3.Connection, rows: Sequence[tuple[bytes, int, bytes]]) -> None:
    with file:
        file.execute("BEGIN IMMEDIATE")
        file.executemany(
            "INSERT OR REPLACE INTO outcomes (key, at, outcome) VALUES (?, ?, ?)", rows
        )


def _encoded(outcome: RowOutcome) -> bytes | None:
    """Return an outcome as it is kept; of one that is no text there is nothing to keep."""
    try:
        kept = msgspec.json.encode(outcome)
    except (msgspec.MsgspecError, ValueError):
        return None
    text = kept.decode()
    return redacted(text).encode() if holds_secret(text) else kept
