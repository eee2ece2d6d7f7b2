"""What a model is told of the variables of a real kernel."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.kernel

TOLD = """
from ipy_agent.notebook.context import handed_over as _handed, told as _told
_shell, _before = get_ipython(), None

def _tell(how="delta"):
    global _before
    said, _before = _told(_shell.user_ns, _shell.user_ns_hidden, _before, how)
    print(said)

def _hand(prompt, **more):
    return _handed(prompt, _shell.user_ns, **more)
"""


def test_a_kernel_tells_what_cells_did_to_its_variables(own_kernel):
    """Nothing of IPython's own, no history, no library's functions; and nothing twice."""
    own_kernel.run(TOLD)

    assert own_kernel.run("_tell()").stdout.strip() == ""
    own_kernel.run("import pandas as pd\nfrom math import sqrt\nframe = pd.DataFrame({'a': [1]})")
    own_kernel.run("def f(x):\n    return x\nkey = 'sk-secret'\n1 + 1")
    first = own_kernel.run("_tell()").stdout.splitlines()
    assert first[1:] == ["new: pd (module), frame (DataFrame 1×1), f (function), key (str of 9)"]
    assert own_kernel.run("_tell()").stdout.strip() == ""
    own_kernel.run("frame['b'] = 2\ndel key\nnumber = 3")
    assert own_kernel.run("_tell()").stdout.splitlines()[1:] == [
        "new: number (int)",
        "changed: frame (DataFrame 1×2)",
        "gone: key",
    ]


def test_a_function_of_a_cell_is_handed_over_with_its_source(kernel):
    """The cell that it was defined in is where its source is."""
    kernel.run(TOLD)
    kernel.run("import functools\n@functools.cache\ndef twice(x, by=2):\n    return by * x  # so")

    said = kernel.run("print(_hand('Mend $`twice`.').prompt)").stdout.splitlines()

    assert said == [
        "twice: function twice(x, by=2)",
        "@functools.cache",
        "def twice(x, by=2):",
        "    return by * x  # so",
        "",
        "Mend `twice`.",
    ]


def test_a_figure_of_a_cell_is_handed_over_as_a_picture(kernel):
    """As it was shown there, and where the model sees none it is told so."""
    kernel.run(TOLD)
    kernel.run("%matplotlib inline\nimport matplotlib.pyplot as plt\nfigure, axes = plt.subplots()")

    seen = kernel.run("h = _hand('$`axes`'); print(h.previews, h.pictures[0]['image_url'][:22])")
    unseen = kernel.run("print(_hand('$`figure`', images=False).previews)")

    assert seen.stdout.strip() == (
        "('axes: Axes, picture 1 of this message',) data:image/png;base64,"
    )
    assert "which this model cannot see" in unseen.stdout


def test_what_is_told_is_set_by_a_command(kernel):
    """`%agent context` takes off, names or delta, and refuses the rest in one line."""
    kernel.run("%agent context names")

    assert kernel.run("__import__('ipy_agent').session().context").value == "'names'"
    refused = kernel.run("%agent context everything")
    assert len(refused.error.splitlines()) == 1
    assert "off, names, delta" in refused.error.replace("'", "")
    assert kernel.run("__import__('ipy_agent').session().context").value == "'names'"


def test_a_dry_run_shows_what_is_then_sent(own_kernel, serve):
    """Bytes and items are those of the turn that follows; nothing was sent before it."""
    own_kernel.run(serve({"text": "one"}, {"text": "two"}))
    own_kernel.run("frame = __import__('pandas').DataFrame({'a': [1]})\nkey = 'sk-secret'")

    first = own_kernel.run("%%agent --dry-run\nLook at $`frame`.")
    assert own_kernel.run("len(__import__('ipy_agent').session().turns)").value == "0"
    own_kernel.run("%%agent\nLook at $`frame`.")
    own_kernel.run("del key")
    second = own_kernel.run("%%agent --dry-run\nAnd now?")
    own_kernel.run("%%agent\nAnd now?")

    sent = own_kernel.run(
        "_t = __import__('ipy_agent').session().turns\n"
        "print(*(f'{n:,}' for n in [*_t['sent_bytes'], *_t['full_bytes']]))"
    ).stdout.split()
    lines = [cell.displays[0]["text/plain"].partition("\n")[0] for cell in (first, second)]
    assert lines[0] == (
        f"would send 1 item, {sent[0]} bytes over a new WebSocket; the server holds nothing of it"
    )
    assert lines[1].startswith(
        f"would send 1 of 3 items, {sent[1]} of {sent[3]} bytes over WebSocket"
    )
    shown = first.displays[0]["text/plain"]
    assert "frame: DataFrame 1×1\\n  a: int64; 1 to 1" in shown
    assert "frame (DataFrame 1×1), key (str of 9)" in shown
    assert "sk-secret" not in shown
    assert "gone: key" in second.displays[0]["text/plain"]


@pytest.mark.parametrize(
    ("named", "line"),
    [
        ("nowhere_at_all", "there is no variable 'nowhere_at_all' to hand over"),
        ("frame.a", "$`frame.a` is not the name of a variable: assign it to one first"),
    ],
)
def test_what_cannot_be_handed_over_is_one_line(kernel, serve, named, line):
    """Nothing is sent, and the next cell works."""
    kernel.run(serve({"text": "fine"}))

    cell = kernel.run(f"%%agent\nLook at $`{named}`.")

    assert cell.error.startswith(f"UsageError: {line}")
    assert len(cell.error.splitlines()) == 1
    assert "fine" in kernel.run("%%agent\nhi").displays[0]["text/plain"]
