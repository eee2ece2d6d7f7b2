"""How many rows are under way at once: as many as may be, fewer while the endpoint is too busy.

An endpoint that has too much to do halves it, once a pause, and nothing is begun in that pause; as
many answers as there are rows under way make it one more.
"""

from __future__ import annotations

import asyncio
from collections import deque

from ipy_agent.transport.clock import Clock

__all__ = ["Pace"]


class Pace:
    """Lets rows begin.

    Args:
        most: how many may be under way.
        clock: what sleeps.

    Attributes:
        limit: how many may be under way now.
        under_way: how many are.
    """

    def __init__(self, most: int, clock: Clock) -> None:
        self.limit = self._most = most
        self.under_way = 0
        self._clock = clock
        self._until = clock.now()
        self._answered = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def begin(self) -> None:
        """Wait until another row may begin, and count it."""
        while True:
            await self.again()
            if self.under_way < self.limit:
                self.under_way += 1
                return
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter

    async def again(self) -> None:
        """Wait until the endpoint is no longer to be left alone."""
        while (pause := self._until - self._clock.now()) > 0:
            await self._clock.sleep(pause)

    def end(self, *, answered: bool) -> None:
        """Take note that a row is over."""
        self.under_way -= 1
        self._answered += answered
        if self._answered >= self.limit < self._most:
            self.limit, self._answered = self.limit + 1, 0
        room = self.limit - self.under_way
        while self._waiting and room > 0:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                room -= 1

    def throttle(self, seconds: float) -> None:
        """Take note that the endpoint wants to be left alone for so long."""
        now = self._clock.now()
        if now >= self._until:  # those that were sent at the same time say the same
            self.limit, self._answered = max(1, self.limit // 2), 0
        self._until = max(self._until, now + seconds)
