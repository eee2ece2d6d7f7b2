"""A tool's value and a tool's exception become one bounded text, whatever their classes do."""

from __future__ import annotations

import signal
import threading

import pandas as pd
import pytest

from ipy_agent.agent import reprs
from ipy_agent.agent.calls import Worker
from ipy_agent.agent.tools import KEPT, result_of, tool_of
from ipy_agent.endpoints import Endpoint

# Its usual way is the alarm clock, which is then nobody else's to set.
pytestmark = pytest.mark.timeout(120, method="thread")

HERE = Endpoint(name="here", url="http://127.0.0.1:1/v1")


class Huge:
    def __repr__(self):
        return "x" * 10**8


class NoText:
    def __repr__(self):
        return self


class Leaves:
    def __repr__(self):
        raise SystemExit


class FalseText(str):
    __slots__ = ()

    def __str__(self):
        raise ValueError

    def __len__(self):
        return 10**9

    def __getitem__(self, at):
        raise ValueError

    encode = None


class Meta(type):
    @property
    def __name__(cls):
        raise ValueError


class Nameless(metaclass=Meta):
    def __repr__(self):
        raise ValueError


class Grabs:
    def __getattr__(self, name):
        raise SystemExit

    def __repr__(self):
        return "fine"


class SaysFalseText:
    def __repr__(self):
        return FalseText("said")


def laugh(width=10, depth=10):
    """Few lists, which stand for ten thousand million values."""
    value = [0] * width
    for _ in range(depth - 1):
        value = [value] * width
    return value


def chain(length):
    value = []
    for _ in range(length):
        value = [value]
    return value


RING = {}
RING["ring"] = RING

VALUES = {
    "a repr of 100 MB": (Huge(), "x" * 1_000),
    "a repr that is no text": (NoText(), "<NoText whose repr failed: TypeError>"),
    "a repr that leaves": (Leaves(), "<Leaves whose repr failed: SystemExit>"),
    "a text that lies": (FalseText("abc"), "abc"),
    "a repr that is a text that lies": (SaysFalseText(), "said"),
    "a class without a name": (Nameless(), "<Nameless whose repr failed: ValueError>"),
    "one that has no attributes": (Grabs(), "fine"),
    "itself": (RING, "dict of 1: {'ring': {'ring': "),
    "ten thousand million values": (laugh(), "list of 10: [[[[["),
    "deep": (chain(100_000), "list of 1: [[[[[[...]]]]]]"),
    "five million values": (list(range(5_000_000)), "list of 5,000,000: [0, 1, 2"),
    "a series of a million rows": (pd.Series(range(10**6)), "0              0\n1  "),
    "an integer too large to be said": (10**5_000, "<int whose repr failed: ValueError>"),
    "100 MB of text": ("y" * 10**8, "y" * 1_000),
    "10 MB of bytes": (b"z" * 10**7, '"enp6'),
}


@pytest.mark.parametrize(("value", "begins"), VALUES.values(), ids=VALUES)
def test_what_a_tool_returns_is_one_bounded_text(value, begins):
    """For the model as long as it can take, for the record a million characters at most."""
    worker = Worker(
        {"give": tool_of(lambda: value, name="give", description="G")}, "auto", print, HERE
    )

    outcome = worker.carry_out(
        {"type": "function_call", "call_id": "c", "name": "give", "arguments": "{}"}
    )

    assert outcome.ended.status == "completed"
    assert outcome.output.startswith(begins)
    assert len(outcome.output) <= HERE.output_limit + 100
    assert len(outcome.ended.output) <= KEPT + 100


class Endless:
    """Swallows whatever it can, and goes on."""

    def __repr__(self):
        while True:
            try:
                while True:
                    pass
            except Exception:  # noqa: BLE001 (as bad code does)
                pass


def test_a_repr_that_does_not_end_is_ended(monkeypatch):
    """By an alarm clock that is off again afterwards."""
    monkeypatch.setattr(reprs, "SECONDS", 0.05)

    assert result_of(Endless()).text == "<Endless whose repr took longer than 0.05 s>"
    assert result_of([Endless()]).text == "<list whose repr took longer than 0.05 s>"
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def test_an_alarm_clock_of_the_users_stays_theirs():
    """Set by them, or on another thread, none of ours is used."""
    before = signal.signal(signal.SIGALRM, print)
    try:
        with reprs.in_time():
            assert signal.getsignal(signal.SIGALRM) is print
            assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(result_of(1j).text))
    thread.start()
    thread.join(20)
    assert seen == ["1j"]


def test_an_interrupt_in_a_repr_is_an_interrupt():
    """It is no failed repr."""

    class Pressed:
        def __repr__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        result_of(Pressed())


@pytest.mark.parametrize("kind", [SystemExit, GeneratorExit, Exception])
def test_an_exception_that_cannot_say_what_it_is_is_told_by_its_name(kind):
    """Whatever its text raises."""

    class Mute(kind):
        def __str__(self):
            raise SystemExit

    def fail():
        """Fail."""
        raise Mute

    outcome = Worker({"fail": tool_of(fail)}, "auto", print, HERE).carry_out(
        {"type": "function_call", "call_id": "c", "name": "fail", "arguments": "{}"}
    )

    assert (outcome.output, outcome.ended.status) == ("Mute", "failed")
