"""From what a user asks to a plan: settings, endpoint, tools and shape, checked before sending.

Rule: a prompt with a key in it is refused, and nothing is sent or kept of it. Masked, it would ask
for something else, and cost a turn in which a tool may act on the mask; and of a key that is broken
by a space the rest would go out all the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ipy_agent.agent.fields import fields_of
from ipy_agent.agent.pictures import picture
from ipy_agent.agent.plan import Plan
from ipy_agent.agent.schemas import Shape, shape_of
from ipy_agent.agent.tools import TOOLS, Tool, offered
from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import UsageError
from ipy_agent.protocol.items import Item
from ipy_agent.protocol.requests import Fields
from ipy_agent.secrets import holds_key, learn
from ipy_agent.settings import Settings

__all__ = ["Planner", "endpoint_of"]


class Planner:
    """Makes plans from what is set.

    Args:
        settings: the user's.
        endpoint: where runs go unless one says otherwise.
        key: what the prompt cache routes by, unless that is set.
        tools: the tools that there are.

    Attributes:
        settings: can be replaced by others.
        endpoint: can be replaced by another.
        key: so can this.
    """

    def __init__(
        self, settings: Settings, endpoint: Endpoint, key: str, tools: Mapping[str, Tool] = TOOLS
    ) -> None:
        self.settings = settings
        self.endpoint = endpoint
        self.key = key
        self._tools = tools
        self._fields = Fields({})

    def plan(
        self,
        prompt: str,
        changes: dict[str, Any],
        *,
        endpoint: str | Endpoint | None,
        schema: Any,
        images: Sequence[Any],
        cell: str | None,
    ) -> Plan:
        """Return what a run would ask.

        Args:
            prompt: what the user wrote.
            changes: settings for this run; `None` changes nothing.
            endpoint: where, for this run.
            schema: the type that the answer has to be.
            images: pictures to look at.
            cell: who asks.

        Raises:
            UsageError: an empty prompt, one with a key in it, a wrong setting, or what the endpoint
                does not take.
        """
        learn()
        if not prompt.strip():
            raise UsageError("the prompt is empty: write what you want below %%agent")
        if holds_key(prompt):
            raise UsageError(
                "not sent: the prompt, or what it hands over, holds a key or what looks like one. "
                "Put it into the environment, name its variable in its place, and take it out of "
                "the cell",
                code="key_typed",
            )
        settings = self.settings.replace(**{k: v for k, v in changes.items() if v is not None})
        target = self.endpoint if endpoint is None else endpoint_of(endpoint)
        shape = schema if schema is None or isinstance(schema, Shape) else shape_of(schema)
        tools = offered(self._tools, settings.tools, target.hidden_tools)
        return Plan(
            prompt=prompt.encode("utf-8", "replace").decode(),
            pictures=_pictures(images, target),
            settings=settings,
            target=target,
            tools=tools,
            fields=self._fields_for(settings, target, tools, shape),
            shape=shape,
            cell=cell,
        )

    @property
    def toolbox(self) -> dict[str, Tool]:
        """The tools on offer, by name."""
        return offered(self._tools, self.settings.tools, self.endpoint.hidden_tools)

    @property
    def fields(self) -> Fields:
        """All of a request but its input, as things stand."""
        return self._fields_for(self.settings, self.endpoint, self.toolbox)

    def _fields_for(
        self,
        settings: Settings,
        target: Endpoint,
        tools: dict[str, Tool],
        shape: Shape | None = None,
    ) -> Fields:
        """Return all of a request but its input, the same object while nothing changed."""
        key = settings.prompt_cache_key or self.key
        values = fields_of(settings, target, tools.values(), shape, key)
        if values != self._fields.values:
            self._fields = Fields(values)
        return self._fields


def endpoint_of(endpoint: str | Endpoint | None, **changes: str | None) -> Endpoint:
    """Return the endpoint that a name, a URL or an `Endpoint` stands for; `None`, the default one.

    Raises:
        UsageError: it is no endpoint.
    """
    if isinstance(endpoint, Endpoint):
        told: dict[str, Any] = {k: v for k, v in changes.items() if v is not None}
        return dataclasses.replace(endpoint, **told)
    return Endpoint.default() if endpoint is None else Endpoint.named(endpoint, **changes)


def _pictures(images: Sequence[Any], target: Endpoint) -> list[Item]:
    if images and target.images is False:
        raise UsageError(
            f"the models of {target.name} take no pictures here: leave them out, "
            "or choose another endpoint"
        )
    if isinstance(images, (str, bytes, Path)):
        images = [images]
    return [image if isinstance(image, dict) else picture(image) for image in images]
