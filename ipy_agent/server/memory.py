"""What is kept of responses: by a connection while it lives, by the server where it may store.

Both are a `ResponseCache` within a budget of bytes. A connection's own is what hosted services
call its response state: it follows a policy, and a lane's failure takes its parent away. The
server's store holds what was asked for with `store`, for everyone who knows the id.

Rule 1: what is stored knows no seat: its connection may be long gone.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

from ipy_agent.protocol.lineage import Held, ResponseCache
from ipy_agent.protocol.requests import Request
from ipy_agent.protocol.response import Response
from ipy_agent.server.frames import Open

__all__ = ["CACHES", "Cache", "Kept", "Memory"]

Cache = Literal["off", "latest", "all"]
CACHES: tuple[Cache, ...] = get_args(Cache)


class Kept(NamedTuple):
    """What is held beside a conversation.

    Attributes:
        response: the response object that was told last.
        calls: the calls that have no output yet.
        memory: the engine's own, unread.
        seat: whose it is; a stored response is nobody's.
    """

    response: Response
    calls: Open
    memory: Any
    seat: object = None


class Memory:
    """What one connection holds of its own responses.

    Args:
        policy: nothing, the latest of each lane as hosted services do, or all of them.
    """

    def __init__(self, policy: Cache) -> None:
        self._policy = policy
        self._latest: dict[object, str] = {}
        self._cache: ResponseCache[Kept] = ResponseCache(0) if policy == "off" else ResponseCache()

    def expand(self, request: Request) -> tuple[Request, Held[Kept]]:
        """Put back what the client left out, as `ResponseCache.expand` does."""
        return self._cache.expand(request)

    def remember(self, full: Request, kept: Kept) -> None:
        """Hold a conversation and the response that ended it."""
        if self._policy == "latest":
            self._cache.forget(self._latest.get(kept.seat))
            self._latest[kept.seat] = kept.response.id
        self._cache.remember(full, kept.response.id, kept.response.output or [], kept)

    def fail(self, request: Request, held: Held[Kept], seat: object) -> None:
        """Evict the parent of a turn that failed on its own lane; a fork leaves it in place."""
        if held.memory is not None and held.memory.seat is seat:
            self._cache.forget(request.previous_response_id)
