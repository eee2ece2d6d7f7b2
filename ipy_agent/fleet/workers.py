"""A map on the workers of Dask: partitions go out, and a frame of what came of their rows comes in.

Each worker has one live session: its connections, warm with what the rows share, and the thread
with the store. Partitions on it come one after another, since each keeps as many rows under way by
itself as suit the endpoint. Scheduling, retries and spilling are Dask's.

Rule 1: what goes out is a parcel and rows; a session is made where it is used.
Rule 2: on a worker nothing raises `Interrupted`: a KeyboardInterrupt breaks the loops of Dask that
it comes through. What was stopped there is nobody's, or somebody else's: Dask hears that it may be
tried elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ipy_agent.agent.approval import Allowances
from ipy_agent.agent.budget import Spending
from ipy_agent.agent.runs import Front, Quiet
from ipy_agent.connections import Connections
from ipy_agent.errors import Interrupted, MissingExtra, UsageError
from ipy_agent.fleet.maps import Job, Maps, template_of
from ipy_agent.fleet.result import frame_of
from ipy_agent.protocol.events import Event
from ipy_agent.records import Recorder
from ipy_agent.secrets import learn
from ipy_agent.tables.prices import cost_usd
from ipy_agent.trace import Notice, RowsProgress, Trace
from ipy_agent.transport.recovery import Recovery

try:
    from dask.dataframe.dispatch import make_meta
    from distributed import Client, Reschedule, Worker, WorkerPlugin, default_client, get_worker
    from distributed.utils import sync

    from ipy_agent.fleet.parcel import packed, unpacked
except ImportError as missing:
    raise MissingExtra("a map over Dask's workers", "dask") from missing

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["LiveSession", "ask_rows", "ask_rows_and_tell", "mapped"]

_LIMITS = (
    *("budget_tokens", "budget_usd"),
    *("session_turns", "session_seconds", "session_tokens", "session_usd"),
)
"""Budgets that one process counts: many of them together would go beyond."""

_UNWRITTEN = (
    "a map over workers writes no file: give it a dask.dataframe, and write what it returns with "
    ".to_parquet(FOLDER)"
)


def mapped(
    frame: Any,
    job: Job,
    *,
    schema: Any,
    kept: Callable[[], Path] | None,
    connections: Connections,
    client: Any,
    front: Front,
) -> Any:
    """Return a lazy frame for a lazy one; ask the rows of a pandas frame, and return theirs.

    Args:
        frame: the table.
        job: what is asked.
        schema: the type or shape of its answers.
        kept: tells a worker where it keeps what came of rows.
        connections: the session's.
        client: whose workers ask; for a lazy frame, whoever computes it.
        front: looks on.

    Raises:
        UsageError: what workers cannot do.
        AgentError: what no row could get past; its `result` holds what was done.
        Interrupted: the user stopped it; so it does then.
    """
    _check(job, connections, client)
    template = template_of(frame, job)
    parcel, rows = packed(job, schema, kept), frame[list(template.columns)]
    known = client or _current()
    if known is not None and not known.asynchronous:
        known.register_plugin(LiveSession())
    if not hasattr(frame, "map_partitions"):
        from ipy_agent.fleet.partitions import Partitions  # noqa: PLC0415 (it needs this module)

        return Partitions(client, rows, job, parcel).result(front)
    empty = make_meta(frame).index[:0]  # type: ignore[no-untyped-call]  # (Dask's)
    return rows.map_partitions(ask_rows, parcel, meta=frame_of(empty, [], job.plan.shape))


def ask_rows(part: DataFrame, parcel: bytes) -> DataFrame:
    """Return what came of the rows of a partition, asked from where this is called."""
    return _asked(part, parcel, _Watch())


def ask_rows_and_tell(
    part: DataFrame, parcel: bytes
) -> tuple[DataFrame, RowsProgress | None, list[str]]:
    """Return that, what it took, and what the user should know."""
    watch = _Watch()
    return _asked(part, parcel, watch), watch.progress, watch.notices


class LiveSession(WorkerPlugin):
    """The live session of a worker, closed with it."""

    name = "ipy-agent session"
    idempotent = True

    def setup(self, worker: Worker) -> None:  # noqa: ARG002 (a seam of Dask's)
        self._desk = Desk()

    async def teardown(self, worker: Worker) -> None:  # noqa: ARG002 (see above)
        await asyncio.to_thread(self._desk.close)

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:  # noqa: ARG002 (see above)
        if finish == "released":
            self._desk.stop(key)

    def ask(self, part: DataFrame, parcel: bytes, watch: _Watch, key: Any) -> DataFrame:
        """Ask the rows of a partition."""
        return self._desk.ask(part, parcel, watch, key)


class Desk:
    """Where the rows of a process are asked: one session, one partition at a time."""

    def __init__(self) -> None:
        learn()
        self._connections = Connections()
        self._maps = Maps(self._connections, Spending(Recorder(), cost_usd))
        self._turn = threading.Lock()
        self._watches: dict[_Watch, Any] = {}

    def ask(self, part: DataFrame, parcel: bytes, watch: _Watch, key: Any = None) -> DataFrame:
        """Ask the rows of a partition, once it is its turn.

        Raises:
            AgentError: what no row could get past.
            Interrupted: without a key, the user stopped it.
            Reschedule: with a key, it was stopped.
        """
        self._watches[watch] = key
        try:
            with self._turn:
                watch.check()
                result = self._maps.run(part, unpacked(parcel), watch, Allowances())
        except Interrupted:
            if key is None:
                raise
            raise Reschedule from None
        finally:
            del self._watches[watch]
        return result  # type: ignore[return-value]  # (a parcel has no file)

    def stop(self, key: Any) -> None:
        """Stop a partition, if it is here."""
        for watch, its in list(self._watches.items()):
            if its == key:
                watch.stop()

    def close(self) -> None:
        """Stop what is under way, and close the session."""
        for watch in list(self._watches):
            watch.stop()
        with self._turn:
            self._maps.close()
            self._connections.close()


class _Watch(Quiet):
    """Looks on for who gave a partition out, and may be told to stop it."""

    def __init__(self) -> None:
        self.progress: RowsProgress | None = None
        self.notices: list[str] = []
        self._is_stopped = False
        self._stop: Callable[[], None] | None = None

    def show(self, event: Event | Trace) -> None:
        if isinstance(event, RowsProgress):
            self.progress = event
        elif isinstance(event, Notice) and event.lasting:
            self.notices.append(event.text)

    @contextlib.contextmanager
    def waiting(self, stop: Callable[[], None]) -> Iterator[None]:
        self._stop = stop
        if self._is_stopped:
            stop()
        yield

    def stop(self) -> None:
        """Have it stop, also when it did not begin yet."""
        self._is_stopped = True
        if self._stop is not None:
            self._stop()

    def check(self) -> None:
        """Raise `Interrupted` if it was stopped."""
        if self._is_stopped:
            raise Interrupted("interrupted")


def _asked(part: DataFrame, parcel: bytes, watch: _Watch) -> DataFrame:
    try:
        worker = get_worker()
    except ValueError:
        return _desk().ask(part, parcel, watch)
    return _session_of(worker).ask(part, parcel, watch, worker.get_current_task())


_making = threading.Lock()
_desks: dict[int, Desk] = {}


def _desk() -> Desk:
    """Return the desk of this process, where no worker has one."""
    with _making:
        pid = os.getpid()  # a forked child has one of its own
        if pid not in _desks:
            _desks[pid] = Desk()
        return _desks[pid]


def _session_of(worker: Worker) -> LiveSession:
    """Return the session of a worker: a frame may be computed by a client that we never saw."""
    with _making:
        if LiveSession.name not in worker.plugins:
            sync(worker.loop, worker.plugin_add, LiveSession(), LiveSession.name)
        return cast("LiveSession", worker.plugins[LiveSession.name])


def _current() -> Any:
    """Return the client that computes what nobody else is told to, if there is one."""
    with contextlib.suppress(ValueError):
        return default_client()  # type: ignore[no-untyped-call]  # (Dask's)
    return None


def _check(job: Job, connections: Connections, client: Any) -> None:
    plan = job.plan
    if client is not None and (not isinstance(client, Client) or client.asynchronous):
        raise UsageError("client is a dask.distributed.Client, made without asynchronous=True")
    if plan.tools:
        raise UsageError("tools run in this kernel, not on workers: leave them out, or Dask")
    if job.out is not None:
        raise UsageError(_UNWRITTEN)
    way = connections.to(plan.target, plan.settings.transport)
    if not isinstance(way, Recovery):
        raise UsageError(f"a {type(way).__name__} is in this process only: workers need an address")
    for name in _LIMITS:
        if getattr(plan.settings, name) is not None:
            raise UsageError(
                f"{name} cannot be kept by many workers: set it to None, and bound the table"
            )
