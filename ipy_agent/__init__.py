"""An agent in a Jupyter kernel, over one live WebSocket to a Responses API endpoint.

Importing this, or loading it with `%load_ext ipy_agent`, touches no network and loads
nothing heavy: each public name brings its own part at its first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from ipy_agent.agent.tools import Result, tool
    from ipy_agent.answers import Answer
    from ipy_agent.endpoints import Endpoint
    from ipy_agent.errors import AgentError
    from ipy_agent.sessions import Session, session
    from ipy_agent.transport.scripted import ScriptedTransport

__all__ = [
    "AgentError",
    "Answer",
    "Endpoint",
    "Result",
    "ScriptedTransport",
    "Session",
    "load_ipython_extension",
    "session",
    "tool",
    "unload_ipython_extension",
]

__version__ = "0.1.0"

_HOMES = {
    "AgentError": "ipy_agent.errors",
    "Answer": "ipy_agent.answers",
    "Endpoint": "ipy_agent.endpoints",
    "Result": "ipy_agent.agent.tools",
    "ScriptedTransport": "ipy_agent.transport.scripted",
    "Session": "ipy_agent.sessions",
    "session": "ipy_agent.sessions",
    "tool": "ipy_agent.agent.tools",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Add `%agent` and `%%agent`, and the tools of this kernel. For `%load_ext ipy_agent`."""
    from ipy_agent.notebook.magics import load  # noqa: PLC0415 (IPython is not needed to import us)

    load(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Close the session and take away what loading added."""
    from ipy_agent.notebook.magics import unload  # noqa: PLC0415 (as above)

    unload(shell)
