"""What a `%%agent --each` cell does: one prompt over the rows of a frame, and what comes of it.

Rule 1: what does not fit is told before anything is sent.
Rule 2: what was done is kept in the variable that was named, however it ends.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython.display import display

from ipy_agent.errors import AgentError, UsageError
from ipy_agent.notebook.bar import Bar, PlainBar, shown
from ipy_agent.notebook.context import HANDED_OVER
from ipy_agent.notebook.literals import library, type_name
from ipy_agent.notebook.rehearsal import bundle

if TYPE_CHECKING:
    from ipy_agent.notebook.magics import AgentMagics
    from ipy_agent.sessions import Session
    from ipy_agent.transport.rehearsal import Rehearsal

__all__ = ["ask", "check"]

ONLY_EACH = ("concurrency", "fresh", "out")
NEVER_EACH = ("image", "append")

_HINTS = {"Series": "{}.to_frame()", "polars": "{}.to_pandas()", "pyarrow": "{}.to_pandas()"}
"""How what is no frame becomes one, by its type or its library."""


def check(options: Namespace, cell: str) -> None:
    """Refuse what does not go together with `--each`, or without it.

    Raises:
        UsageError: there is such a thing.
    """
    each = options.each is not None
    for name in NEVER_EACH if each else ONLY_EACH:
        said = getattr(options, name)
        if said is not None and said is not False:
            raise UsageError(
                f"--{name} does not go with --each: leave one of them out"
                if each
                else f"--{name} is about many rows: say which with --each NAME"
            )
    if each and (found := HANDED_OVER.search(cell)):
        raise UsageError(
            f"{found[0]} would be sent with every row: hand it over in a %%agent cell above; "
            "the rows go on from there, and it is sent once"
        )


def ask(
    magics: AgentMagics, options: Namespace, cell: str, name: str | None, wanted: dict[str, Any]
) -> None:
    """Ask what stands in a cell of each row of a frame.

    Args:
        magics: the cell's.
        options: what its line says.
        cell: the prompt, with the names of columns in braces.
        name: the variable that keeps the result; without one it is displayed.
        wanted: the settings and the schema that the line says.

    Raises:
        AgentError: what it says does not fit, or no row could get past it.
    """
    frame, template = _frame(options.each, magics.names), cell.strip("\n")
    if options.dry_run:
        display(bundle(_rehearsed(magics.session, frame, template, wanted)), raw=True)
        return
    wanted |= {option: getattr(options, option) for option in ONLY_EACH}
    with shown(magics.shell) as bar:
        try:
            result = magics.session.map(frame, template, front=bar, **wanted)
        except AgentError as error:
            _keep(magics, name, error.result, bar)
            raise
        _keep(magics, name, result, bar)
    if name is None and not isinstance(result, Path):
        display(result)
    elif name is not None and library(type(result)) == "dask":
        display({"text/plain": f"{name} asks its rows when it is computed"}, raw=True)


def _keep(magics: AgentMagics, name: str | None, result: Any, bar: Bar | PlainBar) -> None:
    """Keep what was done in a variable, and say where it is."""
    if result is None:
        return
    if name is not None:
        magics.names[name] = result
    place = result if isinstance(result, Path) else name
    if place is not None and bar.progress is not None:
        bar.close()
        bar.remark(f"{_counted(result)} in {place}")


def _counted(result: Any) -> str:
    """Return how many rows there are; a file and a frame of Dask tell it only when read."""
    if library(type(result)) != "pandas":
        return "the result is"
    return "1 row is" if len(result) == 1 else f"{len(result):,} rows are"


def _frame(name: str, names: Mapping[str, Any]) -> Any:
    """Return the frame that a variable of the notebook holds, of pandas or of Dask."""
    if name not in names:
        raise UsageError(f"there is no variable {name!r} for --each: make it in a cell above")
    kinds = [(type_name(kind), library(kind)) for kind in type(names[name]).__mro__]
    if any(kind in {("DataFrame", "pandas"), ("DataFrame", "dask")} for kind in kinds):
        return names[name]
    words = [word for kind in kinds for word in kind]
    hint = next((_HINTS[word] for word in words if word in _HINTS), "pandas.DataFrame({})")
    raise UsageError(
        f"--each takes a DataFrame, and {name!r} is of the type {kinds[0][0]}: "
        f"make one of it, such as rows = {hint.format(name)}, and say --each rows"
    )


def _rehearsed(session: Session, frame: Any, template: str, wanted: dict[str, Any]) -> Rehearsal:
    """Return what the first row would send, of which all but its own prompt is sent once."""
    from ipy_agent.fleet.maps import INSTRUCTIONS  # noqa: PLC0415 (pandas comes with it)
    from ipy_agent.fleet.rows import Rows  # noqa: PLC0415 (see above)
    from ipy_agent.fleet.template import Template  # noqa: PLC0415 (see above)

    first = frame.head(1)
    rows = Rows(first, Template.of(template, list(first.columns)), b"", lambda _: {}).piece()
    if not rows:
        raise UsageError("the frame has no rows: nothing would be sent")
    if rows[0].outcome is not None:
        raise UsageError(f"the first row would be {rows[0].outcome.error}")
    told = session.settings.instructions or INSTRUCTIONS  # as a map does it
    return session.rehearse(rows[0].prompt, instructions=told, tools=(), **wanted)
