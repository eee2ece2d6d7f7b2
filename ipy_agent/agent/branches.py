"""The branches of a session: who may go on with which, and what they are called.

Rule 1: a branch's name is a lane's name too, so it has to be one.
Rule 2: who has a run is known by thread: a tool that asks the agent that called it is refused,
and does not wait for itself for ever.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from ipy_agent.agent.conversation import MAIN
from ipy_agent.agent.notes import Notes
from ipy_agent.agent.places import Place
from ipy_agent.agent.tree import Hear, Run, Tree, live
from ipy_agent.errors import UsageError
from ipy_agent.protocol.items import Chain
from ipy_agent.protocol.lanes import is_name

__all__ = ["Branches"]


class Branches:
    """The tree of what was said, and who has a run on which of its branches.

    Args:
        hear: is told how a run stands whenever that changes.
        notes: is told of everything.

    Attributes:
        current: the branch that is meant where none is named.
        tree: what was said; changed by who has the branch.
    """

    def __init__(
        self, hear: Hear = lambda _number, _standing: None, notes: Notes | None = None
    ) -> None:
        self.current = MAIN
        self.tree = Tree(MAIN, hear)
        self.notes = notes or Notes()
        self._locks = {MAIN: threading.Lock()}
        self._running: set[int] = set()
        self._changing = threading.RLock()

    @property
    def names(self) -> tuple[str, ...]:
        """Their names, `main` first."""
        return self.tree.branches

    def named(self, name: str | None) -> str:
        """Return the name of a branch that is there now: a new one forks the current branch.

        Raises:
            UsageError: no branch can have that name.
        """
        if name is None:
            return self.current
        with self._changing:
            if name not in self.names:
                self.fork(name)
        return name

    def switch(self, name: str) -> None:
        """Go on there.

        Raises:
            UsageError: there is no such branch.
        """
        if name not in self.names:
            raise UsageError(
                f"there is no branch {str(name)[:80]!r}: there are {', '.join(self.names)}; "
                "%agent fork NAME begins one"
            )
        self.current = name
        self.notes.switched(name)

    def place(self, name: str, cell: str | None = None) -> Place:
        """Return a cell's place on a branch, by default its end; a new one would be a fork.

        Raises:
            UsageError: no branch can have that name.
        """
        with self._changing:
            if cell not in self.tree.cells:
                cell = None  # it has no place to be looked for
            if name in self.names:
                return Place.of(self.tree.line(name), name, cell)
            _check(name)
            return Place.of(live(self.tree.line(self.current)), name, cell)

    def fork(self, name: str, at: tuple[int, Chain] | None = None) -> None:
        """Begin a branch, by default with what was said on the current one.

        Args:
            name: its name.
            at: a run's number, and what was said when one of its turns ended.

        Raises:
            UsageError: the name is taken, or no branch can have it; no such run.
        """
        _check(name)
        with self._changing:
            if name in self.names:
                raise UsageError(f"there is a branch {name!r}: take another name, or switch to it")
            self._locks[name] = threading.Lock()
            if at is None:
                self.tree.fork(name, self.current)
                self.notes.forked(name, self.current)
                return
            number, said = at
            part = self.tree.fork_at(name, number, said)
            self.notes.forked_at(name, number, said.length, part)

    def add(self, run: Run, replaced: Run | None = None) -> None:
        """Put a run that said something into its place."""
        with self._changing:
            self.tree.add(run, replaced=replaced)
            self.notes.added(run, replaced)

    def drop(self) -> None:
        """Let go of all that was said; it stands as reset."""
        with self._changing:
            self.tree.drop()
            self.notes.dropped()

    def undo(self) -> Run:
        """Take back the last run on the current branch, and return it.

        Raises:
            UsageError: there is none.
        """
        with self.alone_on(self.current), self._changing:
            run = self.tree.undo(self.current)
            self.notes.undone(self.current)
            return run

    @contextlib.contextmanager
    def alone_on(self, name: str) -> Iterator[None]:
        """Have a branch for a run; another thread's run on it is waited for.

        Raises:
            UsageError: a run within a run, or there is no such branch.
        """
        self._refuse_within()
        me = threading.get_ident()
        if name not in self._locks:
            raise UsageError(f"branch {name!r} went with a reset meanwhile: run it again")
        with self._locks[name]:
            self._running.add(me)
            try:
                yield
            finally:
                self._running.discard(me)

    @contextlib.contextmanager
    def all_at_rest(self) -> Iterator[None]:
        """Have all branches, when none of them has a run any more."""
        self._refuse_within()
        with contextlib.ExitStack() as stack:
            with self._changing:
                locks = [self._locks[name] for name in sorted(self._locks)]
            for lock in locks:
                stack.enter_context(lock)
            yield

    def _refuse_within(self) -> None:
        if threading.get_ident() in self._running:
            raise UsageError("a run is under way: an agent cannot be asked from within a tool")


def _check(name: str) -> None:
    if not is_name(name):
        raise UsageError(
            f"{str(name)[:80]!r} is no name for a branch: take 1 to 256 letters, digits, "
            "'_', '.' or '-'"
        )
