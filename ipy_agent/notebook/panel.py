"""The live panel below a running cell: its turns as they happen, and a button that stops it.

Turns, cell runs and tool calls are tabs, which the browser switches by itself, so that it works
however busy the kernel is. The button's click has to reach a thread that is free: ipykernel would
hand it to the shell that runs the cell, behind everything that it still has to do.

Rule 1: a refresh is the view that is looked at, if it changed: a message of at most 8,192 bytes.
Rule 2: nothing here announces itself: a screen reader would read every refresh aloud.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from IPython.display import DisplayHandle

from ipy_agent import rendering
from ipy_agent.notebook.views import Views
from ipy_agent.records import Recorder
from ipy_agent.secrets import holds_secret
from ipy_agent.tables.picture import Kept, Picture
from ipy_agent.tables.style import LIVE, LIVE_CLASS

__all__ = ["Board", "Panel", "heard_at_once"]

ENVELOPE = 768
"""What a message has besides the HTML: its headers, and names in them that differ in length."""

ROOM = 8_192 - ENVELOPE
BURST, BYTES_A_SECOND = 500_000, 50_000
"""How many characters may be sent ahead of a tool's work at once, and in the long run."""
VIEWS = ("turns", "cells", "tools")


class Panel:
    """A widget that shows what happens since it was made.

    Args:
        recorder: whose turns.
        stop: what the button calls, from any thread.
        clock: seconds, monotonic.
        every: how many seconds are between two refreshes, at least.

    Attributes:
        widget: what to display; dead when the kernel is, so show `static()` in its place
            at the end.
        button: the one that stops.
        remark: a line about what goes on.
        tabs: a view each, in the order of `VIEWS`.
    """

    def __init__(
        self,
        recorder: Recorder,
        stop: Callable[..., None],
        *,
        clock: Callable[[], float] = time.monotonic,
        every: float = 0.1,
    ) -> None:
        from ipywidgets import HTML, Button, Tab, VBox  # noqa: PLC0415 (slow; comes with a run)

        self._views = views = Views(recorder, clock, fresh=True)
        self._looks = (views.turns, views.cells, views.calls)
        self._shown: list[Picture | None] = [None for _ in VIEWS]
        self._kept: list[Kept] = [{} for _ in VIEWS]
        self._clock = clock
        self._every = every
        self._due = self._spent_at = clock()
        self._spent = 0.0
        self.button = Button(description="Stop", icon="stop", tooltip="End this run")
        self.button.on_click(stop)
        self.tabs = Tab([HTML() for _ in VIEWS], titles=VIEWS, selected_index=0)
        self.tabs.add_class(LIVE_CLASS)
        self.remark = HTML()
        self.widget = VBox([HTML(f"<style>{LIVE}</style>"), self.button, self.tabs, self.remark])
        for one in (self.button, self.tabs):
            heard_at_once(one.comm)

    def refresh(self, *, force: bool = False, whole: bool = False) -> bool:
        """Draw the view that is looked at, if it is time; return whether it was.

        If `whole` is set, what comes next may keep us busy: then all views are drawn at once,
        unless that was too much of late. If `force` is set, they are in any case.
        """
        now = self._clock()
        self._spent = max(0.0, self._spent - (now - self._spent_at) * BYTES_A_SECOND)
        self._spent_at = now
        force = force or (whole and self._spent < BURST)
        if now < self._due and not force:
            return False
        self._due = now + self._every
        for at in range(len(VIEWS)):
            if force or at == self.tabs.selected_index:
                sent = self._show(at)
                self._spent += sent if force else 0
        return True

    def _show(self, at: int) -> int:
        """Draw a view if there is anything new in it; return how many characters were sent."""
        shown, look = self.tabs.children[at], self._looks[at]()
        if look == self._shown[at] and not holds_secret(shown.value):
            return 0
        self._shown[at] = look
        shown.value = look.html(ROOM, live=True, kept=self._kept[at])
        return len(shown.value)

    def tell(self, text: str) -> None:
        """Show a line below the tables; from any thread, also while the main one is busy."""
        self.remark.value = text and f'<div style="opacity:.7">{rendering.escape(text)}</div>'

    def static(self) -> dict[str, str]:
        """Return what was shown as a mime bundle that needs no kernel."""
        return self._views.static()

    def close(self) -> None:
        """Let go of the widget and all its parts."""
        for one in (*self.tabs.children, *self.widget.children, self.widget):
            for part in (getattr(one, "layout", None), getattr(one, "style", None), one):
                if part is not None:
                    part.close()


def heard_at_once(comm: Any) -> None:
    """Have what a front end says over a comm told on the thread that it asks for.

    ipykernel 7.4 would have it told where the comm was used last: on the main thread.
    """
    if hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = lambda _data, asked: asked  # noqa: SLF001 (no other way)


class Board:
    """The table of all that a session did, in a cell of its own, brought up to date after each run.

    It is static at any time: what is saved needs neither kernel nor widget.
    """

    last: Board | None = None

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._views = Views(recorder)
        self._handle = DisplayHandle()

    def show(self, *, live: bool) -> None:
        """Display it; `live` is whether the display can be updated.

        The board that was shown before stays as it is from now on.
        """
        type(self).last = self if live else None
        self._handle.display(self._views.static(), raw=True)

    @classmethod
    def refresh(cls, recorder: Recorder) -> None:
        """Bring the board that shows this recorder up to date, if there is one."""
        board = cls.last
        if board is not None and board.recorder is recorder:
            board._handle.update(board._views.static(), raw=True)  # noqa: SLF001 (its own)
