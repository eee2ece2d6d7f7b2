"""The life of a server's process: a socket, a sign that it is ready, an end.

`serve` blocks until a signal, or until nobody has been there for long enough. Clients then
hear 1001, the engine lets go, the runtime file disappears, and the process is done.

Rule 1: it listens on 127.0.0.1 and nowhere else.
Rule 2: the one line on standard output comes when requests are answered, and nothing else does.
Rule 3: the token is in the runtime folder or in the environment, never in the output.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from ipy_agent.errors import MissingExtra, UsageError
from ipy_agent.secrets import Secret
from ipy_agent.server.app import app
from ipy_agent.server.connection import CONNECTION_SECONDS
from ipy_agent.server.engine import Engine
from ipy_agent.server.memory import Cache
from ipy_agent.server.sockets import Patience, Strangers, protocols
from ipy_agent.transport.local import TOKEN_VARIABLE, Local
from ipy_agent.transport.runtime import private_content, runtime_folder, write_private

try:
    import uvicorn
except ImportError as missing:
    raise MissingExtra("the embedded server", "local") from missing

__all__ = ["TOKEN_VARIABLE", "Server", "serve", "server_token"]

HOST = "127.0.0.1"
MAX_FRAME = 16 * 2**20
GRACE_SECONDS = 1
PATIENCE = Patience()


def serve(
    engine: Engine,
    *,
    port: int = 0,
    token: Secret | str,
    cache: Cache = "all",
    connection_limit: float = CONNECTION_SECONDS,
    idle_exit: float | None = None,
    runtime_file: Path | None = None,
) -> None:
    """Serve an engine until SIGTERM, Ctrl-C or idleness ends it; then close the engine.

    Args:
        engine: what answers.
        port: where to listen on 127.0.0.1; 0 for a free port.
        token: what clients have to know.
        cache: what each connection keeps of earlier responses.
        connection_limit: the seconds after which a connection is ended.
        idle_exit: end after so many seconds without a connection; `None` for never.
        runtime_file: where to tell, while it runs, how to reach it.

    Raises:
        UsageError: the port is taken, or the runtime file cannot be written.
    """
    try:
        listener = _listener(port)
    except UsageError:
        asyncio.run(engine.aclose())
        raise
    url = f"http://{HOST}:{listener.getsockname()[1]}/v1"
    local = Local(url=url, token=Secret(token), model=engine.models[0], pid=os.getpid())
    published = contextlib.ExitStack()

    def ready() -> None:
        if runtime_file is not None:
            try:
                published.enter_context(local.published(runtime_file))
            except OSError as error:
                raise UsageError(f"{runtime_file} cannot be written: {error.strerror}") from None
        print(f"listening on {url}", flush=True)  # noqa: T201 (the contract's one line)

    server = Server(
        engine,
        listener,
        token=token,
        cache=cache,
        connection_limit=connection_limit,
        idle_exit=idle_exit,
        ready=ready,
        leaving=published.close,
    )
    with published, _signals(server):
        asyncio.run(server.run_to_end())


def server_token() -> Secret:
    """Return the token from the environment, else this user's own, made at the first use."""
    if named := Secret.named(TOKEN_VARIABLE):
        return named
    file = runtime_folder() / "token"
    if private_content(file).strip():
        return Secret(private_content(file).decode("ascii", "replace").strip())
    made = Secret(secrets.token_urlsafe(32))
    write_private(file, made.reveal().encode())
    return made


class Server(uvicorn.Server):
    """uvicorn around the app, with a word when it is ready and a farewell to clients.

    Args:
        ready: called once, when requests are answered.
        leaving: called once, while the port is still ours and nobody is let in any more.
        patience: for how long peers are waited for.
    """

    def __init__(
        self,
        engine: Engine,
        listener: socket.socket,
        *,
        token: Secret | str,
        cache: Cache = "all",
        connection_limit: float = CONNECTION_SECONDS,
        idle_exit: float | None = None,
        ready: Callable[[], None] = lambda: None,
        leaving: Callable[[], None] = lambda: None,
        patience: Patience = PATIENCE,
    ) -> None:
        port = listener.getsockname()[1]
        hosts = (f"{HOST}:{port}", f"localhost:{port}")
        self.gate = app(engine, token, hosts, cache=cache, connection_limit=connection_limit)
        self._engine = engine
        self._listener = listener
        self._idle_exit = idle_exit
        self._ready = ready
        self._leaving = leaving
        super().__init__(
            uvicorn.Config(
                self.gate,
                **protocols(patience, Strangers()),
                ws_max_size=MAX_FRAME,
                ws_per_message_deflate=False,
                lifespan="off",
                loop="asyncio",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )

    async def run_to_end(self) -> None:
        """Serve until `should_exit`, then close the engine."""
        watch = asyncio.create_task(self._watch_idleness())
        try:
            await self.serve(sockets=[self._listener])
        finally:
            watch.cancel()
            self._listener.close()
            await self._engine.aclose()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._leaving()
        await self.gate.close()
        for task in self.server_state.tasks:  # requests over HTTP that are under way
            task.cancel()
        await super().shutdown(sockets)

    async def _watch_idleness(self) -> None:
        while self._idle_exit is not None:
            rest = self._idle_exit - self.gate.quiet_seconds()
            if rest <= 0:
                self.should_exit = True
                return
            await asyncio.sleep(rest)


def _listener(port: int) -> socket.socket:
    # With the protocol named, asyncio sets TCP_NODELAY on what it accepts; without, each
    # turn waits 40 ms for the peer's delayed acknowledgement.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        raise UsageError(
            f"port {port} cannot be had ({error}): name another, or 0 for a free one"
        ) from None
    return listener


@contextlib.contextmanager
def _signals(server: Server) -> Iterator[None]:
    """End the server at SIGTERM and Ctrl-C, with exit code 0.

    uvicorn raises what it caught once more when it is done; it meets these handlers then,
    which have nothing left to do.
    """
    caught = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, server.handle_exit) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
