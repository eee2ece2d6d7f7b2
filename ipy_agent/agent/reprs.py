"""Values and exceptions as text, whatever their classes make of that.

A value may refer to itself, stand for millions of others, or have a `__repr__` that fails, lies
or does not end. What comes of it is one text, in a bounded time and of a bounded size, as far as
that can be had: one call of C code cannot be stopped.

Rule 1: only an interrupt gets out of here.
Rule 2: of a class only what `type` itself knows is believed; the name too.
"""

from __future__ import annotations

import contextlib
import reprlib
import signal
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

__all__ = ["class_name", "in_time", "is_small", "repr_of", "told_of"]

VALUES = 100_000
"""How many values are told one by one; of more there are only the first ones."""
DEPTH = 64
SECONDS = 5.0

_CONTAINERS = frozenset(map(id, (list, tuple, set, frozenset)))
_name_of = type.__dict__["__name__"].__get__


class _TooLong(BaseException):
    """The time is up. Not an `Exception`, which code may well swallow."""


def class_name(value: object) -> str:
    """Return the name of a value's class, whatever its metaclass would say."""
    return str(_name_of(type(value)))


def repr_of(value: Any) -> str:
    """Return a value's repr; of what is too much, that of its beginning."""
    try:
        with in_time():
            # A `str` of a class of its own becomes one of Python's.
            return str.__str__(repr(value)) if is_small(value) else _beginning(value)
    except KeyboardInterrupt:
        raise
    except _TooLong:
        return f"<{class_name(value)} whose repr took longer than {SECONDS:g} s>"
    except BaseException as error:  # noqa: BLE001 (a user's `__repr__` may raise anything)
        return f"<{class_name(value)} whose repr failed: {class_name(error)}>"


def _beginning(value: Any) -> str:
    return f"{class_name(value)} of {len(value):,}: {_first.repr(value)}"


def told_of(error: BaseException) -> str:
    """Return an exception's class and text."""
    said = ""
    try:
        with in_time():
            said = str.__str__(str(error))
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 (a user's `__str__` may raise anything)
        return class_name(error)
    return f"{class_name(error)}: {said}" if said else class_name(error)


def is_small(value: Any) -> bool:
    """Whether Python's own containers in a value hold few values, and are not nested deep.

    A value counts as often as it stands there: ten lists, each of which stands ten times in the
    next, are ten thousand million values.
    """
    left, level = VALUES, [value]
    for _ in range(DEPTH):
        deeper: list[Any] = []
        for one in level:
            kind = type(one)
            inside = one.values() if kind is dict else one if id(kind) in _CONTAINERS else ()
            left -= len(inside)
            if left < 0:
                return False
            deeper += inside
        level = deeper
        if not level:
            return True
    return False


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    """Within this context Python code is stopped when the time is up, where it can be.

    That needs the main thread, and an alarm clock that nobody else has set.
    """
    alarm = getattr(signal, "SIGALRM", None)
    if (
        alarm is None
        or threading.current_thread() is not threading.main_thread()
        or signal.getsignal(alarm) is not signal.SIG_DFL
        or any(signal.getitimer(signal.ITIMER_REAL))
    ):
        yield
        return
    signal.signal(alarm, _stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, SECONDS)  # again, if it is swallowed
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(alarm, signal.SIG_DFL)


def _stop(*_: object) -> NoReturn:
    raise _TooLong


_first = reprlib.Repr()
_first.maxlevel = 5
_first.maxlist = _first.maxtuple = _first.maxset = _first.maxfrozenset = _first.maxdict = 20
_first.maxstring = _first.maxother = _first.maxlong = 500
