"""A run on the screen: one display that grows, is bounded, harmless, and static at its end."""

from __future__ import annotations

import builtins
import html
import html.parser
import io
import json
import re
import threading
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from traitlets.config import Config

from ipy_agent.agent.approval import Question, Reply
from ipy_agent.errors import BudgetExceeded, Interrupted
from ipy_agent.notebook.answer import CellFront
from ipy_agent.notebook.parts import SUPERSEDED, Footer
from ipy_agent.notebook.screen import BYTES_A_SECOND
from ipy_agent.notebook.terminal import PlainFront
from ipy_agent.protocol.events import (
    ArgumentsDelta,
    ItemDone,
    ResponseCompleted,
    ResponseCreated,
    TextDelta,
    ThoughtDelta,
)
from ipy_agent.protocol.response import Response
from ipy_agent.records import Recorder
from ipy_agent.sessions import Session
from ipy_agent.trace import (
    Notice,
    RequestSent,
    ResponseEnded,
    RunBegan,
    RunEnded,
    Throttled,
    ToolBegan,
    ToolEnded,
    TurnBegan,
)
from ipy_agent.transport.scripted import ScriptedTransport

SECONDS = 20
DAY = datetime(2026, 11, 22, tzinfo=UTC)
HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(1)> ![p](https://evil.example/p.png) "
    "[click](javascript:alert(1)) <a href='javascript:alert(1)'>a</a> \x1b[31mred\x1b]0;title\x07 "
    "a\u202eb <iframe src=//evil.example> </code></pre><svg onload=alert(1)> \x00"
)
PARAGRAPH = "Lorem ipsum *dolor* sit amet, **consectetur** adipiscing elit, sed do eiusmod.\n\n"
ALLOWED = {
    "a": {"href", "rel", "target"},
    "code": {"class"},
    "details": {"class", "open"},
    "div": {"class", "style"},
    "em": set(),
    "p": set(),
    "pre": {"style"},
    "span": {"style"},
    "strong": set(),
    "summary": set(),
}


class Clock:
    """A clock that goes when it is told to."""

    now = 100.0

    def __call__(self):
        return self.now


class Screen(CapturingDisplayPublisher):
    """What reached the front end: displays in order, each in its last state, and every message."""

    def __init__(self, outputs):
        super().__init__(outputs=outputs)
        self._more = threading.Condition()

    def publish(self, *said, **told):
        with self._more:
            super().publish(*said, **told)
            self._more.notify_all()

    def until(self, shows):
        """Wait for what another thread displays."""
        with self._more:
            assert self._more.wait_for(shows, SECONDS)

    @property
    def displays(self):
        shown = {}
        for message in self.outputs:
            shown[message["transient"]["display_id"]] = message["data"]
        return list(shown.values())

    @property
    def answer(self):
        return self.displays[0]

    @property
    def plain(self):
        return self.answer["text/plain"]

    @property
    def updates(self):
        return [message["data"] for message in self.outputs if message["update"]]


class Front(CellFront):
    """A front to which everything comes alone."""

    def show(self, event):
        super().show(event)
        self.tick()


class Elements(html.parser.HTMLParser):
    """Every element of a page with its attributes."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def shell():
    quiet = Config()
    quiet.HistoryManager.enabled = False
    yield InteractiveShell.instance(config=quiet)
    InteractiveShell.clear_instance()


@pytest.fixture
def screen(shell, monkeypatch):
    captured = Screen(outputs=[])
    monkeypatch.setattr(shell, "display_pub", captured)
    return captured


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def front(screen, clock):  # noqa: ARG001 (it shows itself there)
    """A front that has asked, and waits for the first words."""
    made = Front(Recorder(), clock)
    made.show(RunBegan(prompt="?", endpoint="local"))
    ask(made)
    return made


def ask(front, attempt=0):
    if not attempt:
        front.show(TurnBegan(model=None))
    front.show(
        RequestSent(
            transport="scripted",
            connection=1,
            reused=False,
            connect_ms=None,
            previous_response_id=None,
            sent_items=1,
            held_items=0,
            sent_bytes=1,
            full_bytes=1,
            attempt=attempt,
        )
    )


def message(text):
    return {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": text}],
    }


def say(front, text, index=0, size=3):
    for at in range(0, len(text), size):
        front.show(TextDelta(delta=text[at : at + size], output_index=index))


def item(front, text, index=0):
    front.show(ItemDone(output_index=index, item=message(text)))


def end(front, *output):
    front.show(
        ResponseCompleted(response=Response(id="r", status="completed", output=list(output)))
    )
    front.show(ResponseEnded(received_bytes=1))


def think(front, text, index=0, section=0, size=3):
    for at in range(0, len(text), size):
        front.show(
            ThoughtDelta(delta=text[at : at + size], output_index=index, summary_index=section)
        )


def reasoning(*sections):
    told = [{"type": "summary_text", "text": section} for section in sections]
    return {"type": "reasoning", "id": "rs", "summary": told}


def custom(said, call_id="c"):
    return {"type": "custom_tool_call", "call_id": call_id, "name": "query", "input": said}


def call(front, output="42", name="python", arguments='{"code": "6 * 7"}', status="completed"):
    said = {"call_id": "c", "name": name, "arguments": arguments}
    front.show(ToolBegan(**said))
    front.show(ended(**said, output=output, status=status))


def ended(**said):
    told = {"started_at": DAY, "duration_ms": 1234.5, "approval": "auto", "approval_ms": None}
    return ToolEnded(**({"status": "completed"} | told | said))


def close(front):
    front.show(RunEnded(status="completed"))
    front.close()


def size(bundle):
    return len(json.dumps(bundle, ensure_ascii=False).encode())


# how often, and how much


@pytest.mark.parametrize("deltas", [7, 200, 5_000])
def test_a_second_brings_at_most_twenty_updates(deltas, front, screen, clock):
    """However many deltas arrive, the display is updated at most twenty times a second."""
    before = len(screen.updates)

    for _ in range(deltas):
        clock.now += 1 / deltas
        front.show(TextDelta(delta="x"))

    assert min(deltas, 10) - 1 <= len(screen.updates) - before <= 20


def test_deltas_that_arrive_at_once_are_shown_at_once(front, screen, clock):
    """A burst costs one update, and what came too soon after it follows."""
    before = len(screen.updates)

    clock.now += 1
    say(front, "all of it", size=1)
    assert len(screen.updates) == before + 1
    assert screen.plain == "a"
    clock.now += 0.1
    front.tick()

    assert screen.plain == "all of it"
    assert len(screen.updates) == before + 2


def test_an_event_that_shows_nothing_sends_nothing(front, screen, clock):
    """Arguments that trickle in, and ticks, cost no update."""
    clock.now += 1
    front.tick()
    before = len(screen.updates)

    for _ in range(100):
        clock.now += 0.5
        front.show(ArgumentsDelta(delta="x"))
        front.tick()

    assert len(screen.updates) - before <= 1  # the seconds that were counted before go


def stream(front, screen, clock, *, length, seconds):
    """Stream an answer of four characters a delta, and return the bytes that updates took."""
    text = (PARAGRAPH * length)[:length]
    sent = 0
    for at in range(0, length, 4):
        clock.now += seconds
        front.show(TextDelta(delta=text[at : at + 4]))
        sent += sum(size(message["data"]) for message in screen.outputs if message["update"])
        del screen.outputs[1:]
    return sent


def test_a_long_answer_costs_a_bounded_multiple_of_itself(front, screen, clock):
    """200,000 characters in 50,000 deltas at 5 ms each take at most sixty times their display."""
    sent = stream(front, screen, clock, length=200_000, seconds=0.005)
    close(front)

    assert sent + size(screen.answer) <= 60 * size(screen.answer)


@pytest.mark.parametrize("seconds", [0.0005, 0.04])
def test_an_answer_takes_a_bounded_share_of_the_wire(seconds, front, screen, clock):
    """However fast or slow a model is, updates take so many bytes a second, and the answer once."""
    sent = stream(front, screen, clock, length=12_000, seconds=seconds)
    close(front)

    share = BYTES_A_SECOND * (clock.now - Clock.now)
    assert share / 2 < sent <= 1.05 * (share + size(screen.answer))


def test_a_short_answer_is_shown_as_it_comes(front, screen, clock):
    """Up to 2,000 characters at the pace of a fast model no word waits a fifth of a second."""
    for number in range(400):
        clock.now += 0.01
        front.show(TextDelta(delta=f"{number:5d}"))
        shown = int(screen.plain.split()[-1]) if number > 10 else number
        assert number - shown <= 20


# what is shown


def test_an_items_own_text_wins_over_its_deltas(front, screen):
    """What was streamed is replaced by what the item says in the end."""
    say(front, "It is 41.")
    item(front, "It is **42**.")
    close(front)

    assert screen.plain == "It is **42**."
    assert screen.answer["text/html"].count("It is") == 1
    assert "<strong>42</strong>" in screen.answer["text/html"]


def test_messages_and_calls_stand_in_their_order(front, screen):
    """Several messages in a response, and calls between responses, follow each other."""
    say(front, "first", 0)
    item(front, "first", 0)
    say(front, "second", 1)
    item(front, "second", 1)
    end(front, message("first"), message("second"), {"type": "function_call"})
    call(front, "4.2")
    ask(front)
    say(front, "third")
    end(front, message("third"))
    close(front)

    assert screen.plain.split("\n\n") == [
        "first",
        "second",
        "[python · 1,234 ms]\n6 * 7\n-> 4.2",
        "third",
    ]
    assert re.findall(r"first|second|6 \* 7|4\.2|third", words(screen.answer["text/html"])) == [
        *("first", "second", "6 * 7", "4.2", "third")
    ]


def test_a_message_without_deltas_leaves_the_one_before_it(front, screen):
    """An item that was never streamed is shown beside those that were."""
    say(front, "streamed", 0)
    item(front, "streamed", 0)
    item(front, "whole", 2)
    close(front)

    assert screen.plain == "streamed\n\nwhole"


@pytest.mark.parametrize("streamed", [[], [(0, "half")], [(0, "said")], [(3, "said")]])
def test_the_terminal_output_is_what_stays(streamed, front, screen):
    """An endpoint may say all in its last event, or number its items otherwise before it."""
    for index, text in streamed:
        say(front, text, index)
    end(front, {"type": "reasoning"}, message("said"))
    close(front)

    assert screen.plain == "said"


def test_a_response_that_tells_no_output_keeps_what_was_streamed(front, screen):
    """An empty terminal output takes nothing away."""
    say(front, "streamed")
    end(front)
    close(front)

    assert screen.plain == "streamed"


def test_a_turn_that_is_sent_again_is_shown_once(front, screen, clock):
    """What came before the second sending goes; the turns before it stay."""
    say(front, "turn one")
    end(front, message("turn one"))
    ask(front)
    say(front, "It is 4")
    ask(front, attempt=1)
    with front.working():
        clock.now += 0.5
        screen.until(lambda: "thinking" in screen.plain)
        assert screen.plain == f"turn one\n\n{SUPERSEDED}\n\nthinking …"
    say(front, "It is 42.")
    end(front, message("It is 42."))
    close(front)

    assert screen.plain == f"turn one\n\n{SUPERSEDED}\n\nIt is 42."


def test_two_calls_of_one_id_each_keep_their_output(front, screen):
    """Ids of calls may come again in a later turn."""
    call(front, "one")
    call(front, "two", status="failed")
    close(front)

    assert screen.plain.split("\n\n") == [
        "[python · 1,234 ms]\n6 * 7\n-> one",
        "[python · 1,234 ms · failed]\n6 * 7\n-> two",
    ]


def test_a_call_shows_its_code_open_and_folds_when_it_ended(front, screen, clock):
    """While a tool runs its code is to be seen; its output is behind its title."""
    front.show(ToolBegan(call_id="c", name="python", arguments='{"code": "a = 1\\nb = 2"}'))
    with front.working():
        clock.now += 1
        screen.until(lambda: "a = 1\nb = 2" in words(screen.answer["text/html"]))
        assert is_open(screen)
    call(front)
    close(front)

    assert not is_open(screen)


def words(page):
    """Return what a page says, without its elements."""
    return html.unescape(re.sub(r"<[^>]*>", "", page))


def is_open(screen):
    """Whether the last call on the screen is unfolded."""
    folds = [told for tag, told in Elements(screen.answer["text/html"]).found if tag == "details"]
    return "open" in folds[-1]


@pytest.mark.parametrize(
    "arguments", ['{"a": 1, "b": "two"}', '{"a": 1', "", "[1]", '"x"', "\ud83d", "[" * 100_000]
)
def test_arguments_that_are_no_code_are_shown_as_they_are(arguments, front, screen):
    """Whatever a model passed can be read."""
    call(front, arguments=arguments)
    close(front)

    shown = "".join(screen.plain.split())
    assert "".join(arguments.replace("\ud83d", "\N{REPLACEMENT CHARACTER}").split()) in shown


def test_a_tools_output_is_bounded_on_the_screen(front, screen):
    """Of a long output head and tail are shown, and how much was left out."""
    call(front, "begin" + "x" * 1_000_000 + "end")
    close(front)

    for shown in screen.answer.values():
        assert len(shown) < 10_000
        assert "begin" in shown
        assert "end" in shown
        assert "characters left out" in shown


@pytest.mark.parametrize(
    "tell",
    [
        lambda front: say(front, HOSTILE, size=5),
        lambda front: item(front, HOSTILE),
        lambda front: end(front, message(HOSTILE)),
        lambda front: call(front, name=HOSTILE),
        lambda front: call(front, arguments=json.dumps({"code": HOSTILE})),
        lambda front: call(front, arguments=HOSTILE),
        lambda front: call(front, output=HOSTILE),
        lambda front: call(front, status=HOSTILE),
        lambda front: front.show(Notice(text=HOSTILE)),
        lambda front: front.show(Notice(text=HOSTILE, lasting=True)),
        lambda front: think(front, HOSTILE, size=5),
        lambda front: end(front, reasoning(HOSTILE)),
    ],
)
def test_nothing_hostile_becomes_an_element(tell, front, screen, clock):
    """Scripts, script links, pictures, terminal codes and bidi marks never reach the page raw."""
    clock.now += 1
    tell(front)
    clock.now += 30
    front.tick()
    front.close()

    assert any("evil.example" in bundle["text/html"] for bundle in screen.updates)
    for bundle in screen.updates:
        assert set(bundle) == {"text/html", "text/plain"}
        for text in bundle.values():
            assert not set("\x1b\u202e\x00\x07") & set(text)
    for page in [
        bundle["text/html"] for bundle in screen.updates if "<table" not in bundle["text/html"]
    ]:
        for tag, attributes in Elements(page).found:
            assert set(attributes) <= ALLOWED[tag]
            assert (attributes.get("href") or "https:").startswith("https:")


@pytest.mark.parametrize(
    "said", ['{"a": "HOSTILE"}', '{"a": "HOSTILE', '{"HOSTILE', "```json\nHOSTILE", "HOSTILE"]
)
def test_nothing_hostile_in_json_becomes_an_element(said, screen, clock):
    """An answer that was asked for as JSON is as little trusted as any."""
    front = Front(Recorder(), clock, json=True)
    end(front, message(said.replace("HOSTILE", HOSTILE)))
    close(front)

    page = screen.answer["text/html"]
    assert "evil.example" in page
    assert not set("\x1b\u202e\x00\x07") & set(page + screen.plain)
    for tag, attributes in Elements(page).found:
        assert set(attributes) <= ALLOWED[tag]


# thoughts


def test_thoughts_stream_into_a_closed_fold(front, screen, clock):
    """What a model thinks is there to be unfolded while it thinks, above what it then says."""
    clock.now += 1
    think(front, "I *weigh* ")
    clock.now += 1
    think(front, "it.")
    clock.now += 1
    front.tick()
    assert screen.plain.startswith("[thoughts] I *weigh* it.")
    assert "thinking" in screen.plain
    assert not is_open(screen)
    assert "<em>weigh</em>" in screen.answer["text/html"]
    say(front, "It is 42.", 1)
    end(front, reasoning("I *weigh* it."), message("It is 42."))
    close(front)

    assert screen.plain == "[thoughts] I *weigh* it.\n\nIt is 42."
    assert not is_open(screen)


def test_the_sections_of_thoughts_stand_apart(front, screen):
    """A summary of several parts is several paragraphs, streamed or whole."""
    think(front, "One.", section=0)
    think(front, "Two.", section=1)
    close(front)
    assert screen.plain == "[thoughts] One.\n\nTwo."
    streamed = screen.answer

    front.show(ItemDone(output_index=0, item=reasoning("One.", "Two.")))
    front.close()

    assert screen.answer == streamed


@pytest.mark.parametrize("streamed", [[], [(0, "Hm")], [(3, "Hmm.")], [(0, "Hmm.")]])
def test_the_reasoning_item_wins_over_its_deltas(streamed, front, screen):
    """Thoughts that came whole, in part or under another number are shown once, as they are."""
    for index, text in streamed:
        think(front, text, index)
    end(front, reasoning("Hmm."), message("42"))
    close(front)

    assert screen.plain == "[thoughts] Hmm.\n\n42"


@pytest.mark.parametrize(
    "item",
    [
        reasoning(),
        {"type": "reasoning"},
        {"type": "reasoning", "summary": None},
        {"type": "reasoning", "summary": ["?", {"text": None}]},
        {"type": "reasoning", "summary": 3, "encrypted_content": "abc"},
    ],
)
def test_a_reasoning_item_without_a_summary_shows_nothing(item, front, screen, capsys):
    """It takes away nothing either."""
    plain = PlainFront()
    for one in (front, plain):
        end(one, item, message("42"))
        close(one)
    assert screen.plain == "42"
    assert capsys.readouterr().out == "42\n"

    think(front, "Hm.")
    front.show(ItemDone(output_index=0, item=item))
    front.close()

    assert screen.plain.endswith("[thoughts] Hm.")


def test_thoughts_of_a_turn_that_is_sent_again_are_shown_once(front, screen):
    """Those that came before the second sending go; those of turns before it stay."""
    think(front, "first")
    end(front, reasoning("first"), message("one"))
    ask(front)
    think(front, "half a tho")
    ask(front, attempt=1)
    think(front, "a thought")
    end(front, reasoning("a thought"), message("two"))
    close(front)

    assert screen.plain.split("\n\n") == [
        "[thoughts] first",
        "one",
        SUPERSEDED,
        "[thoughts] a thought",
        "two",
    ]


def test_thoughts_cost_no_more_than_words(front, screen, clock):
    """However many deltas of thought arrive, updates are bounded as for a text."""
    before = len(screen.updates)

    for _ in range(5_000):
        clock.now += 1 / 5_000
        front.show(ThoughtDelta(delta="x"))

    assert 9 <= len(screen.updates) - before <= 20


# custom tools, JSON, notices that stay


@pytest.mark.parametrize("said", ['{"sql": "no"}', "SELECT 1", "3", ""])
@pytest.mark.parametrize("kind", [CellFront, PlainFront])
def test_a_custom_tool_is_shown_with_its_text(kind, said, screen, clock, capsys):
    """As it is, though it may look like the arguments of another tool."""
    front = kind(Recorder(), clock) if kind is CellFront else kind()
    end(front, custom(said))
    call(front, "4.2", name="query", arguments=said)
    close(front)

    shown = screen.plain if kind is CellFront else capsys.readouterr().out
    assert f"]\n{said}\n-> 4.2" in shown


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ('{"x":1,"y":[2]}', '{\n  "x": 1,\n  "y": [\n    2\n  ]\n}'),
        ('{"x":', '{"x":'),
        ("No.", "No."),
    ],
)
def test_an_answer_in_json_is_laid_out_in_a_fold(said, shown, screen, clock):
    """It is open, and can be folded away; what is no JSON is shown as it was said."""
    front = Front(Recorder(), clock, json=True)
    ask(front)
    say(front, said)
    end(front, message(said))
    close(front)

    assert screen.plain == shown
    folded = "<details" in screen.answer["text/html"]
    assert folded is said.startswith("{")
    if folded:
        assert is_open(screen)
        assert 'class="language-json"' in screen.answer["text/html"]


def test_json_that_nobody_asked_for_is_a_text(front, screen):
    """Without a schema an answer that looks like JSON is as the model wrote it."""
    end(front, message('{"x":1}'))
    close(front)

    assert screen.plain == '{"x":1}'
    assert "<details" not in screen.answer["text/html"]


def test_a_lasting_notice_stays_in_the_cell_and_is_said_once(front, screen, clock):
    """It stands where it was said, small, and in what is saved; other notices pass."""
    front.show(Notice(text="no WebSocket there: going on over HTTP", lasting=True))
    front.show(Notice(text="starting"))
    clock.now += 1
    front.tick()
    assert screen.plain.startswith("no WebSocket there: going on over HTTP\n\nstarting")
    front.show(Notice(text="no WebSocket there: going on over HTTP", lasting=True))
    say(front, "42")
    ask(front, attempt=1)
    say(front, "42")
    end(front, message("42"))
    close(front)

    assert screen.plain == f"no WebSocket there: going on over HTTP\n\n{SUPERSEDED}\n\n42"
    assert "font-size:85%" in screen.answer["text/html"]


@budget(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a ", "**b**", "\n\n", "- c\n", "```\n", "<b>"]), st.floats(0, 2)
        )
    ),
    st.booleans(),
)
def test_however_it_was_cut_the_end_is_the_same(pieces, whole):
    """The final display depends on what was said, not on how and when it came."""
    shell = InteractiveShell.instance()
    ends = []
    for told in (pieces, [("".join(text for text, _ in pieces), 0.0)]):
        publisher, shell.display_pub = shell.display_pub, Screen(outputs=[])
        try:
            clock = Clock()
            front = Front(Recorder(), clock)
            ask(front)
            for text, seconds in told:
                clock.now += seconds
                front.show(TextDelta(delta=text))
                front.tick()
            if whole:
                item(front, "".join(text for text, _ in pieces))
            close(front)
            ends.append(shell.display_pub.answer)
        finally:
            shell.display_pub = publisher

    assert ends[0] == ends[1]


# signs of life


def test_while_it_waits_the_status_counts_seconds(front, screen, clock):
    """The line below the answer shows a number that grows, and changes once a second."""
    before, shown = len(screen.updates), []
    for _ in range(90):
        clock.now += 0.1
        front.tick()
        shown.append(int("".join(re.findall(r"\d+", screen.plain)) or 0))

    assert shown == sorted(shown)
    assert shown[-1] >= 8
    assert len(screen.updates) - before <= 10


def test_silence_is_told_from_ten_seconds_on(front, screen, clock):
    """`no data for N s` appears at ten seconds, counts on, and goes with the next event."""
    clock.now += 9.9
    front.tick()
    assert "no data" not in screen.plain
    clock.now += 0.2
    front.tick()
    assert "no data for 10 s" in screen.plain
    assert "no data for 10 s" in screen.answer["text/html"]
    clock.now += 5
    front.tick()
    assert "no data for 15 s" in screen.plain

    front.show(ResponseCreated(response=Response(id="r")))
    clock.now += 0.1
    front.tick()

    assert "no data" not in screen.plain


def test_silence_in_the_middle_of_an_answer_is_told_too(front, screen, clock):
    """A stream that stalls after its first words says so below them."""
    say(front, "Half a sen")
    clock.now += 5
    front.tick()
    assert screen.plain == "Half a sen"
    clock.now += 7
    front.tick()
    assert screen.plain.startswith("Half a sen\n\n")
    assert "no data for 12 s" in screen.plain

    say(front, "tence.")
    clock.now += 1
    front.tick()

    assert screen.plain == "Half a sentence."


def test_a_notice_is_shown_while_it_holds(front, screen, clock):
    """What takes long is said where the answer will be, and gives way to it."""
    clock.now += 1
    front.show(Notice(text="starting the local model"))
    assert "starting the local model" in screen.plain
    clock.now += 1
    say(front, "Done.")
    close(front)

    assert screen.plain == "Done."


# the end


def test_the_end_is_static_and_says_no_status(front, screen):
    """Two displays stay, of HTML and text alone; the widget is gone and nothing is waited for."""
    widget = front._panel.widget
    assert widget.comm is not None
    say(front, "The answer.")
    end(front, message("The answer."))
    close(front)

    answer, table = screen.displays
    assert set(answer) == set(table) == {"text/html", "text/plain"}
    assert answer["text/plain"] == "The answer."
    assert "opacity" not in answer["text/html"]
    assert "<table" in table["text/html"]
    assert widget.comm is None


@pytest.mark.parametrize("words", ["Half", ""])
@pytest.mark.parametrize("silence", [0, 1, 60])
def test_a_run_that_is_cut_off_leaves_static_displays_too(silence, words, front, screen, clock):
    """A run that broke while it waited leaves what was said, no status and no widget."""
    say(front, words)
    clock.now += silence
    front.tick()
    front.close()

    answer, table = screen.displays
    assert answer["text/plain"] == words
    assert "opacity" not in answer["text/html"]
    assert set(answer) == set(table) == {"text/html", "text/plain"}


def test_a_run_of_a_session_is_shown_whole(screen, clock):
    """A front on a session shows words, call and output, and the session's turns below them."""
    session = Session(
        transport=ScriptedTransport(
            [
                {"text": "I ask.", "tool_calls": [{"name": "nonesuch", "arguments": {"n": 21}}]},
                {"text": "So *be* it.", "chunk_chars": 2},
            ]
        )
    )
    front = CellFront(session.records, clock)
    try:
        answer = session.run("What?", front=front)
    finally:
        front.close()
        session.close()

    shown, table = screen.displays
    assert answer.text == "So *be* it."
    first, called, told, last, told_last = shown["text/plain"].split("\n\n")
    assert (first, last) == ("I ask.", "So *be* it.")
    assert "there is no tool 'nonesuch'" in called
    rows = session.records.turns
    assert [told, told_last] == [Footer(row).plain() for row in rows]
    assert "<b>2</b> turns" in table["text/html"]


def test_a_run_that_fails_keeps_its_first_words(screen, clock):
    """The error is the cell's; what was said before it stays."""
    calls = {"text": "Once more.", "tool_calls": [{"name": "nonesuch"}]}
    session = Session(transport=ScriptedTransport([calls] * 3), budget_turns=2)
    front = CellFront(session.records, clock)
    try:
        with pytest.raises(BudgetExceeded):
            session.run("What?", front=front)
    finally:
        front.close()
        session.close()

    assert screen.plain.count("Once more.") == 2
    assert "…" not in screen.plain


def test_many_calls_send_little_more_than_they_show(front, screen, clock):
    """A call is sent with those just before it, not with all of the run's."""
    for _ in range(100):
        said = {"call_id": "c", "name": "python", "arguments": '{"code": "6 * 7"}'}
        front.show(ToolBegan(**said))
        with front.working():
            clock.now += 1
            screen.until(lambda: "python …" in screen.displays[-2]["text/plain"])
        front.show(ended(**said, output="line " * 100))
    close(front)

    sent = sum(size(message["data"]) for message in screen.outputs)
    assert sent <= 5 * sum(map(size, screen.displays))


def test_the_panel_goes_before_the_answer_is_drawn_for_the_last_time(front, screen, monkeypatch):
    """Whatever breaks the end of a cell, it leaves no widget that is dead when it is saved."""
    say(front, "The answer.")
    front.show(ToolBegan(call_id="c", name="python", arguments="{}"))
    front.tick()

    def breaks(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ipy_agent.notebook.parts.Call.html", breaks)
    with pytest.raises(KeyboardInterrupt):
        front.close()

    assert all("widget" not in kind for shown in screen.displays for kind in shown)


# figures


PNG = {"image/png": "aGVsbG8=", "text/plain": "<Figure>"}


def draw(*bundles):
    """Display something as a tool does."""
    for bundle in bundles:
        display(bundle, raw=True)


def shows(front, *bundles):
    """A tool call that displays something."""
    said = {"call_id": "c", "name": "python", "arguments": '{"code": "plot()"}'}
    front.show(ToolBegan(**said))
    with front.working():
        draw(*bundles)
    front.show(ended(**said, output="a picture"))


def order(screen):
    """What stands on the screen, from above."""
    return [
        "figure" if "image/png" in shown else "panel" if is_panel(shown) else shown["text/plain"]
        for shown in screen.displays
    ]


def is_panel(shown):
    return "<table" in shown.get("text/html", "") or any("widget" in kind for kind in shown)


def test_a_figure_stands_where_it_arose(front, screen):
    """Below the call that drew it, above what is said next; the panel is below all."""
    say(front, "I draw.")
    end(front, message("I draw."))
    shows(front, PNG, PNG)
    ask(front)
    assert order(screen)[1:] == ["figure", "figure", "panel"]
    say(front, "It goes up.")
    end(front, message("It goes up."))
    close(front)

    before, *rest = order(screen)
    assert before.startswith("I draw.\n\n[python")
    assert before.endswith("-> a picture")
    assert rest == ["figure", "figure", "It goes up.", "panel"]
    assert all("widget" not in kind for shown in screen.displays for kind in shown)


def test_a_figure_is_sent_once(front, screen, clock):
    """However much is said below it, neither it nor what stands above it is sent again."""
    say(front, "I draw.")
    shows(front, PNG)
    ask(front)
    clock.now += 1
    front.tick()
    before = len(screen.outputs)
    for _ in range(100):
        clock.now += 0.1
        say(front, "words ")
    later = screen.outputs[before:]

    assert not any("image/png" in sent["data"] for sent in later)
    assert len({sent["transient"]["display_id"] for sent in later if sent["update"]}) <= 3
    assert sum("I draw." in str(sent["data"]) for sent in later) <= 1


def test_an_interactive_output_keeps_its_kind(front, screen):
    """A widget or a chart is an output of its own, with its metadata."""
    chart = {"application/vnd.plotly.v1+json": {"data": []}, "text/plain": "Figure"}
    with front.working():
        display(chart, raw=True, metadata={"wide": True})
    close(front)

    [sent] = [sent for sent in screen.outputs if sent["data"] == chart]
    assert sent["metadata"] == {"wide": True}


def test_what_a_tool_updates_itself_keeps_its_name(front, screen):
    """A display with an id of its own is left alone, and so are its updates."""
    with front.working():
        handle = display(PNG, raw=True, display_id="mine")
        handle.update(PNG, raw=True)
    front.close()

    mine = [sent for sent in screen.outputs if sent["transient"].get("display_id") == "mine"]
    assert [sent["update"] for sent in mine] == [False, True]


def test_the_figures_of_a_run_within_a_tool_stand_in_its_own_answer(screen, clock):
    """And those that the tool displays after it, in the answer of the run that called it."""
    outer, inner = (CellFront(Recorder(), clock) for _ in "12")
    outer.show(RunBegan(prompt="?", endpoint="local"))
    with outer.working():
        with inner.working():
            draw({"text/plain": "inner"})
        close(inner)
        draw({"text/plain": "outer"})
    close(outer)
    shown = [bundle["text/plain"] for bundle in screen.displays]
    draw({"text/plain": "after"})

    assert [text for text in shown if text and "turns" not in text] == ["outer", "inner"]
    assert not screen.outputs[-1]["transient"]


def test_what_another_thread_displays_is_not_moved(front, screen):
    """Nobody knows whose it is."""
    with front.working():
        thread = threading.Thread(target=draw, args=(PNG,))
        thread.start()
        thread.join()

    [sent] = [sent for sent in screen.outputs if sent["data"] == PNG]
    assert not sent["transient"]


def test_displays_after_a_tool_are_not_ours(front, screen):
    """What the user's next cell displays goes its own way."""
    with front.working():
        pass
    close(front)
    draw(PNG)

    assert screen.outputs[-1]["data"] == PNG
    assert not screen.outputs[-1]["transient"]


def test_a_turn_sent_again_is_shown_once_also_above_a_figure(front, screen):
    """A tool that may run early can draw before its turn is complete."""
    say(front, "half a")
    shows(front, PNG)
    ask(front, attempt=1)
    say(front, "whole")
    end(front, message("whole"))
    close(front)

    before, figure, after, panel = order(screen)
    assert "half" not in before
    assert (figure, after, panel) == ("figure", f"{SUPERSEDED}\n\nwhole", "panel")


def test_a_call_that_was_cut_off_says_so(front, screen):
    """A tool that was interrupted tells no end; the cell is closed without it."""
    front.show(ToolBegan(call_id="c", name="python", arguments='{"code": "wait()"}'))
    front.close()

    assert screen.plain == "[python · interrupted]\nwait()"
    assert not is_open(screen)


def test_no_line_of_the_html_is_blank(front, screen):
    """Where a notebook is exported as Markdown, HTML ends at the first blank line."""
    say(front, "a\n\n```\nb\n\n\n  \nc\n```\n")
    call(front, "d\n\ne")
    close(front)

    lines = screen.answer["text/html"].splitlines()
    assert all(line.strip() for line in lines)
    assert "b\n\n\n  \nc" in html.unescape(screen.answer["text/html"])


# a click


def test_a_click_ends_a_run(screen, clock, served):
    """The panel's button ends it as an interrupt does, from whichever thread it is told on."""
    session = Session(endpoint=served([{"text": "a", "then": "hang"}]))
    front = CellFront(session.records, clock)
    click = threading.Thread(target=front._panel.button.click)
    shows_text = front.show

    def show(event):
        shows_text(event)
        if isinstance(event, TextDelta):
            click.start()

    front.show = show
    try:
        with pytest.raises(Interrupted):
            session.run("What?", front=front)
    finally:
        front.close()
        session.close()
        click.join()

    assert [row.status for row in session.records.cells] == ["interrupted"]
    assert order(screen)[-1] == "panel"
    assert screen.plain.startswith("a")


# questions


@pytest.mark.parametrize("kind", [CellFront, PlainFront])
def test_what_led_to_a_question_is_shown_before_it(kind, screen, clock, monkeypatch, capsys):
    """When the user is asked, all that was said so far is on the screen, in lines of its own."""
    front = kind(Recorder(), clock) if kind is CellFront else kind()
    asked = []

    def answer(question):
        asked.append((question, capsys.readouterr().out or f"{screen.plain}\n"))
        return "y"

    monkeypatch.setattr(builtins, "input", answer)
    say(front, "I would like to run this.")

    assert front.approve(Question("it", "it(1)", "python")) is Reply.YES
    assert "Run it? [y = this call, " in asked[0][0]
    assert asked[0][1].startswith("I would like to run this.\n")


# a terminal


def test_a_terminal_gets_readable_text(capsys):
    """Words as they come, a call as its code, its output, and one line end at the end."""
    front = PlainFront()
    front.show(Notice(text="starting"))
    ask(front)
    say(front, "I will compute.")
    end(front, message("I will compute."))
    call(front, "42", arguments='{"code": "x = 6\\nx * 7"}')
    ask(front)
    say(front, "It is 42.")
    end(front, message("It is 42."))
    close(front)

    assert capsys.readouterr().out == (
        "starting\nI will compute.\n[python]\nx = 6\nx * 7\n-> 42\nIt is 42.\n"
    )


def test_a_pause_that_an_endpoint_asks_for_is_a_notice(front, screen, clock, capsys):
    """In a cell and in a terminal it is read as any other."""
    pause = Throttled(text="asking again in 7.0 s", seconds=7.0)
    clock.now += 1
    front.show(pause)
    PlainFront().show(pause)

    assert "asking again in 7.0 s" in screen.plain
    assert capsys.readouterr().out == "asking again in 7.0 s\n"


def test_a_terminal_shows_several_messages_apart(capsys):
    """Two messages of a response are two lines."""
    front = PlainFront()
    ask(front)
    say(front, "one", 0)
    item(front, "one", 0)
    say(front, "two", 1)
    end(front, message("one"), message("two"))
    close(front)

    assert capsys.readouterr().out == "one\ntwo\n"


@pytest.mark.parametrize("done", [True, False])
def test_a_terminal_shows_what_was_never_streamed(done, capsys):
    """A message that came whole is printed, and once."""
    front = PlainFront()
    ask(front)
    if done:
        item(front, "said")
        assert capsys.readouterr().out == "said\n"
    end(front, message("said"))
    assert capsys.readouterr().out == ("" if done else "said\n")
    ask(front)
    end(front, message("again"))
    close(front)

    assert capsys.readouterr().out == "again\n"


def test_a_terminal_prints_once_what_was_numbered_otherwise(capsys):
    """Deltas that leave their item's number out are not followed by the same words again."""
    front = PlainFront()
    ask(front)
    say(front, "said", 0)
    end(front, {"type": "reasoning"}, message("said"))
    close(front)

    assert capsys.readouterr().out == "said\n"


def test_a_terminal_is_not_driven_by_what_is_said(capsys):
    """No control character of a model, a tool's name or its output reaches the terminal."""
    front = PlainFront()
    ask(front)
    say(front, HOSTILE, size=2)
    call(front, HOSTILE, name=HOSTILE, arguments=HOSTILE)
    front.show(Notice(text=HOSTILE, lasting=True))
    think(front, HOSTILE, 7, size=2)
    end(front, reasoning(HOSTILE))
    close(front)

    assert not set("\x1b\u202e\x00\x07") & set(capsys.readouterr().out)


def test_a_tools_output_is_bounded_in_a_terminal(capsys):
    """Of a long output head and tail are printed."""
    front = PlainFront()
    call(front, "x" * 1_000_000)
    close(front)

    assert len(capsys.readouterr().out) < 5_000


def test_a_terminal_shows_thoughts_in_a_block_of_their_own(capsys):
    """They stream behind a mark, above the words and calls that follow."""
    front = PlainFront()
    ask(front)
    think(front, "I weigh it.")
    think(front, "And again.", section=1)
    say(front, "It is 42.", 1)
    end(front, reasoning("I weigh it.", "And again."), message("It is 42."))
    ask(front)
    end(front, reasoning("Whole."), custom("6 * 7"))
    call(front, "42", name="query", arguments="6 * 7")
    close(front)

    assert capsys.readouterr().out == (
        "[thoughts] I weigh it.\n\nAnd again.\nIt is 42.\n"
        "[thoughts] Whole.\n[query]\n6 * 7\n-> 42\n"
    )


def test_a_terminal_prints_thoughts_once_however_they_were_numbered(capsys):
    """Deltas under another number, or an item that came whole before, are not said again."""
    front = PlainFront()
    ask(front)
    think(front, "Hm.", 3)
    end(front, reasoning("Hm."), message("42"))
    ask(front)
    front.show(ItemDone(output_index=0, item=reasoning("Well.")))
    end(front, reasoning("Well."), message("43"))
    close(front)

    assert capsys.readouterr().out == "[thoughts] Hm.\n42\n[thoughts] Well.\n43\n"


def test_a_call_is_said_once_in_a_terminal_also_when_it_is_asked_about(monkeypatch, capsys):
    """It stands there as the question would put it."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    front = PlainFront()
    front.show(ToolBegan(call_id="c", name="odd", arguments='{"text": "a", "n": 3}'))
    front.approve(Question(tool="odd", code="odd(text='a', n=3)", language="python"))

    shown = capsys.readouterr().out
    assert shown.count("odd(text='a', n=3)") == 1
    assert "{" not in shown


class Tty(io.StringIO):
    """Standard output that is a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize("kind", [Tty, io.StringIO])
def test_a_terminal_shows_that_it_is_waiting(kind, clock, monkeypatch):
    """From two seconds on, in one line that the answer's first word takes away."""
    out = kind()
    monkeypatch.setattr("sys.stdout", out)
    front = PlainFront(clock=clock)
    ask(front)
    for _ in range(35):
        clock.now += 0.1
        front.tick()
    waited = out.getvalue()
    say(front, "42")
    clock.now += 9
    front.tick()
    front.close()

    line = "thinking … 3 s"
    assert waited == ("\rthinking … 2 s\rthinking … 3 s" if kind is Tty else "")
    assert out.getvalue() == waited + (f"\r{' ' * len(line)}\r" if waited else "") + "42\n"


def test_in_a_terminal_a_turns_line_stands_below_its_calls(capsys):
    """As in a cell: what its tools said belongs to the turn."""
    calls = {"text": "I ask.", "tool_calls": [{"name": "nonesuch"}]}
    session = Session(transport=ScriptedTransport([calls, {"text": "So be it."}]))
    front = PlainFront(session.records)
    session.run("What?", front=front)
    front.close()
    session.close()

    said = capsys.readouterr().out
    first, last = (Footer(row).plain() for row in session.records.turns)
    assert said.index("there is no tool") < said.index(first) < said.index("So be it.")
    assert said.endswith(f"So be it.\n{last}\n")


def test_a_terminal_tells_what_a_turn_took(capsys):
    """The numbers of its row stand in a line below what it said."""
    session = Session(transport=ScriptedTransport([{"text": "So be it."}]))
    front = PlainFront(session.records)
    session.run("What?", front=front)
    front.close()
    session.close()

    [row] = session.records.turns
    assert capsys.readouterr().out == f"So be it.\n{Footer(row).plain()}\n"


@pytest.mark.parametrize(
    ("between", "times"),
    [([], 1), ([Notice(text="something else", lasting=True)], 2)],
    ids=["at once", "later"],
)
def test_a_question_in_a_terminal_does_not_say_again_what_stands_above_it(
    between, times, monkeypatch, capsys
):
    """The code of a call is on the screen when it is asked about: once, unless that is far up."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    front = PlainFront()
    front.show(ToolBegan(call_id="c", name="python", arguments='{"code": "x = 1"}'))
    for event in between:
        front.show(event)
    said = front.approve(Question(tool="python", code="x = 1", language="python"))

    assert said is Reply.YES
    assert capsys.readouterr().out.count("x = 1") == times
