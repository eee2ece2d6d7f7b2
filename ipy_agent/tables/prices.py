"""What a turn cost, by a price table that others keep.

Only endpoints with public prices have one: for any other, for a model that the table does
not know, and where the endpoint did not say how many tokens it was, the cost is not known.
"""

from __future__ import annotations

from ipy_agent.records import TurnRecord

__all__ = ["PROVIDERS", "cost_usd"]

PROVIDERS = {
    "openai": "openai",
    "api.openai.com": "openai",
    "xai": "x-ai",
    "api.x.ai": "x-ai",
}
"""An endpoint's name, and what the price table calls who runs it."""


def cost_usd(row: TurnRecord) -> float | None:
    """Return the price of a turn in US dollars, if it is known; cached tokens as cache reads."""
    provider = PROVIDERS.get(row.endpoint)
    if provider is None or row.model is None:
        return None
    if row.input_tokens is None or row.cached_tokens is None or row.output_tokens is None:
        return None
    from genai_prices import Usage, calc_price  # noqa: PLC0415 (slow to load, seldom needed)

    try:
        usage = Usage(
            input_tokens=row.input_tokens,
            cache_read_tokens=row.cached_tokens,
            cache_write_tokens=row.cache_write_tokens,
            output_tokens=row.output_tokens,
        )
        price = calc_price(
            usage, row.model, provider_id=provider, genai_request_timestamp=row.started_at
        )
    except (LookupError, ValueError):
        return None
    return float(price.total_price)
