"""Whatever columns, labels and values a frame has, its rows are asked or say why not."""

from __future__ import annotations

import contextlib
import dataclasses

import pandas as pd
import pyarrow as pa
import pytest

from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import ConnectionFailed, UsageError
from ipy_agent.sessions import Session

MISSING = "not asked: there is no value in column 'c'"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (pd.Categorical(["a", None]), "a"),
        (pd.to_datetime(["2020-01-02", None]), "2020-01-02 00:00:00"),
        (pd.to_datetime(["2020-01-02", None]).tz_localize("UTC"), "2020-01-02 00:00:00+00:00"),
        (pd.to_timedelta(["1h", None]), "0 days 01:00:00"),
        (pd.PeriodIndex(["2020-05", None], freq="M"), "2020-05"),
        (pd.array([1, None], dtype="Int64"), "1"),
        (pd.array([True, None], dtype="boolean"), "True"),
        (pd.array(["s", None], dtype="string"), "s"),
        (pd.array([1.5, None], dtype="double[pyarrow]"), "1.5"),
        (pd.array([[1, 2], None], dtype=pd.ArrowDtype(pa.list_(pa.int64()))), "[1, 2]"),
        (pd.Series(["é\ud800", None], dtype=object), "é?"),
        (pd.Series([b"by", None], dtype=object), "b'by'"),
    ],
)
def test_a_value_of_any_dtype_is_put_in_as_it_is_written(scripted, values, told):
    """And what is missing is no text, whichever way a dtype says so."""
    session, transport = scripted()
    result = session.map(pd.DataFrame({"c": values}), "x {c}")

    assert result["answer"].tolist()[0] == f"x {told}"
    assert result["error"].tolist()[1] == MISSING
    assert len(transport.requests) == 1


@pytest.mark.parametrize("label", [0, True, None, 1.5, ("p", "q")])
def test_a_column_is_named_as_its_label_is_written(scripted, label):
    """Labels need not be texts."""
    frame = pd.DataFrame([["a"]], columns=pd.Index([label], tupleize_cols=False, dtype=object))
    session, _ = scripted()

    assert session.map(frame, f"x {{{label}}}")["answer"].tolist() == ["x a"]


def test_columns_of_several_levels_are_named_as_tuples(scripted):
    """As pandas writes their labels."""
    columns = pd.MultiIndex.from_tuples([("b", "x"), ("a", "x"), ("b", "y")])
    session, _ = scripted()
    result = session.map(pd.DataFrame([[1, 2, 3]], columns=columns), "{('b', 'y')} {('a', 'x')}")

    assert result["answer"].tolist() == ["3 2"]


def test_a_frame_without_columns_has_nothing_to_ask(scripted):
    """It is told so, whether it has rows or not."""
    session, _ = scripted()
    for frame in (pd.DataFrame(), pd.DataFrame(index=range(3))):
        with pytest.raises(UsageError, match="There are none"):
            session.map(frame, "x {name}")


@pytest.mark.parametrize(
    "index",
    [
        pd.MultiIndex.from_product([["a", "b"], [1, 1]], names=["p", "q"]),
        pd.CategoricalIndex(list("abca")),
        pd.date_range("2020", periods=4, tz="UTC", name="at"),
        pd.interval_range(0, 4),
        pd.Index([1.5, None, 2, 2]),
    ],
    ids=lambda index: type(index).__name__,
)
def test_the_index_comes_back_as_it_was(scripted, tmp_path, index):
    """In memory and in a file."""
    frame = pd.DataFrame({"n": range(4)}, index=index)
    session, _ = scripted()
    result = session.map(frame, "x {n}")
    path = session.map(frame, "x {n}", out=tmp_path / "rows.parquet")

    for there in (result, pd.read_parquet(path)):
        assert there.index.equals(index)
        assert there.index.names == index.names


def test_one_huge_cell_is_a_row_like_any_other(served):
    """Over a real connection, with the answer as long."""
    huge = "word " * 200_000 + "end"
    with contextlib.closing(Session(served(), journal=False)) as session:
        result = session.map(pd.DataFrame({"c": [huge, "small"]}), "{c}")

    assert result["answer"].tolist() == [huge, "small"]


def test_a_row_over_the_context_window_fails_alone(served):
    """With what the endpoint says of it, and it is asked once."""
    refused = {
        "error": {"status": 400, "code": "context_length_exceeded", "message": "too many tokens"}
    }
    endpoint = served([{"text": "a"}, refused])
    with contextlib.closing(Session(endpoint, journal=False)) as session:
        result = session.map(pd.DataFrame({"n": range(4)}), "row {n}", concurrency=1)

        assert session.used().turns == 4
    assert result["status"].tolist() == ["completed", "failed", "completed", "completed"]
    assert "too many tokens" in result["error"].tolist()[1]


@pytest.mark.parametrize("settings", [{"store": True}, {"transport": "http"}])
def test_rows_go_over_any_way(served, settings):
    """Stored on the other side or not, over WebSocket or HTTP, after a conversation or without."""
    frame = pd.DataFrame({"n": range(60)})
    with contextlib.closing(Session(served(), journal=False, **settings)) as session:
        first = session.map(frame, "one {n}", concurrency=20)
        session.run("what all rows have in common")
        second = session.map(frame, "two {n}", concurrency=20)

    assert first["answer"].tolist() == [f"one {n}" for n in range(60)]
    assert second["answer"].tolist() == [f"two {n}" for n in range(60)]


def test_an_endpoint_without_websocket_is_asked_over_http(served):
    """As its row says."""
    endpoint = dataclasses.replace(served(), websocket=False)
    with contextlib.closing(Session(endpoint, journal=False)) as session:
        result = session.map(pd.DataFrame({"n": range(30)}), "row {n}")

    assert result["answer"].tolist() == [f"row {n}" for n in range(30)]


def test_an_endpoint_and_a_model_may_be_a_maps_alone(scripted, served):
    """The session's own stay what they are."""
    session, transport = scripted()
    result = session.map(pd.DataFrame({"n": range(3)}), "row {n}", endpoint=served(), model="m")

    assert result["answer"].tolist() == [f"row {n}" for n in range(3)]
    assert transport.requests == []
    assert (session.endpoint.name, session.model) == ("x", None)


def test_an_endpoint_that_is_not_there_ends_all_at_once(unused_port):
    """No row can get past that; what was done is an empty result of the same columns."""
    endpoint = Endpoint.named(f"http://127.0.0.1:{unused_port}/v1")
    session = Session(endpoint, journal=False)
    with contextlib.closing(session), pytest.raises(ConnectionFailed) as caught:
        session.map(pd.DataFrame({"n": range(300)}), "row {n}")

    assert len(caught.value.result) == 0
    assert "answer" in caught.value.result
