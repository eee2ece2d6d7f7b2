"""`%%agent` in every kernel and terminal, by one marked line in IPython's configuration.

IPython reads `ipython_config.py` in `sys.prefix/etc/ipython`, then that of the user's profile;
ipykernel does too. The line adds to `extra_extensions`, IPython's list for the command line:
`extensions` is the one that people assign in their profile, which would undo what is said in
`sys.prefix`. It asks first whether the package is there, since IPython shows a traceback at
each start for an extension that is not.

Rule 1: what a user wrote is bytes to us. It is never decoded, and undoing gives the same bytes.
Rule 2: the line ends like the file did before it: with no line break where there was none. That
is how undoing knows which line breaks are ours.
Rule 3: a file is there whole or not at all: it is written beside its place and moved in.
"""

from __future__ import annotations

import os
import secrets
import stat
import sys
import warnings
from pathlib import Path

from ipy_agent.errors import AgentError

__all__ = ["LINE", "add", "environment_file", "is_in", "remove", "user_file"]

_MARK = b"# added by `ipy-agent install`"
LINE = (
    b'if __import__("importlib.util").util.find_spec("ipy_agent"): '
    b'get_config().InteractiveShellApp.extra_extensions.append("ipy_agent")  ' + _MARK
)
_NAME = "ipython_config.py"


def environment_file() -> Path:
    """Return the configuration of every IPython that this Python runs."""
    return Path(sys.prefix) / "etc" / "ipython" / _NAME


def user_file() -> Path:
    """Return the configuration of this user's default profile, which every Python reads."""
    home = Path.home()
    folder = Path(os.environ.get("IPYTHONDIR") or home / ".ipython").expanduser()
    old = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "ipython"
    if "IPYTHONDIR" not in os.environ and not folder.exists() and old.is_dir():
        folder = old  # IPython goes on with this one, but not once the other is there
    return folder / "profile_default" / _NAME


def is_in(file: Path) -> bool:
    """Whether a configuration file, if it is there, holds the line."""
    return _holds(_content(file) or b"")


def add(file: Path) -> bool:
    """Put the line at a configuration file's end; return whether it was not there yet.

    Raises:
        AgentError: the file cannot be written, or is not Python, so that its end is never run.
    """
    content = _content(file)
    if content is None:
        _write(file, LINE + b"\n")
        return True
    if _holds(content):
        return False
    _check_runs(file, content)
    end = b"\r\n" if b"\r\n" in content else b"\n"
    whole = content.endswith((b"\n", b"\r"))
    _write(file, content + LINE + end if whole else content + end + LINE)
    return True


def remove(file: Path) -> bool:
    """Take the line out of a configuration file; return whether it was there.

    A file that holds nothing else was made by `add`, and is removed.

    Raises:
        AgentError: the file cannot be written.
    """
    lines = (_content(file) or b"").splitlines(keepends=True)
    left = [line for line in lines if not _is_ours(line)]
    if left == lines:
        return False
    if not left:
        _unlink(file)
        return True
    if _is_ours(lines[-1]) and not lines[-1].endswith(b"\n"):
        left[-1] = left[-1].removesuffix(b"\n").removesuffix(b"\r")
    _write(file, b"".join(left))
    return True


def _holds(content: bytes) -> bool:
    return any(map(_is_ours, content.splitlines()))


def _is_ours(line: bytes) -> bool:
    """Whether a line is one that `add` wrote, of this version or another, and still runs."""
    return line.startswith(b"if ") and line.rstrip().endswith(_MARK)


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _failed(file, "read", error) from None


def _check_runs(file: Path, content: bytes) -> None:
    """Raise where IPython would stop before it reaches the file's end."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is the user's code, and not run here
            compile(content, file, "exec")
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        where = f", line {line}" if line else ""
        raise AgentError(f"{file}{where} is not Python: mend it first", code="install") from None


def _write(file: Path, content: bytes) -> None:
    try:
        place = file.resolve()  # a link stays a link
        place.parent.mkdir(parents=True, exist_ok=True)
        mode = stat.S_IMODE(place.stat().st_mode) if place.exists() else None
        if mode is not None and not (mode & stat.S_IWUSR and os.access(place, os.W_OK)):
            raise PermissionError(None, "it is read-only")
        beside = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
        try:
            beside.write_bytes(content)
            if mode is not None:
                beside.chmod(mode)
            beside.replace(place)
        finally:
            beside.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise _failed(file, "written", error) from None


def _unlink(file: Path) -> None:
    try:
        file.resolve().unlink()
    except OSError as error:
        raise _failed(file, "written", error) from None


def _failed(file: Path, verb: str, error: Exception) -> AgentError:
    reason = getattr(error, "strerror", None) or error
    return AgentError(
        f"{file} cannot be {verb} ({reason}): make it so, or choose the other of "
        "--sys-prefix and --user",
        code="install",
    )
