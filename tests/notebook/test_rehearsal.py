"""A request that was not sent, to be read."""

from __future__ import annotations

import html
import json
import re

import pytest

from ipy_agent.notebook.rehearsal import LIMIT, bundle, summary
from ipy_agent.protocol.items import EMPTY, user
from ipy_agent.protocol.requests import Fields, Request
from ipy_agent.transport.rehearsal import Rehearsal

TOOL = {"type": "function", "name": "python", "parameters": {"type": "object"}}


def rehearsed(request, *, transport="websocket", connection=None, held=0):
    """Return the rehearsal of a request of which so many items are left out."""
    short = request
    if held:
        items = EMPTY.extend(request.input.since(held))
        short = Request(fields=request.fields, input=items, previous_response_id="resp_7")
    return Rehearsal.of(
        transport,
        request,
        short,
        frame=short.frame(),
        full_bytes=request.size(),
        connection=connection,
    )


def request(*items, **fields):
    return Request(fields=Fields({"model": "m", **fields}), input=EMPTY.extend(items))


def parts(text):
    """Return the parts of the plain picture by their titles."""
    found = re.split(r"^\[(.*)\]$", text, flags=re.MULTILINE)[1:]
    return dict(zip(found[::2], map(str.strip, found[1::2]), strict=True))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "3 items, {full} bytes over a new WebSocket; the server holds nothing of it"),
        (
            {"connection": 2, "held": 2},
            "1 of 3 items, {sent} of {full} bytes over WebSocket 2; {holds}",
        ),
        (
            {"transport": "http", "held": 1},
            "2 of 3 items, {sent} of {full} bytes over HTTP; the server holds 1 item as resp_7",
        ),
        ({"transport": "scripted"}, "3 items, {full} bytes to the script; {nothing}"),
        ({"transport": "mine"}, "3 items, {full} bytes over mine; {nothing}"),
    ],
)
def test_the_line_tells_what_is_new_and_what_is_held(changes, said):
    """Items and bytes, the way, and what it continues from."""
    whole = request(user("one"), user("two"), user("three" * 1_000))
    foreseen = rehearsed(whole, **changes)

    sizes = {"sent": f"{len(foreseen.frame):,}", "full": f"{whole.size():,}"}
    words = {"holds": "the server holds 2 items as resp_7"}
    words["nothing"] = "the server holds nothing of it"
    assert summary(foreseen) == "would send " + said.format(**sizes, **words)


def test_one_item_is_one_item():
    """The words fit the number."""
    assert summary(rehearsed(request(user("hi")))).startswith("would send 1 item, ")


def test_every_part_can_be_read():
    """Instructions as text, and all else as the JSON that would be sent."""
    call = {"type": "function_call", "call_id": "c", "name": "python", "arguments": "{}"}
    asked = request(user("hi"), call, instructions="Be\nbrief.", tools=[TOOL], store=False)

    found = parts(bundle(rehearsed(asked))["text/plain"])

    assert list(found) == [
        "instructions",
        "tools: python",
        "settings: model, store",
        "request: type",
        "input 1: user message",
        "input 2: function_call python",
    ]
    assert found["instructions"] == "Be\nbrief."
    assert json.loads(found["tools: python"]) == [TOOL]
    read = [json.loads(text) for title, text in found.items() if title != "instructions"]
    frame = {"instructions": "Be\nbrief.", "tools": read[0], **read[1], **read[2]}
    assert frame | {"input": read[3:]} == json.loads(asked.frame())


def test_what_is_continued_from_is_in_the_request():
    """The id and the lane stand where they are sent."""
    short = rehearsed(request(user("one"), user("two")), held=1)

    found = parts(bundle(short)["text/plain"])

    assert json.loads(found["request: type, previous_response_id"]) == {
        "type": "response.create",
        "previous_response_id": "resp_7",
    }
    assert [title for title in found if title.startswith("input")] == ["input 1: user message"]


def test_json_is_shown_as_it_is_written():
    """No number is read and written anew."""
    frame = (
        b'{"type":"response.create","temperature":1.50e0,"seed":12345678901234567890123,"input":[]}'
    )
    said = Rehearsal(
        transport="websocket",
        frame=frame,
        connection=None,
        sent_items=0,
        held_items=0,
        full_bytes=len(frame),
        previous_response_id=None,
    )

    shown = bundle(said)["text/plain"]

    assert '"temperature": 1.50e0' in shown
    assert '"seed": 12345678901234567890123' in shown


def test_what_is_shown_is_safe_and_hides_nothing():
    """Markup is text; what cannot be seen, or would be left out, is made visible."""
    odd = request(user("<script>\u202e\x9b"), instructions="\x1b[31mred\r</pre><b>")

    shown = bundle(rehearsed(odd))

    for text in (html.unescape(shown["text/html"]), shown["text/plain"]):
        assert "␛[31mred␍</pre><b>" in text
        assert "<script>⟨U+202E⟩⟨U+009B⟩" in text
    assert "<script>" not in shown["text/html"]
    assert "<b>" not in shown["text/html"]
    assert shown["text/html"].count("<details") == shown["text/html"].count("</details>") == 4


def test_a_megabyte_is_shown_and_of_the_rest_its_length():
    """All of a usual request can be read; an enormous one cannot fill the notebook."""
    usual = bundle(rehearsed(request(user("x" * 900_000))))
    enormous = bundle(rehearsed(request(user("x" * 900_000), user("y" * 900_000), user("z"))))

    assert "more characters" not in usual["text/plain"]
    assert "x" * 900_000 in usual["text/html"]
    for text in enormous.values():
        assert len(text) < LIMIT + 10_000
        assert text.count("more characters") == 2
    assert "input 3: user message" in enormous["text/plain"]
