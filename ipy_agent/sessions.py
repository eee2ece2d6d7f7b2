"""The sync face: blocking calls over one event loop that runs on a thread of its own.

The thread answers pings while a cell computes; tools, output and questions stay on the
caller's thread. A run has an inbox of its own: the loop puts in what happens, the caller
takes it out, shows it, and runs the tools that are asked for.

Rule 1: one run at a time; another thread waits, the same thread (a tool) is refused.
Rule 2: a forked child has neither the thread nor the right to the socket.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipy_agent import tables
from ipy_agent.agent.calls import Worker
from ipy_agent.agent.conversation import Conversation
from ipy_agent.agent.loop import Ask, answer, warm
from ipy_agent.agent.runs import Front, Quiet, attend
from ipy_agent.agent.tools import TOOLS, Tool, offered
from ipy_agent.background import Background
from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import UsageError
from ipy_agent.protocol.requests import Fields
from ipy_agent.records import Recorder
from ipy_agent.settings import CONFIGURED, Settings
from ipy_agent.transport import Transport
from ipy_agent.transport.websocket import WebSocketTransport

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Answer", "Session", "session"]

CLOSE_SECONDS = 1.0


class Answer:
    """What a run ended with.

    Attributes:
        text: the model's last words, in Markdown.
        value: what they stand for; the text, where no schema was asked for.
    """

    def __init__(self, text: str, records: Recorder, cell: int) -> None:
        self.text = text
        self.value = text
        self._records = records
        self._cell = cell

    @property
    def turns(self) -> DataFrame:
        """The run's rows of the `turns` table."""
        frame = tables.turns(self._records)
        return frame[frame["cell"] == self._cell]

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Answer({self.text!r})"


class _Setting:
    """A setting as an attribute of `Session`, checked when set."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: Session | None, owner: type | None = None) -> Any:
        return self if instance is None else getattr(instance.settings, self._name)

    def __set__(self, instance: Session, value: Any) -> None:
        instance.configure(self._name, value)


class Session:
    """A conversation, and the live connection that it goes over.

    Args:
        endpoint: a preset's name, a base URL or an `Endpoint`; by default what the
            environment asks for.
        transport: another way to answers, such as a `ScriptedTransport`.
        settings: any setting by name, such as `mode="auto"`; each is an attribute too.

    Attributes:
        records: what happened, as rows; `turns`, `cells`, `tools` and `messages` are its tables.
    """

    model = _Setting("model")
    instructions = _Setting("instructions")
    mode = _Setting("mode")
    store = _Setting("store")
    transport = _Setting("transport")
    effort = _Setting("effort")
    summary = _Setting("summary")
    max_output_tokens = _Setting("max_output_tokens")
    parallel_tool_calls = _Setting("parallel_tool_calls")
    compact_tokens = _Setting("compact_tokens")
    prompt_cache_key = _Setting("prompt_cache_key")
    budget_turns = _Setting("budget_turns")
    budget_seconds = _Setting("budget_seconds")

    def __init__(
        self,
        endpoint: str | Endpoint | None = None,
        *,
        transport: Transport | None = None,
        **settings: Any,
    ) -> None:
        self.id = f"ipy-agent-{uuid.uuid4().hex[:12]}"
        self.settings = Settings().replace(**settings)
        self.records = Recorder()
        self._endpoint = _endpoint(endpoint)
        self._ways: dict[Endpoint, Transport] = {}
        if transport is not None:
            self._ways[self._endpoint] = transport
        self._conversation = Conversation()
        self._fields = Fields({})
        self._background: Background | None = None
        self._busy = threading.Lock()
        self._busy_thread: int | None = None

    # what happened

    @property
    def turns(self) -> DataFrame:
        """One row a turn, fresh at each access."""
        return tables.turns(self.records)

    @property
    def cells(self) -> DataFrame:
        """One row a cell run, fresh at each access."""
        return tables.cells(self.records)

    @property
    def tools(self) -> DataFrame:
        """One row a tool call, fresh at each access."""
        return tables.tools(self.records)

    @property
    def messages(self) -> DataFrame:
        """One row an item of the conversation, fresh at each access."""
        return tables.messages(self.records)

    def export(self, path: str | Path, table: str = "turns") -> Path:
        """Write the session to a file and return its path.

        Args:
            path: its suffix decides: `.parquet`, `.csv` and `.jsonl` hold one table,
                `.json`, `.html` and `.md` all four.
            table: `turns`, `cells`, `tools` or `messages`, for the formats that hold one.

        Raises:
            UsageError: an unknown suffix or table, or no such folder.
            MissingExtra: parquet without pyarrow.
        """
        return tables.export(self.records, path, table)

    # what can be done

    def run(
        self,
        prompt: str,
        *,
        model: str | None = None,
        mode: str | None = None,
        endpoint: str | Endpoint | None = None,
        front: Front | None = None,
    ) -> Answer:
        """Ask, run the tools that are called, and return the answer. Blocks.

        Args:
            prompt: what is asked, sent as it is (but for halves of surrogate pairs).
            model: another model, for this run.
            mode: another approval mode, for this run.
            endpoint: another endpoint, for this run.
            front: who looks on; by default nobody.

        Raises:
            UsageError: an empty prompt, a wrong option, a run within a run.
            AgentError: what went wrong; the next run can go on.
            Interrupted: the user stopped it.
        """
        if not prompt.strip():
            raise UsageError("the prompt is empty: write what you want below %%agent")
        changes = {"model": model, "mode": mode}
        settings = self.settings.replace(**{k: v for k, v in changes.items() if v is not None})
        target = self._endpoint if endpoint is None else _endpoint(endpoint)
        front = front or Quiet()
        with self._one_at_a_time():
            on_offer = offered(TOOLS, settings.tools, target.hidden_tools)
            ask = Ask(
                prompt=prompt.encode("utf-8", "replace").decode(),
                fields=self._fields_for(settings, target, on_offer),
                endpoint=target.name,
                budget_turns=settings.budget_turns,
                budget_seconds=settings.budget_seconds,
            )
            worker = Worker(on_offer, settings.mode, front.approve, target)
            way, said = self._way_to(target), self._conversation
            text = attend(
                lambda perform, hear: answer(ask, said, way, perform, hear),
                worker,
                front,
                self._loop(),
                self.records.hear,
            )
            return Answer(text, self.records, len(self.records.cells))

    def warm(self, front: Front | None = None) -> None:
        """Connect, and have the endpoint take in instructions, tools and what was said so far.

        Args:
            front: who looks on, since a server may have to start first; by default nobody.

        Raises:
            AgentError: as for a run.
        """
        with self._one_at_a_time():
            on_offer = offered(TOOLS, self.settings.tools, self._endpoint.hidden_tools)
            fields = self._fields_for(self.settings, self._endpoint, on_offer)
            way, said = self._way_to(self._endpoint), self._conversation
            front = front or Quiet()
            attend(
                lambda _, hear: warm(fields, said, way, hear),
                Worker({}, self.settings.mode, front.approve, self._endpoint),
                front,
                self._loop(),
                lambda _: None,
            )

    def connect(
        self, endpoint: str | Endpoint, *, model: str | None = None, key_env: str | None = None
    ) -> Endpoint:
        """Choose another endpoint; the conversation goes on there with the next run.

        Raises:
            UsageError: it is no endpoint.
        """
        chosen = _endpoint(endpoint, model=model, key_env=key_env)
        self.disconnect()
        self._endpoint = chosen
        if model is not None:
            self.model = None
        return chosen

    def configure(self, name: str, value: Any) -> None:
        """Set one setting by its name; `endpoint` too.

        Raises:
            UsageError: there is no such setting, or the value does not fit.
        """
        if name == "endpoint":
            self.connect(value)
        else:
            self.settings = self.settings.replace(**{name: value})

    def disconnect(self) -> None:
        """Close the connections; the next run opens one and sends the whole conversation."""
        if self._background is not None:
            with self._one_at_a_time():
                for way in self._ways.values():
                    self._loop().call(way.aclose())

    def reset(self) -> None:
        """Begin a new conversation; the records stay."""
        with self._one_at_a_time():
            self._conversation = Conversation()

    def close(self) -> None:
        """Close the connections with 1000 and end the thread. A forked child does nothing."""
        if self._background is not None and self._background.ours:
            self._goodbye()
            self._background = None

    # how it stands

    @property
    def endpoint(self) -> Endpoint:
        """Where the next run goes."""
        return self._endpoint

    @property
    def toolbox(self) -> dict[str, Tool]:
        """The tools on offer."""
        return offered(TOOLS, self.settings.tools, self._endpoint.hidden_tools)

    def describe(self) -> str:
        """Return where the session stands, in a few lines."""
        turns = [row for row in self.records.turns if row.status != "running"]
        read = sum(row.input_tokens or 0 for row in turns)
        cached = sum(row.cached_tokens or 0 for row in turns)
        share = f", {cached / read:.0%} of the input from the cache" if read else ""
        said = self._conversation.items
        model = self.settings.model or self._endpoint.model or "the endpoint's own"
        return "\n".join(
            (
                f"endpoint    {self._endpoint.name} ({self._endpoint.url or 'embedded server'})",
                f"model       {model}",
                f"connection  {self._way_to(self._endpoint).describe()}",
                f"mode        {self.settings.mode}",
                f"said        {said.length} items, {said.size:,} bytes",
                f"turns       {len(turns)} in {len(self.records.cells)} cells{share}",
            )
        )

    def __repr__(self) -> str:
        return f"<Session {self.id}: {self._endpoint.name}, {len(self.records.turns)} turns>"

    # inside

    def _fields_for(self, settings: Settings, target: Endpoint, tools: dict[str, Tool]) -> Fields:
        """Return all of a request but its input, the same object while nothing changed."""
        values = {
            "model": settings.model or target.model,
            "instructions": settings.instructions or target.instructions,
            "tools": [tool.definition for tool in tools.values()],
            "store": settings.store,
            "prompt_cache_key": settings.prompt_cache_key or self.id,
        }
        values = {name: value for name, value in values.items() if value not in (None, [])}
        if values != self._fields.values:
            self._fields = Fields(values)
        return self._fields

    def _way_to(self, endpoint: Endpoint) -> Transport:
        if endpoint not in self._ways:
            self._ways[endpoint] = WebSocketTransport(endpoint)
        return self._ways[endpoint]

    def _loop(self) -> Background:
        if self._background is None:
            self._background = Background()
            self._goodbye = weakref.finalize(self, _say_goodbye, self._background, self._ways)
        return self._background

    @contextlib.contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        if self._background is not None:
            self._background.check()
        if self._busy_thread == threading.get_ident():
            raise UsageError("a run is under way: an agent cannot be asked from within a tool")
        with self._busy:
            self._busy_thread = threading.get_ident()
            try:
                yield
            finally:
                self._busy_thread = None


def _say_goodbye(background: Background, ways: dict[Endpoint, Transport]) -> None:
    """Close what is open: when the session is closed, forgotten, or the process ends."""
    if not background.ours:
        return
    for way in ways.values():
        with contextlib.suppress(Exception):  # nobody is left to be told
            background.call(way.aclose(), CLOSE_SECONDS)
    background.stop()


def _endpoint(endpoint: str | Endpoint | None, **changes: str | None) -> Endpoint:
    if isinstance(endpoint, Endpoint):
        told: dict[str, Any] = {k: v for k, v in changes.items() if v is not None}
        return dataclasses.replace(endpoint, **told)
    return Endpoint.default() if endpoint is None else Endpoint.named(endpoint, **changes)


_session: Session | None = None


def session() -> Session:
    """Return this process's session: the one that `%%agent` talks to."""
    global _session  # noqa: PLW0603 (one session a kernel is the point)
    if _session is None:
        _session = Session(**CONFIGURED)
    return _session
