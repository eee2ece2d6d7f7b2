"""A run's place: what it begins with, and what it leaves."""

from __future__ import annotations

import pytest

from ipy_agent.agent.places import Place
from ipy_agent.agent.plan import Plan
from ipy_agent.agent.tree import Entry, Run
from ipy_agent.endpoints import Endpoint
from ipy_agent.protocol.items import EMPTY, text, user
from ipy_agent.protocol.requests import Fields
from ipy_agent.settings import Settings


def plan(prompt="go", **more):
    told = {"pictures": [], "settings": Settings(), "tools": {}, "fields": Fields({"model": "m"})}
    target = Endpoint.named("openai")
    return Plan(**{"prompt": prompt, "cell": "a", "target": target, **told, **more})


def left_by(number, parent=None, **more):
    before = EMPTY if parent is None else parent.said
    said = before.extend([user(str(number))])
    return Run(number=number, branch="main", parent=parent, said=said, **more)


def test_the_first_place_begins_with_nothing():
    """There is no run before it."""
    place = Place.of((), "main", "a")

    assert (place.said, place.follows, place.told, place.held) == (EMPTY, None, None, None)
    assert place.begun().items is EMPTY


def test_a_run_begins_with_what_its_parent_left():
    """The items, how many tokens they were, and what the model had been told."""
    first = left_by(1, tokens=70, told="told", cell="a")
    place = Place.of((Entry(first),), "main", "b")
    said = place.begun()

    assert (said.items, said.tokens, place.follows, place.told) == (first.said, 70, 1, "told")
    assert said.is_due(70)


def test_a_compaction_is_not_compacted_again_at_once():
    """What it left is counted by the next turn, and has to grow by half."""
    whole = left_by(1, tokens=100)
    place = Place.of((Entry(whole),), "main", None)
    said = place.begun()
    said.back_to(EMPTY.extend([user("in short")]))
    short = place.compacted(said)
    after = Place.of((Entry(whole), Entry(short)), "main", None)
    begun = after.begun()
    begun.counted(80)

    assert (after.follows, [text(item) for item in after.said]) == (1, ["in short"])
    assert short.is_compaction
    assert not begun.is_due(60)
    begun.counted(120)
    assert begun.is_due(60)


def test_what_a_run_left_knows_where_it_stands():
    """So that the next one can follow it, or take its place."""
    first = left_by(1, cell="x")
    place = Place.of((Entry(first),), "main", "a")
    said = place.begun()
    said.add([user("go")])
    said.counted(9)
    run = place.ended(said, plan(), 2, answer="answer", told="told")

    assert (run.number, run.parent, run.cell, run.prompt) == (2, first, "a", "go")
    assert (run.answer, run.told, run.tokens) == ("answer", "told", 9)
    assert [text(item) for item in run.said] == ["1", "go"]


def test_the_same_question_is_known_again():
    """Where its cell has an answer that still stands."""
    held = left_by(1, cell="a", asked=plan().asked, answer="yes")
    place = Place.of((Entry(held),), "main", "a")

    assert place.answer_to(plan().asked) is held
    assert place.answer_to(plan("stop").asked) is None
    assert place.answer_to(plan(fields=Fields({"model": "n"})).asked) is None
    assert place.answer_to(plan(target=Endpoint.named("xai")).asked) is None


@pytest.mark.parametrize(
    "line",
    [
        pytest.param((), id="nothing said yet"),
        pytest.param((Entry(left_by(1, cell="a", asked=plan().asked)),), id="no answer"),
        pytest.param(
            (Entry(left_by(1, cell="a", asked=plan().asked, answer="yes"), stale=True),), id="stale"
        ),
    ],
)
def test_there_may_be_no_answer_to_show(line):
    """A new cell, a run that failed, and one whose past was replaced."""
    assert Place.of(line, "main", "a").answer_to(plan().asked) is None
