"""A session's rows, made by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ipy_agent.protocol.items import output_of, user
from ipy_agent.records import CellRecord, MessageRecord, Recorder, ToolRecord, TurnRecord

DAY = datetime(2026, 11, 22, 9, 30, 0, 123456, tzinfo=UTC)


@pytest.fixture
def turn():
    """Return a function that makes a row of a turn that ended well."""

    def make(number=1, **changes):
        told = {
            "turn": number,
            "cell": 1,
            "branch": "main",
            "model": "gpt-4o",
            "endpoint": "openai",
            "transport": "websocket",
            "connection": 1,
            "reused": number > 1,
            "response_id": f"resp_{number}",
            "started_at": DAY + timedelta(seconds=number),
            "sent_items": 1,
            "held_items": 2 * (number - 1),
            "sent_bytes": 1_500,
            "full_bytes": 6_000,
            "received_bytes": 900,
            "ttft_ms": 120.5,
            "latency_ms": 1_000.25,
            "input_tokens": 1_000,
            "cached_tokens": 400,
            "output_tokens": 10,
            "status": "completed",
        }
        return TurnRecord(**(told | changes))

    return make


@pytest.fixture
def records(turn):
    """Return a session of two cell runs: a question with a tool call, and one that still runs."""
    recorder = Recorder()
    recorder.turns += [
        turn(1, connect_ms=50.0, tool_ms=30.0, approval_ms=2_000.0),
        turn(2, previous_response_id="resp_1", input_tokens=1_100, cached_tokens=1_000),
        turn(3, cell=2, status="running", latency_ms=None),
    ]
    began = {"branch": "main", "endpoint": "openai", "started_at": DAY}
    recorder.cells += [
        CellRecord(cell=1, prompt="How *many*?", elapsed_ms=4_200.0, status="completed", **began),
        CellRecord(cell=2, prompt="And now?", **began),
    ]
    recorder.tools.append(
        ToolRecord(
            turn=1,
            call_id="call_1",
            name="python",
            arguments='{"code": "len(df)"}',
            output="344",
            started_at=DAY,
            duration_ms=30.0,
            approval="yes",
            status="completed",
        )
    )
    answer = {"type": "output_text", "text": "There are **344** rows."}
    items = [
        (1, user("How *many*?")),
        (1, {"type": "reasoning", "id": "rs_1", "encrypted_content": "x"}),
        (
            1,
            {
                "type": "function_call",
                "name": "python",
                "call_id": "call_1",
                "arguments": '{"code": "len(df)"}',
            },
        ),
        (1, output_of("call_1", "344")),
        (2, {"type": "message", "role": "assistant", "content": [answer]}),
    ]
    recorder.messages += [
        MessageRecord(cell=1, turn=number, branch="main", item=item) for number, item in items
    ]
    return recorder
