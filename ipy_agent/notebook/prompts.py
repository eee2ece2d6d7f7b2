"""What a `%%agent` cell does: it reads its options, hands over, asks, and keeps the answer.

Rule 1: what does not fit is told before anything is sent.
Rule 2: all that a run needs is loaded before it asks: between two turns nobody waits for a module.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

from IPython.core.magic_arguments import MagicArgumentParser
from IPython.display import display

from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import UsageError
from ipy_agent.notebook import rows
from ipy_agent.notebook.context import handed_over, told
from ipy_agent.notebook.options import parsed, pictures_of, shape_named, variable
from ipy_agent.notebook.rehearsal import bundle

if TYPE_CHECKING:
    from ipy_agent.notebook.answer import CellFront
    from ipy_agent.notebook.magics import AgentMagics
    from ipy_agent.notebook.terminal import PlainFront

__all__ = ["ask"]


def ask(magics: AgentMagics, parser: MagicArgumentParser, line: str, cell: str) -> None:
    """Ask what stands in a cell, as the line above it says.

    Raises:
        AgentError: what it says does not fit, or the run failed.
    """
    options = parsed(parser, line)
    rows.check(options, cell)
    name = variable(options.output) if options.output is not None else None
    if options.each is not None:
        rows.ask(magics, options, cell, name, _settings(magics, options))
        return
    prompt, wanted = _handed_over(magics, cell, options)
    wanted |= _wanted(magics, options)
    if options.dry_run:
        display(bundle(magics.session.rehearse(prompt, **wanted)), raw=True)
        return
    front = _front(magics, json="schema" in wanted)
    with front.interrupts.held(), closing(front):
        answer = magics.session.run(prompt, front=front, **wanted)
    if name is not None:
        magics.names[name] = answer.value if "schema" in wanted else answer.text


def _handed_over(magics: AgentMagics, cell: str, options: Namespace) -> tuple[str, dict[str, Any]]:
    """Return the prompt with what it hands over, and the pictures that go with it."""
    target = magics.session.endpoint
    if options.endpoint is not None:
        target = Endpoint.named(options.endpoint)
    handed = handed_over(cell, magics.names, images=target.images, heads=target.heads)
    if not handed.text.strip():
        raise UsageError("the prompt is empty: write what you want below %%agent")
    shown = [] if options.image is None else pictures_of(options.image, magics.names)
    return handed.prompt, {"images": [*handed.pictures, *shown]}


def _wanted(magics: AgentMagics, options: Namespace) -> dict[str, Any]:
    """Return what a cell's options, and the cell itself, say to a run."""
    return _settings(magics, options) | {
        "cell": magics.cells.name(asks=not options.dry_run),
        "append": options.append,
        "background": _background(magics),
    }


def _settings(magics: AgentMagics, options: Namespace) -> dict[str, Any]:
    """Return the settings and the schema that options say; what was not said is left out."""
    said = {
        "model": options.model,
        "mode": options.mode,
        "endpoint": options.endpoint,
        "branch": options.branch,
        "effort": options.effort,
        "max_output_tokens": options.max_tokens,
    }
    if options.schema is not None:
        said["schema"] = shape_named(options.schema, magics.names)
    return {name: value for name, value in said.items() if value is not None}


def _background(magics: AgentMagics) -> Callable[[Any, str], tuple[str, Any]]:
    """Return what tells a run of the user's variables."""
    return lambda before, how: told(magics.names, magics.hidden, before, how)


def _front(magics: AgentMagics, *, json: bool) -> CellFront | PlainFront:
    from ipy_agent.notebook import answer, terminal  # noqa: PLC0415 (widgets come with a run)

    if getattr(magics.shell, "kernel", None) is None:
        return terminal.PlainFront(magics.session.records)
    return answer.CellFront(magics.session.records, json=json)
