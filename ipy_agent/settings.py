"""What a user can set, as frozen values that are checked when they are made."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ipy_agent.errors import UsageError

__all__ = [
    "CONFIGURED",
    "CONTEXTS",
    "KERNEL",
    "MODES",
    "TRANSPORTS",
    "Context",
    "Mode",
    "Settings",
    "Way",
]

Mode = Literal["read", "ask", "auto"]
MODES: tuple[Mode, ...] = get_args(Mode)

Way = Literal["auto", "websocket", "http"]
TRANSPORTS: tuple[Way, ...] = get_args(Way)

Context = Literal["off", "names", "delta"]
CONTEXTS: tuple[Context, ...] = get_args(Context)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How runs go. `None` leaves the choice to the endpoint.

    Attributes:
        model: the model's name.
        instructions: what the model is told about its job.
        mode: which tools may run: `read` those without side effects, `ask` after a question
            for every other call, `auto` all.
        tools: names of the tools on offer; `None` for all.
        store: whether the endpoint may store responses.
        transport: `websocket`, `http`, or `auto`: HTTP where no WebSocket is to be had.
        effort: how hard a reasoning model thinks, such as `low` or `high`.
        summary: which summary of its thoughts a reasoning model gives, such as `auto`.
        max_output_tokens: tokens that a response may have.
        parallel_tool_calls: whether a response may hold more than one tool call.
        compact_tokens: input tokens from which the conversation is compacted before a run.
        prompt_cache_key: what the endpoint's prompt cache routes by.
        context: what the model is told of the user's variables by itself: `off` nothing, `names`
            which are new, changed or gone since it last heard, `delta` their types and shapes too.
        journal: whether the conversation is kept on disk, in the user's state folder.
        replay: whether a cell that would ask the same again shows its stored answer instead.
        budget_turns: turns a cell run may take; as with all limits, `None` for no limit.
        budget_seconds: seconds a cell run may take.
        budget_tokens: tokens a cell run may take, input and output, as the endpoint counts them.
        budget_usd: US dollars a cell run may cost.
        session_turns: turns that the session's runs may take together.
        session_seconds: seconds that the session's runs may take together.
        session_tokens: tokens that the session's runs may take together.
        session_usd: US dollars that the session's runs may cost together.
    """

    model: str | None = None
    instructions: str | None = None
    mode: Mode = "ask"
    tools: tuple[str, ...] | None = None
    store: bool = False
    transport: Way = "auto"
    effort: str | None = None
    summary: str | None = None
    max_output_tokens: int | None = None
    parallel_tool_calls: bool | None = None
    compact_tokens: int | None = None
    prompt_cache_key: str | None = None
    context: Context | None = None
    journal: bool = False
    replay: bool = False
    budget_turns: int | None = 25
    budget_seconds: float | None = 1_800.0
    budget_tokens: int | None = None
    budget_usd: float | None = None
    session_turns: int | None = None
    session_seconds: float | None = None
    session_tokens: int | None = None
    session_usd: float | None = None

    def __post_init__(self) -> None:
        """Check every value, so that a wrong one is found where it is set."""
        for name, (fits, wanted) in _CHECKS.items():
            value = getattr(self, name)
            if not fits(value):
                raise UsageError(f"{name} must be {wanted}, not {value!r}")
            if fits is _is_text and value is not None and _holds_key(value):
                raise UsageError(
                    f"{name} holds a key, or what looks like one: put it into the environment, and "
                    "take it out of the cell",
                    code="key_typed",
                )

    def replace(self, **changes: Any) -> Settings:
        """Return these settings with some of them changed.

        Raises:
            UsageError: there is no such setting, or the value does not fit.
        """
        for name in changes:
            if name not in SETTINGS:
                raise UsageError(f"{name!r} is no setting: there are {', '.join(SETTINGS)}")
        return dataclasses.replace(self, **changes)


def _is_number(value: Any) -> bool:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    return fits and 0 < value <= sys.float_info.max


def _is_amount(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_count(value: Any) -> bool:
    return value is None or (_is_number(value) and value == int(value))


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _holds_key(text: str) -> bool:
    from ipy_agent.secrets import holds_key  # noqa: PLC0415 (`%load_ext` needs no patterns)

    return holds_key(text)


def _are_names(value: Any) -> bool:
    return value is None or (
        isinstance(value, tuple) and all(isinstance(name, str) for name in value)
    )


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": (_is_text, "a name"),
    "instructions": (_is_text, "a text"),
    "mode": (lambda value: value in MODES, f"one of {', '.join(MODES)}"),
    "tools": (_are_names, "a tuple of names"),
    "store": (lambda value: isinstance(value, bool), "True or False"),
    "transport": (lambda value: value in TRANSPORTS, f"one of {', '.join(TRANSPORTS)}"),
    "effort": (_is_text, "a text such as low"),
    "summary": (_is_text, "a text such as auto"),
    "max_output_tokens": (_is_count, "a whole number above 0"),
    "parallel_tool_calls": (
        lambda value: value is None or isinstance(value, bool),
        "True or False",
    ),
    "compact_tokens": (_is_count, "a whole number above 0"),
    "prompt_cache_key": (_is_text, "a text"),
    "context": (
        lambda value: value is None or value in CONTEXTS,
        f"one of {', '.join(CONTEXTS)}",
    ),
    "journal": (lambda value: isinstance(value, bool), "True or False"),
    "replay": (lambda value: isinstance(value, bool), "True or False"),
    **{
        f"{scope}_{kind}": check
        for scope in ("budget", "session")
        for kind, check in {
            "turns": (_is_count, "a whole number above 0"),
            "seconds": (_is_amount, "a number above 0"),
            "tokens": (_is_count, "a whole number above 0"),
            "usd": (_is_amount, "a number above 0"),
        }.items()
    },
}

KERNEL = Settings(journal=True)
"""What a kernel's session has where its user sets nothing: a kernel may end at any moment."""

SETTINGS = tuple(field.name for field in dataclasses.fields(Settings))

CONFIGURED: dict[str, Any] = {}
"""What the user's IPython configuration sets, by name, for the session that will be made."""
