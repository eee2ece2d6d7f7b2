"""What each `%agent` command does, and the words that it takes.

Rule 1: a command hands over to the session and prints or returns what comes back.
Rule 2: what only sets something brings in no session: it is made with the first use.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from IPython.core.magic_arguments import MagicArgumentParser
from IPython.display import display

from ipy_agent.agent.approval import verdict
from ipy_agent.settings import MODES, TRANSPORTS

if TYPE_CHECKING:
    from ipy_agent.sessions import Session

__all__ = ["COMMANDS", "LINE", "Magics"]


class Magics(Protocol):
    """Whose command it is."""

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
        print(f"{name}({parameters})  {verdict(tool, session.mode).value}")
        print(f"    {' '.join(tool.description.split())}")


def _panel(magics: Magics, _: Namespace) -> None:
    from ipy_agent.notebook.panel import Panel  # noqa: PLC0415 (tables come with a use)

    display(Panel(magics.session.records).static(), raw=True)


def _connect(magics: Magics, options: Namespace) -> None:
    chosen = magics.session.connect(options.endpoint, model=options.model, key_env=options.key_env)
    print(f"the next cell goes to {chosen.name} ({chosen.url or 'embedded server'})")


def _warm(magics: Magics, _: Namespace) -> None:
    from ipy_agent.notebook.terminal import PlainFront  # noqa: PLC0415 (it comes with a run)

    magics.session.warm(PlainFront())
    print(f"warm: {magics.session.describe().splitlines()[2]}")


def _mode(magics: Magics, options: Namespace) -> None:
    magics.choose("mode", options.mode)
    if options.mode == "auto":
        print("mode auto: every tool call runs in this kernel without asking")


def _branch(magics: Magics, options: Namespace) -> None:
    session = magics.session
    if options.name is not None:
        session.branch = options.name
        return
    for name in session.branches:
        print(f"{'*' if name == session.branch else ' '} {name}")


def _fork(magics: Magics, options: Namespace) -> None:
    magics.session.fork(options.name, at=options.at)
    print(f"go on there with %agent branch {options.name}, or %%agent -b {options.name}")


def _compact(magics: Magics, _: Namespace) -> None:
    before, after = magics.session.compact()
    print(f"compacted: {before} items are now {after}")


def _export(magics: Magics, options: Namespace) -> None:
    print(f"written: {magics.session.export(options.path, options.table)}")


COMMANDS: dict[str | None, Callable[[Magics, Namespace], Any]] = {
    None: _status,
    "status": _status,
    "turns": lambda magics, _: magics.session.turns,
    "cells": lambda magics, _: magics.session.cells,
    "tools": lambda magics, _: magics.session.tools,
    "messages": lambda magics, _: magics.session.messages,
    "toolbox": _toolbox,
    "panel": _panel,
    "branch": _branch,
    "fork": _fork,
    "connect": _connect,
    "disconnect": lambda magics, _: magics.session.disconnect(),
    "warm": _warm,
    "reset": lambda magics, _: magics.session.reset(),
    "compact": _compact,
    "mode": _mode,
    "transport": lambda magics, options: magics.choose("transport", options.transport),
    "export": _export,
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
    made["fork"].add_argument("--at", type=int, metavar="TURN")
    made["mode"].add_argument("mode", choices=MODES)
    made["transport"].add_argument("transport", choices=TRANSPORTS)
    made["export"].add_argument("path")
    made["export"].add_argument("--table", default="turns")
    return parser


LINE = _line()
"""Reads the line of an `%agent` command."""
