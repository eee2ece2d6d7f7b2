"""The branches of a session: named conversations that share what they have in common.

Rule 1: a branch's name is a lane's name too, so it has to be one.
Rule 2: who has a run is known by thread: a tool that asks the agent that called it is refused,
and does not wait for itself for ever.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from ipy_agent.agent.conversation import MAIN, Conversation
from ipy_agent.errors import UsageError
from ipy_agent.protocol.items import Chain
from ipy_agent.protocol.lanes import is_name

__all__ = ["Branches"]


class Branches:
    """Conversations by name, and who has a run on them.

    Attributes:
        current: the branch that is meant where none is named.
    """

    def __init__(self) -> None:
        self.current = MAIN
        self._conversations = {MAIN: Conversation()}
        self._locks = {MAIN: threading.Lock()}
        self._running: set[int] = set()
        self._naming = threading.RLock()

    @property
    def names(self) -> tuple[str, ...]:
        """Their names, `main` first."""
        return tuple(self._conversations)

    def named(self, name: str | None) -> str:
        """Return the name of a branch that is there now: a new one forks the current branch.

        Raises:
            UsageError: no branch can have that name.
        """
        if name is None:
            return self.current
        with self._naming:
            if name not in self._conversations:
                self.fork(name)
        return name

    def switch(self, name: str) -> None:
        """Go on there; a new name forks the current branch.

        Raises:
            UsageError: no branch can have that name.
        """
        self.current = self.named(name)

    def fork(self, name: str, said: Chain | None = None) -> None:
        """Begin a branch with what was said, by default on the current branch when it was at rest.

        Raises:
            UsageError: the name is taken, or no branch can have it.
        """
        if not is_name(name):
            raise UsageError(
                f"{str(name)[:80]!r} is no name for a branch: take 1 to 256 letters, digits, "
                "'_', '.' or '-'"
            )
        with self._naming:
            if name in self._conversations:
                raise UsageError(f"there is a branch {name!r}: take another name, or switch to it")
            source = self._conversations[self.current].at_rest if said is None else said
            self._locks[name] = threading.Lock()
            self._conversations[name] = Conversation(name, source)

    def conversation(self, name: str) -> Conversation:
        """Return what was said on a branch."""
        return self._conversations[name]

    @contextlib.contextmanager
    def alone_on(self, name: str) -> Iterator[None]:
        """Have a branch for a run; another thread's run on it is waited for."""
        self._refuse_within()
        me = threading.get_ident()
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
            for name in sorted(self._locks):
                stack.enter_context(self._locks[name])
            yield

    def _refuse_within(self) -> None:
        if threading.get_ident() in self._running:
            raise UsageError("a run is under way: an agent cannot be asked from within a tool")
