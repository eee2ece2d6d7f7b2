"""What carries a plan out keeps its promises to those who are told of it."""

from __future__ import annotations

import contextlib
import signal
import threading
from concurrent.futures import Future

import pytest

from ipy_agent.agent.notes import Notes
from ipy_agent.agent.runs import Quiet
from ipy_agent.agent.tools import TOOLS, tool_of
from ipy_agent.errors import BudgetExceeded, Interrupted
from ipy_agent.sessions import Session
from ipy_agent.transport.scripted import ScriptedTransport

SECONDS = 20


class Slow(Notes):
    """Is about to write an intent down, and does not come to an end."""

    def __init__(self):
        self.written = Future()

    def intended(self, call):  # noqa: ARG002 (whichever it is)
        return self.written


class Impatient(Quiet):
    """Interrupts the run while an intent is being written down."""

    @contextlib.contextmanager
    def working(self):
        threading.Timer(0.05, signal.pthread_kill, (threading.get_ident(), signal.SIGINT)).start()
        yield


def test_an_interrupt_while_an_intent_is_written_cancels_nothing_of_the_journals(monkeypatch):
    """Its writer would find its promise broken, and end: every later cell would wait for it."""
    ran = []
    monkeypatch.setitem(TOOLS, "act", tool_of(lambda: ran.append(1), name="act", description="A."))
    script, notes = [{"tool_calls": [{"name": "act"}]}], Slow()
    session = Session(transport=ScriptedTransport(script))
    session._keep(notes)

    with pytest.raises(Interrupted):
        session.run("go", mode="auto", front=Impatient())

    assert not notes.written.cancelled()
    notes.written.set_result(None)
    assert session.run("again").text == "again"
    assert ran == []
    session.close()


def test_a_journal_that_hangs_keeps_no_run_beyond_its_budget(monkeypatch):
    """The call that it would have to note first is not carried out."""
    ran = []
    monkeypatch.setitem(TOOLS, "act", tool_of(lambda: ran.append(1), name="act", description="A."))
    script = [{"tool_calls": [{"name": "act"}]}]
    session = Session(transport=ScriptedTransport(script), budget_seconds=0.2)
    session._keep(Slow())

    with pytest.raises(BudgetExceeded):
        session.run("go", mode="auto")

    assert ran == []
    session.close()
