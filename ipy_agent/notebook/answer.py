"""A cell's answer: what happens in a run, streamed into one display.

A cell shows two things: the answer, in which text and folded tool calls follow each other,
and below it the panel. Both are one display each and are updated in place; when the run ends
both are static, so that a saved notebook shows them without a kernel.

Rule 1: nothing that a model or a tool said reaches the screen but through `rendering`.
Rule 2: a delta only adds to a text; the screen is brought up to date at most 20 times a
second, and less often as the answer grows, so that the bytes sent stay linear in the text.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import msgspec
from IPython.core.error import StdinNotImplementedError
from IPython.display import DisplayHandle

from ipy_agent import rendering
from ipy_agent.agent.approval import YES
from ipy_agent.agent.tools import bounded
from ipy_agent.notebook.interrupt import interrupts_call, interrupts_raise
from ipy_agent.notebook.panel import Panel
from ipy_agent.protocol.events import Event, ItemDone, TextDelta
from ipy_agent.protocol.items import text as text_of
from ipy_agent.records import Recorder
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

__all__ = ["CellFront", "PlainFront", "approved"]

EVERY = 0.05
SHOWN = 4_000
QUIET_SECONDS = 10


class _Call:
    """A tool call on the screen: its code while it runs, its output when it ended."""

    def __init__(self, began: ToolBegan) -> None:
        self.began = began
        self.ended: ToolEnded | None = None

    def html(self) -> str:
        body = rendering.code(self._said())
        if self.ended is not None:
            body += rendering.code(bounded(self.ended.output, SHOWN))
        return rendering.fold(self._title(), body, open=self.ended is None)

    def plain(self) -> str:
        said = [f"[{self._title()}]", self._said()]
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

    def _said(self) -> str:
        """Return a call's one text argument as it is (code, mostly), other arguments as JSON."""
        with contextlib.suppress(msgspec.DecodeError):
            arguments = list(
                msgspec.json.decode(self.began.arguments, type=dict[str, str]).values()
            )
            if len(arguments) == 1:
                return arguments[0]
        return self.began.arguments


class _Text(rendering.Growing):
    """A message on the screen."""

    def plain(self) -> str:
        return rendering.plain(self.text)


class CellFront:
    """Shows a run in the cell that made it.

    Args:
        recorder: whose rows the panel shows.
        clock: seconds, monotonic.
    """

    def __init__(self, recorder: Recorder, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._parts: list[_Text | _Call] = []
        self._status = "beginning"
        self._heard = self._shown = clock()
        self._silent = 0
        self._due = True
        self._cost = 0.0
        self._answer = DisplayHandle()
        self._answer.display(self._bundle(), raw=True)
        self._panel = Panel(recorder, since=len(recorder.turns))
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
        silent = int(self._clock() - self._heard)
        if self._status and silent != self._silent:
            self._silent, self._due = silent, True
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
        self._status = ""
        self._refresh(now=True)
        self._below.update(self._panel.static(), raw=True)
        self._panel.close()

    def _refresh(self, *, now: bool = False) -> None:
        self._panel.refresh(force=now)
        began = self._clock()
        if not self._due or (not now and began - self._shown < max(EVERY, 20 * self._cost)):
            return
        self._answer.update(self._bundle(), raw=True)
        self._shown, self._due = self._clock(), False
        self._cost = self._shown - began

    def _bundle(self) -> dict[str, str]:
        html = [part.html() for part in self._parts]
        plain = [part.plain() for part in self._parts]
        if self._status:
            html.append(f'<div style="opacity:.6">{rendering.escape(self._sign())}</div>')
            plain.append(f"({rendering.plain(self._sign())})")
        return {"text/html": "".join(html), "text/plain": "\n\n".join(plain)}

    def _sign(self) -> str:
        """Return the sign of life: what is waited for, and how long already."""
        silent = int(self._clock() - self._heard)
        if silent >= QUIET_SECONDS:
            return f"{self._status} … no data for {silent} s"
        return f"{self._status} … {silent} s" if silent else f"{self._status} …"

    # what each kind of event means for the screen

    def _text(self, event: TextDelta) -> None:
        last = self._parts[-1] if self._parts else None
        if not isinstance(last, _Text):
            last = _Text()
            self._parts.append(last)
        last.add(event.delta)
        self._status = ""

    def _item(self, event: ItemDone) -> None:
        """An item's own text wins over the deltas that led to it."""
        if event.item.get("type") != "message":
            return
        said, last = text_of(event.item), self._parts[-1] if self._parts else None
        if isinstance(last, _Text):
            if last.text == said:
                return
            self._parts.pop()
        whole = _Text()
        whole.add(said)
        self._parts.append(whole)

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
        self._status = "asking"

    def _thinking(self, _: RequestSent) -> None:
        self._status = "thinking"

    def _over(self, _: ResponseEnded | RunEnded) -> None:
        self._status = ""

    _TAKES: ClassVar[dict[type, Callable[[CellFront, Any], None]]] = {
        TextDelta: _text,
        ItemDone: _item,
        ToolBegan: _began,
        ToolEnded: _ended,
        Notice: _notice,
        TurnBegan: _asking,
        RequestSent: _thinking,
        ResponseEnded: _over,
        RunEnded: _over,
    }


class PlainFront:
    """Shows a run as plain text: terminal IPython starts a new line at every display update."""

    def __init__(self) -> None:
        self._fresh = True

    def show(self, event: Event | Trace) -> None:
        if isinstance(event, TextDelta):
            print(rendering.plain(event.delta), end="", flush=True)
            self._fresh = False
        elif isinstance(event, Notice):
            self._line(event.text)
        elif isinstance(event, ToolBegan):
            self._line(f"[{event.name}] {rendering.plain(event.arguments)}")
        elif isinstance(event, ToolEnded):
            self._line(rendering.plain(event.output))
        elif isinstance(event, RunEnded):
            self._line("")

    def tick(self) -> None:
        pass

    def approve(self, question: str) -> bool:
        with interrupts_raise():
            return approved(question)

    def waiting(self, stop: Callable[[], None]) -> AbstractContextManager[object]:
        return interrupts_call(stop)

    def working(self) -> AbstractContextManager[object]:
        return interrupts_raise()

    def close(self) -> None:
        pass

    def _line(self, text: str) -> None:
        print("" if self._fresh else "\n", text, sep="", flush=True)
        self._fresh = True


def approved(question: str) -> bool:
    """Ask over `input()`; a front end without it cannot be asked, and that is a no."""
    try:
        return input(question).strip().lower() in YES
    except (StdinNotImplementedError, EOFError):
        return False
