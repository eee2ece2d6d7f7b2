"""An interrupt of a map whose connections do not even end."""

from __future__ import annotations

import contextlib

import pandas as pd
import pytest

from ipy_agent.agent.runs import Quiet
from ipy_agent.errors import Interrupted
from ipy_agent.server.scripted import ScriptedEngine
from ipy_agent.sessions import Session

from .conftest import KEY_VARIABLE


class Telling(ScriptedEngine):
    """Echoes, but for its first prompt, of which it says a word and hangs; tells at a number."""

    def __init__(self, at, do):
        super().__init__([{"text": "well", "then": "hang"}])
        self._left, self._do = at, do

    async def generate(self, job, seat):
        if job.generate:
            self._left -= 1
            if self._left == 0:
                self._do()
        async with contextlib.aclosing(super().generate(job, seat)) as pieces:
            async for piece in pieces:
                yield piece


class Stopping(Quiet):
    stop = staticmethod(lambda: None)

    def waiting(self, stop):
        self.stop = stop
        return super().waiting(stop)


def test_an_interrupt_keeps_what_is_done_also_where_no_goodbye_is_heard(served, proxy):
    """It is put away before anything is waited for."""
    front = Stopping()
    engine = Telling(50, lambda: (through.silence(), front.stop()))
    port = int(served(engine=engine).url.rpartition(":")[2].partition("/")[0])
    through = proxy(port)
    endpoint = through.endpoint(key_env=KEY_VARIABLE)
    frame = pd.DataFrame({"n": range(2_000)})
    with contextlib.closing(Session(endpoint, journal=False)) as session:
        with pytest.raises(Interrupted) as caught:
            session.map(frame, "row {n}", concurrency=2, front=front)

        # The first row hung, and one is under way.
        assert len(caught.value.result) == 48
        assert caught.value.result.index[0] == 1
