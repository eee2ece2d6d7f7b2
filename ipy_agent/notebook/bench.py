"""`%agent bench`: a line that tells how far it is, then the picture, the summary and the frame."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from IPython.display import display

from ipy_agent import bench
from ipy_agent.errors import MissingExtra, UsageError
from ipy_agent.notebook.figures import have_shown

if TYPE_CHECKING:
    from pandas import DataFrame

    from ipy_agent.sessions import Session

__all__ = ["measured"]


def measured(shell: Any, session: Session, options: Namespace) -> DataFrame:
    """Measure the modes of the session's endpoint, show what came of it, and return the turns.

    Raises:
        AgentError: as the bench does.
    """
    outcome = bench.run(
        session.endpoint,
        model=session.model,
        effort=session.effort,
        turns=options.turns,
        rounds=options.rounds,
        chars=options.chars,
        modes=options.modes,
        tell=_line(shell),
    )
    try:
        figure = outcome.plot()
    except (MissingExtra, UsageError) as error:  # what was measured is there all the same
        display({"text/plain": error.line}, raw=True)
    else:
        have_shown(shell, type(figure))
        display(figure)
    display({"text/html": outcome.html(), "text/plain": outcome.text()}, raw=True)
    return outcome.turns


def _line(shell: Any) -> Callable[[str], None]:
    """Return what shows a line in place of the one before it; in a terminal, below it."""
    if getattr(shell, "kernel", None) is None:
        return print
    shown = display({"text/plain": ""}, raw=True, display_id=True)
    return lambda line: shown.update({"text/plain": line}, raw=True)
