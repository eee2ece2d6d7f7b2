"""What `doctor` finds: each thing that can be wrong is a line that says what to do."""

from __future__ import annotations

import json
import os
import socket
import sys
from types import SimpleNamespace

import pytest

from ipy_agent import doctor, install
from ipy_agent.doctor import house, way
from ipy_agent.endpoints import Endpoint
from ipy_agent.transport.local import Local

KEPT = {"PATH", "LANG", "PYTHONPATH"}
SECRET = "a-secret-of-the-tests"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch, tmp_path):
    """A user who has nothing: an empty home, no variables."""
    for name in set(os.environ) - KEPT:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Return a function that makes a distribution seem to be installed in some version."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name, version):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")

    return install


@pytest.fixture
def listener():
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def found(topic, goal=None):
    """Return what is found of one topic: the mark, and the rest of the line."""
    findings = [finding for finding in examined(goal, {topic}) if finding.topic == topic]
    assert all(len(str(finding).splitlines()) == 1 for finding in findings)
    return [(finding.mark, finding.reason) for finding in findings]


def said(goal=None):
    return "\n".join(map(str, examined(goal, ())))


def examined(goal, topics):
    """Look at the endpoint and its server, and at no more of this Python than these topics."""
    with pytest.MonkeyPatch.context() as only:
        wanted = {topic: look for topic, look in house.LOOKS.items() if topic in topics}
        only.setattr(house, "LOOKS", wanted)
        return list(doctor.examined(goal))


def test_a_finding_is_one_line():
    """The mark first, then the topic, what was found and what to do."""
    finding = doctor.Finding("missing", "key", "it is\nnot set", "set it")

    assert str(finding) == "missing key        it is not set: set it"
    assert str(doctor.Finding("ok", "key", "set")) == "ok      key        set"


def test_where_an_agent_can_work_nothing_is_missing(served, monkeypatch):
    """This Python, its packages, a kernel, the endpoint: each has its line, the key by its name."""
    endpoint = served()
    monkeypatch.setenv(endpoint.key_env, SECRET)

    findings = list(doctor.examined(lambda: endpoint))

    assert {finding.mark for finding in findings} <= {"ok", "note"}
    topics = {finding.topic for finding in findings if finding.mark == "ok"}
    assert topics >= {"python", "ipy-agent", "packages", "kernels", "endpoint", "key", "answers"}
    assert f"{endpoint.key_env} is set" in said(lambda: endpoint)
    assert SECRET not in said(lambda: endpoint)


# the endpoint


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({}, "local (embedded server): neither IPY_AGENT_ENDPOINT nor OPENAI_API_KEY is set"),
        (
            {"IPY_AGENT_ENDPOINT": "http://127.0.0.1:9/v1?code=" + SECRET, "OPENAI_API_KEY": "k"},
            "127.0.0.1:9 (http://127.0.0.1:9/v1): IPY_AGENT_ENDPOINT says so",
        ),
        (
            {"OPENAI_API_KEY": SECRET, "HTTPS_PROXY": "http://127.0.0.1:9"},
            "openai (https://api.openai.com/v1): OPENAI_API_KEY is set",
        ),
    ],
)
def test_the_endpoint_is_told_with_what_chose_it(monkeypatch, variables, reason):
    """The environment chooses, and what it holds is not shown."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert found("endpoint") == [("ok", reason)]
    assert SECRET not in said()


def test_an_endpoint_that_is_none_is_missing(monkeypatch):
    """The error's own line says what to do."""
    monkeypatch.setenv("IPY_AGENT_ENDPOINT", "opnai")

    ((mark, reason),) = found("endpoint")

    assert mark == "missing"
    assert reason.startswith("'opnai' is no endpoint: use one of openai")


def test_a_session_that_cannot_be_had_is_a_line():
    """What keeps a session from being made is told, not raised."""

    def broken():
        raise ImportError("no module named websockets")

    ((mark, reason),) = found("endpoint", broken)

    assert (mark, reason) == (
        "missing",
        "cannot be looked at (ImportError: no module named websockets)",
    )


def test_a_key_that_is_not_set_is_missing_by_name():
    """The line names the variable."""
    endpoint = Endpoint.named("http://127.0.0.1:9/v1", key_env="MY_KEY")

    ((mark, reason),) = found("key", lambda: endpoint)

    assert mark == "missing"
    assert reason.startswith("MY_KEY is not set: set it")


def test_an_endpoint_elsewhere_without_a_key_is_worth_a_note(monkeypatch, unused_port):
    """It may want none; the line says how to name one."""
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{unused_port}")

    ((mark, reason),) = found("key", lambda: Endpoint.named("https://host.invalid/v1"))

    assert mark == "note"
    assert "--key-env NAME" in reason


def test_an_endpoint_that_needs_a_model_says_so(monkeypatch):
    """Without one, the line says where to name it."""
    ollama = Endpoint.named("ollama")
    assert ("note", "ollama has none of its own: set IPY_AGENT_MODEL, or name one (-m MODEL)") in (
        found("model", lambda: ollama)
    )
    monkeypatch.setenv("IPY_AGENT_MODEL", "m")
    monkeypatch.setenv("IPY_AGENT_ENDPOINT", "ollama")
    assert "has none of its own" not in said()


def test_where_nothing_answers_it_is_missing(unused_port):
    """The line tells the place and the reason."""
    endpoint = Endpoint.named(f"http://127.0.0.1:{unused_port}/v1")

    ((mark, reason),) = found("answers", lambda: endpoint)

    assert mark == "missing"
    assert reason.startswith(f"127.0.0.1:{unused_port} does not (Connection refused): check")


def test_a_peer_that_is_not_encrypted_is_missing(peer):
    """What does not speak TLS does not answer at https."""
    plain = peer()

    ((mark, reason),) = found("answers", lambda: Endpoint.named(f"https://127.0.0.1:{plain.port}"))

    assert mark == "missing"
    assert "does not (" in reason


def test_silence_ends(listener, monkeypatch):
    """A peer that says nothing is not waited for."""
    monkeypatch.setattr(way, "CONNECT_SECONDS", 0.05)

    ((mark, _),) = found("answers", lambda: Endpoint.named(f"https://127.0.0.1:{listener}/v1"))

    assert mark == "missing"


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy"])
def test_a_proxy_is_where_the_way_begins(monkeypatch, listener, unused_port, variable):
    """Its place is tried, and told without the password that stands in its address."""
    elsewhere = Endpoint.named("https://host.invalid/v1")
    monkeypatch.setenv(variable, f"http://user:{SECRET}@127.0.0.1:{listener}")
    assert found("answers", lambda: elsewhere) == [("ok", f"the proxy 127.0.0.1:{listener}")]
    assert found("proxies", lambda: elsewhere) == [("note", "HTTPS_PROXY: requests follow them")]
    assert SECRET not in said(lambda: elsewhere)

    monkeypatch.setenv(variable, f"127.0.0.1:{unused_port}")
    ((mark, reason),) = found("answers", lambda: elsewhere)
    assert mark == "missing"
    assert reason.startswith(f"the proxy 127.0.0.1:{unused_port} does not (Connection refused)")


def test_loopback_passes_by_every_proxy(monkeypatch, listener, unused_port):
    """As its connections do."""
    here = Endpoint.named(f"http://127.0.0.1:{listener}/v1")
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{unused_port}")

    assert found("answers", lambda: here) == [("ok", f"127.0.0.1:{listener}")]
    assert found("proxies", lambda: here) == [("note", "HTTP_PROXY: loopback passes by them")]


def test_a_host_without_proxy_is_tried_itself(monkeypatch, listener):
    """NO_PROXY holds."""
    monkeypatch.setattr(way, "CONNECT_SECONDS", 0.05)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{listener}")
    monkeypatch.setenv("NO_PROXY", "host.invalid")

    ((mark, reason),) = found("answers", lambda: Endpoint.named("https://host.invalid/v1"))

    assert mark == "missing"
    assert reason.startswith("host.invalid:443 does not")


# this Python and what is around it


@pytest.mark.parametrize("version", ["1.0", "99.0", "nonsense"])
def test_a_package_of_another_version_is_missing(installed, version):
    """The line is what to type, and the others are told too."""
    installed("websockets", version)

    bad, good = found("packages")

    assert bad[0] == "missing"
    assert bad[1].startswith(f"websockets {version}: pip install 'websockets")
    assert good[0] == "ok"
    assert "pandas" in good[1]
    assert "websockets" not in good[1]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ImportError('its numpy\\nis another')", "ImportError: its numpy is another"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import os; os._exit(3)", "it ends Python with 3"),
        ("import os; os.abort()", "it ends Python with -6"),
    ],
)
def test_a_package_that_cannot_be_imported_is_missing(monkeypatch, tmp_path, source, reason):
    """Its version fits and it is broken: the line says how, whatever it does to Python."""
    (tmp_path / "pandas.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")

    bad, good = found("packages")

    assert bad[0] == "missing"
    assert bad[1].startswith("pandas ")
    assert f" cannot be imported ({reason}): pip install --force-reinstall pandas" in bad[1]
    assert "websockets" in good[1]


def test_a_broken_package_is_a_line(monkeypatch):
    """What cannot be imported is told, and the rest is looked at all the same."""
    monkeypatch.setitem(sys.modules, "jupyter_client.kernelspec", None)

    ((mark, reason),) = found("kernels")

    assert mark == "missing"
    assert reason.startswith("cannot be looked at (ModuleNotFoundError: ")
    assert found("widgets")


def test_kernels_of_other_pythons_are_counted(monkeypatch, tmp_path):
    """A kernel counts as ours by its command's folder, or a name that anything answers to."""
    for name, command in {"bare": "python", "other": "/opt/other/bin/python", "r": "R"}.items():
        folder = tmp_path / "kernels" / name
        folder.mkdir(parents=True)
        spec = {"argv": [command], "display_name": name, "language": "python"}
        (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))

    ((mark, reason),) = found("kernels")

    assert mark == "ok"
    ours, _, others = reason.partition(" with this Python, ")
    assert {"bare", "python3"} <= set(ours.split(", "))
    assert not {"other", "r"} & set(ours.split(", "))
    assert int(others.split()[0]) >= 2


def test_the_extension_is_told_with_its_file():
    """Before, the ways to have it; after, the file that loads it."""
    ((mark, reason),) = found("extension")
    assert mark == "note"
    assert "ipy-agent install" in reason

    install.add(install.user_file())
    ((mark, reason),) = found("extension")
    assert mark == "ok"
    assert str(install.user_file()) in reason


def test_a_front_end_without_widgets_is_worth_a_note(monkeypatch, tmp_path):
    """JupyterLab without its part of ipywidgets, and with it."""
    monkeypatch.setattr("jupyter_core.paths.jupyter_path", lambda *_: [str(tmp_path)])
    ((mark, reason),) = found("widgets")
    assert mark == "note"
    assert "jupyterlab_widgets>=3" in reason

    (tmp_path / "@jupyter-widgets" / "jupyterlab-manager").mkdir(parents=True)
    ((mark, _),) = found("widgets")
    assert mark == "ok"


# the local server


def test_the_local_server_that_runs_is_found(served, monkeypatch, tmp_path):
    """It is told without its token, and nothing else is needed then."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    server = served()
    token = os.environ[server.key_env]
    folder = tmp_path / "ipy-agent"
    folder.mkdir(mode=0o700)
    with Local(server.url, token, "scripted", 7).published(folder / "server.json"):
        findings, memory = found("local"), found("memory")

    assert findings[-1] == ("ok", f"scripted runs at {server.url}, process 7")
    assert token not in said()
    assert memory == []


def test_without_a_private_folder_there_is_no_local_server(monkeypatch, tmp_path):
    """It is missing where the local server is meant, and a note elsewhere."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))

    ((mark, reason),) = found("local")

    assert mark == "missing"
    assert reason.endswith("set XDG_RUNTIME_DIR to one")
    elsewhere = Endpoint.named("http://127.0.0.1:9/v1")
    assert found("local", lambda: elsewhere) == [("note", reason)]


def test_a_missing_extra_is_what_to_type(installed):
    """The packages of the local server are named with the extra that brings them."""
    installed("xllamacpp", "0.1")

    *_, (mark, reason) = found("local")

    assert (mark, reason) == (
        "missing",
        "xllamacpp 0.1: pip install 'ipy-agent-live[local]'",
    )


def test_weights_that_are_not_here_are_fetched(monkeypatch):
    """That takes a while, so it is told with the command that does it before."""
    ((mark, reason),) = found("model")
    assert mark == "note"
    assert reason.startswith("the first use fetches 1,117 MB")
    assert "ipy-agent model pull" in reason

    monkeypatch.setenv("IPY_AGENT_MODEL", "qwen2.5-coder-0.5b-instruct")
    ((mark, reason),) = found("model")
    assert reason.startswith("the first use fetches 491 MB")


def test_a_file_that_is_no_model_is_missing(monkeypatch, tmp_path):
    """A file of one's own is not fetched, so it has to be right; elsewhere nobody needs it."""
    monkeypatch.setenv("IPY_AGENT_GGUF", str(tmp_path / "gone.gguf"))

    *_, (mark, reason) = found("local")

    assert mark == "missing"
    assert reason.startswith("IPY_AGENT_GGUF: ")
    elsewhere = Endpoint.named("http://127.0.0.1:9/v1")
    assert found("local", lambda: elsewhere)[-1] == ("note", reason)


def test_a_model_that_does_not_fit_is_missing(monkeypatch, tmp_path):
    """Its weights and what it needs beside them have to be free."""
    file = tmp_path / "huge.gguf"
    with file.open("wb") as weights:
        weights.write(b"GGUF")
        weights.truncate(2**42)  # no disk has to hold what was never written
    monkeypatch.setenv("IPY_AGENT_GGUF", str(file))

    ((mark, reason),) = found("memory")

    assert mark == "missing"
    assert "the model needs 4,398.8 GB: close something" in reason


# the kernel


def shell(*, stdin=True, metadata=None, **more):
    """Return what a cell's shell would be like."""
    kernel = SimpleNamespace(_allow_stdin=stdin, **more)
    return SimpleNamespace(kernel=kernel, get_parent=lambda: {"metadata": metadata or {}})


def test_a_kernel_tells_what_its_front_end_can():
    """Whether it can be asked, whether it names its cells, whether widgets can be shown."""
    rich = shell(metadata={"cellId": "1"}, comm_manager=object())
    plain = shell(stdin=False)

    assert [finding.mark for finding in doctor.examined_kernel(rich)] == ["ok"] * 3
    stdin, cells, comm = doctor.examined_kernel(plain)
    assert {stdin.mark, cells.mark, comm.mark} == {"note"}
    assert "%agent mode auto" in stdin.reason
    assert "appends" in cells.reason
    assert "none" in comm.reason


def test_a_terminal_has_no_kernel():
    """That is all there is to tell."""
    ((mark, topic, *_),) = doctor.examined_kernel(SimpleNamespace())

    assert (mark, topic) == ("ok", "kernel")


def test_a_kernel_of_another_kind_is_a_line():
    """What is not there to be looked at is told, not raised."""
    (finding,) = doctor.examined_kernel(SimpleNamespace(kernel=object()))

    assert finding.mark == "missing"
    assert "AttributeError" in finding.reason
