"""What must not be seen is masked wherever it is looked at, and found however it is written."""

from __future__ import annotations

import ast
import base64
import copy
import dataclasses
import html
import json
import pickle
import urllib.parse
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ipy_agent
from ipy_agent.secrets import (
    MASK,
    Secret,
    clean_environment,
    holds_key,
    learn,
    masked,
    redacted,
    shown_so_far,
)

VALUE = "<'\"&\\/+%4f9aB7c2D8e1F6a3X9z0Q5"
PLAIN = "sk-proj-8Zt2Lq9Wn4Xc7Vb1Mk6Jh3Gf5Ds0Pa"


@dataclasses.dataclass
class Holder:
    key: Secret


@pytest.fixture(autouse=True)
def secret():
    """What the tests look for is known."""
    return Secret(VALUE), Secret(PLAIN)


@pytest.fixture
def environment(monkeypatch):
    """Return a function that sets variables, which are known from then on."""

    def set_all(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        learn()

    yield set_all
    monkeypatch.undo()
    learn()


# the value


def test_a_secret_shows_itself_to_nobody():
    """Printed, formatted, listed or within something else, it is a mask."""
    held = Secret(PLAIN)
    shown = [
        *(repr(held), str(held), f"{held}", f"{held!r:>60}", f"{held:>60}", "%s" % held),  # noqa: UP031 (one more way)
        *(
            repr([held]),
            repr({held: held}),
            repr(Holder(held)),
            repr(dataclasses.asdict(Holder(held))),
        ),
        *(repr(dir(held)), repr(held._read), repr(copy.copy(held)), repr(copy.deepcopy([held]))),
    ]

    assert not [text for text in shown if PLAIN[8:] in text]
    with pytest.raises(TypeError):
        vars(held)


def test_a_secret_is_read_in_one_way():
    """Whoever asks gets the value, of a copy too."""
    assert Secret(PLAIN).reveal() == copy.deepcopy(Secret(PLAIN)).reveal() == PLAIN
    assert Secret(Secret(PLAIN)).reveal() == PLAIN


@pytest.mark.parametrize("write", [pickle.dumps, json.dumps, msgspec.json.encode])
def test_a_secret_is_not_written(write):
    """What writes values refuses it, and says nothing of it."""
    with pytest.raises(TypeError) as refused:
        write(Secret(PLAIN))

    assert PLAIN[8:] not in str(refused.value)


def test_equal_secrets_are_equal():
    """And nothing else is."""
    assert Secret("a") == Secret("a")
    assert hash(Secret("a")) == hash(Secret("a"))
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"


def test_a_secret_is_read_from_a_variable(monkeypatch):
    """Without its spaces; one that is empty or not there is none."""
    monkeypatch.setenv("A_KEY", f" {PLAIN}\n")
    monkeypatch.setenv("EMPTY_KEY", " ")

    assert Secret.named("A_KEY").reveal() == PLAIN
    assert Secret.named("EMPTY_KEY") is None
    assert Secret.named("NO_SUCH_KEY") is None


# what is found

WRITTEN = {
    "as it is": lambda value: value,
    "in JSON": json.dumps,
    "in JSON in JSON": lambda value: json.dumps({"a": f"key={value}"}),
    "as Python writes it": repr,
    "in a URL": lambda value: "https://h/?key=" + urllib.parse.quote(value, safe=""),
    "in a path": lambda value: "https://h/" + urllib.parse.quote(value),
    "in a form": lambda value: urllib.parse.urlencode({"key": value}),
    "in HTML": lambda value: f"<b title='{html.escape(value)}'>",
    **{
        f"in base64, {lead} bytes before it": (
            lambda value, lead=lead: base64.b64encode(b"?" * lead + value.encode() + b"!").decode()
        )
        for lead in range(4)
    },
    "in a header of basic authentication": (
        lambda value: "Basic " + base64.urlsafe_b64encode(f"user:{value}".encode()).decode()
    ),
}


@pytest.mark.parametrize("write", WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize("value", [VALUE, PLAIN])
def test_a_value_is_found_however_it_is_written(write, value):
    """What is left of the text is as it was, and the value is not in it."""
    written = write(value)
    shown = redacted(f"before {written} after")

    assert MASK in shown
    assert shown.startswith("before ")
    assert shown.endswith(" after")
    for alphabet in (b"+/", b"-_"):
        for skipped in range(4):
            bits = "".join(c if c.isalnum() or c in "+/-_" else " " for c in shown).split()
            for run in bits:
                cut = run[skipped:][: len(run[skipped:]) // 4 * 4]
                assert value[8:20].encode() not in base64.b64decode(cut, alphabet)
    assert value[8:20] not in shown


@pytest.mark.parametrize("value", ["4f9aB7\udcff2D8e1F6", "5f9aB7\ud8012D8e1F7", "4f9é\n2D8e1F6"])
def test_a_value_of_any_characters_is_found(value):
    """Also of those that no encoding has, as variables of the environment may hold them."""
    Secret(value)

    assert redacted(f"it is {value}.") == f"it is {MASK}."


def test_a_beginning_that_says_half_of_it_counts():
    """A table cuts a long text off; less than half of a value is none."""
    assert redacted(f"{PLAIN[:25]}...") == f"{MASK}..."
    assert redacted(f"{PLAIN[:15]}...") == f"{PLAIN[:15]}..."


def test_nothing_else_is_touched():
    """A text without secrets is the same object."""
    text = "sk- and sk-proj- and the rest of it" * 10
    assert redacted(text) is text
    assert masked(text) == text


@pytest.mark.parametrize(
    ("name", "value", "known"),
    [
        ("SOME_API_KEY", "a1b2c3d4e5", True),
        ("HF_TOKEN", "a1b2c3d4e5", True),
        ("AWS_SECRET_ACCESS_KEY", "/a1b2c3d4e5", True),
        ("PGPASSWORD", "Tr0ub4dor&3", True),
        ("api_key_2", "a1b2c3d4e5", True),
        ("SIGNING_KEYS", "a1b2c3d4e5,f6a7b8c9d0", True),
        ("DATABASE_URL", "postgres://me:a1b2c3d4e5@h/db", True),
        ("A_PASSPHRASE", "correct horse battery staple", False),  # its name does not say so
        ("MY_PASSWORD", "correct horse battery staple", True),
        ("MY_PASSWORD", "a1b2c3d", False),  # too short
        ("MY_PASSWORD", "changeme", False),  # a word
        ("MY_PASSWORD", "not-needed", False),  # words
        ("MY_TOKEN", "20261126", False),  # a number
        ("SSH_KEY", "/etc", False),  # a place
        ("KEY_FILE", "a1b2c3d4e5", False),  # its name says what it is
        ("TOKEN_URL", "https://h/a1b2c3d4e5", False),
        ("SOME_TOKEN", "https://h/a1b2c3d4e5", False),
        ("AWS_ACCESS_KEY_ID", "a1b2c3d4e5", False),
        ("TOKENIZERS_PARALLELISM", "a1b2c3d4e5", False),
        ("KEYBOARD", "a1b2c3d4e5", False),
        ("PLAIN", "a1b2c3d4e5", False),
    ],
)
def test_what_the_environment_holds_is_known_by_name(environment, name, value, known):
    """Words that say so, and no value that might stand anywhere."""
    environment(**{name: value})

    assert (MASK in redacted(f"it is {value}.")) is known


def test_what_is_gone_from_the_environment_is_not_looked_for(environment, monkeypatch):
    """Known is what is there now."""
    environment(OLD_KEY="a1b2c3d4e5")
    monkeypatch.delenv("OLD_KEY")
    learn()

    assert redacted("a1b2c3d4e5") == "a1b2c3d4e5"


# text in pieces


@given(st.data())
def test_a_text_in_pieces_comes_out_as_the_whole(data):
    """However it is cut, nothing of a value is shown before it is known whether it is one."""
    parts = st.sampled_from([VALUE, PLAIN, PLAIN[:30], "sk-", " and ", "s", PLAIN[:9], "é\n"])
    text = "".join(data.draw(st.lists(parts, max_size=6)))
    Secret(VALUE), Secret(PLAIN)
    shown, waits = "", ""
    while text:
        size = data.draw(st.integers(1, len(text)))
        piece, text = text[:size], text[size:]
        now, waits = shown_so_far(waits + piece)
        shown += now
        for value in (VALUE, PLAIN):
            assert value[: len(value) // 2 + 1] not in shown
        assert len(waits) <= 3 * len(VALUE)
    shown += redacted(waits)

    for value in (VALUE, PLAIN):
        assert value[: len(value) // 2 + 1] not in shown


def test_what_is_no_beginning_does_not_wait():
    """A text without secrets is shown as it comes."""
    assert shown_so_far("Hello, wor…") == ("Hello, wor…", "")
    assert shown_so_far("it is sk") == ("it is ", "sk")
    assert shown_so_far("it is sk…") == ("it is sk…", "")
    assert shown_so_far(f"it is {PLAIN}") == (f"it is {MASK}", "")


# what looks like a key

LOOKS = [
    "sk-proj-8Zt2Lq9Wn4Xc7Vb1Mk",
    "sk-ant-api03-8Zt2Lq9Wn4Xc7Vb1",
    "xai-8Zt2Lq9Wn4Xc7Vb1Mk6J",
    "hf_8Zt2Lq9Wn4Xc7Vb1Mk6J",
    "ghp_8Zt2Lq9Wn4Xc7Vb1Mk6J",
    "AKIA8ZT2LQ9WN4XC7VB1",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0abc.x-y_z",
    "-----BEGIN RSA PRIVATE KEY-----",
]


@pytest.mark.parametrize("key", LOOKS)
def test_what_looks_like_a_key_is_one(key):
    """By the beginnings that are well known."""
    assert holds_key(f"use {key}, please")
    assert masked(f"'{key}'") == f"'{MASK}'"


@pytest.mark.parametrize(
    "text",
    [
        "sk-learn-contrib-has-long-names-too",
        "sk-...",
        "task-1234567890123456789012",
        "hf_hub_download",
        "an eyJ is not enough",
        "resp_0123456789abcdef0123456789abcdef",
    ],
)
def test_what_only_begins_like_a_key_is_none(text):
    """Words, other names, and keys that were cut short on purpose."""
    assert not holds_key(text)


# processes that are started


def test_an_environment_without_secrets(monkeypatch):
    """What speaks of secrets is left out, unless it is asked for; the rest is there."""
    for name in ("A_KEY", "my_secret", "HF_TOKEN", "DB_PASSWORD", "PIP_TOKEN", "PLAIN"):
        monkeypatch.setenv(name, "x")

    assert clean_environment("PIP_").keys() & {"PIP_TOKEN", "PLAIN"} == {"PIP_TOKEN", "PLAIN"}
    left = clean_environment().keys()
    assert not left & {"A_KEY", "my_secret", "HF_TOKEN", "DB_PASSWORD", "PIP_TOKEN"}


STARTS = {
    *(f"subprocess.{name}" for name in ("run", "Popen", "call", "check_call", "check_output")),
    *(f"asyncio.create_subprocess_{kind}" for kind in ("exec", "shell")),
    *("os.system", "os.popen", "os.execv", "os.posix_spawn"),
}


def test_every_process_that_is_started_has_an_environment_of_its_own():
    """None gets ours by leaving it out: each call in the package says which."""
    calls = [
        (file.name, {word.arg for word in node.keywords})
        for file in sorted(Path(ipy_agent.__file__).parent.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in STARTS
    ]

    assert {"house.py", "local.py", "sources.py"} <= {name for name, _ in calls}
    # pip's is with its folder, in what `_surroundings` returns.
    wanted = {name: None if name == "sources.py" else "env" for name, _ in calls}
    assert [name for name, words in calls if wanted[name] not in words] == []


def test_the_kernel_of_the_demo_has_no_secrets(monkeypatch):
    """Its model is on this machine: no key is of use there."""
    from ipy_agent.demo import _own_server

    monkeypatch.setenv("OPENAI_API_KEY", "x")
    monkeypatch.setenv("PLAIN", "x")
    with _own_server(None) as environment:
        assert "PLAIN" in environment
        assert "OPENAI_API_KEY" not in environment
