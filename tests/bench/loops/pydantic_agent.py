"""pydantic-ai over HTTP, with its agent and tools."""

from __future__ import annotations

import asyncio

from offer import INSTRUCTIONS, NAMES, Meter, look, tell
from pydantic_ai import Agent, Tool
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import UsageLimits


async def loop(url: str, runs: int, meter: Meter) -> None:
    """Ask a question a run."""
    model = OpenAIResponsesModel("any", provider=OpenAIProvider(base_url=url, api_key="none"))
    tools = [Tool(look, takes_ctx=False, name=name, description=look.__doc__) for name in NAMES]
    agent = Agent(model, instructions=INSTRUCTIONS, tools=tools)
    said = []
    for run in range(runs):
        with meter.run():
            async with agent.run_stream(
                f"question {run}",
                message_history=said,
                usage_limits=UsageLimits(request_limit=None),
            ) as result:
                async for _ in result.stream_text(delta=True, debounce_by=None):
                    pass
            said = result.all_messages()


if __name__ == "__main__":
    tell(lambda *args: asyncio.run(loop(*args)))
