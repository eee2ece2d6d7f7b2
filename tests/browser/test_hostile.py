"""Hostile text in JupyterLab, live and reopened, and in exports: nothing runs, nothing is fetched.

A listener counts what reaches it, a connection too: every payload that fetches aims at it, and
every one that runs sets `window.__hit` besides. Whether a payload was shown at all is looked up
in the page, so that a check of nothing does not pass.
"""

from __future__ import annotations

import json
import re
import socketserver
import threading

import msgspec
import nbformat
import pytest

from ipy_agent.errors import LINE
from ipy_agent.errors import _visible as visible
from ipy_agent.rendering import listing, plain
from ipy_agent.tables.frames import _CONTROLS as CONTROLS

pytestmark = pytest.mark.browser

TOOL = '''import json, ipy_agent, pandas as pd
pd.set_option("display.max_rows", None, "display.max_colwidth", 200, "display.max_columns", None)
payloads = json.load(open("payloads.json"))
everything = " ".join(one[:1_000] for one in payloads)

@ipy_agent.tool
def echo(text: str) -> str:
    """Say it again."""
    return text
'''
ERRORS = """try:
    get_ipython().run_cell_magic("agent", "", "fail")
except ipy_agent.errors.AgentError:
    get_ipython().showtraceback()
session = ipy_agent.session()
for _ in range(REFUSALS):
    try:
        session.run("fail")
    except ipy_agent.errors.AgentError:
        get_ipython().showtraceback()
for payload in payloads:
    session.run(payload)
session.fork("idea")
"""
TABLES = """for table in (session.messages, session.tools, session.cells, session.turns):
    display(table)
"""
DRY = """get_ipython().run_cell_magic("agent", "--dry-run", everything)
get_ipython().run_line_magic("agent", "branch")
"""
EXPORTS = """for suffix in ("html", "md", "json", "csv"):
    session.export(f"hostile.{suffix}", "messages")
"""
CELLS = (
    "%%agent --mode auto\nSay it.",
    ERRORS,
    "%agent panel",
    TABLES,
    DRY,
    "%%agent\nCall it.",
    EXPORTS,
)
ANSWER, ERROR, PANEL, TABLE, REQUEST, QUESTION, EXPORTED, LAST = range(1, 9)


class Listener(socketserver.ThreadingTCPServer):
    """Counts who comes, and what for."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Visit)
        self.port = self.server_address[1]
        self.seen = []
        self.came = threading.Event()


class Visit(socketserver.StreamRequestHandler):
    timeout = 5

    def handle(self):
        self.server.seen.append("a connection")
        self.server.seen[-1] = self.rfile.readline().decode("latin-1").strip() or "a connection"
        self.server.came.set()
        self.wfile.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")


@pytest.fixture
def listener():
    """A server on loopback that nobody should come to."""
    with Listener() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def watched(page, listener):
    """The page, with a list of all that it tried: dialogs, windows, other pages, refusals."""
    tried = []

    def asks(dialog):
        tried.append(f"dialog {dialog.message}")
        dialog.dismiss()

    def says(message):
        if re.search("refused|violat|content security|unsafe", message.text, re.IGNORECASE):
            tried.append(message.text)

    def requests(request):
        if f":{listener.port}" in request.url:
            tried.append(request.url)

    page.on("dialog", asks)
    page.on("popup", lambda popup: tried.append(f"window {popup.url}"))
    page.on("console", says)
    page.on("request", requests)
    page.tried = tried
    return page


def assert_quiet(page, listener):
    """Check that no payload did anything in a page so far."""
    page.evaluate("() => new Promise(done => requestIdleCallback(done, {timeout: 2000}))")
    assert page.locator("mjx-container").count() == 0
    hits = [frame.evaluate("() => window.__hit") for frame in page.frames]
    assert (listener.seen, page.tried) == ([], [])
    assert hits == [None] * len(hits)


def frames(payloads):
    """Return what the endpoint says to each request, in the order of the cells."""
    texts = [one.text for one in payloads]
    whole = " ".join(text[:1_000] for text in texts)
    some = [" ".join(text[:1_000] for text in texts[at : at + 8]) for at in range(0, len(texts), 8)]
    said = [event for at, text in enumerate(texts) for event in spoken(at, text)]
    said += [event for at, text in enumerate(texts) for event in thought(1_000 + at, text)]
    for at, text in enumerate(some):
        said += [done(2_000 + at, call(f"a{at}", "echo", text))]
        said += [done(3_000 + at, call(f"b{at}", text, "x"))]
    yield turn(1, said)
    yield turn(2, spoken(0, "Said."))
    for text in (whole, *refusals(payloads)):
        refusal = {"type": "x", "code": text, "message": text, "param": text}
        yield [{"type": "error", "status": 400, "error": refusal}]
    for at, text in enumerate(texts):
        yield turn(10 + at, spoken(0, text[:2_000]), model=text[:200])
    yield turn(3, [done(0, call("c", "echo", whole))])
    yield turn(4, spoken(0, "Called."))


def refusals(payloads):
    """Return the payloads in as few lines as an error may have, since a cell shows 50 outputs."""
    lines = [""]
    for one in payloads:
        text = one.text[:500].rstrip()
        if len(lines[-1]) + len(text) >= LINE:
            lines.append("")
        lines[-1] += f"{text} "
    return lines


def turn(number, events, model="m"):
    response = {"id": f"resp_{number}", "model": model}
    items = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    usage = {"input_tokens": 10, "output_tokens": 10, "total_tokens": 20}
    end = {**response, "status": "completed", "output": items, "usage": usage}
    return [
        {"type": "response.created", "response": response},
        *events,
        {"type": "response.completed", "response": end},
    ]


def spoken(at, text):
    """Yield a message in three pieces, and then whole."""
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"type": "message", "id": f"m{at}", "role": "assistant", "content": [part]}
    yield {
        "type": "response.output_item.added",
        "output_index": at,
        "item": {**item, "content": []},
    }
    for piece in thirds(text):
        yield {"type": "response.output_text.delta", "output_index": at, "delta": piece}
    yield done(at, item)


def thought(at, text):
    """Yield a summary of thoughts in three pieces, and then whole."""
    summary = [{"type": "summary_text", "text": text}]
    kind = "response.reasoning_summary_text.delta"
    for piece in thirds(text):
        yield {"type": kind, "output_index": at, "summary_index": 0, "delta": piece}
    yield done(at, {"type": "reasoning", "id": f"r{at}", "summary": summary})


def thirds(text):
    third = len(text) // 3
    return text[:third], text[third : 2 * third], text[2 * third :]


def call(at, name, text):
    said = {"name": name, "arguments": json.dumps({"text": text})}
    return {"type": "function_call", "id": f"f{at}", "call_id": f"call_{at}", **said}


def done(at, item):
    return {"type": "response.output_item.done", "output_index": at, "item": item}


@pytest.fixture
def payloads(hostile, listener, jupyter):
    """The payloads, aimed at the listener, and as JSON can say them; a notebook finds them too."""
    told = [
        type(one)(one.name, wired(one.text), wired(one.shown)) for one in hostile(listener.port)
    ]
    assert len(told) >= 100
    (jupyter.root / "payloads.json").write_text(json.dumps([one.text[:2_000] for one in told]))
    return told


def wired(text):
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read(text):
    return " ".join(text.split())


def missing(page, number, said):
    """Return which texts are not to be read in what a cell shows, folded parts too."""
    output = page.locator(".jp-CodeCell").nth(number).locator(".jp-Cell-outputArea")
    found = read(output.evaluate("output => output.textContent"))
    return [name for name, text in said.items() if read(text) not in found]


def test_hostile_text_is_read_and_does_nothing(
    watched, jupyter, opened, peer, payloads, listener, shot, figure
):
    """Said, thought, called, answered, refused, asked, in tables, opened again and exported."""
    page, endpoint = watched, peer(list(frames(payloads)))
    first = f"%load_ext ipy_agent\n%agent connect {endpoint.url}\n{TOOL}"
    first += f"REFUSALS = {len(refusals(payloads))}\n"
    jupyter.write("hostile.ipynb", first, *CELLS)
    notebook = opened("lab", "hostile.ipynb")
    page.context.set_default_timeout(60_000)
    for number in range(LAST):
        if number == QUESTION:
            answer(notebook, shot)
        else:
            notebook.run(number)
        shot(f"hostile-{number}")
    notebook.save()

    assert_quiet(page, listener)
    assert_readable(page, payloads)
    reopen(opened, jupyter, listener, payloads, shot)
    look_at_exports(page, jupyter, listener, payloads, shot)
    figure(
        f"{len(payloads)} hostile payloads: {len(listener.seen)} requests, {len(page.tried)} tries"
    )

    control(opened, jupyter, listener)


def assert_readable(page, payloads):
    """Check that every payload is to be read wherever it was said, as it would be there."""
    shown, listed, called, begun, encoded = {}, {}, {}, {}, {}
    for one in payloads:
        text = one.text[:500].rstrip()
        shown[one.name] = plain(one.shown)
        listed[one.name] = listing(text)
        begun[one.name] = text[:30].translate(CONTROLS | {10: r"\n", 13: r"\r", 9: r"\t"})
        encoded[one.name] = listing(msgspec.json.encode(text).decode()[1:-1])
        called[one.name] = "".join(map(visible, " ".join(text.split())))
    assert missing(page, ANSWER, shown) == []
    assert missing(page, ANSWER, listed) == []
    assert missing(page, ERROR, called) == []
    assert missing(page, TABLE, begun) == []
    assert missing(page, REQUEST, encoded) == []
    assert missing(page, QUESTION, listed) == []
    last = {one.name: plain(" ".join(one.text[:80].split()))[:20] for one in payloads[-45:]}
    assert missing(page, PANEL, last) == []


def reopen(opened, jupyter, listener, payloads, shot):
    """Look at what was saved: signed by its server, and under another name as from elsewhere."""
    saved = jupyter.saved("hostile.ipynb")
    saved.metadata.elsewhere = True
    nbformat.write(saved, jupyter.root / "hostile-elsewhere.ipynb")
    for app, name in (
        ("lab", "hostile.ipynb"),
        ("lab", "hostile-elsewhere.ipynb"),
        ("notebook", "hostile-elsewhere.ipynb"),
    ):
        notebook = opened(app, name)
        notebook.outputs(QUESTION).get_by_text("Called.").wait_for()
        shot(f"hostile-{app}-{name}")
        assert_quiet(notebook.page, listener)
        assert_readable(notebook.page, payloads)


def look_at_exports(page, jupyter, listener, payloads, shot):
    """Open what was exported, and the saved notebook as nbconvert shows it, in the same browser."""
    from markdown_it import MarkdownIt
    from nbconvert import HTMLExporter

    shown = {one.name: plain(one.shown) for one in payloads}
    converted, _ = HTMLExporter().from_filename(jupyter.root / "hostile.ipynb")
    (jupyter.root / "converted.html").write_text(converted, "utf-8")
    page.route(
        lambda url: "127.0.0.1" not in url and url.startswith("http"), lambda one: one.abort()
    )
    said = (jupyter.root / "hostile.md").read_text("utf-8")
    permissive = MarkdownIt("commonmark", {"html": True}).enable("table")
    (jupyter.root / "markdown.html").write_text(permissive.render(said), "utf-8")
    for name in ("hostile.html", "converted.html", "markdown.html", "hostile.json"):
        page.goto((jupyter.root / name).as_uri())
        shot(f"hostile-{name}")
        assert_quiet(page, listener)
        assert page.locator(".language-mermaid, .mermaid").count() == 0
        if name in ("hostile.html", "converted.html"):
            found = read(page.locator("body").evaluate("body => body.textContent"))
            assert [one for one, text in shown.items() if read(text) not in found] == []
    page.unroute_all()  # it answers on this thread, which is about to wait


def control(opened, jupyter, listener):
    """Check that the listener counts what a payload would do."""
    picture = f"HTML('<img src=http://127.0.0.1:{listener.port}/control>')"
    jupyter.write("control.ipynb", f"from IPython.display import HTML\n{picture}")
    opened("lab", "control.ipynb").start(0)
    assert listener.came.wait(15)
    assert listener.seen == ["GET /control HTTP/1.1"]


def answer(notebook, shot):
    """Say yes to a question, once it is there."""
    box = notebook.start(QUESTION).locator("input.jp-Stdin-input")
    box.wait_for()
    shot("hostile-question")
    box.fill("y")
    box.press("Enter")
    notebook.finish(QUESTION)
