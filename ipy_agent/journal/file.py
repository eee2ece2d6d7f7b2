"""A file of facts: an SQLite database with one table, written by one thread.

A commit is not synced, since what it wrote outlives the process all the same; after a run one is,
for the sake of the machine's end. There is no write-ahead log: a second file, and locks that some
file systems do not have.

Rule 1: a transaction holds whole facts, in their order. After a failure nothing more is written:
a gap would make something else of what follows.
Rule 2: who writes a file has it for itself, until it is closed or its process ends.
Rule 3: reading takes what is sound from the beginning on, and never raises for what is not.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import msgspec

from ipy_agent.errors import JournalFailed
from ipy_agent.journal import facts
from ipy_agent.journal.facts import Fact

__all__ = ["Writer", "is_held", "read"]

CLOSE_SECONDS = 5.0
AT_ONCE = 256
BUSY_SECONDS = 1.0
"""How long a file may be looked at by another process before it counts as another's."""

_MAKE = (
    "PRAGMA locking_mode=EXCLUSIVE",
    "PRAGMA journal_mode=DELETE",
    "PRAGMA synchronous=OFF",
    "CREATE TABLE IF NOT EXISTS facts (number INTEGER PRIMARY KEY, fact BLOB NOT NULL)",
    "BEGIN EXCLUSIVE",
    "COMMIT",
)

_SYNC = "sync"
_Job = bytes | str | Future[None] | None


class Writer:
    """Appends facts to a file, on a thread of its own. A forked child does nothing.

    Args:
        path: the file; it and its folder are made, for nobody else to read.

    Attributes:
        trouble: why it does not write any more, if it does not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trouble: str | None = None
        self._pid = os.getpid()
        self._jobs: deque[_Job] = deque()
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="ipy_agent journal", daemon=True)
        self._thread.start()

    def put(self, fact: Fact) -> None:
        """Have a fact written."""
        self.add(fact)
        self.wake()

    def add(self, fact: Fact) -> None:
        """Have a fact written with what is put next, or at the next `wake`."""
        try:
            self._jobs.append(facts.encode(fact))
        except (msgspec.MsgspecError, TypeError, ValueError) as error:
            self._fail(error)

    def wake(self) -> None:
        """Have what was added written now."""
        if os.getpid() == self._pid:
            self._bell.put(None)

    def sync(self) -> None:
        """Have what was put so far outlive the machine; nobody waits for it."""
        self._jobs.append(_SYNC)
        self.wake()

    def written(self) -> Future[None]:
        """Return what is done when all that was put is written, or ends with `JournalFailed`."""
        done: Future[None] = Future()
        if os.getpid() == self._pid:
            self._jobs.append(done)
            self.wake()
        else:
            done.set_result(None)
        return done

    def close(self) -> None:
        """Write what is left, and let go of the file."""
        if os.getpid() == self._pid:
            self._jobs.append(None)
            self.wake()
            self._thread.join(CLOSE_SECONDS)

    def _work(self) -> None:
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(contextlib.closing(_opened(self.path)))
            except (OSError, sqlite3.Error) as error:
                file = None
                self._fail(error)
            while True:
                self._bell.get()
                jobs: list[_Job] = []
                while self._jobs:
                    jobs.append(self._jobs.popleft())
                if file is not None and self.trouble is None:
                    try:
                        _commit(file, jobs)
                    except sqlite3.Error as error:
                        self._fail(error)
                self._tell(jobs)
                if None in jobs:
                    return

    def _fail(self, error: Exception) -> None:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        self.trouble = f"{self.path.parent} cannot be written ({why})"

    def _tell(self, jobs: list[_Job]) -> None:
        for job in jobs:
            if not isinstance(job, Future) or not job.set_running_or_notify_cancel():
                continue  # whoever waited for it may have given up
            if self.trouble is None:
                job.set_result(None)
            else:
                job.set_exception(JournalFailed(str(self.trouble)))


def _opened(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    file = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        for statement in _MAKE:
            file.execute(statement)
    except sqlite3.Error:
        file.close()
        raise
    return file


def _commit(file: sqlite3.Connection, jobs: list[_Job]) -> None:
    rows = [job for job in jobs if isinstance(job, bytes)]
    for at in range(0, len(rows), AT_ONCE):
        some = rows[at : at + AT_ONCE]
        # One statement is a transaction of its own, and one turn of this thread's.
        file.execute(f"INSERT INTO facts (fact) VALUES (?){',(?)' * (len(some) - 1)}", some)  # noqa: S608 (no data in it)
    if _SYNC in jobs:
        file.execute("PRAGMA synchronous=FULL")
        file.execute("PRAGMA user_version=1")  # something has to be written, for all to be synced
        file.execute("PRAGMA synchronous=OFF")


def read(path: Path) -> tuple[list[Fact], bool]:
    """Return the facts of a file as far as they are sound, and whether that is all of them.

    A file that another process has for itself can be read too.
    """
    found: list[Fact] = []
    try:
        for number, fact in _rows(path):
            if number != len(found) + 1 or not isinstance(fact, bytes):
                return found, False
            found.append(facts.decode(fact))
    except (sqlite3.Error, msgspec.MsgspecError, OSError, ValueError):
        return found, False
    return found, True


def _rows(path: Path) -> Iterator[tuple[object, object]]:
    # What a writer was about to undo when it ended is undone by opening the file to write. Where
    # there is a writer, `immutable` takes no lock.
    way = "mode=ro&immutable=1" if is_held(path) else "mode=rw"
    where = f"{path.as_uri()}?{way}"
    with contextlib.closing(sqlite3.connect(where, uri=True, timeout=BUSY_SECONDS)) as file:
        # Else a file that is shorter than it says is not read at all.
        file.execute("PRAGMA writable_schema=ON")
        yield from file.execute("SELECT number, fact FROM facts ORDER BY number")


def is_held(path: Path) -> bool:
    """Whether another process, or another session of this one, writes a file."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True)) as file:
            file.execute("PRAGMA busy_timeout=0")
            file.execute("BEGIN IMMEDIATE")
            file.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        return "locked" in str(error)
    except sqlite3.Error:
        return False
    return False
