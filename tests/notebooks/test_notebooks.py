"""What the notebooks tell holds where they are executed: on the default model, on this machine.

The model's words are its own; what is looked at is what the notebooks claim about everything else.
"""

from __future__ import annotations

import itertools
import re

import pytest

pytestmark = [pytest.mark.notebooks, pytest.mark.timeout(900)]

NAMES = (
    *("tools_and_approvals", "latency_and_cache", "branches_and_reruns"),
    *("frames_and_plots", "local_server", "many_rows"),
)
FOUND = 0.9


def rate(turn):
    return turn["cached_tokens"] / turn["input_tokens"]


@pytest.mark.parametrize("name", NAMES)
def test_each_runs_to_its_end(executed, name):
    """No cell shows an error, and no turn failed."""
    notebook = executed(name)

    kinds = [o.output_type for c in notebook.cells.values() for o in c.get("outputs", ())]
    assert kinds
    assert "error" not in kinds
    assert {turn["status"] for turn in notebook.tables["turns"]} <= {"completed"}


def test_a_tool_that_nobody_allowed_did_not_run(executed):
    """The cell says how to allow it, the note is not there, and the row has no duration."""
    notebook = executed("tools_and_approvals")

    told = "write_note was not run: nobody can be asked here. To allow it: %agent allow write_note"
    assert told in notebook.said("ask-note")
    assert notebook.said("after-refusal") == "[]"
    refused = [call for call in notebook.tables["tools"] if call["status"] == "refused"]
    assert {call["name"] for call in refused} == {"write_note"}
    assert {call["duration_ms"] for call in refused} == {None}


def test_a_tool_that_was_allowed_once_ran_once(executed):
    """By the allowance; then it is used up, and of what was asked in mode read nothing ran."""
    notebook = executed("tools_and_approvals")

    calls = [call for call in notebook.tables["tools"] if call["name"] == "write_note"]
    ran = [call["approval"] for call in calls if call["status"] == "completed"]
    assert ran == ["allowed", "auto"]
    assert "rings" not in notebook.said("after-modes")
    assert "no tool is allowed" in notebook.said("after-allowed")


def test_tools_of_each_kind_were_called(executed):
    """A plain one, a coroutine, and one that takes a text; all gave what pandas gives."""
    calls = executed("tools_and_approvals").tables["tools"]

    output = {call["name"]: call["output"] for call in calls if call["status"] == "completed"}
    assert output["count_penguins"] == "124"
    assert output["look_up_islands"] == '["Biscoe","Dream","Torgersen"]'
    assert "5076.0" in output["sql"]


def test_what_a_model_gets_wrong_is_told_to_it_and_a_run_without_end_is_ended(executed):
    """Bad arguments and an unknown tool run nothing; a limit of three turns is three turns."""
    notebook = executed("tools_and_approvals")

    assert "Invalid enum value 'Emperor'" in notebook.said("scripted")
    assert "there is no tool 'count_puffins'" in notebook.said("scripted")
    assert "the run took 3 turns" in notebook.said("runaway")
    assert notebook.said("runaway").endswith("3 turns, 3 calls\n")


def test_one_socket_holds_what_http_sends_again(executed):
    """The same questions: what is sent differs, what is cached hardly."""
    turns = executed("latency_and_cache").tables["turns"]
    websocket, http = turns[2:6], turns[6:10]

    assert {turn["transport"] for turn in websocket} == {"websocket"}
    assert {turn["transport"] for turn in http} == {"http"}
    assert [turn["held_items"] for turn in websocket] == [0, 2, 4, 6]
    assert [turn["held_items"] for turn in http] == [0, 0, 0, 0]
    assert all(turn["sent_bytes"] < turn["full_bytes"] for turn in websocket[1:])
    assert all(turn["sent_bytes"] == turn["full_bytes"] for turn in http)
    assert all(rate(turn) > FOUND for turn in (*websocket[1:], *http[1:]))


def test_state_and_cache_are_lost_one_by_one(executed):
    """A lost connection costs what was held, new first words cost what was cached."""
    turns = executed("latency_and_cache").tables["turns"]
    first, reconnected, changed, warmed = turns[10:]

    assert (rate(first) < 0.1, rate(changed) < 0.1) == (True, True)
    assert (reconnected["held_items"], reconnected["reused"]) == (0, False)
    assert rate(reconnected) > FOUND
    assert rate(warmed) > FOUND


def test_a_rehearsal_sends_nothing_and_a_plot_is_a_picture(executed):
    """The turns around the dry run follow each other."""
    notebook = executed("latency_and_cache")

    assert "would send 1 of 5 items" in notebook.said("dry-run")
    assert notebook.tables["turns"][2]["cell"] == 3
    assert "image/png" in notebook.kinds("plot")


def test_running_all_twice_doubles_nothing(executed):
    """What is said has as many items the second time, and there was a first time to replace."""
    notebook = executed("branches_and_reruns")

    first, second = notebook.said("run-all").split("\n")[:2]
    assert first.split()[:3] == second.split()[:3] == ["said", "6", "items,"]
    standing = [cell["standing"] for cell in notebook.tables["cells"]]
    assert standing[:8] == ["replaced"] * 8
    assert standing[8:] == ["live", "live", "live", "live", "undone"]


def test_a_rerun_makes_stale_what_was_built_on_it(executed):
    """Until that runs again itself."""
    notebook = executed("branches_and_reruns")

    words = ("live", "replaced", "stale")
    edited, again = notebook.said("edited").split(), notebook.said("door-again").split()
    assert [edited.count(word) for word in words] == [1, 1, 2]
    assert [again.count(word) for word in words] == [2, 2, 1]


def test_branches_send_only_what_is_new(executed):
    """A branch goes on from what is held, also from earlier; a stored answer asks nobody."""
    notebook = executed("branches_and_reruns")
    winter, early = notebook.tables["turns"][-2:]

    assert (winter["branch"], winter["held_items"], winter["sent_items"]) == ("winter", 6, 1)
    assert winter["cached_tokens"] > 0
    assert (early["branch"], early["held_items"], early["sent_items"]) == ("early", 2, 1)
    assert notebook.said("replay").endswith("0 turns\n")


def test_from_the_second_turn_on_tokens_come_from_the_cache(executed):
    """All that the turn before had read and said, but for its last token at most."""
    turns = executed("frames_and_plots").tables["turns"]

    assert len(turns) > 3
    for before, turn in itertools.pairwise(turns):
        assert turn["cached_tokens"] >= before["input_tokens"] + before["output_tokens"] - 1


def test_figures_tables_and_files_are_there(executed):
    """The model's figure in its cell, ours, the panel, and exports that are what they were."""
    notebook = executed("frames_and_plots")

    assert "image/png" in notebook.kinds("question-figure")
    assert "image/png" in notebook.kinds("plot")
    assert "text/html" in notebook.kinds("panel")
    assert notebook.said("read-back").startswith("True ")
    assert " 0 scripts" in notebook.said("page")
    names = {file.name for file in notebook.folder.iterdir()}
    assert {"turns.parquet", "messages.parquet", "session.html"} <= names


def test_the_server_serves_others_and_ends(executed):
    """It wants its token, holds a conversation, refuses by name, and leaves with code 0."""
    notebook = executed("local_server")

    assert "{'status': 'ok'}" in notebook.said("health")
    assert "without the token: 401" in notebook.said("health")
    assert not notebook.said("socket").splitlines()[1].endswith(" 0 cached")
    assert "previous_response_not_found" in notebook.said("wrong")
    assert notebook.said("stop") == "exit code 0\nnobody listens there\n"


def test_most_rows_get_the_kind_that_their_label_has(executed):
    """Far more than by chance, which is an eighth."""
    told = re.match(r"(\d+) of 40 right", executed("many_rows").said("accuracy"))

    assert int(told[1]) > 20


def test_what_rows_share_is_read_once(executed):
    """It comes from the cache, and a server that keeps nothing gives the same answers."""
    notebook = executed("many_rows")

    forked, whole = (line.split()[-1] for line in notebook.said("beside").splitlines()[-2:])
    assert (float(forked) > FOUND, float(whole)) == (True, 0)
    assert notebook.said("whole").endswith("the same answers: True\n")


def test_rows_that_were_answered_are_not_asked_again(executed):
    """All is as it was, also the times; and a cell gives what the function gives."""
    notebook = executed("many_rows")

    assert notebook.said("again").endswith("the same frame: True\n")
    assert notebook.said("by-cell") == "True"


def test_a_row_that_fails_says_why_and_takes_no_other_with_it(executed):
    """One had nothing to ask and one too much; the third is answered."""
    said = executed("many_rows").said("failing")

    assert "there is no value in column 'definition'" in said
    assert "the context window" in said
    assert [line.split()[-1] for line in said.splitlines()[-3:]] == [
        "failed",
        "failed",
        "completed",
    ]
