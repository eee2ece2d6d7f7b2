"""What this machine has to give: memory, cores, and a place for files that no disk sees.

Of a machine that is shared by containers, what counts is the share of ours.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

__all__ = ["cores", "folder_in_memory", "memory_available"]

_MEMORY = "/dev/shm"  # noqa: S108 (what is made there is a folder that nobody else may enter)


def memory_available(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many bytes may be taken: of the machine, and of a container's share of it.

    What cannot be read counts as no limit.
    """
    free = [2**62]
    with contextlib.suppress(OSError, ValueError, KeyError):
        machine = dict(_numbers(proc / "meminfo"))
        free.append(machine["MemAvailable:"] * 1024)
    with contextlib.suppress(OSError, ValueError, KeyError):
        limit, used = (int((cgroup / f"memory.{name}").read_text()) for name in ("max", "current"))
        free.append(limit - used + dict(_numbers(cgroup / "memory.stat"))["inactive_file"])
    return max(0, min(free))


def cores() -> int:
    """Return the cores this process may use: more threads than cores slow llama.cpp down."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2


def folder_in_memory(room: int, place: str = _MEMORY) -> str | None:
    """Return where files of this size in all stay in memory, if there is such a place.

    What people say to a model should not reach a disk, and a container may have little there.
    """
    with contextlib.suppress(OSError):
        if os.access(place, os.W_OK) and shutil.disk_usage(place).free >= room:
            return place
    return None


def _numbers(file: Path) -> Iterator[tuple[str, int]]:
    for line in file.read_text().splitlines():
        name, number, *_ = line.split()
        yield name, int(number)
