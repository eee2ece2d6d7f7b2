"""The tree in the module's docstring is the tree of the classes."""

from __future__ import annotations

import copy
import pickle
import re

import pytest

from ipy_agent import errors
from ipy_agent.errors import AgentError, ConnectionLost, MissingExtra, ResponseFailed

CODES = {
    "AgentError": "agent_error",
    "AnswerMisfit": "answer_misfit",
    "AuthenticationFailed": "authentication_failed",
    "BudgetExceeded": "budget_exceeded",
    "ConnectionFailed": "connection_failed",
    "ConnectionLost": "connection_lost",
    "Interrupted": "interrupted",
    "JournalFailed": "journal",
    "MessageTooBig": "message_too_big",
    "MissingExtra": "missing_extra",
    "ModelUnavailable": "model_unavailable",
    "NoAnswer": "no_answer",
    "ProtocolError": "protocol",
    "ResponseFailed": "response_failed",
    "ToolError": "tool",
    "TransportError": "transport",
    "UpgradeRefused": "upgrade_refused",
    "UsageError": "usage",
}
MADE = {
    "AnswerMisfit": lambda: errors.AnswerMisfit("no", text="{"),
    "ConnectionLost": lambda: ConnectionLost("lost", sent=True, close_code=1006),
    "MissingExtra": lambda: MissingExtra("the embedded server", "local"),
    "ResponseFailed": lambda: ResponseFailed("no", code="slow_down", status=429, retry_after=3.0),
    "UpgradeRefused": lambda: errors.UpgradeRefused("refused", status=426),
}
DRAWN = re.compile(r"^    (?P<trunk>[│├└─ ]*)(?P<name>[A-Z]\w+)(?P<words>.*)$", re.MULTILINE)
SECOND = re.compile(r"\((?:also (\w+)|a (\w+) as well)\)")


def tree_drawn():
    """Return name → (parent, second base or nothing), as the docstring draws it."""
    tree, above = {}, []
    for line in DRAWN.finditer(errors.__doc__):
        above[len(line["trunk"]) // 4 :] = [line["name"]]
        second = SECOND.search(line["words"])
        names = {above[-2]} if len(above) > 1 else {"Exception"}
        tree[line["name"]] = names | ({second[1] or second[2]} if second else set())
    return tree


def classes():
    kinds = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
    return {name: kind for name, kind in kinds.items() if issubclass(kind, BaseException)}


def made(name):
    return MADE.get(name, lambda: getattr(errors, name)("what happened"))()


def test_the_tree_is_as_drawn():
    """Each class stands in the docstring, below its parent and with its second base."""
    tree = {name: {base.__name__ for base in kind.__bases__} for name, kind in classes().items()}

    assert tree_drawn() == tree
    assert len(tree) == len(CODES)


def test_every_error_is_public():
    """Whatever can be raised can be named by who wants to catch it."""
    assert sorted(errors.__all__) == errors.__all__ == sorted(classes())


@pytest.mark.parametrize("name", CODES)
def test_codes_are_stable(name):
    """Programs compare codes: this list may grow and never change."""
    assert getattr(errors, name).code == CODES[name]


def test_a_long_message_is_cut_where_it_is_printed():
    """All of it is there for who asks; a cell shows how it begins, and how much more there is."""
    long = errors.ResponseFailed("x" * 34_000)

    (shown,) = long._render_traceback_()
    assert shown == f"ResponseFailed: {'x' * 1_000} … 33,000 characters more"
    assert len(str(long)) == 34_000


def test_a_code_may_be_the_endpoints_own():
    """The endpoint's word takes the place of ours, for that one error."""
    assert made("ResponseFailed").code == "slow_down"
    assert ResponseFailed("no").code == "response_failed"
    assert errors.NoAnswer("silence", code="idle").code == "idle"


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("UsageError", ValueError),
        ("MissingExtra", ImportError),
        ("ToolError", TypeError),
        ("Interrupted", KeyboardInterrupt),
    ],
)
def test_an_error_is_caught_as_what_python_calls_it(name, base):
    """Code that knows nothing of us catches what it always caught."""
    with pytest.raises(base) as caught:
        raise made(name)

    assert isinstance(caught.value, AgentError)


@pytest.mark.parametrize("name", CODES)
def test_a_notebook_shows_one_line(name):
    """IPython asks an error how to show itself: with its name and its message."""
    error = made(name)

    assert error._render_traceback_() == [f"{name}: {error}"]
    assert str(error).strip()


def test_a_message_of_several_lines_is_shown_as_one():
    """What an endpoint says in three lines does not fill the cell."""
    error = ResponseFailed("first\nsecond\r\nthird")

    assert error._render_traceback_() == ["ResponseFailed: first second third"]


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))]
)
def test_an_error_travels_with_its_facts(name, again):
    """Copied, or sent from another process, it says the same and knows the same."""
    error = made(name)
    other = again(error)

    assert type(other) is type(error)
    assert str(other) == str(error)
    assert other.code == error.code
    assert vars(other) == vars(error)


def test_facts_are_attributes():
    """Nobody has to read a message to act on it."""
    lost, failed = made("ConnectionLost"), made("ResponseFailed")

    assert (lost.sent, lost.close_code) == (True, 1006)
    assert (failed.status, failed.param, failed.retry_after) == (429, None, 3.0)
    assert made("UpgradeRefused").status == 426
    assert made("ConnectionFailed").sent is False


def test_a_missing_extra_says_what_to_install():
    """The line can be pasted into a shell."""
    assert "pip install 'ipy-agent-live[local]'" in str(made("MissingExtra"))


def test_a_message_cannot_change_the_screen_that_shows_it():
    """An endpoint's words may be part of it: what cannot be seen is shown by its code."""
    error = ResponseFailed("bad \x1b]0;title\x07 word\u202e\nand more")

    assert error.line == "bad ⟨U+001B⟩]0;title⟨U+0007⟩ word⟨U+202E⟩ and more"
    assert error._render_traceback_() == [f"ResponseFailed: {error.line}"]
