"""Where responses come from: presets, base URLs, and what is known of each."""

from __future__ import annotations

import dataclasses

import pytest

from ipy_agent.endpoints import ENDPOINTS, Endpoint
from ipy_agent.errors import AuthenticationFailed, UsageError


def test_the_presets_are_known_by_name(monkeypatch):
    """A preset is found under its own name, and each that is remote names its key's variable."""
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://mine.openai.azure.com/")
    azure = "https://mine.openai.azure.com/openai/v1"
    assert ENDPOINTS.keys() == {"openai", "xai", "azure", "vercel", "local", "ollama"}
    for name, endpoint in ENDPOINTS.items():
        assert endpoint.name == name
        if name == "azure":
            endpoint = dataclasses.replace(endpoint, url=azure)  # noqa: PLW2901 (found in a variable)
        assert Endpoint.named(name) == endpoint
        assert endpoint.loopback is (endpoint.key_env is None)


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("openai", "wss://api.openai.com/v1/responses"),
        ("xai", "wss://api.x.ai/v1/responses"),
        ("https://host/v1", "wss://host/v1/responses"),
        ("https://host/v1/", "wss://host/v1/responses"),
        ("http://127.0.0.1:8000/v1", "ws://127.0.0.1:8000/v1/responses"),
        ("ws://host:1/openai/v1", "ws://host:1/openai/v1/responses"),
        ("wss://host/v1?api-version=1", "wss://host/v1/responses?api-version=1"),
        ("http://[::1]:8000/v1", "ws://[::1]:8000/v1/responses"),
        ("https://host", "wss://host/responses"),
    ],
)
def test_frames_go_below_the_base_url(name, url):
    """A base URL is what OpenAI's SDKs take; `/responses` and the scheme are ours to add."""
    assert Endpoint.named(name).websocket_url == url


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://localhost/v1", True),
        ("http://LOCALHOST/v1", True),
        ("ws://[::1]:8000/v1", True),
        ("local", True),
        ("https://localhost.example.com/v1", False),
        ("https://127.0.0.1.example.com/v1", False),
        ("openai", False),
    ],
)
def test_loopback_is_known_by_its_host(url, loopback):
    """What stays on this machine passes by every proxy: so no other name may look like it."""
    assert Endpoint.named(url).loopback is loopback


def test_a_url_is_an_endpoint_of_its_own():
    """It is named after its host, needs no key and asks for no model unless told to."""
    plain = Endpoint.named("http://host:8000/v1")
    told = Endpoint.named("http://host:8000/v1", model="m", key_env="MY_KEY")

    assert (plain.name, plain.key_env, plain.model) == ("host:8000", None, None)
    assert plain.key() is None
    assert (told.key_env, told.model) == ("MY_KEY", "m")


@pytest.mark.parametrize(
    "name", ["", "opnai", "host/v1", "//host/v1", "ftp://host/v1", "http://", "http:///v1"]
)
def test_what_is_no_endpoint_is_refused(name):
    """The line names what there is to choose from."""
    with pytest.raises(UsageError, match=r"is no endpoint: use one of openai, .*or a base URL"):
        Endpoint.named(name)


def test_a_key_in_a_url_is_refused_and_not_repeated():
    """A key belongs into a variable; the error does not show it again."""
    with pytest.raises(UsageError, match="--key-env") as refused:
        Endpoint.named("https://user:sesame@host/v1")

    assert "sesame" not in str(refused.value)


def test_a_key_is_read_when_it_is_used(monkeypatch):
    """The endpoint holds the variable's name; the value is fetched afresh each time."""
    endpoint = Endpoint.named("openai")
    monkeypatch.setenv("OPENAI_API_KEY", " sesame\n")

    assert endpoint.key().reveal() == "sesame"
    assert "sesame" not in repr(endpoint)
    monkeypatch.setenv("OPENAI_API_KEY", "  ")
    with pytest.raises(AuthenticationFailed, match=r"^OPENAI_API_KEY is not set") as refused:
        endpoint.key()
    assert refused.value.code == "missing_key"
    assert refused.value.sent is False


@pytest.mark.parametrize(
    ("variables", "name", "model"),
    [
        ({}, "local", None),
        ({"OPENAI_API_KEY": "k"}, "openai", ENDPOINTS["openai"].model),
        ({"OPENAI_API_KEY": ""}, "local", None),
        ({"OPENAI_API_KEY": "k", "IPY_AGENT_ENDPOINT": "local"}, "local", None),
        ({"IPY_AGENT_ENDPOINT": "http://host/v1", "IPY_AGENT_MODEL": "m"}, "host", "m"),
        ({"IPY_AGENT_MODEL": ""}, "local", None),
    ],
)
def test_the_environment_chooses_the_endpoint(monkeypatch, variables, name, model):
    """First the variable that says so, then OpenAI's key, then the local model."""
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    chosen = Endpoint.default()

    assert (chosen.name, chosen.model) == (name, model)


def test_a_wrong_endpoint_in_the_environment_is_refused(monkeypatch):
    """A variable is checked like an option."""
    monkeypatch.setenv("IPY_AGENT_ENDPOINT", "opnai")

    with pytest.raises(UsageError, match="'opnai' is no endpoint"):
        Endpoint.default()


def test_an_endpoint_can_be_a_key_of_a_dict():
    """A session keeps one way to each endpoint, so that equal ones share a connection."""
    assert len({Endpoint.named("http://h/v1"), Endpoint.named("http://h/v1")}) == 1


@pytest.mark.parametrize("address", [None, "", "RESOURCE", "ftp://x"])
def test_an_address_in_a_variable_has_to_be_there(monkeypatch, address):
    """A preset whose address is the user's own says which variable holds it, and its form."""
    monkeypatch.delenv("AZURE_OPENAI_ENDPOINT", raising=False)
    if address is not None:
        monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", address)

    with pytest.raises(UsageError, match=r"AZURE_OPENAI_ENDPOINT .* https://RESOURCE"):
        Endpoint.named("azure")


def test_requests_are_posted_below_the_same_url():
    """Both transports go to one path; only the scheme differs."""
    for url in ("https://h/v1", "wss://h/v1"):
        assert Endpoint.named(url).http_url == "https://h/v1/responses"
        assert Endpoint.named(url).websocket_url == "wss://h/v1/responses"
