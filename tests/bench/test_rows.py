"""The bench of rows does what it says. Nothing here asserts a time."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def bench(monkeypatch):
    """The bench, which is run as a script."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import rows

    return rows


@pytest.mark.parametrize("client", ["map.py", "fork.py"])
def test_all_rows_of_a_client_are_answered(bench, client):
    """On several lanes of one socket; what it took is told."""
    told = bench.measured(client, bench.Plan(rows=40, lanes=8), thinking_ms=1)

    assert told.answered == 40
    assert told.seconds > 0 < told.cpu_seconds
    assert told.peak >= told.before > 0


def test_rows_go_to_a_file_and_are_counted_there(bench):
    """As for the figures of memory."""
    told = bench.measured("map.py", bench.Plan(rows=40, lanes=8, out="parquet"), thinking_ms=0)

    assert told.answered == 40
