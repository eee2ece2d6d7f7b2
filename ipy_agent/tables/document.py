"""A session as one document: its totals, its turns, and the conversation.

Rule 1: every text of a model, a tool or a user goes through `rendering`.
Rule 2: self-contained and without scripts; a page allows itself nothing but its own styles,
and in Markdown what was said stands in fences, since nobody knows who will render it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

from ipy_agent import rendering
from ipy_agent.protocol.items import is_call, text
from ipy_agent.records import CellRecord, MessageRecord, Recorder, ToolRecord, TurnRecord
from ipy_agent.secrets import learn
from ipy_agent.tables.columns import COLUMNS, excerpt
from ipy_agent.tables.frames import ended, total
from ipy_agent.tables.lines import Line, Totals
from ipy_agent.tables.picture import summary, turns_html
from ipy_agent.tables.prices import cost_usd

__all__ = ["html", "markdown"]

TITLE = "An agent's session"
NAMES = 3
"""How many models are named at the top."""


def html(records: Recorder) -> bytes:
    """Return the session as a page."""
    learn()
    body = [f"<h1>{TITLE}</h1><p>{rendering.escape(_facts(records))}</p>"]
    body.append(f"<h2>Turns</h2><div class=wide>{turns_html(*_lines(records))}</div>")
    for heading, parts in _conversation(records):
        shown = "".join(part.html() for part in parts)
        body.append(f"<section><h2>{rendering.escape(heading)}</h2>{shown}</section>")
    return f"{_HEAD}{''.join(body)}</html>\n".encode()


def markdown(records: Recorder) -> bytes:
    """Return the session as Markdown."""
    learn()
    lines, totals = _lines(records)
    rows = [[column.text(line) for column in COLUMNS] for line in [*lines, totals.line]]
    table = [[column.title for column in COLUMNS], ["--:" for _ in COLUMNS], *rows]
    body = [f"# {TITLE}", _literal(_facts(records)), "## Turns"]
    body.append(_literal(summary(totals, len(lines))))
    body.append("\n".join(f"| {' | '.join(map(_literal, row))} |" for row in table))
    for heading, parts in _conversation(records):
        body += [f"## {_literal(heading)}", *(part.markdown() for part in parts)]
    return ("\n\n".join(body) + "\n").encode()


class _Part(NamedTuple):
    """Something that was said, or a tool call with what came of it."""

    who: str
    said: str
    language: str = ""
    output: str | None = None

    def html(self) -> str:
        if self.output is not None:
            called = rendering.code(self.said, self.language or "text")
            body = called + rendering.code(self.output)
            return rendering.fold(self.who, body)
        if self.who == "assistant":
            return rendering.markdown(self.said)
        return f"<h3>{rendering.escape(self.who)}</h3><pre>{rendering.escape(self.said)}</pre>"

    def markdown(self) -> str:
        shown = rendering.plain if self.output is None else rendering.listing
        fences = [_fence(shown(self.said), self.language)]
        if self.output is not None:
            fences.append(_fence(rendering.plain(self.output)))
        return "\n\n".join([f"**{_literal(self.who)}**", *fences])


def _conversation(records: Recorder) -> Iterator[tuple[str, Iterator[_Part]]]:
    """Yield what was said in each cell run, under a heading."""
    runs = {run.cell: run for run in list(records.cells)}
    tools = {(tool.turn, tool.call_id): tool for tool in list(records.tools)}
    messages = sorted(records.messages, key=lambda row: row.cell)
    for cell, rows in itertools.groupby(messages, lambda row: row.cell):
        yield " · ".join(_heading(cell, runs.get(cell))), _parts(rows, tools)


def _heading(cell: int, run: CellRecord | None) -> Iterator[str]:
    yield f"Cell run {cell}"
    if run is not None and run.elapsed_ms is not None:
        yield f"{run.elapsed_ms / 1000:,.1f} s"
        yield run.status
    if run is not None and run.standing not in (None, "live"):
        yield str(run.standing)


def _parts(
    rows: Iterator[MessageRecord], tools: dict[tuple[int, str], ToolRecord]
) -> Iterator[_Part]:
    shown = set()
    for row in rows:
        kind, item = row.item.get("type", "message"), row.item
        tool = tools.get((row.turn, str(item.get("call_id"))))
        if kind == "message":
            yield _Part(str(item.get("role", "")), text(item))
        elif is_call(item) and tool is not None:
            shown.add(tool.call_id)
            took = "" if tool.duration_ms is None else f" · {tool.duration_ms:,.0f} ms"
            source = rendering.source(tool.name, tool.arguments)
            yield _Part(f"{tool.name}{took} · {tool.status}", *source, tool.output)
        elif item.get("call_id") not in shown and text(item):
            yield _Part(str(kind), text(item))


def _lines(records: Recorder) -> tuple[list[Line], Totals]:
    totals, rows = Totals(), ended(records.turns)
    for row in rows:
        totals.add(row)
    return [Line.of(row) for row in rows], totals


def _facts(records: Recorder) -> str:
    """Return who answered, when, and for how much, in one line."""
    rows = ended(records.turns)
    names = dict.fromkeys(f"{_model(row)} at {row.endpoint}" for row in rows)
    facts = [", ".join([*list(names)[:NAMES], *_rest(len(names))])] if names else []
    facts += [f"{row.started_at:%Y-%m-%d %H:%M} UTC" for row in rows[:1]]
    facts.append(_counted(len(ended(records.cells)), "cell run"))
    facts.append(_counted(len(records.tools), "tool call"))
    cost = total(cost_usd(row) for row in rows)
    return " · ".join(facts if cost is None else [*facts, f"US$ {cost:,.4f}"])


def _model(row: TurnRecord) -> str:
    return excerpt(row.model) if row.model else "a model"


def _rest(count: int) -> list[str]:
    return [f"{count - NAMES:,} more"] if count > NAMES else []


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _literal(said: str) -> str:
    """Return a text on one line that Markdown leaves as it is."""
    return re.sub(r"([\\`*_\[\]<>|~&$#])", r"\\\1", " ".join(rendering.plain(said).split()))


def _fence(shown: str, language: str = "") -> str:
    """Return a text in a fence that it cannot end."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence}{language}\n{shown}\n{fence}"


_HEAD = f"""<!doctype html>
<html lang="en"><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width"><title>{TITLE}</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }}
body {{ margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
h3 {{ font-size: 0.9rem; margin: 1rem 0 0; opacity: 0.7; }}
pre {{ background: #8882; border-radius: 4px; overflow-x: auto; padding: 0.6rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }}
section {{ border-top: 1px solid #8884; }} summary {{ cursor: pointer; opacity: 0.8; }}
section table {{ border-collapse: collapse; }}
section td, section th {{ border-bottom: 1px solid #8884; padding: 0.2rem 0.6rem; }}
section > pre {{ font: inherit; }} :not(pre) > code {{ background: #8882; padding: 0 0.2rem; }}
.wide {{ overflow-x: auto; }} .wide td, .wide th {{ padding: 0.25rem 0.5rem; }}
</style>
"""
