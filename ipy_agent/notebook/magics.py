"""`%agent` and `%%agent`: read the line, hand over, show what comes back. No work is done here.

Rule 1: loading this adds little to IPython's start. What stands on top is there already, or is as
small as this; the rest comes with its first use: the session, its socket, the tables and widgets,
and msgspec, which the kernel's tools are made with.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from IPython.core.async_helpers import get_asyncio_loop
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments
from traitlets import Bool, Enum, Float, Int, TraitError, Unicode, validate
from traitlets import List as ListOf
from traitlets.config import Config

from ipy_agent.agent import OFFERS
from ipy_agent.coroutines import settle
from ipy_agent.errors import UsageError
from ipy_agent.fleet import FRONTS
from ipy_agent.notebook.cells import Cells
from ipy_agent.notebook.interrupt import interrupts_come_too_late
from ipy_agent.settings import (
    CONFIGURED,
    CONTEXTS,
    KERNEL,
    MODES,
    SETTINGS,
    TRANSPORTS,
    Settings,
)

if TYPE_CHECKING:
    from ipy_agent.agent.runs import Front
    from ipy_agent.endpoints import Endpoint
    from ipy_agent.sessions import Session

__all__ = ["AgentMagics", "load", "unload"]


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
    context = _setting(Enum, "What the model is told of variables: off, names or delta.", CONTEXTS)
    journal = _setting(Bool, "Whether the conversation is kept on disk (yes).")
    replay = _setting(Bool, "Whether a cell that asks the same again shows its stored answer.")
    budget_turns = _setting(Int, "Turns that a cell run may take (25).")
    budget_seconds = _setting(Float, "Seconds that a cell run may take (1800).")
    budget_tokens = _setting(Int, "Tokens, in and out, that a cell run may take (no limit).")
    budget_usd = _setting(Float, "US dollars that a cell run may cost (no limit).")
    session_turns = _setting(Int, "Turns that all runs together may take (no limit).")
    session_seconds = _setting(Float, "Seconds that all runs together may take (no limit).")
    session_tokens = _setting(Int, "Tokens that all runs together may take (no limit).")
    session_usd = _setting(Float, "US dollars that all runs together may cost (no limit).")

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self.names, self.hidden = shell.user_ns, shell.user_ns_hidden
        self.cells = Cells(shell)
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
        from ipy_agent.sessions import session  # noqa: PLC0415 (rule 1)

        return session()

    @cell_magic("agent")
    @magic_arguments("%agent")
    @argument("-m", "--model", help="The model for this cell.")
    @argument("-b", "--branch", metavar="NAME", help="The branch that this cell goes on with.")
    @argument(
        "-o", "--output", metavar="NAME", help="Keep the answer, or its value, in this variable."
    )
    @argument("--schema", metavar="NAME", help="A type of the notebook that the answer has to fit.")
    @argument(
        "--each",
        metavar="NAME",
        help="Ask of each row of this DataFrame: {column} in the cell is what the row has there.",
    )
    @argument("--concurrency", metavar="N", type=int, help="Rows that are under way at once.")
    @argument("--fresh", action="store_true", help="Ask all rows, also those that were answered.")
    @argument(
        "--out", metavar="PATH.parquet", help="Write what comes of the rows to this file instead."
    )
    @argument(
        *("-i", "--image"),
        metavar="NAME_OR_PATH",
        action="append",
        help="Show the model a figure or image of the notebook, or a file; may be said again.",
    )
    @argument("--effort", help="How hard a reasoning model thinks in this cell.")
    @argument("--max-tokens", metavar="N", type=int, help="Tokens that a response may have.")
    @argument("--mode", choices=MODES, help="Which tools run in this cell.")
    @argument("--endpoint", help="A preset or a base URL for this cell.")
    @argument("--append", action="store_true", help="Keep what this cell said before as well.")
    @argument("--dry-run", action="store_true", help="Show what would be sent, and send nothing.")
    def ask(self, line: str, cell: str) -> None:
        """Ask the agent what stands in the cell.

        The answer streams into the cell, and the tools that the model calls run in this kernel.
        The prompt is sent as it is; $`name` hands over a short preview of a variable. One that
        holds a key is not sent. Run again, a cell replaces what it said before, and goes on from
        what came before it. With `--each` many rows are asked at a time; run again, only those that
        failed or changed are.
        """
        from ipy_agent.notebook import prompts  # noqa: PLC0415 (rule 1)

        prompts.ask(self, self.ask.parser, line, cell)

    @line_magic("agent")  # type: ignore[arg-type]  # IPython annotates it for no function at all
    def tell(self, line: str) -> Any:
        """Tell how the session stands, show its tables, or set something.

        %agent                              status: endpoint, connection, mode, totals
        %agent turns|cells|tools|messages   a DataFrame each
        %agent toolbox                      the tools on offer, and whether they run
        %agent panel                        what happened, brought up to date after each run
        %agent plot                         time by turn, and the cached share, as a figure
        %agent branch [NAME]                the tree of what was said, or go on with a branch
        %agent fork NAME [--at TURN]        a branch that begins where this one is, or was
        %agent undo                         take back what the last run said
        %agent replay on|off                show stored answers where nothing changed
        %agent connect NAME|URL [-m MODEL] [--key-env NAME]
                                            openai, xai, azure, vercel, local, ollama, or a URL
        %agent disconnect|warm|reset
        %agent compact                      have what was said so far summed up
        %agent mode read|ask|auto
        %agent allow [TOOL [--once|--session|--off]]
                                            run a tool without asking, in mode ask
        %agent budget [--turns N] [--seconds S] [--tokens N] [--usd X] [--session]
                                            limits of a cell run, or of all together; off: none
        %agent context off|names|delta      what is told of variables by itself
        %agent transport auto|websocket|http
        %agent export PATH [--table NAME] [--defuse]
                                            .parquet .csv .json .jsonl .html .md; --defuse: texts
                                            that a spreadsheet would calculate get a ' in a .csv
        %agent sessions                     those that were kept on disk
        %agent resume ID [--copy]           go on with one of them, or with a copy
        %agent bench [--turns N] [--rounds N] [--chars N] [--modes MODE ...]
                                            WebSocket against HTTP in a tool loop, as a DataFrame
        %agent doctor                       what works here, and what to do about what does not
        """
        from ipy_agent.notebook import commands, options  # noqa: PLC0415 (rule 1)

        said = options.parsed(commands.LINE, line)
        return commands.COMMANDS[said.command](self, said)

    def choose(self, name: str, value: Any) -> None:
        """Set a setting as `%config` does; one that was set to the same before holds again."""
        setattr(self, name, value)
        self._configure(name)

    @validate("endpoint", *SETTINGS)
    def _fits(self, proposal: Any) -> Any:
        """Refuse what a session would refuse, before it is handed on."""
        name, value = proposal["trait"].name, proposal["value"]
        try:
            if name == "endpoint" and value is not None:
                _endpoint(value)
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
            value = _endpoint() if name == "endpoint" else getattr(KERNEL, name)
        if "ipy_agent.sessions" in sys.modules:
            self.session.configure(name, value)


def _plain(value: Any) -> Any:
    """Return a trait's value as a setting: a list as a tuple."""
    return tuple(value) if isinstance(value, list) else value


def _endpoint(name: str | None = None) -> Endpoint:
    """Return the endpoint that a name or a URL stands for; of none, the default."""
    from ipy_agent.endpoints import Endpoint  # noqa: PLC0415 (rule 1)

    return Endpoint.default() if name is None else Endpoint.named(name)


def load(shell: InteractiveShell) -> None:
    """Add the magics and the kernel's tools to a shell.

    Where no loop is running, as in a terminal, coroutines of this thread then run on the loop that
    the shell keeps for `await`.

    Raises:
        UsageError: the user's configuration holds a value that does not fit.
    """
    try:
        shell.register_magics(AgentMagics(shell))
    except TraitError as error:
        unload(shell)
        raise UsageError(f"in the configuration of AgentMagics: {error}") from None
    shell.events.register("post_run_cell", interrupts_come_too_late)
    settle(get_asyncio_loop)
    FRONTS.append(partial(_bar, shell))
    OFFERS.append(partial(_offer, shell))
    if "ipy_agent.agent.tools" in sys.modules:
        OFFERS.pop()()


def _offer(shell: InteractiveShell) -> None:
    """Offer the kernel's tools."""
    from ipy_agent.agent.tools import TOOLS  # noqa: PLC0415 (rule 1)
    from ipy_agent.notebook.kernel import kernel_tools  # noqa: PLC0415 (rule 1)

    TOOLS.update({tool.name: tool for tool in kernel_tools(shell)})


def _bar(shell: InteractiveShell) -> AbstractContextManager[Front]:
    """Show how far a map came, as the cell that calls it runs."""
    from ipy_agent.notebook.bar import shown  # noqa: PLC0415 (rule 1)

    return shown(shell)


def unload(shell: InteractiveShell) -> None:
    """Take the magics and the kernel's tools away, and close the session."""
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("agent", None)
    # IPython keeps whatever was made: `%config` would go on setting it.
    shell.configurables[:] = [
        one for one in shell.configurables if not isinstance(one, AgentMagics)
    ]
    with suppress(ValueError):  # it was not loaded
        shell.events.unregister("post_run_cell", interrupts_come_too_late)
    OFFERS.clear()
    FRONTS.clear()
    if "ipy_agent.agent.tools" in sys.modules:
        from ipy_agent.agent.tools import TOOLS  # noqa: PLC0415 (rule 1)
        from ipy_agent.notebook.kernel import kernel_tools  # noqa: PLC0415 (rule 1)

        for tool in kernel_tools(shell):
            TOOLS.pop(tool.name, None)
    if "ipy_agent.sessions" in sys.modules:
        from ipy_agent.sessions import session  # noqa: PLC0415 (rule 1)

        session().close()
