"""A folder of its own for the journals of each test."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """Where the state of the user is."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sessions" / "one.sqlite3"
