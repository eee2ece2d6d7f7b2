"""The way of rows through a map, where one of them takes its time."""

from __future__ import annotations

import asyncio
import contextlib

import pandas as pd

from ipy_agent.agent.tools import TOOLS, tool_of
from ipy_agent.endpoints import Endpoint
from ipy_agent.fleet.course import WINDOW
from ipy_agent.protocol.items import text
from ipy_agent.sessions import Session
from ipy_agent.transport.scripted import ScriptedTransport

MORE = 300


class Late(ScriptedTransport):
    """Answers row 0 once so many others have been asked, and there was time for more.

    Attributes:
        asked: how many there were then.
    """

    def __init__(self, others):
        super().__init__()
        self._others = others
        self.asked = 0

    async def stream(self, request):
        if text(request.input.item) == "row 0":
            while len(self.requests) < self._others:  # noqa: ASYNC110 (nobody here tells)
                await asyncio.sleep(0)
            for _ in range(500):
                await asyncio.to_thread(lambda: None)
            self.asked = len(self.requests)
        async with contextlib.aclosing(super().stream(request)) as events:
            async for event in events:
                yield event


def test_no_row_begins_a_window_ahead_of_the_oldest(tmp_path):
    """Memory does not grow behind a row that takes long; when it is done, all goes on."""
    transport = Late(WINDOW - 1)
    frame = pd.DataFrame({"n": range(WINDOW + MORE)})
    endpoint = Endpoint(name="x", url="http://x/v1")
    with contextlib.closing(Session(endpoint, transport=transport, journal=False)) as session:
        path = session.map(frame, "row {n}", concurrency=3, out=tmp_path / "rows.parquet")

    assert transport.asked == WINDOW - 1
    assert pd.read_parquet(path)["answer"].tolist() == [f"row {n}" for n in frame["n"]]


def test_rows_that_ask_the_same_as_one_that_takes_long_wait_for_it():
    """They hold no lane meanwhile, and have its answer then."""
    transport = Late(MORE + 1)
    frame = pd.DataFrame({"n": [0, *[0, 1] * MORE, *range(2, MORE + 2)]})
    endpoint = Endpoint(name="x", url="http://x/v1")
    with contextlib.closing(Session(endpoint, transport=transport, journal=False)) as session:
        result = session.map(frame, "row {n}", concurrency=2)

    assert len(transport.requests) == MORE + 2
    assert result["answer"].tolist() == [f"row {n}" for n in frame["n"]]


def test_a_map_within_a_map_is_refused(scripted):
    """By its tool; the row goes on."""
    call = {"tool_calls": [{"name": "inner", "arguments": {}}]}
    session, transport = scripted([call, {"text": "well"}], mode="auto")
    refusals = []

    def inner() -> str:
        """Ask within."""
        try:
            session.map(pd.DataFrame({"n": [1]}), "other {n}")
        except Exception as error:
            refusals.append(str(error))
            raise
        return "done"

    TOOLS["inner"] = tool_of(inner)
    try:
        result = session.map(pd.DataFrame({"n": [1]}), "row {n}", tools=["inner"])
    finally:
        del TOOLS["inner"]

    assert result["answer"].tolist() == ["well"]
    assert "cannot be asked from within a tool" in refusals[0]
    assert len(transport.requests) == 2
