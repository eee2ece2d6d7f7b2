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

    assert call["text/plain"].startswith("[turn ")
    assert "[python" in call["text/plain"]
    assert [set(figure) for figure in figures] == [{"image/png", "text/plain"}] * 2
    assert answer["text/plain"].startswith("It *goes* up.")
    assert "<table" in table["text/html"]
    assert all(shown.get("text/plain") for shown in cell.displays)
    assert not any("widget" in kind for shown in cell.displays for kind in shown)


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
