"""The ways that a session has open: made at no cost, shared, and closed with a goodbye."""

from __future__ import annotations

import gc
import threading

import pytest

from ipy_agent.connections import Connections
from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import UsageError
from ipy_agent.transport.auto import AutoTransport
from ipy_agent.transport.http import HttpTransport
from ipy_agent.transport.scripted import ScriptedTransport
from ipy_agent.transport.websocket import WebSocketTransport

HERE = Endpoint.named("http://127.0.0.1:1/v1")
THERE = Endpoint.named("http://127.0.0.1:2/v1")
SECONDS = 20


@pytest.fixture
def connections():
    """Return connections, and see to their end."""
    made = Connections()
    yield made
    made.close()


def test_there_is_one_transport_an_endpoint_and_way(connections):
    """Asked for again, it is the same; each way is of its kind."""
    kinds = {"auto": AutoTransport, "websocket": WebSocketTransport, "http": HttpTransport}
    for way, kind in kinds.items():
        assert type(connections.to(HERE, way).transport) is kind
        assert connections.to(HERE, way) is connections.to(HERE, way)
        assert connections.to(HERE, way) is not connections.to(THERE, way)


def test_a_transport_of_ones_own_is_every_way(connections):
    """Whatever the setting says; and where it cannot compact, that is said."""
    own = ScriptedTransport()
    connections.use(own, HERE)

    assert all(connections.to(HERE, way) is own for way in ("auto", "websocket", "http"))
    assert isinstance(connections.compacting(THERE), HttpTransport)
    with pytest.raises(UsageError, match="cannot compact"):
        connections.compacting(HERE)


def test_several_threads_share_one_loop(connections):
    """Whoever comes first begins it; nobody gets a second one."""
    loops, at_once = [], threading.Barrier(8)

    def ask():
        at_once.wait(SECONDS)
        loops.append((connections.loop, connections.to(HERE, "auto")))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert len(set(loops)) == 1


@pytest.mark.parametrize("how", ["closed", "forgotten"])
def test_the_thread_ends(how):
    """When it is closed, and when nobody holds it any more; twice is as good as once."""
    connections = Connections()
    thread = connections.loop._thread
    if how == "closed":
        connections.close()
        connections.close()
    else:
        del connections
        gc.collect()

    assert not thread.is_alive()


def test_what_was_never_used_ends_at_once():
    """Closing, disconnecting and checking begin no thread."""
    before = threading.active_count()
    connections = Connections()
    connections.check()
    connections.disconnect()
    connections.close()

    assert threading.active_count() == before
