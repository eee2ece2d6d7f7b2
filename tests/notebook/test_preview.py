"""Variables in a few lines."""

from __future__ import annotations

import collections
import functools
import types

import numpy as np
import pandas as pd
import pytest

from ipy_agent.notebook.preview import LIMIT, brief, preview, shown, sized

TOUCHED: list[str] = []


class Meta(type):
    """A class of classes that tells whenever one of its classes is asked anything."""

    def __getattribute__(cls, name):
        TOUCHED.append(f"class {name}")
        return super().__getattribute__(name)

    def __eq__(cls, other):
        TOUCHED.append("class eq")
        return cls is other

    def __hash__(cls):
        TOUCHED.append("class hash")
        return 1

    def __instancecheck__(cls, instance):
        TOUCHED.append("class instancecheck")
        return True

    def __subclasscheck__(cls, subclass):
        TOUCHED.append("class subclasscheck")
        return True

    @property
    def __name__(cls):
        TOUCHED.append("class name")
        return "Other"

    @property
    def __module__(cls):
        TOUCHED.append("class module")
        return "numpy"


def touch(name):
    def method(self, *_, **__):
        TOUCHED.append(name)
        return object.__getattribute__(self, name) if name == "__getattribute__" else "touched"

    return method


ASKED = ("repr", "str", "len", "eq", "lt", "format", "bool", "iter", "call", "array", "fspath")


class Trap(metaclass=Meta):
    """An object whose every method tells that it was called."""

    __hash__ = object.__hash__
    for asked in ASKED:
        locals()[f"__{asked}__"] = touch(asked)

    def __getattribute__(self, name):
        TOUCHED.append(name)
        return object.__getattribute__(self, name)


def wrapped(trap):
    def function(a=trap, *, b=trap):
        """Say nothing."""

    function.__wrapped__ = trap
    function.__signature__ = trap
    function.__annotations__ = {"a": trap}
    return function


def array(trap):
    made = np.empty(2, dtype=object)
    made[0] = trap
    return made


def module(trap):
    class Lazy(types.ModuleType):
        def __getattribute__(self, name):
            TOUCHED.append(f"module {name}")
            return super().__getattribute__(name)

    made = Lazy("lazy")
    types.ModuleType.__setattr__(made, "__all__", trap)
    types.ModuleType.__setattr__(made, "__version__", trap)
    types.ModuleType.__setattr__(made, "__doc__", trap)
    types.ModuleType.__setattr__(made, "held", trap)
    return made


HOLDERS = {
    "itself": lambda trap: trap,
    "its class": type,
    "a subclass": lambda _: types.new_class("Below", (Trap,), {}),
    "a class that has it": lambda trap: type("Has", (), {"a": trap, "__doc__": trap, 1: trap}),
    "a list": lambda trap: [trap],
    "a key": lambda trap: {trap: trap},
    "a tuple": lambda trap: (trap, [trap]),
    "a counter": lambda trap: collections.Counter([trap]),
    "a cell of a frame": lambda trap: pd.DataFrame({"t": [trap], "n": [1]}),
    "a late cell": lambda trap: pd.DataFrame({"t": [None] * 10_001 + [trap]}),
    "a column's name": lambda trap: pd.DataFrame([[1]], columns=pd.Index([trap], dtype=object)),
    "an index": lambda trap: pd.DataFrame({"n": [1]}, index=pd.Index([trap], dtype=object)),
    "a level": lambda trap: pd.DataFrame(
        {"n": [1]}, index=pd.MultiIndex.from_arrays([pd.Index([trap], dtype=object), [1]])
    ),
    "an index's name": lambda trap: pd.Series([1], index=pd.Index(["a"], name=trap)),
    "a series": lambda trap: pd.Series([trap]),
    "a category": lambda trap: pd.Series(pd.Categorical.from_codes([0], [trap])),
    "an array": array,
    "a function": wrapped,
    "a cached function": lambda trap: functools.cache(wrapped(trap)),
    "a method": lambda trap: types.MethodType(wrapped(trap), trap),
    "a callable's method": lambda trap: types.MethodType(trap, trap),
    "a partial": lambda trap: functools.partial(wrapped(trap), trap),
    "a module": module,
}


@pytest.mark.parametrize("look", [brief, sized, shown, preview])
@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS)
def test_no_code_of_the_user_runs(holder, look):
    """Neither an object, nor its class, nor what holds one is asked anything, wherever it is."""
    value = holder(Trap())
    TOUCHED.clear()

    said = preview("x", value, head=True) if look is preview else look(value)

    assert TOUCHED == []
    assert said


def test_what_is_not_known_is_named_by_its_type():
    """The name is the class's own, whatever the class of the class says."""
    assert preview("x", Trap()) == "x: Trap"
    assert preview("x", [Trap()]).splitlines()[1] == "  <Trap>"
    assert preview("x", type("a\nb", (), {})()) == "x: 'a\\nb'"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (pd.DataFrame({"a": [1, 2, 3]}), "DataFrame 3×1"),
        (pd.Series([1.0, 2.0]), "Series 2"),
        (np.zeros((2, 3)), "ndarray 2×3"),
        (np.array(1), "ndarray scalar"),
        ([1, 2], "list of 2"),
        ({"a": 1}, "dict of 1"),
        (range(5), "range of 5"),
        (3.5, "float 3.5"),
        (np.float64(3.5), "float64 3.5"),
        ("x" * 500, "str '" + "x" * 58 + "…"),
        (10**100, "int of 333 bits"),
        (None, "NoneType None"),
        (int, "class"),
        (Trap(), "Trap"),
    ],
)
def test_brief_is_type_and_shape(value, said):
    """A variable is named by its type and shape, a plain one by its value."""
    assert brief(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("sk-secret", "str of 9"),
        (b"sk-secret", "bytes of 9"),
        (1234567, "int"),
        (np.float64(1234567), "float64"),
        (["sk-secret"], "list of 1"),
        (pd.DataFrame({"sk-secret": [1]}), "DataFrame 1×1"),
    ],
)
def test_a_size_tells_no_value(value, said):
    """Type and size are all that is said."""
    assert sized(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([1, "a", (2, {3})], "1, 'a', (2, <set of 1>)"),
        ({"a": {"b": [1]}, 2: None}, "'a': {'b': <list of 1>}, 2: None"),
        ((), ""),
        ({3}, "3"),
        (list(range(9)), "0, 1, 2, 3, 4, 5, …"),
        ([np.int64(3)], "3"),
    ],
)
def test_a_container_shows_what_is_in_it(value, said):
    """The first values are shown, two levels deep, and where there are more it says so."""
    assert preview("x", value).splitlines()[1] == f"  {said}"


def test_what_is_said_stays_short():
    """Wide, long and nested values are cut."""
    wide = pd.DataFrame(np.zeros((3, 500)))
    texts = pd.DataFrame({f"{n}" * 80: ["v" * 1000] * 9 for n in range(100)})
    long = {f"key{n}": "v" * 1000 for n in range(10_000)}
    nested: list[object] = []
    nested.append(nested)
    record = np.zeros(3, dtype=[(f"field{n}", float) for n in range(1_000)])

    for value in (wide, texts, texts.iloc[:, 0], long, nested, record):
        assert len(preview("x", value, head=True)) <= LIMIT
    assert "columns more" in preview("w", wide)


def test_a_small_table_is_shown_whole():
    """A result of a few rows is told as it is, a larger one by its shape."""
    frame = pd.DataFrame({"a": [1, 2]})

    assert shown(frame).splitlines()[0] == "DataFrame 2×1"
    assert shown(frame["a"]).splitlines()[1:3] == ["0    1", "1    2"]
    assert shown(pd.DataFrame({"a": range(13)})) == "DataFrame 13×1"
    assert shown(pd.DataFrame({"a": [Trap()]})) == "DataFrame 1×1"
