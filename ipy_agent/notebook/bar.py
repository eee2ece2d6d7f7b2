"""How far a map over rows came: a bar, its figures in a line, and lines that stay to be read.

In a notebook it is one display that is brought up to date in place, of inline styles alone: as it
is left at the end, a saved notebook shows it. On a terminal it is one line that is written over,
and where nothing can be, such as in a file, a line every tenth.

Rule 1: it is brought up to date at most ten times a second, and nothing is shown before rows begin.
Rule 2: what it says are figures, and notices; no word of a row or an answer is here.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from IPython.core.interactiveshell import InteractiveShell

from ipy_agent import rendering
from ipy_agent.agent.approval import Question, Reply
from ipy_agent.notebook.interrupt import Interrupts
from ipy_agent.notebook.outputs import Handle
from ipy_agent.notebook.parts import Remark
from ipy_agent.notebook.questions import how_to_allow
from ipy_agent.notebook.stop import Stop
from ipy_agent.protocol.events import Event
from ipy_agent.tables.columns import MODEL, WAITING, rate
from ipy_agent.tables.style import BAD
from ipy_agent.trace import Notice, RowsProgress, Trace

__all__ = ["Bar", "PlainBar", "shown"]

EVERY = 0.1
REMARKS, MORE = 8, "… and more of the kind"
"""How many notices stay, and what is said of the others: each of many rows may have its own."""
TENTHS = 10

_STILL = 'style="font-variant-numeric:tabular-nums"'  # figures that change do not make it jump
_TRACK = "max-width:640px;height:10px;margin:4px 0"


class _Figure(NamedTuple):
    """A few words of the line, and their colour if they have one."""

    text: str
    colour: str = ""


def _figures(progress: RowsProgress, seconds: float, *, over: bool) -> Iterator[_Figure]:
    """Yield what is known of a map that has gone on for so long.

    Rows from before cost no time: the pace, and what is left by it, is of those that were asked.
    """
    rows, done, asked = progress.rows, progress.done, progress.done - progress.held
    yield _Figure(f"{done:,} of {rows:,} rows")
    if progress.failed:
        yield _Figure(f"{progress.failed:,} failed", BAD)
    if progress.held:
        yield _Figure(f"{progress.held:,} from before")
    if asked and seconds > 0:
        yield _Figure(f"{_pace(asked / seconds)} rows/s")
    yield _Figure(_span(seconds))
    if asked and not over and done < rows:
        yield _Figure(f"about {_span((rows - done) * seconds / asked)} left")
    if progress.cost_usd is not None:
        yield _Figure(f"US$ {progress.cost_usd:,.4f}")
    if progress.input_tokens:
        share = rate(progress.cached_tokens / progress.input_tokens)
        yield _Figure(f"{share} of the input cached")
    if not over:
        yield _Figure(f"{progress.under_way:,} under way")


def _pace(value: float) -> str:
    return f"{value:,.0f}" if value >= TENTHS else f"{value:.2g}"


def _span(seconds: float) -> str:
    """Return a time in its two largest units, from seconds to days."""
    whole = round(seconds)
    for (unit, size), (less, part) in itertools.pairwise(_UNITS):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size:,} {unit}" + (f" {rest} {less}" if rest else "")
    return f"{whole} s"


_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


class _Onlooker:
    """What both bars are: they look on, can be interrupted, and answer no question."""

    def __init__(self, interrupts: Interrupts, clock: Callable[[], float]) -> None:
        self.interrupts = interrupts
        self.progress: RowsProgress | None = None
        self._clock = clock
        self._heard = clock()
        self._shown = -math.inf
        self._is_over = False
        self._told: list[str] = []
        self._sign = ""

    def show(self, event: Event | Trace) -> None:
        if isinstance(event, RowsProgress):
            if self.progress is None or event.done > self.progress.done:
                self._sign = ""
            self.progress, self._heard = event, self._clock()
        elif isinstance(event, Notice) and event.lasting:
            self.remark(event.text if len(self._told) < REMARKS else MORE)
        elif isinstance(event, Notice):  # why it takes a while: until rows go on
            self._sign = event.text

    def tick(self) -> None:
        """Bring the bar up to date, if it is time."""
        if self.progress is not None and self._clock() - self._shown >= EVERY:
            self._shown = self._clock()
            self._draw(self.progress)

    def remark(self, text: str) -> None:
        """Say a line that stays, once."""
        if text not in self._told:
            self._told.append(text)
            self._say(text)

    def approve(self, question: Question) -> Reply:
        """Say how the tool can run: one question for each of many rows is no question."""
        self.remark(how_to_allow(question.tool))
        return Reply.NOBODY

    def withdraw(self) -> None:
        self.interrupts.withdraw()

    def waiting(self, stop: Callable[[], None]) -> AbstractContextManager[object]:
        return self.interrupts.waiting(stop)

    def working(self) -> AbstractContextManager[object]:
        return self.interrupts.working()

    def close(self) -> None:
        """Leave it as it stands; nothing, if no row began."""
        if self.progress is not None and not self._is_over:
            self._is_over = True
            self._draw(self.progress)

    def _figures(self, progress: RowsProgress) -> list[_Figure]:
        since = 0.0 if self._is_over else self._clock() - self._heard
        told = list(_figures(progress, progress.seconds + since, over=self._is_over))
        return told if self._is_over or not self._sign else [*told, _Figure(self._sign)]

    def _draw(self, progress: RowsProgress) -> None:
        raise NotImplementedError

    def _say(self, text: str) -> None:
        raise NotImplementedError


class Bar(_Onlooker):
    """Shows how far a map came in the cell that made it.

    Args:
        clock: seconds, monotonic.

    Attributes:
        interrupts: whose an interrupt is.
        progress: how far it came, as it was told last; `None` while nothing began.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(Stop(), clock)
        self._handle = Handle(InteractiveShell.instance().display_pub.publish)
        self._bundle: dict[str, str] = {}

    def _say(self, text: str) -> None:  # noqa: ARG002 (it is drawn with all that was said)
        if self._is_over and self.progress is not None:
            self._draw(self.progress)

    def _draw(self, progress: RowsProgress) -> None:
        figures, remarks = self._figures(progress), list(map(Remark, self._told))
        html = [_bar(progress), _line(figures), *(remark.html() for remark in remarks)]
        plain = [_drawn(progress, figures), *(remark.plain() for remark in remarks)]
        bundle = {
            "text/html": f'<div class="{rendering.NO_MATH}">{"".join(html)}</div>',
            "text/plain": "\n".join(plain),
        }
        if bundle != self._bundle:
            self._bundle = bundle
            self._handle.show(bundle)


def _bar(progress: RowsProgress) -> str:
    rows = progress.rows
    new = progress.done - progress.held - progress.failed
    parts = (progress.held, WAITING), (new, MODEL), (progress.failed, BAD)
    track = rendering.stripes((max(0, count) / rows, colour) for count, colour in parts)
    return f'<div style="{_TRACK};background:{track}"></div>'


def _line(figures: list[_Figure]) -> str:
    told = [
        f'<span style="color:{one.colour}">{rendering.escape(one.text)}</span>'
        if one.colour
        else rendering.escape(one.text)
        for one in figures
    ]
    return f"<div {_STILL}>{' · '.join(told)}</div>"


def _drawn(progress: RowsProgress, figures: list[_Figure]) -> str:
    """Return the bar and its line as text."""
    done, rows = progress.done, progress.rows
    filled = "#" * (TENTHS * done // rows)
    line = " · ".join(one.text for one in figures)
    return f"[{filled:.<{TENTHS}}] {100 * done // rows:3} %  {line}"


class PlainBar(_Onlooker):
    """Prints how far a map came.

    Args:
        clock: seconds, monotonic.

    Attributes:
        interrupts: whose an interrupt is.
        progress: how far it came, as it was told last; `None` while nothing began.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(Interrupts(), clock)
        self._width = 0  # of the line that can be written over
        self._tenth = 0

    def _say(self, text: str) -> None:
        self._write(rendering.plain(text), lasting=True)

    def _draw(self, progress: RowsProgress) -> None:
        line = _drawn(progress, self._figures(progress))
        if self._is_over:
            self._write(line, lasting=True)
        elif sys.stdout.isatty():
            self._write(line[: shutil.get_terminal_size().columns - 1])
        elif self._tenth < TENTHS * progress.done // progress.rows < TENTHS:
            self._tenth = TENTHS * progress.done // progress.rows
            self._write(line, lasting=True)

    def _write(self, line: str, *, lasting: bool = False) -> None:
        """Write a line over the one that stands there; one that lasts is the last to do so."""
        begin, end = "\r" if self._width else "", "\n" if lasting else ""
        sys.stdout.write(f"{begin}{line:<{self._width}}{end}")
        sys.stdout.flush()
        self._width = 0 if lasting else len(line)


@contextlib.contextmanager
def shown(shell: Any) -> Iterator[Bar | PlainBar]:
    """Within this context a map is shown in a shell's cell, and an interrupt ends it in order."""
    bar = PlainBar() if getattr(shell, "kernel", None) is None else Bar()
    with bar.interrupts.held(), contextlib.closing(bar):
        yield bar
