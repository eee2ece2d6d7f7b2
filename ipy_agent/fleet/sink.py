"""Where results go, in the order of the rows: a frame in memory, or a parquet file.

Rows come in pieces of any size, and are made into frames of `ROWS` or more: a frame or a group of
rows of its own for each row would cost more than what is in it.

Rule 1: what a parquet file takes in memory does not grow with it.
Rule 2: a file is there whole or not at all: it is written beside its place and moved in.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from ipy_agent.agent.schemas import Shape
from ipy_agent.errors import AgentError, MissingExtra, UsageError
from ipy_agent.fleet.outcome import RowOutcome
from ipy_agent.fleet.result import frame_of

if TYPE_CHECKING:
    from pandas import DataFrame, Index

__all__ = ["Memory", "Parquet", "Sink"]

ROWS = 1_000


class Sink(Protocol):
    """Takes what came of rows."""

    def add(self, index: Index[Any], outcomes: Sequence[RowOutcome]) -> None:
        """Take what came of the next rows."""

    def finish(self) -> DataFrame | Path:
        """Return all of it, or where that is."""

    def abandon(self) -> None:
        """Leave nothing of it behind, unless it is finished."""


class Memory:
    """A frame.

    Args:
        shape: what answers have to be.
        empty_index: the index of no rows, for its type.
    """

    def __init__(self, shape: Shape | None, empty_index: Index[Any]) -> None:
        self._pieces = _Pieces(shape, empty_index)
        self._frames: list[DataFrame] = []

    def add(self, index: Index[Any], outcomes: Sequence[RowOutcome]) -> None:
        self._pieces.add(index, outcomes)
        if len(self._pieces) >= ROWS:
            self._frames.append(self._pieces.taken())

    def finish(self) -> DataFrame:
        import pandas as pd  # noqa: PLC0415 (slow to load)

        if len(self._pieces) or not self._frames:
            self._frames.append(self._pieces.taken())
        whole = pd.concat(self._frames, ignore_index=True)
        whole.index = _joined([frame.index for frame in self._frames])
        self.abandon()
        return whole

    def abandon(self) -> None:
        self._frames.clear()


class Parquet:
    """A parquet file, written a group of rows at a time.

    Args:
        path: where it is when it is finished; one that is there is there until then.
        shape: what answers have to be.
        empty_index: the index of no rows, for its type.

    Raises:
        UsageError: no `.parquet`, or no such folder.
        MissingExtra: without pyarrow.
        AgentError: the disk refused; so do `add` and `finish`.
    """

    def __init__(
        self, path: str | os.PathLike[str], shape: Shape | None, empty_index: Index[Any]
    ) -> None:
        self.path = Path(path).expanduser()
        if self.path.suffix.lower() != ".parquet":
            raise UsageError(f"rows are written to parquet alone: {self.path.name!r} has to end so")
        if self.path.is_dir():
            raise UsageError(f"{str(self.path)!r} is a folder: choose another name")
        if not self.path.parent.is_dir():
            raise UsageError(f"there is no folder {str(self.path.parent)!r}: make it first")
        try:
            import pyarrow.parquet  # noqa: F401, PLC0415 (an extra)
        except ImportError:
            raise MissingExtra("a result in parquet", "parquet") from None
        self._pieces = _Pieces(shape, empty_index)
        self._beside = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}.part")
        self._schema: Any = None
        self._writer: Any = None
        self._file: IO[bytes] | None = None
        with self._told():
            self._file = self._beside.open("xb")

    def add(self, index: Index[Any], outcomes: Sequence[RowOutcome]) -> None:
        self._pieces.add(index, outcomes)
        if len(self._pieces) >= ROWS:
            with self._told():
                self._write(self._pieces.taken())

    def finish(self) -> Path:
        with self._told():
            if len(self._pieces) or self._writer is None:
                self._write(self._pieces.taken())
            self._close()
            self._beside.replace(self.path)
        return self.path

    def abandon(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # it would write the file's end
            self._close()
        with contextlib.suppress(OSError):
            self._beside.unlink(missing_ok=True)

    def _close(self) -> None:
        with contextlib.closing(self._file) if self._file else contextlib.nullcontext():
            if self._writer is not None:
                self._writer.close()

    def _write(self, frame: DataFrame) -> None:
        import pyarrow as pa  # noqa: PLC0415 (an extra)
        import pyarrow.parquet as pq  # noqa: PLC0415 (an extra)

        # The index is a column also where it only counts: nobody knows yet how far.
        table = pa.Table.from_pandas(frame, self._schema, preserve_index=True)
        if self._writer is None:
            self._schema = table.schema
            self._writer = pq.ParquetWriter(self._file, self._schema)
        self._writer.write_table(table)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Tell of what cannot be written, and leave nothing of it behind."""
        import pyarrow as pa  # noqa: PLC0415 (an extra)

        try:
            yield
        except (OSError, pa.ArrowException) as error:
            self.abandon()
            if isinstance(error, OSError):
                why = error.strerror or str(error)
            else:
                why = f"parquet has no form for its index ({error}): reset_index() gives another"
            raise AgentError(
                f"cannot write {str(self.path)!r}: {why}; the answers so far are kept: "
                "run it again, and only the rest is asked",
                code="export",
            ) from error


class _Pieces:
    """Rows that are no frame yet."""

    def __init__(self, shape: Shape | None, empty_index: Index[Any]) -> None:
        self._shape = shape
        self._empty = empty_index
        self._indexes: list[Index[Any]] = []
        self._outcomes: list[RowOutcome] = []

    def __len__(self) -> int:
        return len(self._outcomes)

    def add(self, index: Index[Any], outcomes: Sequence[RowOutcome]) -> None:
        if len(index):
            self._indexes.append(index)
            self._outcomes += outcomes

    def taken(self) -> DataFrame:
        """Return a frame of all of them, which are gone from here then."""
        index = _joined(self._indexes or [self._empty])
        frame = frame_of(index, self._outcomes, self._shape)
        self._indexes, self._outcomes = [], []
        return frame


def _joined(indexes: Sequence[Index[Any]]) -> Index[Any]:
    """Return indexes one after another, as an index of their type."""
    import pandas as pd  # noqa: PLC0415 (slow to load)

    first, *rest = indexes
    joined: Index[Any] = first
    if rest and first.dtype == object and first.nlevels == 1:
        # pandas would make texts of labels that look like some.
        labels = [label for index in indexes for label in index]
        joined = pd.Index(labels, dtype=first.dtype, name=first.name)
    elif rest:
        joined = first.append(rest)
    return joined
