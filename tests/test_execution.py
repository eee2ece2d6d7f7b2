"""What carries a plan out keeps its promises to those who are told of it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import Future

import pytest

from ipy_agent.agent.notes import Notes
from ipy_agent.agent.runs import Quiet
from ipy_agent.agent.tools import TOOLS, tool_of
from ipy_agent.errors import Interrupted
from ipy_agent.sessions import Session
from ipy_agent.transport.scripted import ScriptedTransport

SECONDS = 20


class Slow(Notes):
    """Is about to write an intent down, on a thread of its own."""

    def __init__(self):
        self.asked, self.written = threading.Event(), Future()

    async def intended(self, call):  # noqa: ARG002 (whichever it is)
        self.asked.set()
        await asyncio.wrap_future(self.written)


class Impatient(Quiet):
    """Interrupts the run while an intent is being written down."""

    def __init__(self, notes):
        self._notes = notes

    def tick(self):
        if self._notes.asked.is_set():
            self._stop()

    @contextlib.contextmanager
    def waiting(self, stop):
        self._stop = stop
        yield


def test_an_interrupt_while_an_intent_is_written_cancels_nothing_of_the_journals(monkeypatch):
    """Its writer would find its promise broken, and end: every later cell would wait for it."""
    ran = []
    monkeypatch.setitem(TOOLS, "act", tool_of(lambda: ran.append(1), name="act", description="A."))
    script, notes = [{"tool_calls": [{"name": "act"}]}], Slow()
    session = Session(transport=ScriptedTransport(script))
    session._keep(notes)

    with pytest.raises(Interrupted):
        session.run("go", mode="auto", front=Impatient(notes))

    assert not notes.written.cancelled()
    notes.written.set_result(None)
    assert session.run("again").text == "again"
    assert ran == []
    session.close()
