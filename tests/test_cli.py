"""The command line: what it prints, and how it ends."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from websockets.sync.client import connect

from ipy_agent import __version__
from ipy_agent.cli import main

TOKEN = "a-token-of-the-tests"


@pytest.fixture(autouse=True)
def _token(monkeypatch):
    """No server writes a token into the home of whoever runs the tests."""
    monkeypatch.setenv("IPY_AGENT_SERVER_TOKEN", TOKEN)


@pytest.fixture
def environment(tmp_path):
    """The environment of a user who has nothing: an empty home, no keys."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return {
        **kept,
        "HOME": str(tmp_path),
        "XDG_RUNTIME_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }


@pytest.fixture
def ended(environment):
    """Return a function that sees `python` through and returns exit code, output and errors."""

    def run(*arguments, **more):
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**environment, **more},
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def nothing_here(monkeypatch, tmp_path):
    """No weights, and no variable that names some."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("IPY_AGENT_GGUF", "IPY_AGENT_MODEL"):
        monkeypatch.delenv(name, raising=False)


@contextlib.contextmanager
def serving(environment, *more):
    """Start a server; yields its process, once its line is there, and the line."""
    command = [sys.executable, "-m", "ipy_agent", "serve", "--engine", "scripted", *more]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, "IPY_AGENT_SERVER_TOKEN": TOKEN},
    ) as process:
        try:
            yield process, process.stdout.readline()
        finally:
            process.kill()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["serve", "--port", "x"],
        ["serve", "--engine", "steam"],
        ["serve", "--cache", "most"],
        ["serve", "--slots", "many"],
        ["serve", "--slots", "0"],
        ["serve", "--slots", "-1"],
        ["serve", "--idle-exit", "0"],
        ["serve", "--idle-exit", "nan"],
        ["serve", "--connection-limit", "0"],
        ["serve", "--connection-limit", "-1"],
        ["serve", "--connection-limit", "long"],
        ["model"],
        ["model", "fly"],
        ["install"],
        ["install", "--undo"],
        ["install", "--user", "--sys-prefix"],
        ["doctor", "now"],
        ["bench", "--turns", "0"],
        ["bench", "--rounds", "some"],
        ["bench", "--modes"],
        ["--fly"],
    ],
)
def test_wrong_usage_ends_with_2(capsys, arguments):
    """The usage is shown, and the last line says what is wrong."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)

    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.out == ""
    assert said.err.startswith("usage: ipy-agent")
    assert "error: " in said.err.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["serve", "--help"],
        ["model", "pull", "--help"],
        ["install", "--help"],
        ["bench", "--help"],
    ],
)
def test_help_ends_with_0(capsys, arguments):
    """It is on standard output."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)

    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ipy-agent")


def test_it_has_a_version(capsys):
    """The package's own."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])

    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ('{"text": "a"}', "not a JSON list"),
        ('[{"text": "a"}, {"txt": "b"}]', "entry 2 of the script"),
    ],
)
def test_a_bad_script_ends_with_2_and_a_line(capsys, tmp_path, content, said):
    """Nothing is served, and nothing is on standard output."""
    script = tmp_path / "script.json"
    if content is not None:
        script.write_text(content)

    assert main(["serve", "--engine", "scripted", "--script", str(script)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("ipy-agent: ")
    assert said in told.err
    assert len(told.err.splitlines()) == 1


def test_serve_says_where_its_token_is(environment):
    """Where nobody named one, a line on standard error tells the file; never the token."""
    command = [sys.executable, "-m", "ipy_agent", "serve", "--engine", "scripted"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        process.stdout.readline()
        process.terminate()
        out, errors = process.communicate(timeout=20)

    file = Path(errors.removeprefix("the token is in ").strip())
    assert file.read_text() not in out + errors
    assert file.is_relative_to(environment["HOME"])
    assert process.returncode == 0


def test_a_script_without_its_engine_ends_with_2_and_a_line(capsys):
    """It would be ignored."""
    assert main(["serve", "--script", "script.json"]) == 2
    assert capsys.readouterr().err.startswith("ipy-agent: --script is for --engine scripted")


@pytest.mark.parametrize("port", ["99999", "-1"])
def test_a_port_that_is_none_ends_with_2_and_a_line(capsys, port):
    """The line names the port."""
    assert main(["serve", "--engine", "scripted", "--port", port]) == 2
    assert f"port {port} cannot be had" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_prints_one_line_and_answers(environment, tmp_path, number):
    """The line is true, nothing else is printed to the end, and a signal ends it with 0."""
    script = tmp_path / "script.json"
    script.write_text('[{"text": "a"}]')

    with serving(environment, "--script", str(script)) as (process, line):
        url = line.removeprefix("listening on ").strip()
        asked = urllib.request.Request(
            f"{url}/models", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(asked, timeout=20) as answer:
            models = json.load(answer)
        process.send_signal(number)
        out, errors = process.communicate(timeout=20)

    assert line == f"listening on {url}\n"
    assert url.startswith("http://127.0.0.1:")
    assert url.endswith("/v1")
    assert [model["id"] for model in models["data"]] == ["scripted"]
    assert (out, errors) == ("", "")
    assert process.returncode == 0


def test_serve_ends_a_connection_that_is_old(environment):
    """As old as `--connection-limit` says: its client hears why, and that it was in order."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with serving(environment, "--connection-limit", "0.1") as (_, line):
        url = line.removeprefix("listening on http").strip()
        with connect(f"ws{url}/responses", additional_headers=headers, proxy=None) as client:
            said = [json.loads(frame) for frame in client]

    assert [frame["error"]["code"] for frame in said] == ["websocket_connection_limit_reached"]
    assert client.close_code == 1000


def test_serve_takes_the_port_that_is_named(environment, unused_port):
    """A second server there is told so, and ends with 2."""
    with serving(environment, "--port", str(unused_port)) as (_, line):
        assert line == f"listening on http://127.0.0.1:{unused_port}/v1\n"
        with serving(environment, "--port", str(unused_port)) as (second, nothing):
            _, errors = second.communicate(timeout=20)

    assert nothing == ""
    assert second.returncode == 2
    assert f"port {unused_port} cannot be had" in errors


@pytest.mark.usefixtures("nothing_here")
def test_model_list_shows_every_model_and_whether_it_is_here(capsys):
    """A row a model: name, size, licence, state."""
    assert main(["model", "list"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 3
    assert any(row.startswith("qwen2.5-coder-1.5b-instruct") for row in rows)
    assert all(row.endswith("not here") for row in rows)
    assert all(" MB " in row for row in rows)


@pytest.mark.usefixtures("nothing_here")
def test_model_path_of_a_file_of_ones_own(capsys, tmp_path):
    """It is where it was said to be."""
    file = tmp_path / "mine.gguf"
    file.write_bytes(b"GGUF" + bytes(64))

    assert main(["model", "path", str(file)]) == 0
    assert capsys.readouterr().out.strip() == str(file)


@pytest.mark.usefixtures("nothing_here")
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["model", "path"], 1, "ipy-agent model pull"),
        (["model", "path", "no-such-model"], 2, "no model is named 'no-such-model'"),
        (["model", "pull", "no-such-model"], 2, "no model is named 'no-such-model'"),
        (["model", "pull", "/no/such/file.gguf"], 1, "/no/such/file.gguf"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(capsys, arguments, code, said):
    """1 for a job that failed, 2 for a name that is none."""
    assert main(arguments) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert said in told.err
    assert len(told.err.splitlines()) == 1


def test_install_says_what_it_did(capsys, monkeypatch, tmp_path):
    """Added, there already, undone, nothing to undo: each names the file and ends with 0."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    file = tmp_path / "profile_default" / "ipython_config.py"

    lines = []
    for more in ([], [], ["--undo"], ["--undo"]):
        assert main(["install", "--user", *more]) == 0
        lines.append(capsys.readouterr().out)

    there = "%%agent is there in every new kernel and terminal of your default profile"
    assert lines == [
        f"{there}, by one line in {file}\n",
        f"the line is there already, in {file}\n",
        f"undone: the line is out of {file}\n",
        f"nothing to undo in {file}\n",
    ]
    assert not file.exists()


def test_install_for_an_environment(capsys, monkeypatch, tmp_path):
    """The file is below `sys.prefix`."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))

    assert main(["install", "--sys-prefix"]) == 0
    assert (tmp_path / "etc" / "ipython" / "ipython_config.py").is_file()
    assert main(["install", "--sys-prefix", "--undo"]) == 0
    assert "undone" in capsys.readouterr().out


def test_an_install_that_fails_ends_with_1_and_a_line(capsys, monkeypatch, tmp_path):
    """The line says which file it is."""
    (tmp_path / "profile_default").touch()
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))

    assert main(["install", "--user"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"ipy-agent: {tmp_path}/profile_default/ipython_config.py cannot be")
    assert len(told.err.splitlines()) == 1


def test_doctor_ends_with_0_where_an_agent_can_work(capsys, monkeypatch, served, tmp_path):
    """Every line has its mark."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("IPY_AGENT_ENDPOINT", served().url)

    assert main(["doctor"]) == 0
    told = capsys.readouterr()
    assert {line.split()[0] for line in told.out.splitlines()} == {"ok", "note"}
    assert told.err == ""


def test_doctor_ends_with_1_and_the_reason(ended, unused_port):
    """All lines are there, what is missing is the one line on standard error, and no secret is."""
    url = f"http://127.0.0.1:{unused_port}/v1"
    code, out, errors = ended("-m", "ipy_agent", "doctor", IPY_AGENT_ENDPOINT=url, X_API_KEY=TOKEN)

    assert code == 1
    assert [line for line in out.splitlines() if line.startswith("missing")]
    assert errors.startswith("ipy-agent: no agent can work here yet: 127.0.0.1:")
    assert len(errors.splitlines()) == 1
    assert TOKEN not in out + errors


PAGE = {"tool_calls": [{"name": "page", "arguments": {"number": 1}}]}


def test_bench_prints_its_summary_and_writes_its_figures(ended, environment, tmp_path):
    """What goes on is on standard error; the folder is made, and holds frames and a picture."""
    script, out = tmp_path / "script.json", tmp_path / "new" / "out"
    script.write_text(json.dumps([PAGE] * 10), "utf-8")
    with serving(environment, "--script", str(script)) as (_, line):
        options = ["--endpoint", line.split()[-1], "--key-env", "MINE", "--out", str(out)]
        options += ["--turns", "2", "--rounds", "2"]
        code, said, errors = ended("-m", "ipy_agent", "bench", *options, MINE=TOKEN)

    assert (code, said == (out / "summary.txt").read_text("utf-8")) == (0, True)
    assert "websocket: NA" not in said
    assert "http: NA, the prompt cache of 127.0.0.1:" in said
    assert "round 2 of 2, websocket: 2 turns in " in errors
    assert len((out / "turns.csv").read_text("utf-8").splitlines()) == 1 + 2 + 8
    assert (out / "turns.png").read_bytes().startswith(b"\x89PNG")
    assert TOKEN not in said + errors


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--modes", "pigeon"], 2, "'pigeon' is no mode: there are http,"),
        (["--out", "/dev/null/out"], 2, "/dev/null/out cannot be made: Not a directory"),
        (["--endpoint", "nowhere"], 2, "'nowhere' is no endpoint"),
        (["--endpoint", "http://127.0.0.1:{port}/v1"], 1, "127.0.0.1:{port}"),
    ],
)
def test_a_bench_that_cannot_be_is_one_line(capsys, unused_port, options, code, said):
    """2 for what was typed wrong, 1 for an endpoint where nobody answers."""
    before = signal.getsignal(signal.SIGTERM)
    assert main(["bench", *(option.format(port=unused_port) for option in options)]) == code
    assert signal.getsignal(signal.SIGTERM) == before

    told = capsys.readouterr()
    assert told.out == ""
    last = told.err.splitlines()[-1]
    assert last.startswith("ipy-agent: ")
    assert said.format(port=unused_port) in last
    assert told.err.count("ipy-agent: ") == 1


def test_a_bench_that_is_ended_ends_its_servers(environment, tmp_path):
    """SIGTERM is as Ctrl-C: a line, and no server is left."""
    script = tmp_path / "script.json"
    script.write_text(json.dumps([PAGE, {**PAGE, "then": "hang"}]), "utf-8")
    command = [sys.executable, "-c", HANGING, str(script)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as bench:
        begun = [bench.stderr.readline() for _ in range(3)]
        bench.send_signal(signal.SIGTERM)
        rest = bench.stderr.read()
        pids = bench.stdout.read().split()

    assert begun[2] == "round 1 of 3, websocket …\n"
    assert (bench.returncode, rest.splitlines()[-1]) == (1, "ipy-agent: interrupted")
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


HANGING = """
import sys
from functools import partial
from ipy_agent import bench, cli
from ipy_agent.transport import local

def told(folder, end=local.end_server):
    print(*(server.pid for server in local._started), flush=True)
    end(folder)

bench.end_server = told
serve = [sys.executable, "-m", "ipy_agent", "serve", "--engine", "scripted", "--script"]
bench.run = partial(bench.run, serve=[*serve, sys.argv[1]])
command = ["bench", "--endpoint", "local", "--modes", "websocket", "--rounds", "3"]
sys.exit(cli.main(command))
"""


def test_an_interrupt_ends_with_1_and_a_line(capsys, monkeypatch):
    """Ctrl-C while a job runs shows no traceback."""

    class Interrupted(io.StringIO):
        def write(self, _text):
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdout", Interrupted())

    assert main(["model", "list"]) == 1
    assert capsys.readouterr().err == "ipy-agent: interrupted\n"


def test_python_m_is_the_same(ended):
    """It has the same name, exit codes and lines."""
    assert ended("-m", "ipy_agent", "--version") == (0, f"{__version__}\n", "")
    code, out, errors = ended("-m", "ipy_agent", "fly")
    assert (code, out) == (2, "")
    assert errors.startswith("usage: ipy-agent")
    code, out, errors = ended("-m", "ipy_agent", "model", "path", "no-such-model")
    assert (code, out) == (2, "")
    assert errors.startswith("ipy-agent: no model is named")


BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == sys.argv[1]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
from ipy_agent.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_a_missing_extra_is_named(ended, missing):
    """The line is what to type; what does not need the extra works without it."""
    code, out, errors = ended("-c", BLOCKED, missing, "serve", "--engine", "scripted")
    assert (code, out) == (1, "")
    assert errors == (
        "ipy-agent: the embedded server needs more packages: pip install 'ipy-agent-live[local]'\n"
    )
    assert ended("-c", BLOCKED, missing, "model", "list")[0] == 0


def test_a_missing_engine_is_named(ended, tmp_path):
    """Without xllamacpp a model of one's own cannot be served: the line is what to type."""
    file = tmp_path / "mine.gguf"
    file.write_bytes(b"GGUF" + bytes(64))

    code, out, errors = ended("-c", BLOCKED, "xllamacpp", "serve", "--model", str(file))
    assert (code, out) == (1, "")
    assert errors.splitlines()[-1].startswith("ipy-agent: ")
    assert errors.splitlines()[-1].endswith("pip install 'ipy-agent-live[local]'")
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("command", "more"), [("--version", {"IPython", "httpx2"}), ("doctor", set())]
)
def test_the_command_line_loads_nothing_heavy(ended, command, more):
    """Showing a version imports no web server, no pandas, no model; nor does the doctor."""
    heavy = {"pandas", "ipywidgets", "websockets", "starlette", "uvicorn", "xllamacpp", *more}
    code = (
        "import sys\nfrom ipy_agent.cli import main\n"
        f"try:\n    main([{command!r}])\nexcept SystemExit:\n    pass\n"
        f"print(sorted({heavy!r} & sys.modules.keys()))"
    )

    *said, loaded = ended("-c", code)[1].splitlines()
    assert said
    assert loaded == "[]"
