"""Variables in a few lines."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ipy_agent.notebook.preview import brief, preview


class Trap:
    """An object whose every method tells that it was called."""

    def __init__(self) -> None:
        self.__dict__["touched"] = []

    def __repr__(self):
        self.touched.append("repr")
        return "trap"

    __str__ = __repr__

    def __len__(self):
        self.touched.append("len")
        return 1

    def __eq__(self, other):
        self.touched.append("eq")
        return False

    __hash__ = object.__hash__


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (pd.DataFrame({"a": [1, 2, 3]}), "DataFrame 3×1"),
        (pd.Series([1.0, 2.0]), "Series 2"),
        (np.zeros((2, 3)), "ndarray 2×3"),
        ([1, 2], "list of 2"),
        ({"a": 1}, "dict of 1"),
        (3.5, "float 3.5"),
        ("x" * 500, "str '" + "x" * 58 + "…"),
        (10**100, "int of 333 bits"),
        (None, "NoneType None"),
        (Trap(), "Trap"),
    ],
)
def test_brief_is_type_and_shape(value, said):
    """A variable is named by its type and shape, a plain one by its value."""
    assert brief(value) == said


def test_a_frame_tells_each_column_once():
    """Columns come with dtype, range or categories, and how many are missing."""
    frame = pd.DataFrame(
        {
            "n": [1.5, None, 4.0],
            "kind": ["b", "a", "b"],
            "day": pd.date_range("2026-01-01", periods=3),
        }
    )

    lines = preview("frame", frame).splitlines()

    assert lines[0] == "frame: DataFrame 3×3"
    assert lines[1] == "  n: float64; 1.5 to 4.0; 1 missing"
    assert lines[2] == "  kind: str; b, a"
    assert lines[3].startswith("  day: datetime64")
    assert lines[3].endswith("2026-01-01 00:00:00 to 2026-01-03 00:00:00")
    assert "1.5" in preview("frame", frame, head=True).splitlines()[-3]


def test_two_columns_of_one_name_are_two_lines():
    """A frame may name two columns alike."""
    assert len(preview("f", pd.DataFrame([[1, 2]], columns=["a", "a"])).splitlines()) == 3


@pytest.mark.parametrize("head", [True, False])
def test_no_code_of_the_user_runs(head):
    """Neither an object nor one that a container holds is called."""
    trap = Trap()
    holders = [
        trap,
        [trap],
        {trap: trap},
        (trap, [trap]),
        pd.DataFrame({"t": [trap], "n": [1]}),
        pd.Series([trap]),
        np.array([trap], dtype=object),
    ]

    said = [preview("x", holder, head=head) for holder in holders]

    assert trap.touched == []
    assert said[1].splitlines()[1] == "  <Trap>"


def test_what_is_said_stays_short():
    """Wide, long and nested values are cut."""
    wide = pd.DataFrame(np.zeros((3, 500)))
    long = {f"key{n}": "v" * 1000 for n in range(10_000)}
    nested: list[object] = []
    nested.append(nested)

    assert "and 460 columns more" in preview("w", wide)
    for name, value in (("w", wide), ("l", long), ("n", nested)):
        assert len(preview(name, value, head=True)) < 8_000
