"""Hostile text through the one way to the screen."""

from __future__ import annotations

import html.parser
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ipy_agent import rendering
from ipy_agent.rendering import Growing, code, escape, fold, markdown, plain, source, stripes

ALLOWED = {
    "a": {"href", "rel", "target"},
    "blockquote": {"style"},
    "details": {"class", "open"},
    "div": {"class", "style"},
    "ol": {"start"},
    "pre": {"style"},
    "td": {"style"},
    "th": {"style"},
}


class Elements(html.parser.HTMLParser):
    """Every element of a page with its attributes, and the elements that are still open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.unclosed: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in {"br", "hr"}:
            self.unclosed.append(tag)

    def handle_endtag(self, tag):
        assert self.unclosed.pop() == tag


def seen(page: str) -> str:
    """What a reader of the page sees, roughly."""
    return html.unescape(re.sub(r"<[^>]*>", "", page))


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![p](https://evil.example/p.png)",
    "![p][r]\n\n[r]: https://evil.example/p.png",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "[x](vbscript:x)",
    "<https://a.example/?q=<script>>",
    "[x](https://a.example 'onclick=alert(1)')",
    "```html onload=alert(1)\n<script>alert(1)</script>\n```",
    "`</code><script>alert(1)</script>`",
    "|<img src=x>|\n|--:|\n|<svg onload=x>|",
    "<style>*{display:none}</style>",
    "<!-- x --><iframe src=//evil.example>",
    "[x](/api/contents)",
    "[x](//evil.example)",
    "&lt;script&gt; &#60;script&#62;",
    "<svg><a xlink:href='javascript:alert(1)'>",
    "\x00<scr\x00ipt>",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_markdown_makes_only_harmless_elements(text):
    """Nothing but allowed elements with allowed attributes comes out, and nothing is fetched."""
    assert_harmless(markdown(text))
    assert_harmless(Growing(text).html())


NAMES = [
    row["name"] for row in json.loads(Path(__file__).with_name("hostile.json").read_text("utf-8"))
]


@pytest.fixture
def payload(hostile, request):
    [found] = [one for one in hostile(4711) if one.name == request.param]
    return found


@pytest.mark.parametrize("payload", NAMES, indirect=True)
def test_a_hostile_payload_is_shown_and_does_nothing(payload):
    """Rendered in any way it makes nothing but harmless elements, and can be read."""
    said = " ".join(plain(payload.shown).split())
    read = " ".join(plain(payload.text).split())
    ways = {
        markdown(payload.text): said,
        Growing(payload.text).html(): said,
        code(payload.text): read,
        fold(payload.text, ""): "",
        f"<p>{escape(payload.text)}</p>": "",
    }
    for page, expected in ways.items():
        assert_harmless(page)
        assert expected in " ".join(seen(page).split())
    assert plain(plain(payload.text)) == plain(payload.text)


def assert_harmless(page):
    """Check that there are only allowed elements, with attributes that fetch and run nothing."""
    for tag, attributes in Elements(page).found:
        assert tag in rendering._TAGS | {"div", "details", "summary"}
        assert set(attributes) <= ALLOWED.get(tag, set())
        assert re.match("https?://[^/]|mailto:", attributes.get("href") or "mailto:")
        assert "url(" not in (attributes.get("style") or "")


WORDS = st.sampled_from(
    ["a", "#", "# ", "- ", "* ", "1. ", "2) ", "> ", "```", "~~~", "`", "    ", "\t", " ", "|"]
    + ["-|-", "**", "_", "[a]", "(http://b.c)", "[a]: http://b.c", "===", "---", "***", "~~", "\\"]
    + ["<b>", "&amp;", "!", "é", "\u202e", "\x1b[1m", "\x00", "\ud83d", "\u2028", "\f", "<http://b>"]
    + ["\n"] * 12 + ["\n\n"] * 4 + ["\r\n", "\r", "| a | b |\n|---|--:|\n| 1 | 2 |\n"]
)  # fmt: skip
TEXTS = st.lists(WORDS, max_size=40).map("".join)


@settings(deadline=None)
@given(TEXTS, st.lists(st.integers(0, 120), max_size=12), st.sets(st.integers(0, 12)))
@example("a\n#5 is no heading", [3], {0})
@example("a | b\n---|---\n1 | 2\n\nafter", [6, 7, 14], {0, 1, 2})
@example("```\na\n\nb\n```\n\nc", [6, 7, 10], {0, 1, 2})
@example("- a\n\n  b\n\nc\n", [4, 5, 9], {0, 1, 2})
@example("[a]\n\nb\n\n[a]: http://b.c\n", [8], {0, 1})
@example("- ```\n\na\n", [], {0})
@example("a\u2028b\fc\n\nd\n\ne\n", [7, 10], {0, 1, 2})
@example("a\r\n\r\nb\r\n\r\nc", [2, 3, 4, 8], {0, 1, 2, 3})
def test_a_growing_answer_ends_as_if_rendered_whole(text, cuts, looks):
    """However it was cut and whenever it was looked at, the HTML is that of the whole text."""
    growing, at = Growing(), 0
    for look, cut in enumerate([*sorted(cuts), len(text)]):
        growing.add(text[at:cut])
        at = max(at, min(cut, len(text)))
        if look in looks:
            assert growing.html() == markdown(growing.text)

    assert growing.text == text
    assert growing.html() == markdown(text)


@settings(deadline=None)
@given(TEXTS)
def test_any_markdown_becomes_balanced_html(text):
    """Elements are closed in the order they were opened, whatever the text."""
    assert Elements(markdown(text)).unclosed == []


@pytest.mark.parametrize("depth", [3, 11, 12, 13, 40])
@pytest.mark.parametrize("mark", ["> ", "* ", "1. ", "> - "])
def test_what_is_nested_is_read_at_any_depth(mark, depth):
    """Quotes and lists in each other end at some depth, and what stands in them is shown."""
    text = f"{mark * depth}deep **words**\nand lazy ones\n\nafter\n"
    growing = Growing()
    for char in text:
        growing.add(char)
        growing.html()

    page = markdown(text)
    assert growing.html() == page
    assert [word in seen(page) for word in ("deep", "words", "lazy", "after")] == [True] * 4
    assert "<p>after</p>" in page
    assert Elements(page).unclosed == []
    assert max(page.count("<blockquote"), page.count("<li>")) <= rendering.DEPTH


HEAVY = {
    "brackets": "[",
    "pictures": "![[",
    "links": "[a](http://b.c/",
    "emphasis": "*a_ ",
    "stars": "*_",
    "backticks": "`a``",
    "elements": "<a",
    "entities": "&#1234",
    "escapes": "\x1b[",
    "quotes": "> ",
    "lists": "* - ",
    "rows": "1|2\n",
    "lines": "a\n",
    "fences": "```\n",
    "headings": "a\n-\n",
    "invisible": "\u202e",
}
BEFORE = {"rows": "a|b\n-|-\n", "lines": "> " * 40 + "a\n"}


@pytest.mark.parametrize("name", HEAVY)
def test_rendering_is_linear_in_the_text(name):
    """Twice as much of anything takes twice the steps, and none takes many a character."""
    once, twice = (steps(name, length) for length in (2_000, 4_000))

    assert twice < 2.2 * once
    assert twice < 300 * 4_000


def steps(name, length):
    """Return how many calls it takes to render a text of a kind."""
    text = BEFORE.get(name, "") + HEAVY[name] * (length // len(HEAVY[name]))
    made = 0

    def count(_frame, event, _arg):
        nonlocal made
        made += event in ("call", "c_call")

    markdown("")  # the parser is loaded
    sys.setprofile(count)
    try:
        markdown(text)
    finally:
        sys.setprofile(None)
    return made


def test_a_table_of_missing_cells_is_bounded():
    """Rows are filled up with cells, and a wide table with many short rows would not end."""
    page = markdown(f"|{'a|' * 3_000}\n|{'-|' * 3_000}\n" + "a\n" * 20_000)

    assert page.count("<td>") < 100_000


def test_only_the_last_block_is_rendered_again():
    """What is rendered at each look does not grow with the answer."""
    growing, longest = Growing(), 0
    pieces = ("## next\n", "\nsome *words*", " more\n\n```\nx = 1\n", "\ny\n```\n", "\n")
    for _ in range(300):
        for piece in pieces:
            growing.add(piece)
            growing.html()
            longest = max(longest, len(growing.open))

    assert longest < 60
    assert growing.html() == markdown(growing.text)


def test_a_text_that_stays_is_not_rendered_again():
    """A cell draws all its parts whenever one of them changes: the others cost nothing."""
    growing = Growing("# a\n\nb *c*")
    page = growing.html()

    assert growing.html() is page
    growing.add("d")
    assert growing.html() == markdown("# a\n\nb *c*d")


def test_a_huge_text_is_cut_and_says_so():
    """Of a text beyond the limit a part is rendered, and the length of the rest is told."""
    text = "word " * 30_000
    growing = Growing()
    for at in range(0, len(text), 7_001):
        growing.add(text[at : at + 7_001])

    assert "and 50,000 more characters" in markdown(text)
    assert growing.html() == markdown(text)
    assert growing.text == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[docs](https://a.example/x)", "docs (a.example)"),
        ("[https://good.example](https://evil.example)", "https://good.example (evil.example)"),
        ("[good.example](https://good.example@evil.example)", "good.example (evil.example)"),
        ("[https://good.example/?evil.example](//evil.example)", "(evil.example)"),
        ("[a.example](https://a.example/x)", "a.example"),
        ("<https://a.example/x>", "https://a.example/x"),
        ("[**A**.example](https://a.example)", "A.example (a.example)"),
        ("[me](mailto:me@a.example)", "me (me@a.example)"),
        ("[x](https://[broken)", "x"),
        ("[x](../api)", "x (../api)"),
    ],
)
def test_a_link_shows_where_it_leads(text, shown):
    """A link's host stands behind its text unless the text is that very host or address."""
    assert shown in seen(markdown(text))
    assert seen(markdown(text)).count("(a.example)") <= 1


def test_links_cannot_reach_back():
    """A link carries rel=noopener, and one without a scheme leads nowhere."""
    [safe] = [a for tag, a in Elements(markdown("[x](https://a.example)")).found if tag == "a"]
    [dead] = [a for tag, a in Elements(markdown("[x](/lab)")).found if tag == "a"]

    assert "noopener" in safe["rel"]
    assert "href" not in dead


def test_a_picture_is_shown_as_a_link():
    """Pictures are off: what would be fetched is a link that shows its host."""
    assert seen(markdown("![cat](https://a.example/cat.png)")).strip() == "!cat (a.example)"


def test_raw_html_is_shown_as_it_was_written():
    """Elements in a model's text are text."""
    assert seen(markdown("a <b>c</b>\n\n<div>\nd")).split() == ["a", "<b>c</b>", "<div>", "d"]


def test_tables_keep_their_alignment():
    """A table of Markdown is a table of HTML, and columns keep their side."""
    page = markdown("|a|b|\n|--|--:|\n|1|2|\n")

    assert ("td", {"style": "text-align:right"}) in Elements(page).found


def test_what_cannot_be_seen_is_shown():
    """Control, bidi and invisible characters come out as marks; emoji and joiners stay."""
    assert plain("a\x07b\u202ec\u200bd\ufeff") == "a␇b⟨U+202E⟩c⟨U+200B⟩d⟨U+FEFF⟩"
    assert plain("\ud800\x9b\x7f") == "\ufffd⟨U+009B⟩⟨U+007F⟩"
    assert plain("👩\u200d🔬 \t\n") == "👩\u200d🔬 \t\n"
    assert escape("\u2066<\x1b'\"&") == "⟨U+2066⟩&lt;␛&#x27;&quot;&amp;"
    assert "⟨U+202E⟩" in markdown("a\u202eb")
    assert "⟨U+202E⟩" in code("a\u202eb")


def test_terminal_colours_are_removed():
    """ANSI sequences go, whole, and what only begins like one is shown."""
    assert plain("\x1b[1;31mred\x1b[0m \x1b]0;title\x07x\x1b]8;;http://a\x1b\\y\x1b(B") == "red xy"
    assert plain("\x1b]0;\nrm\n\x07") == "␛]0;\nrm\n␇"
    assert plain("10%\r20%\r\n") == "10%\n20%\n"
    assert plain("\x1b[") == "␛["
    assert seen(code("\x1b[31mNameError\x1b[0m")) == "NameError"


@settings(deadline=None)
@given(st.text(st.characters(), max_size=60))
def test_plain_text_has_nothing_invisible_in_it(text):
    """What is plain is printable, new lines, tabs and joiners aside, and stays as it is."""
    once = plain(text)

    once.encode()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b]", once)
    assert plain(once) == once


@settings(deadline=None)
@given(st.text(st.characters(), max_size=60))
def test_escaped_text_makes_no_element(text):
    """Escaped text stays text wherever it is put."""
    page = f'<div class="{escape(text)}">{escape(text)}{code(text, text)}{fold(text, "")}</div>'

    made = [tag for tag, _ in Elements(page).found]
    assert made == ["div", "pre", "code", "details", "summary", "div"]


def test_of_a_call_its_code_is_shown():
    """Of a call with one text the text is shown, of any other its JSON, of none what there is."""
    assert source("python", '{"code": "a <\\n 1"}') == ("a <\n 1", "python")
    assert source("look", '{"name": "df"}') == ("df", "")
    assert source("price", '{"t": "A", "n": 2}') == ('{\n  "t": "A",\n  "n": 2\n}', "json")
    assert source("price", '{"t": "A') == ('{"t": "A', "")
    assert source("price", '"\ud800"') == ('"\ud800"', "")
    assert source("price", "[" * 100_000) == ("[" * 100_000, "")


def test_details_fold_and_unfold():
    """A fold is closed unless asked, and its summary is text."""
    assert "<summary>&lt;b&gt;</summary>" in fold("<b>", "<p>x</p>")
    assert "<p>x</p>" in fold("<b>", "<p>x</p>")
    assert ("open", None) in Elements(fold("a", "", open=True)).found[0][1].items()
    assert "open" not in Elements(fold("a", "")).found[0][1]


def test_stripes_stand_side_by_side():
    """Each part has its share, nothing is drawn for nothing, and little is still seen."""
    parts = [(0.5, "#111"), (0.0, "#222"), (0.001, "#333")]

    assert stripes(parts) == "linear-gradient(90deg,#111 0 50%,#333 0 51%,#8883 0)"
    assert stripes([]) == "linear-gradient(90deg,#8883,#8883 0)"


def test_stripes_never_run_over():
    """Shares beyond the whole are cut at its end."""
    assert "#111 0 80%,#222 0 100%,#8883 0" in stripes([(0.8, "#111"), (7.0, "#222"), (1, "#333")])


def test_importing_it_loads_no_parser():
    """The parser and the sanitiser are loaded with the first text, not with the extension."""
    check = "import sys, ipy_agent.rendering; print({'markdown_it', 'nh3'} & set(sys.modules))"

    assert subprocess.check_output([sys.executable, "-c", check], text=True).strip() == "set()"
