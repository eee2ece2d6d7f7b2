"""Settings and endpoints are checked when they are made; presets are rows."""

from __future__ import annotations

import dataclasses

import pytest

from ipy_agent.errors import UsageError
from ipy_agent.settings import MODES, SETTINGS, Settings


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    """Let no variable of the machine decide what these tests see."""
    for name in ("IPY_AGENT_ENDPOINT", "IPY_AGENT_MODEL", "OPENAI_API_KEY", "XAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


# settings


def test_the_usual_settings_are_careful():
    """Nothing is stored, and nothing that changes anything runs without a question."""
    usual = Settings()

    assert (usual.mode, usual.store, usual.tools) == ("ask", False, None)
    assert (usual.budget_turns, usual.budget_seconds) == (25, 1_800.0)


@pytest.mark.parametrize("scope", ["budget", "session"])
@pytest.mark.parametrize("kind", ["turns", "seconds", "tokens", "usd"])
def test_every_limit_can_be_set_and_taken_away(scope, kind):
    """None is no limit; what is limited by itself is a run's turns and seconds."""
    name = f"{scope}_{kind}"
    usual = {"budget_turns": 25, "budget_seconds": 1_800.0}.get(name)

    assert getattr(Settings(), name) == usual
    assert getattr(Settings().replace(**{name: 7}), name) == 7
    assert getattr(Settings().replace(**{name: None}), name) is None


@pytest.mark.parametrize("mode", MODES)
def test_there_are_three_modes(mode):
    """Each of `read`, `ask` and `auto` can be set."""
    assert Settings(mode=mode).mode == mode
    assert MODES == ("read", "ask", "auto")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mode", "yes"),
        ("mode", "AUTO"),
        ("mode", ""),
        ("mode", None),
        ("budget_turns", 0),
        ("budget_turns", -1),
        ("budget_turns", True),
        ("budget_turns", "25"),
        ("budget_turns", 2.5),
        ("budget_turns", float("inf")),
        ("budget_seconds", 0),
        ("budget_seconds", -0.5),
        ("budget_seconds", float("nan")),
        ("budget_seconds", "60"),
        ("budget_seconds", float("inf")),
        ("budget_tokens", 0),
        ("budget_tokens", 1.5),
        ("budget_usd", 0),
        ("budget_usd", "1"),
        ("session_turns", 2.5),
        ("session_seconds", -1),
        ("session_tokens", True),
        ("session_usd", 10**400),
    ],
)
def test_a_wrong_value_is_found_where_it_is_set(name, value):
    """The error names the setting and the value, whether it is new or a change."""
    for make in (lambda: Settings(**{name: value}), lambda: Settings().replace(**{name: value})):
        with pytest.raises(UsageError, match=name) as refused:
            make()

        assert repr(value) in str(refused.value)
        assert "\n" not in str(refused.value)


def test_what_is_no_setting_is_refused_by_name():
    """A slip of the pen is answered with the names that there are."""
    with pytest.raises(UsageError, match=r"'modell' is no setting") as refused:
        Settings().replace(modell="m")

    assert all(name in str(refused.value) for name in SETTINGS)


def test_a_change_makes_other_settings():
    """Settings are frozen: a run keeps those that it began with."""
    usual = Settings()
    changed = usual.replace(model="m", budget_turns=250)

    assert (changed.model, changed.budget_turns, changed.mode) == ("m", 250, "ask")
    assert usual == Settings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        usual.mode = "auto"
