"""`%%agent --each` in an IPython shell of this process, over a scripted transport."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import signal
from pathlib import Path

import dask.dataframe as dd
import pandas as pd
import pyarrow as pa
import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from ipy_agent import sessions
from ipy_agent.agent.runs import Quiet
from ipy_agent.agent.tools import TOOLS
from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import Interrupted, ResponseFailed, UsageError
from ipy_agent.fleet import FRONTS
from ipy_agent.fleet.maps import INSTRUCTIONS
from ipy_agent.protocol.items import text
from ipy_agent.sessions import Session
from ipy_agent.settings import CONFIGURED
from ipy_agent.transport.scripted import ScriptedTransport

HERE = dataclasses.replace(Endpoint.named("http://127.0.0.1:9/v1"), context="off")
FIGURES = [
    *("status", "error", "latency_ms", "input_tokens", "cached_tokens", "output_tokens"),
    "cost_usd",
]


@dataclasses.dataclass
class Kind:
    """What a row is."""

    kind: str
    count: int


@pytest.fixture(scope="module")
def only_shell():
    quiet = Config()
    quiet.HistoryManager.enabled = False
    yield InteractiveShell.instance(config=quiet)
    InteractiveShell.clear_instance()


@pytest.fixture
def shell(only_shell, monkeypatch):
    """A shell in which the extension is loaded; settings, tools and the session are the test's."""
    kept = {id(held): (held, dict(held)) for held in (TOOLS, CONFIGURED)}
    CONFIGURED.clear()
    monkeypatch.setattr(sessions, "_session", None)
    monkeypatch.setenv("IPY_AGENT_ENDPOINT", HERE.url)
    only_shell.user_ns.clear()
    only_shell.init_user_ns()
    only_shell.extension_manager.load_extension("ipy_agent")
    with only_shell.display_trap:
        yield only_shell
    only_shell.extension_manager.unload_extension("ipy_agent")
    for held, before in kept.values():
        held.clear()
        held.update(before)


@pytest.fixture
def script(shell, monkeypatch):  # noqa: ARG001 (its session is made anew)
    """Return a function that makes the process's session answer from a list, then echo."""
    made = []

    def use(*entries, kind=ScriptedTransport):
        transport = kind(entries)
        made.append(Session(HERE, transport=transport, journal=False))
        monkeypatch.setattr(sessions, "_session", made[-1])
        return transport

    yield use
    for session in made:
        session.close()


@pytest.fixture
def ask(shell):
    """Return a function that runs a `%%agent` cell over the rows of `df`."""
    shell.user_ns["df"] = pd.DataFrame({"word": ["one", "two", "{word}"]}, index=["a", "b", "a"])

    def ask(line, cell="Say {word}\n", each="df"):
        return shell.run_cell_magic("agent", f"--each {each} {line}", cell)

    return ask


def prompts(transport):
    """Return what was asked, each prompt once and in order."""
    return sorted(text(request.input.item) for request in transport.requests if request.generate)


# what comes of it


def test_every_row_is_asked_and_the_result_is_kept(shell, script, ask, capsys):
    """The columns in braces are the row's, other braces are text, the index is the frame's."""
    transport = script()

    ask("-o result", 'Say {word} as {"json": {{word}}}\n')

    tail = ' as {"json": {word}}'
    assert prompts(transport) == [f"Say {word}{tail}" for word in ("one", "two", "{word}")]
    result = shell.user_ns["result"]
    assert list(result.columns) == ["answer", *FIGURES]
    assert result.index.tolist() == ["a", "b", "a"]
    assert result["answer"].tolist() == [f"Say {word}{tail}" for word in ("one", "two", "{word}")]
    told = capsys.readouterr().out.splitlines()
    assert "100 %  3 of 3 rows" in told[-2]
    assert told[-1] == "3 rows are in result"


def test_without_a_name_the_result_is_shown_below_the_bar(shell, script, ask, capsys):
    """As pandas shows a frame, and nothing new is in the notebook."""
    script()
    before = set(shell.user_ns)

    ask("")

    bar, shown = capsys.readouterr().out.split("\n", 1)
    assert "3 of 3 rows" in bar
    assert "Say two" in shown
    assert "answer" in shown
    assert set(shell.user_ns) == before


def test_the_fields_of_a_schema_are_columns(shell, script, ask):
    """They have their own dtypes, and stand where the answer would."""
    script()
    shell.user_ns["Kind"] = Kind

    ask("-o result --schema Kind", '{"kind": "{word}", "count": 3}')

    result = shell.user_ns["result"]
    assert list(result.columns) == ["kind", "count", *FIGURES]
    assert result["kind"].tolist() == ["one", "two", "{word}"]
    assert result["count"].dtype == "Int64"


@pytest.mark.parametrize(
    ("line", "field", "wanted"),
    [
        ("-m gpt-y", "model", "gpt-y"),
        ("--effort low", "reasoning", {"effort": "low"}),
        ("--max-tokens 40", "max_output_tokens", 40),
    ],
)
def test_a_cells_options_are_those_of_its_rows(line, field, wanted, script, ask):
    """Model, effort and tokens go with every row."""
    transport = script()

    ask(line)

    assert [request.fields.values[field] for request in transport.requests] == [wanted] * len(
        transport.requests
    )


def test_rows_go_on_from_what_was_said_on_a_branch(shell, script, ask):
    """What all of them need is said once, in a cell above, and no row adds to it."""
    transport = script({"text": "I see."})
    shell.run_cell_magic("agent", "-b taught", "One is a number.")
    session = sessions.session()
    before = len(session.turns)

    ask("-b taught")

    said = [item for item in transport.requests[-1].input.since(0) if item["type"] == "message"]
    assert [text(item) for item in said[:2]] == ["One is a number.", "I see."]
    assert len(said) == 3
    assert len(session.turns) == before


def test_what_was_answered_is_asked_again_only_when_that_is_wanted(script, ask):
    """Run again, the cell asks nothing; with `--fresh`, all."""
    transport = script()

    ask("")
    once = len(prompts(transport))
    ask("")
    again = len(prompts(transport))
    ask("--fresh")

    assert (once, again, len(prompts(transport))) == (3, 3, 6)


def test_a_result_can_go_to_a_file(shell, script, ask, tmp_path, capsys):
    """The variable has its path, and nothing is displayed but where it is."""
    script()
    path = tmp_path / "result.parquet"

    ask(f"-o where --out {path}")

    assert shell.user_ns["where"] == Path(path)
    assert pd.read_parquet(path)["answer"].tolist() == ["Say one", "Say two", "Say {word}"]
    assert capsys.readouterr().out.splitlines()[1:] == [f"the result is in {path}"]


def test_what_was_done_is_kept_when_no_row_gets_further(shell, script, ask, capsys):
    """The error is the map's own, the variable has the rows before it, and a line says so."""
    no_key = {"error": {"status": 401, "code": "invalid_api_key"}}
    script({"text": "first"}, {"text": "second"}, no_key)

    with pytest.raises(ResponseFailed):
        ask("-o result --concurrency 1")

    assert shell.user_ns["result"]["answer"].tolist() == ["first", "second"]
    told = capsys.readouterr().out.splitlines()
    assert "66 %  2 of 3 rows" in told[-2]
    assert told[-1] == "2 rows are in result"


class Pressing(ScriptedTransport):
    """Has Ctrl-C pressed while the third row is asked, which then never is answered."""

    async def stream(self, request):
        pressed = len(prompts(self)) == 2
        async for event in super().stream(request):
            if pressed:
                signal.raise_signal(signal.SIGINT)
                await asyncio.Event().wait()
            yield event


def test_an_interrupt_keeps_what_is_done_and_only_the_rest_is_asked_again(
    shell, script, ask, capsys
):
    """The cell ends at once, its variable has the rows so far, and the next run has all."""
    transport = script(kind=Pressing)

    with pytest.raises(Interrupted):
        ask("-o result --concurrency 1")
    part, told = shell.user_ns["result"], capsys.readouterr().out.splitlines()
    ask("-o result --concurrency 1")

    assert part["answer"].tolist() == ["Say one", "Say two"]
    assert told[-1] == "2 rows are in result"
    assert shell.user_ns["result"]["status"].tolist() == ["completed"] * 3
    assert prompts(transport) == ["Say one", "Say two", "Say {word}", "Say {word}"]
    assert "3 of 3 rows · 2 from before" in capsys.readouterr().out


def test_a_lazy_frame_of_dask_gives_one_that_asks_when_it_is_computed(
    shell, ask, served, monkeypatch, capsys
):
    """The cell says so, since it shows no bar."""
    with contextlib.closing(Session(served(), journal=False)) as session:
        monkeypatch.setattr(sessions, "_session", session)
        shell.user_ns["lazy"] = dd.from_pandas(pd.DataFrame({"word": ["one", "two"]}), 2)
        ask("-o result", each="lazy")
        assert "result asks its rows when it is computed" in capsys.readouterr().out

        computed = shell.user_ns["result"].compute(scheduler="threads")
    assert computed["answer"].tolist() == ["Say one", "Say two"]


def test_a_dry_run_shows_the_first_row_and_sends_nothing(script, ask, capsys):
    """With what a map tells the model, and no tools; a variable is not touched."""
    transport = script()

    ask("--dry-run -o result")

    told = capsys.readouterr().out
    assert transport.requests == []
    assert '"text": "Say one"' in told
    assert INSTRUCTIONS.splitlines()[0] in told
    assert "[tools" not in told


def test_a_dry_run_shows_what_the_first_row_sends(script, ask, capsys):
    """Byte for byte, but for what names the request."""
    transport = script()
    ask("--dry-run")
    told = capsys.readouterr().out

    ask("--concurrency 1")

    first = next(request for request in transport.requests if request.generate)
    shown = [json.loads(part.partition("]\n")[2]) for part in told.split("\n\n[input ")[1:]]
    assert shown == first.input.since(0)
    assert first.fields.values["instructions"] in told


# a map that is called in a cell


def test_a_map_that_is_called_in_a_cell_is_shown_as_well(script, capsys):
    """As long as the extension is loaded, and nobody else looks on."""
    script()
    session, frame = sessions.session(), pd.DataFrame({"word": ["one"]})

    session.map(frame, "Say {word}")
    shown = capsys.readouterr().out
    session.map(frame, "Say {word}", front=Quiet())

    assert "1 of 1 rows" in shown
    assert capsys.readouterr().out == ""


def test_what_is_unloaded_shows_no_map(shell):
    """It takes back what it offered."""
    assert len(FRONTS) == 1
    shell.extension_manager.unload_extension("ipy_agent")
    assert FRONTS == []


# bad input


@pytest.mark.parametrize(
    ("line", "cell", "each", "hint"),
    [
        ("", "{word}", "nonesuch", "no variable 'nonesuch' for --each: make it in a cell above"),
        ("", "{word}", "df[:3]", "no variable 'df[:3]'"),
        ("", "{word}", "series", "series.to_frame()"),
        ("", "{word}", "other", "other.to_pandas()"),
        ("", "{word}", "listed", "pandas.DataFrame(listed)"),
        ("", "{wrod}", "df", "no column 'wrod'; did you mean 'word'?"),
        ("", "the same for all", "df", "put the name of a column in braces"),
        ("", " \n", "df", "the prompt is empty"),
        ("", "{word} like $`df`", "df", "$`df` would be sent with every row: hand it over in a"),
        ("-i figure.png", "{word}", "df", "--image does not go with --each"),
        ("--append", "{word}", "df", "--append does not go with --each"),
        ("--concurrency 0", "{word}", "df", "a number from 1 to 256"),
        ("--concurrency many", "{word}", "df", "--concurrency: invalid int value"),
        ("--out result.csv", "{word}", "df", "parquet"),
        ("-o 3x", "{word}", "df", "no name for a variable"),
        ("--schema nonesuch", "{word}", "df", "no type 'nonesuch'"),
        ("--dry-run", "{wrod}", "df", "no column 'wrod'"),
        ("--dry-run", "{word}", "empty", "no rows"),
        ("--dry-run", "{word}", "gaps", "the first row would be not asked: there is no value in"),
    ],
)
def test_what_does_not_fit_is_one_line_and_sends_nothing(
    line, cell, each, hint, shell, script, ask, capsys
):
    """It says what to do; no bar is shown for it, and no variable is touched."""
    transport = script()
    shell.user_ns["series"] = shell.user_ns["df"]["word"]
    shell.user_ns["other"] = pa.table({"word": ["one"]})
    shell.user_ns["listed"] = ["one"]
    shell.user_ns["empty"] = shell.user_ns["df"].iloc[:0]
    shell.user_ns["gaps"] = pd.DataFrame({"word": [None, "one"]})
    before = set(shell.user_ns)

    with pytest.raises(UsageError) as raised:
        ask(f"{line} -o result" if "-o" not in line else line, cell, each)

    assert hint in raised.value.line
    assert len(str(raised.value).splitlines()) == 1
    assert transport.requests == []
    assert capsys.readouterr().out == ""
    assert set(shell.user_ns) == before


@pytest.mark.parametrize("option", ["--concurrency 0", "--fresh", "--out result.parquet"])
def test_what_is_about_many_rows_is_refused_without_them(option, shell, script):
    """It says how to name them."""
    transport = script()

    with pytest.raises(UsageError, match=f"{option.split()[0]} is about many rows: .*--each NAME"):
        shell.run_cell_magic("agent", option, "hi")

    assert transport.requests == []


def test_an_empty_frame_comes_back_empty_with_its_columns(shell, script, ask, capsys):
    """The dtypes are those of any result; nothing is sent, and there is no bar."""
    transport = script()
    shell.user_ns["empty"] = shell.user_ns["df"].iloc[:0]

    ask("-o result", each="empty")
    ask("-o whole")

    result, whole = shell.user_ns["result"], shell.user_ns["whole"]
    assert len(result) == 0
    assert result.dtypes.tolist() == whole.dtypes.tolist()
    assert len(prompts(transport)) == 3
    assert capsys.readouterr().out.count(" rows are in ") == 1


def test_a_row_with_nothing_to_put_in_is_not_asked(shell, script, ask, capsys):
    """It has an error of its own, the others their answers, and the bar counts it."""
    transport = script()
    shell.user_ns["gaps"] = pd.DataFrame({"word": ["one", float("nan"), None, "two"]})

    ask("-o result", each="gaps")

    result = shell.user_ns["result"]
    assert prompts(transport) == ["Say one", "Say two"]
    assert result["status"].tolist() == ["completed", "failed", "failed", "completed"]
    assert result["error"].iloc[1] == "not asked: there is no value in column 'word'"
    assert "4 of 4 rows · 2 failed" in capsys.readouterr().out
