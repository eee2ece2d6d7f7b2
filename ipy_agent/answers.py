"""What a run ends with, as its caller has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipy_agent import tables
from ipy_agent.agent.loop import Said
from ipy_agent.records import Recorder

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Answer"]


class Answer:
    """What a run ended with.

    Attributes:
        text: the model's last words, in Markdown.
        value: what they stand for; the text, where no schema was asked for.
    """

    def __init__(self, said: Said, records: Recorder, cell: int) -> None:
        self.text = said.text
        self.value = said.value
        self._records = records
        self._cell = cell

    @property
    def turns(self) -> DataFrame:
        """The run's rows of the `turns` table."""
        frame = tables.turns(self._records)
        return frame[frame["cell"] == self._cell]

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Answer({self.text!r})"
