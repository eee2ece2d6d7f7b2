"""A cell's answer: what happens in a run, streamed into one display.

A cell shows two things: the answer, in which text, folded thoughts and tool calls follow each
other, and below it the panel. Both are one display each and are updated in place; when the run ends
both are static, so that a saved notebook shows them without a kernel.

Rule 1: nothing that a model or a tool said reaches the screen but through `rendering`.
Rule 2: a delta only adds to a text; the screen is brought up to date at most 20 times a
second, and less often the more there is to send: an answer takes a bounded share of the wire.
Rule 3: what is said later as a whole (an item, the terminal output) wins over the deltas.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from IPython.display import DisplayHandle

from ipy_agent import rendering
from ipy_agent.notebook.interrupt import interrupts_call, interrupts_raise
from ipy_agent.notebook.panel import Panel
from ipy_agent.notebook.parts import Call, Document, Part, Remark, Thoughts, kinds, summary
from ipy_agent.notebook.terminal import approved
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
from ipy_agent.records import Recorder
from ipy_agent.rendering import Growing
from ipy_agent.trace import (
    Notice,
    RequestSent,
    ResponseEnded,
    RunEnded,
    ToolBegan,
    ToolEnded,
    Trace,
    TurnBegan,
)

__all__ = ["CellFront"]

EVERY = 0.05
BYTES_A_SECOND = 50_000
QUIET_SECONDS = 10


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
        self._parts: list[Part] = []
        self._texts: dict[int, Growing] = {}
        self._thoughts: dict[int, Thoughts] = {}
        self._kinds: dict[str, str] = {}
        self._status: str | None = "beginning"
        self._heard = self._shown = clock()
        self._pause = EVERY
        self._due = True
        self._signed = ""
        self._panel = Panel(recorder, clock=clock, since=len(recorder.turns))
        self._answer, self._below = DisplayHandle(), DisplayHandle()
        self._open = False

    def show(self, event: Event | Trace) -> None:
        """Take in what happened, and bring the screen up to date when it is time."""
        self._heard = self._clock()
        take = self._TAKES.get(type(event))
        if take is not None:
            take(self, event)
            self._due = True
        self._refresh()

    def tick(self) -> None:
        """Show that we are alive, and what is still unshown."""
        self._refresh()

    def approve(self, question: str) -> bool:
        """Ask over `input()`."""
        self._refresh(now=True)
        with interrupts_raise():
            return approved(question)

    def waiting(self, stop: Callable[[], None]) -> AbstractContextManager[object]:
        return interrupts_call(stop)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        with interrupts_raise():
            self._refresh(now=True)
            yield

    def close(self) -> None:
        """Leave both displays static, with or without an answer; none, if nothing began."""
        self._status = None
        if self._open:
            self._refresh(now=True)
            self._below.update(self._panel.static(), raw=True)
        self._panel.close()

    def _refresh(self, *, now: bool = False) -> None:
        if not self._open:
            self._open = True
            self._answer.display(self._bundle(), raw=True)
            self._below.display(self._panel.widget)
        self._panel.refresh(force=now)
        began = self._clock()
        due = self._due or self._sign() != self._signed
        if not due or (not now and began - self._shown < self._pause):
            return
        bundle = self._bundle()
        self._answer.update(bundle, raw=True)
        self._shown, self._due = self._clock(), False
        took, size = self._shown - began, sum(map(len, bundle.values()))
        self._pause = max(EVERY, 20 * took, size / BYTES_A_SECOND)

    def _bundle(self) -> dict[str, str]:
        told = [(part.html(), plain) for part in self._parts if (plain := part.plain())]
        self._signed = self._sign()
        if self._signed:
            sign = rendering.escape(self._signed)
            told.append((f'<div style="opacity:.6">{sign}</div>', rendering.plain(self._signed)))
        return {
            "text/html": "".join(html for html, _ in told),
            "text/plain": "\n\n".join(plain for _, plain in told),
        }

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
            self._parts.append(self._texts[index])
        return self._texts[index]

    def _summary(self, index: int) -> Thoughts:
        """Return the turn's thoughts at `index`, at the end if they are new."""
        if index not in self._thoughts:
            self._thoughts[index] = Thoughts()
            self._parts.append(self._thoughts[index])
        return self._thoughts[index]

    # what each kind of event means for the screen

    def _text(self, event: TextDelta) -> None:
        self._message(event.output_index).add(event.delta)
        self._status = ""

    def _thought(self, event: ThoughtDelta) -> None:
        self._summary(event.output_index).add(event.delta, event.summary_index)

    def _item(self, event: ItemDone) -> None:
        self._whole({event.output_index: event.item})

    def _output(self, event: ResponseCompleted | ResponseIncomplete) -> None:
        said = dict(enumerate(event.response.output or ()))
        for streamed, kind in ((self._texts, "message"), (self._thoughts, "reasoning")):
            told = {index for index, item in said.items() if item.get("type") == kind}
            for index in streamed.keys() - told if told else ():
                self._parts.remove(streamed.pop(index))
        self._whole(said)

    def _whole(self, items: dict[int, Item]) -> None:
        self._kinds |= kinds(items.values())
        for index, item in items.items():
            kind = item.get("type")
            if kind == "message":
                streamed, said = self._message(index), text_of(item)
                if streamed.text != said:
                    self._texts[index] = self._new_text(said)
                    self._put(streamed, self._texts[index])
            elif kind == "reasoning" and (told := summary(item)):
                thoughts = self._summary(index)
                if thoughts.text != told:
                    self._thoughts[index] = Thoughts(told)
                    self._put(thoughts, self._thoughts[index])

    def _put(self, old: Part, new: Part) -> None:
        self._parts[self._parts.index(old)] = new

    def _began(self, event: ToolBegan) -> None:
        self._parts.append(Call(event, self._kinds.get(event.call_id)))
        self._status = ""

    def _ended(self, event: ToolEnded) -> None:
        for part in reversed(self._parts):
            if isinstance(part, Call) and part.began.call_id == event.call_id:
                part.ended = event
                return

    def _notice(self, event: Notice) -> None:
        if not event.lasting:
            self._status = event.text
        elif not any(isinstance(part, Remark) and part.text == event.text for part in self._parts):
            self._parts.append(Remark(event.text))

    def _asking(self, _: TurnBegan) -> None:
        self._texts, self._thoughts = {}, {}
        self._status = "asking"

    def _thinking(self, _: RequestSent) -> None:
        """Wait for the turn's words; if it is sent again, those that came are said anew."""
        streamed: list[Part] = [*self._texts.values(), *self._thoughts.values()]
        for part in streamed:
            self._parts.remove(part)
        self._texts, self._thoughts = {}, {}
        self._status = "thinking"

    def _over(self, _: ResponseEnded | RunEnded) -> None:
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
        TurnBegan: _asking,
        RequestSent: _thinking,
        ResponseEnded: _over,
        RunEnded: _over,
    }
