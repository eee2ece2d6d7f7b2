"""A cell's answer: what happens in a run, streamed into a display that grows.

A cell shows two things: the answer, in which text, folded thoughts, tool calls and a line a turn
follow each other, and below it the panel. Where a tool shows a figure the answer ends, and what
follows is said below it. All is updated in place; when the run ends all is static, so that a saved
notebook shows it without a kernel.

Rule 1: nothing that a model or a tool said reaches the screen but through `rendering`.
Rule 2: a delta only adds to a text; when it is shown is the screen's business.
Rule 3: what is said later as a whole (an item, the terminal output) wins over the deltas.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from ipy_agent.agent.approval import Question, Reply
from ipy_agent.colours import load_soon
from ipy_agent.notebook.lookout import Lookout
from ipy_agent.notebook.panel import Board, Panel
from ipy_agent.notebook.parts import (
    SUPERSEDED,
    Call,
    Document,
    Footer,
    Part,
    Remark,
    Thoughts,
    kinds,
    row_of,
    summary,
)
from ipy_agent.notebook.questions import Pending, asked, how_to_allow
from ipy_agent.notebook.screen import Screen
from ipy_agent.notebook.stop import Stop
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
from ipy_agent.rendering import Growing
from ipy_agent.trace import (
    Notice,
    RequestSent,
    ResponseEnded,
    RunEnded,
    Throttled,
    ToolBegan,
    ToolEnded,
    Trace,
    TurnBegan,
)

__all__ = ["CellFront"]

QUIET_SECONDS = 10
BUSY_SECONDS = 0.05
LONG_SECONDS = 120.0


class CellFront:
    """Shows a run in the cell that made it.

    Args:
        recorder: whose rows the panel shows.
        clock: seconds, monotonic.
        json: the answer was asked for as JSON, and is shown as such.
    """

    def __init__(
        self,
        recorder: Recorder,
        clock: Callable[[], float] = time.monotonic,
        *,
        json: bool = False,
    ) -> None:
        self._clock = clock
        self._new_text: type[Growing] = Document if json else Growing
        self._texts: dict[int, Growing] = {}
        self._thoughts: dict[int, Thoughts] = {}
        self._kinds: dict[str, str] = {}
        self._remarked: set[str] = set()
        self._answered: TurnRecord | None = None  # the turn whose line is still to come
        self._status: str | None = "beginning"
        self._heard = clock()
        self._recorder = recorder
        self.interrupts = self._stop = Stop()
        self._panel = Panel(recorder, self._stop, clock=clock)
        self._screen = Screen(self._panel.widget, clock)
        self._is_shown = False
        due = (BUSY_SECONDS, self._show_all), (LONG_SECONDS, self._tell_overdue)
        self._lookout = Lookout(*due, clock=clock)

    def show(self, event: Event | Trace) -> None:
        """Take in what happened."""
        self._heard = self._clock()
        take = self._TAKES.get(type(event))
        if take is not None:
            take(self, event)
        if not self._is_shown:
            self._is_shown = True
            self._refresh()

    def tick(self) -> None:
        """Bring the screen up to date when it is time, and show that we are alive."""
        if self._clock() - self._heard >= BUSY_SECONDS:
            load_soon()
        self._refresh()

    def approve(self, question: Question) -> Reply:
        """Ask over `input()`; as long as that takes, the call stands in the cell as a question."""
        with self._screen.instead(Pending(question), of=self._open_calls()):
            self._refresh(now=True)
            with self._stop.asking():
                said = asked(question)
        self._refresh()
        if said is Reply.NOBODY:
            self.show(Notice(text=how_to_allow(question.tool), lasting=True))
        return said

    def withdraw(self) -> None:
        self._stop.withdraw()

    def waiting(self, stop: Callable[[], None]) -> AbstractContextManager[object]:
        return self._stop.waiting(stop)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        with self._stop.working(), self._screen.working():
            try:
                with self._lookout.watching():
                    yield
            finally:
                self._panel.tell("")

    def _show_all(self) -> None:
        """Show what a tool that keeps us busy is doing; the panel follows at its own pace."""
        self._panel.refresh(whole=True)
        self._screen.refresh(self._sign(), now=True)

    def _tell_overdue(self) -> None:
        """Say that a call takes long, and end nothing: that is the user's to do."""
        told = f"this call takes more than {LONG_SECONDS:g} s: Stop, or an interrupt, ends it"
        self._panel.tell(told)

    def close(self) -> None:
        """Leave all displays static, with or without an answer; none, if nothing began.

        The widget goes first: whatever may come in between, a saved notebook has no dead one.
        """
        self._status = None
        self._lookout.close()
        self._tell_turn()
        for call in self._open_calls():
            call.cut_off()
            self._screen.change(call)
        if self._screen:
            self._screen.end(self._panel.static())
            self._screen.refresh("", now=True)
        self._panel.close()
        Board.refresh(self._recorder)

    def _refresh(self, *, now: bool = False) -> None:
        self._panel.refresh(force=now)
        if now or self._screen.is_time():
            self._screen.refresh(self._sign(), now=now)

    def _sign(self) -> str:
        """Return the sign of life: what is waited for, and how long already."""
        silent = int(self._clock() - self._heard)
        if self._status is None:
            return ""
        if silent >= QUIET_SECONDS:
            return f"{self._status or 'waiting'} … no data for {silent} s"
        if not self._status:
            return ""
        return f"{self._status} … {silent} s" if silent else f"{self._status} …"

    def _message(self, index: int) -> Growing:
        """Return the text of the turn's message at `index`, at the end if it is new."""
        if index not in self._texts:
            self._texts[index] = self._new_text()
            self._screen.add(self._texts[index])
        return self._texts[index]

    def _summary(self, index: int) -> Thoughts:
        """Return the turn's thoughts at `index`, at the end if they are new."""
        if index not in self._thoughts:
            self._thoughts[index] = Thoughts()
            self._screen.add(self._thoughts[index])
        return self._thoughts[index]

    # what each kind of event means for the screen

    def _text(self, event: TextDelta) -> None:
        message = self._message(event.output_index)
        message.add(event.delta)
        self._screen.change(message)
        self._status = ""

    def _thought(self, event: ThoughtDelta) -> None:
        thoughts = self._summary(event.output_index)
        thoughts.add(event.delta, event.summary_index)
        self._screen.change(thoughts)

    def _item(self, event: ItemDone) -> None:
        self._whole({event.output_index: event.item})

    def _output(self, event: ResponseCompleted | ResponseIncomplete) -> None:
        said = dict(enumerate(event.response.output or ()))
        for streamed, kind in ((self._texts, "message"), (self._thoughts, "reasoning")):
            told = {index for index, item in said.items() if item.get("type") == kind}
            for index in streamed.keys() - told if told else ():
                self._screen.drop(streamed.pop(index))
        self._whole(said)
        if (row := row_of(self._recorder, event.response.id)) is not None:
            self._answered = row

    def _whole(self, items: dict[int, Item]) -> None:
        self._kinds |= kinds(items.values())
        for index, item in items.items():
            kind = item.get("type")
            if kind == "message":
                streamed, said = self._message(index), text_of(item)
                if streamed.text != said:
                    self._texts[index] = self._new_text(said)
                    self._screen.replace(streamed, self._texts[index])
            elif kind == "reasoning" and (told := summary(item)):
                thoughts = self._summary(index)
                if thoughts.text != told:
                    self._thoughts[index] = Thoughts(told)
                    self._screen.replace(thoughts, self._thoughts[index])

    def _began(self, event: ToolBegan) -> None:
        self._screen.add(Call(event, self._kinds.get(event.call_id)))
        self._status = ""

    def _ended(self, event: ToolEnded) -> None:
        for call in self._calls():
            if call.began.call_id == event.call_id:
                call.ended = event
                self._screen.change(call)
                return

    def _calls(self) -> Iterator[Call]:
        """Yield the tool calls, the last one first."""
        return (part for part in reversed(self._screen) if isinstance(part, Call))

    def _open_calls(self) -> list[Call]:
        return [call for call in self._calls() if call.ended is None]

    def _notice(self, event: Notice) -> None:
        if not event.lasting:
            self._status = event.text
        elif event.text not in self._remarked:
            self._remarked.add(event.text)
            self._screen.add(Remark(event.text))

    def _tell_turn(self) -> None:
        """Add the line of the turn that was answered, below its calls."""
        row, self._answered = self._answered, None
        if row is not None:
            self._screen.add(Footer(row))

    def _asking(self, _: TurnBegan) -> None:
        self._tell_turn()
        self._texts, self._thoughts = {}, {}
        self._status = "asking"

    def _thinking(self, _: RequestSent) -> None:
        """Wait for the turn's words; if it is sent again, those that came are said anew."""
        streamed: list[Part] = [*self._texts.values(), *self._thoughts.values()]
        for part in streamed:
            self._screen.drop(part)
        if streamed:
            self._screen.add(Remark(SUPERSEDED))
        self._texts, self._thoughts = {}, {}
        self._status = "thinking"

    def _over(self, _: ResponseEnded) -> None:
        self._status = ""

    def _ran(self, _: RunEnded) -> None:
        self._tell_turn()
        self._status = ""

    _TAKES: ClassVar[dict[type, Callable[[CellFront, Any], None]]] = {
        TextDelta: _text,
        ThoughtDelta: _thought,
        ItemDone: _item,
        ResponseCompleted: _output,
        ResponseIncomplete: _output,
        ToolBegan: _began,
        ToolEnded: _ended,
        Notice: _notice,
        Throttled: _notice,
        TurnBegan: _asking,
        RequestSent: _thinking,
        ResponseEnded: _over,
        RunEnded: _ran,
    }
