"""The bench of clients does what it says. Nothing here asserts a time."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def bench(monkeypatch):
    """The modules of the bench, which is run as a script."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import kernels
    import processes

    return kernels, processes


@pytest.mark.parametrize("file", ["bare.py", "ours.py"])
def test_a_client_is_measured_at_the_endpoint(bench, file):
    """Each turn but a run's first has a gap, each has its bytes, and no turn sends more."""
    _, processes = bench
    plan = processes.Plan(((3, 4), (5, 4)), tail_ms=1, tools=2)

    told = processes.measured(processes.Loop(file), plan)

    assert [len(told.gaps(run)) for run in (0, 1)] == [2, 4]
    assert [len(told.sizes(run)) for run in (0, 1)] == [3, 5]
    assert max(told.sizes(1)) < 1.1 * min(told.sizes(1))
    assert all(gap > 0 for gap in told.gaps(1))
    assert told.cpu_ms(1) > 0


def test_a_full_resend_grows(bench):
    """What sends everything over HTTP sends more with every turn."""
    _, processes = bench

    told = processes.measured(
        processes.Loop("resend.py", http=True), processes.Plan(((5, 4),), tools=2)
    )

    assert told.sizes(0) == sorted(set(told.sizes(0)))
    assert len(told.gaps(0)) == 4


@pytest.mark.kernel
def test_a_cell_is_measured_at_its_front_end(bench):
    """A cell tells what it cost, and its front end what it was sent."""
    kernels, processes = bench

    told = kernels.agent(processes.Plan(((2, 4), (1, 200)), pace_ms=1, tools=2))

    assert [len(told.gaps(run)) for run in (0, 1)] == [1, 0]
    assert told.cpu_ms(1) > 0
    assert told.cells[1].of("display_data")
    assert told.cells[1].busiest("update_display_data") >= 1
