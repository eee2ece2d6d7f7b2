"""What a user sets of a session: settings as attributes, its endpoint, what tools may do.

Rule 1: what is set is checked when it is set, and changes nothing where it does not fit.
Rule 2: what concerns all branches waits until none has a run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ipy_agent.agent.notes import Notes
from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import UsageError
from ipy_agent.journal.folder import path_of
from ipy_agent.journal.journal import Journal
from ipy_agent.planning import endpoint_of
from ipy_agent.sessions.told import Told

__all__ = ["Chosen"]


class _Setting:
    """A setting as an attribute of a session, checked when set."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: Chosen | None, owner: type | None = None) -> Any:
        return self if instance is None else getattr(instance.settings, self._name)

    def __set__(self, instance: Chosen, value: Any) -> None:
        instance.configure(self._name, value)


class Chosen(Told):
    """What there is to set of a session."""

    _notes: Notes

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
    context = _Setting("context")
    journal = _Setting("journal")
    replay = _Setting("replay")
    budget_turns = _Setting("budget_turns")
    budget_seconds = _Setting("budget_seconds")
    budget_tokens = _Setting("budget_tokens")
    budget_usd = _Setting("budget_usd")
    session_turns = _Setting("session_turns")
    session_seconds = _Setting("session_seconds")
    session_tokens = _Setting("session_tokens")
    session_usd = _Setting("session_usd")

    def configure(self, name: str, value: Any) -> None:
        """Set one setting by its name; `endpoint` too.

        Raises:
            UsageError: there is no such setting, or the value does not fit.
        """
        if name == "endpoint":
            self.connect(value)
            return
        settings = self.settings.replace(**{name: value})
        if settings.journal != self.settings.journal:
            self._switch_journal(settings.journal)
        self._planner.settings = settings

    def connect(
        self, endpoint: str | Endpoint, *, model: str | None = None, key_env: str | None = None
    ) -> Endpoint:
        """Choose another endpoint; the conversation goes on there with the next run.

        Raises:
            UsageError: it is no endpoint.
        """
        chosen = endpoint_of(endpoint, model=model, key_env=key_env)
        self.disconnect()
        self._planner.endpoint = chosen
        if model is not None:
            self.model = None
        return chosen

    def disconnect(self) -> None:
        """Close the connections; the next run opens one and sends the whole conversation."""
        with self._alone():
            self._connections.disconnect()

    def allow(self, tool: str, *, once: bool = False) -> None:
        """Let a tool run without the question of mode `ask`: its next call, or all from now on.

        In mode `read` nothing with side effects runs all the same.

        Raises:
            UsageError: there is no such tool.
        """
        self._execution.allowances.allow(self._offered(tool), once=once)

    def disallow(self, tool: str) -> None:
        """Take an allowance back: mode `ask` asks about the tool again.

        Raises:
            UsageError: there is no such tool.
        """
        self._execution.allowances.withdraw(self._offered(tool))

    # inside

    def _offered(self, tool: str) -> str:
        if tool not in self.toolbox:
            there = ", ".join(self.toolbox) or "none"
            raise UsageError(f"there is no tool {tool!r}: there are {there}")
        return tool

    def _switch_journal(self, on: bool) -> None:
        if on and self.records.cells:
            raise UsageError("a session is kept from its beginning: set it before the first cell")
        self._keep(Journal(path_of(self.id), self.id) if on else Notes())

    def _keep(self, notes: Notes) -> None:
        """Be kept in another way from now on."""
        self._notes.close()
        self._notes = self._branches.notes = self._execution.notes = notes

    @contextlib.contextmanager
    def _alone(self, name: str | None = None) -> Iterator[None]:
        """Have a branch, or all of them, for oneself."""
        self._connections.check()
        branches = self._branches
        with branches.all_at_rest() if name is None else branches.alone_on(name):
            if branches is not self._branches:
                raise UsageError("the session was reset while this waited: run it again")
            yield
