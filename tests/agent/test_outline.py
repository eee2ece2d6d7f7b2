"""The tree as a picture in text."""

from __future__ import annotations

from ipy_agent.agent.outline import drawn
from ipy_agent.agent.tree import Run, Tree
from ipy_agent.protocol.items import EMPTY, user


def said(number, parent=None, *, branch="main", prompt=None):
    before = EMPTY if parent is None else parent.said
    return Run(
        number=number,
        branch=branch,
        cell=f"c{number}",
        parent=parent,
        said=before.extend([user(str(number))]),
        prompt=f"prompt {number}" if prompt is None else prompt,
    )


def test_an_empty_tree_has_its_branch():
    """Nothing was said yet."""
    assert drawn(Tree("main"), "main") == "  main *: nothing said yet"


def test_what_leads_to_the_current_branch_goes_straight_down():
    """What was replaced is set off to the right, with what built on it."""
    tree = Tree("main")
    one = said(1)
    two = said(2, one)
    three = said(3, two)
    for run in (one, two, three):
        tree.add(run)
    tree.add(said(4, one), replaced=two)
    tree.fork("idea", "main")

    assert drawn(tree, "main").splitlines() == [
        "  1 prompt 1",
        "  ├─2 prompt 2  replaced",
        "  │   3 prompt 3  stale",
        "  4 prompt 4  <- main *  <- idea",
    ]


def test_the_current_branch_decides_which_one_is_straight():
    """The others stay in order."""
    tree = Tree("main")
    one = said(1)
    tree.add(one)
    tree.fork("idea", "main")
    tree.add(said(2, one, branch="idea"))
    tree.add(said(3, one))

    assert drawn(tree, "idea").splitlines() == [
        "  1 prompt 1",
        "  ├─3 prompt 3  <- main",
        "  2 prompt 2  <- idea *",
    ]


def test_a_prompt_is_one_short_line_without_tricks():
    """New lines, controls and length are the user's; the picture stays a picture."""
    tree = Tree("main")
    tree.add(said(1, prompt="first\nsecond \x1b[31mred\u202e " + "x" * 100))

    (line,) = drawn(tree, "main").splitlines()
    assert line.startswith("  1 first second red⟨U+202E⟩ xxx")
    assert line.endswith("x…  <- main *")


def test_of_a_thousand_runs_the_last_are_drawn():
    """The depth of a conversation is no limit, and how much is left out is said."""
    tree, last = Tree("main"), None
    for number in range(1, 1_501):
        last = said(number, last)
        tree.add(last)

    first, *lines = drawn(tree, "main").splitlines()
    assert first == "  … 1,400 runs above"
    assert [line.split()[0] for line in lines] == [str(number) for number in range(1_401, 1_501)]
