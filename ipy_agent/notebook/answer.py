"""A cell's answer: what happens in a run, streamed into one display.

A cell shows two things: the answer, in which text and folded tool calls follow each other,
and below it the panel. Both are one display each and are updated in place; when the run ends
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
from ipy_agent.agent.tools import bounded
from ipy_agent.notebook.interrupt import interrupts_call, interrupts_raise
from ipy_agent.notebook.panel import Panel
from ipy_agent.notebook.terminal import SHOWN, approved
from ipy_agent.protocol.events import (
    Event,
    ItemDone,
    ResponseCompleted,
    ResponseIncomplete,
    TextDelta,
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


class _Call:
    """A tool call on the screen: its code while it runs, its output when it ended."""

    def __init__(self, began: ToolBegan) -> None:
        self.began = began
        self.ended: ToolEnded | None = None
        self._said, self._language = rendering.source(began.name, began.arguments)

    def html(self) -> str:
        body = rendering.code(self._said, self._language)
        if self.ended is not None:
            body += rendering.code(bounded(self.ended.output, SHOWN))
        return rendering.fold(self._title(), body, open=self.ended is None)

    def plain(self) -> str:
        said = [f"[{self._title()}]", self._said]
        if self.ended is not None:
            said.append(f"-> {bounded(self.ended.output, SHOWN)}")
        return rendering.plain("\n".join(said))

    def _title(self) -> str:
        if self.ended is None:
            return f"{self.began.name} …"
        took, status = self.ended.duration_ms, self.ended.status
        return self.began.name + "".join(
            (
                "" if took is None else f" · {took:,.0f} ms",
                "" if status == "completed" else f" · {status}",
            )
        )


class CellFront:
    """Shows a run in the cell that made it.

    Args:
        recorder: whose rows the panel shows.
        clock: seconds, monotonic.
    """

    def __init__(self, recorder: Recorder, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._parts: list[Growing | _Call] = []
        self._texts: dict[int, Growing] = {}
        self._status: str | None = "beginning"
        self._heard = self._shown = clock()
        self._pause = EVERY
        self._due = True
        self._signed = ""
        self._answer = DisplayHandle()
        self._answer.display(self._bundle(), raw=True)
        self._panel = Panel(recorder, clock=clock, since=len(recorder.turns))
        self._below = DisplayHandle()
        self._below.display(self._panel.widget)

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
        """Leave both displays static, with or without an answer."""
        self._status = None
        self._refresh(now=True)
        self._below.update(self._panel.static(), raw=True)
        self._panel.close()

    def _refresh(self, *, now: bool = False) -> None:
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
            self._texts[index] = Growing()
            self._parts.append(self._texts[index])
        return self._texts[index]

    # what each kind of event means for the screen

    def _text(self, event: TextDelta) -> None:
        self._message(event.output_index).add(event.delta)
        self._status = ""

    def _item(self, event: ItemDone) -> None:
        self._whole({event.output_index: event.item})

    def _output(self, event: ResponseCompleted | ResponseIncomplete) -> None:
        said = dict(enumerate(event.response.output or ()))
        messages = {index for index, item in said.items() if item.get("type") == "message"}
        for index in self._texts.keys() - messages if messages else ():
            self._parts.remove(self._texts.pop(index))
        self._whole(said)

    def _whole(self, items: dict[int, Item]) -> None:
        for index, item in items.items():
            if item.get("type") == "message":
                streamed, said = self._message(index), text_of(item)
                if streamed.text != said:
                    self._texts[index] = Growing(said)
                    self._parts[self._parts.index(streamed)] = self._texts[index]

    def _began(self, event: ToolBegan) -> None:
        self._parts.append(_Call(event))
        self._status = ""

    def _ended(self, event: ToolEnded) -> None:
        for part in reversed(self._parts):
            if isinstance(part, _Call) and part.began.call_id == event.call_id:
                part.ended = event
                return

    def _notice(self, event: Notice) -> None:
        self._status = event.text

    def _asking(self, _: TurnBegan) -> None:
        self._texts = {}
        self._status = "asking"

    def _thinking(self, _: RequestSent) -> None:
        """Wait for the turn's words; if it is sent again, those that came are said anew."""
        while self._texts:
            self._parts.remove(self._texts.popitem()[1])
        self._status = "thinking"

    def _over(self, _: ResponseEnded | RunEnded) -> None:
        self._status = ""

    _TAKES: ClassVar[dict[type, Callable[[CellFront, Any], None]]] = {
        TextDelta: _text,
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
