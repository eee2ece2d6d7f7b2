"""A key is put into the environment, everything is done, and the key is looked for everywhere.

Here in this process; in a real kernel, `tests/kernel/test_canary.py` does the same.
"""

from __future__ import annotations

import base64
import copy
import html
import http.client
import json
import logging
import os
import pickle
import signal
import stat
import subprocess
import sys
import traceback
import urllib.parse

import msgspec
import pandas as pd
import pytest

from ipy_agent.agent.tools import TOOLS, tool
from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import AgentError, AuthenticationFailed, UsageError
from ipy_agent.journal import facts
from ipy_agent.secrets import MASK, Secret
from ipy_agent.sessions import Session
from ipy_agent.settings import Settings
from ipy_agent.transport.address import Address
from ipy_agent.transport.local import Local
from ipy_agent.transport.scripted import ScriptedTransport

SECONDS = 20
VARIABLE = "THE_ENDPOINT"  # its name says nothing of what it holds
SUFFIXES = ("csv", "jsonl", "json", "html", "md")


@pytest.fixture
def key(canary, monkeypatch):
    """The canary in the environment, and nothing else that would make it known."""
    monkeypatch.setenv(VARIABLE, canary)
    return canary


@pytest.fixture(autouse=True)
def tools():
    """The tools of the process are those of the test."""
    before = dict(TOOLS)
    TOOLS.clear()
    yield
    TOOLS.clear()
    TOOLS.update(before)


@pytest.fixture
def session(state):
    """Return a function that makes a session that is kept; `kept()` are the files of all."""
    made = []

    def make(*arguments, **more):
        made.append(Session(*arguments, mode="auto", journal=True, budget_turns=60, **more))
        return made[-1]

    make.kept = lambda: {
        str(file): file.read_bytes() for file in state.rglob("*") if file.is_file()
    }
    yield make
    for one in made:
        one.close()


def left(session, folder):
    """Return all that a session leaves, by names."""
    artefacts = {"repr": repr(session), "status": session.describe(), "tree": session.tree}
    artefacts["vars"] = repr(vars(session)) + repr(vars(session._connections))
    for name in ("turns", "cells", "tools", "messages"):
        artefacts[name] = getattr(session, name).to_csv()
        for suffix in SUFFIXES:
            file = session.export(folder / f"{name}.{suffix}", name)
            artefacts[file.name] = file.read_bytes()
        file = session.export(folder / f"{name}.parquet", name)
        artefacts[file.name] = pd.read_parquet(file).to_csv()
    artefacts["records"] = repr([vars(session.records)])
    endpoint = session.endpoint
    artefacts["endpoint"] = repr(endpoint) + repr(copy.deepcopy(endpoint))
    artefacts["pickled endpoint"] = pickle.dumps(endpoint)
    return artefacts


def told(error):
    """Return all that an error tells, the variables of its frames among it."""
    return {
        "error": f"{error} {error!r} {error.line} {vars(error)!r}",
        "shown": "".join(error._render_traceback_()),
        "pickled": pickle.dumps(error),
        "behind it": repr(list(behind(error))),  # Dask's processes pickle that as well
        "traceback": with_variables(error),
    }


def behind(error):
    """Yield the errors that led to one, also those that no traceback shows."""
    for before in filter(None, (error.__cause__, error.__context__)):
        yield before
        yield from behind(before)


def with_variables(error):
    """Return an error's traceback with the variables of all frames but that of the test."""
    kind, frames = type(error), error.__traceback__ and error.__traceback__.tb_next
    return "".join(traceback.TracebackException(kind, error, frames, capture_locals=True).format())


def test_the_scan_can_fail(canary, leaks):
    """It finds the key in every form in which a tool below tells it."""
    forms = {name: str(write(canary)) for name, write in WRITTEN.items()}

    assert leaks(forms) == list(forms)
    assert leaks({"nothing": MASK, "half": canary[:10]}) == []


WRITTEN = {
    "plain": lambda value: value,
    "json": lambda value: json.dumps({"key": value}),
    "repr": lambda value: repr({"key": value}),
    "url": lambda value: urllib.parse.quote(value, safe=""),
    "form": lambda value: urllib.parse.urlencode({"key": value}),
    "html": html.escape,
    "base64": lambda value: base64.b64encode(value.encode()).decode(),
    "basic": lambda value: base64.b64encode(f"me:{value}".encode()).decode(),
    "websafe": lambda value: base64.urlsafe_b64encode(f"a {value}".encode()).decode(),
    "cut": lambda value: f"{value[:30]}...",
    "at the bound": lambda value: "x" * 13_320 + value + "y" * 90_000,
}


def test_a_tool_tells_the_key_to_nobody(key, leaks, session, tmp_path):
    """Returned, raised, in an object: neither the model nor any file gets to know it."""
    Secret.named(VARIABLE)

    @tool
    def tell(form: str, how: str) -> object:
        """Tell the key."""
        said = WRITTEN[form](key)
        if how == "raise":
            raise ValueError(said)
        return {"here": [said]} if how == "object" else said

    calls = [
        {"tool_calls": [{"name": "tell", "arguments": {"form": form, "how": how}}]}
        for form in WRITTEN
        for how in ("return", "raise", "object")
    ]
    transport = ScriptedTransport([*calls, {"text": "That was all."}])
    kept = session(transport=transport)

    answer = kept.run("Tell it in every form.")
    artefacts = left(kept, tmp_path)
    kept.close()

    sent = [msgspec.json.encode(request.input.since(0)) for request in transport.requests]
    artefacts |= session.kept() | {"answer": answer.text, "sent": b"".join(sent)}
    assert leaks(artefacts) == []
    assert len(kept.records.tools) == len(calls)
    assert all(MASK in row.output for row in kept.records.tools)


@pytest.mark.parametrize("way", ["websocket", "http"])
def test_an_endpoint_that_echoes_the_key_is_not_repeated(
    key, leaks, session, peer, http_echo, tmp_path, way
):
    """In what it says bit by bit, in a call of a tool, in the reason of a refusal."""
    ran = []

    @tool
    def act(text: str) -> str:
        """Act."""
        ran.append(text)
        return text

    turns = [said(key, call=True), said(key, call=False), [refusal(key)]]
    if way == "websocket":
        endpoint = peer(turns).endpoint(key_env=VARIABLE)
    else:
        endpoint = http_echo(turns).endpoint(key_env=VARIABLE)
    heard = []
    kept = session(endpoint, transport=way)

    answer = kept.run("Who am I?", front=Ear(heard))
    with pytest.raises(AgentError) as failed:
        kept.run("And now?", front=Ear(heard))
    artefacts = left(kept, tmp_path)
    kept.close()

    artefacts |= session.kept() | told(failed.value)
    artefacts |= {"answer": answer.text, "heard": repr(heard), "ran": repr(ran)}
    artefacts["bit by bit"] = "".join(getattr(event, "delta", "") for event in heard)
    assert leaks(artefacts) == []
    assert answer.text == f"You are {MASK}."
    assert MASK in str(failed.value)
    assert ran == [MASK]


def said(key, *, call):
    """Return the frames of a response that says the key in pieces, and calls a tool with it."""
    text = f"You are {key}."
    pieces = [text[at : at + 5] for at in range(0, len(text), 5)]
    item = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": text}],
    }
    if call:
        arguments = json.dumps({"text": key})
        item = {"type": "function_call", "call_id": "c", "name": "act", "arguments": arguments}
    done = {"id": f"resp_{call}", "status": "completed", "output": [item]}
    return [
        {"type": "response.created", "response": {"id": f"resp_{call}"}},
        *({"type": "response.output_text.delta", "output_index": 0, "delta": x} for x in pieces),
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": done},
    ]


def refusal(key):
    told = {"message": f"Incorrect API key provided: {key}", "code": "no", "param": key}
    return {"type": "error", "status": 400, "error": told}


class Ear:
    """A front that hears everything."""

    def __init__(self, heard):
        from ipy_agent.agent.runs import Quiet

        self._quiet = Quiet()
        self.show = heard.append

    def __getattr__(self, name):
        return getattr(self._quiet, name)


@pytest.fixture
def http_echo():
    """Return a function that starts a server of HTTP that answers each request with frames."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def endpoint(self, **more):
            return Endpoint.named(f"http://127.0.0.1:{self.server_port}/v1", **more)

    started = []

    def start(turns):
        turns = iter(turns)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["content-length"]))
                frames = next(turns)
                status = 400 if frames[0]["type"] == "error" else 200
                body = "".join(f"data: {json.dumps(frame)}\n\n" for frame in frames).encode()
                if status != 200:
                    body = json.dumps(frames[0]).encode()
                self.send_response(status)
                kind = "text/event-stream" if status == 200 else "application/json"
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = Server(("127.0.0.1", 0), Handler)
        started.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def test_a_failure_does_not_tell_the_key(key, leaks, session, peer, unused_port, monkeypatch):
    """Refused, redirected, garbled, not there, or a key that no header takes."""
    place = f"https://elsewhere/{urllib.parse.quote(key)}"
    monkeypatch.setenv("ODD_KEY", f"{key}\u2026")
    monkeypatch.setenv("TORN_KEY", f"{key[:20]}\n{key[20:]}")
    endpoints = {
        "401": peer(401).endpoint(key_env=VARIABLE),
        "redirect": peer((302, {"Location": place})).endpoint(key_env=VARIABLE),
        "garbled": peer([[f"{{{key}"]], [[f"{{{key}"]]).endpoint(key_env=VARIABLE),
        "closed": peer([[("close", 1008)]]).endpoint(key_env=VARIABLE),
        "nobody": Endpoint.named(f"http://127.0.0.1:{unused_port}/v1", key_env=VARIABLE),
        "odd": peer([]).endpoint(key_env="ODD_KEY"),
        "torn": peer([]).endpoint(key_env="TORN_KEY"),
    }

    for name, endpoint in endpoints.items():
        with pytest.raises(AgentError) as failed:
            session(endpoint, transport="websocket").run("Hello?")

        assert leaks(told(failed.value)) == [], name
        if name in ("401", "odd", "torn"):
            assert isinstance(failed.value, AuthenticationFailed)
            assert endpoint.key_env in str(failed.value)
    assert leaks(session.kept()) == []


@pytest.mark.usefixtures("key")
def test_no_error_from_the_loop_brings_variables_along(leaks, session, peer, monkeypatch):
    """With a bug in the midst of a handshake, the traceback's frames are empty."""
    from websockets.asyncio.client import ClientConnection

    async def broken(_, additional_headers=None, *__, **___):
        return 1 / len(additional_headers[0])

    monkeypatch.setattr(ClientConnection, "handshake", broken)
    endpoint = peer([]).endpoint(key_env=VARIABLE)

    with pytest.raises((KeyError, TypeError)) as failed:
        session(endpoint, transport="websocket").run("Hello?")

    shown = with_variables(failed.value)
    assert "in broken" in shown
    assert "prompt = 'Hello?'" in shown  # on this side of the loop they are there
    assert leaks({"traceback": shown}) == []


def test_no_log_and_no_socket_has_the_key(key, leaks, session, peer, caplog):
    """With all logging on: a request's headers are in none of it, nor in what is kept of it."""
    caplog.set_level(logging.CRITICAL, "websockets.server")  # that is the other end
    caplog.set_level(0)
    there = peer([[{"type": "response.completed", "response": {"id": "r", "output": []}}]])
    kept = session(there.endpoint(key_env=VARIABLE), transport="websocket")

    kept.run("Hello?")
    sockets = [
        connection.socket
        for way in kept._connections._transports.values()
        for connection in way.transport._pool._connections
    ]

    assert there.seen[0].headers["Authorization"] == f"Bearer {key}"
    assert len(sockets) == 1
    assert leaks({"sockets": repr([vars(one) for one in sockets]), "log": caplog.text}) == []
    assert repr(sockets[0].request.headers).count("Bearer") == 0


def test_an_error_is_masked_whatever_made_it(key, leaks):
    """A library's words, a peer's, a line of a log: an error tells no key, known or of a kind."""
    Secret.named(VARIABLE)
    looks = "hf_canary4f9aB7c2D8e1F6a3"
    errors = [AgentError(f"{key} {looks}"), UsageError(f"{{'key': {key!r}}}", code="x")]

    assert [leaks(told(raised(error))) for error in errors] == [[], []]
    assert MASK in str(errors[0])


def raised(error):
    try:
        raise error
    except AgentError as caught:
        return caught.with_traceback(None)


def test_a_journal_is_redacted_as_it_is_written(key, leaks):
    """What was said before its value was known is not copied into another file."""
    Secret.named(VARIABLE)
    said = [{"type": "message", "content": [{"text": f'the "key" is {key}'}]}]
    fact = facts.Said(cell=1, turn=1, branch="main", items=said)

    kept = facts.encode(fact)

    assert leaks({"fact": kept}) == []
    assert facts.decode(kept).items == [
        {"type": "message", "content": [{"text": f'the "key" is {MASK}'}]}
    ]


def test_what_holds_a_key_does_not_show_it(key, leaks):
    """An address and its headers' owner, a local server; only its own file has a token."""
    address = Address("ws://h", "http://h", Secret(key))
    local = Local("http://127.0.0.1:1/v1", Secret(key), "m", 1)
    shown = {
        "address": repr(address) + repr(copy.deepcopy(address)),
        "parts": repr(msgspec.structs.asdict(address)),
        "local": repr(local) + repr(copy.copy(local)),
    }

    assert leaks(shown) == []
    assert leaks({"file": local.encoded()}) == ["file"]


# what people type


@pytest.mark.parametrize(
    "prompt", ["{}", "Use {} please", "```\nkey = '{}'\n```", "curl -H 'Authorization: Bearer {}'"]
)
@pytest.mark.parametrize("typed", ["known", "looks"])
def test_a_prompt_with_a_key_is_not_sent(key, leaks, session, prompt, typed):
    """It is refused before anything is kept of it, and the line does not repeat the key."""
    Secret.named(VARIABLE)
    transport = ScriptedTransport()
    kept = session(transport=transport)
    value = key if typed == "known" else "hf_canary4f9aB7c2D8e1F6a3"

    for act in (kept.run, kept.rehearse):
        with pytest.raises(UsageError, match="not sent: the prompt, or what it hands") as refused:
            act(prompt.format(value))
        assert refused.value.code == "key_typed"
        assert leaks({"error": f"{refused.value!r}"}) == []
    assert transport.requests == []
    assert len(kept.records.cells) == 0
    kept.close()
    assert leaks(session.kept()) == []


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (("sk-canary4f9aB7c2D8e1F6a3",), {}),
        (("canary4f9aB7c2D8e1F6a3",), {}),  # of no kind that we know
        (("https://h/v1?key=sk-canary4f9aB7c2D8e1F6a3",), {}),
        (("https://canary4f9aB7c2D8e1F6a3@h/v1",), {}),
        (("https://h/v1",), {"key_env": "sk-canary4f9aB7c2D8e1F6a3"}),
        (("https://h/v1",), {"key_env": "xai_canary4f9aB7c2D8e1F6a3"}),
        (("https://h/v1",), {"key_env": "canary4f9aB7c2D8e1F6a3"}),
        (("https://h/v1",), {"model": "sk-canary4f9aB7c2D8e1F6a3"}),
        (("openai",), {"key_env": "sk-canary4f9aB7c2D8e1F6a3"}),
    ],
)
def test_a_key_in_place_of_a_name_is_refused_and_not_repeated(arguments, options, leaks, session):
    """Whoever says a key where its variable's name belongs is told where it belongs."""
    kept = session(transport=ScriptedTransport())

    with pytest.raises(UsageError) as refused:
        kept.connect(*arguments, **options)

    shown = told(refused.value) | {"session": repr(kept.endpoint)}
    assert leaks(shown) == ["traceback"]  # which nobody is shown, and which has what was typed
    assert (
        "environment" in str(refused.value)
        or "no endpoint" in str(refused.value)
        or ("--key-env" in str(refused.value))
    )


def test_a_variable_of_any_name_that_is_set_can_hold_a_key(monkeypatch):
    """Only what is not set has to look like a name."""
    monkeypatch.setenv("myKey1", "sesame")

    assert Endpoint.named("https://h/v1", key_env="myKey1").key().reveal() == "sesame"
    assert Endpoint.named("https://h/v1", key_env="NOT_SET_YET").key_env == "NOT_SET_YET"


@pytest.mark.parametrize("name", ["model", "instructions", "effort", "prompt_cache_key"])
def test_a_setting_holds_no_key(name, leaks):
    """What is set is sent and shown."""
    with pytest.raises(UsageError, match=f"{name} holds a key") as refused:
        Settings(**{name: "use sk-canary4f9aB7c2D8e1F6a3"})

    assert leaks({"error": str(refused.value)}) == []


# what the server leaves


def test_the_server_tells_its_token_in_its_own_file_only(canary, leaks, tmp_path):
    """The runtime file is for its user alone; output, log and answers do not have the token."""
    token = "canary4f9aB7c2D8e1F6a3X9z0Qw7Er5Ty"
    file = tmp_path / "server.json"
    command = [sys.executable, "-m", "ipy_agent", "serve", "--engine", "scripted"]
    with subprocess.Popen(
        [*command, "--runtime-file", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "IPY_AGENT_SERVER_TOKEN": token, "OTHER_KEY": canary},
    ) as server:
        line = server.stdout.readline()
        port = int(line.rpartition(b":")[2].partition(b"/")[0])
        answers = {}
        for given in ("wrong", token):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
            connection.request("GET", "/health", headers={"Authorization": f"Bearer {given}"})
            answer = connection.getresponse()
            answers[str(answer.status)] = repr(answer.getheaders()).encode() + answer.read()
            connection.close()
        kept, mode = file.read_bytes(), stat.S_IMODE(file.stat().st_mode)
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=SECONDS)

    assert leaks({"out": line + out, "err": err, **answers}) == []
    assert answers.keys() == {"401", "200"}
    assert leaks({"file": kept}) == ["file"]
    assert mode == 0o600


def test_a_value_that_becomes_known_later_is_in_no_export(leaks, session, tmp_path, monkeypatch):
    """It was said before anybody could know; tables, documents and what is kept from then on."""
    value = "zz-canary4f9aB7c2D8e1F6a3"

    @tool
    def load() -> str:
        """Load a file of settings."""
        monkeypatch.setenv("LATE_TOKEN", value)
        return "loaded"

    script = [{"text": f"You wrote {value}."}, {"tool_calls": [{"name": "load"}]}, {"text": "So."}]
    kept = session(transport=ScriptedTransport(script))
    kept.run(f"What is {value}?")
    before = leaks({"prompt": kept.cells["prompt"][0]})
    kept.run("Load.")
    artefacts = left(kept, tmp_path)

    assert before == ["prompt"]
    assert leaks({name: said for name, said in artefacts.items() if name != "records"}) == []
    with pytest.raises(UsageError, match="holds a key"):
        kept.run(f"And {value}?")
