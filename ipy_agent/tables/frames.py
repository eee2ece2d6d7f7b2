"""The four DataFrames; their columns and dtypes stand in one table, `COLUMNS`.

A frame is made anew at each access, from the rows of the moment, and nothing is kept.

Rule 1: the columns and dtypes of a frame do not depend on what is in it.
Rule 2: what did not happen is NA, never 0; turns and cells that still run are left out.
Rule 3: what pandas, parquet or JSON refuse (lone surrogates, NaN, integers over 64 bits) is
mended here, on the way in, so that no later step has to know. So are control characters, which
a terminal would obey.
Rule 4: a cell is text: pandas is told once to leave formulas in frames alone, since a page's
MathJax would make links of them that hide where they lead.
Rule 5: texts are redacted once more: a value may be known for a secret only since they were said.
"""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from ipy_agent import rendering
from ipy_agent.protocol.items import Item, text
from ipy_agent.records import CellRecord, Recorder, TurnRecord
from ipy_agent.secrets import learn, redacted
from ipy_agent.tables.prices import cost_usd

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["COLUMNS", "FRAMES", "cells", "framed", "messages", "tools", "turn_values", "turns"]

TIME = "datetime64[us, UTC]"

COLUMNS: dict[str, dict[str, str]] = {
    "turns": {
        "turn": "Int64",
        "cell": "Int64",
        "branch": "string",
        "model": "string",
        "endpoint": "string",
        "transport": "string",
        "connection": "Int64",
        "reused": "boolean",
        "response_id": "string",
        "previous_response_id": "string",
        "started_at": TIME,
        "sent_items": "Int64",
        "held_items": "Int64",
        "sent_bytes": "Int64",
        "wire_bytes": "Int64",
        "full_bytes": "Int64",
        "received_bytes": "Int64",
        "connect_ms": "Float64",
        "ttft_ms": "Float64",
        "latency_ms": "Float64",
        "tool_ms": "Float64",
        "approval_ms": "Float64",
        "input_tokens": "Int64",
        "cached_tokens": "Int64",
        "cache_write_tokens": "Int64",
        "output_tokens": "Int64",
        "reasoning_tokens": "Int64",
        "hit_rate": "Float64",
        "cost_usd": "Float64",
        "cache_miss": "string",
        "retries": "Int64",
        "status": "string",
    },
    "cells": {
        "cell": "Int64",
        "cell_id": "string",
        "follows": "Int64",
        "branch": "string",
        "endpoint": "string",
        "prompt": "string",
        "started_at": TIME,
        "turns": "Int64",
        "tools": "Int64",
        "elapsed_ms": "Float64",
        "model_ms": "Float64",
        "tool_ms": "Float64",
        "approval_ms": "Float64",
        "input_tokens": "Int64",
        "cached_tokens": "Int64",
        "output_tokens": "Int64",
        "hit_rate": "Float64",
        "sent_bytes": "Int64",
        "full_bytes": "Int64",
        "cost_usd": "Float64",
        "standing": "string",
        "status": "string",
    },
    "tools": {
        "turn": "Int64",
        "call_id": "string",
        "name": "string",
        "arguments": "string",
        "output": "string",
        "started_at": TIME,
        "duration_ms": "Float64",
        "approval": "string",
        "status": "string",
    },
    "messages": {
        "message": "Int64",
        "cell": "Int64",
        "turn": "Int64",
        "branch": "string",
        "type": "string",
        "role": "string",
        "name": "string",
        "call_id": "string",
        "text": "string",
        "bytes": "Int64",
    },
}


def turns(records: Recorder) -> DataFrame:
    """Return one row a turn that ended."""
    return framed(COLUMNS["turns"], map(turn_values, ended(records.turns)))


def cells(records: Recorder) -> DataFrame:
    """Return one row a cell run that ended, with the sums of its turns."""
    own: dict[int, list[TurnRecord]] = collections.defaultdict(list)
    for row in ended(records.turns):
        own[row.cell].append(row)
    calls = collections.Counter(call.turn for call in list(records.tools))
    return framed(
        COLUMNS["cells"],
        [
            _cell(cell, own[cell.cell], sum(calls[row.turn] for row in own[cell.cell]))
            for cell in ended(records.cells)
        ],
    )


def tools(records: Recorder) -> DataFrame:
    """Return one row a tool call."""
    return framed(COLUMNS["tools"], map(msgspec.structs.asdict, list(records.tools)))


def messages(records: Recorder) -> DataFrame:
    """Return one row an item of the conversation, in the order in which they came."""
    told = enumerate(list(records.messages), 1)
    return framed(
        COLUMNS["messages"],
        [
            {"message": number, "cell": row.cell, "turn": row.turn, "branch": row.branch}
            | _message(row.item)
            for number, row in told
        ],
    )


FRAMES: dict[str, Callable[[Recorder], DataFrame]] = {
    "turns": turns,
    "cells": cells,
    "tools": tools,
    "messages": messages,
}


def ended(rows: Iterable[Any]) -> list[Any]:
    """Return the rows that nothing will be added to; another thread may be writing the rest."""
    return [row for row in list(rows) if row.status != "running"]


def turn_values(row: TurnRecord) -> dict[str, Any]:
    """Return what a turn has in the columns of `turns`."""
    return msgspec.structs.asdict(row) | {
        "hit_rate": share(row.cached_tokens, row.input_tokens),
        "cost_usd": cost_usd(row),
    }


def _cell(cell: CellRecord, own: list[TurnRecord], calls: int) -> dict[str, Any]:
    summed = {name: total(getattr(row, name) for row in own) for name in _SUMMED}
    told = [row for row in own if row.cached_tokens is not None]
    return (
        msgspec.structs.asdict(cell)
        | summed
        | {
            "turns": len(own),
            "tools": calls,
            "model_ms": total(model_ms(row) for row in own),
            "hit_rate": share(summed["cached_tokens"], total(row.input_tokens for row in told)),
            "cost_usd": total(cost_usd(row) for row in own),
        }
    )


_SUMMED = (
    "tool_ms",
    "approval_ms",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "sent_bytes",
    "full_bytes",
)


def _message(item: Item) -> dict[str, Any]:
    named = {name: item.get(name) for name in ("type", "role", "name", "call_id")}
    return named | {"text": text(item), "bytes": _size(item)}


def _size(item: Item) -> int | None:
    try:
        return len(msgspec.json.encode(item))
    except (TypeError, ValueError, RecursionError):
        return None


def model_ms(row: TurnRecord) -> float | None:
    """Return how long a turn waited for the model alone, without the connection's time."""
    return None if row.latency_ms is None else row.latency_ms - (row.connect_ms or 0.0)


def total(values: Iterable[Any]) -> Any:
    """Return the sum of what is known, or `None` where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def share(part: int | None, whole: int | None) -> float | None:
    """Return a part's share of the whole, 0 to 1, where both are known numbers."""
    part, whole = _whole(part), _whole(whole)
    return None if part is None or not whole else part / whole


@functools.cache
def _pandas() -> Any:
    """Return pandas; the HTML of a frame, and of what is made of it, is no formula from now on."""
    import pandas as pd  # noqa: PLC0415 (not when the extension is loaded)

    pd.set_option("display.html.use_mathjax", False)
    return pd


def framed(columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> DataFrame:
    """Return rows as a frame of columns with their dtypes; what a row does not say is NA."""
    pd, rows = _pandas(), list(rows)
    learn()
    made: dict[str, Any] = {}
    for name, dtype in columns.items():
        kind: Any = dtype
        made[name] = pd.array([_MENDED[dtype](row.get(name)) for row in rows], dtype=kind)
    frame: DataFrame = pd.DataFrame(made)
    return frame


def _whole(value: int | None) -> int | None:
    return value if value is not None and -(2**63) <= value < 2**63 else None


def _real(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _text(value: Any) -> str | None:
    if value is None:
        return None
    said = str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return redacted(said).translate(_CONTROLS)


def _same(value: Any) -> Any:
    return value


_CONTROLS = {
    point: rendering.visible(chr(point))
    for point in (*range(0x20), *range(0x7F, 0xA0))
    if chr(point) not in "\t\n\r"
}

_MENDED: dict[str, Callable[[Any], Any]] = {
    "Int64": _whole,
    "Float64": _real,
    "string": _text,
    "boolean": _same,
    TIME: _same,
}
