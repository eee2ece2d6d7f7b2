"""Ask, run the tools, ask again, until the model answers without a call.

Rule 1: tools run only after the response's terminal event, and only if it completed; so a
turn that is sent again repeats no side effect. One without side effects may begin when its call
is complete, if nothing with side effects was called before it; its output waits (`EarlyCalls`).
Rule 2: however a run ends, the conversation can be sent again: a run that never got an
answer takes its prompt back, any other leaves no call without its output.
Rule 3: an interrupt ends a run as a cancellation; a KeyboardInterrupt would end the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import msgspec

from ipy_agent.agent.calls import SAME_CALLS
from ipy_agent.agent.conversation import Conversation
from ipy_agent.agent.early import EarlyCalls, Hear, Perform
from ipy_agent.agent.redaction import heard
from ipy_agent.agent.schemas import Misfit, Shape
from ipy_agent.errors import AnswerMisfit, BudgetExceeded, ProtocolError
from ipy_agent.protocol.events import TERMINAL, Error, ResponseFailedEvent
from ipy_agent.protocol.items import CALLS, Chain, Item, calls, is_call, output_of, text, user
from ipy_agent.protocol.requests import Fields, Request
from ipy_agent.protocol.response import Reason, Response, failed
from ipy_agent.trace import (
    ItemsAdded,
    Notice,
    RunBegan,
    RunEnded,
    TurnBegan,
    TurnEnded,
)
from ipy_agent.transport import Transport

__all__ = ["Ask", "Said", "answer", "warm"]

RETRIES = 1
"""How often a model may try again to say what fits the schema."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is asked to do, and how far it may go.

    `background` stands before the prompt; `cell_id` and `follows` are for the records. `shape` is
    what the answer has to be; `early` says which calls may begin before their response is
    complete; `check` raises before a turn that other limits do not allow; `cache_minimum` is the
    endpoint's; `shared` is what other runs begin with too.
    """

    prompt: str
    fields: Fields
    endpoint: str
    budget_turns: int
    budget_seconds: float
    pictures: list[Item] = []
    background: str = ""
    cell_id: str | None = None
    follows: int | None = None
    shape: Shape | None = None
    early: Callable[[Item], bool] = lambda _: False
    check: Callable[[], None] = lambda: None
    cache_minimum: int = 0
    shared: Chain | None = None


class Said(msgspec.Struct, frozen=True):
    """The model's last words, and what they stand for: the text itself without a shape."""

    text: str
    value: Any


async def answer(
    ask: Ask, conversation: Conversation, transport: Transport, perform: Perform, hear: Hear
) -> Said:
    """Carry out a cell run and return the model's last words.

    Raises:
        AgentError: as it happened, once the conversation and the listeners know.
    """
    before, status = conversation.items, "failed"
    limit = asyncio.timeout(ask.budget_seconds)
    hear(_began(ask, conversation.branch))
    try:
        new, misfits = [user(ask.prompt, ask.pictures, ask.background)], 0
        conversation.add(new)
        async with limit:
            for left in reversed(range(ask.budget_turns)):
                ask.check()
                response = await _turn(ask, new, conversation, transport, perform, hear, limit)
                output, new = response.output or [], []
                status = response.status or "completed"
                if status != "incomplete" and calls(output):
                    continue
                said = "\n\n".join(text(item) for item in output if item["type"] == "message")
                try:
                    return Said(said, ask.shape.parse(said) if ask.shape else said)
                except Misfit as misfit:
                    misfits += 1
                    if misfits > RETRIES or status == "incomplete" or not left:
                        raise _misfit(misfit, said) from None
                    hear(Notice(text="the answer does not fit: asking once more", lasting=True))
                    new = [user(f"That does not fit the schema: {misfit}. Answer again.")]
                    conversation.add(new)
        turns = f"{ask.budget_turns} turn{'' if ask.budget_turns == 1 else 's'}"
        raise BudgetExceeded(
            f"the run took {turns}: raise budget_turns (%agent budget --turns N), or go on"
        )
    except BaseException as error:
        status = _status(error, limit)
        if isinstance(error, TimeoutError) and limit.expired():
            seconds = f"{ask.budget_seconds:g} s"
            raise BudgetExceeded(
                f"the run took {seconds}: raise budget_seconds "
                "(%agent budget --seconds S), or go on"
            ) from None
        raise
    finally:
        answered = status in ("completed", "incomplete")
        if not answered and len(conversation.items) == len(before) + 1:
            conversation.back_to(before)
        hear(RunEnded(status=status))


async def warm(
    fields: Fields, conversation: Conversation, transport: Transport, hear: Hear
) -> None:
    """Have the endpoint take in what has been said so far, without an answer.

    Raises:
        AgentError: as for a turn.
    """
    request = Request(
        fields=fields,
        input=conversation.items,
        stream_id=conversation.stream_id,
        generate=False,
    )
    await _exchange(transport, request, hear)


async def _turn(
    ask: Ask,
    new: list[Item],
    conversation: Conversation,
    transport: Transport,
    perform: Perform,
    hear: Hear,
    limit: asyncio.Timeout,
) -> Response:
    """Ask once and run what the model calls."""
    status = "failed"
    hear(TurnBegan(model=ask.fields.values.get("model")))
    hear(ItemsAdded(items=new))
    early = EarlyCalls(ask.early, perform, hear)
    try:
        request = Request(
            fields=ask.fields,
            input=conversation.items,
            stream_id=conversation.stream_id,
            shared=ask.shared,
        )
        response = await _exchange(transport, request, early.hear)
        output = response.output or []
        hear(ItemsAdded(items=conversation.add(output)))
        conversation.counted(_tokens(response))
        if response.status != "incomplete":
            for call in calls(output):
                outcome = await early.outcome(call)
                said = [output_of(call["call_id"], outcome.output, call["type"])]
                conversation.add(said)
                hear(ItemsAdded(items=said))
                if outcome.ended.status == "interrupted":
                    raise asyncio.CancelledError
                if outcome.stuck:
                    raise _stuck(call)
        status = response.status or "completed"
    except BaseException as error:
        status = _status(error, limit)
        raise
    else:
        return response
    finally:
        await early.close()
        if unanswered := conversation.settle("not run"):
            hear(ItemsAdded(items=unanswered))
        hear(TurnEnded(status=status, said=conversation.items))


def _began(ask: Ask, branch: str) -> RunBegan:
    return RunBegan(
        prompt=ask.prompt,
        endpoint=ask.endpoint,
        branch=branch,
        cell_id=ask.cell_id,
        follows=ask.follows,
        cache_minimum=ask.cache_minimum,
    )


async def _exchange(transport: Transport, request: Request, hear: Hear) -> Response:
    """Pass on what the endpoint says and return its response.

    Raises:
        ResponseFailed: the endpoint refused or failed it.
        TransportError: the way broke, or led to something that does not speak this protocol.
    """
    response: Response | None = None
    failure: Reason | None = None
    status: int | None = None
    async with aclosing(heard(transport.stream(request))) as stream:
        async for event in stream:
            hear(event)
            if event.KIND == "progress":  # which nearly all are
                continue
            if isinstance(event, Error):
                failure, status = event.reason, event.status
            elif isinstance(event, ResponseFailedEvent):
                failure = _reason(event.response.error)
            elif isinstance(event, TERMINAL):
                response = event.response
    if failure is not None:
        raise failed(failure, status)
    if response is None:
        raise ProtocolError("the endpoint ended a response without saying how", sent=True)
    if not all(map(_is_sound, response.output or ())):
        raise ProtocolError("the endpoint sent an item without what it must have", sent=True)
    return response


def _is_sound(item: Item) -> bool:
    wanted = ["type", "call_id", "name", CALLS[item["type"]]] if is_call(item) else ["type"]
    return all(isinstance(item.get(name), str) for name in wanted)


def _tokens(response: Response) -> int | None:
    usage = response.usage
    return None if usage is None else usage.total_tokens or usage.input_tokens


def _stuck(call: Item) -> BudgetExceeded:
    return BudgetExceeded(
        f"the model made the same call of {call['name'][:80]} {SAME_CALLS} times in a row: "
        "ask the next cell to go on in another way",
        code="same_call",
    )


def _misfit(misfit: Misfit, said: str) -> AnswerMisfit:
    return AnswerMisfit(
        f"the answer does not fit the schema ({misfit}): its text is in the error's `text`",
        text=said,
    )


def _reason(error: Item | None) -> Reason:
    try:
        return msgspec.convert(error or {}, Reason)
    except msgspec.ValidationError:
        return Reason()


def _status(error: BaseException, limit: asyncio.Timeout) -> str:
    stopped = isinstance(error, asyncio.CancelledError) and not limit.expired()
    return "interrupted" if stopped else "failed"
