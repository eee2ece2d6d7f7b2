"""A file of facts: what is written, who may read it, and what is left of it after an accident."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ipy_agent.errors import JournalFailed
from ipy_agent.journal import facts
from ipy_agent.journal.facts import Said, Switched
from ipy_agent.journal.file import Writer, is_held, read

SECONDS = 20


@pytest.fixture
def writer(path):
    """Return a function that begins to write a file."""
    made = []

    def begin(where=path):
        made.append(Writer(where))
        return made[-1]

    yield begin
    for one in made:
        one.close()


def names(path):
    found, sound = read(path)
    return [fact.name for fact in found], sound


def filled(path, count=200):
    """Write a file of facts and return their names."""
    one = Writer(path)
    wanted = [f"branch-{number}-{'x' * (number % 50)}" for number in range(count)]
    for name in wanted:
        one.put(Switched(name=name))
        one.written().result(SECONDS)
    one.close()
    return wanted


def test_what_was_put_is_read_in_its_order(writer, path):
    """When it is said to be written, it is there; also while its writer has the file."""
    one = writer()
    for name in "abc":
        one.put(Switched(name=name))
    one.sync()
    one.written().result(SECONDS)

    assert is_held(path)
    assert names(path) == (["a", "b", "c"], True)
    one.close()
    assert not is_held(path)
    assert names(path) == (["a", "b", "c"], True)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_nobody_else_may_read_it(writer, path):
    """Neither the file nor the folder."""
    one = writer()
    one.put(Switched(name="a"))
    one.written().result(SECONDS)

    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


def test_a_file_has_one_writer(writer):
    """The second one is told, and writes nothing."""
    writer().written().result(SECONDS)
    second = writer()
    second.put(Switched(name="b"))

    with pytest.raises(JournalFailed, match="locked"):
        second.written().result(SECONDS)
    assert second.trouble


def test_a_file_goes_on_where_it_ended(writer, path):
    """Another process appends to it."""
    for name in "ab":
        one = writer()
        one.put(Switched(name=name))
        one.close()

    assert names(path) == (["a", "b"], True)


def test_a_folder_that_cannot_be_written_is_told(writer, tmp_path):
    """A file stands where the folder should be."""
    (tmp_path / "file").write_text("")
    one = writer(tmp_path / "file" / "one.sqlite3")
    one.put(Switched(name="a"))

    with pytest.raises(JournalFailed, match="cannot be written"):
        one.written().result(SECONDS)


@pytest.mark.parametrize("where", ["/dev/full", "/proc/one.sqlite3"])
def test_a_place_that_takes_nothing_is_told(writer, where):
    """A device that is always full, a file system that takes no files."""
    one = writer(Path(where))
    one.put(Switched(name="a"))

    with pytest.raises(JournalFailed, match="cannot be written"):
        one.written().result(SECONDS)


def test_a_fact_that_cannot_be_written_ends_it(writer, path):
    """What follows would be of another conversation; what came before is there."""
    one = writer()
    one.put(Switched(name="a"))
    one.written().result(SECONDS)
    one.put(Switched(name="\ud800"))
    one.put(Switched(name="c"))

    with pytest.raises(JournalFailed):
        one.written().result(SECONDS)
    assert names(path)[0] == ["a"]


LIMIT = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
"""

FULL = """
import sys
from pathlib import Path
from ipy_agent.journal.facts import Switched
from ipy_agent.journal.file import Writer, read

writer = Writer(Path(sys.argv[1]))
written = 0
while True:
    writer.put(Switched(name="x" * 1_000))
    try:
        writer.written().result(20)
    except Exception as error:
        print(written, type(error).__name__, error)
        break
    written += 1
writer.close()
print(*map(len, read(Path(sys.argv[1]))[:1]), read(Path(sys.argv[1]))[1])
"""

TMPFS = 'mount -t tmpfs -o size=256k none "$0" && exec "$@"'
"""A file system of 256 KiB, in a namespace of its own: it is gone with its process."""


def has_namespaces(folder):
    if shutil.which("unshare") is None:
        return False
    tried = ["unshare", "--mount", "sh", "-c", TMPFS, str(folder), "true"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("kind", ["a limit", "a file system"])
def test_a_full_disk_ends_it_between_two_facts(path, kind):
    """What was said to be written can be read, and nothing of the rest."""
    command = [sys.executable, "-c", LIMIT + FULL, path]
    if kind == "a file system":
        if not has_namespaces(path.parent.parent):
            pytest.skip("only root may mount a small file system, and not everywhere")
        command = [*("unshare", "--mount", "sh", "-c", TMPFS), path.parent.parent]
        command += [sys.executable, "-c", FULL, path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    told, found = done.stdout.splitlines()
    written, failure, why = told.split(maxsplit=2)

    assert (failure, int(written) > 10) == ("JournalFailed", True)
    assert "cannot be written" in why
    assert found == f"{written} True"


@pytest.mark.long
def test_a_file_that_was_cut_off_is_read_as_far_as_it_goes(path, figure, amount):
    """At any length: reading never raises, and what it returns is how it began."""
    wanted = filled(path)
    whole = path.read_bytes()
    lengths = [*range(0, len(whole), amount(97, 1)), len(whole)]
    seen = set()
    for length in lengths:
        path.write_bytes(whole[:length])
        found, sound = names(path)
        assert found == wanted[: len(found)]
        assert found == wanted or not sound
        seen.add(len(found))

    figure(f"{len(lengths)} lengths, {len(seen)} different numbers of facts read")
    assert {0, len(wanted)} <= seen


def test_a_damaged_file_is_read_as_far_as_it_is_sound(path, chance):
    """Whatever bytes were changed: never an exception, never a fact that was not written."""
    wanted = filled(path, 60)
    whole = path.read_bytes()
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 8, 200))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        found, _ = read(path)
        assert all(isinstance(fact, facts.Fact) for fact in found)
        assert len(found) <= len(wanted) + 1


KILLED = """
import sys
from pathlib import Path
from ipy_agent.journal.facts import Said
from ipy_agent.journal.file import Writer

writer, number = Writer(Path(sys.argv[1])), int(sys.argv[2])
while True:
    for _ in range(3):
        number += 1
        items = [{"text": "x" * (number % 3000)}]
        writer.put(Said(cell=number, turn=1, branch="main", items=items))
    writer.sync()
    writer.written().result(20)
    print(number, flush=True)
"""


@pytest.mark.long
def test_what_was_acknowledged_survives_a_kill(path, amount, chance, figure):
    """Killed at any moment, again and again: all that was said to be written is there, in order."""
    kills, told = amount(12, 750), 0
    for _ in range(kills):
        begun = len(read(path)[0]) if path.exists() else 0
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, path, str(begun)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(chance.randrange(1, 30)):
            told = int(process.stdout.readline())
        killer = threading.Timer(chance.random() / 200, process.send_signal, [signal.SIGKILL])
        killer.start()
        for line in process.stdout:
            told = int(line)
        process.wait(SECONDS)
        process.stdout.close()
        killer.join()
        found, sound = read(path)
        assert sound
        assert len(found) >= told
        assert [fact.cell for fact in found] == list(range(1, len(found) + 1))
        assert isinstance(found[-1], Said)
    figure(
        f"{kills} kills of a writer, {told:,} facts acknowledged, {max(0, told - len(found))} lost"
    )


def test_a_forked_child_writes_nothing(writer, path):
    """It has the object, not the thread, and is not the one who has the file."""
    one = writer()
    one.put(Switched(name="a"))
    one.written().result(SECONDS)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            one.put(Switched(name="b"))
            one.written().result(1)
            one.close()
        os._exit(0)
    os.waitpid(child, 0)
    one.put(Switched(name="c"))
    one.close()

    assert names(path) == (["a", "c"], True)


def test_what_is_no_journal_is_read_as_nothing(path):
    """An empty file, a text, another database, no file."""
    path.parent.mkdir()
    assert read(path) == ([], False)
    for content in (b"", b"hello", b"\x00" * 5_000):
        path.write_bytes(content)
        assert read(path) == ([], False)
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE other (x)")
    assert read(path) == ([], False)


@pytest.mark.parametrize("fact", [None, 5, 0.5, "a text", b"no JSON", b"{}"])
def test_a_row_that_holds_no_fact_ends_what_can_be_read(path, fact):
    """Whatever stands in its place; what came before is there."""
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE facts (number INTEGER PRIMARY KEY, fact)")
        rows = [(facts.encode(Switched(name="a")),), (fact,)]
        other.executemany("INSERT INTO facts (fact) VALUES (?)", rows)

    assert names(path) == (["a"], False)


def test_who_gives_up_waiting_does_not_end_the_writer(writer, path):
    """A run may be interrupted while an intent is written: the next one is written too."""
    one = writer()
    for name in "abc":
        one.put(Switched(name=name))
        one.written().cancel()
    one.written().result(SECONDS)

    assert names(path) == (["a", "b", "c"], True)
