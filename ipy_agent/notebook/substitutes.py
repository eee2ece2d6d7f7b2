"""Parts of the shell that something else stands in for while a tool runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

__all__ = ["replaced"]


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
