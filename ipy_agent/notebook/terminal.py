"""A run as plain text, line by line, for where a display cannot be brought up to date in place.

Terminal IPython starts a new line at every update of a display; so here a word that was
printed stays, and what is said later as a whole is printed only if nothing was streamed.

Rule 1: nothing that a model or a tool said reaches the terminal but through `rendering`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

from IPython.core.error import StdinNotImplementedError

from ipy_agent import rendering
from ipy_agent.agent.approval import YES
from ipy_agent.agent.tools import bounded
from ipy_agent.notebook.interrupt import interrupts_call, interrupts_raise
from ipy_agent.protocol.events import (
    Event,
    ItemDone,
    ResponseCompleted,
    ResponseIncomplete,
    TextDelta,
)
from ipy_agent.protocol.items import Item
from ipy_agent.protocol.items import text as text_of
from ipy_agent.trace import Notice, RequestSent, RunEnded, ToolBegan, ToolEnded, Trace

__all__ = ["SHOWN", "PlainFront", "approved"]

SHOWN = 4_000
"""How many characters of a tool's output a user is shown."""


class PlainFront:
    """Prints a run."""

    def __init__(self) -> None:
        self._fresh = True
        self._streamed: set[int] = set()

    def show(self, event: Event | Trace) -> None:
        if isinstance(event, TextDelta):
            if event.output_index not in self._streamed:
                self._end_line()
                self._streamed.add(event.output_index)
            self._write(event.delta)
        elif isinstance(event, ItemDone):
            self._whole({event.output_index: event.item})
        elif isinstance(event, (ResponseCompleted, ResponseIncomplete)):
            self._whole({} if self._streamed else dict(enumerate(event.response.output or ())))
        elif isinstance(event, Notice):
            self._line(event.text)
        elif isinstance(event, ToolBegan):
            said, _ = rendering.source(event.name, event.arguments)
            self._line(f"[{event.name}]\n{said}")
        elif isinstance(event, ToolEnded):
            self._line(f"-> {bounded(event.output, SHOWN)}")
        elif isinstance(event, (RequestSent, RunEnded)):
            self._streamed.clear()
            self._end_line()

    def tick(self) -> None:
        pass

    def approve(self, question: str) -> bool:
        self._end_line()
        with interrupts_raise():
            return approved(question)

    def waiting(self, stop: Callable[[], None]) -> AbstractContextManager[object]:
        return interrupts_call(stop)

    def working(self) -> AbstractContextManager[object]:
        return interrupts_raise()

    def close(self) -> None:
        self._end_line()

    def _whole(self, items: dict[int, Item]) -> None:
        """Print the messages that were not streamed."""
        for index, item in items.items():
            if item.get("type") == "message" and index not in self._streamed:
                self._streamed.add(index)
                self._line(text_of(item))

    def _line(self, text: str) -> None:
        self._end_line()
        self._write(f"{text}\n")

    def _end_line(self) -> None:
        if not self._fresh:
            self._write("\n")

    def _write(self, text: str) -> None:
        said = rendering.plain(text)
        sys.stdout.write(said)
        sys.stdout.flush()
        self._fresh = said.endswith("\n") if said else self._fresh


def approved(question: str) -> bool:
    """Ask over `input()`; a front end without it cannot be asked, and that is a no."""
    try:
        return input(question).strip().lower() in YES
    except (StdinNotImplementedError, EOFError):
        return False
