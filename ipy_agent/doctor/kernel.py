"""What only the kernel of a running cell knows: what its front end can do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ipy_agent.doctor.finding import Finding

__all__ = ["look"]


def look(shell: Any) -> Iterator[Finding]:
    """Look at the shell of a running cell."""
    kernel = getattr(shell, "kernel", None)
    if kernel is None:
        yield Finding("ok", "kernel", "none: this is a terminal, where answers are plain text")
        return
    if kernel._allow_stdin:  # noqa: SLF001 (told nowhere else)
        yield Finding("ok", "stdin", "this front end can be asked before a tool runs")
    else:
        remedy = "`%agent allow TOOL --session`, or `%agent mode auto`"
        yield Finding("note", "stdin", "nobody can be asked here, so such tools do not run", remedy)
    if shell.get_parent().get("metadata", {}).get("cellId"):
        yield Finding("ok", "cells", "this front end names its cells: running one again replaces")
    else:
        said = "this front end does not name its cells: running one again appends"
        yield Finding("note", "cells", said)
    if getattr(kernel, "comm_manager", None) is not None:
        yield Finding("ok", "comm", "this kernel can talk to widgets")
    else:
        yield Finding("note", "comm", "this kernel has none: the panel is shown when a run ended")
