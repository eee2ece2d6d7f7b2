"""Questions, allowances and budgets in a real kernel, answered as front ends answer."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.kernel

CODE = "ran = globals().get('ran', 0) + 1  # \u202e\nran"
CALL = {"tool_calls": [{"name": "python", "arguments": {"code": CODE}}]}
LAST = "__import__('ipy_agent').session().tools[['approval', 'status']].iloc[-{}].tolist()"


@pytest.fixture(autouse=True)
def _anew(kernel):
    """Begin with mode ask, no allowance, no limit, and nothing that ran."""
    yield
    kernel.run(
        "%agent mode ask\n%agent allow python --off\n%agent reset\nran = 0\n"
        "%agent budget --session --turns off --tokens off --usd off\n"
        "%agent budget --tokens off --usd off"
    )


def questions(cell):
    return [o["text"] for o in cell.outputs if o["type"] == "question"]


def ran(kernel):
    return kernel.run("globals().get('ran', 0)").value


def last(kernel, back=1):
    return kernel.run(LAST.format(back)).value


@pytest.mark.parametrize(
    ("answer", "runs", "row"),
    [
        ("y", "1", "['yes', 'completed']"),
        ("", "0", "['no', 'refused']"),
        ("n", "0", "['no', 'refused']"),
        ("yes please", "0", "['no', 'refused']"),
        ("\x04", "0", "['no', 'refused']"),
    ],
)
def test_a_call_runs_only_after_a_plain_yes(kernel, serve, answer, runs, row):
    """The question holds the exact code, with what hides in it, and says what counts."""
    kernel.run(serve(CALL, {"text": "done"}))

    cell = kernel.run("%%agent\nGo.", answer=answer)

    assert cell.status == "ok"
    (asked,) = questions(cell)
    assert asked.startswith(CODE.replace("\u202e", "⟨U+202E⟩") + "\n\nRun python? ")
    assert asked.endswith("[y = this call, a = python for this session, anything else = no] ")
    assert ran(kernel) == runs
    assert last(kernel) == row


def test_while_the_question_waits_the_cell_shows_the_code_in_colours(kernel, serve):
    """It is gone afterwards, and the call stands in its place."""
    kernel.run(serve(CALL, {"text": "done"}))
    pages = []

    cell = kernel.run(
        "%%agent\nGo.",
        answer="y",
        when=lambda cell: "may it run?" in str(cell.displays),
        do=lambda: pages.append(1),
    )

    assert pages == [1]
    page = cell.displays[0]["text/html"]
    assert "may it run?" not in page
    assert '<span style="color:' in page


def test_a_tool_that_is_allowed_at_the_question_is_not_asked_about_again(kernel, serve):
    """For the session: in the same run, and in the next cell; the records say so."""
    kernel.run(serve(CALL, CALL, {"text": "done"}, CALL, {"text": "done"}))

    first, second = kernel.run("%%agent\nGo.", answer="a"), kernel.run("%%agent\nGo.")

    assert len(questions(first)) == 1
    assert second.status == "ok"
    assert ran(kernel) == "3"
    assert [last(kernel, back) for back in (3, 2, 1)] == [
        "['yes', 'completed']",
        "['allowed', 'completed']",
        "['allowed', 'completed']",
    ]
    assert kernel.run("%agent allow").stdout == "python  allowed for this session\n"
    assert "python(code)  run (allowed for this session)\n" in kernel.run("%agent toolbox").stdout


def test_an_allowance_for_once_is_used_up_by_one_call(kernel, serve):
    """The second call is asked about."""
    kernel.run(serve(CALL, CALL, {"text": "done"}))
    said = kernel.run("%agent allow python --once").stdout

    cell = kernel.run("%%agent\nGo.", answer="")

    assert said == "mode ask: python  run (allowed once)\n"
    assert len(questions(cell)) == 1
    assert ran(kernel) == "1"
    assert kernel.run("%agent allow").stdout == (
        "no tool is allowed: %agent allow TOOL --once|--session\n"
    )


def test_an_allowance_can_be_taken_back_and_is_nothing_to_mode_read(kernel, serve):
    """What has side effects does not run there, whatever was allowed."""
    kernel.run(serve(CALL, {"text": "done"}, CALL, {"text": "done"}))
    kernel.run("%agent allow python --session")

    kernel.run("%%agent --mode read\nGo.")
    assert (ran(kernel), last(kernel)) == ("0", "['no', 'refused']")
    assert kernel.run("%agent allow python --off").stdout == "mode ask: python  ask\n"
    assert len(questions(kernel.run("%%agent\nGo.", answer=""))) == 1


def test_without_stdin_the_cell_says_how_to_allow_it_and_the_model_that_nobody_was_there(
    kernel, serve
):
    """That is not the user's no; with one of the two ways it runs."""
    kernel.run(serve(CALL, {"text": "as you like"}, CALL, {"text": "a"}, CALL, {"text": "b"}))

    cell = kernel.run("%%agent\nGo.")

    for form in ("text/html", "text/plain"):
        assert "%agent allow python --session, or %%agent --mode auto" in cell.displays[0][form]
    output = kernel.run("__import__('ipy_agent').session().tools['output'].iloc[-1]").value
    assert "nobody is there to allow it" in output
    assert ran(kernel) == "0"
    kernel.run("%%agent --mode auto\nGo.")
    kernel.run("%agent allow python --session")
    kernel.run("%%agent\nGo.")
    assert ran(kernel) == "2"


def test_an_answer_that_was_sent_before_the_question_is_none(kernel, serve):
    """The question waits for what is said after it was asked."""
    kernel.run(serve(CALL, {"text": "done"}))
    kernel.client.input("y")
    kernel.run("1")

    cell = kernel.run("%%agent\nGo.", answer="")

    assert len(questions(cell)) == 1
    assert ran(kernel) == "0"


def test_an_interrupt_at_the_question_is_a_no_and_ends_the_run(kernel, serve):
    """Nothing ran, and the next cell goes on."""
    kernel.run(serve(CALL, {"text": "fresh"}))

    stopped = kernel.run("%%agent\nGo.", answer=kernel.interrupt)
    after = kernel.run("%%agent\nAgain.")

    assert stopped.error == "Interrupted: interrupted"
    assert (ran(kernel), last(kernel)) == ("0", "['no', 'interrupted']")
    assert "may it run?" not in stopped.displays[0]["text/html"]
    assert "fresh" in after.displays[0]["text/plain"]


# budgets


def test_a_run_stops_at_its_budget_of_tokens_and_the_next_cell_goes_on(kernel, serve):
    """Between turns: what was called has its output, and the conversation can be sent."""
    kernel.run(serve(CALL, {"text": "on we go"}))
    kernel.run("%agent budget --tokens 1")

    stopped = kernel.run("%%agent --mode auto\nGo.")
    kernel.run("%agent budget --tokens off")
    after = kernel.run("%%agent\nGo on.")

    assert stopped.error.startswith("BudgetExceeded: the run took ")
    assert "budget_tokens is 1: ask the next cell to go on, or raise it with" in stopped.error
    assert len(stopped.error.splitlines()) == 1
    assert ran(kernel) == "1"
    assert "on we go" in after.displays[0]["text/plain"]


def test_a_session_at_its_limit_asks_nothing_until_it_is_raised(kernel, serve):
    """The refused cell sends nothing and leaves no prompt behind."""
    kernel.run(serve({"text": "one"}, {"text": "two"}))
    kernel.run("%%agent\nGo.")
    kernel.run("s = __import__('ipy_agent').session()\ns.session_turns = len(s.turns)")

    refused = kernel.run("%%agent\nMore.")
    sent = kernel.run("len(s.turns) == s.session_turns").value
    kernel.run("%agent budget --session --turns off")
    after = kernel.run("%%agent\nMore.")

    assert "session_turns is " in refused.error
    assert "%agent budget --session --turns N, or take it away with" in refused.error
    assert sent == "True"
    assert "two" in after.displays[0]["text/plain"]
    assert kernel.run("int(s.messages['text'].str.endswith('More.').sum())").value == "1"


def test_dollars_are_refused_where_there_are_no_prices(kernel, serve):
    """Nobody is told that a limit holds which cannot be kept."""
    kernel.run(serve({"text": "one"}))
    kernel.run("%agent budget --usd 0.5")

    cell = kernel.run("%%agent\nGo.")

    assert cell.error.startswith("UsageError: budget_usd cannot be kept, since no price is known")
    assert len(cell.error.splitlines()) == 1


def test_the_budget_tells_limits_and_what_is_used(kernel, serve):
    """A table of what the last cell and the session took, and of how much."""
    kernel.run(serve({"text": "one two"}))
    kernel.run("%agent budget --turns 7 --seconds 60.5 --tokens 1e6")
    kernel.run("%agent budget --session --tokens 2000000")
    kernel.run("%%agent\nGo.")

    said = kernel.run("%agent budget").stdout.splitlines()

    assert said[0].split() == ["last", "cell", "session"]
    assert said[1].split()[:4] == ["turns", "1", "of", "7"]
    assert "of 60.5" in said[2]
    assert "of 1,000,000 " in said[3]
    assert said[3].endswith("of 2,000,000")
    assert said[-1].startswith("no price is known of ")


def test_a_limit_that_holds_by_itself_can_be_taken_away_too(kernel, serve):
    """Off is no limit, not the usual one; and a run without one runs."""
    kernel.run(serve({"text": "one"}))
    kernel.run("%agent budget --turns off --seconds off")

    cell = kernel.run("%%agent\nGo.")
    _, turns, seconds, *_ = kernel.run("%agent budget").stdout.splitlines()
    kernel.run("%agent budget --turns 25 --seconds 1800")

    assert cell.status == "ok"
    assert "of" not in turns + seconds
    assert "1 of 25" in kernel.run("%agent budget").stdout


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("%agent allow nothing", "UsageError: there is no tool 'nothing': there are "),
        ("%agent allow --once", "UsageError: --once for which tool? %agent allow TOOL --once"),
        ("%agent allow python --once --session", "UsageError: argument --session: not allowed"),
        ("%agent budget --turns many", "UsageError: argument --turns: 'many' is neither a number"),
        ("%agent budget --turns 2.5", "UsageError: budget_turns must be a whole number above 0"),
        ("%agent budget --usd -1", "UsageError: "),
        ("%agent budget --usd 0", "UsageError: budget_usd must be a number above 0, not 0"),
        ("%agent budget --tokens nan --session", "UsageError: session_tokens must be a whole"),
        ("%agent budget --pounds 3", "UsageError: unrecognized arguments: --pounds"),
    ],
)
def test_what_does_not_fit_is_one_line(kernel, code, line):
    """And nothing is set."""
    before = kernel.run("%agent budget").stdout

    cell = kernel.run(code)

    assert cell.error.startswith(line)
    assert len(cell.error.splitlines()) == 1
    assert kernel.run("%agent budget").stdout == before
