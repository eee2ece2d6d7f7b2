"""openai-agents on its WebSocket model, with its runner and tools; only what is new is sent."""

from __future__ import annotations

import asyncio

from agents import Agent, function_tool, responses_websocket_session, set_tracing_disabled
from offer import INSTRUCTIONS, NAMES, Meter, look, tell


async def loop(url: str, runs: int, meter: Meter) -> None:
    """Ask a question a run."""
    set_tracing_disabled(True)
    tools = [
        function_tool(look, name_override=name, description_override=look.__doc__) for name in NAMES
    ]
    agent = Agent("bench", model="any", instructions=INSTRUCTIONS, tools=tools)
    before = None
    async with responses_websocket_session(
        api_key="none", base_url=url, websocket_base_url=url.replace("http", "ws")
    ) as session:
        for run in range(runs):
            with meter.run():
                result = session.run_streamed(
                    agent,
                    f"question {run}",
                    max_turns=10**6,
                    previous_response_id=before,
                    auto_previous_response_id=True,
                )
                async for _ in result.stream_events():
                    pass
                before = result.last_response_id


if __name__ == "__main__":
    tell(lambda *args: asyncio.run(loop(*args)))
