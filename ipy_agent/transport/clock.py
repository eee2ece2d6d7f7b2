"""What time it is, as the transports see it: one part, so that a test can have its own."""

from __future__ import annotations

import asyncio
import time

__all__ = ["Clock"]

# One that goes on while the machine sleeps, since an endpoint's clock does too; Linux only.
_AGE = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock:
    """Seconds."""

    def now(self) -> float:
        """Return a time that deadlines are counted by."""
        return time.monotonic()

    def age(self) -> float:
        """Return a time that the age of a connection is counted by: it goes on in a sleep."""
        return time.clock_gettime(_AGE)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)
