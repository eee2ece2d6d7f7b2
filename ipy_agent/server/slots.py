"""Who sits on which KV slot, and where a prompt finds its beginning again.

A seat keeps its slot while slots last. What a slot holds outlives the seat that left it: the
next prompt that begins with the same ids finds it again, on whatever seat. Slots know ids and
seats, and no model.

Rule 1: these ids only decide where to look. What is reused is what the model itself finds
equal, id by id, and what counts as cached is what it tells.
Rule 2: a slot is taken while nothing runs on it and nobody copies from it; several may copy
at once, from one on which nothing runs.
Rule 3: nobody waits for a better slot while a worse one is idle.

Who may ask may learn: a prompt that begins like somebody else's is answered sooner, and its
`cached_tokens` say by how much it does. All who ask here are one user.
"""

from __future__ import annotations

import asyncio
from array import array
from dataclasses import dataclass, field
from typing import NamedTuple

from ipy_agent.server.tokens import ids_of, shared

__all__ = ["WORTH_COPYING", "Slot", "Slots", "Taken"]

WORTH_COPYING = 64
"""Tokens. To compute so many takes longer than to copy a long conversation (0.3 s against 0.1 s
with the smallest model)."""


@dataclass(slots=True, eq=False)
class Slot:
    """One KV cache: whose it is (`None`: nobody's), when it was last taken, what it holds.

    `busy` while something runs on it, `readers` are those who copy from it.
    """

    number: int
    seat: object = None
    busy: bool = False
    readers: int = 0
    taken: int = 0
    ids: array[int] = field(default_factory=ids_of)

    @property
    def idle(self) -> bool:
        return not self.busy and not self.readers

    def goes_on(self, prompt: array[int]) -> bool:
        """Whether the prompt begins with all that is held: then nothing of it is lost."""
        return bool(self.ids) and shared(self.ids, prompt) == len(self.ids)


class Taken(NamedTuple):
    """A slot for a turn, busy now, and the one to copy the prompt's beginning from, if any."""

    slot: Slot
    source: Slot | None


class Slots:
    """All slots of a model; to be used from one loop.

    Args:
        count: how many there are.
    """

    def __init__(self, count: int) -> None:
        self._slots = [Slot(number) for number in range(count)]
        self._taken = 0
        self._waiting: list[asyncio.Future[None]] = []

    async def take(self, seat: object, prompt: array[int]) -> Taken:
        """Wait for a slot, the seat's own if it still has one.

        A seat without one gets one that is nobody's, else takes over what its prompt goes on
        from, else the one that idled longest. Where another idle slot holds more of the
        prompt's beginning, that is to be copied, and whoever has it keeps it.
        """
        while (slot := self._choice(seat, prompt)) is None:
            await self._change()
        source = self._source(slot, prompt)
        self._taken += 1
        slot.seat, slot.taken, slot.busy = seat, self._taken, True
        if source is not None:
            source.readers += 1
        return Taken(slot, source)

    def release(self, slot: Slot) -> None:
        """Say that nothing runs on a slot any more."""
        slot.busy = False
        self._wake()

    def copied(self, source: Slot) -> None:
        """Say that one who copied from a slot is done with it."""
        source.readers -= 1
        self._wake()

    async def leave(self, seat: object) -> None:
        """Give up the slot of a seat, once nothing runs on it; what it holds stays there."""
        for slot in self._slots:
            while slot.seat is seat and slot.busy:
                await self._change()
            if slot.seat is seat:
                slot.seat = None

    def _choice(self, seat: object, prompt: array[int]) -> Slot | None:
        for slot in self._slots:
            if slot.seat is seat:
                return slot if slot.idle else None
        return min(
            (slot for slot in self._slots if slot.idle),
            key=lambda slot: (slot.seat is not None, not slot.goes_on(prompt), slot.taken),
            default=None,
        )

    def _source(self, slot: Slot, prompt: array[int]) -> Slot | None:
        still = [each for each in self._slots if not each.busy]
        best = max(still, key=lambda each: shared(each.ids, prompt))
        more = shared(best.ids, prompt) - shared(slot.ids, prompt)
        return best if more >= WORTH_COPYING else None

    async def _change(self) -> None:
        """Wait until a slot is given back."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await waiter

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def __repr__(self) -> str:
        held = (f"{'busy' if slot.busy else 'idle'} with {len(slot.ids)}" for slot in self._slots)
        return f"<Slots: {', '.join(held)}>"
