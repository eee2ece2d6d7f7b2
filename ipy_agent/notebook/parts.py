"""The parts that a cell's answer is made of, each as HTML and as plain text.

Rule 1: nothing that a model or a tool said leaves here but through `rendering`.
Rule 2: a part is made at no cost, and drawn when the screen is: a tool may be waiting to run.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Protocol

import msgspec

from ipy_agent import rendering
from ipy_agent.agent.tools import bounded
from ipy_agent.protocol.items import Item, is_call
from ipy_agent.records import Recorder, TurnRecord
from ipy_agent.rendering import Growing
from ipy_agent.tables.columns import rate
from ipy_agent.tables.prices import cost_usd
from ipy_agent.trace import ToolBegan, ToolEnded

__all__ = [
    "SHOWN",
    "SUPERSEDED",
    "Call",
    "Document",
    "Footer",
    "Part",
    "Remark",
    "Thoughts",
    "kinds",
    "row_of",
    "source",
    "summary",
]

SHOWN = 4_000
"""How many characters of a tool's output a user is shown."""


class Part(Protocol):
    """One thing on the screen."""

    def html(self) -> str: ...
    def plain(self) -> str: ...


class Call:
    """A tool call: its code while it runs, its output when it ended. `kind` is its item's type."""

    def __init__(self, began: ToolBegan, kind: str | None) -> None:
        self.began = began
        self.ended: ToolEnded | None = None
        self._is_over = False
        self._kind = kind

    def cut_off(self) -> None:
        """Take note that no output will come."""
        self._is_over = True

    def html(self) -> str:
        said, language = self._source
        body = rendering.code(said, language or "text")
        if self.ended is not None:
            body += rendering.code(bounded(self.ended.output, SHOWN))
        return rendering.fold(self._title(), body, open=self.ended is None and not self._is_over)

    def plain(self) -> str:
        said = [rendering.plain(f"[{self._title()}]"), rendering.listing(self._source[0])]
        if self.ended is not None:
            said.append(rendering.plain(f"-> {bounded(self.ended.output, SHOWN)}"))
        return "\n".join(said)

    @functools.cached_property
    def _source(self) -> tuple[str, str]:
        return source(self.began, self._kind)

    def _title(self) -> str:
        if self.ended is None:
            return f"{self.began.name} · interrupted" if self._is_over else f"{self.began.name} …"
        took, status = self.ended.duration_ms, self.ended.status
        return self.began.name + "".join(
            (
                "" if took is None else f" · {took:,.0f} ms",
                "" if status == "completed" else f" · {status}",
            )
        )


class Thoughts:
    """The summary of a model's thoughts, folded: who wants to know unfolds it."""

    def __init__(self, text: str = "") -> None:
        self._said = Growing(text)
        self._section: int | None = None

    @property
    def text(self) -> str:
        """All that arrived; an empty line is between two sections."""
        return self._said.text

    def add(self, piece: str, section: int) -> None:
        """Append a piece of a section."""
        if self._section not in (None, section):
            self._said.add("\n\n")
        self._section = section
        self._said.add(piece)

    def html(self) -> str:
        return rendering.fold("thoughts", self._said.html())

    def plain(self) -> str:
        return f"[thoughts] {self._said.plain()}"


class Document(Growing):
    """An answer that was asked for as JSON: laid out when it is whole, and open to be folded.

    What turns out to be something else is shown as any answer.
    """

    def html(self) -> str:
        if not self._is_json():
            return super().html()
        return rendering.fold("json", rendering.code(self._tidy(), "json"), open=True)

    def plain(self) -> str:
        return rendering.plain(self._tidy()) if self._is_json() else super().plain()

    def _is_json(self) -> bool:
        return self.text.lstrip().startswith("{")

    def _tidy(self) -> str:
        try:
            return msgspec.json.format(self.text, indent=2)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            return self.text


SUPERSEDED = "an answer broke off here, and was asked for again"


class Remark:
    """A line of ours that stays, such as which way the answer came."""

    def __init__(self, text: str) -> None:
        self.text = text

    def html(self) -> str:
        return f"<div {_SMALL}>{rendering.escape(self.text)}</div>"

    def plain(self) -> str:
        return rendering.plain(self.text)


_SMALL = f'class="{rendering.NO_MATH}" style="font-size:85%;opacity:.7"'


class Footer:
    """What a turn took: the numbers of its row."""

    def __init__(self, row: TurnRecord) -> None:
        self._row = row

    def html(self) -> str:
        return self._remark.html()

    def plain(self) -> str:
        return f"[{self._remark.plain()}]"

    @functools.cached_property
    def _remark(self) -> Remark:
        row, tokens = self._row, []
        told = [f"turn {row.turn}"]
        if row.latency_ms is not None:
            told.append(f"{row.latency_ms / 1000:,.2f} s")
        if row.tool_ms is not None:
            told.append(f"tools {row.tool_ms / 1000:,.2f} s")
        if row.input_tokens is not None:
            cached = "" if row.hit_rate is None else f" ({rate(row.hit_rate)} cached)"
            tokens.append(f"{row.input_tokens:,} in{cached}")
        if row.output_tokens is not None:
            tokens.append(f"{row.output_tokens:,} out")
        if tokens:
            told.append(f"tokens: {', '.join(tokens)}")
        if (cost := cost_usd(row)) is not None:
            told.append(f"US$ {cost:,.4f}")
        return Remark(" · ".join(told))


def row_of(recorder: Recorder, response_id: str | None) -> TurnRecord | None:
    """Return the row of the turn that a response ended; it is among the last ones."""
    last = reversed(recorder.turns[-_NEAR:])
    return next((row for row in last if row.response_id and row.response_id == response_id), None)


_NEAR = 50
"""How many turns may have begun on other branches since a response came."""


def source(began: ToolBegan, kind: str | None) -> tuple[str, str]:
    """Return what a tool is called with, and its language: a custom tool's text as it is."""
    if kind == "custom_tool_call":
        return began.arguments, ""
    return rendering.source(began.name, began.arguments)


def kinds(items: Iterable[Item]) -> dict[str, str]:
    """Return the types of the calls among `items`, by their ids."""
    return {
        str(item["call_id"]): item["type"] for item in items if is_call(item) and "call_id" in item
    }


def summary(item: Item) -> str:
    """Return the text of a reasoning item's summary; nothing, if it has none."""
    told = item.get("summary")
    sections = [part for part in told if isinstance(part, dict)] if isinstance(told, list) else []
    return "\n\n".join(str(section.get("text") or "") for section in sections)
