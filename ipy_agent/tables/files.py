"""A recorder's tables as files; the suffix says which format.

Rule 1: a file is there whole or not at all: it is written beside its place and moved in.
Rule 2: nothing in an exported file runs: no scripts, no addresses that are fetched.
"""

from __future__ import annotations

import io
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ipy_agent.errors import AgentError, MissingExtra, UsageError
from ipy_agent.records import Recorder
from ipy_agent.tables import document
from ipy_agent.tables.frames import FRAMES

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["csv", "export", "write"]


def export(
    records: Recorder,
    path: str | os.PathLike[str],
    table: str = "turns",
    *,
    defuse: bool = False,
) -> Path:
    """Write what a recorder holds to a file and return its path.

    Args:
        records: whose rows.
        path: its suffix decides: `.parquet`, `.csv` and `.jsonl` hold one table,
            `.json`, `.html` and `.md` all of them.
        table: which table, for the formats that hold one.
        defuse: put a `'` before each text in a `.csv` that a spreadsheet would calculate.

    Raises:
        UsageError: an unknown suffix or table, or no such folder; nothing to defuse.
        MissingExtra: parquet without pyarrow.
        AgentError: the disk refused.
    """
    place = Path(path).expanduser()
    if table not in FRAMES:
        raise UsageError(f"there is no table {table!r}: there are {', '.join(FRAMES)}")
    if not place.parent.is_dir():
        raise UsageError(f"there is no folder {str(place.parent)!r}: make it first")
    suffix = place.suffix.lower()
    if defuse and suffix != ".csv":
        raise UsageError(f"there are no formulas in {place.name!r}: defuse is for .csv")
    if defuse:
        content = csv(_defused(FRAMES[table](records)))
    elif suffix in _ONE:
        content = _ONE[suffix](FRAMES[table](records))
    elif suffix in _ALL:
        content = _ALL[suffix](records)
    else:
        known = ", ".join([*_ONE, *_ALL])
        raise UsageError(f"{place.name!r} names no format: end it in one of {known}")
    write(place, content)
    return place


def write(place: Path, content: bytes) -> None:
    """Put a file there.

    Raises:
        AgentError: the disk refused.
    """
    beside = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    try:
        beside.write_bytes(content)
        beside.replace(place)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise AgentError(
            f"cannot write {str(place)!r}: {error.strerror or error}", code="export"
        ) from error


def _parquet(frame: DataFrame) -> bytes:
    try:
        import pyarrow  # noqa: F401, ICN001, PLC0415 (an extra)
    except ImportError:
        raise MissingExtra("parquet export", "parquet") from None
    file = io.BytesIO()
    frame.to_parquet(file, engine="pyarrow", index=False)
    return file.getvalue()


def csv(frame: DataFrame) -> bytes:
    """Return a frame as CSV."""
    # as RFC 4180 has it; and with another end of a line, one in a text would not be quoted
    return frame.to_csv(index=False, lineterminator="\r\n").encode()


def _defused(frame: DataFrame) -> DataFrame:
    """Return a frame in which no text begins as a formula does."""
    names = map(str, frame.select_dtypes("string").columns)
    told = {name: frame[name].str.replace(_FORMULA, "'", regex=True) for name in names}
    return frame.assign(**told)


_FORMULA = re.compile(r"^(?=\s*[=+\-@|%\uff0b\uff0d\uff1d\uff20]|[\t\r\n])")
"""What a spreadsheet takes for the beginning of a formula, or for the end of the cell before it."""


def _jsonl(frame: DataFrame) -> bytes:
    return b"".join(_encode(row) + b"\n" for row in _rows(frame))


def _json(records: Recorder) -> bytes:
    tables = {name: _rows(frame(records)) for name, frame in FRAMES.items()}
    return msgspec.json.format(_encode(tables), indent=2) + b"\n"


def _rows(frame: DataFrame) -> list[dict[Any, Any]]:
    """Return the rows as plain values, with `None` for NA."""
    plain = frame.astype(object)
    return plain.where(frame.notna(), None).to_dict("records")


def _encode(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=lambda stamp: stamp.to_pydatetime())


_ONE: dict[str, Callable[[DataFrame], bytes]] = {
    ".parquet": _parquet,
    ".csv": csv,
    ".jsonl": _jsonl,
}
_ALL: dict[str, Callable[[Recorder], bytes]] = {
    ".json": _json,
    ".html": document.html,
    ".md": document.markdown,
}
