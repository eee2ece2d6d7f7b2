"""All of a request but its input, from what the user set and what the endpoint is.

Rule 1: the same settings make the same bytes: whatever changes here costs the cached prefix.
Rule 2: what is not set is not sent: the endpoint's own default counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ipy_agent.agent.schemas import Shape
from ipy_agent.agent.tools import Tool
from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import UsageError
from ipy_agent.settings import Settings

__all__ = ["fields_of"]

_ENCRYPTED = ["reasoning.encrypted_content"]
_NOTHING: tuple[Any, ...] = (None, [], {})


def fields_of(
    settings: Settings, target: Endpoint, tools: Iterable[Tool], shape: Shape | None, key: str
) -> dict[str, Any]:
    """Return the members of a request.

    Args:
        settings: the user's.
        target: where it goes.
        tools: those on offer.
        shape: what the answer has to be, if it has to be something.
        key: what the prompt cache routes by.

    Raises:
        UsageError: nobody names a model, and the endpoint has none of its own.
    """
    model = settings.model or target.model
    if model is None and target.needs_model:
        raise UsageError(f"{target.name} has no model of its own: name one (-m MODEL)")
    reasoning = {"effort": settings.effort, "summary": settings.summary}
    values = {
        "model": model,
        "instructions": settings.instructions or target.instructions,
        "tools": [tool.definition for tool in tools],
        "parallel_tool_calls": settings.parallel_tool_calls,
        "reasoning": {name: value for name, value in reasoning.items() if value is not None},
        # Thoughts that an endpoint does not store have to come along when all is sent again.
        "include": _ENCRYPTED if target.reasoning and not settings.store else [],
        "text": {"format": shape.format} if shape else {},
        "max_output_tokens": settings.max_output_tokens,
        "store": settings.store,
        "prompt_cache_key": key,
    }
    return {name: value for name, value in values.items() if value not in _NOTHING}
