"""What a client leaves out, what a server holds, and that neither costs more with every turn."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest

from ipy_agent import protocol
from ipy_agent.protocol.items import EMPTY, output_of, user
from ipy_agent.protocol.lineage import Lineage, NotHeld, ResponseCache
from ipy_agent.protocol.requests import Fields, Request

FIELDS = (
    {"model": "m", "instructions": "be brief", "tools": [{"name": "f"}], "store": False},
    {"model": "n", "instructions": "be brief", "tools": [{"name": "f"}], "store": False},
    {"model": "m", "instructions": "be exact", "tools": [{"name": "f"}], "store": False},
    {"model": "m", "instructions": "be brief", "tools": [{"name": "g"}], "store": False},
    {"model": "m", "instructions": "be brief", "tools": []},
)


def message(text):
    return {
        "type": "message",
        "id": "msg",
        "role": "assistant",
        "content": [{"type": "output_text", "text": text, "annotations": []}],
    }


def request(chain, fields=Fields(FIELDS[0]), **more):  # noqa: B008 (encoded once, on purpose)
    return Request(fields=fields, input=chain, **more)


def test_only_what_is_new_travels(ends):
    """From the second turn on a frame holds the new items and the id of the turn before."""
    chain = EMPTY
    for number in range(1, 6):
        chain = chain.extend([user(f"question {number}")])
        arrived, output = ends.turn(request(chain), [message(f"answer {number}")])
        chain = chain.extend(output)

        assert list(arrived.input) == [user(f"question {number}")]
        assert arrived.previous_response_id == (f"resp_{number - 1}" if number > 1 else None)


def test_a_warm_up_is_continued_from(ends):
    """After a warm-up with the conversation so far nothing but the id travels."""
    chain = EMPTY.extend([user("long")])
    ends.turn(request(chain, generate=False))
    arrived, _ = ends.turn(request(chain))

    assert list(arrived.input) == []
    assert arrived.previous_response_id == "resp_1"


CHAIN = EMPTY.extend([user("one")])
ANSWER = [message("1")]


@pytest.fixture
def answered(ends):
    """Return the conversation after one turn between the two ends."""
    _, output = ends.turn(request(CHAIN), ANSWER)
    return CHAIN.extend(output)


@pytest.mark.parametrize(
    "chain",
    [
        EMPTY,
        CHAIN,
        EMPTY.extend([user("two")]),
        EMPTY.extend([user("ONE"), *ANSWER, user("two")]),
        EMPTY.extend([user("one"), *ANSWER, user("two")]),
        CHAIN.extend([message("edited"), user("two")]),
        CHAIN.extend([user("two"), *ANSWER]),
        EMPTY.extend([user("zero"), user("one"), *ANSWER]),
    ],
)
@pytest.mark.usefixtures("answered")
def test_another_conversation_travels_whole(ends, chain):
    """What does not begin with what was sent and answered, node for node, is sent in full."""
    full = request(chain)

    assert ends.lineage().shorten(full) is full


@pytest.mark.parametrize("values", [*FIELDS[1:], dict(reversed(FIELDS[0].items()))])
def test_another_setting_sends_everything(ends, answered, values):
    """A changed field, even a changed order, breaks the prefix: the request travels whole."""
    full = request(answered, Fields(values))

    assert ends.lineage().shorten(full) is full


def test_equal_settings_in_another_object_do_not(ends, answered):
    """Fields that are made again with the same values are the same settings."""
    sent = ends.lineage().shorten(request(answered, Fields(dict(FIELDS[0]))))

    assert sent.previous_response_id == "resp_1"


@pytest.mark.usefixtures("answered")
def test_output_may_be_a_copy_of_what_was_read(ends):
    """A conversation that keeps equal items, not the very same, is continued all the same."""
    sent = ends.lineage().shorten(request(CHAIN.extend([*copy.deepcopy(ANSWER), user("two")])))

    assert list(sent.input) == [user("two")]


def test_a_failed_turn_forgets(ends, answered):
    """After a failure the whole conversation is sent again."""
    ends.lineage().forget()
    full = request(answered)

    assert ends.lineage().shorten(full) is full


def test_the_list_of_output_may_be_changed_afterwards():
    """Both ends keep a list of their own: a caller may go on with his."""
    lineage, cache, output = Lineage(), ResponseCache(), copy.deepcopy(ANSWER)
    lineage.remember(request(CHAIN), "resp_1", output)
    cache.remember(request(CHAIN), "resp_1", output)
    output.append(user("two"))
    sent = lineage.shorten(request(CHAIN.extend(output)))

    assert list(sent.input) == [user("two")]
    assert cache.expand(sent)[0].input == CHAIN.extend(output)


def test_lanes_have_lineages_of_their_own(ends, answered):
    """What one lane said does not shorten the other's request."""
    arrived, _ = ends.turn(request(answered, stream_id="idea2"))

    assert arrived.previous_response_id is None
    assert len(arrived.input) == 2


def test_a_cache_gives_back_the_engines_memory():
    """What an engine keeps for a conversation comes back with it, and is never looked into."""
    cache, memory = ResponseCache(), object()
    cache.remember(request(CHAIN), "resp_1", ANSWER, memory)
    _, held = cache.expand(request(EMPTY, previous_response_id="resp_1"))
    _, fresh = cache.expand(request(CHAIN))

    assert held.memory is memory
    assert list(held.chain) == [*CHAIN, *ANSWER]
    assert fresh == (EMPTY, None)


def test_the_least_recently_used_conversation_goes_first():
    """A conversation that is continued from stays; one that nobody asked for is dropped."""
    cache = ResponseCache(keep=2)
    cache.remember(request(CHAIN), "old", ANSWER)
    cache.remember(request(CHAIN), "idle", ANSWER)
    cache.expand(request(EMPTY, previous_response_id="old"))
    cache.remember(request(CHAIN), "new", ANSWER)

    assert cache.expand(request(EMPTY, previous_response_id="old"))
    with pytest.raises(NotHeld, match="idle"):
        cache.expand(request(EMPTY, previous_response_id="idle"))
    assert len(cache) == 2


def test_a_forgotten_conversation_is_not_held():
    """Forgetting drops one conversation, and what was never there is no error."""
    cache = ResponseCache()
    cache.remember(request(CHAIN), "a", ANSWER)
    cache.remember(request(CHAIN), "b", ANSWER)
    for name in ("a", "a", "never", None):
        cache.forget(name)

    assert len(cache) == 1
    assert cache.expand(request(EMPTY, previous_response_id="b"))


@pytest.mark.usefixtures("answered")
def test_a_lineage_shows_from_where_it_goes_on(ends):
    """Its line tells a debugger the id that the next request continues from."""
    assert repr(ends.lineage()) == "<Lineage after resp_1>"
    assert repr(Lineage()) == "<Lineage after None>"


# The cost of a turn does not depend on the turns before it.


class Counted(dict):
    """An item that counts how often it is compared."""

    compared = 0

    def __eq__(self, other):
        Counted.compared += 1
        return super().__eq__(other)

    def __ne__(self, other):
        return not self == other

    __hash__ = None


def lines_run(work):
    """Return how many lines of the protocol's code ran, loops and comprehensions included."""
    home, lines = str(Path(protocol.__file__).parent), 0

    def trace(frame, event, _):
        nonlocal lines
        lines += event == "line"
        return trace if frame.f_code.co_filename.startswith(home) else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return lines


def test_a_turn_costs_the_same_at_any_length(new_ends):
    """Turn 200 runs as many lines and compares as many items as turn 2, at both ends."""
    ends, chain, costs = new_ends(keep=1024), EMPTY, {}
    for number in range(1, 201):
        chain = chain.extend([Counted(user(str(number)))])
        Counted.compared, full = 0, request(chain)
        work = []
        lines = lines_run(lambda full=full, work=work: work.append(ends.deliver(full)))
        costs[number] = lines, Counted.compared
        _, _, whole = work.pop()
        lines = lines_run(
            lambda full=full, whole=whole, work=work: work.append(
                ends.answer(full, whole, [message("a"), output_of("call", "b")])
            )
        )
        # Copies: the very items that were read would be found equal without being compared.
        chain = chain.extend(Counted(item) for item in work.pop())
        costs[number] += (lines,)

    assert costs[2][0] > 0
    assert costs[2][1] == 2
    assert costs[200] == costs[2]
