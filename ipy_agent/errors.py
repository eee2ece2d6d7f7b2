"""What can go wrong, as one tree.

    AgentError
    ├── UsageError            a wrong option, an empty prompt, an unknown suffix (also ValueError)
    ├── MissingExtra          a package that an optional part needs (also ImportError)
    ├── ToolError             a function that cannot become a tool (also TypeError)
    ├── JournalFailed         the conversation cannot be kept on disk
    ├── ModelUnavailable      no weights to be had, or no room for them
    ├── TransportError        the way to the endpoint; `sent` says whether the request may have run
    │   ├── ConnectionFailed  nothing answers there
    │   ├── UpgradeRefused    something answers, but does not speak WebSocket; `status`
    │   ├── AuthenticationFailed
    │   ├── ConnectionLost    the socket closed in a turn; `close_code`
    │   ├── NoAnswer          silence past the deadline
    │   ├── MessageTooBig
    │   └── ProtocolError     a peer said what was not its to say
    ├── ResponseFailed        the endpoint failed a turn; `status`, `param`, `retry_after`
    ├── AnswerMisfit          an answer that is not of the type that was asked for; `text`
    ├── BudgetExceeded        a limit the user set
    └── Interrupted           the user stopped the run (a KeyboardInterrupt as well)

Rule 1: a message is one line that says what happened and what to do.
Rule 2: facts are attributes, so that nobody has to read a message to act on it.
Rule 3: `code` is stable and names the kind of failure; the endpoint's own code where it gave one.
Rule 4: no secret is in a message, nor what looks like a key: a peer may echo one, a user mistype
it. What finds them is loaded for the first error: `%load_ext` needs the tree, and not that.
"""

from __future__ import annotations

import copyreg
from typing import Any

__all__ = [
    "AgentError",
    "AnswerMisfit",
    "AuthenticationFailed",
    "BudgetExceeded",
    "ConnectionFailed",
    "ConnectionLost",
    "Interrupted",
    "JournalFailed",
    "MessageTooBig",
    "MissingExtra",
    "ModelUnavailable",
    "NoAnswer",
    "ProtocolError",
    "ResponseFailed",
    "ToolError",
    "TransportError",
    "UpgradeRefused",
    "UsageError",
]


LINE = 1_000
"""How many characters of a message are printed: some endpoints answer with a page."""


class AgentError(Exception):
    """Any failure of this package. In a notebook it shows as its one line.

    `result` is what a map over rows had done by then, as it would have returned it.
    """

    code: str = "agent_error"
    result: Any = None

    def __init__(self, message: str, *, code: str | None = None) -> None:
        from ipy_agent.secrets import learn, masked  # noqa: PLC0415 (rule 4)

        learn()
        super().__init__(masked(message))
        if code is not None:
            self.code = code

    @property
    def line(self) -> str:
        """The message on one line, to be printed: an endpoint may have had a part in its words."""
        said = str(self)
        cut = f" … {len(said) - LINE:,} characters more" if len(said) > LINE else ""
        return "".join(map(_visible, " ".join(said[:LINE].splitlines()))) + cut

    def _render_traceback_(self) -> list[str]:
        """Show one line in IPython instead of our own frames."""
        return [f"{type(self).__name__}: {self.line}"]

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel with all facts: the usual way would call `__init__` without them."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class UsageError(AgentError, ValueError):
    """An option, setting or name that does not fit."""

    code = "usage"


class MissingExtra(AgentError, ImportError):
    """A part of the package whose own dependencies are not installed."""

    code = "missing_extra"

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs more packages: pip install 'ipy-agent-live[{extra}]'")
        self.extra = extra


class ToolError(AgentError, TypeError):
    """A function that cannot be told to a model, or cannot run where it was called."""

    code = "tool"


class JournalFailed(AgentError):
    """The conversation cannot be kept on disk."""

    code = "journal"


class ModelUnavailable(AgentError):
    """Weights that no source could give, or that this machine has no room for."""

    code = "model_unavailable"


class TransportError(AgentError):
    """The way to the endpoint failed. `sent` says whether the request may have run there."""

    code = "transport"

    def __init__(self, message: str, *, sent: bool = False, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.sent = sent


class ConnectionFailed(TransportError):
    """Nothing answers at the endpoint's address. `transient`: another try may find something."""

    code = "connection_failed"

    def __init__(self, message: str, *, sent: bool = False, transient: bool = False) -> None:
        super().__init__(message, sent=sent)
        self.transient = transient


class UpgradeRefused(TransportError):
    """The endpoint answered the upgrade with a plain HTTP `status`."""

    code = "upgrade_refused"

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class AuthenticationFailed(TransportError):
    """The endpoint did not take the key. The message names the key's variable, never its value."""

    code = "authentication_failed"


class ConnectionLost(TransportError):
    """The socket closed while a turn was under way."""

    code = "connection_lost"

    def __init__(self, message: str, *, sent: bool, close_code: int | None = None) -> None:
        super().__init__(message, sent=sent)
        self.close_code = close_code


class NoAnswer(TransportError):
    """The endpoint was silent for longer than its deadline."""

    code = "no_answer"


class MessageTooBig(TransportError):
    """A frame over the limit of one of the two ends."""

    code = "message_too_big"


class ProtocolError(TransportError):
    """The peer sent what no peer may send at that point."""

    code = "protocol"


class ResponseFailed(AgentError):
    """The endpoint refused or failed a turn. `status` is its HTTP-like status, if it gave one."""

    code = "response_failed"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        status: int | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.status = status
        self.param = param
        self.retry_after = retry_after


class AnswerMisfit(AgentError):
    """The model's answer is not of the type that was asked for. `text` is what it said."""

    code = "answer_misfit"

    def __init__(self, message: str, *, text: str) -> None:
        super().__init__(message)
        self.text = text


class BudgetExceeded(AgentError):
    """A run reached a limit that was set for it."""

    code = "budget_exceeded"


class Interrupted(AgentError, KeyboardInterrupt):
    """The user stopped the run; cells queued behind it do not run, as with any interrupt."""

    code = "interrupted"


def _visible(char: str) -> str:
    """Return a character, or a mark for one that would change the screen without being seen."""
    return char if char.isprintable() else f"⟨U+{ord(char):04X}⟩"
