"""Frames, columns and arrays in a few lines."""

from __future__ import annotations

import datetime as dt
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ipy_agent.notebook.preview import preview


def lines(value, *, head=False):
    return preview("x", value, head=head).splitlines()[1:]


def test_a_frame_tells_each_column_once():
    """Columns come with dtype, range or categories, and how many are missing."""
    frame = pd.DataFrame(
        {
            "n": [1.5, None, 4.0],
            "kind": ["b", "a", "b"],
            "day": pd.date_range("2026-01-01", periods=3),
        }
    )

    said = preview("frame", frame).splitlines()

    assert said[0] == "frame: DataFrame 3×3"
    assert said[1] == "  n: float64; 1.5 to 4.0; 1 missing"
    assert said[2] == f"  kind: {frame['kind'].dtype}; b, a"
    assert said[3].startswith("  day: datetime64")
    assert said[3].endswith("2026-01-01 00:00:00 to 2026-01-03 00:00:00")


def test_the_first_rows_are_the_users_own_to_read():
    """With `head` three rows follow, under a name, with the index that they have."""
    days = pd.date_range("2026-01-01", periods=9, name="day")
    frame = pd.DataFrame({"n": range(9), "word": list("abcdefghi")}, index=days)

    said = lines(frame, head=True)

    assert said[0].startswith("  index day: datetime64")
    name, columns, *table = said[said.index("") + 1 :]
    assert (name, columns.split()) == ("x.head(3):", ["n", "word"])
    assert [row.split()[-2:] for row in table] == [["0", "a"], ["1", "b"], ["2", "c"]]
    assert table[0].startswith("2026-01-01")


def test_a_column_that_is_not_plain_does_not_hide_the_others():
    """Lists and objects are shown as far as they are known, beside plain columns."""
    frame = pd.DataFrame({"n": [1, 2], "parts": [["a", 1], None], "held": [object(), object()]})

    said = lines(frame, head=True)

    assert said[1:3] == ["  parts: object; 1 missing", "  held: object"]
    assert said[-2].split() == ["0", "1", "['a',", "1]", "<object>"]


def test_two_columns_of_one_name_are_two_lines():
    """A frame may name two columns alike."""
    frame = pd.DataFrame([[1, 2]], columns=["a", "a"])

    assert lines(frame) == ["  a: int64; 1 to 1", "  a: int64; 2 to 2"]
    assert lines(frame, head=True)[-2:] == ["   a  a", "0  1  2"]


def test_a_label_is_not_taken_for_an_attribute():
    """A series answers to its labels as if they were attributes."""
    labels = ["levels", "categories", "dtypes", "shape", "dtype", "array"]

    said = lines(pd.Series(range(6), index=labels), head=True)

    assert said[1] == "  int64; 0 to 5"
    assert said[4].split() == ["levels", "0"]
    assert lines(pd.DataFrame({label: [1] for label in labels}, index=["levels"]), head=True)


def test_labels_are_told_on_one_line():
    """Numbers, dates, tuples and texts with line ends name a column."""
    labels = [np.int64(3), "two\nlines", ("a", 1)]
    frame = pd.DataFrame([[0, 0, 0]])
    frame.columns = pd.Index(labels, tupleize_cols=False)
    days = pd.DataFrame([[1]], columns=pd.to_datetime(["2026-01-01"]))

    assert [line.partition(":")[0].strip() for line in lines(frame)] == [
        "3",
        "'two\\nlines'",
        "('a', 1)",
    ]
    assert lines(days) == ["  2026-01-01 00:00:00: int64; 1 to 1"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (pd.array([1, None, 2], dtype="Int64"), "Int64; 1 to 2; 1 missing"),
        (pd.array([True, None], dtype="boolean"), "boolean; True; 1 missing"),
        (pd.Categorical(["b", "a", None]), "category; b, a; 1 missing"),
        (pd.Categorical([None]), "category; 1 missing"),
        (pd.period_range("2026", periods=2, freq="Y"), "period[Y-DEC]; 2026, 2027"),
        ([None, None], "object; 2 missing"),
        ([dt.date(2026, 1, 1)], "object; 2026-01-01"),
        (list(range(8)), "int64; 0 to 7"),
        (np.array(list("abcdefgh"), dtype=object), "object; a, b, c, d, e, f, …"),
        (pd.array([[1], [2]], dtype=pd.ArrowDtype(pa.list_(pa.int64()))), "list<item: int64>"),
        (pd.array([{"a": 1}], dtype=pd.ArrowDtype(pa.struct({"a": pa.int64()}))), "struct<a:"),
        (pd.array(["x", None], dtype=pd.ArrowDtype(pa.string())), "string[pyarrow]; x; 1 missing"),
    ],
)
def test_a_column_of_any_type_of_pandas_is_told(values, said):
    """What is in a column is a range, or the first of its kinds, and how many are missing."""
    series = pd.Series(values, dtype=object if said.startswith("object") else None)

    assert lines(series)[0].strip().startswith(said)
    assert lines(series, head=True)


@pytest.mark.parametrize("made", [pd.DataFrame, lambda: pd.DataFrame({"a": []}), pd.Series])
def test_what_is_empty_has_no_first_rows(made):
    """There is nothing to show, and no warning."""
    assert "" not in lines(made(), head=True)


def test_long_data_is_scanned_in_part_and_says_so():
    """Range and gaps are those of the first million rows."""
    values = np.ones(1_000_001)
    values[-1] = 99

    for value in (pd.DataFrame({"a": values}), pd.Series(values)):
        said = lines(value)
        assert said[0].endswith("float64; 1.0 to 1.0")
        assert said[1] == "  (range and missing of the first 1,000,000 rows)"
    assert lines(values)[:2] == [
        "  dtype float64; 1.0 to 1.0",
        "  (range and missing of the first 1,000,000 values)",
    ]
    assert "first" not in preview("x", pd.Series(values[1:]))


def test_a_series_tells_its_index_and_its_first_values():
    """What is counted by kind is readable."""
    counted = pd.Series(["b", "a", "b"], name="kind").value_counts()

    said = lines(counted, head=True)

    assert said[0].startswith("  index kind: ")
    assert said[1] == "  int64; 1 to 2"
    assert [line.split() for line in said[4:]] == [["b", "2"], ["a", "1"]]


def test_an_index_of_levels_is_told_by_its_names():
    """Grouping by two columns makes one."""
    frame = pd.DataFrame({"a": ["p", "q"], "b": [1, 2], "n": [3, 4]}).set_index(["a", "b"])

    said = lines(frame, head=True)

    assert said[0] == "  index a, b: 2 levels"
    assert said[-1].split() == ["q,", "2", "4"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.array([[1, 2], [3, 4]]), ["  dtype int64; 1 to 4", "  1, 2, 3, 4"]),
        (np.array([1.5, np.nan]), ["  dtype float64; 1.5 to 1.5; 1 missing", "  1.5, nan"]),
        (np.array([np.nan]), ["  dtype float64; 1 missing", "  nan"]),
        (np.array([1j]), ["  dtype complex128", "  1j"]),
        (np.array([True]), ["  dtype bool", "  True"]),
        (np.array(["a"]), ["  dtype <U1", "  a"]),
        (
            np.array(["2026-01-01", "NaT"], dtype="M8[D]"),
            ["  dtype datetime64[D]; 2026-01-01 to 2026-01-01; 1 missing", "  2026-01-01, NaT"],
        ),
        (np.zeros((0, 3)), ["  dtype float64"]),
        (np.array([object()]), ["  dtype object"]),
        (np.arange(9), ["  dtype int64; 0 to 8", "  0, 1, 2, 3, 4, …"]),
    ],
)
def test_an_array_tells_dtype_range_and_first_values(value, said):
    """What has no order has no range, and objects are not looked at."""
    assert lines(value) == said


def test_looking_at_an_array_copies_no_more_than_is_looked_at():
    """A view that is not contiguous is read in its own order."""
    value = np.arange(6).reshape(2, 3).T

    assert lines(value) == ["  dtype int64; 0 to 5", "  0, 3, 1, 4, 2, …"]


def test_an_arrow_table_tells_its_columns():
    """Names and types are known without looking at a value."""
    table = pa.table({"a": [1, 2], "b": ["x", None]})

    assert preview("t", table) == "t: Table 2×2\n  a: int64\n  b: string"


def test_a_polars_frame_tells_its_columns():
    """Names and types are known without looking at a value."""
    polars = pytest.importorskip("polars")

    assert preview("p", polars.DataFrame({"a": [1]})) == "p: DataFrame 1×1\n  a: Int64"
    assert preview("s", polars.Series([1])) == "s: Series 1\n  dtype Int64"


def test_a_tensor_tells_its_dtype():
    """Its shape and dtype are known without looking at a value."""
    torch = pytest.importorskip("torch")

    assert preview("t", torch.zeros(2, 3)) == "t: Tensor 2×3\n  dtype torch.float32"


def test_a_look_changes_and_warns_of_nothing():
    """The variable is as it was."""
    frame = pd.DataFrame({"a": [1, 2], "b": [["x"], None]}, index=pd.Index(["p", "q"], name="i"))
    before = frame.copy()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        preview("x", frame, head=True)
        preview("x", frame["a"], head=True)

    pd.testing.assert_frame_equal(frame, before)
