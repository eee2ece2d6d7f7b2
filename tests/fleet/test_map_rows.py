"""What may be in the rows of a map, and around them."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pandas as pd
import pytest

from ipy_agent.errors import AgentError, UsageError
from ipy_agent.protocol.items import text


def asked(transport):
    """Return the prompts that were sent, in order."""
    return [text(request.input.item) for request in transport.requests]


@pytest.mark.parametrize("concurrency", [1, 2, 16])
@pytest.mark.parametrize("fresh", [False, True])
def test_rows_that_ask_the_same_are_asked_once_however_far_apart(scripted, concurrency, fresh):
    """Also where the first is over before the next one's turn, and was not when that was read."""
    frame = pd.DataFrame({"name": ["ann", "bob"] * 150})
    session, transport = scripted()
    result = session.map(frame, "greet {name}", concurrency=concurrency, fresh=fresh)

    assert sorted(asked(transport)) == ["greet ann", "greet bob"]
    assert result["answer"].tolist() == ["greet ann", "greet bob"] * 150


def test_rows_that_ask_what_failed_fail_with_it(scripted):
    """A failure is no reason to ask again, by whichever row."""
    refused = {"error": {"status": 500, "message": "no luck"}}
    session, transport = scripted([refused])
    result = session.map(pd.DataFrame({"n": [1, 1, 2]}), "row {n}", concurrency=1)

    assert asked(transport) == ["row 1", "row 2"]
    assert result["status"].tolist() == ["failed", "failed", "completed"]
