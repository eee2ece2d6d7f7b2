"""One prompt over the rows of a frame, from what the user types to what comes back."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import pytest

from ipy_agent.agent.runs import Quiet
from ipy_agent.agent.tools import TOOLS, tool_of
from ipy_agent.endpoints import Limits
from ipy_agent.errors import (
    AgentError,
    BudgetExceeded,
    Interrupted,
    ResponseFailed,
    UsageError,
)
from ipy_agent.fleet.outcome import FIGURES
from ipy_agent.protocol.items import text
from ipy_agent.sessions import Session
from ipy_agent.trace import Notice, RowsProgress

REFUSED = {"error": {"status": 500, "message": "no luck"}}
BUSY = {"error": {"status": 429, "code": "rate_limit_exceeded", "retry_after": 0.01}}


@dataclass
class Verdict:
    label: Literal["good", "bad"]
    stars: int


class Looking(Quiet):
    """Remembers what it is shown, and stops when it has seen enough."""

    def __init__(self, enough=lambda _: False):
        self.seen = []
        self._enough = enough
        self._stop = None

    def show(self, event):
        self.seen.append(event)
        if self._stop and self._enough(event):
            self._stop()

    @contextlib.contextmanager
    def waiting(self, stop):
        self._stop = stop
        yield

    @property
    def progress(self):
        return [one for one in self.seen if isinstance(one, RowsProgress)]


def asked(transport):
    """Return the prompts that were sent, in order."""
    return [text(request.input.item) for request in transport.requests]


def test_each_row_is_asked_once_and_answered_in_its_place(scripted, frame):
    """The index is the frame's, and the columns are the same for any frame."""
    session, transport = scripted()
    result = session.map(frame, "greet {name}")

    assert result["answer"].to_dict() == {7: "greet ann", 3: "greet bob", 5: "greet cem"}
    assert list(result.columns) == ["answer", *FIGURES]
    assert result["status"].tolist() == ["completed"] * 3
    assert result["error"].isna().all()
    assert (result["latency_ms"] > 0).all()
    assert sorted(asked(transport)) == ["greet ann", "greet bob", "greet cem"]


def test_the_fields_of_a_schema_are_columns_with_dtypes(scripted, frame):
    """Also of a frame that is empty."""
    session, _ = scripted([{"text": '{"label": "good", "stars": 4}'}] * 3)
    result = session.map(frame, "judge {name}", schema=Verdict)
    empty = session.map(frame[:0], "judge {name}", schema=Verdict)

    assert result["label"].tolist() == ["good"] * 3
    assert result["stars"].tolist() == [4] * 3
    assert empty.dtypes.to_dict() == result.dtypes.to_dict()
    assert empty.index.dtype == frame.index.dtype
    assert len(empty) == 0


def test_rows_go_on_from_what_was_said_and_add_nothing_to_it(scripted, frame):
    """The conversation is in each request, and is afterwards what it was."""
    session, transport = scripted([{"text": "noted"}])
    session.run("we like short names")
    said = session.messages
    session.map(frame, "judge {name}")

    for request in transport.requests[1:]:
        assert [text(item) for item in request.input.since(0)][:2] == [
            "we like short names",
            "noted",
        ]
        assert request.shared is not None
        assert request.shared.length == 2
    assert session.messages.equals(said)
    assert len(session.turns) == 1


def test_rows_have_no_tools_unless_they_are_named(scripted, frame):
    """And instructions of their own, unless the user set some."""
    session, transport = scripted()
    session.map(frame, "greet {name}")
    session.instructions = "be rude"
    session.map(frame, "greet {name}!")

    first, last = transport.requests[0].fields.values, transport.requests[-1].fields.values
    assert "tools" not in first
    assert first["instructions"] != last["instructions"] == "be rude"


def test_a_row_may_call_tools_on_the_callers_thread(scripted, frame):
    """Each row has its own call answered, also where all make the same one."""
    calls = []

    def size(of: str) -> int:
        """Return a size."""
        calls.append((of, os.getpid()))
        return len(of)

    TOOLS["size"] = tool_of(size, read_only=True)
    try:
        call = {"tool_calls": [{"name": "size", "arguments": {"of": "same"}}]}
        session, _ = scripted([call] * 3 + [{"text": "done"}] * 3)
        result = session.map(frame, "measure {name}", tools=["size"])
    finally:
        del TOOLS["size"]

    assert result["answer"].tolist() == ["done"] * 3
    assert calls == [("same", os.getpid())] * 3


def test_asked_again_only_rows_that_failed_or_changed_are_asked(scripted, frame):
    """What is there is brought back with its figures."""
    session, transport = scripted([{"text": "a"}, REFUSED, {"text": "c"}])
    first = session.map(frame, "greet {name}", concurrency=1)
    frame.loc[5, "name"] = "cleo"
    second = session.map(frame, "greet {name}", concurrency=1)
    third = session.map(frame, "greet {name}")

    assert first["status"].tolist() == ["completed", "failed", "completed"]
    assert first["error"].tolist()[1].startswith("no luck")
    assert asked(transport)[3:] == ["greet bob", "greet cleo"]
    assert second["answer"].tolist() == ["a", "greet bob", "greet cleo"]
    assert third.equals(second)


@pytest.mark.parametrize("change", [{"model": "other"}, {"schema": str}, {"fresh": True}])
def test_another_question_is_asked_anew(scripted, frame, change):
    """Another model or schema is another question; `fresh` asks all."""
    session, transport = scripted([{"text": '{"value": "x"}'}] * 6)
    session.map(frame, "greet {name}")
    session.map(frame, "greet {name}", **change)

    assert len(transport.requests) == 6


def test_another_conversation_is_another_question(scripted, frame):
    """What was said before is a part of it."""
    session, transport = scripted()
    session.map(frame, "greet {name}")
    session.run("hello")
    session.map(frame, "greet {name}")

    assert len(transport.requests) == 3 + 1 + 3


def test_another_session_of_a_kept_conversation_finds_what_is_there(scripted, frame):
    """The store is on disk where journals are; without a journal it is the session's own."""
    for journal, count in ((True, 0), (False, 3)):
        one, _ = scripted(journal=journal)
        one.map(frame, f"greet {{name}} {journal}")
        other, transport = scripted(journal=journal)
        other.map(frame, f"greet {{name}} {journal}")

        assert len(transport.requests) == count


def test_rows_that_ask_the_same_are_asked_once(scripted):
    """Both get the answer, also where the index has a label twice."""
    frame = pd.DataFrame({"name": ["ann", "ann", "bob"]}, index=["x", "x", "y"])
    session, transport = scripted()
    result = session.map(frame, "greet {name}")

    assert len(transport.requests) == 2
    assert result["answer"].tolist() == ["greet ann", "greet ann", "greet bob"]
    assert list(result.index) == ["x", "x", "y"]


def test_a_row_that_misses_a_value_is_not_asked(scripted):
    """It says so itself, and the others are answered."""
    frame = pd.DataFrame({"name": ["ann", None, "bob", float("nan")]})
    session, transport = scripted()
    result = session.map(frame, "greet {name}")

    assert result["status"].tolist() == ["completed", "failed"] * 2
    assert result["error"].tolist()[1] == "not asked: there is no value in column 'name'"
    assert len(transport.requests) == 2


def test_a_row_with_a_key_in_it_is_not_asked(scripted):
    """As a prompt with one would not be."""
    frame = pd.DataFrame({"name": ["ann", "sk-" + "aB3" * 15]})
    session, transport = scripted()
    result = session.map(frame, "greet {name}")

    assert result["status"].tolist() == ["completed", "failed"]
    assert asked(transport) == ["greet ann"]


def test_a_value_that_cannot_be_told_is_its_rows_failure(scripted):
    """Whatever a user's object raises."""

    class Broken:
        def __str__(self):
            raise RuntimeError("broken")

    session, _ = scripted()
    result = session.map(pd.DataFrame({"name": [Broken(), "bob"]}), "greet {name}")

    assert result["status"].tolist() == ["failed", "completed"]
    assert "broken" in result["error"].tolist()[0]


def test_an_endpoint_that_fails_half_of_the_rows_delivers_the_other_half(scripted):
    """And no row is asked twice."""
    frame = pd.DataFrame({"n": range(40)})
    session, transport = scripted([REFUSED, {"text": "fine"}] * 20)
    result = session.map(frame, "row {n}")

    assert result["status"].value_counts().to_dict() == {"failed": 20, "completed": 20}
    assert len(set(asked(transport))) == len(transport.requests) == 40
    assert result["input_tokens"].isna().sum() == 20


def test_an_answer_that_does_not_fit_twice_is_its_rows_failure(scripted, frame):
    """A second try is what any run has."""
    fits, misfits = {"text": '{"label": "bad", "stars": 1}'}, {"text": "well"}
    session, _ = scripted([misfits, misfits, fits, misfits, fits])
    result = session.map(frame, "judge {name}", schema=Verdict, concurrency=1)

    assert result["status"].tolist() == ["failed", "completed", "completed"]
    assert result["label"].isna().tolist() == [True, False, False]
    assert "does not fit the schema" in result["error"].tolist()[0]


def test_a_busy_endpoint_is_asked_again_and_fewer_at_a_time(served):
    """Of rows that were refused for lack of room none is lost."""
    frame = pd.DataFrame({"n": range(12)})
    with contextlib.closing(Session(served([BUSY] * 6))) as session:
        result = session.map(frame, "row {n}", concurrency=8)

    assert result["answer"].tolist() == [f"row {n}" for n in range(12)]


def test_a_refusal_without_a_time_is_asked_again_too(scripted, frame):
    """After a pause of ours: it was not answered, since there was no room."""
    busy = {"error": {"status": 429, "code": "rate_limit_exceeded"}}
    session, transport = scripted([busy])
    result = session.map(frame, "greet {name}", concurrency=1)

    assert result["status"].tolist() == ["completed"] * 3
    assert asked(transport) == ["greet ann", "greet ann", "greet bob", "greet cem"]


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        ({"status": 401, "message": "who are you"}, AgentError),
        ({"status": 404, "code": "model_not_found", "message": "no such model"}, ResponseFailed),
    ],
)
def test_what_no_row_can_get_past_ends_all(scripted, failure, kind):
    """The first refusal is the last: what was done by then is the error's `result`."""
    frame = pd.DataFrame({"n": range(500)})
    session, transport = scripted([{"text": "fine"}, {"error": failure}] + [{"error": failure}] * 9)
    with pytest.raises(kind) as caught:
        session.map(frame, "row {n}", concurrency=1)

    assert len(transport.requests) == 2
    assert caught.value.result["answer"].tolist() == ["fine"]


def test_an_interrupt_keeps_what_is_done_and_the_rest_is_asked_later(served):
    """The rows that were answered are the error's `result`, and are not asked again."""
    endpoint = served([{"text": f"a{n}", "delay_ms": 10} for n in range(400)])
    frame = pd.DataFrame({"n": range(200)})
    front = Looking(lambda it: isinstance(it, RowsProgress) and it.done >= 5)
    with contextlib.closing(Session(endpoint)) as session:
        with pytest.raises(Interrupted) as caught:
            session.map(frame, "row {n}", concurrency=4, front=front)
        done = caught.value.result
        again = Looking()
        rest = session.map(frame, "row {n}", front=again)

    assert 5 <= len(done) < 200
    assert front.progress[-1].done == len(done)
    assert (done["status"] == "completed").all()
    assert again.progress[-1].held >= len(done)
    assert rest["answer"].loc[done.index].equals(done["answer"])
    assert rest["status"].tolist() == ["completed"] * 200


def test_an_answer_is_written_and_told_of_while_others_take_long(served):
    """Nobody waits with it for the next one: a process may be killed."""
    endpoint = served([{"text": "quick"}, {"text": "slow", "then": "hang"}])
    front = Looking(lambda it: isinstance(it, RowsProgress) and it.done == 1)
    with contextlib.closing(Session(endpoint)) as session, pytest.raises(Interrupted) as caught:
        session.map(pd.DataFrame({"n": [1, 2]}), "row {n}", concurrency=2, front=front)

    assert caught.value.result["answer"].tolist() == ["quick"]


def test_a_budget_ends_a_map_between_rows(scripted):
    """What it took counts for the session, and what was answered is there."""
    frame = pd.DataFrame({"n": range(50)})
    session, transport = scripted(budget_tokens=20)
    with pytest.raises(BudgetExceeded) as caught:
        session.map(frame, "row {n}", concurrency=1)

    assert len(transport.requests) == len(caught.value.result) == 5  # of 4 words each
    assert session.used().tokens == 20
    assert session.used().turns == 5
    session.session_tokens = 20
    with pytest.raises(BudgetExceeded, match="session_tokens"):
        session.run("more")


def test_a_result_may_be_written_to_a_file(scripted, tmp_path):
    """It reads as the frame that would have come."""
    frame = pd.DataFrame({"n": range(2_500)}, index=pd.RangeIndex(5, 2_505))
    session, _ = scripted()
    path = session.map(frame, "row {n}", out=tmp_path / "rows.parquet")
    there = session.map(frame, "row {n}")

    pd.testing.assert_frame_equal(pd.read_parquet(path), there, check_index_type=False)


FULL = """
import sys
import pandas as pd
from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import AgentError
from ipy_agent.sessions import Session
from ipy_agent.transport.scripted import ScriptedTransport

transport = ScriptedTransport()
session = Session(Endpoint(name="x", url="http://x/v1"), transport=transport)
frame, template = pd.DataFrame({"n": range(9_000)}), "row {n} " + "x" * 300
try:
    session.map(frame, template, out=sys.argv[1])
except AgentError as error:
    asked = len(transport.requests)
    result = session.map(frame, template)
    print(asked, len(transport.requests), (result["status"] == "completed").all(), error.line)
session.close()
"""
SMALL = 'mount -t tmpfs -o size=16k none "$0" && exec "$@"'


def test_a_full_disk_ends_a_map_and_loses_nothing(tmp_path):
    """The answers are kept elsewhere: run again, only the rest is asked."""
    space = ["unshare", "--mount", "sh", "-c", SMALL, tmp_path]
    if shutil.which("unshare") is None or subprocess.run([*space, "true"], check=False).returncode:
        pytest.skip("only root may mount a file system, and not everywhere")
    command = [*space, sys.executable, "-c", FULL, tmp_path / "rows.parquet"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    asked, all_asked, completed, told = out.split(maxsplit=3)

    assert 1_000 <= int(asked) < 9_000
    assert (all_asked, completed) == ("9000", "True")
    assert "cannot write" in told


def test_progress_is_told_up_to_the_last_row(scripted):
    """And how much of it was there before."""
    frame = pd.DataFrame({"n": [*range(30), None]})
    session, _ = scripted()
    session.map(frame[:10], "row {n}")
    front = Looking()
    session.map(frame, "row {n}", front=front)

    first, last = front.progress[0], front.progress[-1]
    assert (first.rows, first.done) == (31, 0)
    assert (last.rows, last.done, last.failed, last.held) == (31, 31, 1, 10)
    assert last.output_tokens == 2 * 20


@pytest.mark.parametrize(
    ("template", "options", "told"),
    [
        ("greet {nome}", {}, "there is no column 'nome'; did you mean 'name'"),
        ("greet", {}, "every row would ask the same"),
        ("", {}, "the prompt is empty"),
        ("greet {name}", {"concurrency": 0}, "concurrency is a number from 1 to 256"),
        ("greet {name}", {"concurrency": 257}, "concurrency is a number from 1 to 256"),
        ("greet {name}", {"out": "x.csv"}, "parquet alone"),
        ("greet {name}", {"branch": "nope"}, "there is no branch 'nope'"),
        ("greet {name}", {"tools": ["none"]}, "there is no tool 'none'"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_sent(
    scripted, frame, template, options, told
):
    """In one line."""
    session, transport = scripted()
    with pytest.raises(AgentError, match=told):
        session.map(frame, template, **options)

    assert transport.requests == []


def test_no_frame_is_told_so(scripted):
    """A column alone has no names to put in."""
    session, _ = scripted()
    with pytest.raises(UsageError, match="to_frame"):
        session.map(pd.Series(["a"], name="x"), "greet {x}")


def test_rows_are_sent_short_and_answered_from_the_cache(served):
    """What all of them share is sent once, and counts as cached."""
    endpoint = served(cache="latest")
    frame = pd.DataFrame({"n": range(60)})
    with contextlib.closing(Session(endpoint)) as session:
        session.run("these words are what all rows have in common")
        result = session.map(frame, "row {n}", concurrency=8)

    assert result["answer"].tolist() == [f"row {n}" for n in range(60)]
    assert (result["cached_tokens"] >= 18).all()


def test_a_notice_tells_when_rows_are_not_kept(scripted, frame, monkeypatch, tmp_path):
    """The rows are answered all the same."""
    (tmp_path / "ipy-agent").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    session, _ = scripted()
    session._planner.settings = session.settings.replace(journal=True)
    front = Looking()
    result = session.map(frame, "greet {name}", front=front)

    assert (result["status"] == "completed").all()
    assert [one.lasting for one in front.seen if isinstance(one, Notice)] == [True]


def test_lanes_are_as_many_as_suit_the_endpoint(scripted):
    """By default; a frame of a few rows has no more than rows."""
    seen = set()
    session, transport = scripted()
    session.map(pd.DataFrame({"n": range(100)}), "row {n}")
    seen = {request.stream_id for request in transport.requests}

    assert seen <= {f"each.{n}" for n in range(1, Limits().in_flight + 1)}
    assert len(seen) > 1
