"""A run as plain text, line by line, for where a display cannot be brought up to date in place.

Terminal IPython starts a new line at every update of a display; so here a word that was
printed stays, and what is said later as a whole is printed only if nothing was streamed.

Rule 1: nothing that a model or a tool said reaches the terminal but through `rendering`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from ipy_agent import rendering
from ipy_agent.agent.approval import Question, Reply, called
from ipy_agent.agent.tools import bounded
from ipy_agent.notebook.interrupt import Interrupts
from ipy_agent.notebook.parts import SHOWN, SUPERSEDED, Footer, kinds, row_of, source, summary
from ipy_agent.notebook.questions import asked_in_terminal, how_to_allow, listed
from ipy_agent.protocol.events import (
    Event,
    ItemDone,
    ResponseCompleted,
    ResponseIncomplete,
    TextDelta,
    ThoughtDelta,
)
from ipy_agent.protocol.items import Item
from ipy_agent.protocol.items import text as text_of
from ipy_agent.records import Recorder, TurnRecord
from ipy_agent.trace import (
    Notice,
    RequestSent,
    RunEnded,
    Throttled,
    ToolBegan,
    ToolEnded,
    Trace,
    TurnBegan,
)

__all__ = ["PlainFront"]

SILENT_SECONDS = 2


class PlainFront:
    """Prints a run.

    Args:
        recorder: whose rows tell what a turn took; without one nothing does.
        clock: seconds, monotonic.
    """

    def __init__(
        self, recorder: Recorder | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.interrupts = Interrupts()
        self._recorder = recorder
        self._clock = clock
        self._sent: float | None = None  # when what is waited for was asked
        self._sign = ""
        self._answered: TurnRecord | None = None  # the turn whose line is still to come
        self._fresh = True
        self._streamed: set[int] = set()
        self._thought: dict[int, int] = {}
        self._shown: str | None = None  # the code that stands last on the screen
        self._kinds: dict[str, str] = {}

    def show(self, event: Event | Trace) -> None:
        take = self._TAKES.get(type(event))
        if take is not None:
            take(self, event)

    def tick(self) -> None:
        """Tell that we are alive: on a terminal, in a line that gives way to what comes."""
        if self._sent is None or not self._fresh or not sys.stdout.isatty():
            return
        seconds = int(self._clock() - self._sent)
        sign = f"thinking … {seconds} s"
        if seconds >= SILENT_SECONDS and sign != self._sign:
            self._sign = sign
            sys.stdout.write(f"\r{sign}")
            sys.stdout.flush()

    def approve(self, question: Question) -> Reply:
        self._erase()
        self._end_line()
        with self.interrupts.asking():
            said = asked_in_terminal(question, shown=self._shown == question.code)
        if said is Reply.NOBODY:
            self._line(how_to_allow(question.tool))
        return said

    def withdraw(self) -> None:
        self.interrupts.withdraw()

    def waiting(self, stop: Callable[[], None]) -> AbstractContextManager[object]:
        return self.interrupts.waiting(stop)

    def working(self) -> AbstractContextManager[object]:
        self._erase()
        return self.interrupts.working()

    def close(self) -> None:
        self._tell_turn()
        self._erase()
        self._end_line()

    # what each kind of event means for the terminal

    def _text(self, event: TextDelta) -> None:
        if event.output_index not in self._streamed:
            self._end_line()
            self._streamed.add(event.output_index)
        self._write(event.delta)

    def _thinks(self, event: ThoughtDelta) -> None:
        section = self._thought.get(event.output_index)
        if section is None:
            self._end_line()
            self._write("[thoughts] ")
        elif section != event.summary_index:
            self._write("\n\n")
        self._thought[event.output_index] = event.summary_index
        self._write(event.delta)

    def _item(self, event: ItemDone) -> None:
        self._whole({event.output_index: event.item})

    def _output(self, event: ResponseCompleted | ResponseIncomplete) -> None:
        """Print what was not streamed, however its items were numbered then."""
        seen = {"message": bool(self._streamed), "reasoning": bool(self._thought)}
        output = dict(enumerate(event.response.output or ()))
        self._whole(
            {at: item for at, item in output.items() if not seen.get(str(item.get("type")))}
        )
        self._sent = None
        if self._recorder is not None:
            self._answered = row_of(self._recorder, event.response.id)

    def _whole(self, items: dict[int, Item]) -> None:
        """Print the messages and thoughts that were not streamed."""
        self._kinds |= kinds(items.values())
        for index, item in items.items():
            kind = item.get("type")
            if kind == "message" and index not in self._streamed:
                self._streamed.add(index)
                self._line(text_of(item))
            elif kind == "reasoning" and index not in self._thought and (told := summary(item)):
                self._thought[index] = 0
                self._line(f"[thoughts] {told}")

    def _notice(self, event: Notice) -> None:
        self._line(event.text)

    def _began(self, event: ToolBegan) -> None:
        said, language = source(event, self._kinds.get(event.call_id))
        if language == "json":
            said, language = called(event.name, said), "python"  # as a question puts it
        self._line(f"[{event.name}]")
        self._sent = None
        sys.stdout.write(f"{listed(said, language)}\n")
        sys.stdout.flush()
        self._shown = said

    def _ended(self, event: ToolEnded) -> None:
        self._line(f"-> {bounded(event.output, SHOWN)}")

    def _asking(self, _: TurnBegan) -> None:
        self._tell_turn()

    def _waits(self, event: RequestSent) -> None:
        broke_off = event.attempt > 0 and bool(self._streamed or self._thought)
        self._anew()
        if broke_off:
            self._line(f"[{SUPERSEDED}]")
        self._sent = self._clock()

    def _over(self, _: RunEnded) -> None:
        self._anew()
        self._tell_turn()
        self._sent = None

    def _anew(self) -> None:
        self._streamed.clear()
        self._thought.clear()
        self._end_line()

    def _tell_turn(self) -> None:
        """Print the line of the turn that was answered, below its calls."""
        row, self._answered = self._answered, None
        if row is not None:
            self._line(Footer(row).plain())

    _TAKES: ClassVar[dict[type, Callable[[PlainFront, Any], None]]] = {
        TextDelta: _text,
        ThoughtDelta: _thinks,
        ItemDone: _item,
        ResponseCompleted: _output,
        ResponseIncomplete: _output,
        Notice: _notice,
        Throttled: _notice,
        ToolBegan: _began,
        ToolEnded: _ended,
        TurnBegan: _asking,
        RequestSent: _waits,
        RunEnded: _over,
    }

    # how it is printed

    def _line(self, text: str) -> None:
        self._end_line()
        self._write(f"{text}\n")

    def _end_line(self) -> None:
        if not self._fresh:
            self._write("\n")

    def _erase(self) -> None:
        """Take the sign of life away."""
        if self._sign:
            sys.stdout.write(f"\r{' ' * len(self._sign)}\r")
            sys.stdout.flush()
            self._sign = ""

    def _write(self, text: str) -> None:
        self._erase()
        said, self._shown = rendering.plain(text), None
        sys.stdout.write(said)
        sys.stdout.flush()
        self._fresh = said.endswith("\n") if said else self._fresh
