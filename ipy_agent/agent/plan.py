"""What a run would ask: of whom, with which tools, in which words. Known before it is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ipy_agent.agent.schemas import Shape
from ipy_agent.agent.tools import Tool
from ipy_agent.endpoints import Endpoint
from ipy_agent.protocol.items import Item
from ipy_agent.protocol.requests import Fields
from ipy_agent.settings import Settings

__all__ = ["Plan", "Tell"]

Tell = Callable[[Any, str], tuple[str, Any]]
"""Given what was told of the user's variables and how much to tell, what to tell now and next."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A run's question and its circumstances.

    Attributes:
        prompt: what the user asks, with what was handed over on purpose.
        pictures: content parts to look at.
        settings: the session's, as changed for this run.
        target: where it goes.
        tools: those on offer, by name.
        fields: all of a request but its input.
        shape: what the answer has to be.
        cell: the id of the cell that asks.
    """

    prompt: str
    pictures: list[Item]
    settings: Settings
    target: Endpoint
    tools: dict[str, Tool]
    fields: Fields
    shape: Shape | None = None
    cell: str | None = None

    @property
    def asked(self) -> tuple[Any, ...]:
        """What makes it the same question again, beside what was said before it."""
        return self.prompt, self.pictures, self.target.name, self.fields
