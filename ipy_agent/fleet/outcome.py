"""What came of a row; its figures stand in one table, `FIGURES`.

Rule 1: what did not happen or is not known is `None`, never 0.
Rule 2: a store keeps these for months: a new field has a default, and none changes its meaning.
"""

from __future__ import annotations

import msgspec

__all__ = ["FIGURES", "RowOutcome"]


class RowOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a row.

    Attributes:
        text: the answer as the model gave it.
        status: completed, incomplete, failed or interrupted.
        error: why there is no answer, in one line.
        latency_ms: from asking to the answer's end.
        input_tokens: what the model read.
        cached_tokens: how much of that came from the cache.
        output_tokens: what it wrote.
        cost_usd: what that costs.
    """

    text: str | None = None
    status: str
    error: str | None = None
    latency_ms: float | None = None
    input_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None


FIGURES: dict[str, str] = {
    "status": "string",
    "error": "string",
    "latency_ms": "Float64",
    "input_tokens": "Int64",
    "cached_tokens": "Int64",
    "output_tokens": "Int64",
    "cost_usd": "Float64",
}
"""The columns that stand beside the answer, with their dtypes."""
