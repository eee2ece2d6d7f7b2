"""Where responses come from, as data: a row in `ENDPOINTS`, or a row that a URL makes.

Keys are read from the environment by name at the moment of use and are never a setting.
What an endpoint can do is told by its `Limits`; what the table does not know, a transport
learns from the endpoint's own errors.
"""

from __future__ import annotations

import dataclasses
import os
import re
import urllib.parse
from dataclasses import dataclass

from ipy_agent.errors import AuthenticationFailed, UsageError
from ipy_agent.secrets import Secret, holds_key, learn

__all__ = ["ENDPOINTS", "Endpoint", "Limits"]

_SCHEMES = {"http": "ws", "https": "wss"}
_KNOWN = frozenset({*_SCHEMES, *_SCHEMES.values()})
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
class Limits:
    """What a connection to an endpoint can do. `None` is what nobody told us: it is found out.

    Attributes:
        lanes: names that streams may have in a connection's life; 0, it has one stream only.
        in_flight: responses under way on it at the same time.
        seconds: how long it lives.
        idle_seconds: how long it may be silent.
        frame_bytes: the largest frame that the endpoint takes.
        body_bytes: the largest body over HTTP, where that is another size.
        one_model: it serves the model of its first turn only.
        keeps_all: every response on it can be continued from, not only each lane's latest.
        reforks: a lane that was used may go on from another lane's response, as a new one does.
        at_once: how many of many requests suit it at the same time; `None`, as many as `in_flight`.
        deflate: it may be offered to compress, unless it is on this machine.
    """

    lanes: int | None = None
    in_flight: int = 16
    seconds: float | None = None
    idle_seconds: float | None = None
    frame_bytes: int | None = None
    body_bytes: int | None = None
    one_model: bool = False
    keeps_all: bool | None = None
    reforks: bool = True
    at_once: int | None = None
    deflate: bool = True


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
        images: whether its models take pictures; `None`, if the user says so.
        heads: whether the first rows of a table that is handed over help its model.
        output_limit: how many characters of a tool's output its model is shown.
        hint_repeats: answer a tool call that repeats the one before it with a hint.
        limits: what a connection to it can do.
        websocket: whether it is worth asking for one.
        stores: a response stored there can be continued from over HTTP.
        reasoning: its models reason, and hand their thoughts over encrypted if asked.
        diagnoses: it tells why its prompt cache missed, if asked.
        cache_minimum: tokens below which its prompt cache does not begin.
        needs_model: it has no model of its own: the user has to name one.
        compact_tokens: input tokens from which a conversation is compacted by itself.
        context: what its model is told of the user's variables by itself: `off`, `names`, `delta`.
    """

    name: str
    url: str
    key_env: str | None = None
    model: str | None = None
    instructions: str = INSTRUCTIONS
    hidden_tools: frozenset[str] = frozenset()
    images: bool | None = None
    heads: bool = True
    output_limit: int = 20_000
    hint_repeats: bool = False
    limits: Limits = Limits()
    websocket: bool = True
    stores: bool = False
    reasoning: bool = False
    diagnoses: bool = False
    cache_minimum: int = 0
    needs_model: bool = False
    compact_tokens: int | None = None
    context: str = "delta"

    def __post_init__(self) -> None:
        """Refuse a key where none belongs, and do not repeat it: all of this is shown."""
        if holds_key(f"{self.url} {self.model}"):
            raise UsageError(f"an address and a model hold no key: {_PLACE_OF_KEYS}", code=_TYPED)
        name = self.key_env
        if name is not None and not (name in os.environ or _NAME.fullmatch(name)):
            raise UsageError(
                f"--key-env takes the name of a variable, not a key: {_PLACE_OF_KEYS}", code=_TYPED
            )

    @property
    def loopback(self) -> bool:
        """Whether requests stay on this machine."""
        return not self.url or urllib.parse.urlsplit(self.url).hostname in _LOOPBACK

    @property
    def websocket_url(self) -> str:
        """Where `response.create` frames go."""
        return self._responses(_SCHEMES)

    @property
    def http_url(self) -> str:
        """Where requests are posted."""
        return self._responses({scheme: name for name, scheme in _SCHEMES.items()})

    def _responses(self, schemes: dict[str, str]) -> str:
        parts = urllib.parse.urlsplit(self.url)
        path = parts.path.rstrip("/") + "/responses"
        return parts._replace(scheme=schemes.get(parts.scheme, parts.scheme), path=path).geturl()

    def key(self) -> Secret | None:
        """Return the key from the environment, or `None` where the endpoint needs none.

        Raises:
            AuthenticationFailed: the variable is not set.
        """
        if self.key_env is None:
            return None
        key = Secret.named(self.key_env)
        if key is None:
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
            UsageError: it is neither, the preset's address is in a variable that is not set, or
                a key stands where none belongs; it is not repeated.
        """
        learn()
        if holds_key(name):
            raise UsageError(f"a key is no endpoint: {_PLACE_OF_KEYS}", code=_TYPED)
        found = ENDPOINTS.get(name)
        if found is None:
            parts = _parsed(name)
            if parts is None:
                told = repr(name.rpartition("@")[2]) if len(name) < _WORD or "/" in name else "that"
                raise UsageError(
                    f"{told} is no endpoint: use one of "
                    f"{', '.join(ENDPOINTS)}, or a base URL such as http://127.0.0.1:8000/v1"
                )
            if parts.username or parts.password:
                raise UsageError("a key does not belong into a URL: name its variable (--key-env)")
            found = cls(name=parts.netloc, url=name)
        return dataclasses.replace(
            found,
            url=_VARIABLE.sub(_address_in, found.url) if name in ENDPOINTS else found.url,
            model=model or found.model,
            key_env=key_env or found.key_env,
        )

    @classmethod
    def default(cls) -> Endpoint:
        """Return the endpoint that the environment asks for; without a word, the local one."""
        model = os.environ.get("IPY_AGENT_MODEL") or None
        name = os.environ.get("IPY_AGENT_ENDPOINT") or (
            "openai" if os.environ.get("OPENAI_API_KEY") else "local"
        )
        return cls.named(name, model=model)


def _address_in(variable: re.Match[str]) -> str:
    """Return the address that a variable of the environment holds."""
    address = os.environ.get(variable[1], "").strip().rstrip("/")
    if _parsed(address) is None:
        raise UsageError(f"{variable[1]} holds no address: set it to {_EXAMPLES[variable[1]]}")
    return address


def _parsed(url: str) -> urllib.parse.SplitResult | None:
    """Return the parts of a base URL, or `None` if it is none."""
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.scheme in _KNOWN and parts.hostname and parts.port != 0
    except ValueError:
        return None
    return parts if usable else None


_VARIABLE = re.compile(r"\{(\w+)\}")
_NAME = re.compile(r"[A-Z_][A-Z0-9_]*", re.ASCII)
"""What the name of a variable that is not set yet looks like; a key in its place does not."""
_WORD = 20
"""From so many characters on a word that is no endpoint may be a key, and is not repeated."""
_TYPED = "key_typed"
_PLACE_OF_KEYS = (
    "put it into the environment before the kernel starts, and say only its variable's name "
    "(%agent connect URL --key-env NAME); take it out of the cell too"
)
_EXAMPLES = {"AZURE_OPENAI_ENDPOINT": "https://RESOURCE.openai.azure.com"}

ENDPOINTS = {
    endpoint.name: endpoint
    for endpoint in (
        Endpoint(
            name="openai",
            url="https://api.openai.com/v1",
            key_env="OPENAI_API_KEY",
            model="gpt-6.1-sol",
            images=True,
            limits=Limits(lanes=32, seconds=3_600, keeps_all=False),
            stores=True,
            reasoning=True,
            diagnoses=True,
            cache_minimum=1_024,
        ),
        Endpoint(
            name="xai",
            url="https://api.x.ai/v1",
            key_env="XAI_API_KEY",
            model="grok-4.7",
            images=True,
            limits=Limits(lanes=0, seconds=1_500, keeps_all=False),
            stores=True,
            reasoning=True,
        ),
        Endpoint(
            name="azure",
            url="{AZURE_OPENAI_ENDPOINT}/openai/v1",
            key_env="AZURE_OPENAI_API_KEY",
            images=True,
            limits=Limits(lanes=0, seconds=3_600, keeps_all=False),
            stores=True,
            reasoning=True,
            cache_minimum=1_024,
            needs_model=True,
        ),
        Endpoint(
            name="vercel",
            url="https://ai-gateway.vercel.sh/v1",
            key_env="AI_GATEWAY_API_KEY",
            model="openai/gpt-6.1-sol",
            images=True,
            limits=Limits(
                lanes=0,
                seconds=780,
                idle_seconds=300,
                frame_bytes=4 * 2**20,
                one_model=True,
                keeps_all=False,
            ),
            reasoning=True,
        ),
        Endpoint(
            name="local",
            url="",
            instructions=LOCAL_INSTRUCTIONS,
            images=False,
            heads=False,  # seeing rows, a small model answers from them, or makes up a `df`
            hidden_tools=frozenset({"inspect"}),
            output_limit=2_000,
            hint_repeats=True,
            limits=Limits(
                lanes=32,
                seconds=3_600,
                frame_bytes=16 * 2**20,
                body_bytes=4 * 2**20,
                keeps_all=True,
                at_once=4,  # its slots
            ),
            stores=True,
            context="off",  # its model is small: the fewer words, the better
            compact_tokens=6_000,  # of the 8,192 that a slot has at most
        ),
        Endpoint(
            name="ollama",
            url="http://127.0.0.1:11434/v1",
            websocket=False,
            needs_model=True,
        ),
    )
}
