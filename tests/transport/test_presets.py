"""Each preset against a stand-in for its endpoint: what its row says happens on the wire."""

from __future__ import annotations

import dataclasses

import pytest

from ipy_agent.endpoints import ENDPOINTS
from ipy_agent.protocol.items import EMPTY, text, user
from ipy_agent.protocol.requests import Fields, Request
from ipy_agent.trace import Notice, RequestSent
from ipy_agent.transport.auto import AutoTransport

KEY = "THE_KEY_OF_A_STAND_IN"


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv(KEY, "k-123")


def message(said):
    content = [{"type": "output_text", "text": said}]
    return {"type": "message", "id": f"msg_{said}", "role": "assistant", "content": content}


def completed(name, lane=None):
    response = {"id": name, "status": "completed", "output": [message(name)]}
    frame = {"type": "response.completed", "response": response}
    return frame if lane is None else {**frame, "stream_id": lane}


def standing_in(preset, url):
    return dataclasses.replace(ENDPOINTS[preset], url=url, key_env=KEY)


def talk(run, endpoint, *turns):
    """Take turns, each `(branch, model)` on from what its branch or the main one said."""

    async def main():
        transport, said, events = AutoTransport(endpoint), {None: EMPTY}, []
        for number, (branch, model) in enumerate(turns):
            items = said.get(branch, said[None]).extend([user(str(number))])
            request = Request(fields=Fields({"model": model}), input=items, stream_id=branch)
            events.append([event async for event in transport.stream(request)])
            said[branch] = items.extend(events[-1][-2].response.output)
        await transport.aclose()
        return events

    return run(main())


def sent(events):
    return next(event for event in events if isinstance(event, RequestSent))


def test_openai_has_lanes(run, peer):
    """A branch is a lane of the one socket and goes on by the shared id; the key is shown."""
    other = peer([[completed("m1")], [completed("f1", "f")], [completed("m2")]])
    turns = talk(run, standing_in("openai", other.url), (None, "m"), ("f", "m"), (None, "m"))

    assert [sent(events).connection for events in turns] == [1, 1, 1]
    assert [sent(events).held_items for events in turns] == [0, 2, 2]
    assert other.seen[0].headers["Authorization"] == "Bearer k-123"
    compared = [frame.get("prompt_cache_options") for frame in other.seen[0].frames]
    assert compared == [None, None, {"comparison_response_id": "m1"}]


@pytest.mark.parametrize("preset", ["xai", "azure", "vercel"])
def test_these_have_one_stream_a_connection(run, peer, preset):
    """A branch has a socket of its own; no lane is ever named."""
    other = peer([[completed("m1")], [completed("m2")]], [[completed("f1")]])
    turns = talk(run, standing_in(preset, other.url), (None, "m"), ("f", "m"), (None, "m"))

    assert [sent(events).connection for events in turns] == [1, 2, 1]
    assert [sent(events).held_items for events in turns] == [0, 0, 2]
    assert all("stream_id" not in frame for seen in other.seen for frame in seen.frames)


def test_vercel_has_one_model_a_connection(run, peer):
    """Another model has a socket of its own; going back resends nothing that was said there."""
    other = peer([[completed("m1")], [completed("m3")]], [[completed("n2")]])
    turns = talk(run, standing_in("vercel", other.url), (None, "m"), (None, "n"), (None, "m"))

    assert [sent(events).connection for events in turns] == [1, 2, 1]
    assert sent(turns[2]).previous_response_id == "m1"


def test_ollama_is_asked_over_http(run, http_peer):
    """No WebSocket is tried, nothing is said of it, and every turn sends all."""
    other = http_peer(*([("stream", completed(name))] for name in ("r1", "r2")))
    turns = talk(run, standing_in("ollama", other.url), (None, "m"), (None, "m"))

    assert [sent(events).transport for events in turns] == ["http", "http"]
    assert not any(isinstance(event, Notice) for events in turns for event in events)
    assert [text(item) for item in other.seen[1].json["input"]] == ["0", "r1", "1"]
