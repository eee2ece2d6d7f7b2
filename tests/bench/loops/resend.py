"""The openai SDK over HTTP, as most loops are written: everything is sent with every turn."""

from __future__ import annotations

import json
from typing import Any

from offer import INSTRUCTIONS, TOOLS, Meter, look, tell
from openai import OpenAI


def loop(url: str, runs: int, meter: Meter) -> None:
    """Ask, run the tool, ask again."""
    client = OpenAI(base_url=url, api_key="none")
    kept: dict[str, Any] = {"store": False, "instructions": INSTRUCTIONS, "tools": TOOLS}
    for run in range(runs):
        with meter.run():
            said: list[Any] = []  # a conversation a run: nothing of the ones before is sent
            new: list[Any] = [{"type": "message", "role": "user", "content": f"question {run}"}]
            while new:
                said += new
                stream = client.responses.create(model="any", input=said, stream=True, **kept)
                for event in stream:
                    if event.type == "response.completed":
                        output = event.response.output
                said += output
                new = [
                    {
                        "type": "function_call_output",
                        "call_id": item.call_id,
                        "output": look(**json.loads(item.arguments)),
                    }
                    for item in output
                    if item.type == "function_call"
                ]


if __name__ == "__main__":
    tell(loop)
