"""The tree: what a run follows, what it replaces, and how every run stands."""

from __future__ import annotations

import pytest

from ipy_agent.agent.places import Place
from ipy_agent.agent.tree import Run, Tree
from ipy_agent.errors import UsageError
from ipy_agent.protocol.items import text, user


class Notebook:
    """Cells that say one word each, and what became of it."""

    def __init__(self):
        self.standing = {}
        self.tree = Tree("main", self.standing.__setitem__)
        self.number = 0

    def run(self, word, cell=None, branch="main", *, append=False):
        """Say a word in a cell named like its first letter, unless another is named."""
        cell = cell or word[0]
        place = Place.of(self.tree.line(branch), branch, None if append else cell)
        self.number += 1
        run = Run(
            number=self.number,
            branch=branch,
            cell=cell,
            parent=place.parent,
            said=place.said.extend([user(word)]),
        )
        self.tree.add(run, replaced=place.held)
        return run

    def loose(self, word, branch="main"):
        """Say a word without a cell."""
        parent = self.tree.tip(branch)
        self.number += 1
        said = self.tree.said(branch).extend([user(word)])
        run = Run(number=self.number, branch=branch, parent=parent, said=said)
        self.tree.add(run)
        return run

    def said(self, branch="main"):
        return " ".join(text(item) for item in self.tree.said(branch))

    def stands(self, word):
        """Return the numbers of the runs that stand so."""
        return [number for number, standing in sorted(self.standing.items()) if standing == word]


@pytest.fixture
def notebook():
    return Notebook()


def test_new_cells_follow_each_other(notebook):
    """Each goes to the end."""
    for word in ("a", "b", "c"):
        notebook.run(word)

    assert notebook.said() == "a b c"
    assert notebook.stands("live") == [1, 2, 3]


def test_a_cell_that_runs_again_replaces_what_it_said(notebook):
    """It follows what came before it; what built on it is stale, and not sent."""
    for word in ("a", "b", "c"):
        notebook.run(word)
    notebook.run("b2")

    assert notebook.said() == "a b2"
    assert notebook.stands("replaced") == [2]
    assert notebook.stands("stale") == [3]


def test_a_stale_cell_that_runs_again_follows_the_new_one(notebook):
    """Then it is live again."""
    for word in ("a", "b", "c", "b2", "c2"):
        notebook.run(word)

    assert notebook.said() == "a b2 c2"
    assert notebook.stands("replaced") == [2, 3]
    assert notebook.stands("stale") == []


def test_running_all_twice_gives_the_same_conversation(notebook):
    """Not a doubled one; the first one's runs are replaced."""
    for _ in range(2):
        for word in ("a", "b", "c"):
            notebook.run(word)

    assert notebook.said() == "a b c"
    assert notebook.stands("live") == [4, 5, 6]
    assert notebook.stands("replaced") == [1, 2, 3]


def test_a_cell_that_was_put_between_others_has_its_place_after_running_all(notebook):
    """Whether it ran alone before or not: all of them are live, and in that order."""
    for first in (("a", "c", "b"), ("a", "c")):
        notebook = Notebook()
        for word in (*first, "a2", "b2", "c2"):
            notebook.run(word)

        assert notebook.said() == "a2 b2 c2"
        assert notebook.stands("stale") == []


def test_a_cell_that_passes_over_stale_ones_stands_before_them(notebook):
    """They did not come before it; run again, they follow it."""
    for word in ("a", "b", "c", "a2", "c2"):
        notebook.run(word)
    assert notebook.said() == "a2 c2"
    notebook.run("b2")

    assert notebook.said() == "a2 c2 b2"


def test_a_new_cell_follows_the_one_that_ran_last(notebook):
    """What is stale between them is left out; run again, it follows the new one."""
    for word in ("a", "b", "c", "b2", "d"):
        notebook.run(word)
    assert notebook.said() == "a b2 d"

    notebook.run("c2")
    assert notebook.said() == "a b2 d c2"
    assert notebook.stands("stale") == []


def test_appending_keeps_what_was_said(notebook):
    """The next run of the cell replaces what it said last."""
    notebook.run("a")
    notebook.run("b")
    notebook.run("a2", append=True)
    assert notebook.said() == "a b a2"

    notebook.run("a3")
    assert notebook.said() == "a b a3"


def test_what_has_no_cell_is_stale_for_good(notebook):
    """Nothing could run it again, so it has no place any more."""
    notebook.run("a")
    notebook.loose("x")
    notebook.run("a2")

    assert notebook.stands("stale") == [2]
    assert [entry.run.number for entry in notebook.tree.line("main")] == [3]


# branches


def test_a_cell_replaced_on_its_own_branch_is_replaced_where_it_is_shared(notebook):
    """What built on it on another branch is stale there, and follows the new one next time."""
    notebook.run("a")
    notebook.tree.fork("idea", "main")
    notebook.run("b", branch="idea")
    notebook.run("a2")
    assert (notebook.said("main"), notebook.said("idea")) == ("a2", "a2")
    assert notebook.stands("stale") == [2]

    notebook.run("b2", branch="idea")
    assert (notebook.said("main"), notebook.said("idea")) == ("a2", "a2 b2")


def test_a_cell_replaced_on_a_fork_stays_where_it_was(notebook):
    """The branch that it ran on does not change."""
    for word in ("a", "b"):
        notebook.run(word)
    notebook.tree.fork("idea", "main")
    notebook.run("a2", branch="idea")

    assert (notebook.said("main"), notebook.said("idea")) == ("a b", "a2")
    assert notebook.stands("live") == [1, 2, 3]


def test_a_fork_shares_what_is_live(notebook):
    """A stale cell runs at the end of the fork, as a new one would."""
    for word in ("a", "b", "a2"):
        notebook.run(word)
    notebook.tree.fork("idea", "main")
    assert [entry.run.number for entry in notebook.tree.line("idea")] == [3]

    notebook.run("b2", branch="idea")
    assert notebook.said("idea") == "a2 b2"


def test_a_fork_brings_back_what_was_replaced(notebook):
    """The former turns are kept: a fork from one of them goes on where they ended."""
    for word in ("a", "b", "c", "b2"):
        notebook.run(word)
    third = notebook.tree.runs[2]
    notebook.tree.fork_at("former", 3, third.said)

    assert notebook.said("former") == "a b c"
    assert notebook.stands("replaced") == []


def test_a_fork_within_a_run_has_a_part_of_it(notebook):
    """The cell that it took a part of replaces the part when it runs on the fork."""
    notebook.run("a")
    whole = notebook.run("b")
    part = whole.said
    longer = Run(
        number=3,
        branch="main",
        cell="c",
        parent=whole,
        said=part.extend([user("c"), user("d")]),
    )
    notebook.tree.add(longer)
    notebook.number = 3
    notebook.tree.fork_at("early", 3, part.extend([user("c")]))
    assert notebook.said("early") == "a b c"

    notebook.run("c2", branch="early")
    assert (notebook.said("early"), notebook.said("main")) == ("a b c2", "a b c d")


def test_a_fork_needs_a_run_of_this_conversation(notebook):
    """A number that is not in the tree is said in one line."""
    notebook.run("a")
    with pytest.raises(UsageError, match="cell run 7 is not part of this conversation"):
        notebook.tree.fork_at("x", 7, notebook.tree.said("main"))
    assert notebook.tree.branches == ("main",)


def test_a_run_whose_past_was_replaced_meanwhile_is_stale(notebook):
    """It was under way on a fork when what it followed ran again."""
    first = notebook.run("a")
    notebook.tree.fork("idea", "main")
    notebook.run("a2")
    late = Run(number=9, branch="idea", cell="x", parent=first, said=first.said.extend([user("x")]))
    notebook.tree.add(late)

    assert notebook.said("idea") == "a2"
    assert notebook.standing[9] == "stale"


# undo


def test_undo_takes_back_what_a_run_replaced_and_made_stale(notebook):
    """All is as it was before; the run is kept as undone."""
    for word in ("a", "b", "c", "b2"):
        notebook.run(word)
    undone = notebook.tree.undo("main")

    assert undone.number == 4
    assert notebook.said() == "a b c"
    assert (notebook.stands("live"), notebook.stands("undone")) == ([1, 2, 3], [4])


def test_undo_goes_back_step_by_step(notebook):
    """Until there is nothing left, which is one clear line."""
    for word in ("a", "b"):
        notebook.run(word)
    notebook.tree.undo("main")
    notebook.tree.undo("main")

    assert notebook.said() == ""
    with pytest.raises(UsageError, match="nothing ran on branch 'main'"):
        notebook.tree.undo("main")


def test_undo_is_of_one_branch(notebook):
    """A fork has nothing of its own to take back, and what another branch said stays."""
    notebook.run("a")
    notebook.tree.fork("idea", "main")
    with pytest.raises(UsageError, match="nothing ran on branch 'idea'"):
        notebook.tree.undo("idea")

    notebook.run("b", branch="idea")
    notebook.tree.undo("main")
    assert (notebook.said("main"), notebook.said("idea")) == ("", "a b")


def test_undo_names_the_run_of_another_branch_that_comes_first(notebook):
    """What changed a branch from elsewhere has to be taken back there."""
    notebook.run("a")
    notebook.tree.fork("idea", "main")
    notebook.run("b", branch="idea")
    notebook.run("a2")
    with pytest.raises(UsageError, match="changed by run 3 on 'main'"):
        notebook.tree.undo("idea")

    notebook.tree.undo("main")
    assert (notebook.said("main"), notebook.said("idea")) == ("a", "a b")


def test_undo_leaves_a_branch_that_went_on(notebook):
    """What was said there since builds on the run that is taken back here."""
    notebook.run("a")
    notebook.tree.fork("idea", "main")
    notebook.run("a2")
    notebook.run("c", branch="idea")
    notebook.tree.undo("main")

    assert (notebook.said("main"), notebook.said("idea")) == ("a", "a2 c")
    assert notebook.stands("live") == [1, 2, 3]


def test_undo_goes_back_past_what_was_taken_back_elsewhere(notebook):
    """A run that a branch shared and that is undone does not come back with the next undo."""
    notebook.run("a")
    notebook.tree.fork("x", "main")
    notebook.run("b", branch="x")
    notebook.run("a2")
    notebook.run("c", branch="x")
    taken = [notebook.tree.undo(branch).number for branch in ("main", "x", "x")]

    assert taken == [3, 4, 2]
    assert (notebook.said(), notebook.said("x")) == ("a", "a")


def test_a_cell_is_in_a_line_once_when_two_branches_ran_it_again_at_a_time(notebook):
    """The one that ends last on its branch has the place there."""
    notebook.run("a")
    notebook.tree.fork("x", "main")
    place = Place.of(notebook.tree.line("x"), "x", "a")
    notebook.run("a2")
    notebook.number += 1
    said = place.said.extend([user("a3")])
    last = Run(number=notebook.number, branch="x", cell="a", parent=place.parent, said=said)
    notebook.tree.add(last, replaced=place.held)

    assert (notebook.said(), notebook.said("x")) == ("a2", "a3")
    assert [entry.run.number for entry in notebook.tree.line("x")] == [3]


def test_what_was_dropped_stands_as_reset(notebook):
    """The tree is let go of as a whole."""
    for word in ("a", "b", "a2"):
        notebook.run(word)
    notebook.tree.drop()

    assert notebook.standing == {1: "replaced", 2: "reset", 3: "reset"}
    assert notebook.tree.cells == {"a", "b"}
