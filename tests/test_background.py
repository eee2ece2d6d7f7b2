"""Work goes on while the thread that began it does something else."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import threading

import pytest

from ipy_agent.background import Background

SECONDS = 20
HERE = contextvars.ContextVar("HERE", default="nothing")


@pytest.fixture
def background():
    one = Background()
    yield one
    one.stop()


async def value(it):
    await asyncio.sleep(0)
    return it


async def failure(error):
    await asyncio.sleep(0)
    raise error


async def for_ever(begun, ended):
    begun.set()
    try:
        await asyncio.Event().wait()
    finally:
        ended.set()


def test_a_call_returns_what_its_work_returns(background):
    """A result comes back, and so does an error."""
    assert background.call(value(3), SECONDS) == 3
    with pytest.raises(KeyError):
        background.call(failure(KeyError("x")), SECONDS)


def test_work_runs_on_a_daemon_thread_of_its_own(background):
    """All of it on the same one, and it never keeps a process alive."""

    async def where():
        return threading.current_thread()

    threads = {background.call(where(), SECONDS) for _ in range(3)}
    assert threads == {background._thread}
    assert threads.isdisjoint({threading.current_thread()})
    assert background._thread.daemon


def test_work_begins_in_an_empty_context(background):
    """A cell's own context would keep its output alive."""

    async def look():
        return HERE.get()

    HERE.set("a cell")
    assert background.call(look(), SECONDS) == "nothing"


def test_done_is_called_on_the_loops_thread_with_the_result(background):
    """Whoever began it is told, whichever way it ended."""
    told, ready = [], threading.Semaphore(0)

    def done(result):
        told.append((threading.current_thread(), result))
        ready.release()

    works = [background.start(value(3), done), background.start(failure(KeyError()), done)]
    for _ in works:
        assert ready.acquire(timeout=SECONDS)
    assert {thread for thread, _ in told} == {background._thread}
    assert [result for _, result in told] == [work.result for work in works]
    assert isinstance(told[1][1].exception(), KeyError)


def test_cancelled_work_ends_in_order_and_says_so(background):
    """To cancel again does not disturb the way out."""
    begun, leaving = threading.Event(), threading.Event()
    goodbye, left = asyncio.Event(), []

    async def work_():
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            leaving.set()
            await goodbye.wait()
            left.append("in order")

    work = background.start(work_())
    assert begun.wait(SECONDS)
    work.cancel()
    assert leaving.wait(SECONDS)
    work.cancel()
    background.loop.call_soon_threadsafe(goodbye.set)
    assert isinstance(work.result.exception(SECONDS), asyncio.CancelledError)
    assert left == ["in order"]


def test_work_that_is_cancelled_before_it_began_never_begins(background):
    """The order of the two is kept."""
    begun = threading.Event()
    hold = threading.Event()
    background.loop.call_soon_threadsafe(hold.wait, SECONDS)

    work = background.start(for_ever(begun, threading.Event()))
    work.cancel()
    hold.set()
    assert isinstance(work.result.exception(SECONDS), asyncio.CancelledError)
    assert not begun.is_set()


def test_a_call_that_waited_long_enough_ends_its_work(background):
    """Nothing goes on that nobody waits for."""
    begun, ended = threading.Event(), threading.Event()

    with pytest.raises(TimeoutError):
        background.call(for_ever(begun, ended), 0.05)
    assert ended.wait(SECONDS)


def test_stopping_ends_what_is_under_way():
    """Whoever waits for it learns of that; a second stop does nothing."""
    background = Background()
    begun, ended, told = threading.Event(), threading.Event(), threading.Event()
    work = background.start(for_ever(begun, ended), lambda _: told.set())
    assert begun.wait(SECONDS)

    background.stop()
    background.stop()
    assert ended.is_set()
    assert told.is_set()
    assert isinstance(work.result.exception(0), asyncio.CancelledError)
    assert not background._thread.is_alive()
    assert background.loop.is_closed()


FORKED = """
import os, sys, warnings
warnings.simplefilter("ignore")
from ipy_agent.background import Background
from ipy_agent.errors import UsageError

async def value():
    return 3

background = Background()
child = os.fork()
if child == 0:
    background.stop()
    try:
        background.check()
    except UsageError as error:
        os._exit(7 if "forked" in str(error) and not background.loop.is_closed() else 1)
    os._exit(1)
_, status = os.waitpid(child, 0)
background.check()
print(os.waitstatus_to_exitcode(status), background.call(value(), 20))
"""


def test_a_forked_child_is_told_and_touches_nothing():
    """It stops nothing, and the parent's loop goes on."""
    said = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60, check=True
    )

    assert said.stdout.split() == ["7", "3"]
    assert said.stderr == ""


def test_a_loop_that_breaks_goes_on():
    """As while a user's code keeps `len` for itself: what waits is done once it is back."""
    background, broken = Background(), threading.Event()
    usual = background.loop._run_once

    def breaks():
        background.loop._run_once = usual
        broken.set()
        raise TypeError("'NoneType' object is not callable")

    background.loop._run_once = breaks
    background.loop.call_soon_threadsafe(lambda: None)

    async def answer():
        return 42

    assert background.call(answer(), SECONDS) == 42
    assert broken.is_set()
    background.stop()
    assert background.loop.is_closed()
