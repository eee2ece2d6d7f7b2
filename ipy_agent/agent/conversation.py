"""What has been said: the items of the conversation, always in a state that can be sent.

Rule 1: every function call has exactly one output. `settle` gives one to those that a
failure or an interrupt left open.
"""

from __future__ import annotations

from collections.abc import Iterable

from ipy_agent.protocol.items import EMPTY, Chain, Item, calls, output_of

__all__ = ["Conversation"]


class Conversation:
    """One line of items that grows at its end."""

    def __init__(self) -> None:
        self.items: Chain = EMPTY
        self._open: list[str] = []

    def add(self, items: Iterable[Item]) -> None:
        """Put items at the end."""
        added = list(items)
        self.items = self.items.extend(added)
        self._open += [call["call_id"] for call in calls(added)]
        answered = {item["call_id"] for item in added if item["type"] == "function_call_output"}
        self._open = [call_id for call_id in self._open if call_id not in answered]

    def settle(self, why: str) -> list[Item]:
        """Answer the open calls with `why`, and return those answers."""
        answers = [output_of(call_id, why) for call_id in self._open]
        self.add(answers)
        return answers

    def back_to(self, items: Chain) -> None:
        """Take back what was said since the conversation was `items`."""
        self.items = items
        self._open = []
