"""A stored answer, shown again to who looks on, as a run would have shown it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ipy_agent.protocol.events import Event, ItemDone
from ipy_agent.protocol.items import Item, is_call, text
from ipy_agent.records import ToolRecord
from ipy_agent.trace import Notice, RunEnded, ToolBegan, ToolEnded, Trace

__all__ = ["show_again"]


def show_again(
    number: int,
    items: Iterable[Item],
    tools: Iterable[ToolRecord],
    show: Callable[[Event | Trace], None],
) -> None:
    """Show what was said in a run, with a mark that it was said before.

    Args:
        number: the run's, as in `cells`.
        items: what it added to the conversation.
        tools: its tool calls.
        show: who looks on.
    """
    ended = {tool.call_id: tool for tool in tools}
    show(
        Notice(
            text=f"stored answer of run {number}: neither the prompt nor what was said before it "
            "changed, nothing was sent and no tool ran (%agent replay off asks anew)",
            lasting=True,
        )
    )
    for index, item in enumerate(items):
        if item.get("type") in ("message", "reasoning") and item.get("role") != "user":
            show(ItemDone(output_index=index, item=item))
        elif is_call(item) and (tool := ended.get(item["call_id"])) is not None:
            show(ItemDone(output_index=index, item=item))
            show(ToolBegan(call_id=tool.call_id, name=tool.name, arguments=text(item)))
            show(_ended(tool))
    show(RunEnded(status="completed"))


def _ended(tool: ToolRecord) -> ToolEnded:
    return ToolEnded(
        call_id=tool.call_id,
        name=tool.name,
        arguments=tool.arguments,
        output=tool.output,
        started_at=tool.started_at,
        duration_ms=tool.duration_ms,
        approval=tool.approval,
        approval_ms=None,
        status=tool.status,
    )
