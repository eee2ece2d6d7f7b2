"""The agent: ask the model, run the tools it calls, ask again."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["OFFERS"]

OFFERS: list[Callable[[], None]] = []
"""What offers tools as soon as there can be any: called once, when `agent.tools` is loaded."""
