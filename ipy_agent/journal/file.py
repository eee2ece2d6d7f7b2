"""A file of facts: an SQLite database with one table, written by one thread at a time.

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
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import msgspec

from ipy_agent.errors import JournalFailed
from ipy_agent.journal import facts
from ipy_agent.journal.facts import Fact

__all__ = ["Writer", "is_held", "read"]

CLOSE_SECONDS = 5.0
AT_ONCE = 256
QUICK_SECONDS = 0.002
"""What a commit may take to be done by who tells of it: the hand-over to a thread takes 0.1 ms."""
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
    """Appends facts to a file, on a thread of its own or the caller's; in a forked child, nothing.

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
        self._file: sqlite3.Connection | None = None
        self._is_quick = False
        self._turn = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="ipy_agent journal", daemon=True)
        self._thread.start()

    def put(self, fact: Fact) -> None:
        """Have a fact written."""
        self.add(fact)
        self.wake()

    def add(self, fact: Fact) -> None:
        """Have a fact written with what is put next, or at the next `wake` or `write`."""
        try:
            self._jobs.append(facts.encode(fact))
        except (msgspec.MsgspecError, TypeError, ValueError) as error:
            self._fail(error)

    def wake(self) -> None:
        """Have what was added written by the thread."""
        if os.getpid() == self._pid:
            self._bell.put(None)

    def write(self) -> None:
        """Write what was added here, as long as that is quicker than to wake the thread.

        Not for the main thread: an interrupt half-way would leave a gap.
        """
        if not (self._is_quick and os.getpid() == self._pid and self._turn.acquire(blocking=False)):
            self.wake()
            return
        try:
            self._do(lambda job: isinstance(job, (bytes, Future)))
        finally:
            self._turn.release()

    def sync(self) -> None:
        """Have what was put so far outlive the machine; nobody waits for it."""
        self._jobs.append(_SYNC)
        self.wake()

    def promise(self) -> Future[None]:
        """Return what is done when all that was added is written, or ends with `JournalFailed`."""
        done: Future[None] = Future()
        if os.getpid() == self._pid:
            self._jobs.append(done)
        else:
            done.set_result(None)
        return done

    def written(self) -> Future[None]:
        """Have what was added written, and return what is done then."""
        done = self.promise()
        self.wake()
        return done

    def close(self) -> None:
        """Write what is left, and let go of the file."""
        if os.getpid() == self._pid:
            self._jobs.append(None)
            self.wake()
            self._thread.join(CLOSE_SECONDS)

    def _work(self) -> None:
        try:
            self._file = _opened(self.path)
        except (OSError, sqlite3.Error) as error:
            self._fail(error)
        over = False
        while not over:
            self._bell.get()
            with self._turn:
                over = None in self._do(lambda _: True)
        if self._file is not None:
            self._file.close()

    def _do(self, fits: Callable[[_Job], bool]) -> list[_Job]:
        """Do the jobs at the beginning that fit, and return them."""
        jobs: list[_Job] = []
        while self._jobs and fits(self._jobs[0]):
            jobs.append(self._jobs.popleft())
        began = time.monotonic()
        if self._file is not None and self.trouble is None:
            try:
                _commit(self._file, jobs)
            except sqlite3.Error as error:
                self._fail(error)
        # A disk that is slow once may be slow again: then nobody but the thread waits for it.
        quick = time.monotonic() - began < QUICK_SECONDS
        self._is_quick = quick and self._file is not None and None not in jobs
        self._tell(jobs)
        return jobs

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
    file = sqlite3.connect(
        path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
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
