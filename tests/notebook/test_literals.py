"""Values in a few characters."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import sys
import threading

import numpy as np
import pytest

from ipy_agent.notebook.literals import (
    contents,
    fitting,
    home,
    label,
    library,
    safe,
    short,
    type_name,
)
from ipy_agent.notebook.preview import preview, sized


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("a\nb", "'a\\nb'"),
        (b"x", "b'x'"),
        (True, "True"),
        (dt.date(2026, 1, 1), "datetime.date(2026, 1, 1)"),
        (decimal.Decimal("1.5"), "Decimal('1.5')"),
        (np.float64(1.5), "1.5"),
        (np.str_("x"), "'x'"),
        (10**100, "of 333 bits"),
        ("x" * 100, "'" + "x" * 58 + "…"),
        (object(), "<object>"),
        (int, "<type>"),
        ((1, (2, (3, (4,)))), "(1, (2, <tuple of 2>))"),
        (collections.deque([1]), "[1]"),
        (collections.OrderedDict(a=[]), "{'a': []}"),
        ([[1] * 9] * 9, "[" + "[1, 1, 1, 1, 1, 1, …], " * 6 + "…]"),
    ],
)
def test_a_repr_is_bounded_in_length_and_depth(value, said):
    """Plain values and containers are shown as Python writes them, the rest by type."""
    assert safe(value) == said


@pytest.mark.parametrize("value", [[["x" * 999] * 9] * 9, {"k" * 999: "v" * 999}, "x" * 999])
def test_no_repr_is_longer_than_a_line(value):
    """However long the values in it are."""
    assert len(safe(value)) <= 200


def test_a_subclass_is_not_what_it_is_a_subclass_of():
    """Only the exact type is known."""
    kind = type("Mine", (dict,), {"items": lambda _: 1 / 0, "__len__": lambda _: 1 / 0})

    assert safe(kind(a=1)) == "<Mine>"
    assert safe(type("Number", (np.float64,), {"item": lambda _: 1 / 0})(1)) == "<Number>"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("plain name", "plain name"),
        ("two\nlines", "'two\\nlines'"),
        ("\u202eturned", "'\\u202eturned'"),
        ("x" * 99, "x" * 59 + "…"),
        (3, "3"),
        (("a", 1), "('a', 1)"),
        (object(), "<object>"),
    ],
)
def test_a_label_is_one_line_that_can_be_read(name, said):
    """What cannot be seen is written out."""
    assert label(name) == said


def test_a_class_is_asked_for_its_own_name_and_home():
    """A home that is no text is none."""
    assert (type_name(np.ndarray), home(np.ndarray), library(np.ndarray)) == (
        "ndarray",
        "numpy",
        "numpy",
    )
    assert home(type("Odd", (), {"__module__": 3})) == ""


def test_only_what_fits_is_made():
    """The line that does not fit any more is the last one that is asked for."""
    made = []

    def lines():
        for n in range(99):
            made.append(n)
            yield "xxxx"

    assert fitting(lines(), 12) == ["xxxx", "xxxx"]
    assert made == [0, 1, 2]
    assert short("abc", 3) == "abc"
    assert short("abcd", 3) == "ab…"


def test_a_range_may_be_longer_than_len_can_say():
    """It is told all the same, wherever it is."""
    assert sized(range(10**30)) == f"range of {sys.maxsize}"
    assert preview("r", range(10**30)) == f"r: range of {sys.maxsize}\n  0, 1, 2, 3, 4, 5, …"
    assert preview("r", [range(10**30)]).endswith("[0, 1, 2, 3, 4, 5, …]")


def test_a_container_that_another_thread_changes_is_told_all_the_same():
    """Its values are taken out in one go."""
    changing, over = dict.fromkeys(range(100)), threading.Event()

    def change():
        while not over.is_set():
            changing.update(dict.fromkeys(range(100, 200)))
            for key in range(100, 200):
                changing.pop(key)

    thread = threading.Thread(target=change)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        for _ in range(3_000):
            assert contents(changing).startswith("0: None, 1: None")
    finally:
        over.set()
        thread.join()
        sys.setswitchinterval(before)
