"""A stop from another thread: of the run while it waits, of the tool while one runs, else none."""

from __future__ import annotations

import signal
import threading

import pytest
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from ipy_agent.notebook.stop import Stop

SECONDS = 20


@pytest.fixture(scope="module", autouse=True)
def shell():
    quiet = Config()
    quiet.HistoryManager.enabled = False
    yield InteractiveShell.instance(config=quiet)
    InteractiveShell.clear_instance()


def elsewhere(action):
    """Do something on another thread, as a front end's click is handled, and wait for it."""
    thread = threading.Thread(target=action)
    thread.start()
    thread.join(SECONDS)
    assert not thread.is_alive()


def test_while_a_run_waits_it_is_asked_to_stop():
    """Before and after it nothing happens: there is nothing to stop."""
    stop, stops = Stop(), []
    elsewhere(stop)
    with stop.waiting(lambda: stops.append(threading.current_thread())):
        elsewhere(stop)
        signal.raise_signal(signal.SIGINT)
    elsewhere(stop)

    assert len(stops) == 2
    assert stops[1] is threading.main_thread()


def test_a_tool_is_interrupted_though_it_waits_in_c():
    """As by the kernel's own interrupt; and the run is asked to stop, if the tool does not."""
    stop, stops, asked = Stop(), [], threading.Event()
    with stop.waiting(lambda: stops.append(None)):
        click = threading.Thread(target=lambda: (asked.wait(SECONDS), stop()))
        click.start()
        with pytest.raises(KeyboardInterrupt):
            work(stop, asked)
        click.join(SECONDS)

        assert stops


def work(stop, began):
    with stop.working():
        began.set()
        signal.sigtimedwait([], SECONDS)  # waits for nothing, in C


def test_behind_a_tool_no_signal_is_sent():
    """What runs then is the user's."""
    stop, stops = Stop(), []
    with stop.waiting(lambda: stops.append(None)):
        with stop.working():
            pass
        elsewhere(stop)

    assert stops == [None]


def test_a_tool_of_another_thread_is_not_interrupted():
    """A signal would hit the main thread, where something else runs."""
    stop, stops = Stop(), []

    def run():
        with stop.waiting(lambda: stops.append(None)), stop.working():
            stop()

    elsewhere(run)

    assert stops == [None]


def test_a_click_arrives_while_output_is_captured(shell, monkeypatch):
    """The kernel tells its publisher of the click first, and IPython's capture puts in another."""
    heard = []

    class Publisher(CapturingDisplayPublisher):
        def set_parent(self, parent):
            heard.append(parent)

    monkeypatch.setattr(shell, "display_pub", Publisher())
    with Stop().working():
        CapturingDisplayPublisher().set_parent("a click")

    assert heard == ["a click"]
    assert not hasattr(CapturingDisplayPublisher, "set_parent")
