"""What a user can set, as frozen values that are checked when they are made.

Presets are data: an endpoint is a row in `ENDPOINTS`, and a URL makes a row of its own.
Keys are read from the environment by name at the moment of use and are never a setting.
"""

from __future__ import annotations

import dataclasses
import os
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ipy_agent.errors import AuthenticationFailed, UsageError

__all__ = ["CONFIGURED", "ENDPOINTS", "MODES", "Endpoint", "Mode", "Settings"]

Mode = Literal["read", "ask", "auto"]
MODES: tuple[Mode, ...] = get_args(Mode)

_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

INSTRUCTIONS = """\
You work inside the user's Jupyter kernel. Answer from the data, not from memory: use the \
tools to look at variables and to run Python in the user's own namespace, where variables \
persist from call to call. Look before you compute, keep results in well-named variables, \
and do not change the user's variables unless asked to. When you know the answer, give it \
briefly in Markdown and name the variables that you made."""

LOCAL_INSTRUCTIONS = """\
You are a data analyst in a Jupyter notebook. You answer questions about data by running Python \
with the `python` tool, whose variables stay from call to call.
- Never guess: compute with `python`, then call `answer` with what its output says.
- The last line of the code is the value you want to see, an expression, not print.
- After an error, correct the code and call `python` again.
- When the output holds the answer, call `answer` with one short sentence that tells the numbers \
and names.
How it is done, for a DataFrame df:
- how many of each a: df['a'].value_counts()
- rows: df[(df['a'] == 'p') & (df['x'] > 1)]
- which a has the largest mean x: df.groupby('a')['x'].mean().sort_values()
- mean x for each a and b: df.groupby(['a', 'b'])['x'].mean().unstack()
- which names occur: df['a'].unique()"""
"""A small model has to be told how. `answer` is what the embedded server gives it beside tools."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where responses come from.

    Attributes:
        name: the preset's name, or the host of a URL.
        url: base URL as OpenAI's SDKs take it, without `/responses`; empty for `local`,
            whose server is found or started at the first use.
        key_env: the environment variable that holds the key; none, no Authorization header.
        model: the model when the user names none; none, the endpoint's own default.
        instructions: the instructions when the user sets none.
        hidden_tools: built-in tools that this endpoint's model is better off without.
        images: whether its models take pictures.
        output_limit: how many characters of a tool's output its model is shown.
        hint_repeats: answer a tool call that repeats the one before it with a hint.
    """

    name: str
    url: str
    key_env: str | None = None
    model: str | None = None
    instructions: str = INSTRUCTIONS
    hidden_tools: frozenset[str] = frozenset()
    images: bool = False
    output_limit: int = 20_000
    hint_repeats: bool = False

    @property
    def loopback(self) -> bool:
        """Whether requests stay on this machine."""
        return not self.url or urllib.parse.urlsplit(self.url).hostname in _LOOPBACK

    @property
    def websocket_url(self) -> str:
        """Where `response.create` frames go."""
        parts = urllib.parse.urlsplit(self.url)
        path = parts.path.rstrip("/") + "/responses"
        return parts._replace(scheme=_SCHEMES[parts.scheme], path=path).geturl()

    def key(self) -> str | None:
        """Return the key from the environment, or `None` where the endpoint needs none.

        Raises:
            AuthenticationFailed: the variable is not set.
        """
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise AuthenticationFailed(
                f"{self.key_env} is not set: set it, or use the local model "
                "with `%agent connect local`",
                code="missing_key",
            )
        return key

    @classmethod
    def named(cls, name: str, *, model: str | None = None, key_env: str | None = None) -> Endpoint:
        """Return a preset by its name, or the endpoint at a base URL.

        Raises:
            UsageError: it is neither.
        """
        found = ENDPOINTS.get(name)
        if found is None:
            parts = _parsed(name)
            if parts is None:
                raise UsageError(
                    f"{name.rpartition('@')[2]!r} is no endpoint: use one of "
                    f"{', '.join(ENDPOINTS)}, or a base URL such as http://127.0.0.1:8000/v1"
                )
            if parts.username or parts.password:
                raise UsageError("a key does not belong into a URL: name its variable (--key-env)")
            found = cls(name=parts.netloc, url=name)
        return dataclasses.replace(
            found, model=model or found.model, key_env=key_env or found.key_env
        )

    @classmethod
    def default(cls) -> Endpoint:
        """Return the endpoint that the environment asks for; without a word, the local one."""
        model = os.environ.get("IPY_AGENT_MODEL") or None
        name = os.environ.get("IPY_AGENT_ENDPOINT") or (
            "openai" if os.environ.get("OPENAI_API_KEY") else "local"
        )
        return cls.named(name, model=model)


def _parsed(url: str) -> urllib.parse.SplitResult | None:
    """Return the parts of a base URL, or `None` if it is none."""
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.scheme in _SCHEMES and parts.hostname and parts.port != 0
    except ValueError:
        return None
    return parts if usable else None


ENDPOINTS = {
    endpoint.name: endpoint
    for endpoint in (
        Endpoint(
            name="openai",
            url="https://api.openai.com/v1",
            key_env="OPENAI_API_KEY",
            model="gpt-6.1-sol",
            images=True,
        ),
        Endpoint(
            name="xai",
            url="https://api.x.ai/v1",
            key_env="XAI_API_KEY",
            model="grok-4.7",
            images=True,
        ),
        Endpoint(
            name="local",
            url="",
            instructions=LOCAL_INSTRUCTIONS,
            hidden_tools=frozenset({"inspect"}),
            output_limit=2_000,
            hint_repeats=True,
        ),
    )
}


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
        prompt_cache_key: what the endpoint's prompt cache routes by.
        budget_turns: turns a cell run may take.
        budget_seconds: seconds a cell run may take.
    """

    model: str | None = None
    instructions: str | None = None
    mode: Mode = "ask"
    tools: tuple[str, ...] | None = None
    store: bool = False
    prompt_cache_key: str | None = None
    budget_turns: int = 25
    budget_seconds: float = 1_800.0

    def __post_init__(self) -> None:
        """Check every value, so that a wrong one is found where it is set."""
        for name, (fits, wanted) in _CHECKS.items():
            value = getattr(self, name)
            if not fits(value):
                raise UsageError(f"{name} must be {wanted}, not {value!r}")

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
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


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
    "prompt_cache_key": (_is_text, "a text"),
    "budget_turns": (
        lambda value: _is_number(value) and value == int(value),
        "a whole number above 0",
    ),
    "budget_seconds": (_is_number, "a number above 0"),
}

SETTINGS = tuple(field.name for field in dataclasses.fields(Settings))

CONFIGURED: dict[str, Any] = {}
"""What the user's IPython configuration sets, by name, for the session that will be made."""
