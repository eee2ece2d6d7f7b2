"""One row asked: a run of its own that begins with what all rows share, and what came of it.

Rule 1: a row's failure is its own, and no reason to ask it again: it may have been answered.
Only what was refused for lack of room is, since that was not.
Rule 2: a turn is counted when it begins and when it ends, however its row does: a limit is kept
between turns.
Rule 3: what no row can get past (no key, no endpoint, no such model, a budget that is used up)
ends all of them.
"""

from __future__ import annotations

import asyncio
import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from ipy_agent.agent.approval import Allowances, Question, Reply
from ipy_agent.agent.calls import Worker
from ipy_agent.agent.conversation import Conversation
from ipy_agent.agent.loop import Ask, Said, answer
from ipy_agent.agent.plan import Plan
from ipy_agent.agent.runs import Carry
from ipy_agent.errors import (
    AgentError,
    AuthenticationFailed,
    BudgetExceeded,
    ConnectionFailed,
    MissingExtra,
    ModelUnavailable,
    ResponseFailed,
    UpgradeRefused,
    UsageError,
)
from ipy_agent.fleet.outcome import RowOutcome
from ipy_agent.fleet.pace import Pace
from ipy_agent.protocol.events import Event
from ipy_agent.protocol.items import Chain
from ipy_agent.records import Recorder, TurnRecord
from ipy_agent.tables.frames import total
from ipy_agent.tables.prices import cost_usd
from ipy_agent.trace import Notice, Throttled, Trace, TurnBegan, TurnEnded
from ipy_agent.transport import Transport

__all__ = ["Asking", "Ended", "Stopped"]

BUSY = 429
BUSY_TRIES, FIRST_PAUSE, LONGEST_PAUSE = 8, 1.0, 60.0

_HOPELESS = (
    AuthenticationFailed,
    ConnectionFailed,
    MissingExtra,
    ModelUnavailable,
    UpgradeRefused,
    UsageError,
)
_FORBIDDEN = frozenset({401, 403})


class Ended(Exception):
    """All rows end here: `error` says why."""

    def __init__(self, error: AgentError) -> None:
        super().__init__(str(error))
        self.error = error


class Stopped(Exception):
    """The user stopped a row's tool, and with it all rows."""


class Asking:
    """Asks rows what a plan asks.

    Args:
        plan: its target, settings, tools and shape.
        shared: what every row begins with.
        way: the transport.
        perform: carries a call out, on the caller's thread.
        approve: asks the user there.
        allowances: the tools that run without a question.
        pace: is told when the endpoint has too much to do.
        check: raises before a turn that the limits do not allow.
        charge: is told of every turn, when it begins and when it ended.
        tell: is told what the user should know.
    """

    def __init__(
        self,
        plan: Plan,
        shared: Chain,
        way: Transport,
        *,
        perform: Carry,
        approve: Callable[[Question], Reply],
        allowances: Allowances,
        pace: Pace,
        check: Callable[[], None],
        charge: Callable[[TurnRecord], None],
        tell: Callable[[Trace], None],
    ) -> None:
        self._plan = plan
        self._shared = shared
        self._way = way
        self._perform = perform
        self._approve = approve
        self._allowances = allowances
        self._pace = pace
        self._limits = check
        self._charge = charge
        self._tell = tell

    async def outcome(self, prompt: str, lane: str) -> RowOutcome:
        """Ask a row on a lane of its own, and return what came of it.

        Raises:
            Ended: no other row would get any further.
            Stopped: the user stopped it.
        """
        pause = FIRST_PAUSE
        for tries in range(1, BUSY_TRIES + 1):
            records = Recorder()
            said, error = await self._asked(prompt, lane, records)
            if error is None or not _is_busy(error, records) or tries == BUSY_TRIES:
                break
            self._pace.throttle(pause)
            await self._pace.again()
            pause = min(2 * pause, LONGEST_PAUSE)
        return _told(records, said, error)

    async def _asked(
        self, prompt: str, lane: str, records: Recorder
    ) -> tuple[Said | None, AgentError | None]:
        plan, record = self._plan, records.listener()
        worker = Worker(
            plan.tools, plan.settings.mode, self._approve, plan.target, self._allowances
        )

        def hear(event: Event | Trace) -> None:
            record(event)
            if event.KIND != "trace":  # as most are
                return
            if isinstance(event, TurnBegan | TurnEnded):
                self._charge(records.turns[-1])
            elif isinstance(event, Throttled):
                self._pace.throttle(event.seconds)
            elif isinstance(event, Notice) and event.lasting:
                self._tell(event)

        ask = Ask(
            prompt=prompt,
            fields=plan.fields,
            endpoint=plan.target.name,
            budget_turns=int(plan.settings.budget_turns or sys.maxsize),
            budget_seconds=plan.settings.budget_seconds or math.inf,
            shape=plan.shape,
            early=worker.begins_early,
            check=self._check,
            cache_minimum=plan.target.cache_minimum,
            shared=self._shared,
        )
        perform = functools.partial(self._perform, by=worker)
        try:
            said = await answer(ask, Conversation(lane, self._shared), self._way, perform, hear)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise Stopped from None  # by itself a cancelled task of a group ends no other
        except AgentError as error:
            if _is_hopeless(error):
                raise Ended(error) from None
            return None, error
        return said, None

    def _check(self) -> None:
        try:
            self._limits()
        except (BudgetExceeded, UsageError) as error:
            raise Ended(error) from None


def _is_busy(error: AgentError, records: Recorder) -> bool:
    """Whether nothing came of a row but that the endpoint has no room for it now."""
    refused = isinstance(error, ResponseFailed) and error.status == BUSY
    return refused and len(records.turns) == 1


def _is_hopeless(error: AgentError) -> bool:
    if isinstance(error, ResponseFailed):
        return error.status in _FORBIDDEN or error.code == "model_not_found"
    return isinstance(error, _HOPELESS)


def _told(records: Recorder, said: Said | None, error: AgentError | None) -> RowOutcome:
    turns, (cell,) = records.turns, records.cells
    summed: dict[str, Any] = {
        name: total(getattr(turn, name) for turn in turns)
        for name in ("input_tokens", "cached_tokens", "output_tokens")
    }
    outcome = RowOutcome(
        text=None if said is None else said.text,
        status="failed" if said is None else cell.status,
        error=None if error is None else error.line,
        latency_ms=cell.elapsed_ms,
        cost_usd=total(map(cost_usd, turns)),
        **summed,
    )
    cut = outcome.status == "incomplete" and outcome.error is None
    return msgspec.structs.replace(outcome, error=_CUT) if cut else outcome


_CUT = "the answer was cut off (max_output_tokens, or the endpoint's own limit)"
