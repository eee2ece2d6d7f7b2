"""A summary goes into an item and comes out again."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipy_agent.server.compaction import sealed, summary_of


@given(st.text(st.characters(codec="utf-8")))
def test_a_summary_comes_out_as_it_went_in(summary):
    """Whatever it says, and the item has what the API's have."""
    item = sealed(summary)

    assert summary_of(item) == summary
    assert item["type"] == "compaction"
    assert item["id"].startswith("cmp_")
    assert item.keys() == {"type", "id", "encrypted_content"}


def test_the_same_summary_makes_the_same_item():
    """An item that is made twice does not break a prefix."""
    assert sealed("a") == sealed("a")
    assert sealed("a")["id"] != sealed("b")["id"]


@pytest.mark.parametrize(
    "item",
    [
        {},
        {"type": "compaction"},
        {"type": "compaction", "encrypted_content": None},
        {"type": "compaction", "encrypted_content": 5},
        {"type": "compaction", "encrypted_content": ""},
        {"type": "compaction", "encrypted_content": "not base64!"},
        {"type": "compaction", "encrypted_content": "ü"},
        {"type": "compaction", "encrypted_content": base64.b64encode(b"theirs").decode()},
        {
            "type": "compaction",
            "encrypted_content": base64.b64encode(b"ipy_agent summary:\xff").decode(),
        },
        {**sealed("a"), "type": "reasoning"},
    ],
)
def test_what_others_sealed_is_no_summary_of_ours(item):
    """Another server's content, and whatever else may be sent here, says nothing to us."""
    assert summary_of(item) is None
