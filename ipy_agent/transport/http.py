"""The same request by POST, its events by the body of the answer.

A POST stands alone: it continues from a response only where the endpoint stores them and was
asked to. Else all of the conversation travels with every turn. A parent that the endpoint let
go costs one full resend.

Rule 1: everything here runs on one event loop. Nothing is printed or logged.
Rule 2: whatever went wrong before a stream began is told as over a WebSocket.
"""

from __future__ import annotations

import contextlib
import urllib.parse
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING

import msgspec

from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import (
    ConnectionFailed,
    MessageTooBig,
    UsageError,
)
from ipy_agent.protocol.events import Error, Event, ResponseCompleted
from ipy_agent.protocol.items import EMPTY, Item
from ipy_agent.protocol.lineage import Lineage
from ipy_agent.protocol.requests import Request
from ipy_agent.protocol.response import Reason, failed
from ipy_agent.trace import Notice, RequestSent, ResponseEnded
from ipy_agent.transport import Stream
from ipy_agent.transport.address import (
    Address,
    Locate,
    addresses,
    key_refused,
    local_address,
)
from ipy_agent.transport.rehearsal import Rehearsal
from ipy_agent.transport.reply import events, output, reason_of
from ipy_agent.transport.websocket import FIRST_EVENT_SECONDS, IDLE_SECONDS

if TYPE_CHECKING:
    from ipy_agent.transport.posts import Client, Post

__all__ = ["HttpTransport"]

_NO_ROUTE = frozenset({404, 405})
_NO_COMPACTION = _NO_ROUTE | {501}
_TOO_LARGE = 413
_UNAUTHORIZED = 401


class HttpTransport:
    """Turns by POST. Made at no cost; connects at the first turn.

    Args:
        endpoint: where responses come from.
        first_event: seconds that the endpoint has until its answer begins.
        idle: seconds of silence in a turn after which it counts as lost.
        locate: how the server of the endpoint `local` is found or started.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        first_event: float = FIRST_EVENT_SECONDS,
        idle: float = IDLE_SECONDS,
        locate: Locate = local_address,
    ) -> None:
        self.endpoint = endpoint
        self._first_event = first_event
        self._idle = idle
        self._locate = locate
        self._lineage = Lineage(keeps_all=True)
        self._client: Client | None = None
        self._local: Address | None = None
        self._turns = 0
        self._limit = endpoint.limits.body_bytes or endpoint.limits.frame_bytes
        self._diagnoses = endpoint.diagnoses
        self._answered: dict[str | None, str] = {}

    async def stream(self, request: Request) -> Stream:
        """Answer a whole request; see `Transport.stream`."""
        _check_generates(request)
        received, attempt, self._turns = 0, 0, self._turns + 1
        short = self._shortened(request)
        resent = self._lineage.why(request) if self._stores(request) else None
        while True:
            body, post = short.body(), None
            async with contextlib.aclosing(self._posted(request, body)) as leaving:
                async for found in leaving:
                    if isinstance(found, Notice):
                        yield found
                    else:
                        post = found
            assert post is not None  # noqa: S101 (it is the last, or posting raises)
            try:
                why = None if short.previous_response_id else resent
                yield _told(request, short, body, post, resent=why, attempt=attempt)
                async with contextlib.aclosing(self._answer(post)) as answer:
                    async for event in answer:
                        mended = self._mended(request, short, event)
                        if mended is not None:
                            break
                        self._learn(request, event)
                        yield event
                    else:
                        yield ResponseEnded(received_bytes=received + post.received)
                        return
            finally:
                await post.close()
            if short.previous_response_id and not mended.previous_response_id:
                resent = "evicted"
            received, attempt, short = received + post.received, attempt + 1, mended

    async def rehearse(self, request: Request) -> Rehearsal:
        """Return what `stream` would send now; see `Transport.rehearse`."""
        _check_generates(request)
        short = self._shortened(request)
        body = short.body()
        self._check_size(body)
        return Rehearsal.of("http", request, short, frame=body, full_bytes=_full_bytes(request))

    async def compact(self, request: Request) -> list[Item]:
        """Return items that stand for a whole conversation and take less room.

        Raises:
            UsageError: the endpoint cannot do that.
            ResponseFailed: it refuses to.
            TransportError: the way broke.
        """
        values = {"input": request.input.since(0)}
        for name in ("model", "instructions"):
            if request.fields.values.get(name) is not None:
                values[name] = request.fields.values[name]
        body = msgspec.json.encode(values)
        async with contextlib.aclosing(self._posted(request, body, "/compact")) as leaving:
            # There is no cell here that could show what takes long.
            (post,) = [found async for found in leaving if not isinstance(found, Notice)]
        try:
            await post.answered()
            said = await self._refusal(post, compacting=True)
            if said is None:
                return output(await post.whole())
            raise failed(said.reason, said.status)
        finally:
            await post.close()

    def describe(self) -> str:
        """Return what this way was used for, in one line."""
        return f"over HTTP ({self._turns} turns)"

    async def aclose(self) -> None:
        """Let go of the connections that are kept."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _shortened(self, request: Request) -> Request:
        short = self._lineage.shorten(request) if self._stores(request) else request
        compare_to = self._answered.get(request.stream_id) if self._diagnoses else None
        return msgspec.structs.replace(short, compare_to=compare_to)

    def _mended(self, request: Request, short: Request, event: Event) -> Request | None:
        """Return what to send in place of a turn that was refused, each way once."""
        reason = event.reason if isinstance(event, Error) else Reason()
        if short.previous_response_id and reason.code == "previous_response_not_found":
            self._lineage.forget(short, gone=True)
            return msgspec.structs.replace(request, compare_to=short.compare_to)
        if short.compare_to and str(reason.param).startswith("prompt_cache_options"):
            self._diagnoses = False
            return msgspec.structs.replace(short, compare_to=None)
        return None

    def _stores(self, request: Request) -> bool:
        return self.endpoint.stores and request.fields.values.get("store") is True

    def _learn(self, request: Request, event: Event) -> None:
        response = event.response if isinstance(event, ResponseCompleted) else None
        if response is not None:
            self._answered[request.stream_id] = response.id
        # It may be asked to store and say that it does not.
        if response is not None and response.store is not False and self._stores(request):
            self._lineage.remember(request, response.id, response.output or [])

    async def _posted(
        self, request: Request, body: bytes, path: str = ""
    ) -> AsyncGenerator[Notice | Post, None]:
        """Yield what takes long, if anything does, and last a post that is on the wire."""
        self._check_size(body)
        kept = self._local
        while True:
            address = kept
            if address is None:
                model = request.fields.values.get("model")
                finding = addresses(self.endpoint, self._locate, model=model)
                async with contextlib.aclosing(finding):
                    async for found in finding:
                        if isinstance(found, Notice):
                            yield found
                        else:
                            address = found
            assert address is not None  # noqa: S101 (it is the last, or finding it raises)
            post = self._post(address, body, path)
            try:
                await post.left()
            except BaseException as error:
                await post.close()
                if kept is None or not isinstance(error, ConnectionFailed):
                    raise
                kept = self._local = None  # it has ended since: find or start another
                continue
            if not self.endpoint.url:
                self._local = address
            yield post
            return

    def _check_size(self, body: bytes) -> None:
        limit = self._limit
        if limit is not None and len(body) > limit:
            raise MessageTooBig(
                f"the request has {len(body):,} bytes and {self.endpoint.name} takes "
                f"{limit:,}: send less, or start over with `%agent reset`"
            )

    def _post(self, address: Address, body: bytes, path: str) -> Post:
        if self._client is None:
            from ipy_agent.transport.posts import Client  # noqa: PLC0415 (httpx2 loads slowly)

            self._client = Client(self.endpoint)
        parts = urllib.parse.urlsplit(address.http_url)
        url = parts._replace(path=parts.path + path).geturl()
        first = self._idle if path else self._first_event
        return self._client.post(url, address.headers, body, first=first, idle=self._idle)

    async def _answer(self, post: Post) -> AsyncGenerator[Event, None]:
        await post.answered()
        refusal = await self._refusal(post)
        if refusal is not None:
            yield refusal
            return
        async with contextlib.aclosing(events(post)) as stream:
            async for event in stream:
                yield event

    async def _refusal(self, post: Post, *, compacting: bool = False) -> Error | None:
        """Return what an answer refuses, if it does, unless an error of ours says it better."""
        status, name = post.status, self.endpoint.name
        if 200 <= status < 300:  # noqa: PLR2004 (HTTP's own numbers)
            return None
        if status == _UNAUTHORIZED:
            self._local = None
            raise key_refused(self.endpoint)
        if status < 400:  # noqa: PLR2004
            place = post.headers.get("location", "").partition("?")[0] or "nowhere"
            raise ConnectionFailed(
                f"{name} redirects to {place} (HTTP {status}), where its key does not go: "
                "connect to the address that answers"
            )
        reason = reason_of(await post.whole())
        if status == _TOO_LARGE:
            self._limit = post.size - 1
            raise MessageTooBig(
                f"{name} takes no request of this size (HTTP 413): "
                "send less, or start over with `%agent reset`",
                sent=True,
            )
        if compacting and status in _NO_COMPACTION:
            words = " ".join((reason.message or "").split()) if reason else ""
            why = f"HTTP {status}: {words}" if words else f"HTTP {status}"
            raise UsageError(f"{name} cannot compact ({why})")
        if reason is None and status in _NO_ROUTE:
            raise ConnectionFailed(
                f"nothing at {self.endpoint.url or name} speaks the Responses API "
                f"(HTTP {status}): check the address, or choose another with `%agent connect`"
            )
        return _error(status, reason, post.headers, name)


def _told(
    request: Request, short: Request, body: bytes, post: Post, *, resent: str | None, attempt: int
) -> RequestSent:
    return RequestSent(
        transport="http",
        connection=None,
        reused=post.connect_ms is None,
        connect_ms=post.connect_ms,
        previous_response_id=short.previous_response_id,
        sent_items=len(short.input),
        held_items=len(request.input) - len(short.input),
        sent_bytes=len(body),
        full_bytes=_full_bytes(request),
        resent=resent,
        attempt=attempt,
    )


def _check_generates(request: Request) -> None:
    if not request.generate:
        raise UsageError("a warm-up needs a WebSocket: over HTTP there is nothing to warm")


def _full_bytes(request: Request) -> int:
    """Return what the body has if nothing is left out, without building it."""
    bare = msgspec.structs.replace(request, input=EMPTY)
    return len(bare.body()) + request.input.size + max(0, len(request.input) - 1)


def _error(status: int, reason: Reason | None, headers: Mapping[str, str], name: str) -> Error:
    """Return a refusal as the error frame that it would be over a WebSocket."""
    told = {"Retry-After": headers["retry-after"]} if "retry-after" in headers else {}
    reason = reason or Reason(message=f"{name} refused with HTTP {status} and gave no reason")
    reason = msgspec.structs.replace(reason, headers={**told, **(reason.headers or {})} or None)
    return Error(status=status, error=reason)
