"""What a model is told of the user's variables: on purpose, and by itself."""

from __future__ import annotations

import gc
import math
import typing
import weakref
from math import sqrt

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ipy_agent.endpoints import ENDPOINTS
from ipy_agent.errors import UsageError
from ipy_agent.notebook.context import Handed, Told, handed_over, told

# handed over on purpose


def test_first_rows_are_left_out_for_a_model_that_they_mislead():
    """What is in the columns is told all the same."""
    (said,) = handed_over("$`df`", {"df": pd.DataFrame({"a": [1, 2]})}, heads=False).previews

    assert said == "df: DataFrame 2×1\n  a: int64; 1 to 2"
    assert not ENDPOINTS["local"].heads


def test_variables_that_are_named_stand_before_the_prompt():
    """Each once, in the order in which they are named; the prompt stays as it was written."""
    names = {"a": [1, 2], "b": 3, "c": "not named"}

    handed = handed_over("\nLook at $`b` and $`a`, {b} and `c`.\nThen $`b` again.\n", names)

    assert handed.previews == ("b: int 3", "a: list of 2\n  1, 2")
    assert handed.text == "Look at `b` and `a`, {b} and `c`.\nThen `b` again."
    assert handed.prompt == f"b: int 3\n\na: list of 2\n  1, 2\n\n{handed.text}"
    assert handed.pictures == ()


def test_a_prompt_without_a_name_is_the_prompt():
    """Nothing is added to it."""
    handed = handed_over("Costs $5, `x` and $``.", {})

    assert handed == Handed("Costs $5, `x` and $``.")
    assert handed.prompt == handed.text


def test_a_frame_is_handed_over_with_its_first_rows():
    """Shape, dtypes, what is missing, and the head."""
    frame = pd.DataFrame({"a": [1.0, None], "b": ["x", "y"]})

    (said,) = handed_over("$`frame`", {"frame": frame}).previews

    assert said.startswith("frame: DataFrame 2×2\n  a: float64; 1.0 to 1.0; 1 missing\n")
    assert said.splitlines()[-1].split() == ["1", "NaN", "y"]


@pytest.mark.parametrize("said", ["df.col", "d['k']", "f(x)", " df", "1", "df "])
def test_an_expression_is_to_be_named_first(said):
    """Nothing is evaluated; the line says what to do."""
    with pytest.raises(UsageError) as caught:
        handed_over(f"$`{said}`", {"df": 1, "d": {}, "f": len, "x": 1})

    assert str(caught.value) == (
        f"$`{said}` is not the name of a variable: assign it to one first, "
        f"such as x = {said}, and hand over $`x`"
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Frame", "; did you mean frame?"),
        ("fram", "; did you mean frame?"),
        ("price", "; did you mean prices or price_2?"),
        ("zzz", ": make it in a cell above"),
    ],
)
def test_a_name_that_is_not_there_names_close_ones(name, hint):
    """One line, with what was perhaps meant."""
    names = {"frame": 1, "prices": 2, "price_2": 3, 5: 6}

    with pytest.raises(UsageError) as caught:
        handed_over(f"$`{name}`", names)

    assert str(caught.value) == f"there is no variable {name!r} to hand over with $`{name}`{hint}"


def test_a_figure_goes_along_as_a_picture():
    """A line stands in its place, and axes stand for their figure."""
    figure = Figure()
    names = {"plot": figure, "axes": figure.add_subplot(), "image": Image.new("L", (2, 3)), "n": 1}

    handed = handed_over("$`plot` $`n` $`axes` $`image`", names)

    assert handed.previews == (
        "plot: Figure, picture 1 of this message",
        "n: int 1",
        "axes: Axes, picture 2 of this message",
        "image: Image, picture 3 of this message",
    )
    assert [part["type"] for part in handed.pictures] == ["input_image"] * 3
    assert all(p["image_url"].startswith("data:image/png;base64,") for p in handed.pictures)


def test_a_model_that_sees_no_pictures_is_told_so():
    """Nothing is drawn, and the line says what it is."""
    handed = handed_over("$`plot`", {"plot": Figure()}, images=False)

    assert handed.previews == ("plot: Figure, a picture, which this model cannot see",)
    assert handed.pictures == ()


def test_a_figure_that_cannot_be_drawn_is_one_line():
    """What the drawing library says is told."""
    with pytest.raises(UsageError, match=r"^this Image cannot be drawn as a PNG: "):
        handed_over("$`image`", {"image": Image.new("RGBX", (0, 0))})


# told by itself


class Notebook:
    """A namespace, and what a model was told of it."""

    def __init__(self, how="delta", **names):
        self.names = {"__name__": "__main__", **names}
        self.hidden = {}
        self.how = how
        self.before = None

    def tell(self):
        said, self.before = told(self.names, self.hidden, self.before, self.how)
        return said.splitlines()[1:]

    def run(self, code):
        exec(code, self.names)
        self.names.pop("__builtins__", None)
        return self.tell()


def test_what_is_new_changed_and_gone_is_told_once():
    """In the order in which the names came; the same state tells nothing."""
    book = Notebook(a=1, b="text", c=[1, 2])

    assert book.tell() == ["new: a (int), b (str of 4), c (list of 2)"]
    assert book.tell() == []
    assert book.run("a = 2000; d = None; del b") == [
        "new: d (NoneType)",
        "changed: a (int)",
        "gone: b",
    ]
    assert book.tell() == []


def test_nothing_changed_is_an_empty_text_and_the_same_memory():
    """So that nothing is added to what is sent."""
    names = {"a": 1}
    _, before = told(names, {}, None, "delta")

    assert told(names, {}, before, "delta") == ("", before)
    assert told(names, {}, before, "delta")[1] is before
    assert told({}, {}, None, "delta") == ("", Told())


def test_names_alone_are_told_where_that_is_asked_for():
    """No types, no sizes."""
    book = Notebook("names", a=1)

    assert book.tell() == ["new: a"]
    assert book.run("a = 2000; b = 2") == ["new: b", "changed: a"]


def test_no_value_is_ever_told():
    """A variable may hold a key: a text, a number, a label, a default."""
    key = "sk-secret"
    book = Notebook(a=key, b=[key], c={key: key}, d=8675309, e=pd.DataFrame({key: [1]}))
    book.names["f"] = np.array([key])
    book.run(f"def g(a={key!r}): pass")
    book.before = None

    said = "\n".join(book.tell())

    assert "a (str of 9)" in said
    assert key not in said
    assert "8675309" not in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("x.append(1)", "x (list of 3)"),
        ("frame['b'] = 1", "frame (DataFrame 2×2)"),
        ("frame.columns = ['c']", "frame (DataFrame 2×1)"),
        ("frame.pop('a')", "frame (DataFrame 2×0)"),
        ("frame.loc[2] = 5", "frame (DataFrame 3×1)"),
        ("array.resize(3)", "array (ndarray 3)"),
        ("def f(): return 2", "f (function)"),
        ("class A: pass", "A (class)"),
        ("x = [7, 8]", "x (list of 2)"),
    ],
)
def test_what_changed_in_place_shows_by_its_size_or_columns(change, said):
    """A value that was bound anew shows too, though it looks the same."""
    book = Notebook(x=[1, 2], frame=pd.DataFrame({"a": [1, 2]}), array=np.zeros(2))
    book.run("def f(): return 1\nclass A: pass")

    assert book.run(change) == [f"changed: {said}"]
    assert book.tell() == []


def test_what_the_user_did_not_make_is_not_told():
    """IPython's own names, private ones, and what was imported from libraries."""
    book = Notebook(_private=1, __x=2, In=[], exit=3, sqrt=sqrt, Counter=pd.Series)
    book.names |= {"Any": typing.Any, "Optional": typing.Optional, "read": pd.read_csv}
    book.names |= {"two\nlines": 1, 5: 6, "mine": 1}
    book.hidden = {"In": book.names["In"], "exit": 3}

    assert book.tell() == ["new: mine (int)"]


def test_a_name_of_ipython_that_the_user_took_is_the_users():
    """It is known by its value, not by its name."""
    book = Notebook(exit=3)
    book.hidden = {"exit": 4}

    assert book.tell() == ["new: exit (int)"]


def test_modules_are_told_by_name_and_what_the_user_defined_by_kind():
    """An alias is worth knowing, a function of the notebook is too."""
    book = Notebook(np=np, math=math)

    assert book.run("def f(a): pass\nclass A: pass") == [
        "new: np (module), math (module), f (function), A (class)"
    ]


def test_many_names_are_told_in_part_the_latest_of_them():
    """The first telling in a full kernel is bounded, and so is every other."""
    book = Notebook(**{f"v{n}": n for n in range(500)})

    (said,) = book.tell()

    assert said.startswith("new: v480 (int), v481 (int)")
    assert said.endswith("v499 (int) and 480 more")
    book.names = {"x" * 5_000: 1, "y": type("T" * 5_000, (), {})()}
    assert len("".join(book.tell())) < 2_000
    assert book.tell() == []


def test_what_is_remembered_keeps_nothing_alive():
    """A value that the user let go of is gone, and so is its class."""
    kind = type("Mine", (), {"__module__": "__main__"})
    book = Notebook(a=kind(), b=kind, frame=pd.DataFrame({"a": [1]}))
    gone = [weakref.ref(book.names[name]) for name in ("a", "b", "frame")]
    book.tell()

    del kind
    book.names.clear()
    gc.collect()

    assert [ref() for ref in gone] == [None] * 3
    assert book.tell() == ["gone: a, b, frame"]


def test_no_code_of_the_user_runs():
    """An object is neither compared nor measured nor asked for an attribute."""

    def touched(*_):
        raise AssertionError("touched")

    names = ("__getattribute__", "__eq__", "__len__", "__repr__", "__bool__", "__hash__")
    meta = type("Meta", (type,), {"__eq__": touched, "__hash__": touched})
    kind = meta("Trap", (), dict.fromkeys(names, touched))
    book = Notebook(a=kind(), b=kind, c=[kind()])
    book.hidden = {"a": 1}

    assert book.tell() == ["new: a (Trap), c (list of 1)"]
    assert book.tell() == []
