"""A conversation is a chain that shares what it has in common with its branches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipy_agent.protocol import items
from ipy_agent.protocol.items import EMPTY, user
from ipy_agent.protocol.requests import Fields, Request

PROMPTS = st.lists(st.text(st.characters(codec="utf-8"), max_size=5), max_size=8)


def chain_of(*prompts):
    return EMPTY.extend(user(prompt) for prompt in prompts)


@given(PROMPTS, st.integers(0, 10))
def test_a_chain_is_cut_as_a_list_is(prompts, at):
    """Every way to look at a chain shows the items in their order."""
    said = [user(prompt) for prompt in prompts]
    chain = EMPTY.extend(said)

    assert list(chain) == said
    assert len(chain) == chain.length == len(said)
    assert chain.since(at) == said[at:]
    assert list(chain.back(at)) == said[: max(0, len(said) - at)]


def test_a_chain_grows_without_changing_what_it_grew_from():
    """Two branches share their common part, the same nodes and not copies."""
    stem = chain_of("a", "b")
    left, right = stem.extend([user("left")]), stem.extend([user("right")])

    assert left.back(1) is right.back(1) is stem
    assert list(stem) == [user("a"), user("b")]


def test_the_beginning_of_every_conversation_is_the_same_one():
    """Going back far enough ends at `EMPTY` itself, from wherever one started."""
    assert chain_of("a").back(1) is EMPTY
    assert chain_of("a").back(7) is EMPTY
    assert EMPTY.back(0) is EMPTY
    assert EMPTY.extend([]) is EMPTY
    assert list(EMPTY) == []


@given(PROMPTS)
def test_the_size_is_that_of_the_items_as_json(prompts):
    """`size` counts the bytes of each item, without the commas between them."""
    chain = chain_of(*prompts)
    commas_and_brackets = max(0, len(prompts) - 1) + 2
    alone = Request(fields=Fields({}), input=chain).frame()
    empty = Request(fields=Fields({})).frame()

    assert chain.size == len(alone) - len(empty) + 2 - commas_and_brackets


def test_chains_are_equal_when_their_items_are():
    """Equality is about what was said, not about how the chain was made."""
    assert chain_of("a", "b") == chain_of("a").extend([user("b")])
    assert chain_of("a", "b") != chain_of("a", "c")
    assert chain_of("b", "a") != chain_of("c", "a")
    assert chain_of("a") != chain_of("a", "a")
    assert chain_of("a") != [user("a")]


def test_a_chain_has_no_hash():
    """Its items are dicts, so it cannot be a key any more than a list can."""
    with pytest.raises(TypeError, match="unhashable"):
        hash(EMPTY)


class Watched(dict):
    """An item that counts how often it is compared."""

    compared = 0

    def __eq__(self, other):
        Watched.compared += 1
        return super().__eq__(other)

    def __ne__(self, other):
        return not self == other

    __hash__ = None


def test_what_two_branches_share_is_not_compared():
    """Comparing two branches looks at nothing before the fork."""
    stem = EMPTY.extend(Watched(user(str(number))) for number in range(50))
    left, right = stem.extend([Watched(user("x"))]), stem.extend([Watched(user("x"))])
    Watched.compared = 0

    assert left == right
    assert Watched.compared == 1


def test_a_very_long_conversation_can_be_walked_and_let_go():
    """Neither reading nor freeing 100,000 items recurses."""
    chain = EMPTY.extend([{}] * 100_000)

    assert len(chain.since(0)) == 100_000
    assert chain == EMPTY.extend([{}] * 100_000)
    del chain


def test_a_chain_shows_how_long_it_is_and_not_what_it_says():
    """A debugger's line stays short and tells nothing that was said."""
    assert repr(chain_of("secret")) == "<Chain of 1 items, 82 bytes>"


def test_function_calls_are_found_and_the_first_of_two_twins_wins():
    """A call that arrives twice runs once."""
    first = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "1"}
    twin = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "2"}
    other = {"type": "function_call", "call_id": "b", "name": "g", "arguments": "3"}

    assert items.calls([user("hi"), first, twin, other]) == [first, other]
    assert items.calls([]) == []


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (user("hi"), "hi"),
        ({"type": "message", "role": "user", "content": "plain"}, "plain"),
        (
            {
                "type": "message",
                "content": [
                    {"type": "output_text", "text": "one "},
                    {"type": "refusal", "refusal": "two"},
                    {"type": "input_image", "image_url": "data:,"},
                ],
            },
            "one two",
        ),
        ({"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}, "{}"),
        ({"type": "function_call"}, ""),
        (items.output_of("a", "42"), "42"),
        (items.output_of("a", [{"type": "input_text", "text": "4"}, items.image("data:,")]), "4"),
        ({"type": "reasoning", "summary": []}, ""),
        ({"type": "message", "content": None}, ""),
        ({"type": "message", "content": ["stray", {"text": None}, {"text": "kept"}]}, "kept"),
    ],
)
def test_the_text_of_any_item_can_be_read(item, text):
    """What an item says is text, whatever form an endpoint gave it."""
    assert items.text(item) == text
