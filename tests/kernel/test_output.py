"""What a cell shows in a real kernel, where it stands, and what is left of it in an export."""

from __future__ import annotations

import json

import nbformat
import pytest

pytestmark = pytest.mark.kernel

SECONDS = 60
DRAW = "import matplotlib.pyplot as plt\nfor n in (1, 2):\n    plt.plot([1, n])\n    plt.show()"
ANSWER = {"text": "It *goes* up.\n\n- one\n- two\n\n```python\na = 1\n\nb = 2\n```\n"}


def python(code):
    return {"tool_calls": [{"name": "python", "arguments": {"code": code}}]}


def answered(kernel, serve):
    """A cell in which a tool draws two figures, and the model then says something."""
    kernel.run(serve(python(DRAW), ANSWER))
    return kernel.run("%%agent --mode auto\nDraw.")


def test_figures_stand_where_they_arose(kernel, serve):
    """Below the call, above what is said next; the table is below all, and nothing is empty."""
    cell = answered(kernel, serve)
    call, *figures, answer, table = cell.displays

    assert call["text/plain"].startswith("[python")
    assert [set(figure) for figure in figures] == [{"image/png", "text/plain"}] * 2
    told, said, *_ = answer["text/plain"].split("\n\n")
    assert told.startswith("[turn ")
    assert said == "It *goes* up."
    assert "<table" in table["text/html"]
    assert all(shown.get("text/plain") for shown in cell.displays)
    assert not any("widget" in kind for shown in cell.displays for kind in shown)


TRAIN = """
import ipy_agent
from IPython.display import HTML, clear_output, display

@ipy_agent.tool
def train(wait: bool) -> str:
    \"\"\"Train, and show how it goes.\"\"\"
    display(HTML("<p>begins</p>"))
    for step in range(3):
        clear_output(wait=wait)
        display(HTML(f"<p>step {step}</p>"))
        display(HTML("<p>and more</p>"))
    return "trained"
"""


@pytest.mark.parametrize("wait", [True, False])
def test_a_tool_clears_what_it_showed_and_never_the_cell(kernel, serve, wait):
    """What it shows next takes the place of what it cleared; the rest of the cell stays."""
    kernel.run(TRAIN)
    train = {"tool_calls": [{"name": "train", "arguments": {"wait": wait}}]}
    kernel.run(serve(train, train, ANSWER))

    cell = kernel.run("%%agent --mode auto\nTrain.")
    first, *steps, second = [one["text/html"] for one in cell.displays[:4]]
    assert cell.cleared == 0
    assert "<summary>train" in first
    assert steps == ["<p>step 2</p>", "<p>and more</p>"]
    assert "<summary>train" in second
    assert len(cell.displays) == 8
    assert all(shown["text/plain"] for shown in cell.displays)


def test_what_a_tool_cleared_for_good_gives_its_place_to_what_is_said_next(kernel, serve):
    """Nothing empty is left behind, and outside a tool `clear_output()` is as before."""
    code = "@ipy_agent.tool\ndef tidy() -> str:\n    'Tidy.'\n    display(HTML('<p>a</p>'))\n"
    more = "    display(HTML('<p>b</p>'))\n    clear_output()\n    display(HTML('<p>c</p>'))\n"
    kernel.run(f"{TRAIN}\n{code}{more}    return 'tidy'")
    kernel.run(serve({"tool_calls": [{"name": "tidy", "arguments": {}}]}, ANSWER))

    cell = kernel.run("%%agent --mode auto\nTidy.")
    call, shown, answer, table = cell.displays
    assert "<summary>tidy" in call["text/html"]
    assert shown["text/html"] == "<p>c</p>"
    assert "It *goes* up." in answer["text/plain"]
    assert "<table" in table["text/html"]
    assert kernel.run("clear_output()").cleared == 1


def test_code_that_ends_the_kernel_is_refused_and_the_kernel_lives(own_kernel, serve):
    """The model reads why in one line, and the front end is asked for nothing."""
    own_kernel.run(serve(python("exit()"), ANSWER, {"text": "Still here."}))

    cell = own_kernel.run("%%agent --mode auto\nEnd.")
    assert "-> ToolError: not run: ending the kernel is left to the user" in str(cell.displays)
    assert own_kernel.run("get_ipython().exit_now").value == "False"
    again = own_kernel.run("%%agent\nAre you there?")
    assert "Still here." in again.displays[0]["text/plain"]


def test_a_page_that_code_shows_stands_where_it_arose(kernel, serve):
    """As its code made it, once; the model knows that it was shown."""
    kernel.run(serve(python("from IPython.display import HTML\nHTML('<b>bold</b>')"), ANSWER))

    call, page, answer, _ = kernel.run("%%agent --mode auto\nShow.").displays
    assert "(HTML, shown to the user)" in call["text/plain"]
    assert page["text/html"] == "<b>bold</b>"
    assert "It *goes* up." in answer["text/plain"]


def test_an_interrupted_call_keeps_what_it_printed_and_drew(kernel, serve):
    """In the cell, and in what the model is told at the next turn."""
    draw = DRAW.replace("(1, 2)", "(1,)")
    code = f"{draw}\nprint('half way', flush=True)\nimport signal; signal.raise_signal(2)"
    kernel.run(serve(python(code), ANSWER))

    cell = kernel.run("%%agent --mode auto\nDraw.")
    call, figure, *_ = cell.displays
    assert "-> interrupted by the user; side effects unknown\nhalf way" in call["text/plain"]
    assert "image/png" in figure
    told = "from ipy_agent import session\n[row.output for row in session().records.tools][-1]"
    assert "half way" in kernel.run(told).value


def test_a_question_of_code_is_asked_in_the_front_end(kernel, serve):
    """`input()` has its own way there, and what is asked stands in the question."""
    kernel.run(serve(python("name = input('who? ')"), ANSWER))

    cell = kernel.run("%%agent --mode auto\nAsk.", answer="Ada")
    assert [one["text"] for one in cell.outputs if one["type"] == "question"] == ["who? "]
    assert "name: str 'Ada'" in cell.displays[0]["text/plain"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of nbconvert's own dependencies
def test_an_export_holds_answer_figures_and_table(kernel, serve):
    """As a page and as Markdown, in which no HTML is broken off by a blank line."""
    from nbconvert import HTMLExporter, MarkdownExporter

    displays = answered(kernel, serve).displays
    shown = [nbformat.v4.new_output("display_data", data) for data in displays]
    cell = nbformat.v4.new_code_cell("%%agent\nDraw.", outputs=shown)
    notebook = nbformat.v4.new_notebook(cells=[cell])
    page, _ = HTMLExporter().from_notebook_node(notebook)
    text, files = MarkdownExporter().from_notebook_node(notebook)

    for exported in (page, text):
        assert exported.index("<summary>python") < exported.index("<em>goes</em>")
        assert exported.index("<em>goes</em>") < exported.index("of the input tokens came from")
        assert "b = 2" in exported
    assert page.count("<img") == 2
    assert len(files["outputs"]) == 2
    block = text[text.index("<em>goes</em>") :]
    assert "\n\n" not in block[: block.index("</code>")]


def test_the_board_and_the_plot_are_outputs_that_stay(kernel, serve):
    """`%agent panel` is static HTML and follows; `%agent plot` is a figure, also in a variable."""
    kernel.run(serve({"text": "one"}, {"text": "two"}))
    kernel.run("%agent reset")
    kernel.run("%%agent\nFirst.")
    [board] = kernel.run("%agent panel").displays
    assert set(board) == {"text/html", "text/plain"}

    following = kernel.run("%%agent\nSecond.")
    assert following.status == "ok"
    plotted = kernel.run("figure = %agent plot\nfigure")

    assert "image/png" in plotted.displays[0]
    assert kernel.run("type(figure).__name__").value == "'Figure'"


def test_a_bench_is_a_frame_with_its_picture_and_summary(kernel, serve):
    """Its line of progress gives way, and what it returns is the turns; the session has no part."""
    page = {"tool_calls": [{"name": "page", "arguments": {"number": 1}}]}
    kernel.run(serve(*[page] * 10))
    rows = "len(ipy_agent.session().turns)"
    before = kernel.run(f"import ipy_agent\n{rows}").value
    ran = kernel.run("df = %agent bench --turns 2 --rounds 2")
    line, picture, summary = ran.displays

    assert (ran.status, ran.stdout) == ("ok", "")
    assert line["text/plain"].startswith("round 2 of 2, http-cache: 2 turns in ")
    assert "image/png" in picture
    assert "<table" in summary["text/html"]
    assert "http: NA, the prompt cache of " in summary["text/plain"]
    counted = kernel.run("df.groupby('mode')['turn'].count().to_dict()").value
    assert counted == "{'http': 0, 'http-cache': 4, 'http-stored': 0, 'websocket': 4}"
    assert kernel.run(rows).value == before
    assert kernel.run("%agent bench --modes pigeon").error.startswith("UsageError: 'pigeon' is no")
    assert kernel.run("%agent bench --turns 0").error.startswith("UsageError: turns must be")


def test_a_bench_that_is_interrupted_shows_what_it_has(kernel, serve):
    """Loops that were complete are in the frame; before the first one the cell is interrupted."""
    page = {"tool_calls": [{"name": "page", "arguments": {"number": 1}}]}

    def hangs(loop):
        return lambda cell: f"{loop} …" in str(cell.displays)

    kernel.run(serve(page, page, page, page, {"text": "", "then": "hang"}))
    some = kernel.run(
        "df = %agent bench --turns 2", when=hangs("round 1 of 3, websocket"), do=kernel.interrupt
    )
    assert some.status == "ok"
    assert some.displays[0]["text/plain"].startswith("interrupted: ")
    assert kernel.run("df['mode'].tolist()[1:3]").value == "['http-cache', 'http-cache']"

    kernel.run(serve({"text": "", "then": "hang"}))
    none = kernel.run("df = %agent bench", when=hangs("warm-up, http-cache"), do=kernel.interrupt)
    assert none.status == "error"
    assert none.error == "Interrupted: interrupted"


def test_a_click_that_comes_on_a_subshell_ends_a_tool(own_kernel, serve):
    """As the front ends send it: it reaches the run while its cell keeps the main shell busy."""
    client = own_kernel.client
    own_kernel.run(serve(python("import time\ntime.sleep(600)"), {"text": "Here I am."}))
    create = client.session.msg("create_subshell_request", {})
    client.control_channel.send(create)
    subshell = client.get_control_msg(timeout=SECONDS)["content"]["subshell_id"]

    asked = client.execute("%%agent --mode auto\nSleep.")
    button, clicked = None, False
    while True:
        message = client.get_iopub_msg(timeout=SECONDS)
        kind, content = message["msg_type"], message["content"]
        if kind == "comm_open" and content["data"]["state"].get("_model_name") == "ButtonModel":
            button = content["comm_id"]
        if "sleep(600)" in json.dumps(content.get("data", "")) and button and not clicked:
            click(client, button, subshell)
            clicked = True
        ended = kind == "status" and content["execution_state"] == "idle"
        if ended and message["parent_header"].get("msg_id") == asked:
            break

    assert clicked
    told = "from ipy_agent import session\n[row.status for row in session().records.turns]"
    assert own_kernel.run(told).value == "['interrupted']"
    again = own_kernel.run("%%agent\nAre you there?")
    assert "Here I am." in again.displays[0]["text/plain"]


def click(client, button, subshell):
    """Send what a front end sends when a button is clicked."""
    data = {"method": "custom", "content": {"event": "click"}}
    message = client.session.msg("comm_msg", {"comm_id": button, "data": data})
    message["header"]["subshell_id"] = subshell
    client.shell_channel.send(message)
