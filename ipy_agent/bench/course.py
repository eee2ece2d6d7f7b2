"""One loop: a session of its own that reads a report, page by page, a tool call a turn.

Each request has the model call the tool, a page says which one is next, and the run ends by its
budget of turns. So all loops say the same, whatever their mode and however small the model.

Rule 1: what is measured is `Session.run`, as a user has it, with its recorder's own rows.
Rule 2: no loop finds another's words in a cache: the first thing said is a number of its own,
and each has as many digits.
Rule 3: the tool is known to this session alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from ipy_agent.agent.runs import Quiet
from ipy_agent.agent.tools import tool_of
from ipy_agent.bench.modes import Mode
from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import AgentError, BudgetExceeded, UpgradeRefused
from ipy_agent.protocol.events import Event
from ipy_agent.protocol.requests import Fields, Request
from ipy_agent.records import Recorder, TurnRecord
from ipy_agent.sessions import Session
from ipy_agent.tables.comparison import Loop
from ipy_agent.trace import Notice, Trace
from ipy_agent.transport import Stream, Transport
from ipy_agent.transport.address import Locate
from ipy_agent.transport.http import HttpTransport
from ipy_agent.transport.recovery import Recovery
from ipy_agent.transport.rehearsal import Rehearsal
from ipy_agent.transport.websocket import WebSocketTransport

__all__ = ["Course", "Lacking", "loop"]

_WAYS = {"http": HttpTransport, "websocket": WebSocketTransport}
_INSTRUCTIONS = "This is report {number}. You read it page by page."
_TOOL = "page"
_PROMPT = "Call page with number 1."
_NEXT = "Call page with number {number}."
_WORDS = ("the", "wind", "came", "from", "north", "and", "a", "sea", "was", "calm", "with", "birds")


class Course(NamedTuple):
    """What every loop does: so many turns, with a tool output of so many characters each."""

    turns: int
    chars: int
    model: str | None = None
    effort: str | None = None


class Lacking(AgentError):
    """The endpoint turned out not to have a mode."""

    code = "bench"


class _Watch(Quiet):
    """Tells what takes long, such as a server that starts."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def show(self, event: Event | Trace) -> None:
        if isinstance(event, Notice):
            self._tell(event.text)


def loop(
    course: Course,
    mode: tuple[str, Mode],
    endpoint: Endpoint,
    locate: Locate,
    tell: Callable[[str], None],
) -> Loop:
    """Carry out a loop in a mode, and return what was measured.

    Args:
        course: what is done.
        mode: its name, and how it goes.
        endpoint: whom to ask.
        locate: finds the server of an endpoint without an address.
        tell: is told what takes long.

    Raises:
        Lacking: the endpoint does not have this mode after all.
        AgentError: the loop did not come to its end.
    """
    name, how = mode
    target = dataclasses.replace(endpoint, hint_repeats=False, output_limit=course.chars + 100)
    page = tool_of(_page(course.chars), name=_TOOL)
    session = Session(
        target,
        transport=_transport(how, target, locate),
        toolbox={page.name: page},
        instructions=_INSTRUCTIONS.format(number=secrets.randbelow(900_000) + 100_000),
        model=course.model,
        effort=course.effort,
        mode="auto",
        store=how.store,
        parallel_tool_calls=False,
        context="off",
        budget_turns=course.turns,
        budget_seconds=None,
    )
    try:
        session.run(_PROMPT, front=_Watch(tell))
    except UpgradeRefused as refused:
        raise Lacking(f"{endpoint.name} has no WebSocket (HTTP {refused.status})") from None
    except BudgetExceeded:
        pass  # its turns are over; if it is another limit, there are less of them than asked for
    finally:
        session.close()
    records = session.records
    _check(course, how, endpoint, records)
    return Loop(mode=name, turns=records.turns, elapsed_ms=records.cells[0].elapsed_ms)


class _Compelling:
    """A transport whose every request has the model call the tool: small ones stop early."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._compelled = functools.lru_cache(maxsize=1)(_compelled)  # encoded once, as ever

    async def stream(self, request: Request) -> Stream:
        fields = self._compelled(request.fields)
        compelling = msgspec.structs.replace(request, fields=fields)
        async with contextlib.aclosing(self._transport.stream(compelling)) as stream:
            async for event in stream:
                yield event

    async def rehearse(self, request: Request) -> Rehearsal:
        return await self._transport.rehearse(request)

    def describe(self) -> str:
        return self._transport.describe()

    async def aclose(self) -> None:
        await self._transport.aclose()


def _compelled(fields: Fields) -> Fields:
    return Fields({**fields.values, "tool_choice": {"type": "function", "name": _TOOL}})


def _transport(mode: Mode, endpoint: Endpoint, locate: Locate) -> Transport:
    way: Any = _WAYS[mode.way]
    return _Compelling(Recovery(way(endpoint, locate=locate), endpoint))


def _page(chars: int) -> Callable[[int], str]:
    """Return a tool that says so many characters at each call, and what to call next."""
    calls: list[int] = []

    def page(number: int) -> str:
        """Read a page of the report. It says which page is next."""
        calls.append(number)
        last = _NEXT.format(number=len(calls) + 1)
        words = (_WORDS[(7 * len(calls) + at) % len(_WORDS)] for at in range(chars))
        filler = " ".join(words)[: max(0, chars - len(last) - 1)]
        return f"{filler} {last}"

    return page


def _check(course: Course, mode: Mode, endpoint: Endpoint, records: Recorder) -> None:
    """See to it that what was measured is what its name says."""
    rows: Sequence[TurnRecord] = records.turns
    called = {tool.turn for tool in records.tools if tool.status == "completed"}
    if called != {*range(1, course.turns + 1)} or len(records.tools) != course.turns:
        model = next((row.model for row in rows if row.model), "its model")
        raise AgentError(
            f"{model} at {endpoint.name} called the tool in {len(called)} of {course.turns} "
            "turns: take a model that calls tools (-m MODEL)",
            code="bench",
        )
    if {row.transport for row in rows} != {mode.way}:
        raise Lacking(f"{endpoint.name} was not reached by {mode.way}")
    if mode.store and not all(row.held_items for row in rows[1:]):
        raise Lacking(f"{endpoint.name} does not keep the responses that it was asked to store")
