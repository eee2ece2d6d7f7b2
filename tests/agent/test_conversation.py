"""The conversation is always in a state that can be sent."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ipy_agent.agent.conversation import Conversation
from ipy_agent.protocol.items import EMPTY, output_of, text, user
from ipy_agent.server.frames import open_calls

IDS = st.sampled_from(["a", "b", "c"])


def call(call_id):
    return {"type": "function_call", "call_id": call_id, "name": "f", "arguments": "{}"}


def test_it_grows_at_its_end():
    """What was said before stays what it was."""
    conversation = Conversation()
    conversation.add([user("one")])
    before = conversation.items
    conversation.add([user("two"), user("three")])

    assert [text(item) for item in conversation.items] == ["one", "two", "three"]
    assert [text(item) for item in before] == ["one"]


def test_settling_answers_each_open_call_once_and_in_order():
    """Calls that have an output are left alone; a second settling adds nothing."""
    conversation = Conversation()
    conversation.add([call("a"), call("b"), call("c"), call("b")])
    conversation.add([output_of("b", "done")])

    answers = conversation.settle("not run")
    assert answers == [output_of("a", "not run"), output_of("c", "not run")]
    assert conversation.items.since(4) == answers
    assert conversation.settle("again") == []


def test_an_output_may_come_with_its_call():
    """A call that is answered where it is added is not open."""
    conversation = Conversation()
    conversation.add([call("a"), output_of("a", "done")])

    assert conversation.settle("not run") == []


def test_what_no_endpoint_would_take_has_no_place():
    """An open call's id a second time, and an output that answers nothing that is open."""
    conversation = Conversation()
    first, second = call("a"), {**call("a"), "arguments": "[]"}

    assert conversation.add([output_of("a", "early"), first, second]) == [first]
    assert conversation.add([output_of("a", "x"), output_of("a", "y")]) == [output_of("a", "x")]
    assert conversation.add([second]) == [second]
    assert list(conversation.items) == [first, output_of("a", "x"), second]


def test_going_back_forgets_what_was_open():
    """What is taken back needs no answer."""
    conversation = Conversation()
    conversation.add([user("one")])
    before = conversation.items
    conversation.add([call("a")])
    conversation.back_to(before)

    assert conversation.items is before
    assert conversation.settle("not run") == []


def test_an_item_of_another_kind_passes_through():
    """Reasoning and tools of the endpoint's own are kept as they are."""
    conversation = Conversation()
    items = [{"type": "reasoning", "id": "rs_1"}, {"type": "web_search_call", "id": "ws_1"}]
    conversation.add(items)

    assert list(conversation.items) == items
    assert conversation.settle("not run") == []


@given(
    st.lists(
        st.one_of(
            st.lists(IDS, min_size=1, max_size=3).map(lambda ids: [call(i) for i in ids]),
            IDS.map(lambda i: [output_of(i, "done")]),
            st.just([user("more")]),
            st.just("settle"),
            st.just("back"),
        )
    )
)
def test_after_settling_the_server_misses_no_output(steps):
    """Whatever is added and taken back, a settled conversation has no open call."""
    conversation, marks = Conversation(), [EMPTY]
    for step in steps:
        if step == "settle":
            conversation.settle("not run")
            marks.append(conversation.items)
        elif step == "back":
            conversation.back_to(marks[-1])
        else:
            conversation.add(step)

    conversation.settle("not run")
    assert open_calls(frozenset(), conversation.items) == frozenset()
    kinds = [item["type"] for item in conversation.items]
    assert kinds.count("function_call") == kinds.count("function_call_output")
