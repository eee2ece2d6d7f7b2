"""Who gets which slot, and where the beginning of a prompt is looked for. No model is needed."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipy_agent.server.slots import WORTH_COPYING, Slots
from ipy_agent.server.tokens import ids_of, shared

LONG = range(1000, 1000 + 3 * WORTH_COPYING)
"""What is said first in these conversations, as ids."""


class Desk:
    """Slots, and turns that come to their end at once."""

    def __init__(self, count):
        self.slots = Slots(count)

    async def turn(self, seat, *ids):
        """Have a turn: returns the number of its slot, and of the one it was copied from."""
        prompt = ids_of(ids)
        slot, source = await self.slots.take(seat, prompt)
        if source is not None:
            self.slots.copied(source)
        slot.ids = prompt
        self.slots.release(slot)
        return slot.number, None if source is None else source.number

    async def turns(self, *turns):
        return [await self.turn(seat, *ids) for seat, ids in turns]


def played(count, *turns):
    """Return what became of turns, one after the other, of a seat and ids each."""
    return asyncio.run(Desk(count).turns(*turns))


def test_a_seat_keeps_its_slot():
    """While slots last, each has its own, and nothing has to be copied."""
    turns = [("a", [1]), ("b", [2]), ("a", [1, 3]), ("b", [2, 4]), ("a", [9])]

    assert played(3, *turns) == [(0, None), (1, None), (0, None), (1, None), (0, None)]


def test_who_idled_longest_gives_way():
    """With all slots taken and nothing in common."""
    turns = [("a", [1]), ("b", [2]), ("a", [1]), ("c", [3]), ("a", [1]), ("b", [2])]

    assert [slot for slot, _ in played(2, *turns)] == [0, 1, 0, 1, 0, 1]


def test_a_fork_gets_a_copy_where_a_slot_is_free():
    """The lane that it came from keeps what it has."""
    turns = [("a", [*LONG, 1]), ("fork", [*LONG, 2]), ("a", [*LONG, 1, 3])]

    assert played(2, *turns) == [(0, None), (1, 0), (0, None)]


def test_a_fork_takes_over_what_it_goes_on_from_where_no_slot_is_free():
    """Nothing is lost by that, and nobody else is evicted."""
    turns = [("other", [7]), ("a", LONG), ("fork", [*LONG, 2])]

    assert played(2, *turns)[-1] == (1, None)


def test_a_fork_from_before_the_end_evicts_who_idled_longest():
    """To take over would cost its source what that said later."""
    turns = [("other", [7]), ("a", [*LONG, 1]), ("fork", [*LONG, 2])]

    assert played(2, *turns)[-1] == (0, 1)


def test_with_one_slot_the_fork_has_it():
    """What is shared is there already: nothing is to be copied onto itself."""
    assert played(1, ("a", [*LONG, 1]), ("fork", [*LONG, 2])) == [(0, None), (0, None)]


def test_a_seat_that_was_evicted_comes_back_to_a_copy():
    """Of what others still hold of its conversation."""
    again = ("b", [*LONG, 2])
    turns = [("a", [*LONG, 1]), again, ("c", [5]), again, ("a", [*LONG, 1, 3])]

    assert played(2, *turns)[2:] == [(0, None), (1, None), (0, 1)]


def test_a_slot_of_ones_own_is_filled_from_where_more_is_held():
    """A lane may go on from another lane's response."""
    turns = [("a", [*LONG, 1]), ("b", [2]), ("b", [*LONG, 1, 3])]

    assert played(2, *turns)[-1] == (1, 0)


@pytest.mark.parametrize(("more", "source"), [(0, 0), (-1, None)])
def test_little_is_not_copied(more, source):
    """What is soon computed is computed."""
    begin = list(LONG)[: WORTH_COPYING + more]

    assert played(2, ("a", [*begin, 1]), ("b", [*begin, 2]))[-1] == (1, source)


def test_what_a_seat_left_is_found_by_another():
    """A request over HTTP has a seat of its own each time."""

    async def main():
        desk = Desk(3)
        first = await desk.turn("one", *LONG)
        await desk.slots.leave("one")
        await desk.turn("somebody", 7)
        return first, await desk.turn("two", *LONG, 1)

    first, second = asyncio.run(main())

    assert first[0] == second[0]
    assert second[1] is None


def test_what_was_left_goes_first():
    """Least recently used first, and before anything of a seat that is still there."""

    async def main():
        desk = Desk(3)
        await desk.turns(("stays", [1]), ("left", [2]), ("left later", [3]))
        await desk.slots.leave("left later")
        await desk.slots.leave("left")
        return await desk.turns(("x", [4]), ("y", [5]), ("z", [6]))

    assert [slot for slot, _ in asyncio.run(main())] == [1, 2, 0]


def test_an_unknown_seat_may_leave():
    """A lane that never had a turn has nothing to give back."""

    async def main():
        desk = Desk(1)
        await desk.slots.leave("nobody")
        return await desk.turn("a", 1)

    assert asyncio.run(main()) == (0, None)


async def begun(act):
    """Start something that has to wait, and let it come that far."""
    task = asyncio.ensure_future(act)
    await asyncio.wait([task], timeout=0)
    assert not task.done()
    return task


def test_a_source_may_not_be_taken_while_it_is_copied():
    """Its own next turn waits for the end of that, and nobody takes it over."""

    async def main():
        desk = Desk(2)
        await desk.turn("a", *LONG)
        _, source = await desk.slots.take("fork", ids_of([*LONG, 1]))
        own = await begun(desk.slots.take("a", ids_of([*LONG, 2])))
        desk.slots.copied(source)
        return source, (await own).slot

    source, slot = asyncio.run(main())

    assert source is slot


def test_many_may_copy_from_one_slot_at_once():
    """A prompt over many rows begins with the same words everywhere; the last one to go counts."""

    async def main():
        desk = Desk(3)
        await desk.turn("a", *LONG)
        forks = [await desk.slots.take(n, ids_of([*LONG, n])) for n in range(2)]
        own = asyncio.ensure_future(desk.slots.take("a", ids_of([*LONG, 9])))
        waited = []
        for _, source in forks:
            await asyncio.wait([own], timeout=0)
            waited.append(not own.done())
            desk.slots.copied(source)
        return [source.number for _, source in forks], waited, (await own).slot.number

    assert asyncio.run(main()) == ([0, 0], [True, True], 0)


def test_nothing_is_copied_from_a_busy_slot():
    """What it will hold in the end is not known."""

    async def main():
        desk = Desk(2)
        await desk.turn("a", *LONG)
        await desk.slots.take("a", ids_of([*LONG, 1]))
        return await desk.slots.take("fork", ids_of([*LONG, 2]))

    assert asyncio.run(main()).source is None


def test_who_leaves_waits_for_the_turn_to_let_go():
    """A slot is free when nothing runs on it, not when its reader has gone."""

    async def main():
        desk = Desk(1)
        slot, _ = await desk.slots.take("a", ids_of([1]))
        leaving = await begun(desk.slots.leave("a"))
        desk.slots.release(slot)
        await leaving
        return slot.seat

    assert asyncio.run(main()) is None


def test_who_stops_waiting_takes_nothing():
    """A turn that was cancelled in the queue leaves it to the others."""

    async def main():
        desk = Desk(1)
        slot, _ = await desk.slots.take("a", ids_of([1]))
        gone = await begun(desk.slots.take("b", ids_of([2])))
        waits = await begun(desk.slots.take("c", ids_of([3])))
        gone.cancel()
        desk.slots.release(slot)
        return (await waits).slot.seat

    assert asyncio.run(main()) == "c"


def test_slots_show_what_they_hold():
    """For whoever looks at a server that is slow."""

    async def main():
        desk = Desk(2)
        await desk.turn("a", 1, 2)
        await desk.slots.take("b", ids_of([7]))
        return repr(desk.slots)

    assert asyncio.run(main()) == "<Slots: idle with 2, busy with 0>"


@given(
    st.integers(1, 3),
    st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from(["", "x", "xx", "xy", "yx"]), st.booleans()),
        max_size=12,
    ),
)
def test_a_prompt_begins_with_the_most_that_is_worth_it(count, turns):
    """Where anything idle holds more of a prompt, by what is worth a copy, it is copied."""

    async def main():
        slots = Slots(count)
        every = []
        for seat, said, leaves in turns:
            prompt = ids_of([*LONG, *(ord(each) for each in said for _ in LONG)])
            held = [shared(each.ids, prompt) for each in every]
            slot, source = await slots.take(seat, prompt)
            every += [] if slot in every else [slot]
            got = shared((source or slot).ids, prompt)
            assert source is not slot
            assert got > max(held, default=0) - WORTH_COPYING
            if source:
                slots.copied(source)
            slots.release(slot)
            slot.ids = prompt
            if leaves:
                await slots.leave(seat)

    asyncio.run(main())
