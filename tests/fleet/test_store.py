"""The store: what is kept is held, by whoever asks, and an accident is told and nothing worse."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ipy_agent.fleet.outcome import RowOutcome
from ipy_agent.fleet.store import Store, sweep
from ipy_agent.secrets import Secret


@pytest.fixture
def path(tmp_path):
    return tmp_path / "fleet" / "rows.sqlite3"


@pytest.fixture
def store():
    """Return a function that opens a store."""
    with contextlib.ExitStack() as opened:
        yield lambda path: opened.enter_context(contextlib.closing(Store(path)))


def key(number):
    return number.to_bytes(16, "big")


def changed(path, statement, *values):
    with contextlib.closing(sqlite3.connect(path)) as file, file:
        file.execute(statement, values)


@pytest.mark.parametrize("where", ["a file", "nowhere"])
def test_what_was_kept_is_held(where, store, path, outcome):
    """Of the keys that are asked for, those that there are, however many."""
    one = store(path if where == "a file" else None)
    kept = {key(number): outcome(f"text {number}") for number in range(3_000)}
    one.keep(kept)

    assert one.held([*kept, key(5_000)]) == kept
    assert one.held([key(7), key(7), key(5_000)]) == {key(7): kept[key(7)]}
    assert one.held([]) == {}
    assert one.trouble is None


def test_what_was_kept_last_is_held(store, path, outcome):
    """A row that was asked again has its last outcome, in all of its fields."""
    one = store(path)
    one.keep({key(1): outcome(), key(2): outcome()})
    failed = RowOutcome(status="failed", error="no")
    one.keep({key(1): failed})
    one.keep({})

    assert store(path).held([key(1), key(2)]) == {key(1): failed, key(2): outcome()}


def test_a_file_of_nobodys_is_gone_when_it_is_closed(store, outcome):
    """Two of them have nothing to do with each other."""
    one, other = store(None), store(None)
    one.keep({key(1): outcome()})

    assert other.held([key(1)]) == {}
    one.close()
    assert (one.held([key(1)]), one.trouble) == ({}, None)


def test_nobody_else_may_read_it(store, path, outcome):
    """Neither the file nor the folder."""
    store(path).keep({key(1): outcome()})

    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_no_secret_is_in_it(store, path, outcome):
    """A model may say what is known to be secret."""
    secret = Secret("correct-horse-4711-battery")
    store(path).keep({key(1): outcome("it is correct-horse-4711-battery")})

    assert secret.reveal().encode() not in path.read_bytes()
    assert "it is" in store(path).held([key(1)])[key(1)].text


def test_what_cannot_be_read_is_not_held(store, path, outcome):
    """Nor is what cannot be written; the rest is."""
    one = store(path)
    one.keep({key(1): outcome(), key(2): outcome("\ud800"), key(3): outcome(), key(4): outcome()})
    changed(path, "UPDATE outcomes SET outcome = ? WHERE key = ?", b'{"text": 1}', key(3))
    changed(path, "UPDATE outcomes SET outcome = ? WHERE key = ?", b"\xff", key(4))

    assert one.held([key(1), key(2), key(3), key(4)]) == {key(1): outcome()}
    assert one.trouble is None


def test_fields_of_another_version_do_no_harm(store, path):
    """What a later version adds is skipped, what an earlier one did not have is not known."""
    one = store(path)
    one.keep({key(1): RowOutcome(status="failed")})
    changed(path, "UPDATE outcomes SET outcome = ?", b'{"status": "completed", "mood": 1}')

    assert one.held([key(1)]) == {key(1): RowOutcome(status="completed")}


WRITE = """
import sys
from pathlib import Path
from ipy_agent.fleet.outcome import RowOutcome
from ipy_agent.fleet.store import Store

store, first = Store(Path(sys.argv[1])), int(sys.argv[2])
for at in range(first, first + 1_000, 10):
    keys = [number.to_bytes(16, "big") for number in range(at, at + 10)]
    store.keep({key: RowOutcome(text=sys.argv[2], status="completed") for key in keys})
    assert store.held(keys).keys() == set(keys), store.trouble
print(store.trouble)
"""


def test_processes_that_write_at_once_lose_nothing(store, path):
    """Three of them, from the file's beginning on; each finds what it kept at once."""
    firsts = ["0", "1000", "2000"]
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE, path, first], stdout=subprocess.PIPE, text=True
        )
        for first in firsts
    ]
    told = [writer.communicate(timeout=120)[0].strip() for writer in writers]

    assert told == ["None"] * 3
    found = store(path).held([key(number) for number in range(3_000)])
    assert [found[key(number)].text for number in range(3_000)] == [
        first for first in firsts for _ in range(1_000)
    ]


KILLED = """
import itertools, sys
from pathlib import Path
from ipy_agent.fleet.outcome import RowOutcome
from ipy_agent.fleet.store import Store

store = Store(Path(sys.argv[1]))
for at in itertools.count(int(sys.argv[2]), 10):
    keys = [number.to_bytes(16, "big") for number in range(at, at + 10)]
    store.keep({key: RowOutcome(text="x" * (at % 5_000), status="completed") for key in keys})
    print(at + 10, flush=True)
"""


@pytest.mark.long
def test_what_was_kept_survives_a_kill(path, amount, chance, figure):
    """At any moment, again and again: of the last piece there is all or nothing."""
    kept, kills = 0, amount(8, 300)
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, path, str(kept)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(chance.randrange(1, 60)):
            kept = int(process.stdout.readline())
        process.kill()
        kept = max(kept, *(int(line) for line in process.stdout), 0)
        process.communicate()
        with contextlib.closing(Store(path)) as one:
            found = one.held([key(number) for number in range(kept + 10)])
            assert one.trouble is None
        assert len(found) in {kept, kept + 10}
        assert found.keys() >= set(map(key, range(kept)))

    figure(f"{kills} kills, {kept:,} rows kept, none lost")
    assert list(path.parent.glob("*damaged*")) == []


def test_opening_a_file_takes_no_lock_from_another_store_of_the_process(store, path, outcome):
    """While one store writes, nobody else does, though a second one was opened and closed."""
    one = store(path)
    one.keep({key(1): outcome()})
    one._file.execute("BEGIN IMMEDIATE")
    store(path).close()
    look = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')"

    done = subprocess.run(
        [sys.executable, "-c", look, path], capture_output=True, text=True, check=False
    )

    assert "database is locked" in done.stderr


def test_a_file_that_is_locked_is_told(store, path, outcome):
    """After some seconds it goes on without; nothing is raised, then or later."""
    one = store(path)
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        one.keep({key(1): outcome()})

    assert one.trouble == f"{path} cannot be read and written (database is locked)"
    one.keep({key(1): outcome()})
    assert one.held([key(1)]) == {}


@pytest.mark.parametrize("place", ["a file/rows.sqlite3", "a folder", "/proc/rows.sqlite3"])
def test_a_place_that_takes_no_file_is_told(place, store, tmp_path, outcome):
    """A file stands where the folder should be, a folder where the file; no files at all."""
    (tmp_path / "a file").write_text("")
    (tmp_path / "a folder").mkdir()
    one = store(tmp_path / place)
    one.keep({key(1): outcome()})

    assert one.held([key(1)]) == {}
    assert "cannot be read and written" in one.trouble


FILL = """
import sys
from pathlib import Path
from ipy_agent.fleet.outcome import RowOutcome
from ipy_agent.fleet.store import Store

store, number, kept = Store(Path(sys.argv[1])), 0, []
while not store.trouble and number < 1_000:
    number += 1
    kept.append(number.to_bytes(16, "big"))
    store.keep({kept[-1]: RowOutcome(text="x" * 1_000, status="completed")})
again = Store(Path(sys.argv[1]))
print(number, len(store.held(kept)), len(again.held(kept)), again.trouble, store.trouble)
"""
LIMIT = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
"""
SMALL = 'mount -t tmpfs -o size=256k none "$0" && exec "$@"'
"""A file system of 256 KiB, in a namespace of its own: it is gone with its process."""
READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'


def in_namespace(mount, folder, *command):
    if shutil.which("unshare") is None:
        return None
    whole = ["unshare", "--mount", "sh", "-c", mount, folder, *command]
    return subprocess.run(whole, capture_output=True, text=True, timeout=60, check=False)


def mounted(mount, folder, *command):
    """Return what a command prints where something is mounted on a folder."""
    tried = in_namespace(mount, folder, "true")
    if tried is None or tried.returncode:
        pytest.skip("only root may mount a file system, and not everywhere")
    return in_namespace(mount, folder, *command).stdout


@pytest.mark.parametrize("kind", ["a limit", "a file system"])
def test_a_full_disk_is_told_and_what_was_kept_is_held(kind, path):
    """From then on it holds nothing; who opens the file again finds all but the last."""
    path.parent.mkdir()
    if kind == "a limit":
        command = [sys.executable, "-c", LIMIT + FILL, path]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    else:
        out = mounted(SMALL, path.parent, sys.executable, "-c", FILL, path)
    number, held, found, fresh, trouble = out.split(maxsplit=4)

    assert 20 < int(number) < 1_000
    assert (held, found, fresh) == ("0", str(int(number) - 1), "None")
    assert f"{path} cannot be read and written" in trouble


def test_a_file_that_may_only_be_read_is_told(store, path, outcome):
    """At the first row that should be kept; until then it holds what it holds."""
    store(path).keep({(1).to_bytes(16, "big"): outcome("x" * 1_000)})
    out = mounted(READ_ONLY, path.parent, sys.executable, "-c", FILL, path)

    assert out.startswith("1 0 1 None ")
    assert "readonly" in out


def test_a_file_that_is_none_of_sqlites_is_set_aside(store, path, outcome):
    """A new one is begun, and the old one is there under another name."""
    path.parent.mkdir()
    for _ in range(2):
        path.write_bytes(b"no database at all" * 1_000)
        one = store(path)
        one.keep({key(1): outcome()})
        assert (one.held([key(1)]), one.trouble) == ({key(1): outcome()}, None)

    names = sorted(file.name for file in path.parent.iterdir())
    assert names == ["rows.damaged-1", "rows.damaged-2", "rows.sqlite3"]
    assert (path.parent / "rows.damaged-1").read_bytes() == b"no database at all" * 1_000


def test_damage_that_is_found_late_is_set_aside_too(store, path, outcome):
    """Another store that has the damaged file goes over to the new one."""
    one, other = store(path), store(path)
    one.keep({key(number): outcome("x" * 2_000) for number in range(200)})
    changed(path, "DELETE FROM outcomes WHERE key = ?", key(199))  # what was read is read anew
    with path.open("r+b") as file:
        file.seek(4_096)
        file.write(b"\xaa" * 300_000)
    undo = path.with_name("rows.sqlite3-journal")
    undo.write_bytes(b"")

    assert one.held([key(number) for number in range(200)]) == {}
    one.keep({key(1): outcome("new")})
    assert other.held([key(1)]) == {key(1): outcome("new")}
    assert (one.trouble, other.trouble) == (None, None)
    assert (path.parent / "rows.damaged-1").exists()
    assert (path.parent / "rows.damaged-1-journal").exists()
    assert not (path.parent / "rows.damaged-2").exists()


@pytest.mark.long
def test_whatever_bytes_were_changed_nothing_is_raised(path, amount, chance, figure):
    """Neither at opening nor later, and what is kept then is held, or there is a reason."""
    first = Store(path)
    said = {key(n): RowOutcome(text="x" * (n % 90), status="completed") for n in range(300)}
    first.keep(said)
    first.close()
    whole, rounds, aside = path.read_bytes(), amount(60, 3_000), 0
    for _ in range(rounds):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 8, 200, 5_000))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged[: chance.choice((len(whole), chance.randrange(len(whole))))])
        with contextlib.closing(Store(path)) as one:
            one.held([*said])
            one.keep({key(1): RowOutcome(status="failed")})
            assert one.trouble or one.held([key(1)]) == {key(1): RowOutcome(status="failed")}
        for file in path.parent.glob("*damaged*"):
            file.unlink()
            aside += 1
    figure(f"{aside} of {rounds} damaged files were set aside")


def test_a_forked_child_does_nothing(store, path, outcome):
    """It holds nothing, keeps nothing, and closes nothing of its parent's."""
    one = store(path)
    one.keep({key(1): outcome()})
    child = os.fork()
    if child == 0:
        one.keep({key(2): outcome()})
        held = one.held([key(1)])
        one.close()
        os._exit(len(held))
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert one.held([key(1), key(2)]) == {key(1): outcome()}


def test_rows_that_are_old_go_when_the_file_is_opened(store, path, outcome):
    """After 90 days; the file becomes smaller by what they took."""
    one = store(path)
    one.keep({key(number): outcome("x" * 1_000) for number in range(5_000)})
    changed(path, "UPDATE outcomes SET at = ?", int(time.time()) - 91 * 86_400)
    one.keep({key(7): outcome(), key(9_000): outcome()})
    before = path.stat().st_size

    found = store(path).held([key(number) for number in range(10_000)])

    assert found.keys() == {key(7), key(9_000)}
    assert path.stat().st_size < before / 50


def test_the_oldest_rows_go_while_there_is_too_much(store, path, outcome):
    """A slice at a time, until the file is no larger than it may be."""
    one = store(path)
    one.keep({key(number): outcome("x" * 1_000) for number in range(8_000)})
    one.keep({key(0): outcome("again")})

    sweep(one._file, room=6_000_000)

    found = one.held([key(number) for number in range(8_000)])
    assert path.stat().st_size <= 6_000_000
    assert found.keys() == {key(0), *map(key, range(4_001, 8_000))}


def test_nothing_is_swept_below_the_limit(store, path, outcome):
    """What is young stays, and no lock is taken for it."""
    one, other = store(path), store(path)
    one.keep({key(1): outcome()})
    other._file.execute("BEGIN IMMEDIATE")

    sweep(one._file)

    assert one.held([key(1)]) == {key(1): outcome()}


def test_a_path_may_be_said_in_any_way(store, path, outcome, monkeypatch):
    """Relative to the folder that one is in, too."""
    monkeypatch.chdir(path.parent.parent)
    one = store(Path("fleet/rows.sqlite3"))
    one.keep({key(1): outcome()})

    assert store(path).held([key(1)])
