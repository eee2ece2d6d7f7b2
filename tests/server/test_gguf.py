"""A model is loaded only where there is room for it, and tells the tokens that it made."""

from __future__ import annotations

import pytest

from ipy_agent.errors import ModelUnavailable
from ipy_agent.server import weights

gguf = pytest.importorskip("ipy_agent.server.gguf", exc_type=ImportError)


@pytest.fixture(name="model", scope="module")
def _model():
    try:
        file = weights.path("smollm2-135m-instruct")
    except ModelUnavailable as missing:
        pytest.skip(str(missing))
    model = gguf.Gguf(file, slots=2, context=512)
    yield model
    model.close()


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


def longer(model, prompt, slot, **more):
    """Let a slot read a prompt, and return what came of it."""
    return model.complete(slot, prompt, max_tokens=4, temperature=0, **more)


@pytest.mark.model
def test_a_slot_is_given_what_another_one_holds(model):
    """All of it is found there, the first keeps it, and no file of it is left."""
    prompt = model.tokenise(["A ship sailed on. " * 40])
    longer(model, model.tokenise(["Something else."]), 1)
    first = longer(model, prompt, 0)
    told = [*prompt, *first.ids, *model.tokenise(["Then"])]

    copied = model.copy(0, 1)

    for slot in (1, 0):
        assert longer(model, told, slot).timings["cache_n"] == len(prompt) + len(first.ids) - 1
    assert copied
    assert [file.suffix for file in gguf.Path(model._folder.name).iterdir()] == [".sock"]


@pytest.mark.model
def test_only_what_is_equal_is_reused_of_a_copy(model):
    """Up to the first id that differs; a cache that is not to be used is not."""
    prompt = model.tokenise(["A ship sailed on. " * 40])
    longer(model, prompt, 0)
    model.copy(0, 1)

    some = longer(model, [*prompt[:100], *prompt[:9]], 1).timings["cache_n"]
    none = longer(model, prompt, 1, cache_prompt=False).timings["cache_n"]

    assert (some, none) == (100, 0)


@pytest.mark.model
def test_a_copy_that_fails_is_told_and_does_no_harm(model):
    """No room, no file, an empty slot: the next prompt is computed as if nothing had been."""
    prompt = model.tokenise(["A ship sailed on."])
    folder = gguf.Path(model._folder.name)
    wanted = longer(model, prompt, 1, cache_prompt=False).ids
    longer(model, prompt, 0)
    (folder / "1.kv").symlink_to(folder / "nowhere" / "1.kv")

    assert not model.copy(0, 1)
    assert longer(model, prompt, 1, cache_prompt=False).ids == wanted


@pytest.mark.model
def test_what_was_read_is_told(model):
    """All of a prompt, or as much of it as a stopped one came to."""
    prompt = model.tokenise(["word " * 300])

    whole = longer(model, prompt, 0, cache_prompt=False)
    stops = iter([False, False])
    part = longer(model, prompt, 0, cache_prompt=False, stop=lambda: next(stops, True))

    assert whole.read == len(prompt)
    assert 0 < part.read < len(prompt)
    assert longer(model, prompt, 0).timings["cache_n"] >= part.read


@pytest.mark.model
def test_the_port_is_a_socket_of_ours_alone(model):
    """No TCP, and a folder that nobody else may enter."""
    assert model._llama.listening_address.startswith("unix:")
    assert gguf.Path(model._folder.name).stat().st_mode & 0o777 == 0o700
