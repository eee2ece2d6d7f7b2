"""What lives as long as a login, and is this user's business alone: a folder, and files in it.

Rule 1: what is private here is private from its first byte: files 0600, the folder 0700.
Rule 2: what could be somebody else's is not read: a link, another owner, an open mode.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import platformdirs

from ipy_agent.errors import ConnectionFailed

__all__ = [
    "is_held",
    "private_content",
    "private_file",
    "put_private",
    "runtime_folder",
    "write_private",
]


def runtime_folder() -> Path:
    """Return the folder for what lives as long as a login: 0700 and this user's own.

    Raises:
        ConnectionFailed: no folder can be had that only this user can see.
    """
    login = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    # A home may be shared between machines, a server is not.
    state = Path(platformdirs.user_state_dir("ipy-agent", appauthor=False)) / platform.node()
    for folder in (login / "ipy-agent", state):
        if not folder.is_absolute():
            continue
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            seen = folder.lstat()
            if stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.getuid():
                folder.chmod(0o700)
                return folder
    raise ConnectionFailed("there is no private runtime folder: set XDG_RUNTIME_DIR to one")


def write_private(file: Path, content: bytes) -> None:
    """Put a file there whole, readable by this user only."""
    os.close(put_private(file, content))


def private_content(file: Path) -> bytes:
    """Return what is in a file that only this user can have written; else nothing."""
    try:
        with private_file(file) as opened:
            return opened.read()
    except OSError:
        return b""


def put_private(file: Path, content: bytes) -> int:
    """Put a file there whole, and return the lock on it: it was there before its name."""
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with os.fdopen(handle, "wb", closefd=False) as out:
            out.write(content)
        Path(name).replace(file)
    except BaseException:
        os.close(handle)
        Path(name).unlink(missing_ok=True)
        raise
    return handle


@contextlib.contextmanager
def private_file(file: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, if it is this user's own and nobody else's business."""
    with open(file, "rb", opener=_unfollowed) as opened:
        seen = os.fstat(opened.fileno())
        others = stat.S_IMODE(seen.st_mode) & 0o077
        if not stat.S_ISREG(seen.st_mode) or seen.st_uid != os.getuid() or others:
            raise PermissionError(errno.EPERM, "not a private file", str(file))
        yield opened


def _unfollowed(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def is_held(opened: BinaryIO) -> bool:
    """Whether whoever wrote a file still holds the lock on it."""
    try:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False  # this lock goes when the file is closed
