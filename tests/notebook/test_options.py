"""The words behind a magic, and what of the notebook they stand for."""

from __future__ import annotations

import dataclasses

import pytest
from IPython.core.magic_arguments import MagicArgumentParser
from matplotlib.figure import Figure

from ipy_agent.errors import UsageError
from ipy_agent.notebook.options import parsed, pictures_of, shape_named, variable


@dataclasses.dataclass
class Island:
    name: str


@pytest.fixture
def parser():
    made = MagicArgumentParser(prog="%agent")
    made.add_argument("-m")
    made.add_argument("rest", nargs="*")
    return made


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("a1b2c3d4e5f60718a1b2c3d4", "[redacted]"),
        ("--kee=a1b2c3d4e5f60718a1b2c3d4", "[redacted]"),
        ("--no-such-option-is-there", "--no-such-option-is-there"),
        ("https://host/v1/a1b2c3d4e5f60718a1b2c3d4", "https://host/v1/a1b2c3d4e5f60718a1b2c3d4"),
    ],
)
def test_a_word_in_the_wrong_place_that_may_be_a_key_is_not_repeated(word, shown):
    """Of whatever kind it is; words and addresses are, so that they can be mended."""
    with pytest.raises(UsageError) as refused:
        parsed(MagicArgumentParser(prog="%agent"), word)

    assert shown in str(refused.value)
    assert (word in str(refused.value)) is (word == shown)


@pytest.mark.parametrize(
    ("line", "rest"),
    [
        ("", []),
        ("a  b", ["a", "b"]),
        ("'a b' \"c d\"", ["a b", "c d"]),
        (r"C:\new\table 'a\b'", [r"C:\new\table", r"a\b"]),
        ("# $x {y} !z %s", ["#", "$x", "{y}", "!z", "%s"]),
        ("größe ''", ["größe", ""]),
    ],
)
def test_a_line_is_words(line, rest, parser):
    """Quotes hold words together; nothing else means anything."""
    assert parsed(parser, f"-m x {line}").rest == rest


@pytest.mark.parametrize("line", ["'open", "-x", "-m"])
def test_a_line_that_does_not_fit_is_told_in_a_line(line, parser):
    """Neither a traceback nor a page of usage."""
    with pytest.raises(UsageError) as error:
        parsed(parser, line)

    assert "\n" not in str(error.value)


def test_a_type_is_taken_by_its_name():
    """The model is told the name that the notebook has for it."""
    shape = shape_named("Isle", {"Isle": Island})

    assert shape.name == "Isle"
    assert shape.parse('{"name": "Dream"}') == Island("Dream")


@pytest.mark.parametrize("name", ["Isle", "", "list[int]", "mod.Isle"])
def test_a_type_that_is_not_there_is_told(name):
    """Only a name that the notebook has is one."""
    with pytest.raises(UsageError, match="there is no type"):
        shape_named(name, {"Island": Island})


@pytest.mark.parametrize("name", ["x", "größe", "_", "Answer2"])
def test_a_name_that_a_variable_can_have(name):
    """It is given back."""
    assert variable(name) == name


@pytest.mark.parametrize("name", ["", "1x", "class", "a.b", "a b", "None"])
def test_a_name_that_no_variable_can_have(name):
    """It is refused before anything is asked."""
    with pytest.raises(UsageError, match="no name for a variable"):
        variable(name)


def test_pictures_come_from_variables_and_files(tmp_path):
    """In the order in which they were named."""
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n...")
    names = {"path": str(tmp_path / "a.png"), "figure": Figure(figsize=(1, 1))}

    one, two, three = pictures_of(["figure", "path", str(tmp_path / "a.png")], names)

    assert one["image_url"] != two["image_url"]
    assert two == three
    assert pictures_of([], names) == []
