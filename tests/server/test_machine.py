"""No more is taken than there is."""

from __future__ import annotations

import os

import pytest

from ipy_agent.server import machine

MEMINFO = "MemTotal: 2000 kB\nMemAvailable: 1000 kB\n"


def test_the_machines_memory_counts(tmp_path):
    """What the system calls available is what may be taken."""
    (tmp_path / "meminfo").write_text(MEMINFO)

    assert machine.memory_available(tmp_path, tmp_path / "none") == 1000 * 1024


def test_a_containers_share_counts_too(tmp_path):
    """The smaller of the two is the limit; file pages that can go count as free."""
    (tmp_path / "meminfo").write_text(MEMINFO)
    for name, value in {
        "max": "900000",
        "current": "600000",
        "stat": "anon 1\ninactive_file 70",
    }.items():
        (tmp_path / f"memory.{name}").write_text(value)

    assert machine.memory_available(tmp_path, tmp_path) == 300_070


def test_an_unlimited_container_is_no_limit(tmp_path):
    """`max` is a word there, not a number."""
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "memory.max").write_text("max\n")

    assert machine.memory_available(tmp_path, tmp_path) == 1000 * 1024


def test_what_cannot_be_read_is_no_limit(tmp_path):
    """On another system nothing is refused for want of a figure."""
    assert machine.memory_available(tmp_path, tmp_path) == 2**62


def test_there_is_a_core_at_least():
    """And no more of them than the machine has."""
    assert 1 <= machine.cores() <= (os.cpu_count() or 2)


@pytest.mark.parametrize(("room", "found"), [(1, True), (2**62, False)])
def test_files_stay_in_memory_where_there_is_room(tmp_path, room, found):
    """Where there is not, the usual place for passing files has to do."""
    place = str(tmp_path)

    assert machine.folder_in_memory(room, place) == (place if found else None)


def test_a_place_that_is_not_there_is_not_taken(tmp_path):
    """Systems without one are no error."""
    assert machine.folder_in_memory(1, str(tmp_path / "none")) is None
