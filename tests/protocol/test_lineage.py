"""What a client leaves out, what a server holds, and that neither costs more with every turn."""

from __future__ import annotations

import contextlib
import copy
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_what_a_lane_was_asked_just_so_is_held():
    """Not by another lane, with other settings, or where it was answered; `EMPTY` is a place."""
    lineage = Lineage()
    lineage.remember(request(EMPTY, stream_id="each", generate=False), "resp_1", [])
    lineage.remember(request(CHAIN, stream_id="a"), "resp_2", ANSWER)

    assert lineage.holds(request(EMPTY, stream_id="each"))
    assert not lineage.holds(request(EMPTY, stream_id="a"))
    assert not lineage.holds(request(EMPTY, Fields(FIELDS[1]), stream_id="each"))
    assert not lineage.holds(request(CHAIN, stream_id="a"))
    assert lineage.shorten(request(CHAIN, stream_id="b")).previous_response_id == "resp_1"


def test_a_lane_goes_on_from_its_own_response_where_another_holds_as_much(ends, answered):
    """A warm-up of the same conversation elsewhere is for others to fork from."""
    ends.turn(request(answered, stream_id="each", generate=False))
    own, _ = ends.turn(request(answered.extend([user("two")])))
    fork, _ = ends.turn(request(answered.extend([user("else")]), stream_id="f"))

    assert own.previous_response_id == "resp_1"
    assert fork.previous_response_id == "resp_2"


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

    assert ends.lineage.shorten(full) is full


@pytest.mark.parametrize("values", [*FIELDS[1:], dict(reversed(FIELDS[0].items()))])
def test_another_setting_sends_everything(ends, answered, values):
    """A changed field, even a changed order, breaks the prefix: the request travels whole."""
    full = request(answered, Fields(values))

    assert ends.lineage.shorten(full) is full


def test_equal_settings_in_another_object_do_not(ends, answered):
    """Fields that are made again with the same values are the same settings."""
    sent = ends.lineage.shorten(request(answered, Fields(dict(FIELDS[0]))))

    assert sent.previous_response_id == "resp_1"


@pytest.mark.usefixtures("answered")
def test_output_may_be_a_copy_of_what_was_read(ends):
    """A conversation that keeps equal items, not the very same, is continued all the same."""
    sent = ends.lineage.shorten(request(CHAIN.extend([*copy.deepcopy(ANSWER), user("two")])))

    assert list(sent.input) == [user("two")]


def test_a_failed_turn_forgets(ends, answered):
    """After a failure the whole conversation is sent again."""
    full = request(answered)
    ends.lineage.forget(ends.lineage.shorten(full))

    assert ends.lineage.shorten(full) is full


def test_the_list_of_output_may_be_changed_afterwards():
    """Both ends keep a list of their own: a caller may go on with his."""
    lineage, cache, output = Lineage(), ResponseCache(), copy.deepcopy(ANSWER)
    lineage.remember(request(CHAIN), "resp_1", output)
    cache.remember(request(CHAIN), "resp_1", output)
    output.append(user("two"))
    sent = lineage.shorten(request(CHAIN.extend(output)))

    assert list(sent.input) == [user("two")]
    assert cache.expand(sent)[0].input == CHAIN.extend(output)


def test_a_fork_continues_from_another_lane(ends, answered):
    """A new lane sends what is new, and the id of the response that it shares."""
    arrived, _ = ends.turn(request(answered.extend([user("two")]), stream_id="idea2"))

    assert (arrived.stream_id, arrived.previous_response_id) == ("idea2", "resp_1")
    assert list(arrived.input) == [user("two")]
    assert ends.lineage.lanes_at("resp_1") == [None]
    assert ends.lineage.lanes_at("resp_2") == ["idea2"]
    assert ends.lineage.lanes_at("resp_3") == []


def turns(ends, chain, *numbers, **more):
    """Make turns on a lane and return the conversation after each."""
    after = []
    for number in numbers:
        chain = chain.extend([user(number)])
        _, output = ends.turn(request(chain, **more), [message(number)])
        chain = chain.extend(output)
        after.append(chain)
    return after


@pytest.mark.parametrize(("keeps_all", "parent"), [(False, None), (True, "resp_1")])
def test_an_older_response_is_continued_from_where_it_is_kept(new_ends, keeps_all, parent):
    """A branch from before the latest turn goes on by id where all are kept, else whole."""
    ends = new_ends(keeps_all=keeps_all)
    first, *_ = turns(ends, EMPTY, "one", "two", "three")
    sent = ends.lineage.shorten(request(first.extend([user("again")])))

    assert sent.previous_response_id == parent


def test_that_a_peer_keeps_only_the_latest_can_be_learnt(new_ends):
    """From then on older responses are not continued from, and the latest still is."""
    ends = new_ends(keeps_all=True)
    first, second = turns(ends, EMPTY, "one", "two")
    ends.lineage.keep_latest()

    assert ends.lineage.shorten(request(first.extend([user("x")]))).previous_response_id is None
    assert ends.lineage.shorten(request(second)).previous_response_id == "resp_2"
    third, _ = turns(ends, second, "three", "four")
    assert ends.lineage.shorten(request(third)).previous_response_id is None


def test_a_setting_that_comes_back_finds_its_own_response(new_ends):
    """After a turn with another model the one before it is continued from, items between sent."""
    ends = new_ends(keeps_all=True)
    (first,) = turns(ends, EMPTY, "one")
    other = first.extend([user("two")])
    _, output = ends.turn(request(other, Fields(FIELDS[1])), [message("2")])
    sent = ends.lineage.shorten(request(other.extend([*output, user("three")])))

    assert sent.previous_response_id == "resp_1"
    assert list(sent.input) == [user("two"), message("2"), user("three")]


@pytest.mark.parametrize("gone", [False, True])
def test_a_failed_fork_keeps_the_shared_parent(ends, answered, gone):
    """The lane that it forked from goes on by id, unless the peer says that the id is gone."""
    fork = ends.lineage.shorten(request(answered.extend([user("x")]), stream_id="idea2"))
    ends.lineage.forget(fork, gone=gone)
    sent = ends.lineage.shorten(request(answered.extend([user("two")])))

    assert sent.previous_response_id == (None if gone else "resp_1")


def test_a_failed_continuation_forgets_the_older_parent_too(new_ends):
    """Where all is kept, what a lane continued from is in doubt, and so is its latest."""
    ends = new_ends(keeps_all=True)
    first, second = turns(ends, EMPTY, "one", "two")
    ends.lineage.forget(ends.lineage.shorten(request(first.extend([user("again")]))))

    for chain in (first, second):
        full = request(chain.extend([user("more")]))
        assert ends.lineage.shorten(full) is full


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (FIELDS[1], "model_changed"),
        (FIELDS[2], "instructions_changed"),
        (FIELDS[3], "tools_changed"),
        ({**FIELDS[0], "text": {"format": {}}}, "text_format_changed"),
        ({**FIELDS[0], "reasoning": {"effort": "low"}}, "reasoning_effort_changed"),
        ({**FIELDS[0], "prompt_cache_key": "k"}, "prompt_cache_key_changed"),
        ({**FIELDS[0], "truncation": "auto"}, "settings_changed"),
        ({k: v for k, v in FIELDS[0].items() if k != "store"}, "settings_changed"),
        (dict(reversed(FIELDS[0].items())), "settings_changed"),
    ],
)
def test_it_knows_which_setting_broke_the_prefix(ends, answered, values, reason):
    """What changed since the turn before is told by name."""
    assert ends.lineage.why(request(answered, Fields(values))) == reason


def test_it_knows_a_new_connection_from_a_loss(ends, answered):
    """Nothing was ever said on a new connection; on another it is not held any more."""
    full = request(answered)
    assert Lineage().why(full) == "new_connection"

    ends.lineage.forget(ends.lineage.shorten(full))
    assert ends.lineage.why(full) == "evicted"


def test_a_cache_gives_back_the_engines_memory():
    """What an engine keeps for a conversation comes back with it, and is never looked into."""
    cache, memory = ResponseCache(), object()
    cache.remember(request(CHAIN), "resp_1", ANSWER, memory)
    _, held = cache.expand(request(EMPTY, previous_response_id="resp_1"))
    _, fresh = cache.expand(request(CHAIN))

    assert held.memory is memory
    assert list(held.chain) == [*CHAIN, *ANSWER]
    assert fresh == (EMPTY, None)


def continued(name):
    return request(EMPTY, previous_response_id=name)


def test_the_least_recently_used_conversation_goes_first():
    """A conversation that is continued from stays; one that nobody asked for is dropped."""
    one = CHAIN.extend(ANSWER).size + ResponseCache.RESPONSE
    cache = ResponseCache(budget=2 * one)
    for name in ("old", "idle"):
        cache.remember(request(EMPTY.extend([user("one")])), name, ANSWER)
    cache.expand(continued("old"))
    cache.remember(request(EMPTY.extend([user("one")])), "new", ANSWER)

    assert cache.size == 2 * one
    assert cache.expand(continued("old"))
    assert cache.expand(continued("new"))
    with pytest.raises(NotHeld, match="idle"):
        cache.expand(continued("idle"))


def test_what_conversations_share_counts_once():
    """A continuation costs its own items, and what is shared stays until the last one goes."""
    cache = ResponseCache()
    cache.remember(request(CHAIN), "a", ANSWER)
    alone = cache.size
    whole, _ = cache.expand(request(CHAIN, previous_response_id="a"))
    cache.remember(whole, "b", [])
    added = CHAIN.size + cache.RESPONSE

    assert cache.size == alone + added
    cache.forget("a")
    assert cache.size == alone + added - cache.RESPONSE
    cache.forget("b")
    assert cache.size == 0


def test_a_conversation_that_is_too_large_is_not_held():
    """It goes by without costing the others their place, and without what it replaces."""
    cache = ResponseCache(budget=2000)
    cache.remember(request(CHAIN), "a", ANSWER)
    cache.remember(request(CHAIN), "b", ANSWER)
    cache.remember(request(CHAIN), "b", [message("x" * 2000)])

    assert cache.expand(continued("a"))
    with pytest.raises(NotHeld):
        cache.held("b")


def test_a_response_that_adds_nothing_counts_too():
    """Warm-ups without an input cannot be held without end."""
    cache = ResponseCache(budget=3 * ResponseCache.RESPONSE)
    for number in range(5):
        cache.remember(request(EMPTY), str(number), [])

    assert len(cache) == 3
    empty = ResponseCache(budget=0)
    empty.remember(request(EMPTY), "a", [])
    assert len(empty) == 0


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["new", "continue", "race", "forget"]),
        st.integers(0, 9),
        st.integers(0, 9),
        st.integers(0, 3),
    ),
    max_size=40,
)


@given(STEPS, st.sampled_from([0, 1_000, 3_000, 2**20]))
def test_the_bytes_told_are_those_that_are_reachable(steps, budget):
    """New conversations, forks, turns that race with an eviction: the sum is always exact."""
    cache, taken = ResponseCache(budget), request(EMPTY)
    for act, name, parent, count in steps:
        said = [user("x" * 50 * number) for number in range(count)]
        if act == "forget":
            cache.forget(str(name))
            continue
        if act == "new":
            taken = request(EMPTY.extend(said))
        elif act == "continue":
            with contextlib.suppress(NotHeld):
                asked = request(EMPTY.extend(said), previous_response_id=str(parent))
                taken, _ = cache.expand(asked)
        # A race: what was taken before, whatever has become of its parent.
        cache.remember(taken, str(name), said)

        held = [each.chain for each in cache._held.values()]
        nodes = {id(node): node for chain in held for node in chain.back_to_its_beginning()}
        items = sum(node.size - node.parent.size for node in nodes.values() if node.length)
        assert cache.size == items + cache.RESPONSE * len(held) <= budget
        assert set(cache._holders) == set(nodes)


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
def test_a_lineage_shows_how_much_it_knows(ends):
    """Its line tells a debugger how much there is to continue from."""
    assert repr(ends.lineage) == "<Lineage of 1 responses>"


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


@pytest.mark.parametrize("keeps_all", [False, True])
def test_a_turn_costs_the_same_at_any_length(new_ends, keeps_all):
    """Turn 200 runs as many lines and compares as many items as turn 3, at both ends."""
    ends, chain, costs = new_ends(keeps_all=keeps_all), EMPTY, {}
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

    assert costs[3][0] > 0
    assert costs[3][1] == 2
    assert costs[200] == costs[3]
