"""Functions, classes and modules in a few lines."""

from __future__ import annotations

import functools
import math
import types

import pytest

from ipy_agent.notebook.preview import LIMIT, preview


def outer(function):
    @functools.wraps(function)
    def inner(*args, **kwargs):
        return function(*args, **kwargs)

    return inner


def plain(a, b=2, /, c="x", *rest, only, also=None, **more) -> int:  # noqa: ARG001
    """Do one thing."""
    return 3  # said in the source


decorated = outer(plain)
cached = functools.cache(plain)


class Thing(dict):
    """What it is.

    And more of it.
    """

    size: int = 3
    _hidden: int = 4

    def __init__(self, a, *, b=(1, 2)):
        """Make one."""

    def run(self, times=1):
        """Run."""

    @property
    def state(self):
        """Where it stands."""

    @classmethod
    def made(cls, how):
        """Make one in another way."""

    @staticmethod
    def still(x):
        """Stand still."""

    async def wait(self):
        """Wait."""

    def _inner(self):
        """Nobody's business."""


@pytest.mark.parametrize("function", [plain, decorated, cached])
def test_a_function_tells_signature_and_source(function):
    """What it is decorated with does not hide it."""
    said = preview("f", function).splitlines()

    assert said[0] == "f: function plain(a, b=2, /, c='x', *rest, only, also=None, **more)"
    assert (
        said[1]
        == 'def plain(a, b=2, /, c="x", *rest, only, also=None, **more) -> int:  # noqa: ARG001'
    )
    assert said[-1] == "    return 3  # said in the source"


def test_a_method_tells_the_function_behind_it():
    """Bound to an object, it is the same function."""
    assert preview("m", Thing(1).run).startswith("m: function run(self, times=1)\ndef run(")


def test_without_a_source_the_documentation_is_told():
    """What was made from a text has a signature all the same."""
    made = {}
    exec('def f(a, *, b):\n    """Say it.\n\n    At length."""', made)

    assert preview("f", made["f"]) == "f: function f(a, *, b)\n  Say it."


def test_a_lambda_is_the_line_that_it_stands_in():
    """It has no name of its own."""
    double = lambda x: 2 * x  # noqa: E731

    said = preview("double", double).splitlines()

    assert said[0] == "double: function <lambda>(x)"
    assert said[1].startswith("double = lambda x: 2 * x")


def test_a_long_function_is_cut(tmp_path):
    """How many lines are left out is told."""
    file = tmp_path / "long.py"
    body = "\n".join(f"    x = {n}" for n in range(300))
    file.write_text(f"def f():\n{body}\n", "utf-8")
    made = {}
    exec(compile(file.read_text("utf-8"), str(file), "exec"), made)

    said = preview("f", made["f"])

    assert len(said) <= LIMIT
    assert said.splitlines()[1] == "def f():"
    assert said.splitlines()[-1].startswith("… and ")


def test_a_source_that_is_no_python_any_more_is_no_error(tmp_path):
    """A file may have changed since."""
    file = tmp_path / "gone.py"
    file.write_text("def f():\n    return 1\n", "utf-8")
    made = {}
    exec(compile(file.read_text("utf-8"), str(file), "exec"), made)
    for text in ("def f(:\n'''", "", "\x00"):
        file.write_text(text, "utf-8")

        assert preview("f", made["f"]).startswith("f: function f()")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (math.sqrt, "f: built-in sqrt(x, /)\n  Return the square root of x."),
        (len, "f: built-in len(obj, /)\n  Return the number of items in a container."),
        ([].append, "f: built-in append(object, /)\n  Append object to the end of the list."),
    ],
)
def test_a_builtin_tells_its_text_signature(function, said):
    """That is all that there is of it."""
    assert preview("f", function) == said


def test_a_builtin_without_a_signature_says_so():
    """Some have none."""
    assert preview("f", max).startswith("f: built-in max(…)\n  max(iterable")


def test_a_class_tells_how_it_is_made_and_what_it_can_do():
    """Its signature, its documentation, its fields and its public methods."""
    assert preview("T", Thing).splitlines() == [
        "T: class Thing(a, *, b=(1, 2))",
        "  subclass of dict",
        "  What it is.",
        "  fields: size",
        "  .run(self, times=1)",
        "  .state",
        "  .made(cls, how)",
        "  .still(x)",
        "  .wait(self)",
    ]


def test_a_class_of_many_methods_is_cut():
    """How many are left out is told."""
    many = type("Many", (), {f"method{n}": lambda self: self for n in range(50)})

    said = preview("Many", many)

    assert said.splitlines()[-1] == "  … and 30 methods more"
    assert len(said) <= LIMIT


def test_a_module_tells_its_version_and_what_it_offers():
    """Its public names, without the modules that it imports."""
    made = types.ModuleType("made", "What it is for.\n\nMore.")
    made.__dict__.update(__version__="1.2", f=1, _g=2, math=math, A=3)

    assert preview("m", made) == "m: module made 1.2\n  What it is for.\n  offers A, f"
    made.__all__ = ["f", 3]
    assert preview("m", made).endswith("offers f")


def test_a_module_of_many_names_is_cut():
    """How many are left out is told."""
    made = types.ModuleType("made")
    made.__dict__.update({f"name{n:04}": n for n in range(1_000)})

    said = preview("m", made)

    assert len(said) <= LIMIT
    assert said.startswith("m: module made\n  offers name0000, name0001")
    assert " more" in said
