"""Code in pieces, each of a kind; together they are the text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipy_agent.colours import ANSI, CSS, LIMIT, pieces

CODE = '''\
@cached
def mean(values: list) -> float:
    """The mean."""
    return sum(values) / 2  # for two
'''


def test_each_piece_has_its_kind():
    """Keywords, names, texts, numbers and comments are told apart."""
    found = pieces(CODE, "python")

    for one in [
        *(("name", "@cached"), ("keyword", "def"), ("name", "mean"), ("string", '"""The mean."""')),
        *(("keyword", "return"), ("name", "sum"), ("number", "2"), ("comment", "# for two")),
    ]:
        assert one in found


@pytest.mark.parametrize("language", ["text", "json", "", "no such"])
def test_what_is_not_python_is_one_piece(language):
    """Nothing is guessed of a language that nobody asked for."""
    assert pieces(CODE, language) == (("", CODE),)


def test_a_very_long_text_has_no_colours():
    """Reading it would take longer than the colours are worth; it is there all the same."""
    long = "x = 1\n" * LIMIT

    assert pieces(long, "python") == (("", long),)


@given(st.text())
@pytest.mark.parametrize("start", ["", "'", '"""', "f'{", "\ufeff", "\n\n", "\r", "\t # \x0c"])
def test_the_pieces_together_are_the_text(start, text):
    """Whatever the code is, nothing is left out, added or changed."""
    assert "".join(piece for _, piece in pieces(start + text, "python")) == start + text


def test_every_kind_has_its_colours():
    """On a page and in a terminal."""
    kinds = {kind for kind, _ in pieces(CODE, "python")} - {""}

    assert kinds == CSS.keys() == ANSI.keys()
