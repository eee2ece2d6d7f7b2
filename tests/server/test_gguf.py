"""A model is loaded only where there is room for it, and tells the tokens that it made."""

from __future__ import annotations

import pytest

from ipy_agent.errors import ModelUnavailable
from ipy_agent.server import weights

gguf = pytest.importorskip("ipy_agent.server.gguf", exc_type=ImportError)

MEMINFO = "MemTotal: 2000 kB\nMemAvailable: 1000 kB\n"


@pytest.fixture(name="model", scope="module")
def _model():
    try:
        file = weights.path("smollm2-135m-instruct")
    except ModelUnavailable as missing:
        pytest.skip(str(missing))
    model = gguf.Gguf(file, slots=1, context=512)
    yield model
    model.close()


def test_the_machines_memory_counts(tmp_path):
    """What the system calls available is what may be taken."""
    (tmp_path / "meminfo").write_text(MEMINFO)

    assert gguf.memory_available(tmp_path, tmp_path / "none") == 1000 * 1024


def test_a_containers_share_counts_too(tmp_path):
    """The smaller of the two is the limit; file pages that can go count as free."""
    (tmp_path / "meminfo").write_text(MEMINFO)
    for name, value in {
        "max": "900000",
        "current": "600000",
        "stat": "anon 1\ninactive_file 70",
    }.items():
        (tmp_path / f"memory.{name}").write_text(value)

    assert gguf.memory_available(tmp_path, tmp_path) == 300_070


def test_an_unlimited_container_is_no_limit(tmp_path):
    """`max` is a word there, not a number."""
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "memory.max").write_text("max\n")

    assert gguf.memory_available(tmp_path, tmp_path) == 1000 * 1024


def test_no_memory_no_model(tmp_path):
    """It is said in one line with both sizes, before anything is loaded."""
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")

    with pytest.raises(ModelUnavailable, match=r"needs about .* GB are free") as refused:
        gguf.Gguf(file, slots=4, context=10**9)

    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [None, b"", b"<html>", b"GGUF" + bytes(100)])
def test_what_is_no_model_is_refused(tmp_path, content):
    """No file, an empty one, a web page, a broken model: one line with its path."""
    file = tmp_path / "model.gguf"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(ModelUnavailable, match=r"model\.gguf") as refused:
        gguf.Gguf(file, slots=1, context=512)

    assert "\n" not in str(refused.value)


@pytest.mark.model
def test_texts_hold_no_control_tokens(model):
    """The same characters are one token when meant, and many when written."""
    assert model.control("<|im_start|>") is not None
    assert model.control("<|im_start|>") not in model.tokenise(["<|im_start|>"])
    assert model.tokenise([7, "a", 9])[::2] == [7, 9]


@pytest.mark.model
def test_a_token_that_there_is_not_is_told(model):
    """What the vocabulary lacks has no id."""
    assert model.control("<|no such token|>") is None


@pytest.mark.model
def test_the_ids_of_an_answer_are_all_told(model):
    """Characters of several tokens included, whose first tokens llama.cpp keeps to itself."""
    wanted = model.tokenise(["🦊 日本 👩🏽‍🚀"])
    schema = {"type": "object", "properties": {"a": {"const": "🦊 日本 👩🏽‍🚀"}}, "required": ["a"]}
    heard = []

    done = model.complete(
        0, [1, 2, 3], take=heard.append, max_tokens=90, temperature=0, schema=schema
    )

    assert len(wanted) > 8
    assert len(done.ids) == done.timings["predicted_n"]
    assert "🦊 日本 👩🏽‍🚀" in "".join(heard)


@pytest.mark.model
def test_the_port_is_a_socket_of_ours_alone(model):
    """No TCP, and a folder that nobody else may enter."""
    assert model._llama.listening_address.startswith("unix:")
    assert gguf.Path(model._folder.name).stat().st_mode & 0o777 == 0o700
