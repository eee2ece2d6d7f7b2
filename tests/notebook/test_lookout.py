"""What is done about a tool that keeps the main thread busy, and when."""

from __future__ import annotations

import contextvars
import os
import threading

from ipy_agent.notebook.lookout import Lookout

SECONDS = 20


class Clock:
    """A clock that goes when it is told to."""

    now = 100.0

    def __call__(self):
        return self.now


class Doing:
    """Something to do, on whichever thread, that tells when it was done."""

    def __init__(self):
        self.times = 0
        self.done = threading.Event()
        self.threads = set()

    def __call__(self):
        self.times += 1
        self.threads.add(threading.current_thread())
        self.done.set()


def test_nothing_is_done_about_a_tool_that_is_done_soon():
    """The clock stands still while it runs, and the thread looks again with the second tool."""
    clock, early, late = Clock(), Doing(), Doing()
    lookout = Lookout((0.05, early), (120.0, late), clock=clock)
    with lookout.watching():
        pass

    with lookout.watching():
        clock.now += 1
        assert early.done.wait(SECONDS)
    lookout.close()

    assert early.times == 1
    assert late.times == 0
    assert threading.current_thread() not in early.threads


def test_each_is_done_once_a_tool_and_in_its_order():
    """Also if both were due when the thread looked."""
    clock, done = Clock(), threading.Event()
    said = []
    soon = (1.0, lambda: said.append("soon"))
    lookout = Lookout(soon, (2.0, lambda: (said.append("later"), done.set())), clock=clock)

    for _ in "12":
        done.clear()
        with lookout.watching():
            clock.now += 5
            assert done.wait(SECONDS)
    lookout.close()

    assert said == ["soon", "later"] * 2


def test_the_end_of_a_tool_waits_for_what_was_begun():
    """Two threads that showed things at once would mix them."""
    clock, begun, order = Clock(), threading.Event(), []
    go_on = threading.Event()

    def act():
        begun.set()
        assert go_on.wait(SECONDS)
        order.append("acted")

    lookout = Lookout((0.0, act), clock=clock)
    with lookout.watching():
        assert begun.wait(SECONDS)
        threading.Timer(0.01, go_on.set).start()
    order.append("over")
    lookout.close()

    assert order == ["acted", "over"]


def test_it_acts_in_the_context_of_who_watches():
    """In a kernel that is what makes an output the cell's."""
    cell, seen = contextvars.ContextVar("cell", default="none"), []
    done = threading.Event()
    lookout = Lookout((0.0, lambda: (seen.append(cell.get()), done.set())))
    token = cell.set("this one")

    with lookout.watching():
        assert done.wait(SECONDS)
    lookout.close()
    cell.reset(token)

    assert seen == ["this one"]


def test_a_child_that_a_tool_forked_waits_for_nothing():
    """It has no thread that would ever end what was begun."""
    begun, go_on = threading.Event(), threading.Event()

    def act():
        begun.set()
        assert go_on.wait(SECONDS)

    lookout = Lookout((0.0, act))
    with lookout.watching():
        assert begun.wait(SECONDS)
        child = os.fork()
        if child:
            go_on.set()
    if not child:
        os._exit(7)
    lookout.close()

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
