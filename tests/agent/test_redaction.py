"""What an endpoint says is heard without what is known to be secret, and else as it was said."""

from __future__ import annotations

from contextlib import aclosing

import pytest

from ipy_agent.agent.redaction import cleaned, heard
from ipy_agent.errors import ProtocolError
from ipy_agent.protocol.events import (
    ArgumentsDelta,
    Error,
    InputDelta,
    ItemDone,
    Other,
    ResponseCompleted,
    ResponseFailedEvent,
    TextDelta,
    TextDone,
    ThoughtDelta,
)
from ipy_agent.protocol.response import Reason, Response
from ipy_agent.secrets import MASK, Secret
from ipy_agent.trace import Notice

VALUE = "sk-proj-8Zt2Lq9Wn4Xc7Vb1Mk6Jh3Gf5Ds0Pa"


@pytest.fixture(autouse=True)
def secret():
    """What the tests look for is known."""
    return Secret(VALUE)


@pytest.fixture
def listen(run):
    """Return a function that returns what is heard of events, and whether their stream ended."""

    def listen(*events):
        ended = []

        async def stream():
            try:
                for event in events:
                    yield event
            finally:
                ended.append(True)

        async def main():
            async with aclosing(heard(stream())) as said:
                return [event async for event in said]

        found = run(main())
        assert ended
        return found

    return listen


def text_of(events, kind):
    return "".join(event.delta for event in events if isinstance(event, kind))


@pytest.mark.parametrize("kind", [TextDelta, ThoughtDelta, ArgumentsDelta, InputDelta])
@pytest.mark.parametrize("size", [1, 2, 7, 20, 200])
def test_a_secret_in_pieces_is_never_told(listen, kind, size):
    """However it is cut: no piece holds a part of it, and the rest of the text is all there."""
    text = f"Your key is {VALUE}, and sk-learn is not."
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    events = listen(*(kind(delta=piece) for piece in pieces), TextDone(text=text))

    assert text_of(events, kind) == f"Your key is {MASK}, and sk-learn is not."
    assert len(events) >= len(pieces) + 1
    assert events[-1].text == f"Your key is {MASK}, and sk-learn is not."


def test_what_waited_is_told_when_the_text_ends(listen):
    """A text may end as a secret begins."""
    events = listen(TextDelta(delta="ask sk"), ItemDone(output_index=0, item={"type": "message"}))

    assert [type(event) for event in events] == [TextDelta, TextDelta, ItemDone]
    assert text_of(events, TextDelta) == "ask sk"


def test_texts_that_grow_side_by_side_do_not_mix(listen):
    """Each part of each item waits for itself."""
    half = len(VALUE) // 2
    events = listen(
        TextDelta(delta=VALUE[:half], output_index=0),
        TextDelta(delta="sk-", output_index=1),
        ThoughtDelta(delta="x", output_index=0),
        TextDelta(delta=VALUE[half:], output_index=0),
        TextDelta(delta="learn", output_index=1),
        TextDone(text=""),
    )
    told = [
        "".join(e.delta for e in events if isinstance(e, TextDelta) and e.output_index == at)
        for at in (0, 1)
    ]

    assert told == [MASK, "sk-learn"]


def test_without_a_secret_events_are_the_same_objects(listen):
    """A transport tells by its items what its peer has."""
    item = {"type": "message", "content": [{"text": "42"}]}
    events = [
        TextDelta(delta="42. "),  # no token that another test made begins so
        ItemDone(output_index=0, item=item),
        ResponseCompleted(response=Response(id="r", output=[item])),
        Notice(text="ready"),
    ]

    assert all(said is told for said, told in zip(listen(*events), events, strict=True))


@pytest.mark.parametrize(
    "event",
    [
        Error(error=Reason(message=f"Incorrect API key: {VALUE}", code=VALUE, param=VALUE)),
        Error(message=f"no: {VALUE}"),
        Error(error=Reason(headers={"x-echo": f"Bearer {VALUE}"})),
        ItemDone(output_index=0, item={"type": "message", "content": [{"text": f"a {VALUE}"}]}),
        ItemDone(output_index=0, item={"type": "function_call", "arguments": f'{{"k":"{VALUE}"}}'}),
        ItemDone(output_index=0, item={VALUE: 1}),
        ResponseCompleted(response=Response(id=VALUE, model=VALUE, output=[{"a": VALUE}])),
        ResponseFailedEvent(response=Response(id="r", error={"message": VALUE})),
        Other(type="x", frame={"a": [VALUE]}),
        Notice(text=f"the log says {VALUE}"),
    ],
)
def test_a_secret_is_masked_wherever_it_stands(listen, event):
    """In what was said, in the reason of a refusal, in a name, in a line of a log."""
    (told,) = listen(event)

    assert type(told) is type(event)
    assert VALUE[8:] not in repr(told)
    assert MASK in repr(told)
    assert VALUE in repr(event)  # what the transport remembers is as it was


def test_what_is_nested_without_end_is_an_error():
    """Of a class of ours, and no crash."""
    deep = []
    for _ in range(100_000):
        deep = [deep]

    with pytest.raises(ProtocolError, match="nested too deeply"):
        cleaned(deep)


def test_what_is_no_json_is_looked_through():
    """As what is displayed may hold anything."""
    assert cleaned({("a", 1): VALUE, "b": {1, 2}}) == {("a", 1): MASK, "b": {1, 2}}
