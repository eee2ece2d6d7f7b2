"""A model's call of a tool, from its arguments to its output. Runs on the user's thread.

Whatever happens, a call ends in one output: the model's mistakes and the tool's exceptions are
told to the model, a refusal too. Only an interrupt also ends the run, and a model that makes one
call over and over.

Rule: an output is redacted here, before it is bounded and before anything is made of it. A tool
that prints the environment tells its keys neither to the notebook nor to the model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import msgspec

from ipy_agent.agent.approval import Allowances, Question, Reply, Verdict, question, verdict
from ipy_agent.agent.reprs import told_of
from ipy_agent.agent.tools import BadArguments, Result, Tool, result_of
from ipy_agent.coroutines import settled
from ipy_agent.endpoints import Endpoint
from ipy_agent.protocol.items import CALLS, Item
from ipy_agent.secrets import learn, redacted
from ipy_agent.settings import Mode
from ipy_agent.trace import ToolEnded

__all__ = ["SAME_CALLS", "Outcome", "Worker", "cut_off", "refused"]

INTERRUPTED = "interrupted by the user; side effects unknown"
CUT_OFF = "cut off by the end of the run; side effects unknown"
SAME_CALLS = 5
"""At which time in a row the same call ends the run: its model goes round in circles."""
STUCK = f"not run: this same call was made {SAME_CALLS} times in a row, and the run ends here"
NOBODY = "not run: nobody is there to allow it; only the user can change that"


class Outcome(msgspec.Struct, frozen=True):
    """What came of a call: the output for the model, and the row for the records.

    `stuck` says that the model made the same call too often in a row.
    """

    output: str | list[Item]
    ended: ToolEnded
    stuck: bool = False


class _Run(msgspec.Struct, frozen=True):
    """How a call went."""

    result: Result
    status: str
    approval: str = "none"
    approval_ms: float | None = None
    duration_ms: float | None = None


class Worker:
    """Carries out the calls of one run.

    Args:
        tools: those on offer.
        mode: which of them run, and which after a question.
        approve: asks the user.
        endpoint: how much of an output its model is shown, and in which form.
        allowances: which tools run without the question, and where a tool that the user allows
            at a question is noted.

    Attributes:
        refused: whether a call was: asked again, the same prompt may come to something else.
    """

    def __init__(
        self,
        tools: Mapping[str, Tool],
        mode: Mode,
        approve: Callable[[Question], Reply],
        endpoint: Endpoint,
        allowances: Allowances | None = None,
    ) -> None:
        self._tools = tools
        self._mode: Mode = mode
        self._approve = approve
        self._endpoint = endpoint
        self._allowances = allowances or Allowances()
        self._previous: tuple[str, str] | None = None
        self._times = 0
        self.refused = False

    def carry_out(self, call: Item, wanted: Callable[[], bool] = lambda: True) -> Outcome:
        """Return the outcome of a `function_call` or `custom_tool_call` item.

        `wanted` says whether the run still waits for it: a question may be open for long.
        """
        name, arguments = str(call.get("name")), _arguments(call)
        started_at = datetime.now(UTC)
        self._times = self._times + 1 if (name, arguments) == self._previous else 1
        stuck = self._times >= SAME_CALLS
        custom = call["type"] == "custom_tool_call"
        run = _failed(STUCK) if stuck else self._run(name, arguments, wanted, custom=custom)
        learn()  # what ran may have brought secrets into the environment
        result, shown = run.result, redacted(run.result.text)
        if shown is not result.text:
            result = msgspec.structs.replace(result, text=shown)
        self._previous = (name, arguments)
        self.refused = self.refused or run.status == "refused"
        output = result.output(self._endpoint.output_limit, images=bool(self._endpoint.images))
        return Outcome(
            output=output,
            ended=ToolEnded(
                call_id=call["call_id"],
                name=name,
                arguments=arguments,
                output=result.text,
                started_at=started_at,
                duration_ms=run.duration_ms,
                approval=run.approval,
                approval_ms=run.approval_ms,
                status=run.status,
            ),
            stuck=stuck,
        )

    def begins_early(self, call: Item) -> bool:
        """Whether a call may run before its response is complete: it changes nothing.

        A call of a tool that is not there may not: there is nothing to run.
        """
        tool = self._tools.get(str(call.get("name")))
        return tool is not None and tool.read_only and verdict(tool, self._mode) is Verdict.RUN

    def _run(self, name: str, arguments: str, wanted: Callable[[], bool], *, custom: bool) -> _Run:
        tool = self._tools.get(name)
        if tool is None:
            there = ", ".join(self._tools) or "none"
            return _failed(f"there is no tool {name!r}; the tools are: {there}")
        if tool.custom and not custom:
            return _failed(f"{name} takes a plain text, not JSON: call it as a custom tool")
        try:
            bound = tool.bind(arguments)
        except BadArguments as error:
            return _failed(str(error))
        if self._endpoint.hint_repeats and (name, arguments) == self._previous:
            return _failed(
                "this is the call that you just made, and its result would be the same: "
                "use the result above to answer, or make a different call"
            )
        said = verdict(tool, self._mode)
        if said is Verdict.REFUSE:
            return _refused(f"not run: {name} has side effects and the mode is read")
        if said is Verdict.RUN:
            return _ran(tool, bound, "auto", None)
        if self._allowances.use(name):
            return _ran(tool, bound, "allowed", None)
        return self._ask(tool, arguments, bound, wanted)

    def _ask(
        self, tool: Tool, arguments: str, bound: dict[str, object], wanted: Callable[[], bool]
    ) -> _Run:
        """Run a call if the user says so."""
        began = time.perf_counter()
        try:
            said = self._approve(question(tool, arguments))
        except KeyboardInterrupt:
            told = Result("not run: interrupted by the user", failed=True)
            return _Run(told, "interrupted", "no", _ms_since(began))
        waited = _ms_since(began)
        if said not in _YES:
            return _refused(NOBODY if said is Reply.NOBODY else "not run: the user said no", waited)
        if said is Reply.ALWAYS:
            self._allowances.allow(tool.name)
        if not wanted():
            told = Result("not run: the run ended before the answer came", failed=True)
            return _Run(told, "interrupted", "yes", waited)
        return _ran(tool, bound, "yes", waited)


_YES = (Reply.YES, Reply.ALWAYS)
"""The replies after which a call runs: after anything else that a front may say it does not."""


def refused(call: Item, why: str) -> Outcome:
    """Return the outcome of a call that must not be carried out."""
    ended = ToolEnded(
        call_id=call["call_id"],
        name=call["name"],
        arguments=_arguments(call),
        output=why,
        started_at=datetime.now(UTC),
        duration_ms=None,
        approval="none",
        approval_ms=None,
        status="refused",
    )
    return Outcome(output=why, ended=ended)


def cut_off(call: Item, started_at: datetime, duration_ms: float) -> Outcome:
    """Return the outcome of a call whose run ended before it did."""
    ended = ToolEnded(
        call_id=call["call_id"],
        name=call["name"],
        arguments=_arguments(call),
        output=CUT_OFF,
        started_at=started_at,
        duration_ms=duration_ms,
        approval="none",
        approval_ms=None,
        status="interrupted",
    )
    return Outcome(output=CUT_OFF, ended=ended)


def _arguments(call: Item) -> str:
    """Return what a tool is called with: JSON, where nothing is an empty object, or a text."""
    said = call.get(CALLS[call["type"]])
    return str(said or ("{}" if call["type"] == "function_call" else ""))


def _failed(text: str) -> _Run:
    return _Run(Result(text, failed=True), "failed")


def _refused(text: str, approval_ms: float | None = None) -> _Run:
    return _Run(Result(text, failed=True), "refused", "no", approval_ms)


def _ran(tool: Tool, bound: dict[str, object], approval: str, approval_ms: float | None) -> _Run:
    began = time.perf_counter()
    try:
        result = result_of(settled(tool.function(**bound)))
        status = "failed" if result.failed else "completed"
    except KeyboardInterrupt as interrupt:
        # Its arguments are what the tool has to say of what it did until then.
        said = [INTERRUPTED, *(one for one in interrupt.args if one and isinstance(one, str))]
        result, status = Result("\n".join(said), failed=True), "interrupted"
    except BaseException as error:  # noqa: BLE001 (whatever a tool raises goes to the model)
        result, status = Result(told_of(error), failed=True), "failed"
    return _Run(result, status, approval, approval_ms, _ms_since(began))


def _ms_since(began: float) -> float:
    return (time.perf_counter() - began) * 1_000
