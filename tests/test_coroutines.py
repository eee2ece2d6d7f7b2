"""A coroutine runs on the loop that is there, ends with its call, and strikes nothing else."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from ipy_agent import coroutines
from ipy_agent.coroutines import awaited, settle, settled
from ipy_agent.errors import ToolError

SECONDS = 20
WORD = contextvars.ContextVar("WORD", default="none")


def on_a_thread(function):
    """Return what a function returns or raises on a thread of its own."""
    came = []

    def call():
        try:
            came.append(function())
        except BaseException as error:  # noqa: BLE001 (whatever it is)
            came.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(SECONDS)
    return came[0]


async def loop_here():
    await asyncio.sleep(0)
    return asyncio.get_running_loop()


@pytest.fixture
def home():
    """A loop on which coroutines of this thread run."""
    loop = asyncio.new_event_loop()
    before = coroutines._here.home
    settle(lambda: loop)
    yield loop
    coroutines._here.home = before
    loop.close()


def interrupt():
    signal.raise_signal(signal.SIGINT)


def test_a_thread_has_one_loop_for_all_its_coroutines_and_it_ends_with_the_thread():
    """What one call opened on the loop is alive in the next; another thread has another loop."""
    first, second = on_a_thread(lambda: (awaited(loop_here()), awaited(loop_here())))
    other = on_a_thread(lambda: awaited(loop_here()))
    gc.collect()

    assert first is second
    assert other is not first
    assert first.is_closed()
    assert other.is_closed()


def test_a_thread_without_coroutines_makes_no_loop():
    """A loop is made at its first use."""
    before = [one for one in gc.get_objects() if isinstance(one, asyncio.AbstractEventLoop)]
    home = on_a_thread(lambda: coroutines._here.home)

    after = [one for one in gc.get_objects() if isinstance(one, asyncio.AbstractEventLoop)]
    assert isinstance(home, coroutines._Home)
    assert len(after) == len(before)


def test_a_settled_thread_uses_the_loop_it_settled_on(home):
    """Only that thread does."""
    assert awaited(loop_here()) is home
    assert on_a_thread(lambda: awaited(loop_here())) is not home


class Held:
    """As a future of Dask's: it has an `__await__`, and outside its own client it is a value."""

    def __await__(self):
        raise AssertionError


def test_a_coroutine_and_a_future_are_awaited_and_nothing_else(home):
    """A future that failed raises its error; anything else is its own value."""
    future, failed, held = home.create_future(), home.create_future(), Held()
    home.call_soon(future.set_result, 1)
    home.call_soon(failed.set_exception, KeyError("no"))

    assert settled(future) == 1
    assert settled(home.create_task(asyncio.sleep(0, 2))) == 2
    assert settled(asyncio.sleep(0, 3)) == 3
    assert settled(held) is held
    with pytest.raises(KeyError):
        settled(failed)


def test_an_interrupt_cancels_the_future_that_is_awaited(home):
    """As an `await` of it would."""
    future = home.create_future()
    home.call_later(0.01, interrupt)

    with pytest.raises(KeyboardInterrupt):
        settled(future)

    assert future.cancelled()


@pytest.mark.usefixtures("home")
def test_a_coroutine_sees_the_context_of_its_caller():
    """In a kernel the context says which cell an output belongs to."""

    async def said():
        await asyncio.sleep(0)
        seen = WORD.get()
        WORD.set("inner")
        return seen

    token = WORD.set("outer")
    assert awaited(said()) == "outer"
    assert WORD.get() == "outer"
    WORD.reset(token)


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("error", [KeyError, asyncio.CancelledError, SystemExit, KeyboardInterrupt])
def test_what_it_raises_is_raised(error, caplog):
    """Whatever it is, and nobody logs it once more."""

    async def fail():
        await asyncio.sleep(0)
        raise error

    with pytest.raises(error):
        awaited(fail())
    gc.collect()

    assert caplog.text == ""


def test_an_interrupt_while_the_loop_waits_cancels_the_task(home):
    """The task gets to tidy up, and its end is waited for."""
    order = []

    async def wait():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            order.append("tidied")

    home.call_later(0.01, interrupt)
    with pytest.raises(KeyboardInterrupt):
        awaited(wait())

    assert order == ["tidied"]
    assert asyncio.all_tasks(home) == set()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_while_another_task_computes_does_not_strike_it(home):
    """It ends the coroutine, and the other task goes on."""
    order = []

    async def compute():
        interrupt()
        order.append("computed")
        await asyncio.sleep(0)
        order.append("went on")

    other = home.create_task(compute())
    with pytest.raises(KeyboardInterrupt):
        awaited(asyncio.Event().wait())
    home.run_until_complete(other)

    assert order == ["computed", "went on"]


@pytest.mark.usefixtures("home")
def test_an_interrupt_while_the_coroutine_computes_raises_within_it():
    """As in an ordinary function: a long computation does not go on to its next await."""
    order = []

    async def compute():
        await asyncio.sleep(0)
        try:
            interrupt()
            order.append("went on")
        except KeyboardInterrupt:
            order.append("raised")
            raise

    with pytest.raises(KeyboardInterrupt):
        awaited(compute())

    assert order == ["raised"]


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("end", ["return", "raise"])
def test_whatever_an_interrupted_coroutine_makes_of_it_the_user_interrupted(end):
    """A value or another exception does not hide the interrupt."""

    async def stubborn():
        asyncio.get_running_loop().call_soon(interrupt)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if end == "raise":
                raise ValueError from None
        return "a value"

    with pytest.raises(KeyboardInterrupt):
        awaited(stubborn())


def test_a_second_interrupt_does_not_wait_for_a_task_that_will_not_end(home, monkeypatch):
    """It is cancelled once more and then left; the thread is free."""
    monkeypatch.setattr(coroutines, "END_SECONDS", 0.01)
    cancelled = []
    free = asyncio.Event()

    async def stubborn():
        home.call_soon(interrupt)
        while not free.is_set():
            try:
                await free.wait()
            except asyncio.CancelledError:
                cancelled.append(True)
                home.call_soon(interrupt) if len(cancelled) == 1 else None

    with pytest.raises(KeyboardInterrupt):
        awaited(stubborn())

    assert cancelled == [True, True]
    free.set()
    home.run_until_complete(asyncio.gather(*asyncio.all_tasks(home)))


def test_who_ignores_interrupts_still_does(home):
    """A program that set SIGINT aside is not interrupted by us."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        home.call_soon(interrupt)
        assert awaited(asyncio.sleep(0.01, "slept")) == "slept"
    finally:
        signal.signal(signal.SIGINT, before)


class Foreign(asyncio.AbstractEventLoop):
    """A loop that is not made of asyncio's, as uvloop's."""


def test_a_foreign_loop_cannot_be_run_from_within():
    """One line says so, the coroutine is closed, and asyncio is not touched."""

    def call():
        asyncio._set_running_loop(Foreign())
        try:
            return awaited(asyncio.sleep(0))
        finally:
            asyncio._set_running_loop(None)

    before = asyncio.run
    error = on_a_thread(call)

    assert asyncio.run is before
    assert isinstance(error, ToolError)
    assert "a coroutine cannot be awaited here: the running loop is" in str(error)
    assert "\n" not in str(error)


# Each of these changes asyncio, so each has a process of its own.
WITHIN = {
    "the running loop is used, and other tasks go on": """
        async def main():
            queue, loop = asyncio.Queue(), asyncio.get_running_loop()
            async def serve():
                for number in range(3):
                    await queue.put(number)
                    await asyncio.sleep(0)
            other = asyncio.create_task(serve())
            async def take():
                assert asyncio.get_running_loop() is loop
                return [await queue.get() for _ in range(3)]
            assert awaited(take()) == [0, 1, 2]
            assert asyncio.current_task().get_coro().__name__ == "main"
            await other
        asyncio.run(main())
    """,
    "only the running loop is made re-entrant": """
        background = Background()
        async def main():
            kind = type(asyncio.get_running_loop())
            assert awaited(asyncio.sleep(0, 1)) == 1
            assert awaited(asyncio.sleep(0, 2)) == 2
            assert isinstance(asyncio.get_running_loop(), kind)
            assert not hasattr(kind, "_nest_patched")
            assert not hasattr(background.loop, "_nest_patched")
            assert background.call(asyncio.sleep(0, 3), 20) == 3
        asyncio.run(main())
        background.stop()
    """,
    "a coroutine may call what awaits another": """
        async def main():
            async def inner(): return await asyncio.sleep(0, WORD.get())
            async def outer():
                WORD.set("outer")
                return awaited(inner())
            assert awaited(outer()) == "outer"
            assert WORD.get() == "none"
        asyncio.run(main())
    """,
    "an interrupt ends the coroutine alone": """
        async def main():
            ticks = []
            async def tick():
                while True:
                    ticks.append(1)
                    await asyncio.sleep(0.001)
            other = asyncio.create_task(tick())
            asyncio.get_running_loop().call_later(0.05, signal.raise_signal, signal.SIGINT)
            try:
                awaited(asyncio.Event().wait())
            except KeyboardInterrupt:
                before = len(ticks)
                while len(ticks) < before + 3:
                    await asyncio.sleep(0.001)
                assert asyncio.all_tasks() == {other, asyncio.current_task()}
                other.cancel()
                return "interrupted"
        signal.signal(signal.SIGINT, signal.default_int_handler)
        loop = asyncio.new_event_loop()
        assert loop.run_until_complete(main()) == "interrupted"
        loop.close()
    """,
    "a loop that is told to stop ends the wait, and the coroutine": """
        order = []
        async def wait():
            try:
                await asyncio.Event().wait()
            finally:
                order.append("ended")
        async def main():
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.stop)
            try:
                awaited(wait())
            except RuntimeError:
                order.append("told")
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
        assert order == ["ended", "told"], order
    """,
}


@pytest.mark.parametrize("code", WITHIN.values(), ids=WITHIN)
def test_within_a_running_loop(code):
    """Called from ordinary code below a running loop, a coroutine runs on that loop."""
    start = """
        import asyncio, contextvars, signal, sys
        from ipy_agent.background import Background
        from ipy_agent.coroutines import awaited
        WORD = contextvars.ContextVar("WORD", default="none")
    """
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(start) + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )

    assert (run.returncode, run.stdout) == (0, ""), run.stderr
    assert "Traceback" not in run.stderr
