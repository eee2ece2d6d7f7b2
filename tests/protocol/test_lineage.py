"""What one end leaves out the other puts back: both ends in memory, joined by real bytes."""

from __future__ import annotations

import copy
import itertools
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ipy_agent import protocol
from ipy_agent.protocol.events import Fields, Request, Response, ResponseCompleted, decode, encode
from ipy_agent.protocol.items import EMPTY, output_of, user
from ipy_agent.protocol.lineage import Lineage, NotHeld, ResponseCache

FIELDS = (
    {"model": "m", "instructions": "be brief", "tools": [{"name": "f"}], "store": False},
    {"model": "n", "instructions": "be brief", "tools": [{"name": "f"}], "store": False},
    {"model": "m", "instructions": "be exact", "tools": [{"name": "f"}], "store": False},
    {"model": "m", "instructions": "be brief", "tools": [{"name": "g"}], "store": False},
    {"model": "m", "instructions": "be brief", "tools": []},
)
HOLDS_ENOUGH = 8


class Ends:
    """A client and a server with nothing between them but the bytes of their frames."""

    def __init__(self, keep=HOLDS_ENOUGH):
        self.keep = keep
        self.numbers = itertools.count(1)
        self.reconnect()

    def reconnect(self):
        """Both ends begin anew, as on another socket."""
        self.lineages = {}
        self.restart_server()

    def restart_server(self):
        """The server forgets everything, and its client does not know."""
        self.cache = ResponseCache(self.keep)

    def lineage(self, lane=None):
        return self.lineages.setdefault(lane, Lineage())

    def deliver(self, full):
        """Return what the client sent of `full`, what arrived, and the whole put back there."""
        lineage = self.lineage(full.stream_id)
        sent = lineage.shorten(full)
        try:
            arrived, (whole, held) = self.expanded(sent)
        except NotHeld:
            assert sent.previous_response_id is not None
            lineage.forget()
            sent = lineage.shorten(full)
            assert sent is full
            arrived, (whole, held) = self.expanded(sent)
        assert held.chain is whole.input.back(len(arrived.input))
        return sent, arrived, whole

    def expanded(self, sent):
        frame = sent.frame()
        assert sent.size() == len(frame)
        arrived = Request.parse(frame)
        return arrived, self.cache.expand(arrived)

    def answer(self, full, whole, output):
        """Answer, and return the output as the client reads it off the wire."""
        name = f"resp_{next(self.numbers)}"
        self.cache.remember(whole, name, output)
        response = Response(id=name, output=output)
        read = decode(encode(ResponseCompleted(response=response))).response.output
        self.lineage(full.stream_id).remember(full, name, read)
        return read

    def turn(self, full, output=()):
        """Make a whole turn; return what arrived and what was read."""
        _, arrived, whole = self.deliver(full)
        assert whole == full
        return arrived, self.answer(full, whole, list(output))


def message(text):
    return {
        "type": "message",
        "id": "msg",
        "role": "assistant",
        "content": [{"type": "output_text", "text": text, "annotations": []}],
    }


def request(chain, fields=Fields(FIELDS[0]), **more):  # noqa: B008 (encoded once, on purpose)
    return Request(fields=fields, input=chain, **more)


TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
ITEMS = st.one_of(
    TEXTS.map(user),
    TEXTS.map(message),
    TEXTS.map(lambda text: output_of("call", text)),
    st.dictionaries(TEXTS, JSON.filter(lambda value: value not in (float("inf"), -float("inf")))),
)
LANES = st.sampled_from([None, "idea2"])


class Conversations(RuleBasedStateMachine):
    """Users and networks do what they like; at every turn the server has the whole input.

    `said` is the conversation as plain lists, kept beside the chains that it is checked by.
    """

    @initialize(keep=st.sampled_from([0, 1, 2, HOLDS_ENOUGH]))
    def begin(self, keep):
        self.ends = Ends(keep)
        self.fields = Fields(FIELDS[0])
        self.chains = {None: EMPTY, "idea2": EMPTY}
        self.said = {None: [], "idea2": []}
        self.past = [EMPTY]

    def whole(self, lane, generate=True):
        return Request(
            fields=self.fields, input=self.chains[lane], stream_id=lane, generate=generate
        )

    def deliver(self, lane, generate=True):
        full = self.whole(lane, generate)
        _, _, whole = self.ends.deliver(full)
        assert whole == full
        assert list(whole.input) == self.said[lane]
        return full, whole

    def put(self, lane, chain):
        self.chains[lane], self.said[lane] = chain, copy.deepcopy(list(chain))
        self.past.append(chain)

    @rule(lane=LANES, new=st.lists(ITEMS, max_size=3), output=st.lists(ITEMS, max_size=3))
    def ask(self, lane, new, output):
        """A turn that goes well."""
        self.chains[lane] = self.chains[lane].extend(new)
        self.said[lane] += copy.deepcopy(new)
        full, whole = self.deliver(lane)
        read = self.ends.answer(full, whole, output)
        self.chains[lane] = self.chains[lane].extend(read)
        self.said[lane] += copy.deepcopy(output)
        self.past.append(self.chains[lane])

    @rule(lane=LANES)
    def warm(self, lane):
        """A warm-up has no output, but can be continued from."""
        full, whole = self.deliver(lane, generate=False)
        assert not whole.generate
        self.ends.answer(full, whole, [])

    @rule(lane=LANES, output=st.lists(ITEMS, max_size=2))
    def lose_the_answer(self, lane, output):
        """The server answered and holds it; the client saw a failure and forgets."""
        full, whole = self.deliver(lane)
        self.ends.answer(full, whole, output)
        self.ends.lineage(lane).forget()

    @rule(lane=LANES)
    def fail(self, lane):
        """A refused continuation evicts its parent at the server; the client forgets."""
        sent, _, _ = self.ends.deliver(self.whole(lane))
        self.ends.cache.forget(sent.previous_response_id)
        self.ends.lineage(lane).forget()

    @rule(lane=LANES)
    def fail_at_the_server_only(self, lane):
        """The server lost the parent, and the client only learns of it with its next turn."""
        sent, _, _ = self.ends.deliver(self.whole(lane))
        self.ends.cache.forget(sent.previous_response_id)

    @rule(values=st.sampled_from(FIELDS))
    def change_settings(self, values):
        self.fields = Fields(copy.deepcopy(values))

    @rule(lane=LANES, data=st.data())
    def branch(self, lane, data):
        """The conversation goes on from what it once was, on this lane or the other."""
        self.put(lane, data.draw(st.sampled_from(self.past)))

    @rule(lane=LANES, data=st.data(), item=ITEMS)
    def edit(self, lane, data, item):
        """An item is another one; what follows it is said again as it was."""
        chain = self.chains[lane]
        if chain.length:
            steps = data.draw(st.integers(1, chain.length))
            rest = chain.since(chain.length - steps + 1)
            self.put(lane, chain.back(steps).extend([item, *rest]))

    @rule(lane=LANES, data=st.data())
    def drop(self, lane, data):
        """An item is gone; what follows it stays."""
        chain = self.chains[lane]
        if chain.length:
            steps = data.draw(st.integers(1, chain.length))
            self.put(lane, chain.back(steps).extend(chain.since(chain.length - steps + 1)))

    @rule(lane=LANES)
    def load(self, lane):
        """The same conversation, but read from somewhere: equal items, other nodes."""
        self.put(lane, EMPTY.extend(copy.deepcopy(list(self.chains[lane]))))

    @rule()
    def reconnect(self):
        self.ends.reconnect()

    @rule()
    def restart_server(self):
        self.ends.restart_server()

    @invariant()
    def memory_is_bounded(self):
        assert len(self.ends.cache) <= self.ends.keep


Conversations.TestCase.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, report_multiple_bugs=False
)
TestConversations = Conversations.TestCase


def test_only_what_is_new_travels():
    """From the second turn on a frame holds the new items and the id of the turn before."""
    ends, chain = Ends(), EMPTY
    for number in range(1, 6):
        chain = chain.extend([user(f"question {number}")])
        arrived, output = ends.turn(request(chain), [message(f"answer {number}")])
        chain = chain.extend(output)

        assert list(arrived.input) == [user(f"question {number}")]
        assert arrived.previous_response_id == (f"resp_{number - 1}" if number > 1 else None)


def test_a_warm_up_is_continued_from():
    """After a warm-up with the conversation so far nothing but the id travels."""
    ends, chain = Ends(), EMPTY.extend([user("long")])
    ends.turn(request(chain, generate=False))
    arrived, _ = ends.turn(request(chain))

    assert list(arrived.input) == []
    assert arrived.previous_response_id == "resp_1"


CHAIN = EMPTY.extend([user("one")])
ANSWER = [message("1")]


def after_a_turn():
    """Return the two ends and the conversation after one turn."""
    ends = Ends()
    _, output = ends.turn(request(CHAIN), ANSWER)
    return ends, CHAIN.extend(output)


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
def test_another_conversation_travels_whole(chain):
    """What does not begin with what was sent and answered, node for node, is sent in full."""
    ends, _ = after_a_turn()
    full = request(chain)

    assert ends.lineage().shorten(full) is full


@pytest.mark.parametrize("values", [*FIELDS[1:], dict(reversed(FIELDS[0].items()))])
def test_another_setting_sends_everything(values):
    """A changed field, even a changed order, breaks the prefix: the request travels whole."""
    ends, chain = after_a_turn()
    full = request(chain, Fields(values))

    assert ends.lineage().shorten(full) is full


def test_equal_settings_in_another_object_do_not():
    """Fields that are made again with the same values are the same settings."""
    ends, chain = after_a_turn()
    sent = ends.lineage().shorten(request(chain, Fields(dict(FIELDS[0]))))

    assert sent.previous_response_id == "resp_1"


def test_output_may_be_a_copy_of_what_was_read():
    """A conversation that keeps equal items, not the very same, is continued all the same."""
    ends, _ = after_a_turn()
    sent = ends.lineage().shorten(request(CHAIN.extend([*copy.deepcopy(ANSWER), user("two")])))

    assert list(sent.input) == [user("two")]


def test_a_failed_turn_forgets():
    """After a failure the whole conversation is sent again."""
    ends, chain = after_a_turn()
    ends.lineage().forget()
    full = request(chain)

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


def test_lanes_have_lineages_of_their_own():
    """What one lane said does not shorten the other's request."""
    ends, chain = after_a_turn()
    arrived, _ = ends.turn(request(chain, stream_id="idea2"))

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


def test_a_lineage_shows_from_where_it_goes_on():
    """Its line tells a debugger the id that the next request continues from."""
    ends, _ = after_a_turn()

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


def test_a_turn_costs_the_same_at_any_length():
    """Turn 200 runs as many lines and compares as many items as turn 2, at both ends."""
    ends, chain, costs = Ends(keep=1024), EMPTY, {}
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
