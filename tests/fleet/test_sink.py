"""Where results go: whatever the pieces, all rows are there, in their order, or nothing is."""

from __future__ import annotations

import datetime as dt
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from ipy_agent.agent.schemas import shape_of
from ipy_agent.errors import AgentError, MissingExtra, UsageError
from ipy_agent.fleet.outcome import RowOutcome
from ipy_agent.fleet.result import frame_of
from ipy_agent.fleet.sink import Memory, Parquet


@pytest.fixture(params=["memory", "parquet"])
def sink(request, tmp_path):
    """Return a function that makes a sink."""
    if request.param == "memory":
        return Memory
    return lambda *args: Parquet(tmp_path / "rows.parquet", *args)


def read(finished):
    return finished if isinstance(finished, pd.DataFrame) else pd.read_parquet(finished)


def outcomes(count):
    return [
        RowOutcome(text=f"text {at}", status="completed", input_tokens=at)
        if at % 3
        else RowOutcome(status="failed", error="no")
        for at in range(count)
    ]


def filled(sink, index, size, shape=None):
    """Put rows into a sink, in pieces of a size, and return what comes of it."""
    rows, one = outcomes(len(index)), sink(shape, index[:0])
    for at in range(0, len(index), size):
        one.add(index[at : at + size], rows[at : at + size])
    return read(one.finish())


@pytest.mark.parametrize(
    ("count", "size"), [(0, 1), (1, 1), (2_500, 1), (2_500, 300), (2_500, 9**9)]
)
def test_all_rows_are_there_in_their_order(count, size, sink):
    """However large the pieces are in which they came."""
    index = pd.Index([f"row {at // 2}" for at in range(count)], name="label")

    frame = filled(sink, index, size)

    pd.testing.assert_frame_equal(frame, frame_of(index, outcomes(count), None))


@pytest.mark.parametrize("kind", [None, int, dict[str, int], list[str], float, bool])
@pytest.mark.parametrize("count", [0, 3])
def test_columns_have_their_dtypes(kind, count, sink):
    """Also where all of a column is missing, or there are no rows."""
    shape, index = kind and shape_of(kind), pd.RangeIndex(count)

    frame = filled(sink, index, 2, shape)

    pd.testing.assert_frame_equal(frame, frame_of(index, outcomes(count), shape))


N = 2_400
INDEXES = {
    "range": pd.RangeIndex(0, 3 * N, 3, name="n"),
    "duplicates": pd.Index([1] * N),
    "dates": pd.DatetimeIndex(["2026-11-27", None] * (N // 2), tz="Europe/Berlin", name="at"),
    "multi": pd.MultiIndex.from_product([["b", "a"], range(N // 2)], names=["x", None]),
    "categories": pd.CategoricalIndex(["b", "a"] * (N // 2), categories=["c", "b", "a"]),
    "floats": pd.Index([np.nan, 1.5] * (N // 2), name="status"),
    "periods": pd.period_range("2026-01", periods=N, freq="M", name="answer"),
    "objects": pd.Index([None, "a"] * (N // 2), dtype=object),
    "days": pd.Index([dt.date(2026, 11, 27)] * N),
    "nullable": pd.Index(pd.array([1, None] * (N // 2), dtype="Int64")),
    "intervals": pd.interval_range(0, N),
}


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("name", INDEXES)
def test_the_index_in_memory_is_that_of_the_rows(name, empty):
    """Labels, names and type; a range is a range."""
    index = INDEXES[name][:0] if empty else INDEXES[name]

    frame = filled(Memory, index, 700)

    pd.testing.assert_index_equal(frame.index, index, exact=True)


def test_dates_go_on_as_they_went():
    """What pandas knows of their distance is known of the result."""
    index = pd.date_range("2026-11-27", periods=N, freq="h")

    assert filled(Memory, index, 700).index.freq == "h"


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("name", INDEXES)
def test_the_index_in_a_file_is_as_pandas_writes_it(name, empty, tmp_path):
    """Labels, names and type, as far as a parquet file of pandas' own has them."""
    index = INDEXES[name][:0] if empty else INDEXES[name]
    theirs = tmp_path / "theirs.parquet"
    frame_of(index, outcomes(len(index)), None).to_parquet(theirs, index=True)

    frame = filled(lambda *args: Parquet(tmp_path / "ours.parquet", *args), index, 700)

    pd.testing.assert_frame_equal(frame, pd.read_parquet(theirs))
    assert frame.index.names == index.names


def test_groups_of_rows_are_not_tiny(tmp_path):
    """Small pieces are gathered; only the last group may be small."""
    path = tmp_path / "rows.parquet"
    filled(lambda *args: Parquet(path, *args), pd.RangeIndex(3_650), 300)

    told = pq.ParquetFile(path).metadata
    assert [told.row_group(at).num_rows for at in range(told.num_row_groups)] == [1_200] * 3 + [50]


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    """What was there before is there until then; nothing else stays beside it."""
    path = tmp_path / "rows.parquet"
    path.write_text("before")
    index = pd.RangeIndex(3_000)
    one = Parquet(path, None, index[:0])
    one.add(index, outcomes(3_000))
    assert path.read_text() == "before"
    one.abandon()
    assert (path.read_text(), list(tmp_path.iterdir())) == ("before", [path])

    two = Parquet(path, None, index[:0])
    two.add(index, outcomes(3_000))

    assert two.finish() == path
    assert len(pd.read_parquet(path)) == 3_000
    two.abandon()
    one.abandon()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", ["rows.csv", "rows", "nowhere/rows.parquet", "folder.parquet"])
def test_a_place_that_cannot_be_is_told_before_anything_is_asked(place, tmp_path):
    """Another suffix, a folder that is not there, and one that is."""
    (tmp_path / "folder.parquet").mkdir()

    with pytest.raises(UsageError, match=r"parquet|folder"):
        Parquet(tmp_path / place, None, pd.RangeIndex(0))
    assert [file.name for file in tmp_path.iterdir()] == ["folder.parquet"]


def test_a_folder_that_takes_no_files_is_told_before_anything_is_asked():
    """Nobody has to wait for the first thousand rows."""
    with pytest.raises(AgentError, match=re.escape("cannot write '/proc/rows.parquet'")):
        Parquet("/proc/rows.parquet", None, pd.RangeIndex(0))


def test_parquet_needs_pyarrow(tmp_path, monkeypatch):
    """It is an extra, and the error names it."""
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)

    with pytest.raises(MissingExtra, match=re.escape("ipy-agent-live[parquet]")):
        Parquet(tmp_path / "rows.parquet", None, pd.RangeIndex(0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("labels", [[1] * 1_000 + ["a"] * 1_000, [1j] * 1_000, [object()] * 1_000])
def test_an_index_that_parquet_cannot_hold_is_told(labels, tmp_path):
    """With what to do, and nothing stays behind."""
    index = pd.Index(labels, dtype=object)

    with pytest.raises(AgentError, match=r"no form for its index .*reset_index\(\)"):
        filled(lambda *args: Parquet(tmp_path / "rows.parquet", *args), index, 1_000)
    assert list(tmp_path.iterdir()) == []


FULL = """
import os, sys
import pandas as pd
from ipy_agent.errors import AgentError
from ipy_agent.fleet.outcome import RowOutcome
from ipy_agent.fleet.sink import Parquet

index, way = pd.RangeIndex(int(sys.argv[2])), sys.argv[1]
try:
    sink = Parquet(way, None, index[:0])
    for at in range(0, len(index), 1_000):
        rows = [RowOutcome(text=os.urandom(100).hex(), status="completed") for _ in range(1_000)]
        sink.add(index[at : at + 1_000], rows)
    print("finishing")
    sink.finish()
except AgentError as error:
    print(error.line)
    sink.abandon()
print(os.listdir(os.path.dirname(way)))
"""
LIMIT = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (240_000, 240_000))
"""
SMALL = 'mount -t tmpfs -o size=256k none "$0" && exec "$@"'


@pytest.mark.parametrize("kind", ["a limit", "a file system"])
@pytest.mark.parametrize("rows", [1_000, 2_000, 100_000])
def test_a_full_disk_is_told_and_nothing_stays_behind(kind, rows, tmp_path):
    """Wherever it becomes full: the error names the file, and says what is not lost."""
    path = tmp_path / "full" / "rows.parquet"
    path.parent.mkdir()
    if kind == "a limit":
        command = [sys.executable, "-c", LIMIT + FULL, path, str(rows)]
    else:
        tried = ["unshare", "--mount", "sh", "-c", SMALL, path.parent]
        if not shutil.which("unshare") or subprocess.run([*tried, "true"], check=False).returncode:
            pytest.skip("only root may mount a file system, and not everywhere")
        command = [*tried, sys.executable, "-c", FULL, path, str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    *_, said, left = done.stdout.splitlines()

    if rows == 1_000:
        assert (said, left) == ("finishing", "['rows.parquet']")
    else:
        assert said.startswith(f"cannot write '{path}': ")
        assert "answers so far are kept" in said
        assert left == "[]"
    assert done.stderr == ""
