"""Ids come back as they were kept, and what two lists share is counted exactly."""

from __future__ import annotations

import itertools
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipy_agent.server.tokens import Tokens, ids_of, shared

ids = st.lists(st.integers(0, 2), max_size=40)


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=3), max_size=5))
def test_tokens_come_back_in_order(chunks):
    """Chunk by chunk or in one, it is the same list."""
    tokens = Tokens()
    for chunk in chunks:
        tokens = Tokens(tokens, chunk)

    assert list(tokens.ids()) == [each for chunk in chunks for each in chunk]
    assert tokens.length == len(tokens.ids())


@given(ids, ids, ids)
def test_what_is_shared_is_what_a_walk_would_count(both, one, other):
    """Id by id from the beginning up to the first difference."""
    one, other = both + one, both + other
    pairs = zip(one, other, strict=False)
    walked = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))

    assert shared(ids_of(one), ids_of(other)) == walked


@pytest.mark.parametrize(("one", "other"), [([], []), ([], [1]), ([1], []), ([1], [2])])
def test_nothing_may_be_shared(one, other):
    """Empty lists and lists that differ at once have no beginning in common."""
    assert shared(ids_of(one), ids_of(other)) == 0


def test_an_id_takes_four_bytes():
    """So that a long conversation is kept in some kilobytes, not in hundreds."""
    assert sys.getsizeof(Tokens(None, range(8192)).chunk) < 5 * 8192
