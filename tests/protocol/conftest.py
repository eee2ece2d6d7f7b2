"""Both ends of the protocol, in memory."""

from __future__ import annotations

import itertools

import pytest

from ipy_agent.protocol.events import ResponseCompleted, decode, encode
from ipy_agent.protocol.lineage import Lineage, NotHeld, ResponseCache
from ipy_agent.protocol.requests import Request
from ipy_agent.protocol.response import Response

HOLDS_ENOUGH = 2**20


class Ends:
    """A client and a server with nothing between them but the bytes of their frames."""

    def __init__(self, budget=HOLDS_ENOUGH, *, keeps_all=False):
        self.budget = budget
        self.keeps_all = keeps_all
        self.numbers = itertools.count(1)
        self.reconnect()

    def reconnect(self):
        """Both ends begin anew, as on another socket."""
        self.lineage = Lineage(keeps_all=self.keeps_all)
        self.restart_server()

    def restart_server(self):
        """The server forgets everything, and its client does not know."""
        self.cache = ResponseCache(self.budget)

    def deliver(self, full):
        """Return what the client sent of `full`, what arrived, and the whole put back there."""
        sent = self.lineage.shorten(full)
        try:
            arrived, (whole, held) = self.expanded(sent)
        except NotHeld:
            assert sent.previous_response_id is not None
            self.lineage.forget(sent, gone=True)
            sent = full
            arrived, (whole, held) = self.expanded(sent)
        assert held.chain is whole.input.back(len(arrived.input))
        return sent, arrived, whole

    def expanded(self, sent):
        frame = sent.frame()
        assert sent.size() == len(frame)
        arrived = Request.parse(frame)
        return arrived, self.cache.expand(arrived)

    def answer(self, full, whole, output):
        """Answer, and return the output as the client reads it off the wire."""
        name = f"resp_{next(self.numbers)}"
        self.cache.remember(whole, name, output)
        response = Response(id=name, output=output)
        read = decode(encode(ResponseCompleted(response=response))).response.output
        self.lineage.remember(full, name, read)
        return read

    def turn(self, full, output=()):
        """Make a whole turn; return what arrived and what was read."""
        _, arrived, whole = self.deliver(full)
        assert whole == full
        return arrived, self.answer(full, whole, list(output))


@pytest.fixture(name="new_ends")
def _new_ends():
    return Ends


@pytest.fixture
def ends():
    """Return two ends that hold enough."""
    return Ends()
