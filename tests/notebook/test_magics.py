"""`%agent` and `%%agent` in an IPython shell of this process, over a scripted transport."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import subprocess
import sys

import pandas as pd
import pytest
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image
from traitlets.config import Config

from ipy_agent import sessions
from ipy_agent.agent.tools import TOOLS
from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import AgentError, ConnectionFailed, ModelUnavailable, UsageError
from ipy_agent.notebook.commands import COMMANDS
from ipy_agent.notebook.magics import AgentMagics
from ipy_agent.protocol.items import text
from ipy_agent.sessions import Session
from ipy_agent.settings import CONFIGURED, KERNEL, SETTINGS
from ipy_agent.transport.scripted import ScriptedTransport
from ipy_agent.transport.websocket import WebSocketTransport

HERE = dataclasses.replace(Endpoint.named("http://127.0.0.1:9/v1"), context="off")
SEEING = dataclasses.replace(HERE, images=True)
WRONG = {
    "endpoint": "nowhere",
    "mode": "sometimes",
    "tools": [3],
    "store": "no",
    "model": 3,
    "instructions": ["short"],
    "prompt_cache_key": 3,
    "transport": "pigeon",
    "effort": 3,
    "summary": 3,
    "max_output_tokens": 0,
    "parallel_tool_calls": "no",
    "compact_tokens": 0,
    "context": "all",
    "journal": "no",
    "replay": "no",
    "budget_turns": 0,
    "budget_seconds": -1.0,
    "session_usd": 0,
    "session_tokens": 0,
    "session_seconds": 0,
    "session_turns": 0,
    "budget_usd": -1.0,
    "budget_tokens": 0,
}
RIGHT = {
    "endpoint": "http://127.0.0.1:10/v1",
    "mode": "read",
    "tools": ["python"],
    "store": True,
    "model": "gpt-x",
    "instructions": "Be brief.",
    "prompt_cache_key": "mine",
    "transport": "websocket",
    "effort": "low",
    "summary": "auto",
    "max_output_tokens": 400,
    "parallel_tool_calls": False,
    "compact_tokens": 5_000,
    "context": "names",
    "journal": False,
    "replay": True,
    "budget_turns": 3,
    "budget_seconds": 60.5,
    "session_usd": 5.0,
    "session_tokens": 90_000,
    "session_seconds": 600.0,
    "session_turns": 30,
    "budget_usd": 0.5,
    "budget_tokens": 9_000,
}


@pytest.fixture(scope="module")
def only_shell():
    quiet = Config()
    quiet.HistoryManager.enabled = False
    yield InteractiveShell.instance(config=quiet)
    InteractiveShell.clear_instance()


@pytest.fixture(autouse=True)
def process(monkeypatch):
    """Settings, tools and the session are those of the test."""
    tools, configured = dict(TOOLS), dict(CONFIGURED)
    TOOLS.clear()
    CONFIGURED.clear()
    monkeypatch.setattr(sessions, "_session", None)
    monkeypatch.setenv("IPY_AGENT_ENDPOINT", HERE.url)
    yield
    for kept, before in ((TOOLS, tools), (CONFIGURED, configured)):
        kept.clear()
        kept.update(before)


@pytest.fixture
def shell(only_shell):
    """A shell with nothing of ours in it, as it is within a running cell."""
    only_shell.user_ns.clear()  # as `reset` does, which also collects garbage for long
    only_shell.init_user_ns()
    before = only_shell.config
    with only_shell.display_trap:
        yield only_shell
    if "ipy_agent" in only_shell.extension_manager.loaded:
        only_shell.extension_manager.unload_extension("ipy_agent")
    only_shell.config = before


@pytest.fixture
def loaded(shell):
    """A shell in which the extension is loaded."""
    assert shell.extension_manager.load_extension("ipy_agent") is None
    return shell


@pytest.fixture
def script(loaded, monkeypatch):  # noqa: ARG001 (tools are on offer when it is loaded)
    """Return a function that makes the process's session answer from a list."""
    made = []

    def use(*entries, endpoint=HERE):
        transport = ScriptedTransport(entries)
        told = {"endpoint": endpoint, **CONFIGURED}
        way = told.pop("transport", "auto")  # here, the scripted one
        made.append(Session(transport=transport, **told))
        made[-1].configure("transport", way)
        monkeypatch.setattr(sessions, "_session", made[-1])
        return transport

    yield use
    for session in made:
        session.close()


@pytest.fixture
def ask(loaded):
    """Return a function that runs a `%%agent` cell."""
    return lambda line, cell="hi": loaded.run_cell_magic("agent", line, cell)


@pytest.fixture
def tell(loaded):
    """Return a function that runs an `%agent` line."""
    return lambda line="": loaded.run_line_magic("agent", line)


def configure(shell, name, value):
    """Set a trait as a user does."""
    shell.run_line_magic("config", f"AgentMagics.{name} = {value!r}")


def python(code):
    return {"tool_calls": [{"name": "python", "arguments": {"code": code}}]}


def prompt(transport):
    """Return what the last request asks."""
    return text(transport.requests[-1].input.item)


def sent(transport):
    """Return all of the last request but its input."""
    return transport.requests[-1].fields.values


# settings


def test_there_is_a_trait_a_setting():
    """Whatever a session can be set to, a configuration can say, with a help text each."""
    traits = AgentMagics.class_traits(config=True)

    assert set(traits) == {*SETTINGS, "endpoint"}
    assert all(trait.help for trait in traits.values())


@pytest.mark.usefixtures("loaded")
def test_unset_traits_leave_the_defaults():
    """Loading sets nothing."""
    assert CONFIGURED == {}
    assert sessions.session().settings == KERNEL
    assert sessions.session().endpoint == Endpoint.named(HERE.url)


@pytest.mark.parametrize("name", RIGHT)
def test_a_trait_that_is_set_is_the_sessions(name, loaded):
    """`%config AgentMagics.x = …` holds for the session that is."""
    session = sessions.session()

    configure(loaded, name, RIGHT[name])

    assert value(session, name) == RIGHT[name]


def value(session, name):
    """Return a setting of a session as a configuration writes it."""
    if name == "endpoint":
        return session.endpoint.url
    held = getattr(session.settings, name)
    return list(held) if isinstance(held, tuple) else held


@pytest.mark.parametrize("name", RIGHT)
def test_a_trait_that_was_set_holds_for_the_session_to_come(name, loaded, monkeypatch):
    """A value waits for the session that is made later."""
    configure(loaded, name, RIGHT[name])
    monkeypatch.setattr(sessions, "_session", None)

    assert value(sessions.session(), name) == RIGHT[name]


@pytest.mark.parametrize("name", RIGHT)
def test_a_trait_set_to_none_is_the_default_again(name, loaded, monkeypatch):
    """`None` takes back what was set, here and for a session to come."""
    unset = value(sessions.session(), name)
    configure(loaded, name, RIGHT[name])
    configure(loaded, name, None)

    assert value(sessions.session(), name) == unset
    monkeypatch.setattr(sessions, "_session", None)
    assert value(sessions.session(), name) == unset


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_one_line_and_changes_nothing(name, loaded, caplog, script):
    """What does not fit is told in a line; the old value holds, and cells work."""
    configure(loaded, name, RIGHT[name])
    script()
    before = value(sessions.session(), name)

    configure(loaded, name, WRONG[name])

    assert len(caplog.messages) == 1
    assert len(caplog.messages[0].splitlines()) == 1
    assert name in caplog.messages[0]
    magics = loaded.find_cell_magic("agent").__self__
    assert getattr(magics, name) == RIGHT[name]
    assert value(sessions.session(), name) == before
    assert value(Session(**CONFIGURED), name) == RIGHT[name]


@pytest.mark.parametrize("name", RIGHT)
def test_a_configuration_file_sets_what_is_loaded_later(name, shell):
    """What a file says (`c.AgentMagics.x = …`) holds from the first cell on."""
    shell.config = with_ours(shell.config, {name: RIGHT[name]})
    shell.extension_manager.load_extension("ipy_agent")

    assert value(sessions.session(), name) == RIGHT[name]


def with_ours(config, told):
    """Return a shell's configuration with ours in it."""
    whole = copy.deepcopy(config)
    whole.merge({"AgentMagics": told})
    return whole


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_configuration_file_is_one_line(name, shell):
    """Loading fails with one error that names the setting, and leaves nothing half done."""
    right = shell.config
    shell.config = with_ours(right, {name: WRONG[name]})

    with pytest.raises(UsageError, match=name) as raised:
        shell.extension_manager.load_extension("ipy_agent")

    assert len(raised.value._render_traceback_()) == 1
    assert not CONFIGURED
    assert not any(isinstance(one, AgentMagics) for one in shell.configurables)
    shell.config = right
    shell.extension_manager.load_extension("ipy_agent")
    assert sessions.session().settings == KERNEL


def test_setting_a_mode_again_holds_though_the_session_was_told_otherwise(loaded, tell):
    """The mode is what was last said, by whichever way."""
    session = sessions.session()
    for again in (lambda: tell("mode read"), lambda: configure(loaded, "mode", "read")):
        again()
        session.mode = "auto"
        again()

        assert session.mode == "read"


def test_tools_limits_what_the_model_is_offered(loaded, script, ask):
    """Only the named tools travel with a request."""
    transport = script({"text": "ok"}, {"text": "ok"})
    ask("")
    assert {tool["name"] for tool in sent(transport)["tools"]} == {"python", "inspect"}

    configure(loaded, "tools", ["inspect"])
    ask("")

    assert [tool["name"] for tool in sent(transport)["tools"]] == ["inspect"]


def test_config_tells_every_setting(loaded, capsys):
    """`%config AgentMagics` lists what can be set, with its help."""
    loaded.run_line_magic("config", "AgentMagics")

    told = capsys.readouterr().out
    for name in RIGHT:
        assert f"AgentMagics.{name}=" in told
    assert "Turns that a cell run may take" in told


# a cell


@pytest.mark.parametrize("kind", ["cell", "line"])
def test_help_names_every_option(kind, loaded):
    """`%%agent?` and `%agent?` tell what can be typed, under the names that people type."""
    told = loaded.magics_manager.magics[kind]["agent"].__doc__

    wanted = {
        "cell": [
            *("%%agent [", "-m MODEL", "-o NAME", "--mode", "--endpoint ENDPOINT", "$`name`"),
            *("-b NAME", "--schema NAME", "-i NAME_OR_PATH", "--effort EFFORT", "--max-tokens N"),
            *("--each NAME", "--concurrency N", "--fresh", "--out PATH.parquet"),
        ],
        "line": [
            *(f"%agent {name}" for name in ("turns", "toolbox", "panel", "connect", "export")),
            *("branch [NAME]", "fork NAME [--at TURN]", "azure, vercel, local, ollama"),
        ],
    }
    for words in wanted[kind]:
        assert words in told
    assert "%ask" not in told
    assert "%tell" not in told


def test_every_command_is_in_the_help(loaded):
    """No `%agent` command goes untold, and none is told that is not there."""
    told = loaded.find_line_magic("agent").__doc__

    for name in COMMANDS:
        assert name in (None, "status") or name in told


def test_a_cell_is_sent_as_it_stands(script, ask):
    """Braces, dollars, percent signs and indents of a prompt are nobody's business."""
    transport = script()
    said = "  {x} {{y}} $x ${x} $`` `x` %s %(x)s !ls \\n é\n\n  indented {0!r}"

    ask("", f"{said}\n")

    assert prompt(transport) == said


@pytest.mark.parametrize(
    ("line", "field", "wanted"),
    [
        ("-m gpt-y", "model", "gpt-y"),
        ("--model gpt-y", "model", "gpt-y"),
        ("--model='gpt y'", "model", "gpt y"),
        ('-m "gpt y"', "model", "gpt y"),
        (r"-m C:\models\new.gguf", "model", r"C:\models\new.gguf"),
        ("", "model", None),
    ],
)
def test_the_model_is_the_cells(line, field, wanted, script, ask):
    """`-m` holds for its cell only."""
    transport = script({"text": "a"}, {"text": "b"})

    ask(line)
    assert sent(transport).get(field) == wanted
    ask("")
    assert sent(transport).get(field) is None


@pytest.mark.parametrize("line", ["-o said", "--output said", "--output=said", "-o 'said'"])
def test_the_answer_is_kept_in_a_variable(line, loaded, script, ask):
    """`-o` keeps the text of the answer, as the model wrote it."""
    script(python("1"), {"text": "It is **42**.\n"})

    ask(f"--mode auto {line}")

    assert loaded.user_ns["said"] == "It is **42**.\n"


@pytest.mark.parametrize(
    ("line", "ran"), [("--mode auto", True), ("--mode read", False), ("", False)]
)
def test_the_mode_is_the_cells(line, ran, loaded, script, ask, monkeypatch):
    """`--mode` holds for its cell only; without it the session's mode does."""
    monkeypatch.setattr("builtins.input", lambda _: "")
    transport = script(python("made = 1"), {"text": "ok"})

    ask(line)

    assert ("made" in loaded.user_ns) is ran
    assert sessions.session().mode == "ask"
    assert len(transport.requests) == 2


def test_the_endpoint_is_the_cells(script, ask, unused_port):
    """`--endpoint` holds for its cell only."""
    transport = script({"text": "here"})

    with pytest.raises(ConnectionFailed, match=str(unused_port)):
        ask(f"--endpoint http://127.0.0.1:{unused_port}/v1")
    ask("")

    assert len(transport.requests) == 1
    assert sessions.session().cells["endpoint"].tolist() == [
        f"127.0.0.1:{unused_port}",
        "127.0.0.1:9",
    ]


@pytest.mark.parametrize(
    ("line", "cell", "why"),
    [
        ("", " \n\t", "the prompt is empty"),
        ("--nope", "hi", "--nope"),
        ("-m", "hi", "expected one argument"),
        ("--mode sometimes", "hi", "sometimes"),
        ("-o 1x", "hi", "1x"),
        ("-o class", "hi", "class"),
        ("-o a.b", "hi", "a.b"),
        ("--endpoint nowhere", "hi", "nowhere"),
        ("-m 'open", "hi", "quotation"),
        ("", "see $`nothing`", "nothing"),
        ("", "see $`x.y`", "x.y"),
    ],
)
def test_a_cell_that_does_not_fit_is_one_line(line, cell, why, loaded, script, ask):
    """The error is one line that can be caught, nothing was sent, and the next cell works."""
    transport = script({"text": "fine"})

    with pytest.raises(UsageError, match=why) as raised:
        ask(line, cell)

    assert len(raised.value._render_traceback_()) == 1
    assert transport.requests == []
    ask("-o said")
    assert loaded.user_ns["said"] == "fine"


@dataclasses.dataclass
class Island:
    name: str
    birds: int


FITS = '{"name": "Dream", "birds": 124}'


def test_an_answer_in_a_shape_is_kept_as_its_value(loaded, script, ask):
    """`--schema` asks for a type of the notebook, and `-o` keeps the object."""
    transport = script({"text": FITS}, {"text": "So."})
    loaded.user_ns["Isle"] = Island

    ask("--schema Isle -o it")

    told = sent(transport)["text"]["format"]
    assert (told["type"], told["name"], told["strict"]) == ("json_schema", "Isle", True)
    assert set(told["schema"]["properties"]) == {"name", "birds"}
    assert loaded.user_ns["it"] == Island("Dream", 124)
    ask("-o it")
    assert "text" not in sent(transport)
    assert loaded.user_ns["it"] == "So."


def test_a_shape_may_be_any_type_that_has_a_name(loaded, script, ask):
    """An annotation is given one by an assignment."""
    script({"text": '{"value": [1, 2]}'})
    loaded.user_ns["Numbers"] = list[int]

    ask("--schema Numbers -o it")

    assert loaded.user_ns["it"] == [1, 2]


def test_an_answer_in_a_shape_is_shown_as_json(loaded, script, ask, monkeypatch):
    """Without `-o` nothing is bound; in a kernel the answer is a fold of JSON."""
    screen = CapturingDisplayPublisher(outputs=[])
    monkeypatch.setattr(loaded, "display_pub", screen)
    monkeypatch.setattr(loaded, "kernel", object(), raising=False)
    loaded.user_ns["Island"] = Island
    script({"text": FITS})
    before = set(loaded.user_ns)

    ask("--schema Island")

    final = {shown["transient"]["display_id"]: shown["data"] for shown in screen.outputs}
    answer = next(iter(final.values()))
    assert "<summary>json</summary>" in answer["text/html"]
    said, footer = answer["text/plain"].split("\n\n")
    assert said == '{\n  "name": "Dream",\n  "birds": 124\n}'
    assert footer.startswith("[turn 1 · ")
    assert set(loaded.user_ns) == before


def test_pictures_are_shown_to_the_model(loaded, script, ask, tmp_path):
    """`-i` takes variables and files, as often as it is said, behind the prompt."""
    transport = script({"text": "a"}, {"text": "b"}, endpoint=SEEING)
    image = Image.new("RGB", (2, 2))
    path = tmp_path / "two words.gif"
    image.save(path)
    loaded.user_ns.update(red=image, held=path)

    ask(f"-i red --image held -i '{path}'", "Look.")

    said, *shown = transport.requests[-1].input.item["content"]
    assert said == {"type": "input_text", "text": "Look."}
    assert [part["type"] for part in shown] == ["input_image"] * 3
    kinds = [part["image_url"].partition(";")[0] for part in shown]
    assert kinds == ["data:image/png", "data:image/gif", "data:image/gif"]
    ask("")
    assert len(transport.requests[-1].input.item["content"]) == 1


def test_a_variable_wins_over_a_file_of_its_name(loaded, script, ask, tmp_path, monkeypatch):
    """A file is taken where there is no such variable."""
    transport = script({"text": "a"}, {"text": "b"}, endpoint=SEEING)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (2, 2)).save("red", "gif")

    ask("-i red")
    loaded.user_ns["red"] = Image.new("RGB", (2, 2))
    ask("-i red")

    first, second = (
        request.input.item["content"][1]["image_url"] for request in transport.requests
    )
    assert first.startswith("data:image/gif")
    assert second.startswith("data:image/png")


@pytest.mark.parametrize(
    ("line", "field", "wanted"),
    [
        ("--effort high", "reasoning", {"effort": "high"}),
        ("--max-tokens 300", "max_output_tokens", 300),
    ],
)
def test_effort_and_length_are_the_cells(line, field, wanted, script, ask):
    """They hold for their cell only."""
    transport = script({"text": "a"}, {"text": "b"})
    before = sessions.session().settings

    ask(line)
    asked = sent(transport)[field]
    ask("")

    assert asked == wanted if field != "reasoning" else asked["effort"] == "high"
    assert field not in sent(transport)
    assert sessions.session().settings == before


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("--schema Nothing", "there is no type 'Nothing' for --schema"),
        ("--schema number", "a value of type int is no type"),
        ("--schema frame", "a value of type DataFrame is no type"),
        ("--schema pd.DataFrame", "there is no type"),
        ("--schema", "expected one argument"),
        ("-i nothing", "there is no variable and no file 'nothing' for --image"),
        ("-i nothing.png", "no picture at 'nothing.png'"),
        ("-i number", "a value of type int is no picture"),
        ("-i frame", "a value of type DataFrame is no picture"),
        ("-i", "expected one argument"),
        ("--max-tokens many", "many"),
        ("--max-tokens 0", "max_output_tokens"),
        ("-b 'two words'", "two words"),
        ("--branch ''", ""),
    ],
)
def test_an_option_that_does_not_fit_is_one_line(line, why, loaded, script, ask):
    """The error is one line that can be caught, nothing was sent, and the next cell works."""
    transport = script({"text": "fine"})
    loaded.user_ns.update(number=3, frame=pd.DataFrame({"a": [1]}))

    with pytest.raises(UsageError) as raised:
        ask(f"{line} -o said")

    assert why in str(raised.value)
    assert len(raised.value._render_traceback_()) == 1
    assert transport.requests == []
    assert "said" not in loaded.user_ns
    ask("-o said")
    assert loaded.user_ns["said"] == "fine"


def test_a_failed_cell_leaves_its_variable_alone(loaded, script, ask):
    """`-o` binds nothing when there is no answer."""
    script({"error": {"status": 500}})
    loaded.user_ns["said"] = "before"

    with pytest.raises(AgentError):
        ask("-o said")

    assert loaded.user_ns["said"] == "before"


def test_in_a_kernel_a_cell_is_shown_in_displays(loaded, script, ask, monkeypatch):
    """Where there is a kernel the answer is a display; both that stay are static."""
    screen = CapturingDisplayPublisher(outputs=[])
    monkeypatch.setattr(loaded, "display_pub", screen)
    monkeypatch.setattr(loaded, "kernel", object(), raising=False)
    script({"text": "It is **42**."})

    ask("")

    final = {shown["transient"]["display_id"]: shown["data"] for shown in screen.outputs}
    answer, table = final.values()
    assert "<strong>42</strong>" in answer["text/html"]
    assert "<b>1</b> turn " in table["text/html"]
    assert set(answer) == set(table) == {"text/html", "text/plain"}


def test_a_cell_that_never_ran_shows_only_its_error(loaded, script, ask, monkeypatch):
    """What a session refuses leaves no empty displays above the line that says why."""
    screen = CapturingDisplayPublisher(outputs=[])
    monkeypatch.setattr(loaded, "display_pub", screen)
    monkeypatch.setattr(loaded, "kernel", object(), raising=False)
    script()

    with pytest.raises(UsageError):
        ask("-b 'two words'")

    assert screen.outputs == []


def test_in_a_terminal_a_cell_is_printed(script, ask, capsys):
    """Without a kernel the answer is plain text, and so is what the turn took."""
    script({"text": "It is **42**.", "chunk_chars": 3})

    ask("")

    said, footer, end = capsys.readouterr().out.split("\n")
    assert (said, end) == ("It is **42**.", "")
    assert footer.startswith("[turn 1 · ")


# variables that are handed over


def test_variables_are_handed_over_by_name(loaded, script, ask):
    """Each named variable is previewed once, in the order of the prompt, above it."""
    transport = script()
    loaded.user_ns.update(frame=pd.DataFrame({"a": [1, 2]}), n=3, other=4, ñ=5)

    ask("", "Compare $`n` with $`frame`, then $`n` and $`ñ`.\n")

    number, frame, head, other, asked = prompt(transport).split("\n\n")
    assert (number, other) == ("n: int 3", "ñ: int 5")
    assert frame.startswith("frame: DataFrame 2×1\n")
    assert "  a: int64; 1 to 2" in frame
    assert head == "frame.head(3):\n   a\n0  1\n1  2"
    assert asked == "Compare `n` with `frame`, then `n` and `ñ`."


def test_every_missing_variable_stops_the_cell(loaded, script, ask):
    """One name that is not there sends nothing, though others are."""
    transport = script()
    loaded.user_ns["here"] = 1

    with pytest.raises(UsageError, match="there is no variable 'gone'"):
        ask("", "$`here` and $`gone`")

    assert transport.requests == []


def test_a_variable_alone_is_a_prompt(loaded, script, ask):
    """A cell may say no more than a variable."""
    transport = script()
    loaded.user_ns["n"] = 3

    ask("", "$`n`")

    assert prompt(transport) == "n: int 3\n\n`n`"


def test_what_is_in_a_variable_is_not_read_as_a_prompt(loaded, script, ask):
    """A preview that looks like a handing-over hands nothing over."""
    transport = script()
    loaded.user_ns.update(a="$`b`", b="secret")

    ask("", "$`a`")

    assert "secret" not in prompt(transport)


# lines


@pytest.mark.parametrize("line", ["", "status"])
def test_status_says_where_the_session_stands(line, script, ask, tell, capsys):
    """Endpoint, connection, mode and totals, in lines."""
    script({"text": "ok"})
    ask("")
    capsys.readouterr()

    assert tell(line) is None

    told = dict(row.split(maxsplit=1) for row in capsys.readouterr().out.splitlines())
    assert list(told) == ["endpoint", "model", "connection", "mode", "branch", "said", "turns"]
    assert told["connection"] == "scripted (1 turns)"
    assert told["mode"] == "ask"
    assert told["turns"].startswith("1 in 1 cells")


@pytest.mark.parametrize(
    ("table", "rows"), [("turns", 2), ("cells", 1), ("tools", 1), ("messages", 4)]
)
def test_tables_are_frames_that_can_be_assigned(table, rows, loaded, script, ask, tell, capsys):
    """`%agent turns` is a DataFrame, shown or bound to a name; before any turn it is empty."""
    script(python("1"), {"text": "ok"})
    empty = tell(table)
    ask("--mode auto")
    capsys.readouterr()

    loaded.run_cell(f"df = %agent {table}").raise_error()

    assert capsys.readouterr().out == ""
    frame = loaded.user_ns["df"]
    assert len(frame) == rows
    assert len(empty) == 0
    assert frame.dtypes.equals(empty.dtypes)
    pd.testing.assert_frame_equal(tell(table), frame)


def test_toolbox_tells_each_tool_and_its_verdict(script, tell, capsys):
    """Every tool with its parameters, what it does, and what the mode says of it."""
    script()

    tell("toolbox")
    told = capsys.readouterr().out
    tell("mode auto")
    tell("toolbox")

    assert "python(code)  ask\n    Run Python code" in told
    assert "inspect(name)  run\n    Look at one variable" in told
    assert "python(code)  run\n" in capsys.readouterr().out


def test_panel_shows_the_turns_of_all_cells(loaded, script, ask, tell, monkeypatch):
    """`%agent panel` is one static display."""
    script({"text": "a"}, {"text": "b"})
    ask("")
    ask("")
    screen = CapturingDisplayPublisher(outputs=[])
    monkeypatch.setattr(loaded, "display_pub", screen)

    assert tell("panel") is None

    (shown,) = screen.outputs
    assert set(shown["data"]) == {"text/html", "text/plain"}
    assert "<b>2</b> turns" in shown["data"]["text/html"]


def test_connect_chooses_where_the_next_cell_goes(script, tell, capsys, monkeypatch):
    """`connect` takes a preset or a base URL, a model and a key's variable; the talk goes on."""
    script()
    monkeypatch.delenv("MY_KEY", raising=False)

    tell("connect http://127.0.0.1:11/v1 -m small --key-env MY_KEY")

    chosen = sessions.session().endpoint
    assert (chosen.url, chosen.model, chosen.key_env) == (
        "http://127.0.0.1:11/v1",
        "small",
        "MY_KEY",
    )
    assert capsys.readouterr().out == (
        "the next cell goes to 127.0.0.1:11 (http://127.0.0.1:11/v1)\n"
    )
    tell("connect local")
    assert sessions.session().endpoint.name == "local"
    assert "embedded server" in capsys.readouterr().out


def test_disconnect_closes_and_the_next_cell_connects_anew(script, ask, tell):
    """After `disconnect` the whole conversation is sent over a new connection."""
    script({"text": "a"}, {"text": "b"})
    ask("")
    tell("disconnect")
    ask("")

    turns = sessions.session().turns
    assert turns["connection"].tolist() == [1, 2]
    assert turns["held_items"].tolist() == [0, 0]


def test_warm_has_the_next_cell_reuse_what_it_made(script, ask, tell, capsys):
    """`warm` connects without a turn of its own."""
    transport = script({"text": "a"})

    tell("warm")
    assert capsys.readouterr().out == "warm: scripted (1 turns)\n"
    ask("")

    assert [request.generate for request in transport.requests] == [False, True]
    assert sessions.session().turns["reused"].tolist() == [True]


def test_warm_tells_what_takes_long(tell, capsys, monkeypatch):
    """Where a server has to start first, its notices are printed as they come."""

    async def locate(notice, *, model):  # noqa: ARG001 (any model is too large here)
        notice("loading \x1b[1mthe model")
        raise ModelUnavailable("no room for the model")

    local = Endpoint.named("local")
    session = Session(local, transport=WebSocketTransport(local, locate=locate))
    monkeypatch.setattr(sessions, "_session", session)

    with pytest.raises(ModelUnavailable):
        tell("warm")

    assert capsys.readouterr().out == "loading the model\n"


def test_reset_begins_anew_and_keeps_the_records(script, ask, tell):
    """After `reset` nothing that was said is sent, and the tables still hold it."""
    transport = script({"text": "a"}, {"text": "b"})
    ask("", "one")
    tell("reset")
    ask("", "two")

    assert len(transport.requests[-1].input) == 1
    assert len(tell("turns")) == 2


def test_a_branch_is_the_cells_or_the_sessions(script, ask, tell, capsys):
    """`-b` holds for its cell; `%agent branch NAME` switches, without a name it lists."""
    script({"text": "a"}, {"text": "b"}, {"text": "c"})
    ask("", "one")
    ask("-b idea", "two")
    capsys.readouterr()

    tell("branch")
    assert capsys.readouterr().out == "  1 one  <- main *\n  2 two  <- idea\n"
    assert tell("branch idea") is None
    tell("branch")

    assert capsys.readouterr().out == "  1 one  <- main\n  2 two  <- idea *\n"
    assert sessions.session().branch == "idea"


@pytest.mark.parametrize(
    ("at", "tree"),
    [
        ("", "  1 one\n  2 two  <- main *  <- idea\n"),
        (" --at 1", "  1 one  <- idea\n  2 two  <- main *\n"),
    ],
)
def test_a_fork_is_a_branch_that_begins_at_a_turn(at, tree, script, ask, tell, capsys):
    """`%agent fork` says how to go on there, and goes nowhere itself."""
    script({"text": "a"}, {"text": "b"})
    ask("", "one")
    ask("", "two")
    capsys.readouterr()

    tell(f"fork idea{at}")
    told = capsys.readouterr().out
    tell("branch")

    assert "%agent branch idea" in told
    assert capsys.readouterr().out == tree


def test_compacting_is_told_in_a_line(tell, capsys, monkeypatch, served):
    """`%agent compact` says how many items there were, and how many there are."""
    session = Session(served([{"text": "a"}, {"text": "b"}]))
    monkeypatch.setattr(sessions, "_session", session)
    session.run("one")
    session.run("two")

    tell("compact")
    session.close()

    before, after = re.findall(r"\d+", capsys.readouterr().out)
    assert before == "4"
    assert f"said        {after} items" in session.describe()


@pytest.mark.parametrize("way", ["websocket", "http", "auto"])
def test_transport_is_set(way, script, tell, capsys):
    """`%agent transport` chooses the way, and may be said again."""
    script()

    tell(f"transport {way}")

    assert sessions.session().settings.transport == way
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("mode", "says"), [("read", ""), ("ask", ""), ("auto", "without asking")])
def test_mode_is_set_and_auto_is_said(mode, says, script, tell, capsys):
    """`mode auto` comes with a warning."""
    script()

    tell(f"mode {mode}")

    assert sessions.session().mode == mode
    told = capsys.readouterr().out
    assert says in told
    assert bool(told) is bool(says)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("export {}/all.json", "all.json"),
        ("export {}/turns.csv", "turns.csv"),
        ("export {}/calls.csv --table tools", "calls.csv"),
        ('export "{}/two words.md"', "two words.md"),
        ("export '{}/two words.html'", "two words.html"),
    ],
)
def test_export_writes_a_file_and_says_which(line, name, script, ask, tell, capsys, tmp_path):
    """The suffix decides, `--table` chooses, and a quoted path may have spaces."""
    script({"text": "a"})
    ask("")
    capsys.readouterr()

    tell(line.format(tmp_path))

    assert capsys.readouterr().out == f"written: {tmp_path / name}\n"
    assert (tmp_path / name).stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("dance", "dance"),
        ("turns please", "please"),
        ("mode", "mode"),
        ("mode always", "always"),
        ("transport", "transport"),
        ("transport pigeon", "pigeon"),
        ("branch 'two words'", "two words"),
        ("fork", "name"),
        ("fork 'two words'", "two words"),
        ("fork idea --at noon", "noon"),
        ("fork idea --at 99", "99"),
        ("compact it", "it"),
        ("compact", "nothing was said"),
        ("connect", "endpoint"),
        ("connect ftp://x", "ftp"),
        ("connect local -x", "-x"),
        ("export", "path"),
        ("export turns.docx", "docx"),
        ("export 'turns.csv", "quotation"),
        ("export turns.csv --table nope", "nope"),
        ("-h", "-h"),
    ],
)
def test_a_line_that_does_not_fit_is_one_line(line, why, script, tell):
    """The error is one line that can be caught."""
    script()

    with pytest.raises(UsageError, match=why) as raised:
        tell(line)

    assert len(raised.value._render_traceback_()) == 1
    assert tell("turns").empty


def test_in_a_shell_an_error_shows_as_one_line(loaded, script, capsys):
    """IPython shows our line and none of our frames."""
    script()

    loaded.run_cell("%agent mode always")

    assert capsys.readouterr().out.startswith("UsageError: argument mode: invalid choice: 'always'")
    assert sessions.session().mode == "ask"


# loading


def test_loading_twice_and_unloading_twice_does_no_harm(shell, script):
    """One set of magics and tools, whatever the order; what was unset stays so."""
    script({"text": "ok"})
    manager = shell.extension_manager
    assert manager.load_extension("ipy_agent") == "already loaded"
    assert manager.unload_extension("ipy_agent") is None
    assert shell.find_line_magic("agent") is None
    assert shell.find_cell_magic("agent") is None
    assert not {"python", "inspect"} & set(TOOLS)
    assert manager.unload_extension("ipy_agent") == "not loaded"

    manager.load_extension("ipy_agent")
    manager.reload_extension("ipy_agent")
    shell.run_cell_magic("agent", "-o said", "hi")

    assert shell.user_ns["said"] == "ok"
    assert {"python", "inspect"} <= set(TOOLS)
    assert sum(isinstance(one, AgentMagics) for one in shell.configurables) == 1


def test_unloading_closes_the_connection(loaded, script, ask):
    """What is loaded again goes on with the same session, over a new connection."""
    script({"text": "a"}, {"text": "b"})
    ask("")
    loaded.extension_manager.reload_extension("ipy_agent")
    loaded.run_cell_magic("agent", "", "hi")

    assert sessions.session().turns["connection"].tolist() == [1, 2]


def test_unloading_leaves_the_users_tools(loaded, script):
    """What the user made a tool is still one."""
    script()
    TOOLS["mine"] = TOOLS["inspect"]

    loaded.extension_manager.unload_extension("ipy_agent")

    assert list(TOOLS) == ["mine"]


FRESH = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

config = Config()
config.HistoryManager.enabled = False
config.AgentMagics.budget_turns = 7
shell = InteractiveShell.instance(config=config)
touched = []
sys.addaudithook(lambda name, _: touched.append(name) if name.startswith(NETWORK) else None)
shell.run_line_magic("load_ext", "ipy_agent")
shell.run_line_magic("config", "AgentMagics.mode = 'read'")
shell.run_line_magic("agent", "mode read")
shell.run_line_magic("config", "AgentMagics.endpoint = 'xai'")
shell.run_line_magic("config", "AgentMagics.model = 'one'")
shell.run_line_magic("config", "AgentMagics.model = None")
loaded = [name for name in HEAVY if name in sys.modules]
import ipy_agent
session = ipy_agent.session()
settings = session.settings
print(json.dumps([loaded, touched, settings.budget_turns, settings.mode, session.endpoint.name,
    settings.model]))
"""
HEAVY = [
    *("pandas", "numpy", "ipywidgets", "websockets", "httpx2", "starlette", "uvicorn"),
    *("xllamacpp", "markdown_it", "nh3", "genai_prices", "ipykernel", "ipy_agent.sessions"),
]


def test_settings_wait_for_a_session_that_is_not_made_by_them():
    """Loading and setting bring in nothing heavy and touch no network; the session then has it."""
    network = ("socket.connect", "socket.getaddrinfo", "subprocess.Popen")
    code = FRESH.replace("NETWORK", repr(network)).replace("HEAVY", repr(HEAVY))

    told = subprocess.check_output([sys.executable, "-c", code], text=True)

    assert json.loads(told.splitlines()[-1]) == [[], [], 7, "read", "xai", None]


LATE = """
import asyncio, json, sys, threading
from IPython.core.async_helpers import get_asyncio_loop
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

config = Config()
config.HistoryManager.enabled = False
manager = InteractiveShell.instance(config=config).extension_manager
manager.load_extension("ipy_agent")
manager.reload_extension("ipy_agent")
late = "msgspec" not in sys.modules
import ipy_agent
from ipy_agent.coroutines import awaited

def define():
    @ipy_agent.tool(read_only=True)
    def inspect(name: str) -> str:
        "Look at what the user means."

    @ipy_agent.tool
    def mine() -> int:
        "Return a number."

one = threading.Thread(target=define)
one.start()
one.join()
offered = {name: tool.description for name, tool in ipy_agent.session().toolbox.items()}

async def home():
    return asyncio.get_running_loop()

at_home = awaited(home()) is get_asyncio_loop()
manager.reload_extension("ipy_agent")
again = list(ipy_agent.session().toolbox)
print(json.dumps([late, list(offered), offered["inspect"], at_home, again]))
"""


def test_the_kernels_tools_are_there_before_any_of_the_users():
    """Made at the first use, on whichever thread that is: a function of the same name replaces one.

    Coroutines of the thread that loaded run on the shell's loop all the same.
    """
    told = subprocess.check_output([sys.executable, "-c", LATE], text=True)

    late, offered, inspect, at_home, again = json.loads(told.splitlines()[-1])
    assert late
    assert offered == ["python", "inspect", "mine"]
    assert inspect == "Look at what the user means."
    assert at_home
    assert again == ["mine", "python", "inspect"]


UNLOADED = """
import json
from IPython.core.interactiveshell import InteractiveShell

manager = InteractiveShell.instance().extension_manager
manager.load_extension("ipy_agent")
manager.unload_extension("ipy_agent")
import ipy_agent
before = list(ipy_agent.session().toolbox)
manager.load_extension("ipy_agent")
print(json.dumps([before, list(ipy_agent.session().toolbox)]))
"""


def test_what_was_unloaded_before_its_first_use_offers_nothing():
    """The kernel's tools go with the extension also where nobody looked at them."""
    told = subprocess.check_output([sys.executable, "-c", UNLOADED], text=True)

    assert json.loads(told.splitlines()[-1]) == [[], ["python", "inspect"]]
