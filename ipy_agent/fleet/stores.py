"""The stores of a session and the one thread that has them, while maps use them. Made at no cost.

Rule 1: who closes them ends the maps that use them, and waits for what these still write; but no
thread waits for a map of its own, one of whose tools it may be. Whoever is last closes them.
Rule 2: a forked child leaves them alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ipy_agent.fleet.store import Store

__all__ = ["Stores", "Use"]

END_SECONDS = 5.0
"""How long a map has to write what was done."""


class Use:
    """A map's use of a store.

    Attributes:
        thread: where the store is used, and what else is slow.
        store: it.
    """

    def __init__(self, thread: ThreadPoolExecutor, store: Store) -> None:
        self.thread, self.store = thread, store
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[object] | None = None
        self._is_over = False

    def begin(self) -> None:
        """Let the running task be ended with the use, which may be over already."""
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self._is_over:
            raise asyncio.CancelledError

    def end(self) -> None:
        """End that task; from any thread."""
        self._is_over = True
        if self._loop is not None and self._task is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: so is the task
                self._loop.call_soon_threadsafe(self._task.cancel)


class Stores:
    """The stores by their files."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition(threading.RLock())
        self._thread: ThreadPoolExecutor | None = None
        self._stores: dict[Path | None, Store] = {}
        self._uses: dict[Use, int] = {}
        self._is_closed = False

    @contextlib.contextmanager
    def used(self, path: Path | None) -> Iterator[Use]:
        """Have a store, for as long as a map goes on."""
        use = self._began(path)
        try:
            yield use
        finally:
            with self._changed:
                del self._uses[use]
                self._changed.notify_all()
                if self._is_closed:
                    self._let_go()

    def close(self) -> None:
        """End the maps, and let go of the stores."""
        if os.getpid() != self._pid:
            return
        with self._changed:
            self._is_closed = True
            for use in self._uses:
                use.end()
            if threading.get_ident() not in self._uses.values():
                self._changed.wait_for(lambda: not self._uses, END_SECONDS)
            self._let_go()

    def _began(self, path: Path | None) -> Use:
        with self._changed:
            thread = self._thread = self._thread or ThreadPoolExecutor(1, "ipy_agent rows")
            if path not in self._stores:
                self._stores[path] = thread.submit(Store, path).result()
            use = Use(thread, self._stores[path])
            self._uses[use] = threading.get_ident()
            return use

    def _let_go(self) -> None:
        thread = self._thread
        if thread is None or self._uses:
            return
        self._thread = None
        for store in self._stores.values():
            thread.submit(store.close)
        self._stores.clear()
        thread.shutdown()
