"""Cells that run again in a real kernel, named as JupyterLab names them."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.kernel

ASKED = (
    "from ipy_agent.protocol.items import text\n"
    "[text(i) for i in __import__('ipy_agent').session()._branches.tree.said('main')]"
)


@pytest.fixture
def notebook(kernel, serve):
    """A kernel with a conversation of its own, against a server that echoes."""
    kernel.run(serve())
    kernel.run("%agent reset")
    kernel.run("%agent context off")
    yield kernel
    kernel.run("%agent replay off")


def test_run_all_twice_gives_the_same_conversation(notebook):
    """The front end names the cells: the second time each takes the place of the first."""
    for _ in range(2):
        for name in ("one", "two"):
            notebook.run(f"%%agent\n{name}", cell_id=f"id-{name}")

    assert notebook.run(ASKED).value == "['one', 'one', 'two', 'two']"
    standing = notebook.run(
        "c = %agent cells\nprint(c[['cell_id', 'standing']].tail(4).to_numpy().tolist())"
    )
    assert standing.stdout.strip() == (
        "[['id-one', 'replaced'], ['id-two', 'replaced'], ['id-one', 'live'], ['id-two', 'live']]"
    )


def test_an_edited_cell_leaves_out_what_came_behind(notebook):
    """Until it runs again too."""
    for name in ("one", "two", "three"):
        notebook.run(f"%%agent\n{name}", cell_id=name)
    notebook.run("%%agent\ntwo, better", cell_id="two")
    assert notebook.run(ASKED).value == "['one', 'one', 'two, better', 'two, better']"

    notebook.run("%%agent\nthree", cell_id="three")
    assert notebook.run(ASKED).value.endswith("'two, better', 'three', 'three']")


def test_without_a_name_a_cell_appends(notebook):
    """As under nbclient, where no front end tells one."""
    for _ in range(2):
        notebook.run("%%agent\nagain")

    assert notebook.run(ASKED).value == "['again', 'again', 'again', 'again']"


def test_a_cell_may_append_on_purpose(notebook):
    """With `--append`."""
    notebook.run("%%agent\none", cell_id="a")
    notebook.run("%%agent --append\ntwo", cell_id="a")

    assert notebook.run(ASKED).value == "['one', 'one', 'two', 'two']"


def test_a_cell_that_asks_in_a_loop_asks_each_time_once(notebook):
    """Each round has a place of its own, and gives way to the same round of the next run."""
    loop = (
        "for word in ('one', 'two'):\n    get_ipython().run_cell_magic('agent', '', word + mark)\n"
    )
    for mark in ("", "!"):
        notebook.run(f"mark = {mark!r}\n{loop}", cell_id="loop")

    assert notebook.run(ASKED).value == "['one!', 'one!', 'two!', 'two!']"


def test_undo_and_the_tree(notebook):
    """What is taken back is told, and the picture shows it."""
    notebook.run("%%agent\none", cell_id="a")
    notebook.run("%%agent -b idea\ntwo", cell_id="b")
    notebook.run("%agent branch idea")
    undone = notebook.run("%agent undo")
    tree = notebook.run("%agent branch")
    notebook.run("%agent branch main")

    assert "took back run" in undone.stdout
    assert "'two'; variables stay as they are" in undone.stdout
    assert "two  undone" in tree.stdout
    assert "one  <- main  <- idea *" in tree.stdout


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("%agent branch nope", "UsageError: there is no branch 'nope': there are main"),
        ("%agent undo", "UsageError: nothing ran on branch 'main'"),
        ("%agent fork main", "UsageError: there is a branch 'main'"),
    ],
)
def test_what_cannot_be_is_one_line(notebook, line, said):
    """No traceback of ours."""
    cell = notebook.run(line)

    assert cell.error.startswith(said)
    assert len(cell.error.splitlines()) == 1


def test_a_cell_whose_past_was_reset_says_so(notebook):
    """In the cell, and in the saved notebook."""
    notebook.run("%%agent\none", cell_id="a")
    notebook.run("%agent reset")
    cell = notebook.run("%%agent\none", cell_id="a")

    assert cell.status == "ok"
    assert "what this cell followed was reset" in cell.displays[0]["text/plain"]


def test_a_stored_answer_is_marked(notebook):
    """Nothing is asked, and the cell shows what it showed."""
    notebook.run("%agent replay on")
    first = notebook.run("%%agent -o said\none", cell_id="a")
    again = notebook.run("%%agent -o said\none", cell_id="a")
    turns = notebook.run("t = %agent turns\nprint((t['cell'] == t['cell'].max()).sum(), said)")

    assert "stored answer" not in first.displays[0]["text/plain"]
    assert "stored answer of run" in again.displays[0]["text/plain"]
    assert "one" in again.displays[0]["text/plain"]
    assert turns.stdout.strip() == "1 one"


def test_an_agent_within_a_tool_is_refused(notebook, serve):
    """The model is told in one line, and the outer cell goes on."""
    nested = "get_ipython().run_cell_magic('agent', '', 'inner')"
    call = {"tool_calls": [{"name": "python", "arguments": {"code": nested}}]}
    notebook.run(serve(call, {"text": "done"}))
    cell = notebook.run("%%agent --mode auto\nouter", cell_id="a")

    assert cell.status == "ok"
    assert "cannot be asked from within a tool" in cell.displays[0]["text/plain"]
