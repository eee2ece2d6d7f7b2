"""What each `%agent` command does, and the words that it takes.

Rule 1: a command hands over to the session and prints or returns what comes back.
Rule 2: what only sets something brings in no session: it is made with the first use.
"""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentTypeError, Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from IPython.core.magic_arguments import MagicArgumentParser

from ipy_agent.agent.approval import Verdict, verdict
from ipy_agent.agent.budget import KINDS, Used
from ipy_agent.agent.tools import Tool
from ipy_agent.errors import UsageError
from ipy_agent.notebook import journals
from ipy_agent.notebook.figures import have_shown
from ipy_agent.rendering import plain
from ipy_agent.settings import CONTEXTS, MODES, TRANSPORTS, Settings

if TYPE_CHECKING:
    from ipy_agent.sessions import Session

__all__ = ["COMMANDS", "LINE"]


class Magics(Protocol):
    """Whose command it is."""

    @property
    def shell(self) -> Any:
        """The shell that it was loaded into."""

    @property
    def session(self) -> Session:
        """The kernel's session, made at the first use."""

    def choose(self, name: str, value: Any) -> None:
        """Set a setting."""


def _status(magics: Magics, _: Namespace) -> None:
    print(magics.session.describe())


def _toolbox(magics: Magics, _: Namespace) -> None:
    session = magics.session
    for name, tool in session.toolbox.items():
        parameters = ", ".join(tool.parameters["properties"])
        print(f"{name}({parameters})  {_verdict(session, tool)}")
        print(f"    {' '.join(tool.description.split())}")


def _verdict(session: Session, tool: Tool) -> str:
    """Return what happens to the next call of a tool."""
    said = verdict(tool, session.mode)
    if said is Verdict.ASK and tool.name in session.allowed:
        return f"run ({_ALLOWED[session.allowed[tool.name]]})"
    return said.value


_ALLOWED = {"once": "allowed once", "session": "allowed for this session"}


def _panel(magics: Magics, _: Namespace) -> None:
    from ipy_agent.notebook.panel import Board  # noqa: PLC0415 (tables come with a use)

    Board(magics.session.records).show(live=getattr(magics.shell, "kernel", None) is not None)


def _plot(magics: Magics, _: Namespace) -> Any:
    from ipy_agent.tables.plot import plot  # noqa: PLC0415 (tables come with a use)

    figure = plot(magics.session.records)
    have_shown(magics.shell, type(figure))
    return figure


def _bench(magics: Magics, options: Namespace) -> Any:
    from ipy_agent.notebook import bench  # noqa: PLC0415 (it is seldom called)

    return bench.measured(magics.shell, magics.session, options)


def _connect(magics: Magics, options: Namespace) -> None:
    chosen = magics.session.connect(options.endpoint, model=options.model, key_env=options.key_env)
    print(f"the next cell goes to {chosen.name} ({chosen.url or 'embedded server'})")


def _warm(magics: Magics, _: Namespace) -> None:
    from ipy_agent.notebook.terminal import PlainFront  # noqa: PLC0415 (it comes with a run)

    magics.session.warm(PlainFront())
    where = magics.session.describe().splitlines()[2].split(maxsplit=1)[1]
    print(f"warm: {where}")


def _mode(magics: Magics, options: Namespace) -> None:
    magics.choose("mode", options.mode)
    if options.mode == "auto":
        print("mode auto: every tool call runs in this kernel without asking")


def _allow(magics: Magics, options: Namespace) -> None:
    session, name = magics.session, options.tool
    if name is None and options.how:
        raise UsageError(f"--{options.how} for which tool? %agent allow TOOL --{options.how}")
    if name is None:
        for tool, how in session.allowed.items():
            print(f"{tool}  {_ALLOWED[how]}")
        if not session.allowed:
            print("no tool is allowed: %agent allow TOOL --once|--session")
    elif options.how == "off":
        session.disallow(name)
    else:
        session.allow(name, once=options.how == "once")
    if name is not None:
        print(f"mode {session.mode}: {name}  {_verdict(session, session.toolbox[name])}")


def _budget(magics: Magics, options: Namespace) -> None:
    scope = "session" if options.session else "budget"
    said = {f"{scope}_{kind}": getattr(options, kind) for kind in KINDS if kind in options}
    Settings().replace(**said)  # all of them, or none
    for name, value in said.items():
        magics.choose(name, value)
        if value is None:  # that is how a trait says `unset`, and means what is usual
            magics.session.configure(name, None)
    if not said:
        _tell_budget(magics.session)


def _tell_budget(session: Session) -> None:
    """Print each limit, and what is used of it."""
    last = session.used(len(session.records.cells)) if session.records.cells else Used()
    scopes = {"budget": last, "session": session.used()}
    print(f"{'':9}{'last cell':>24}{'session':>24}")
    for kind, shape in KINDS.items():
        told = ""
        for scope, used in scopes.items():
            limit = getattr(session, f"{scope}_{kind}")
            of = f" of {shape.format(limit)}" if limit is not None else ""
            told += f"{shape.format(getattr(used, kind)) + of:>24}"
        print(f"{kind:9}{told}")
    if unpriced := scopes["session"].unpriced:
        print(f"no price is known of {unpriced} turns: they are not in the dollars")


def _limit(word: str) -> int | float | None:
    """Return the limit that a word stands for."""
    if word == "off":
        return None
    try:
        limit = float(word)
    except ValueError:
        raise ArgumentTypeError(f"{word!r} is neither a number nor off") from None
    return int(limit) if limit.is_integer() else limit


def _branch(magics: Magics, options: Namespace) -> None:
    session = magics.session
    if options.name is not None:
        session.branch = options.name
        return
    print(session.tree)


def _undo(magics: Magics, _: Namespace) -> None:
    run = magics.session.undo()
    said = " ".join(plain(run.prompt).split())[:60]
    what = "the compaction" if run.is_compaction else f"run {run.number}: {said!r}"
    print(f"took back {what}; variables stay as they are")


def _replay(magics: Magics, options: Namespace) -> None:
    magics.choose("replay", options.state == "on")


def _fork(magics: Magics, options: Namespace) -> None:
    magics.session.fork(options.name, at=options.at)
    print(f"go on there with %agent branch {options.name}, or %%agent -b {options.name}")


def _compact(magics: Magics, _: Namespace) -> None:
    before, after = magics.session.compact()
    print(f"compacted: {before} items are now {after}")


def _export(magics: Magics, options: Namespace) -> None:
    written = magics.session.export(options.path, options.table, defuse=options.defuse)
    print(f"written: {written}")


def _doctor(magics: Magics, _: Namespace) -> None:
    from ipy_agent import doctor  # noqa: PLC0415 (it is seldom called)

    for finding in doctor.examined(lambda: magics.session.endpoint):
        print(finding)
    for finding in doctor.examined_kernel(magics.shell):
        print(finding)


COMMANDS: dict[str | None, Callable[[Magics, Namespace], Any]] = {
    None: _status,
    "status": _status,
    "turns": lambda magics, _: magics.session.turns,
    "cells": lambda magics, _: magics.session.cells,
    "tools": lambda magics, _: magics.session.tools,
    "messages": lambda magics, _: magics.session.messages,
    "toolbox": _toolbox,
    "panel": _panel,
    "plot": _plot,
    "branch": _branch,
    "fork": _fork,
    "undo": _undo,
    "replay": _replay,
    "connect": _connect,
    "disconnect": lambda magics, _: magics.session.disconnect(),
    "warm": _warm,
    "reset": lambda magics, _: magics.session.reset(),
    "compact": _compact,
    "mode": _mode,
    "allow": _allow,
    "budget": _budget,
    "transport": lambda magics, options: magics.choose("transport", options.transport),
    "context": lambda magics, options: magics.choose("context", options.context),
    "export": _export,
    "sessions": lambda magics, _: journals.sessions(magics.session.id),
    "resume": lambda magics, options: journals.resume(
        magics.session, options.id, magics.shell.user_ns, copy=options.copy
    ),
    "bench": _bench,
    "doctor": _doctor,
}


def _line() -> MagicArgumentParser:
    parser = MagicArgumentParser(prog="%agent")
    commands = parser.add_subparsers(dest="command", parser_class=MagicArgumentParser)
    made = {name: commands.add_parser(name) for name in COMMANDS if name}
    made["connect"].add_argument("endpoint")
    made["connect"].add_argument("-m", "--model")
    made["connect"].add_argument("--key-env")
    made["branch"].add_argument("name", nargs="?")
    made["fork"].add_argument("name")
    made["replay"].add_argument("state", choices=("on", "off"))
    made["fork"].add_argument("--at", type=int, metavar="TURN")
    made["mode"].add_argument("mode", choices=MODES)
    made["allow"].add_argument("tool", nargs="?")
    how = made["allow"].add_mutually_exclusive_group()
    for word in ("once", "session", "off"):
        how.add_argument(f"--{word}", dest="how", action="store_const", const=word)
    for kind in KINDS:
        made["budget"].add_argument(f"--{kind}", type=_limit, default=SUPPRESS)
    made["budget"].add_argument("--session", action="store_true")
    made["transport"].add_argument("transport", choices=TRANSPORTS)
    made["context"].add_argument("context", choices=CONTEXTS)
    made["export"].add_argument("path")
    made["export"].add_argument("--table", default="turns")
    made["export"].add_argument("--defuse", action="store_true")
    for amount in ("turns", "rounds", "chars"):
        made["bench"].add_argument(f"--{amount}", type=int, metavar="N")
    made["bench"].add_argument("--modes", nargs="+", metavar="MODE")
    made["resume"].add_argument("id", metavar="ID")
    made["resume"].add_argument("--copy", action="store_true")
    return parser


LINE = _line()
"""Reads the line of an `%agent` command."""
