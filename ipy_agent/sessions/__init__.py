"""The sync face: blocking calls over one event loop that runs on a thread of its own.

The thread answers pings while a cell computes; tools, output and questions stay on the
caller's thread. A run has an inbox of its own: the loop puts in what happens, the caller
takes it out, shows it, and runs the tools that are asked for.

Rule 1: one run at a time on a branch; another thread waits, the same thread (a tool) is refused.
Rule 2: what concerns all branches waits until none has a run.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipy_agent.agent.branches import Branches
from ipy_agent.agent.calls import Worker
from ipy_agent.agent.conversation import compacted
from ipy_agent.agent.early import Hear, Perform
from ipy_agent.agent.loop import warm
from ipy_agent.agent.notes import Notes
from ipy_agent.agent.plan import Tell
from ipy_agent.agent.runs import Front, Quiet, attend
from ipy_agent.agent.tools import TOOLS, Tool
from ipy_agent.agent.tree import Run
from ipy_agent.answers import Answer
from ipy_agent.connections import Connections
from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import UsageError
from ipy_agent.execution import Execution
from ipy_agent.journal.folder import path_of, rows_path
from ipy_agent.journal.journal import Journal
from ipy_agent.journal.resume import Resumed, new_id, resume
from ipy_agent.planning import Planner, endpoint_of
from ipy_agent.protocol.items import Chain
from ipy_agent.records import Recorder, TurnRecord
from ipy_agent.sessions.chosen import Chosen
from ipy_agent.settings import CONFIGURED, KERNEL, Settings, Way
from ipy_agent.trace import Notice
from ipy_agent.transport import Transport
from ipy_agent.transport.rehearsal import Rehearsal

if TYPE_CHECKING:
    from pandas import DataFrame

    from ipy_agent.fleet.maps import Maps

__all__ = ["Session", "session"]

_HOMELESS = "what this cell followed was reset: it goes on from where the new conversation ends"


class Session(Chosen):
    """A conversation, and the live connection that it goes over.

    Args:
        endpoint: a preset's name, a base URL or an `Endpoint`; by default what the
            environment asks for.
        transport: another way to answers, such as a `ScriptedTransport`.
        toolbox: the tools that there are; by default those of this process.
        settings: any setting by name, such as `mode="auto"`; each is an attribute too.

    Attributes:
        records: what happened, as rows; `turns`, `cells`, `tools` and `messages` are its tables.
    """

    def __init__(
        self,
        endpoint: str | Endpoint | None = None,
        *,
        transport: Transport | Way = "auto",
        toolbox: Mapping[str, Tool] = TOOLS,
        **settings: Any,
    ) -> None:
        self.id: str = new_id()
        way = transport if isinstance(transport, str) else "auto"
        chosen = Settings().replace(transport=way, **settings)
        self._planner = Planner(chosen, endpoint_of(endpoint), self.id, toolbox)
        self.records = Recorder()
        self._connections = Connections()
        if not isinstance(transport, str):
            self._connections.use(transport, self.endpoint)
        self._notes = Journal(path_of(self.id), self.id) if chosen.journal else Notes()
        self._branches = Branches(self.records.stands, self._notes)
        self._execution = Execution(self.records, self._connections, self._notes)
        self._homeless: set[str | None] = set()
        self._maps: Maps | None = None
        self._making = threading.Lock()

    def run(
        self,
        prompt: str,
        *,
        branch: str | None = None,
        cell: str | None = None,
        append: bool = False,
        model: str | None = None,
        mode: str | None = None,
        effort: str | None = None,
        max_output_tokens: int | None = None,
        schema: Any = None,
        images: Sequence[Any] = (),
        endpoint: str | Endpoint | None = None,
        background: Tell | None = None,
        front: Front | None = None,
    ) -> Answer:
        """Ask, run the tools that are called, and return the answer. Blocks.

        Args:
            prompt: what is asked, sent as it is (but for halves of surrogate pairs).
            branch: where, for this run; a new name forks the current branch.
            cell: who asks: what it said before on this branch is replaced, and what built on
                that is stale. By default nobody: the run goes to the end.
            append: go to the end whoever asks; what was said before stays.
            model: another model, for this run.
            mode: another approval mode, for this run.
            effort: how hard a reasoning model thinks, for this run.
            max_output_tokens: tokens that a response may have, for this run.
            schema: the type that the answer has to be: a dataclass, a msgspec struct, a pydantic
                model or an annotation; the answer's `value` is one.
            images: pictures to look at: paths, bytes, figures; one, or several.
            endpoint: another endpoint, for this run.
            background: what there is to tell by itself, as the setting `context` asks for it.
            front: who looks on; by default nobody.

        Raises:
            UsageError: an empty prompt, a wrong option, a run within a run.
            AnswerMisfit: what the model said does not fit the schema, twice.
            AgentError: what went wrong; the next run can go on.
            Interrupted: the user stopped it.
        """
        changes = {
            "model": model,
            "mode": mode,
            "effort": effort,
            "max_output_tokens": max_output_tokens,
        }
        plan = self._planner.plan(
            prompt, changes, endpoint=endpoint, schema=schema, images=images, cell=cell
        )
        front, name = front or Quiet(), self._branches.named(branch)
        with self._alone(name):
            place = self._branches.place(name, None if append else cell)
            held = place.answer_to(plan.asked) if plan.settings.replay else None
            if held is not None:
                said, number = self._execution.show_again(plan, held, place.said, front)
            else:
                self._tell_homeless(cell, front)
                said, number = self._execution.run(plan, self._branches, place, background, front)
        return Answer(said, self.records, number)

    def map(
        self,
        frame: DataFrame,
        template: str,
        *,
        schema: Any = None,
        tools: Sequence[str] | None = None,
        concurrency: int | None = None,
        out: str | Path | None = None,
        fresh: bool = False,
        client: Any = None,
        branch: str | None = None,
        model: str | None = None,
        mode: str | None = None,
        effort: str | None = None,
        max_output_tokens: int | None = None,
        endpoint: str | Endpoint | None = None,
        front: Front | None = None,
    ) -> Any:
        """Ask once a row, many rows at a time, and return a row for each. Blocks.

        Every row goes on from what was said on the branch so far, as from a fork: the endpoint
        takes that in once. Nothing is added to the conversation. What came of a row is kept by its
        prompt, model and settings: asked again, only rows that failed or changed are asked.

        With a `dask.dataframe`, or with `client`, rows are asked by Dask's workers, each over a
        connection of its own. They read the key from their own environment. Each keeps what came of
        rows on its own disk: when a worker is lost, others there ask only the rest; on another
        machine, and with `fresh`, rows of the lost partition are asked again. The result has each
        row once. What workers take is not counted in the session's budgets.

        Args:
            frame: the table; a lazy one of Dask gives a lazy one, which asks when it is computed.
            template: the prompt; `{column}` is put in from the row, and nothing else.
            schema: the type that an answer has to be, as for `run`; its fields become columns.
            tools: the names of the tools that rows may call; by default none.
            concurrency: rows under way at once, 1 to 256, on each worker; by default what suits
                the endpoint.
            out: a `.parquet` file to write to piece by piece, for more than fits into memory.
            fresh: ask all rows, whatever came of them before.
            client: a `dask.distributed.Client`, whose workers ask.
            branch: whose conversation the rows go on from.
            model: another model.
            mode: another approval mode.
            effort: how hard a reasoning model thinks.
            max_output_tokens: tokens that an answer may have.
            endpoint: another endpoint.
            front: who looks on; by default a bar in the notebook's cell, elsewhere nobody.

        Returns:
            A frame with the index of `frame`: the answer as `answer`, or the fields of the schema,
            then `status`, `error`, `latency_ms`, `input_tokens`, `cached_tokens`, `output_tokens`
            and `cost_usd`. With `out`, that file's path. Of a lazy frame a lazy one, with the same
            columns and dtypes.

        Raises:
            UsageError: a column that there is not, or a wrong option.
            AgentError: what no row could get past; its `result` holds what was done.
            Interrupted: the user stopped it; so it does then.
        """
        from ipy_agent.fleet import FRONTS  # noqa: PLC0415 (seldom needed)
        from ipy_agent.fleet.maps import INSTRUCTIONS, Job, Maps  # noqa: PLC0415 (seldom needed)

        changes = {
            "model": model,
            "mode": mode,
            "effort": effort,
            "max_output_tokens": max_output_tokens,
            "instructions": self.settings.instructions or INSTRUCTIONS,
            "tools": tuple(tools or ()),
        }
        plan = self._planner.plan(
            template, changes, endpoint=endpoint, schema=schema, images=(), cell=None
        )
        with self._making:
            self._maps = self._maps or Maps(self._connections, self._execution.spending)
        name = self.branch if branch is None else branch
        if name not in self.branches:
            raise UsageError(f"there is no branch {name!r}: see %agent branch")
        looks_on = FRONTS and front is None
        seen = FRONTS[-1]() if looks_on else contextlib.nullcontext(front or Quiet())
        with self._alone(name), seen as onlooker:
            job = Job(
                plan=plan,
                shared=self._branches.place(name).said,
                kept=rows_path() if plan.settings.journal else None,
                concurrency=concurrency,
                out=None if out is None else Path(out),
                fresh=fresh,
            )
            if client is not None or type(frame).__module__.startswith("dask."):
                from ipy_agent.fleet.workers import mapped  # noqa: PLC0415 (an extra)

                return mapped(
                    frame,
                    job,
                    schema=schema,
                    kept=rows_path if plan.settings.journal else None,
                    connections=self._connections,
                    client=client,
                    front=onlooker,
                )
            return self._maps.run(frame, job, onlooker, self._execution.allowances)

    def rehearse(
        self,
        prompt: str,
        *,
        branch: str | None = None,
        cell: str | None = None,
        append: bool = False,
        schema: Any = None,
        images: Sequence[Any] = (),
        endpoint: str | Endpoint | None = None,
        background: Tell | None = None,
        **settings: Any,
    ) -> Rehearsal:
        """Return what `run` would send first, and how much of it is held. Sends nothing.

        Takes what `run` takes.

        Raises:
            UsageError: as for a run.
        """
        changes = {name: value for name, value in settings.items() if name != "front"}
        plan = self._planner.plan(
            prompt, changes, endpoint=endpoint, schema=schema, images=images, cell=cell
        )
        name = self.branch if branch is None else branch
        with self._alone(name if name in self.branches else self.branch):
            place = self._branches.place(name, None if append else cell)
            return self._execution.rehearsed(plan, place, background)

    def undo(self) -> Run:
        """Take back the last run on this branch, with all that it replaced and made stale.

        Variables, files and what else its tools did stay.

        Returns:
            The run, with its `number` in `cells` and its `prompt`.

        Raises:
            UsageError: there is none.
        """
        return self._branches.undo()

    def fork(self, name: str, at: int | None = None) -> None:
        """Begin a branch that shares what was said so far, or up to a turn. Sends nothing.

        Args:
            name: 1 to 256 letters, digits, `_`, `.` or `-`.
            at: the turn after which it branches off, by its number in `turns`; by default the
                last one of the current branch.

        Raises:
            UsageError: the name is taken or no name, or no such turn was answered.
        """
        self._branches.fork(name, None if at is None else _said_at(self.records.turns, at))

    def compact(self, front: Front | None = None) -> tuple[int, int]:
        """Have the endpoint put what was said into fewer items, for this branch.

        Args:
            front: who looks on, since a server may have to start first; by default nobody.

        Returns:
            How many items there were, and how many there are.

        Raises:
            UsageError: nothing was said yet, or the endpoint cannot.
            AgentError: as for a run.
        """
        name = self.branch
        with self._alone(name):
            place = self._branches.place(name)
            said, before = place.begun(), place.said.length
            if not before:
                raise UsageError("nothing was said yet on this branch: there is nothing to compact")
            fields, way = self._planner.fields, self._connections.compacting(self.endpoint)
            self._attend(lambda _, __: compacted(said, fields, way), front)
            self._branches.add(place.compacted(said))
            return before, said.items.length

    def warm(self, front: Front | None = None) -> None:
        """Connect, and have the endpoint take in instructions, tools and what was said so far.

        Args:
            front: who looks on, since a server may have to start first; by default nobody.

        Raises:
            AgentError: as for a run.
        """
        name = self.branch
        with self._alone(name):
            said, fields = self._branches.place(name).begun(), self._planner.fields
            way = self._connections.to(self.endpoint, self.settings.transport)
            self._attend(lambda _, hear: warm(fields, said, way, hear), front)

    def reset(self) -> None:
        """Begin a new conversation, with one branch; the records stay."""
        with self._alone():
            self._homeless |= self._branches.tree.cells
            self._branches.drop()
            self._branches = Branches(self.records.stands, self._notes)

    def resume(self, session: str, *, copy: bool = False) -> Resumed:
        """Go on with a session that was kept: its conversation, its branches, its rows.

        The next run connects and sends all of it. No tool runs again, and variables are not kept.

        Args:
            session: its id, or the beginning of that.
            copy: leave it as it is, and go on with a copy.

        Returns:
            What there is to tell of it.

        Raises:
            UsageError: there is no such session, somebody else has it, or this one has runs.
            JournalFailed: the folder cannot be written.
        """
        with self._alone():
            if self.records.cells:
                raise UsageError(
                    "this session has runs of its own: resume before the first cell of a kernel"
                )
            found = resume(session, self.records, copy=copy)
            self.id, self._branches = found.session, found.branches
            self._planner.key = found.session
            self._keep(found.journal)
            self._planner.settings = self.settings.replace(journal=True)
            return found

    def close(self) -> None:
        """Close the connections with 1000 and end the thread. A forked child does nothing."""
        if self._maps is not None:
            self._maps.close()
        self._connections.close()
        self._notes.close()

    # inside

    def _tell_homeless(self, cell: str | None, front: Front) -> None:
        if cell in self._homeless:
            self._homeless.discard(cell)
            front.show(Notice(text=_HOMELESS, lasting=True))

    def _attend(
        self, begin: Callable[[Perform, Hear], Coroutine[Any, Any, None]], front: Front | None
    ) -> None:
        """See through what is no run: it calls no tools and leaves no rows."""
        front = front or Quiet()
        worker = Worker({}, self.settings.mode, front.approve, self.endpoint)
        attend(begin, worker, front, self._connections.loop, lambda _: None)


def _said_at(turns: Sequence[TurnRecord], at: int) -> tuple[int, Chain]:
    """Return a turn's cell run, and the conversation as the turn left it."""
    number = at if isinstance(at, int) and not isinstance(at, bool) else 0
    row = turns[number - 1] if 0 < number <= len(turns) else None
    if row is None or row.response_id is None or not isinstance(row.said, Chain):
        raise UsageError(f"turn {at} has no answer to go on from: see %agent turns")
    return row.cell, row.said


_session: Session | None = None


def session() -> Session:
    """Return this process's session: the one that `%%agent` talks to."""
    global _session  # noqa: PLW0603 (one session a kernel is the point)
    if _session is None:
        _session = Session(**{"journal": KERNEL.journal, **CONFIGURED})
    return _session
