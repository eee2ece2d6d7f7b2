"""chatlas over HTTP, with its chat and tools."""

from __future__ import annotations

import warnings

from chatlas import ChatOpenAI
from offer import INSTRUCTIONS, NAMES, Meter, look, tell


def loop(url: str, runs: int, meter: Meter) -> None:
    """Ask a question a run."""
    warnings.simplefilter("ignore")  # it would rather speak to OpenAI
    chat = ChatOpenAI(system_prompt=INSTRUCTIONS, model="any", base_url=url, api_key="none")
    for name in NAMES:
        chat.register_tool(look, name=name)
    for run in range(runs):
        with meter.run():
            for _ in chat.stream(f"question {run}"):
                pass


if __name__ == "__main__":
    tell(loop)
