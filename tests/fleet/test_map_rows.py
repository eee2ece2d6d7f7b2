"""What may be in the rows of a map, and around them."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import pytest

from ipy_agent.errors import AgentError, UsageError
from ipy_agent.protocol.items import text


def asked(transport):
    """Return the prompts that were sent, in order."""
    return [text(request.input.item) for request in transport.requests]


@pytest.mark.parametrize("concurrency", [1, 2, 16])
@pytest.mark.parametrize("fresh", [False, True])
def test_rows_that_ask_the_same_are_asked_once_however_far_apart(scripted, concurrency, fresh):
    """Also where the first is over before the next one's turn, and was not when that was read."""
    frame = pd.DataFrame({"name": ["ann", "bob"] * 150})
    session, transport = scripted()
    result = session.map(frame, "greet {name}", concurrency=concurrency, fresh=fresh)

    assert sorted(asked(transport)) == ["greet ann", "greet bob"]
    assert result["answer"].tolist() == ["greet ann", "greet bob"] * 150


def test_rows_that_ask_what_failed_fail_with_it(scripted):
    """A failure is no reason to ask again, by whichever row."""
    refused = {"error": {"status": 500, "message": "no luck"}}
    session, transport = scripted([refused])
    result = session.map(pd.DataFrame({"n": [1, 1, 2]}), "row {n}", concurrency=1)

    assert asked(transport) == ["row 1", "row 2"]
    assert result["status"].tolist() == ["failed", "failed", "completed"]


@dataclass
class Taken:
    status: str


def test_a_field_that_is_called_like_a_figure_is_told_before_anything_is_asked(scripted):
    """There would be no column for it, once all is paid for."""
    session, transport = scripted()
    with pytest.raises(UsageError, match="the field 'status' is called like a column"):
        session.map(pd.DataFrame({"n": range(3)}), "row {n}", schema=Taken)

    assert transport.requests == []


@pytest.mark.parametrize(
    "labels", [["a", *range(1_499)], [*range(1_499), "a"], ["a", "\ud800", *range(1_498)]]
)
def test_an_index_that_parquet_has_no_form_for_is_told_in_one_line(scripted, tmp_path, labels):
    """Nothing is left beside the file, and the answers are there for another one."""
    frame = pd.DataFrame({"n": range(1_500)}, index=pd.Index(labels, dtype=object))
    session, transport = scripted()
    with pytest.raises(AgentError, match="parquet has no form for its index"):
        session.map(frame, "row {n}", out=tmp_path / "rows.parquet")
    result = session.map(frame, "row {n}")

    assert list(tmp_path.iterdir()) == []
    assert list(result.index) == labels
    assert len(transport.requests) == 1_500


class Watching(list):
    """The prompts that are sent; at one of them something happens."""

    def __init__(self, at, do):
        super().__init__()
        self._at, self._do = at, do

    def append(self, request):
        super().append(request)
        if len(self) == self._at:
            self._do()


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame.pop("n"),
        lambda frame: frame.drop(frame.index[600:], inplace=True),  # noqa: PD002 (it is what is tested)
        lambda frame: frame.__setitem__("n", "other"),
        lambda frame: frame.__setattr__("index", range(5_000, 6_000)),
    ],
)
@pytest.mark.filterwarnings("ignore:The inplace keyword")
def test_a_frame_that_is_changed_meanwhile_is_asked_as_it_was(scripted, change):
    """Another thread may have it: the map is over what it was given."""
    frame = pd.DataFrame({"n": range(1_000)})
    session, transport = scripted()
    transport.requests = Watching(100, lambda: change(frame))
    result = session.map(frame, "row {n}")

    assert result["answer"].tolist() == [f"row {n}" for n in range(1_000)]
    assert list(result.index) == list(range(1_000))
