"""Branches: what they share, what they are called, and who has one."""

from __future__ import annotations

import threading

import pytest

from ipy_agent.agent.branches import Branches
from ipy_agent.agent.tree import Run
from ipy_agent.errors import UsageError
from ipy_agent.protocol.items import text, user

SECONDS = 20


def said(branches, name):
    return [text(item) for item in branches.tree.said(name)]


def say(branches, name, word, cell=None):
    """Have a run that says a word."""
    place = branches.place(name, cell)
    number = len(branches.tree.runs) + 1
    more = place.said.extend([user(word)])
    run = Run(number=number, branch=name, cell=cell, parent=place.parent, said=more)
    branches.add(run, place.held)


def test_a_branch_shares_what_was_said_and_goes_its_own_way():
    """What is said on one is not said on the other; the shared part is the very same."""
    branches = Branches()
    say(branches, "main", "one")
    branches.fork("idea")
    say(branches, "idea", "two")

    assert branches.names == ("main", "idea")
    assert (said(branches, "main"), said(branches, "idea")) == (["one"], ["one", "two"])
    assert branches.tree.said("idea").parent is branches.tree.said("main")


def test_a_new_name_forks_where_one_stands():
    """A name that is not there yet becomes a branch of the current one; no name is that one."""
    branches = Branches()
    say(branches, "main", "one")
    branches.fork("a")
    branches.switch("a")
    say(branches, "a", "two")

    assert branches.named("b") == "b"
    assert said(branches, "b") == ["one", "two"]
    assert branches.named(None) == branches.current == "a"
    assert branches.named("main") == "main"


def test_a_branch_that_is_not_there_cannot_be_switched_to():
    """A typing mistake begins no branch: the error names those that are there."""
    branches = Branches()
    with pytest.raises(UsageError, match=r"no branch 'mian': there are main; .*fork"):
        branches.switch("mian")
    assert branches.names == ("main",)


def test_the_place_on_a_new_branch_is_the_end_of_what_it_would_fork():
    """Looking at it begins nothing."""
    branches = Branches()
    say(branches, "main", "one", "a")
    place = branches.place("idea", "b")

    assert [text(item) for item in place.said] == ["one"]
    assert branches.place("idea", "a").held.number == 1
    assert branches.names == ("main",)


def test_a_branch_may_begin_with_what_was_said_earlier():
    """A fork from a turn has what was said by then."""
    branches = Branches()
    say(branches, "main", "one")
    say(branches, "main", "two")
    branches.fork("idea", (1, branches.tree.runs[0].said))

    assert said(branches, "idea") == ["one"]


def test_lanes_are_named_like_their_branches():
    """The main branch has the default lane, which has no name."""
    branches = Branches()
    branches.fork("idea.2")

    assert branches.place("main").begun().stream_id is None
    assert branches.place("idea.2").begun().stream_id == "idea.2"


@pytest.mark.parametrize(
    "name", [5, True, "", "two words", "a/b", "ä", "x" * 257, "new\nline", "$`x`"]
)
def test_a_name_that_no_lane_can_have_is_refused(name):
    """The error says what a name is; nothing is made."""
    branches = Branches()
    for act in (branches.fork, branches.place, branches.named):
        with pytest.raises(UsageError, match="no name for a branch") as failure:
            act(name)
        assert len(str(failure.value)) < 300

    assert branches.names == ("main",)
    assert branches.current == "main"


def test_a_name_is_taken_once():
    """A fork never replaces what was said on another branch."""
    branches = Branches()
    with pytest.raises(UsageError, match="there is a branch 'main'"):
        branches.fork("main")


def test_a_branch_has_one_run_at_a_time_and_two_branches_have_two():
    """Another thread waits for the same branch, and not for another one."""
    branches, order = Branches(), []
    branches.fork("idea")

    def run_on(name, ready):
        with branches.alone_on(name):
            order.append(name)
            ready.set()

    same, other = threading.Event(), threading.Event()
    with branches.alone_on("main"):
        threads = [
            threading.Thread(target=run_on, args=("main", same)),
            threading.Thread(target=run_on, args=("idea", other)),
        ]
        for thread in threads:
            thread.start()
        assert other.wait(SECONDS)
        assert not same.is_set()
        order.append("out")
    for thread in threads:
        thread.join(SECONDS)
    assert order == ["idea", "out", "main"]


def test_two_threads_that_name_a_new_branch_share_it():
    """Whoever comes second finds it made."""
    branches, at_once, failed = Branches(), threading.Barrier(8), []

    def name(number):
        at_once.wait(SECONDS)
        try:
            for each in range(200):
                branches.named(f"b{each}")
        except UsageError as error:
            failed.append((number, error))

    threads = [threading.Thread(target=name, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert failed == []
    assert len(branches.names) == 201


def test_a_branch_that_went_with_a_reset_is_told_in_one_line():
    """Who waited for it on another thread finds other branches."""
    with pytest.raises(UsageError, match="branch 'idea' went with a reset meanwhile: run it again"):
        Branches().alone_on("idea").__enter__()


def test_what_was_dropped_is_of_no_branch():
    """The names stay until there are others."""
    branches = Branches()
    say(branches, "main", "a", cell="1")
    branches.drop()

    assert said(branches, "main") == []


def test_who_has_a_run_gets_no_second_one():
    """A tool that asks the agent that called it is refused, on any branch."""
    branches = Branches()
    branches.fork("idea")
    with branches.alone_on("main"):
        for enter in (lambda: branches.alone_on("idea"), branches.all_at_rest):
            with pytest.raises(UsageError, match="within a tool"), enter():
                pass

    with branches.alone_on("idea"), pytest.raises(UsageError):
        branches.alone_on("main").__enter__()
    with branches.all_at_rest():
        pass
