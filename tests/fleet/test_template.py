"""A template: what it takes for a place, and what it puts there."""

from __future__ import annotations

import datetime as dt
import enum
import string
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipy_agent.errors import UsageError
from ipy_agent.fleet.template import MissingValue, Template


def filled(text, **row):
    template = Template.of(text, list(row))
    return template.filled([row[name] for name in template.columns])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Of {a}: {b}, {a}", "Of 1: two, 1"),
        ("{a}{b}", "1two"),
        ('{"x": {a}}', '{"x": 1}'),
        ('{a}: {"x": [{}], "y": {"z": {b}}}', '1: {"x": [{}], "y": {"z": two}}'),
        ("{a} \\frac{1}{2} x^{n+1}", "1 \\frac{1}{2} x^{n+1}"),
        ("{a} f() { return; } { a }", "1 f() { return; } { a }"),
        ("{a} {a!r} {a:>9} {a.b} {a[0]}", "1 {a!r} {a:>9} {a.b} {a[0]}"),
        ("{a} } { {} {{ }}", "1 } { {} {{ }}"),
        ("{{a} and {a}}", "{1 and 1}"),
        ("{a} {{a}} {{missing}}", "1 {a} {missing}"),
        ("{{{a}}} {{{{a}}}} {{{{{a}}}}}", "{1} {{a}} {{1}}"),
        ("{{{a}} {a} {{a}}}", "{{a} 1 {a}}"),
        ("{a} {{1, 2}} {{ a }}", "1 {{1, 2}} {{ a }}"),
        ("{a}\n{\n}%s %(a)s $a ${a}", "1\n{\n}%s %(a)s $a $1"),
        ("{a} { {a", "1 { {a"),
    ],
)
def test_only_a_columns_name_in_braces_is_a_place(text, wanted):
    """All other braces are text, and doubled ones are single ones around the name."""
    assert filled(text, a=1, b="two") == wanted


@pytest.mark.parametrize(
    "label", ["two words", "a-b", "größe", "x:y", "", " a ", "a{b", 0, 1.5, ("a", "b"), None]
)
def test_a_column_may_be_called_anything(label):
    """What stands in the braces is what the label prints as."""
    template = Template.of(f"<{{{label}}}>", ["a", label])

    assert template.columns == (label,)
    assert template.filled(["{a}"]) == "<{a}>"


def test_columns_are_told_once_in_the_order_of_the_text():
    """Those that are not put in are not asked for."""
    template = Template.of("{b} {a} {b}", ["a", "b", "c"])

    assert template.columns == ("b", "a")
    assert template.filled([1, 2]) == "1 2 1"


def test_a_column_that_there_is_not_is_told():
    """With one that is close, and some that there are."""
    columns = ["Name", "age", "town", "street", "number", "zip"]

    with pytest.raises(UsageError, match=r"'name'; did you mean 'Name'\? There are Name, .*, …"):
        Template.of("{name}", columns)
    with pytest.raises(UsageError, match=r"'salary'\. There are Name.* write {{salary}}"):
        Template.of("{age} {salary}", columns)
    with pytest.raises(UsageError, match=r"'twon'; did you mean 'town'\? There are town;"):
        Template.of("{twon}", ["town"])
    with pytest.raises(UsageError, match="There are none"):
        Template.of("{name}", [])


@pytest.mark.parametrize("text", ["", "Say hello", "{{a}}", "{} { a } {1}"])
def test_a_text_without_places_is_refused(text):
    """Every row would ask the same."""
    with pytest.raises(UsageError, match=r"same: .*such as {a}"):
        Template.of(text, ["a"])


@pytest.mark.parametrize("columns", [["a", "a"], [1, "1"], ["b", ("c", 1), "('c', 1)"]])
def test_two_columns_of_one_name_are_refused(columns):
    """Nobody could tell which of them is meant."""
    with pytest.raises(UsageError, match="two columns are called"):
        Template.of("{a}", columns)


def test_an_error_is_one_line_however_long_a_name_is():
    """A frame may have a page for a label."""
    with pytest.raises(UsageError) as error:
        Template.of("{" + "x" * 10_000 + "}", ["y\n" * 10_000])

    assert len(error.value.line) < 1_000


class Tone(str, enum.Enum):  # noqa: UP042 (it prints as Tone.WARM)
    WARM = "warm"


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (0.1, "0.1"),
        (1e22, "1e+22"),
        (np.float64(0.1), "0.1"),
        (np.float32(0.1), "0.1"),
        (np.int8(-3), "-3"),
        (np.bool_(1), "True"),
        (np.str_("x"), "x"),
        (Tone.WARM, "warm"),
        (float("inf"), "inf"),
        (Decimal("1.10"), "1.10"),
        (pd.Timestamp("2026-11-27"), "2026-11-27 00:00:00"),
        (dt.date(2026, 11, 27), "2026-11-27"),
        ([None], "[None]"),
        ([float("nan")], "[nan]"),
        (np.array([np.nan]), "[nan]"),
        (np.array([]), "[]"),
        (np.array([1, 2]), "[1 2]"),
        (pd.Series([1.5]).array, str(pd.Series([1.5]).array)),
        ("", ""),
        (b"x", "b'x'"),
        ("\ud83d\ude00 \udcff", "?? ?"),
    ],
)
def test_a_value_is_put_in_as_it_prints(value, wanted):
    """Numbers are short and plain, and what cannot be sent of a text becomes a question mark."""
    assert filled("<{a}>", a=value) == f"<{wanted}>"


@pytest.mark.parametrize(
    "value",
    [
        None,
        float("nan"),
        np.float32("nan"),
        np.datetime64("NaT"),
        pd.NaT,
        pd.NA,
        Decimal("NaN"),
        np.array(np.nan),
    ],
)
def test_what_is_missing_is_told_by_its_column(value):
    """A prompt never says `nan`."""
    with pytest.raises(MissingValue, match=r"^there is no value in column 'b'$"):
        filled("{a} {b}", a=1, b=value)


@pytest.mark.parametrize("kind", ["object", "string", "Float64", "Int64", "float64", "category"])
def test_what_pandas_says_is_missing_is(kind):
    """As it comes from a column of any dtype."""
    values = pd.Series([1, None], dtype="object").astype("string" if kind == "string" else kind)
    template = Template.of("{a}", ["a"])

    assert template.filled([values.iloc[0]]) in {"1", "1.0"}
    with pytest.raises(MissingValue):
        template.filled([values.iloc[1]])


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{}"))
BRACES = st.lists(st.sampled_from(["{", "}", "{a}", "{{b}}", "a", "b", " ", "{0}", "%s"])).map(
    "".join
)


@given(st.tuples(TEXTS | BRACES, TEXTS | BRACES))
def test_data_are_never_looked_at_again(row):
    """Whatever braces a row has: what stands in the prompt is the row."""
    template = Template.of("<{a}|{b}|{a}>", ["a", "b"])

    assert template.filled(row) == f"<{row[0]}|{row[1]}|{row[0]}>"


@given(st.text(string.printable.replace("}", "")), st.text(string.printable.replace("{", "")))
def test_text_around_a_place_survives(before, after):
    """Whatever it is, as long as the place has a pair of braces of its own."""
    template = Template.of(f"{before} {{a}} {after}", ["a"])

    assert template.filled(["x"]) == f"{before} x {after}"


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "missing", "größe"]), PLAIN)))
def test_what_was_escaped_is_the_text(parts):
    """A name in doubled braces is that name in braces, also where there is no such column."""
    escaped = "".join(f"{{{{{name}}}}}{text}" for name, text in parts)
    template = Template.of(f"{{a}}: {escaped}", ["a", "b"])

    wanted = "".join(f"{{{name}}}{text}" for name, text in parts)
    assert template.filled(["x"]) == f"x: {wanted}"
