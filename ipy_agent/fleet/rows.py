"""The rows of a frame on their way to be asked: filled into the prompt, checked, looked up.

Rule 1: rows are prepared a piece at a time, on the thread that has the store: none waits on the
loop for a disk, and a frame of any length takes no room here.
Rule 2: the frame is the caller's, who may change it meanwhile: its columns are taken at once, which
copies nothing.
Rule 3: a key stands for all that an answer depends on and our side knows: whom it is asked of, the
request with what was said before it, the prompt. Who asks, and over which connection, is not in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ipy_agent.agent.plan import Plan
from ipy_agent.agent.reprs import told_of
from ipy_agent.fleet.outcome import RowOutcome
from ipy_agent.fleet.template import MissingValue, Template
from ipy_agent.protocol.items import Chain
from ipy_agent.secrets import holds_key

if TYPE_CHECKING:
    from pandas import DataFrame, Index

__all__ = ["Row", "Rows", "circumstances"]

PIECE = 256
KEY = 16
_PRIVATE = ("prompt_cache_key", "store")
"""Members of a request that no answer depends on."""

Held = Callable[[Sequence[bytes]], Mapping[bytes, RowOutcome]]


class Row(NamedTuple):
    """A row: its place in the frame, its prompt and key, and its outcome if that is known."""

    number: int
    prompt: str
    key: bytes
    outcome: RowOutcome | None


class Rows:
    """The rows of a frame, in their order.

    Args:
        frame: the table.
        template: what each of them fills.
        circumstances: what else their answers depend on.
        held: returns the outcomes that are there already.
    """

    def __init__(
        self, frame: DataFrame, template: Template, circumstances: bytes, held: Held
    ) -> None:
        self._index = frame.index
        self._columns = [frame[name] for name in template.columns]
        self._template = template
        self._circumstances = circumstances
        self._held = held
        self._next = 0

    def __len__(self) -> int:
        return len(self._index)

    def index(self, numbers: Sequence[int]) -> Index[Any]:
        """Return the labels of rows by their numbers."""
        labels: Index[Any] = self._index[numbers]
        return labels

    def piece(self) -> list[Row]:
        """Return the next rows; none when there are no more."""
        begin, self._next = self._next, min(self._next + PIECE, len(self))
        columns = [column.iloc[begin : self._next] for column in self._columns]
        values = zip(*columns, strict=True)
        rows = [self._row(number, told) for number, told in enumerate(values, begin)]
        held = self._held([row.key for row in rows if row.outcome is None])
        return [
            row._replace(outcome=held[row.key]) if row.outcome is None and row.key in held else row
            for row in rows
        ]

    def _row(self, number: int, values: Sequence[object]) -> Row:
        try:
            prompt = self._template.filled(values)
        except MissingValue as missing:
            return Row(number, "", b"", _unasked(str(missing)))
        except Exception as error:  # noqa: BLE001 (a value of the user's own may raise anything)
            return Row(number, "", b"", _unasked(" ".join(told_of(error).split())))
        if holds_key(prompt):
            return Row(number, "", b"", _unasked("it holds a key, or what looks like one"))
        key = hashlib.blake2b(prompt.encode(), digest_size=KEY, key=self._circumstances)
        return Row(number, prompt, key.digest(), None)


def circumstances(plan: Plan, shared: Chain) -> bytes:
    """Return a digest of all that the answers to a plan's prompts depend on."""
    values = {k: v for k, v in plan.fields.values.items() if k not in _PRIVATE}
    asked = [plan.target.name, plan.target.url, values, shared.since(0)]
    return hashlib.blake2b(msgspec.json.encode(asked), digest_size=32).digest()


def _unasked(why: str) -> RowOutcome:
    return RowOutcome(status="failed", error=f"not asked: {why}")
