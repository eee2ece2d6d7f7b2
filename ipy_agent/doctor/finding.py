"""One line of what was found, and the way that it comes about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from ipy_agent.errors import AgentError
from ipy_agent.secrets import masked

__all__ = ["Finding", "Look", "fault", "looked"]

Look = Callable[[], Iterator["Finding"]]


class Finding(NamedTuple):
    """One line: how it stands with a topic, and what to do."""

    mark: Literal["ok", "missing", "note"]
    topic: str
    said: str
    remedy: str = ""

    @property
    def reason(self) -> str:
        """What was found and what to do, on one line."""
        told = f"{self.said}: {self.remedy}" if self.remedy else self.said
        return masked(" ".join(told.split()))

    def __str__(self) -> str:
        """Return the line."""
        return f"{self.mark:8}{self.topic:11}{self.reason}"


def looked(topic: str, look: Look) -> Iterator[Finding]:
    """Yield what a look finds; what keeps it from looking is a finding too."""
    try:
        yield from look()
    except Exception as error:  # noqa: BLE001 (a broken package can raise anything)
        yield fault(topic, error)


def fault(topic: str, error: Exception) -> Finding:
    """Return an error as a finding; one of ours says by itself what to do."""
    if isinstance(error, AgentError):
        return Finding("missing", topic, str(error))
    return Finding("missing", topic, f"cannot be looked at ({type(error).__name__}: {error})")
