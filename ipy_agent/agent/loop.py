"""Ask, run the tools, ask again, until the model answers without a call.

Rule 1: tools run only after the response's terminal event, and only if it completed; so a
turn that is sent again repeats no side effect.
Rule 2: however a run ends, the conversation can be sent again: a run that never got an
answer takes its prompt back, any other leaves no call without its output.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import msgspec

from ipy_agent.agent.calls import INTERRUPTED, Outcome
from ipy_agent.agent.conversation import Conversation
from ipy_agent.errors import BudgetExceeded, ProtocolError, ResponseFailed
from ipy_agent.protocol.events import (
    TERMINAL,
    Error,
    Event,
    Fields,
    Reason,
    Request,
    Response,
    ResponseFailedEvent,
)
from ipy_agent.protocol.items import Item, calls, output_of, text, user
from ipy_agent.trace import (
    ItemsAdded,
    RunBegan,
    RunEnded,
    ToolBegan,
    Trace,
    TurnBegan,
    TurnEnded,
)
from ipy_agent.transport import Transport

__all__ = ["Ask", "Hear", "Perform", "answer", "warm"]

Hear = Callable[[Event | Trace], None]
Perform = Callable[[Item], Awaitable[Outcome]]


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is asked to do, and how far it may go."""

    prompt: str
    fields: Fields
    endpoint: str
    budget_turns: int
    budget_seconds: float


async def answer(
    ask: Ask, conversation: Conversation, transport: Transport, perform: Perform, hear: Hear
) -> str:
    """Carry out a cell run and return the model's last words.

    Raises:
        AgentError: as it happened, once the conversation and the listeners know.
    """
    before, status = conversation.items, "failed"
    hear(RunBegan(prompt=ask.prompt, endpoint=ask.endpoint))
    try:
        new = [user(ask.prompt)]
        conversation.add(new)
        async with asyncio.timeout(ask.budget_seconds):
            for _ in range(ask.budget_turns):
                response = await _turn(ask, new, conversation, transport, perform, hear)
                output, new = response.output or [], []
                status = response.status or "completed"
                if status == "incomplete" or not calls(output):
                    return "\n\n".join(text(item) for item in output if item["type"] == "message")
        raise BudgetExceeded(f"the run took {ask.budget_turns} turns: raise budget_turns, or go on")
    except TimeoutError:
        status = "failed"
        raise BudgetExceeded(
            f"the run took {ask.budget_seconds:g} s: raise budget_seconds"
        ) from None
    except BaseException as error:
        status = _status(error)
        raise
    finally:
        if len(conversation.items) == len(before) + 1:
            conversation.back_to(before)
        hear(RunEnded(status=status))


async def warm(
    fields: Fields, conversation: Conversation, transport: Transport, hear: Hear
) -> None:
    """Have the endpoint take in what has been said so far, without an answer.

    Raises:
        AgentError: as for a turn.
    """
    await _exchange(
        transport, Request(fields=fields, input=conversation.items, generate=False), hear
    )


async def _turn(  # noqa: PLR0913 (the parts of a run, handed down whole)
    ask: Ask,
    new: list[Item],
    conversation: Conversation,
    transport: Transport,
    perform: Perform,
    hear: Hear,
) -> Response:
    """Ask once and run what the model calls."""
    status = "failed"
    hear(TurnBegan(model=ask.fields.values.get("model")))
    hear(ItemsAdded(items=new))
    try:
        request = Request(fields=ask.fields, input=conversation.items)
        response = await _exchange(transport, request, hear)
        output = response.output or []
        conversation.add(output)
        hear(ItemsAdded(items=output))
        if response.status != "incomplete":
            for call in calls(output):
                outcome = await _outcome(call, perform, hear)
                said = [output_of(call["call_id"], outcome.output)]
                conversation.add(said)
                hear(ItemsAdded(items=said))
                if outcome.ended.status == "interrupted":
                    # A KeyboardInterrupt in a task would end the loop's thread.
                    raise asyncio.CancelledError
        status = response.status or "completed"
    except BaseException as error:
        status = _status(error)
        raise
    else:
        return response
    finally:
        left = conversation.settle(INTERRUPTED if status == "interrupted" else "not run")
        hear(ItemsAdded(items=left))
        hear(TurnEnded(status=status))


async def _exchange(transport: Transport, request: Request, hear: Hear) -> Response:
    """Pass on what the endpoint says and return its response.

    Raises:
        ResponseFailed: the endpoint refused or failed it.
        TransportError: the way broke.
    """
    response: Response | None = None
    failure: Reason | None = None
    status: int | None = None
    async with aclosing(transport.stream(request)) as stream:
        async for event in stream:
            hear(event)
            if isinstance(event, Error):
                failure, status = event.reason, event.status
            elif isinstance(event, ResponseFailedEvent):
                failure = msgspec.convert(event.response.error or {}, Reason, strict=False)
            elif isinstance(event, TERMINAL):
                response = event.response
    if failure is not None:
        raise _failed(failure, status)
    if response is None:
        raise ProtocolError("the endpoint ended a response without saying how", sent=True)
    return response


async def _outcome(call: Item, perform: Perform, hear: Hear) -> Outcome:
    told = {"call_id": call["call_id"], "name": call["name"], "arguments": call["arguments"]}
    hear(ToolBegan(**told))
    outcome = await perform(call)
    hear(outcome.ended)
    return outcome


def _failed(reason: Reason, status: int | None) -> ResponseFailed:
    headers = {name.lower(): value for name, value in (reason.headers or {}).items()}
    wait = headers.get("retry-after")
    return ResponseFailed(
        " ".join((reason.message or "the endpoint gave no reason").split()),
        code=str(reason.code) if reason.code is not None else None,
        status=status,
        param=reason.param,
        retry_after=float(wait) if str(wait).replace(".", "", 1).isdigit() else None,
    )


def _status(error: BaseException) -> str:
    stopped = isinstance(error, (asyncio.CancelledError, KeyboardInterrupt))
    return "interrupted" if stopped else "failed"
