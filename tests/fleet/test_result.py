"""Outcomes as a frame: columns and dtypes by the shape alone, and whatever an answer is."""

from __future__ import annotations

import dataclasses
import enum
import json
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict

import msgspec
import numpy as np
import pandas as pd
import pydantic
import pytest

from ipy_agent.agent.schemas import Misfit, shape_of
from ipy_agent.errors import UsageError
from ipy_agent.fleet.outcome import FIGURES, RowOutcome
from ipy_agent.fleet.result import columns_of, frame_of, values_of


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass
class Everything:
    text: str
    whole: int
    number: float
    truth: bool
    some: int | None
    choice: Literal["a", "b"]
    colour: Colour
    maybe: Colour | None
    level: Level
    either: int | float
    bounded: Annotated[int, msgspec.Meta(ge=0)]
    names: list[str]
    counts: dict[str, int]
    mixed: int | str
    several: Literal[1, "a"]
    anything: Any


DTYPES = {
    "text": "string",
    "whole": "Int64",
    "number": "Float64",
    "truth": "boolean",
    "some": "Int64",
    "choice": "string",
    "colour": "string",
    "maybe": "string",
    "level": "Int64",
    "either": "Float64",
    "bounded": "Int64",
    "names": "string",
    "counts": "string",
    "mixed": "string",
    "several": "string",
    "anything": "string",
}

GIVEN = {
    "text": "x",
    "whole": 1,
    "number": 1.5,
    "truth": True,
    "some": None,
    "choice": "a",
    "colour": "red",
    "maybe": None,
    "level": 1,
    "either": 2,
    "bounded": 3,
    "names": ["a", "ü"],
    "counts": {"a": 1},
    "mixed": "m",
    "several": 1,
    "anything": None,
}

WANTED = GIVEN | {"names": '["a","ü"]', "counts": '{"a":1}', "mixed": '"m"', "several": "1"}


class Struct(msgspec.Struct, rename="camel", omit_defaults=True, tag=True):
    long_name: int
    other: str = "usual"


class Typed(TypedDict):
    longName: int
    other: NotRequired[str]


class Named(NamedTuple):
    longName: int  # noqa: N815 (as the others call it)
    other: str = "usual"


class Model(pydantic.BaseModel):
    long_name: int = pydantic.Field(alias="longName")
    other: str = "usual"
    colour: Colour | None = None
    names: list[str] = []


def test_an_answer_without_a_shape_is_its_text():
    """In one column, whatever it says."""
    assert columns_of(None) == {"answer": "string"}
    assert values_of(None, '{"a": 1}') == {"answer": '{"a": 1}'}


def test_a_field_is_a_column_with_its_dtype():
    """In the schema's order; what has no dtype is the text of its JSON."""
    shape = shape_of(Everything)

    assert list(columns_of(shape).items()) == list(DTYPES.items())
    assert values_of(shape, json.dumps(GIVEN)) == WANTED


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (Struct, {"type": "Struct", "longName": 1, "other": "usual"}),
        (Typed, {"longName": 1, "other": None}),
        (Named, {"longName": 1, "other": "usual"}),
        (Model, {"longName": 1, "other": "usual", "colour": None, "names": "[]"}),
    ],
)
def test_each_kind_of_record_is_told_by_its_schemas_names(kind, wanted):
    """Also what was left out, if it has a default."""
    shape = shape_of(kind)

    told = values_of(shape, '{"type": "Struct", "longName": 1}')

    assert list(columns_of(shape)) == list(wanted)
    assert told == wanted


@pytest.mark.parametrize(
    ("kind", "dtype", "given", "wanted"),
    [
        (int, "Int64", 7, 7),
        (int | None, "Int64", None, None),
        (float, "Float64", 1.5, 1.5),
        (bool, "boolean", False, False),
        (str, "string", "x", "x"),
        (Colour, "string", "blue", "blue"),
        (Literal[1, 2], "Int64", 2, 2),
        (list[int], "string", [1, 2], "[1,2]"),
        (int | str, "string", "x", '"x"'),
        (Everything | None, "string", None, None),
    ],
)
def test_what_is_no_object_is_the_column_answer(kind, dtype, given, wanted):
    """With the value's own dtype."""
    shape = shape_of(kind)

    assert columns_of(shape) == {"answer": dtype}
    assert values_of(shape, json.dumps({"value": given})) == {"answer": wanted}


@pytest.mark.parametrize("kind", [dict[str, int], dict])
def test_an_object_of_any_names_is_one_text(kind):
    """Nobody knows before which columns it would need."""
    shape = shape_of(kind)

    assert columns_of(shape) == {"answer": "string"}
    assert values_of(shape, '{"b": 1, "a": 2}') == {"answer": '{"b":1,"a":2}'}


@pytest.mark.parametrize("name", FIGURES)
def test_a_field_called_like_a_figure_is_refused(name):
    """One of the two could not be told."""
    with pytest.raises(UsageError, match=f"'{name}' is called like .* rename it"):
        columns_of(shape_of(msgspec.defstruct("Row", [("fine", int), (name, str)])))


def test_an_answer_that_does_not_fit_says_so():
    """As a shape says it."""
    with pytest.raises(Misfit, match="int"):
        values_of(shape_of(int), '{"value": "x"}')


class Odd(pydantic.BaseModel):
    amount: int
    fine: int = 1

    @pydantic.field_serializer("amount")
    def told(self, value):
        if value < 0:
            raise RuntimeError(value)
        return f"{value} pieces"


def test_a_class_that_tells_its_values_in_another_way_has_na(outcome):
    """What its schema does not promise is in no column, and what it raises is no error."""
    outcomes = [outcome('{"amount": 1, "fine": 2}'), outcome('{"amount": -1, "fine": 2}')]

    frame = frame_of(pd.RangeIndex(2), outcomes, shape_of(Odd))

    assert frame["amount"].isna().all()
    assert frame["fine"].tolist() == [2, pd.NA]


SHAPES = [None, int, list[int], Everything, Struct, Typed, Named, Model, dict[str, int]]


@pytest.mark.parametrize("kind", SHAPES)
def test_columns_and_dtypes_are_the_same_whatever_is_in_them(kind, outcome):
    """Without rows, with rows that fit, and with rows that failed or do not fit any more."""
    shape = kind and shape_of(kind)
    texts = [None, "", "no JSON", json.dumps(GIVEN), '{"value": 1}', '{"longName": 1}', '{"a": 1}']
    frame = frame_of(pd.RangeIndex(len(texts)), [outcome(text) for text in texts], shape)
    empty = frame_of(pd.RangeIndex(0), [], shape)

    wanted = columns_of(shape) | FIGURES
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == wanted
    pd.testing.assert_series_equal(empty.dtypes, frame.dtypes)
    assert frame.loc[0, list(columns_of(shape))].isna().all()
    assert frame[list(FIGURES)].drop(columns="error").notna().all(axis=None)
    assert len(empty) == 0


def test_a_row_without_an_answer_has_its_error_and_nothing_else():
    """What did not happen is NA, never 0."""
    failed = RowOutcome(status="failed", error="429: later")

    frame = frame_of(pd.Index(["a"]), [failed], shape_of(Everything))

    assert frame.loc["a"].dropna().to_dict() == {"status": "failed", "error": "429: later"}


INDEXES = [
    pd.RangeIndex(5, 11, 3),
    pd.Index([1, 1], name="status"),
    pd.Index(["a", "a"], name=0),
    pd.MultiIndex.from_tuples([("a", 1), ("a", 1)], names=["x", None]),
    pd.date_range("2026-11-27", periods=2, tz="Europe/Berlin"),
    pd.CategoricalIndex(["b", "a"], categories=["a", "b", "c"]),
    pd.Index([np.nan, 1.5]),
    pd.Index([None, "a"], dtype=object),
]


@pytest.mark.parametrize("index", INDEXES)
def test_the_index_is_that_of_the_rows(index, outcome):
    """Whatever labels it has, and how often."""
    frame = frame_of(index, [outcome("1"), outcome("2")], None)

    pd.testing.assert_index_equal(frame.index, index, exact=True)
    assert frame["answer"].tolist() == ["1", "2"]


def test_what_a_column_cannot_hold_is_na(outcome):
    """Integers over 64 bits, and what no text may have."""
    frame = frame_of(pd.RangeIndex(1), [outcome('{"value": 99999999999999999999}')], shape_of(int))
    said = frame_of(pd.RangeIndex(1), [outcome("\ud800\x1b[2J")], None)

    assert frame["answer"].isna().all()
    assert said["answer"].str.contains("\x1b").sum() == 0
