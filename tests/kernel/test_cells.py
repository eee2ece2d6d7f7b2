"""`%%agent` cells in a real kernel, against the embedded server's scripted engine."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.kernel


def python(code: str) -> dict[str, object]:
    return {"tool_calls": [{"name": "python", "arguments": {"code": code}}]}


def test_two_cells_share_one_connection_and_the_frames_tell_it(kernel, serve):
    """The second cell sends only its new item over the first cell's socket."""
    kernel.run(serve(python("found = 6 * 7\nfound"), {"text": "It is **42**."}, {"text": "Yes."}))
    kernel.run("%agent reset")

    first = kernel.run("%%agent --mode auto -o said\nWhat is 6 times 7?")
    second = kernel.run("%%agent\nSure?")

    assert (first.status, second.status) == ("ok", "ok")
    assert "<strong>42</strong>" in first.displays[0]["text/html"]
    assert kernel.run("found, said").value == "(42, 'It is **42**.')"
    turns = kernel.run(
        "t = %agent turns\nprint(t.tail(3)[['sent_items', 'held_items', 'reused']].to_json("
        "orient='values'), t['connection'].tail(3).nunique(), (t['hit_rate'].tail(2) > 0).all())"
    )
    assert turns.stdout.strip() == "[[1,0,false],[1,2,true],[1,4,true]] 1 True"
    frames = kernel.run(
        "s = __import__('ipy_agent').session()\n"
        "print(len(s.cells) >= 2, s.tools.iloc[-1][['name', 'output', 'status', 'approval']]"
        ".tolist(), s.messages['type'].tail(6).tolist())"
    )
    assert frames.stdout.strip() == (
        "True ['python', '42\\nfound: int 42', 'completed', 'auto'] ['message', 'function_call', "
        "'function_call_output', 'message', 'message', 'message']"
    )


def test_an_answer_streams_into_one_display_that_ends_static(kernel, serve):
    """The saved cell holds the answer and the table as HTML and text, and no widget."""
    kernel.run(serve({"text": "one two three four", "chunk_chars": 1, "delay_ms": 200}))

    cell = kernel.run("%%agent\nCount.")

    assert cell.updates >= 2
    answer, table = cell.displays
    assert "one two three four" in answer["text/html"]
    said, footer = answer["text/plain"].split("\n\n")
    assert said == "one two three four"
    assert footer.startswith("[turn ")
    assert "<table" in table["text/html"]
    assert "text/plain" in table
    assert not any("widget" in kind for data in cell.displays for kind in data)


@pytest.mark.parametrize(
    ("answer", "ran", "status"), [("y", True, "completed"), ("", False, "refused")]
)
def test_a_call_runs_only_after_a_yes(kernel, serve, answer, ran, status):
    """The question shows the exact code; an empty answer is a no that the model is told."""
    kernel.run(serve(python("asked = 'yes'"), {"text": "ok"}))
    kernel.run("asked = None")

    cell = kernel.run("%%agent --mode ask\nDo it.", answer=answer)

    question = next(o["text"] for o in cell.outputs if o["type"] == "question")
    assert "asked = 'yes'" in question
    assert cell.status == "ok"
    assert kernel.run("asked == 'yes'").value == str(ran)
    assert kernel.run(
        "ipy = __import__('ipy_agent').session().tools['status'].iloc[-1]; ipy"
    ).value == repr(status)


def test_without_stdin_the_answer_is_no(kernel, serve):
    """Headless, `ask` runs nothing, and the model and the user are told."""
    kernel.run(serve(python("headless = 1"), {"text": "as you like"}))

    cell = kernel.run("%%agent --mode ask\nDo it.")

    assert cell.status == "ok"
    assert "not run" in cell.displays[0]["text/html"]
    assert kernel.run("'headless' in globals()").value == "False"


def test_what_code_prints_raises_and_draws_shows_and_goes_to_the_model(kernel, serve):
    """Text, value, traceback and picture of a call reach the cell and the model."""
    kernel.run(
        serve(
            python("print('printed')\n[1, 2]"),
            python("1 / 0"),
            python("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"),
            {"text": "seen"},
        )
    )
    kernel.run("%matplotlib inline")

    cell = kernel.run("%%agent --mode auto\nGo.")

    outputs = kernel.run(
        "print(__import__('json').dumps(__import__('ipy_agent').session().tools['output'].tail(3).tolist()))"
    )
    printed, raised, drawn = json.loads(outputs.stdout)
    assert printed == "printed\n[1, 2]"
    assert "ZeroDivisionError: division by zero" in raised
    assert "picture" in drawn
    assert "ZeroDivisionError" in cell.displays[0]["text/html"]
    assert any("image/png" in data for data in cell.displays)


def test_a_variable_is_handed_over_as_a_typed_preview(kernel, serve):
    """$`name` in the prompt adds a short preview, and braces in a prompt stay as they are."""
    kernel.run(serve())
    kernel.run("import pandas as pd\nframe = pd.DataFrame({'a': [1, 2, None], 'b': list('xyx')})")

    cell = kernel.run("%%agent\nLook at $`frame` and {this}.")

    said = cell.displays[0]["text/plain"]
    assert "Look at `frame` and {this}." in said
    assert "frame: DataFrame 3×2" in said
    assert "a: float64; 1.0 to 2.0; 1 missing" in said


def test_an_interrupt_while_streaming_ends_the_cell_and_the_next_one_works(kernel, serve):
    """An interrupted run is a row of its own; nothing of it reaches the next answer."""
    kernel.run(serve({"text": "never ends", "chunk_chars": 5, "then": "hang"}, {"text": "fresh"}))
    kernel.run("%agent reset")

    stopped = kernel.run(
        "%%agent\nGo on.",
        when=lambda cell: any("never" in d.get("text/plain", "") for d in cell.displays),
        do=kernel.interrupt,
    )
    after = kernel.run("%%agent\nAgain.")

    assert stopped.status == "error"
    assert stopped.error.splitlines() == ["Interrupted: interrupted"]
    assert "fresh" in after.displays[0]["text/plain"]
    statuses = kernel.run("__import__('ipy_agent').session().turns['status'].tail(2).tolist()")
    assert statuses.value == "['interrupted', 'completed']"


def test_an_interrupt_in_a_tool_ends_the_tool_and_the_run(kernel, serve):
    """The tool gets the interrupt, its output says so, and the conversation stays whole."""
    begun = (
        "import time\nk = get_ipython().kernel\n"
        "k.session.send(k.iopub_socket, 'stream', {'name': 'stdout', 'text': 'begun'},"
        " parent=k.get_parent())\ntime.sleep(60)"
    )
    kernel.run(serve(python(begun), {"text": "fresh"}))

    stopped = kernel.run(
        "%%agent --mode auto\nSleep.",
        when=lambda cell: "begun" in cell.stdout,
        do=kernel.interrupt,
    )
    after = kernel.run("%%agent\nAgain.")

    assert stopped.status == "error"
    assert "fresh" in after.displays[0]["text/plain"]
    frames = kernel.run(
        "s = __import__('ipy_agent').session()\n"
        "print(s.tools['status'].iloc[-1], s.tools['output'].iloc[-1])"
    )
    said, made = frames.stdout.strip().splitlines()
    assert said == "interrupted interrupted by the user; side effects unknown"
    assert made == "k: IPythonKernel"


def test_a_tool_defined_in_a_cell_is_on_offer_in_the_next(kernel, serve):
    """`@ipy_agent.tool` makes a function of the notebook callable by the model."""
    call = {"tool_calls": [{"name": "price", "arguments": {"ticker": "X"}}]}
    kernel.run(serve(call, {"text": "three"}))
    kernel.run(
        "import ipy_agent\n@ipy_agent.tool(read_only=True)\n"
        "def price(ticker: str) -> float:\n    'The price of a share.'\n    return 3.0"
    )

    cell = kernel.run("%%agent --mode read\nPrice of X?")

    assert "three" in cell.displays[0]["text/html"]
    assert kernel.run("ipy_agent.session().tools['output'].iloc[-1]").value == "'3.0'"
    assert "price(ticker)  run" in kernel.run("%agent toolbox").stdout


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("%%agent\n  ", "UsageError: the prompt is empty"),
        ("%%agent --nope\nhi", "UsageError: unrecognized arguments: --nope"),
        ("%%agent --mode sometimes\nhi", "UsageError: argument --mode: invalid choice"),
        ("%%agent -o 1x\nhi", "UsageError: -o '1x' is no name"),
        ("%%agent\nsee $`nothing`", "UsageError: there is no variable 'nothing'"),
        ("%%agent --endpoint nowhere\nhi", "UsageError: 'nowhere' is no endpoint"),
        ("%%agent --endpoint http://127.0.0.1:9/v1\nhi", "ConnectionFailed: nothing answers at"),
        ("%%agent --endpoint openai\nhi", "AuthenticationFailed: OPENAI_API_KEY is not set"),
        ("%agent dance", "UsageError: argument command: invalid choice: 'dance'"),
        ("%agent mode always", "UsageError: argument mode: invalid choice"),
        ("%agent export turns.docx", "UsageError: "),
        ("%agent export turns.json --defuse", "UsageError: there are no formulas in"),
        ("%agent connect ftp://x", "UsageError: 'ftp://x' is no endpoint"),
    ],
)
def test_what_does_not_fit_is_one_line_that_can_be_caught(kernel, serve, code, line):
    """A mistake shows one line of an AgentError, and the next cell works."""
    kernel.run(serve({"text": "fine"}))

    cell = kernel.run(code)
    caught = kernel.run(
        "from ipy_agent import AgentError\ntry:\n"
        f"    get_ipython().run_cell({code!r}).raise_error()\n"
        "except AgentError as e:\n    caught = e.code\ncaught"
    )

    assert cell.status == "error"
    assert len(cell.error.splitlines()) == 1
    assert cell.error.startswith(line)
    assert caught.value
    assert "fine" in kernel.run("%%agent\nhi").displays[0]["text/html"]


def test_the_model_that_is_not_served_is_named(kernel, serve):
    """An unknown model is the endpoint's error, told in its words."""
    kernel.run(serve({"error": {"status": 404, "code": "model_not_found", "message": "no such"}}))

    cell = kernel.run("%%agent -m gpt-unknown\nhi")

    assert cell.error == "ResponseFailed: no such"
    assert (
        kernel.run("__import__('ipy_agent').session().turns['status'].iloc[-1]").value == "'failed'"
    )


def test_the_session_is_exported_by_suffix(kernel, serve, tmp_path):
    """`%agent export` writes what the suffix names."""
    kernel.run(serve({"text": "hello"}))
    kernel.run("import ipy_agent\nimport pandas as pd")
    kernel.run("%%agent\nhi")

    for suffix in ("parquet", "csv", "json", "jsonl", "html", "md"):
        path = tmp_path / f"session.{suffix}"
        assert kernel.run(f"%agent export {path}").status == "ok"
        assert path.stat().st_size > 0
    assert kernel.run(f"%agent export {path.with_suffix('.csv')} --defuse").status == "ok"
    read = kernel.run(f"len(pd.read_parquet({str(tmp_path / 'session.parquet')!r}))")
    assert int(read.value) == int(kernel.run("len(ipy_agent.session().turns)").value)


def test_status_tells_how_it_stands(kernel, serve):
    """`%agent` names the endpoint, the connection and the totals."""
    kernel.run(serve({"text": "hello"}))
    kernel.run("%%agent\nhi")

    said = kernel.run("%agent").stdout

    assert "connected (WebSocket" in said
    assert "endpoint    127.0.0.1:" in said
    assert kernel.run("%agent disconnect").status == "ok"
    assert "not connected" in kernel.run("%agent").stdout
    assert "connected (WebSocket" in kernel.run("%agent warm").stdout


def test_the_extension_unloads_and_loads_again(own_kernel):
    """Unloading takes the magics away; loading brings them back."""
    own_kernel.run("%unload_ext ipy_agent")

    gone = own_kernel.run("%agent mode")

    assert "not found" in gone.error or "not found" in gone.stdout
    own_kernel.run("%load_ext ipy_agent")
    assert "mode        ask" in own_kernel.run("%agent").stdout
