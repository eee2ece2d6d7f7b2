"""However a map ends, what was done is there, and nothing else is left."""

from __future__ import annotations

import contextlib
import os
import threading

import pandas as pd
import pytest

from ipy_agent.agent.tools import TOOLS, tool_of
from ipy_agent.errors import Interrupted, UsageError
from ipy_agent.fleet.maps import Maps
from ipy_agent.protocol.items import text
from ipy_agent.sessions import Session

FRAME = pd.DataFrame({"n": range(3_000)})


class Watching(list):
    """The requests that are made; at one of them something happens."""

    def __init__(self, at, do):
        super().__init__()
        self._at, self._do = at, do

    def append(self, request):
        super().append(request)
        if len(self) == self._at:
            self._do()


def asked(transport):
    """Return the prompts that were sent, in order."""
    return [text(request.input.item) for request in transport.requests]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    """What a test begins is over when it ends."""
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) - before == set()


@pytest.mark.parametrize("out", [None, "rows.parquet"])
def test_a_session_that_is_closed_ends_its_maps_and_keeps_what_is_done(scripted, tmp_path, out):
    """Another thread closes it: no file is left half written, and the rest is asked later."""
    session, transport = scripted(journal=True)
    closing = threading.Thread(target=session.close)
    transport.requests = Watching(1_500, closing.start)
    path = None if out is None else tmp_path / out
    with pytest.raises(Interrupted) as caught:
        session.map(FRAME, f"closed {out} {{n}}", out=path)
    closing.join()
    done = caught.value.result if out is None else pd.read_parquet(caught.value.result)
    there = [path] if out else []
    assert list(tmp_path.iterdir()) == there

    first = set(asked(transport))
    transport.requests = []
    result = session.map(FRAME, f"closed {out} {{n}}", out=path)
    result = result if out is None else pd.read_parquet(result)
    session.close()

    assert (done["status"] == "completed").all()
    assert len(done) + len(transport.requests) == 3_000
    assert len(first - set(asked(transport))) == len(done) > 1_000
    assert result["answer"].tolist() == [f"closed {out} {n}" for n in range(3_000)]


def test_a_tool_of_a_map_may_close_the_session(scripted):
    """It does not wait for itself."""
    session, transport = scripted(
        [{"text": "fine"}, {"tool_calls": [{"name": "shut", "arguments": {}}]}], mode="auto"
    )

    def shut() -> str:
        """Close."""
        session.close()
        return "closed"

    TOOLS["shut"] = tool_of(shut)
    try:
        with pytest.raises(Interrupted) as caught:
            session.map(FRAME, "row {n}", tools=["shut"], concurrency=1)
    finally:
        del TOOLS["shut"]

    assert len(transport.requests) == 2
    assert caught.value.result["answer"].tolist() == ["fine"]


def test_a_tool_that_is_interrupted_ends_all_rows(scripted):
    """As the user's interrupt: what was done is there."""

    def stop() -> str:
        """Stop."""
        raise KeyboardInterrupt

    TOOLS["stop"] = tool_of(stop)
    call = {"tool_calls": [{"name": "stop", "arguments": {}}]}
    session, _ = scripted([{"text": "fine"}, call], mode="auto")
    try:
        with pytest.raises(Interrupted) as caught:
            session.map(FRAME, "row {n}", tools=["stop"], concurrency=1)
    finally:
        del TOOLS["stop"]

    assert caught.value.result["answer"].tolist() == ["fine"]


def test_a_map_within_a_run_is_refused_as_a_run_is(scripted):
    """Its tool says why, and the run goes on."""
    call = {"tool_calls": [{"name": "inner", "arguments": {}}]}
    session, transport = scripted([call, {"text": "well"}], mode="auto")

    def inner() -> int:
        """Ask within."""
        return len(session.map(FRAME, "row {n}"))

    TOOLS["inner"] = tool_of(inner)
    try:
        session.run("go")
    finally:
        del TOOLS["inner"]

    assert "a run is under way" in session.tools["output"].tolist()[0]
    assert len(transport.requests) == 2


def test_maps_of_two_threads_share_what_they_have(scripted):
    """They begin at once, each on a branch of its own; what ends one does not touch the other."""
    session, transport = scripted()
    session.fork("idea")
    session._maps = Maps(session._connections, session._execution.spending)
    together, results = threading.Barrier(2), {}

    def ask(branch):
        together.wait()
        results[branch] = session.map(FRAME, f"{branch} {{n}}", branch=branch)

    threads = [threading.Thread(target=ask, args=(one,)) for one in ("main", "idea")]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    session.close()

    for branch in ("main", "idea"):
        assert results[branch]["answer"].tolist() == [f"{branch} {n}" for n in range(3_000)]
    assert len(transport.requests) == 6_000


def test_a_forked_child_has_no_part_in_a_map(scripted):
    """It is told to make a session of its own; to close its copy touches nothing."""
    session, _ = scripted()
    session.map(FRAME[:10], "row {n}")
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            try:
                session.map(FRAME[:10], "row {n}")
            except UsageError:
                session.close()
                status = 0
        os._exit(status)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(session.map(FRAME[:20], "row {n}")) == 20
    session.close()


def test_a_closed_session_maps_again(served):
    """As it runs again: over new connections, with many rows at once each time."""
    endpoint = served()
    with contextlib.closing(Session(endpoint, journal=False)) as session:
        for word in ("one", "two", "three"):
            result = session.map(FRAME[:200], f"{word} {{n}}", concurrency=40)
            session.close()

            assert result["answer"].tolist() == [f"{word} {n}" for n in range(200)]
