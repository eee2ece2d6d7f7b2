"""An agent for fastresponses that says again what the user said last, in one piece."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastresponses.adapter import AgentAdapter, TextDelta

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Any


class Echo(AgentAdapter):
    """What our scripted engine does without a script."""

    name = "echo"

    async def run(self, run: Any) -> AsyncIterator[TextDelta]:
        """Say it."""
        yield TextDelta(run.context_items[-1].text())


agent = Echo()
