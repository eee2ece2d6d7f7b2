"""A session's journal: what it is told becomes facts, which a file keeps.

The file comes with the first run. What is told after it cannot be written any more is forgotten,
and who asks is told why.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from ipy_agent.agent.notes import Notes
from ipy_agent.agent.tree import Run
from ipy_agent.errors import JournalFailed
from ipy_agent.journal.facts import (
    Added,
    Asked,
    Begun,
    Called,
    Dropped,
    Ended,
    Fact,
    Forked,
    ForkedAt,
    Intended,
    Opened,
    Said,
    Switched,
    Turned,
    Undone,
)
from ipy_agent.journal.file import Writer
from ipy_agent.journal.folder import sweep
from ipy_agent.protocol.events import Event, ItemDone
from ipy_agent.protocol.items import Chain, Item, is_call
from ipy_agent.records import CellRecord, Listener
from ipy_agent.trace import (
    ItemsAdded,
    RunBegan,
    RunEnded,
    ToolEnded,
    Trace,
    TurnBegan,
    TurnEnded,
)

__all__ = ["Journal"]

MOMENT_SECONDS = 0.005


class Journal(Notes):
    """Keeps a session in a file.

    Args:
        path: the file.
        session: the session's id.
        runs: the runs that earlier facts gave, in their order.
        facts: earlier facts that are to be in the file first, if they are not yet.
    """

    def __init__(
        self,
        path: Path,
        session: str,
        *,
        runs: Sequence[Run] = (),
        facts: Sequence[Fact] = (),
    ) -> None:
        self._path = path
        self._session = session
        self._writer: Writer | None = None
        self._keys: dict[Run, int] = {run: key for key, run in enumerate(runs)}
        self._earlier = facts
        self._waiting: list[Fact] = []
        self._told: defaultdict[int, list[Item]] = defaultdict(list)
        self._intents: dict[str, Future[None]] = {}
        self._is_waking = False

    @property
    def trouble(self) -> str | None:
        return None if self._writer is None else self._writer.trouble

    def switched(self, name: str) -> None:
        self._put(Switched(name=name))

    def forked(self, name: str, source: str) -> None:
        self._put(Forked(name=name, source=source))

    def forked_at(self, name: str, number: int, length: int, part: Run | None) -> None:
        self._put(ForkedAt(name=name, number=number, length=length))
        if part is not None:
            self._keys[part] = len(self._keys)

    def added(self, run: Run, replaced: Run | None) -> None:
        parent = run.parent
        told = self._told.pop(run.number, [])
        items: list[Item] | None = run.said.since(0 if parent is None else parent.said.length)
        if run.is_compaction:
            items = list(run.said)
        elif len(items or ()) == len(told) and all(
            one is other for one, other in zip(items or (), told, strict=True)
        ):
            items = None
        self._put(
            Added(
                number=run.number,
                branch=run.branch,
                cell=run.cell,
                parent=None if parent is None else self._keys.get(parent),
                replaced=None if replaced is None else self._keys.get(replaced),
                items=items,
                prompt=run.prompt,
                tokens=run.tokens,
                left=run.left,
            )
        )
        self._keys[run] = len(self._keys)

    def ended(self, row: CellRecord) -> None:
        self._put(Ended(cell=row))

    def undone(self, branch: str) -> None:
        self._put(Undone(branch=branch))

    def dropped(self) -> None:
        self._put(Dropped())
        self._keys.clear()

    def heard(self, event: Event | Trace, rows: Listener) -> None:
        note = self._HEARS.get(type(event))
        if note is not None:
            note(self, event, rows)

    def intended(self, call: Item) -> Future[None]:
        return self._intents.pop(str(call["call_id"]), None) or self._intend(call)

    async def kept(self) -> None:
        if self._writer is None:
            return
        written = self._writer.promise()
        self._writer.write()
        with contextlib.suppress(JournalFailed):  # that is told as trouble
            await asyncio.wrap_future(written)
        self._writer.sync()

    def _intend(self, call: Item) -> Future[None]:
        self.open()
        assert self._writer is not None  # noqa: S101 (it was opened just now)
        self._writer.add(Intended(call_id=str(call["call_id"]), name=str(call["name"])))
        written = self._writer.promise()
        self._writer.write()
        return written

    def open(self) -> None:
        """Begin the file, or go on with it, unless that is done."""
        if self._writer is not None:
            return
        self._writer = Writer(self._path)
        opened = Opened(session=self._session, at=datetime.now(UTC), folder=str(Path.cwd()))
        for fact in (*self._earlier, opened, *self._waiting):
            self._writer.put(fact)
        self._earlier = ()
        self._waiting.clear()
        # Nobody waits for that.
        threading.Thread(target=sweep, args=(self._path,), daemon=True).start()

    def check(self) -> None:
        """Wait until what was told is written.

        Raises:
            JournalFailed: it cannot be.
        """
        if self._writer is not None:
            self._writer.written().result()

    def close(self) -> None:
        """Write what is left, and let go of the file."""
        if self._writer is not None:
            self._writer.close()

    # what is heard of a run

    def _run_began(self, _: RunBegan, rows: Listener) -> None:
        self.open()
        self._is_waking = False  # a loop that was closed since wakes nobody any more
        self._note(Begun(cell=rows.row))

    def _turn_began(self, _: TurnBegan, rows: Listener) -> None:
        self._intents.clear()
        self._note(Asked(turn=rows.turn))

    def _items_added(self, event: ItemsAdded, rows: Listener) -> None:
        if not event.items:
            return
        turn = rows.turn
        self._told[turn.cell] += event.items
        self._note(Said(cell=turn.cell, turn=turn.turn, branch=turn.branch, items=event.items))

    def _item_done(self, event: ItemDone, _: Listener) -> None:
        """Write a call's intent while its response is still ending: then nobody waits for that."""
        call = event.item
        if is_call(call) and isinstance(call.get("call_id"), str) and call.get("name"):
            self._intents[call["call_id"]] = self._intend(call)

    def _tool_ended(self, _: ToolEnded, rows: Listener) -> None:
        self._note(Called(tool=rows.tool))

    def _turn_ended(self, event: TurnEnded, rows: Listener) -> None:
        said = event.said
        bare = msgspec.structs.replace(rows.turn, said=None)
        self._note(Turned(turn=bare, length=said.length if isinstance(said, Chain) else 0))

    def _run_ended(self, _: RunEnded, rows: Listener) -> None:
        self._note(Ended(cell=rows.row))

    _HEARS: ClassVar[dict[type, Callable[[Journal, Any, Listener], None]]] = {
        RunBegan: _run_began,
        TurnBegan: _turn_began,
        ItemDone: _item_done,
        ItemsAdded: _items_added,
        ToolEnded: _tool_ended,
        TurnEnded: _turn_ended,
        RunEnded: _run_ended,
    }

    def _note(self, fact: Fact) -> None:
        """Have a fact written a moment later, with what else is told by then."""
        if self._writer is None:
            self._waiting.append(fact)
            return
        self._writer.add(fact)
        if not self._is_waking:
            self._is_waking = True
            asyncio.get_running_loop().call_later(MOMENT_SECONDS, self._wake)

    def _wake(self) -> None:
        self._is_waking = False
        if self._writer is not None:
            self._writer.write()

    def _put(self, fact: Fact) -> None:
        if self._writer is None:
            self._waiting.append(fact)
        else:
            self._writer.put(fact)
