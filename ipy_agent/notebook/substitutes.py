"""Parts of the shell that something else stands in for while a tool runs, and what is put back.

What the model's code replaced or took away in `builtins` is put back when it ends: in a cell of
the user's it would stay, and so would the damage, but there the user did it. What it added stays,
as its working folder does and what it did to modules: those are its effects, as any cell's.
"""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Iterator
from typing import Any

__all__ = ["builtins_put_back", "replaced"]


@contextlib.contextmanager
def replaced(owner: object, **by: Any) -> Iterator[None]:
    """Within this context an object has other attributes of its own.

    After it those of its class are back, or those that stood in for them before.
    """
    own = vars(owner)
    before = {name: own[name] for name in by if name in own}
    own.update(by)
    try:
        yield
    finally:
        for name in by:
            own.pop(name, None)
        own.update(before)


@contextlib.contextmanager
def builtins_put_back() -> Iterator[list[str]]:
    """After this context the built-in names are what they were; the list has those that were not.

    Nothing here needs a built-in by its name: it may be gone.
    """
    names = builtins.__dict__
    before, missing = {**names}, object()
    changed: list[str] = []
    try:
        yield changed
    finally:
        changed += [one for one, it in before.items() if names.get(one, missing) is not it]
        names.update(before)
