"""What events tell of a response: the object itself, its tokens, and the reason of a failure."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from ipy_agent.errors import ResponseFailed
from ipy_agent.protocol.items import Item

__all__ = ["Reason", "Response", "Usage", "failed"]


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens of one response. Endpoints may leave any part out: what is absent is `None`."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    input_tokens_details: dict[str, Any] | None = None
    output_tokens_details: dict[str, Any] | None = None

    @classmethod
    def of(
        cls,
        *,
        input_tokens: int,
        cached_tokens: int,
        output_tokens: int,
        cache_write_tokens: int = 0,
        reasoning_tokens: int = 0,
    ) -> Usage:
        """Return a usage with every part told."""
        return cls(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            total_tokens=input_tokens + output_tokens,
            input_tokens_details={
                "cached_tokens": cached_tokens,
                "cache_write_tokens": cache_write_tokens,
            },
            output_tokens_details={"reasoning_tokens": reasoning_tokens},
        )

    def detail(self, name: str) -> int | None:
        """Return `cached_tokens`, `cache_write_tokens` or `reasoning_tokens`, if told."""
        for details in (self.input_tokens_details, self.output_tokens_details):
            if details and isinstance(details.get(name), int):
                return int(details[name])
        return None


class Response(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The response object inside `created`, `in_progress` and the terminal events."""

    id: str
    object: str | UnsetType = UNSET
    created_at: float | None = None
    status: str | None = None
    model: str | None = None
    output: list[Item] | None = None
    usage: Usage | None = None
    error: Item | None = None
    incomplete_details: Item | None = None
    previous_response_id: str | None = None
    store: bool | UnsetType | None = UNSET
    prompt_cache_diagnostics: Any = UNSET
    """Why the prompt cache missed, where a request asked for it."""
    timings: Item | UnsetType | None = UNSET
    """What llama.cpp's server tells beside `usage`: prompt and generation times in ms."""


class Reason(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The inside of an error frame."""

    message: str | None = None
    type: str | None = None
    code: str | int | None = None
    param: str | None = None
    headers: dict[str, Any] | None = None


def failed(reason: Reason, status: int | None) -> ResponseFailed:
    """Return the exception that a reason for a failure stands for."""
    headers = {name.lower(): value for name, value in (reason.headers or {}).items()}
    return ResponseFailed(
        " ".join((reason.message or "the endpoint gave no reason").split()),
        code=str(reason.code) if reason.code is not None else None,
        status=status,
        param=reason.param,
        retry_after=_seconds(headers.get("retry-after")),
    )


def _seconds(said: Any) -> float | None:
    try:
        seconds = float(said)
    except (TypeError, ValueError):
        return None
    return seconds if 0 <= seconds < math.inf else None
