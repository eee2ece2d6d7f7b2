"""Whatever users and networks do, the server has the whole input at every turn."""

from __future__ import annotations

import copy

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from ipy_agent.protocol.items import EMPTY, output_of, user
from ipy_agent.protocol.requests import Fields, Request

FIELDS = (
    {"model": "m", "instructions": "be brief", "tools": [{"name": "f"}], "store": False},
    {"model": "n", "instructions": "be brief", "tools": [{"name": "f"}], "store": False},
    {"model": "m", "instructions": "be exact", "tools": [{"name": "f"}], "store": False},
    {"model": "m", "instructions": "be brief", "tools": [{"name": "g"}], "store": False},
    {"model": "m", "instructions": "be brief", "tools": []},
)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS | st.floats(-1e9, 1e9),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
ITEMS = st.one_of(
    TEXTS.map(user),
    TEXTS.map(lambda text: output_of("call", text)),
    st.dictionaries(TEXTS, JSON, max_size=3),
)
LANES = st.sampled_from([None, "idea2"])


CHANGES = st.sampled_from(["none", "none", "edit", "drop", "branch", "load"])
OUTCOMES = st.sampled_from(["answered", "answered", "answered", "lost", "refused", "evicted"])


class Conversations(RuleBasedStateMachine):
    """Two lanes of one connection, and all that can happen to what is said on them.

    `said` holds the conversations as plain lists, beside the chains that they check; `basis`
    the settings of each response that may be continued from.
    """

    def __init__(self, new_ends):
        super().__init__()
        self.new_ends = new_ends

    @initialize(budget=st.sampled_from([0, 700, 1500, 2**20, 2**20]), keeps_all=st.booleans())
    def begin(self, budget, keeps_all):
        self.ends = self.new_ends(budget, keeps_all=keeps_all)
        self.latest = {}
        self.values = FIELDS[0]
        self.chains = {None: EMPTY, "idea2": EMPTY}
        self.said = {None: [], "idea2": []}
        self.basis = {}
        self.past = [EMPTY]

    @rule(
        lane=LANES,
        change=CHANGES,
        new=st.lists(ITEMS, max_size=2),
        outcome=OUTCOMES,
        output=st.lists(ITEMS, max_size=2),
        data=st.data(),
    )
    def turn(self, lane, change, new, outcome, output, data):
        """Change what was said, say more, and ask; the turn goes one way or another."""
        getattr(self, change)(lane, data)
        self.chains[lane] = self.chains[lane].extend(new)
        self.said[lane] += copy.deepcopy(new)
        full, sent, whole = self.deliver(lane)
        if outcome in ("refused", "evicted"):
            self.ends.cache.forget(sent.previous_response_id)
        else:
            read = self.answer(full, whole, output)
        if outcome in ("refused", "lost"):
            self.ends.lineage.forget(sent)
            self.basis.pop(self.latest.get(lane), None)
        elif outcome == "answered":
            self.chains[lane] = self.chains[lane].extend(read)
            self.said[lane] += copy.deepcopy(output)
        self.past.append(self.chains[lane])

    @rule(lane=LANES)
    def warm(self, lane):
        """A warm-up has no output, but can be continued from."""
        full, _, whole = self.deliver(lane, generate=False)
        self.answer(full, whole, [])

    @rule(values=st.sampled_from(FIELDS))
    def change_settings(self, values):
        self.values = values

    @rule()
    def reconnect(self):
        self.ends.reconnect()
        self.basis = {}

    @rule()
    def restart_server(self):
        self.ends.restart_server()

    @invariant()
    def memory_is_bounded(self):
        assert self.ends.cache.size <= self.ends.budget

    def answer(self, full, whole, output):
        """Answer, and take note of what may be continued from now."""
        read = self.ends.answer(full, whole, output)
        latest = self.ends.lineage._latest[full.stream_id].id
        if not self.ends.keeps_all:
            self.basis.pop(self.latest.get(full.stream_id), None)
        self.basis[latest] = self.values
        self.latest[full.stream_id] = latest
        return read

    def deliver(self, lane, generate=True):
        """Send the whole of a lane, and check what arrived against what was said."""
        fields = Fields(copy.deepcopy(self.values))
        full = Request(fields=fields, input=self.chains[lane], stream_id=lane, generate=generate)
        sent, _, whole = self.ends.deliver(full)
        assert whole == full
        assert list(whole.input) == self.said[lane]
        if sent.previous_response_id is not None:
            assert self.basis[sent.previous_response_id] == self.values
        return full, sent, whole

    def none(self, lane, data):
        """Nothing that was said changes."""

    def edit(self, lane, data):
        """An item is another one; what follows it is said again as it was."""
        self.put(lane, data, [data.draw(ITEMS)])

    def drop(self, lane, data):
        """An item is gone; what follows it stays."""
        self.put(lane, data, [])

    def branch(self, lane, data):
        """The conversation goes on from what it once was, on this lane or the other."""
        self.chains[lane] = data.draw(st.sampled_from(self.past))
        self.said[lane] = copy.deepcopy(list(self.chains[lane]))

    def load(self, lane, _):
        """The same conversation, but read from somewhere: equal items, other nodes."""
        self.chains[lane] = EMPTY.extend(copy.deepcopy(self.said[lane]))

    def put(self, lane, data, items):
        """Put items in the place of one of the last few."""
        said = self.said[lane]
        if said:
            steps = data.draw(st.integers(1, min(4, len(said))))
            rest = said[len(said) - steps + 1 :]
            self.said[lane] = [*said[: len(said) - steps], *copy.deepcopy(items), *rest]
            self.chains[lane] = self.chains[lane].back(steps).extend([*items, *rest])


def test_what_is_left_out_is_put_back(new_ends):
    """Over edits, branches, other settings, failures, evictions and reconnects: always."""
    run_state_machine_as_test(
        lambda: Conversations(new_ends),
        settings=settings(max_examples=100, stateful_step_count=25, deadline=None),
    )
