"""One prompt over many rows: a template, what came of each row, and where that goes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ipy_agent.agent.runs import Front

__all__ = ["FRONTS"]

FRONTS: list[Callable[[], AbstractContextManager[Front]]] = []
"""What looks on where a map is told of nobody: the last one is asked for a front, as often."""
