"""Calls that begin before their response is complete, since they change nothing.

Between a call's last argument and the response's terminal event a second may pass. A tool
without side effects runs in it; what it found is told when the response is complete.

Rule 1: once something with side effects was called, what is called behind it waits for it.
Rule 2: an interrupt of one ends the turn at once, as an interrupt of the wait would.
Rule 3: if the complete response does not hold the very call that was begun, that was for nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from ipy_agent.agent.calls import Outcome, cut_off
from ipy_agent.protocol.events import Event, ItemDone
from ipy_agent.protocol.items import Item, is_call, text
from ipy_agent.trace import RequestSent, ToolBegan, Trace

__all__ = ["EarlyCalls", "Hear", "Perform"]

Hear = Callable[[Event | Trace], None]
Perform = Callable[[Item], Awaitable[Outcome]]

_Key = tuple[str, ...]


class EarlyCalls:
    """The calls of one turn.

    Args:
        early: which calls may begin before their response is complete.
        perform: carries one out.
        hear: is told of everything.
    """

    def __init__(self, early: Callable[[Item], bool], perform: Perform, hear: Hear) -> None:
        self._early = early
        self._perform = perform
        self._tell = hear
        self._begun: dict[_Key, asyncio.Task[Outcome]] = {}
        self._waits = False
        self._turn: asyncio.Task[object] | None = None

    def hear(self, event: Event | Trace) -> None:
        """Pass an event on, and begin the call that it completes if it may."""
        self._tell(event)
        if isinstance(event, RequestSent):
            self._waits = False
        if isinstance(event, ItemDone) and is_call(event.item):
            self._waits = self._waits or not self._early(event.item)
            if not self._waits:
                key, self._turn = _key(event.item), asyncio.current_task()
                self._begun[key] = self._begun.get(key) or asyncio.create_task(
                    self._outcome(event.item)
                )

    async def outcome(self, call: Item) -> Outcome:
        """Return what came of a call, begun before or now."""
        self._turn = None  # from now on an interrupted call is its asker's to act on
        begun = self._begun.pop(_key(call), None)
        return await (begun or self._outcome(call))

    async def close(self) -> None:
        """Give up what was begun for nothing."""
        self._turn = None
        if not self._begun:
            return
        for task in self._begun.values():
            task.cancel()
        await asyncio.gather(*self._begun.values(), return_exceptions=True)

    async def _outcome(self, call: Item) -> Outcome:
        told = {"call_id": call["call_id"], "name": call["name"], "arguments": text(call)}
        self._tell(ToolBegan(**told))
        started_at, began = datetime.now(UTC), time.perf_counter()
        try:
            outcome = await self._perform(call)
        except asyncio.CancelledError:
            # Nobody waits for it any more; that it was begun has to be known.
            outcome = cut_off(call, started_at, (time.perf_counter() - began) * 1_000)
        self._tell(outcome.ended)
        if outcome.ended.status == "interrupted" and self._turn is not None:
            self._turn.cancel()  # the user stopped it: the rest of the response is not waited for
        return outcome


def _key(call: Item) -> _Key:
    return str(call.get("call_id")), str(call.get("name")), text(call)
