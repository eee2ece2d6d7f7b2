"""`%agent` and `%%agent`: read the line, hand over, show what comes back. No work is done here.

Loading this brings in IPython, which is there already, and nothing else that is heavy: the
session, its socket, the tables and widgets come with the first cell that needs them.
"""

from __future__ import annotations

import keyword
import re
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from IPython.core.error import UsageError as WrongOption
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class
from IPython.core.magic_arguments import MagicArgumentParser, argument, magic_arguments
from IPython.display import display
from traitlets import Bool, Enum, Float, Int, TraitError, Unicode, validate
from traitlets import List as ListOf
from traitlets.config import Config

from ipy_agent.agent.approval import verdict
from ipy_agent.agent.tools import TOOLS
from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import UsageError
from ipy_agent.notebook.kernel import kernel_tools
from ipy_agent.notebook.preview import preview
from ipy_agent.settings import CONFIGURED, MODES, SETTINGS, TRANSPORTS, Settings

if TYPE_CHECKING:
    from ipy_agent.notebook.answer import CellFront
    from ipy_agent.notebook.terminal import PlainFront
    from ipy_agent.sessions import Session

__all__ = ["AgentMagics", "load", "unload"]

_HANDED_OVER = re.compile(r"\$`([^`\n]+)`")


def _setting(trait: type, text: str, *args: Any) -> Any:
    """Return a trait that is unset until the user sets it."""
    return trait(*args, default_value=None, allow_none=True, help=text).tag(config=True)


@magics_class
class AgentMagics(Magics):
    """The agent of this kernel; what is unset here is the session's or the endpoint's default."""

    endpoint = _setting(Unicode, "A preset (such as openai or local) or a base URL.")
    model = _setting(Unicode, "The model; unset, the endpoint's own.")
    instructions = _setting(Unicode, "What the model is told about its job.")
    mode = _setting(Enum, "Which tools run: read, ask (the default) or auto.", MODES)
    tools = _setting(ListOf, "Names of the tools on offer; unset, all.", Unicode())
    store = _setting(Bool, "Whether the endpoint may store responses (no).")
    transport = _setting(Enum, "websocket, http, or auto (the default).", TRANSPORTS)
    effort = _setting(Unicode, "How hard a reasoning model thinks, such as low or high.")
    summary = _setting(Unicode, "The summary of its thoughts that it gives, such as auto.")
    max_output_tokens = _setting(Int, "Tokens that a response may have.")
    parallel_tool_calls = _setting(Bool, "Whether a response may hold several tool calls.")
    compact_tokens = _setting(Int, "Input tokens from which the conversation is compacted.")
    prompt_cache_key = _setting(Unicode, "What the prompt cache routes by (the session's id).")
    budget_turns = _setting(Int, "Turns that a cell run may take (25).")
    budget_seconds = _setting(Float, "Seconds that a cell run may take (1800).")

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self._names = shell.user_ns
        for name in self.trait_names(config=True):
            if getattr(self, name) is not None:
                self._configure(name)

    def update_config(self, config: Config) -> None:
        """Take in settings, for `%config`; one that is said again holds again."""
        super().update_config(config)
        for name in config.get(type(self).__name__, ()):
            if self.has_trait(name):
                self._configure(name)

    @property
    def session(self) -> Session:
        """The kernel's session."""
        from ipy_agent.sessions import session  # noqa: PLC0415 (sockets come with the first use)

        return session()

    @cell_magic("agent")
    @magic_arguments("%agent")
    @argument("-m", "--model", help="The model for this cell.")
    @argument("-o", "--output", metavar="NAME", help="Keep the answer's text in this variable.")
    @argument("--mode", choices=MODES, help="Which tools run in this cell.")
    @argument("--endpoint", help="A preset or a base URL for this cell.")
    def ask(self, line: str, cell: str) -> None:
        """Ask the agent what stands in the cell.

        The answer streams into the cell, and the tools that the model calls run in this kernel.
        The prompt is sent as it is; $`name` hands over a short preview of a variable.
        """
        options = _options(self.ask.parser, line)
        name = options.output
        if name is not None and (not name.isidentifier() or keyword.iskeyword(name)):
            raise UsageError(f"-o {name!r} is no name for a variable")
        prompt = self._handed_over(cell)
        if not prompt.strip():
            raise UsageError("the prompt is empty: write what you want below %%agent")
        front = self._front()
        try:
            answer = self.session.run(
                prompt,
                model=options.model,
                mode=options.mode,
                endpoint=options.endpoint,
                front=front,
            )
        finally:
            front.close()
        if name is not None:
            self._names[name] = answer.text

    @line_magic("agent")  # type: ignore[arg-type]  # IPython annotates it for no function at all
    def tell(self, line: str) -> Any:
        """Tell how the session stands, show its tables, or set something.

        %agent                              status: endpoint, connection, mode, totals
        %agent turns|cells|tools|messages   a DataFrame each
        %agent toolbox                      the tools on offer, and whether they run
        %agent panel                        the table of turns as a picture
        %agent connect NAME|URL [-m MODEL] [--key-env NAME]
        %agent disconnect|warm|reset
        %agent mode read|ask|auto
        %agent export PATH [--table NAME]   .parquet .csv .json .jsonl .html .md
        """
        options = _options(_LINE, line)
        return self._COMMANDS[options.command](self, options)

    @validate("endpoint", *SETTINGS)
    def _fits(self, proposal: Any) -> Any:
        """Refuse what a session would refuse, before it is handed on."""
        name, value = proposal["trait"].name, proposal["value"]
        try:
            if name == "endpoint" and value is not None:
                Endpoint.named(value)
            elif value is not None:
                Settings().replace(**{name: _plain(value)})
        except UsageError as error:
            raise TraitError(str(error)) from None
        return value

    def _configure(self, name: str) -> None:
        """Hand a setting on to the session that is, or will be; unset, it is the default."""
        value = _plain(getattr(self, name))
        if value is not None:
            CONFIGURED[name] = value
        else:
            CONFIGURED.pop(name, None)
            value = Endpoint.default() if name == "endpoint" else getattr(Settings(), name)
        if "ipy_agent.sessions" in sys.modules:
            self.session.configure(name, value)

    def _handed_over(self, cell: str) -> str:
        """Return the prompt with a preview of each variable that it hands over."""
        names = dict.fromkeys(_HANDED_OVER.findall(cell))
        for name in names:
            if name not in self._names:
                raise UsageError(f"there is no variable {name!r} to hand over with $`{name}`")
        previews = [preview(name, self._names[name]) for name in names]
        return "\n\n".join([*previews, _HANDED_OVER.sub(r"`\1`", cell).strip("\n")])

    def _front(self) -> CellFront | PlainFront:
        from ipy_agent.notebook import answer, terminal  # noqa: PLC0415 (widgets come with a run)

        in_kernel = getattr(self.shell, "kernel", None) is not None
        return answer.CellFront(self.session.records) if in_kernel else terminal.PlainFront()

    # what each `%agent` command does

    def _status(self, _: Namespace) -> None:
        print(self.session.describe())

    def _toolbox(self, _: Namespace) -> None:
        session = self.session
        for name, tool in session.toolbox.items():
            parameters = ", ".join(tool.parameters["properties"])
            print(f"{name}({parameters})  {verdict(tool, session.mode).value}")
            print(f"    {' '.join(tool.description.split())}")

    def _panel(self, _: Namespace) -> None:
        from ipy_agent.notebook.panel import Panel  # noqa: PLC0415

        display(Panel(self.session.records).static(), raw=True)

    def _connect(self, options: Namespace) -> None:
        chosen = self.session.connect(
            options.endpoint, model=options.model, key_env=options.key_env
        )
        print(f"the next cell goes to {chosen.name} ({chosen.url or 'embedded server'})")

    def _warm(self, _: Namespace) -> None:
        from ipy_agent.notebook.terminal import PlainFront  # noqa: PLC0415

        self.session.warm(PlainFront())
        print(f"warm: {self.session.describe().splitlines()[2]}")

    def _mode(self, options: Namespace) -> None:
        self.mode = options.mode
        self._configure("mode")
        if options.mode == "auto":
            print("mode auto: every tool call runs in this kernel without asking")

    def _export(self, options: Namespace) -> None:
        print(f"written: {self.session.export(options.path, options.table)}")

    _COMMANDS: ClassVar[dict[str | None, Callable[[AgentMagics, Namespace], Any]]] = {
        None: _status,
        "status": _status,
        "turns": lambda magics, _: magics.session.turns,
        "cells": lambda magics, _: magics.session.cells,
        "tools": lambda magics, _: magics.session.tools,
        "messages": lambda magics, _: magics.session.messages,
        "toolbox": _toolbox,
        "panel": _panel,
        "connect": _connect,
        "disconnect": lambda magics, _: magics.session.disconnect(),
        "warm": _warm,
        "reset": lambda magics, _: magics.session.reset(),
        "mode": _mode,
        "export": _export,
    }


def _plain(value: Any) -> Any:
    """Return a trait's value as a setting: a list as a tuple."""
    return tuple(value) if isinstance(value, list) else value


def _options(parser: MagicArgumentParser, line: str) -> Any:
    """Return what a line says; quotes hold words together, and a backslash is a backslash."""
    words = shlex.shlex(line, posix=True, punctuation_chars=False)
    words.whitespace_split, words.commenters, words.escape = True, "", ""
    try:
        return parser.parse_args(list(words))
    except (WrongOption, ValueError) as error:
        raise UsageError(" ".join(str(error).split())) from None


def _line_parser() -> MagicArgumentParser:
    parser = MagicArgumentParser(prog="%agent")
    commands = parser.add_subparsers(dest="command", parser_class=MagicArgumentParser)
    made = {name: commands.add_parser(name) for name in AgentMagics._COMMANDS if name}  # noqa: SLF001 (our own table)
    made["connect"].add_argument("endpoint")
    made["connect"].add_argument("-m", "--model")
    made["connect"].add_argument("--key-env")
    made["mode"].add_argument("mode", choices=MODES)
    made["export"].add_argument("path")
    made["export"].add_argument("--table", default="turns")
    return parser


_LINE = _line_parser()


def load(shell: InteractiveShell) -> None:
    """Add the magics and the kernel's tools to a shell.

    Raises:
        UsageError: the user's configuration holds a value that does not fit.
    """
    try:
        shell.register_magics(AgentMagics(shell))
    except TraitError as error:
        unload(shell)
        raise UsageError(f"in the configuration of AgentMagics: {error}") from None
    for tool in kernel_tools(shell):
        TOOLS[tool.name] = tool


def unload(shell: InteractiveShell) -> None:
    """Take the magics and the kernel's tools away, and close the session."""
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("agent", None)
    # IPython keeps whatever was made: `%config` would go on setting it.
    shell.configurables[:] = [
        one for one in shell.configurables if not isinstance(one, AgentMagics)
    ]
    for tool in kernel_tools(shell):
        TOOLS.pop(tool.name, None)
    if "ipy_agent.sessions" in sys.modules:
        from ipy_agent.sessions import session  # noqa: PLC0415 (sockets come with the first use)

        session().close()
