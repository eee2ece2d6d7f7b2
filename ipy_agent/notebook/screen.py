"""An answer on the screen: parts in their order, brought up to date seldom enough to stay cheap.

Parts that follow each other are a segment, in a display of its own. It ends at a figure, so that
this is sent once, and when it is full, so that a run of many calls does not send them all at each.

Rule: a stream brings the screen up to date at most 20 times a second, and less often the more there
is to send: an answer takes a bounded share of the wire.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Container, Iterator

from ipy_agent import rendering
from ipy_agent.notebook.outputs import Handle, Outputs
from ipy_agent.notebook.parts import Part

__all__ = ["Screen"]

EVERY = 0.05
BYTES_A_SECOND = 50_000
FULL = 4_000
"""How many characters a segment holds until the next part begins another."""

_FAINT = f'class="{rendering.NO_MATH}" style="opacity:.6"'

# Where a notebook is exported as Markdown, HTML ends at the first blank line.
_BLANK = re.compile(r"\n(?=[ \t]*\n)")


class _Segment:
    """Parts that follow each other without a figure between them."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.handle: Handle | None = None
        self.due = True
        self.size = 0

    def bundle(self, sign: str) -> dict[str, str]:
        """Return the parts as a mime bundle, and below them the sign of life."""
        told = [(part.html(), plain) for part in self.parts if (plain := part.plain())]
        if sign:
            shown = f"<div {_FAINT}>{rendering.escape(sign)}</div>"
            told.append((shown, rendering.plain(sign)))
        return {
            "text/html": _BLANK.sub("&#10;", "".join(html for html, _ in told)),
            "text/plain": "\n\n".join(plain for _, plain in told),
        }


class Screen:
    """The parts of one answer, above a widget.

    Args:
        below: the widget.
        clock: seconds, monotonic.
    """

    def __init__(self, below: object, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._outputs = Outputs(below)
        self._segments = [_Segment()]
        self._is_cut = False
        self._changed: Part | None = None
        self._sign = ""
        self._shown = clock()
        self._pause = EVERY

    def __bool__(self) -> bool:
        """Whether it shows anything yet."""
        return bool(self._outputs)

    def __reversed__(self) -> Iterator[Part]:
        for segment in reversed(self._segments):
            yield from reversed(segment.parts)

    def add(self, part: Part) -> None:
        """Put a part at the end: below a figure, or what is full, in a display of its own."""
        if self._is_cut or self._segments[-1].size >= FULL:
            self._segments[-1].due = True  # the sign of life goes to the new one
            self._segments.append(_Segment())
            self._is_cut = False
        self._segments[-1].parts.append(part)
        self._segments[-1].due = True

    def change(self, part: Part) -> None:
        """Take note that a part says something else now."""
        if part is not self._changed:  # as nearly every delta's is
            self._changed = part
            self._home(part).due = True

    def replace(self, old: Part, new: Part) -> None:
        """Put a part in another's place."""
        parts = self._home(old).parts
        parts[parts.index(old)] = new
        self.change(new)

    def drop(self, part: Part) -> None:
        """Take a part away."""
        home = self._home(part)
        home.parts.remove(part)
        home.due = True

    @contextlib.contextmanager
    def instead(self, part: Part, of: Container[Part]) -> Iterator[None]:
        """Within this context a part stands at the end, in the place of some of the last ones."""
        last = self._segments[-1]
        before = last.parts
        last.parts, last.due = [*(one for one in before if one not in of), part], True
        try:
            yield
        finally:
            last.parts, last.due = before, True

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Within this context a tool's displays stand below what is there, above what follows."""
        with self._outputs.taking(self._place) as taken:
            try:
                yield
            finally:
                self._is_cut = self._is_cut or bool(taken)

    def is_time(self) -> bool:
        """Whether a refresh would do anything, if there is anything to do."""
        return not self or self._clock() - self._shown >= self._pause

    def refresh(self, sign: str, *, now: bool = False) -> None:
        """Bring the screen up to date, if it is time; `sign` is the sign of life."""
        with self._outputs.lock:
            self._refresh(sign, now=now)

    def _refresh(self, sign: str, *, now: bool) -> None:
        last = self._segments[-1]
        if not self:
            self._sign = sign
            self._send(last)
        began = self._clock()
        last.due |= sign != self._sign
        due = [segment for segment in self._segments if segment.due]
        if not due or (not now and began - self._shown < self._pause):
            return
        self._sign = sign
        size = sum(map(self._send, due))
        self._shown = self._clock()
        self._pause = max(EVERY, 20 * (self._shown - began), size / BYTES_A_SECOND)

    def end(self, bundle: dict[str, str]) -> None:
        """Leave a mime bundle in the place of the widget below; nothing is added any more above."""
        self._place()
        self._outputs.end(bundle)

    def _place(self) -> None:
        """Give all parts their place, before anything stands below them."""
        for segment in self._segments:
            if segment.handle is None:
                self._send(segment)

    def _send(self, segment: _Segment) -> int:
        """Show a segment as it stands; return how many characters that took."""
        bundle = segment.bundle(self._sign if segment is self._segments[-1] else "")
        segment.due = False
        self._changed = None
        if segment.handle is None:
            segment.handle = self._outputs.put(bundle)
        else:
            segment.handle.show(bundle)
        segment.size = sum(map(len, bundle.values()))
        return segment.size

    def _home(self, part: Part) -> _Segment:
        return next(one for one in reversed(self._segments) if part in one.parts)
