"""The openai SDK's own connection: `responses.connect()`, with what it sends built by hand."""

from __future__ import annotations

import json
from typing import Any

from offer import INSTRUCTIONS, TOOLS, Meter, look, tell
from openai import OpenAI


def loop(url: str, runs: int, meter: Meter) -> None:
    """Ask, run the tool, ask again."""
    client = OpenAI(base_url=url, api_key="none")
    kept: dict[str, Any] = {"store": False, "instructions": INSTRUCTIONS, "tools": TOOLS}
    with client.responses.connect() as connection:
        before: dict[str, Any] = {}
        for run in range(runs):
            with meter.run():
                new: list[Any] = [{"type": "message", "role": "user", "content": f"question {run}"}]
                while new:
                    connection.response.create(input=new, **kept, **before)
                    for event in connection:
                        if event.type == "response.completed":
                            break
                    before = {"previous_response_id": event.response.id}
                    new = [
                        {
                            "type": "function_call_output",
                            "call_id": item.call_id,
                            "output": look(**json.loads(item.arguments)),
                        }
                        for item in event.response.output
                        if item.type == "function_call"
                    ]


if __name__ == "__main__":
    tell(loop)
