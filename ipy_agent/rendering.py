"""Text from models and tools on its way to the screen and into exports: the one way.

Such text is hostile: Markdown is parsed with raw HTML and pictures off, and what the parser
makes goes through an allow-list as well. Styles stand inline, since notebooks that are not
trusted lose style sheets and SVG, and use properties that JupyterLab's sanitiser keeps.

Rule 1: what a function here returns is safe to show, whatever it was given.
Rule 2: what cannot be seen is made visible: control characters, and those that turn text round.
Rule 3: no construct whose meaning depends on text further down (reference links are off), so
that a growing answer, rendered block by block, comes out as if it had been rendered whole.
"""

from __future__ import annotations

import functools
import html
import re
import unicodedata
import urllib.parse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from ipy_agent.colours import ANSI, CSS, pieces
from ipy_agent.secrets import redacted

if TYPE_CHECKING:
    import nh3
    from markdown_it import MarkdownIt
    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_core import StateCore
    from markdown_it.token import Token

__all__ = [
    "NO_MATH",
    "Growing",
    "code",
    "coloured",
    "escape",
    "fold",
    "listing",
    "markdown",
    "plain",
    "source",
    "stripes",
    "visible",
]

LIMIT = 100_000
"""How many characters of one text are rendered as Markdown; of the rest its length is told."""

BITE = 8_192
"""How many characters are taken apart at once: what a parser makes of them is far larger."""

DEPTH = 12
"""How deeply quotes and lists may stand in each other; a list counts twice."""

NO_MATH = "mathjax_ignore tex2jax_ignore"
"""The classes of an element in which no page looks for formulas: one may be a link to anywhere."""

_ANSI = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours, cursor moves
    r"|\x1b[]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)"  # titles, links and other strings
    r"|\x1b[ -/]*[0-Z\\^-~]"
)
_NEWLINE = re.compile(r"\r\n?")
_RESET = "\x1b[0m"


def visible(text: str) -> str:
    """Return the text with every control, bidi and invisible character shown as a mark.

    New lines and tabs stay, and so do the joiners that emoji and some scripts need. What is known
    to be secret by now is masked: it may have been said before that was known.
    """
    return redacted(text).translate(_MARKS)


class _Marks(dict[int, int | str]):
    """What each character is shown as, found out when it is first met."""

    def __missing__(self, point: int) -> int | str:
        self[point] = shown = _mark(point)
        return shown


# Letters and marks that leave no trace, which a name in code may well have.
_UNSEEN = frozenset(
    (
        *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0),
        *range(0x180B, 0x1810),
        *range(0xFE00, 0xFE0E),  # but for those that choose how an emoji is drawn
        *range(0xE0100, 0xE01F0),
    )
)


def _mark(point: int) -> int | str:
    kind = unicodedata.category(chr(point))
    if kind == "Cs":
        return "\N{REPLACEMENT CHARACTER}"
    if kind not in {"Cc", "Cf", "Zl", "Zp"} and point not in _UNSEEN:
        return point
    return 0x2400 + point if point < ord(" ") else f"⟨U+{point:04X}⟩"


_MARKS = _Marks({ord(char): char for char in "\n\t\u200c\u200d"})


def plain(text: str) -> str:
    """Return the text for a terminal or `text/plain`: no colours, nothing invisible."""
    return visible(_NEWLINE.sub("\n", _ANSI.sub("", text)))


def escape(text: str) -> str:
    """Return the text as HTML that shows it literally, in an element or an attribute."""
    return html.escape(visible(text))


def code(text: str, language: str = "") -> str:
    """Return a block of code as HTML, literally.

    What is in a language is shown whole, in its colours. What is in none was printed: of that,
    terminal colours are left out.
    """
    if not language:
        return f'<pre style="{_PRE}"><code>{escape(plain(text))}</code></pre>'
    inner = "".join(
        f'<span style="color:{CSS[kind]}">{escape(piece)}</span>' if kind else escape(piece)
        for kind, piece in pieces(listing(text), language)
    )
    return f'<pre style="{_PRE}"><code class="language-{escape(language)}">{inner}</code></pre>'


def listing(text: str) -> str:
    """Return code as plain text with nothing left out; what Python takes as a line is one."""
    return visible(_NEWLINE.sub("\n", text))


def coloured(text: str, language: str) -> str:
    """Return code for a terminal, with nothing left out, in its colours."""
    return "".join(
        f"{ANSI[kind]}{piece}{_RESET}" if kind else piece
        for kind, piece in pieces(listing(text), language)
    )


def source(name: str, arguments: str) -> tuple[str, str]:
    """Return what to show of a tool call's arguments, and its language.

    Where one text is all that was passed, such as code, it is that text; else the JSON.
    """
    try:
        told: Any = msgspec.json.decode(arguments)
        tidy = msgspec.json.format(arguments, indent=2)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return arguments, ""
    values = list(told.values()) if isinstance(told, dict) else []
    if len(values) == 1 and isinstance(values[0], str):
        return values[0], "python" if name == "python" else ""
    return tidy, "json"


def fold(summary: str, body_html: str, *, open: bool = False) -> str:  # noqa: A002 (as in HTML)
    """Return HTML that shows a summary and, unfolded, a body that is already safe HTML."""
    state = f'class="{NO_MATH}"{" open" if open else ""}'
    inner = f'<div style="margin-left:16px">{body_html}</div>'
    return f"<details {state}><summary>{escape(summary)}</summary>{inner}</details>"


def stripes(parts: Iterable[tuple[float, str]]) -> str:
    """Return shares (0 to 1), each with its colour, as a CSS background from left to right."""
    stops: list[str] = []
    at = 0
    for share, colour in parts:
        end = min(100, at + max(1, round(share * 100))) if share > 0 else at
        if end > at:  # a stripe that is said to begin at 0 begins where the one before it ends
            stops.append(f"{colour} 0 {end}%")
        at = end
    return f"linear-gradient(90deg,{','.join(stops or [TRACK])},{TRACK} 0)"


TRACK = "#8883"
"""What a bar runs on: a grey that light and dark pages shine through."""


def markdown(text: str) -> str:
    """Return a model's Markdown as safe HTML.

    No raw HTML, no pictures, no scripts; a link shows the host that it leads to.
    """
    return _framed(_rendered(text[:LIMIT]), len(text))


class Growing:
    """A Markdown text that arrives in pieces, and its HTML at any time.

    Blocks that no further text can change are rendered once and kept; only the last one,
    `open`, is rendered at each look. However the text was cut, and whenever it was looked
    at, `growing.html()` is `markdown(growing.text)`.
    """

    def __init__(self, text: str = "") -> None:
        self.open = ""
        self._pieces: list[str] = []
        self._fresh: list[str] = []
        self._length = 0
        self._done: list[str] = []
        self._page: str | None = None
        self.add(text)

    def add(self, piece: str) -> None:
        """Append a piece of any size; it is rendered at the next look."""
        self._page = None
        self._pieces.append(piece)
        if self._length < LIMIT:
            self._fresh.append(piece[: LIMIT - self._length])
        self._length += len(piece)

    @property
    def text(self) -> str:
        """All that arrived, as it arrived."""
        return "".join(self._pieces)

    def plain(self) -> str:
        """Return all that arrived as plain text."""
        return plain(self.text)

    def html(self) -> str:
        """Return all that arrived as safe HTML; what was rendered and is the same is kept."""
        if self._page is None:
            self._page = self._drawn()
        return self._page

    def _drawn(self) -> str:
        fresh = "".join(self._fresh)
        self._fresh.clear()
        for at in range(0, len(fresh), BITE):
            bite = fresh[at : at + BITE]
            self.open += bite
            if "\n" in bite:
                self._settle()
        return _framed("".join(self._done) + _rendered(self.open), self._length)

    def _settle(self) -> None:
        """Render the blocks that are finished.

        A line that has not ended may still turn into anything, so only whole lines count;
        of those, every block but the last: where a block begins, the one before it is over.
        """
        cut = self.open.rfind("\n") + 1
        lines = _NEWLINE.sub("\n", self.open[:cut])
        found = {_LAST_LINE: 0}
        done = _parser().render(visible(lines), found)
        if line := found[_LAST_LINE]:
            self._done.append(_cleaner().clean(done))
            self.open = "\n".join(lines.split("\n")[line:]) + self.open[cut:]


_LAST_LINE = "the line at which the last block begins"
"""Whoever asks a parser for this, in its `env`, has that block left out."""


def _leave_last(state: StateCore) -> None:
    """Leave the last block out before its inside is parsed, if that is asked for."""
    if _LAST_LINE not in state.env:
        return
    begins = [
        (at, token.map[0])
        for at, token in enumerate(state.tokens)
        if not token.level and token.map is not None
    ]
    *_, (last, state.env[_LAST_LINE]) = begins or [(0, 0)]
    del state.tokens[last:]


def _rendered(text: str) -> str:
    return _cleaner().clean(_parser().render(visible(_NEWLINE.sub("\n", text))))


def _framed(body: str, length: int) -> str:
    """Keep the page's MathJax out, and tell of what was left out."""
    rest = length - LIMIT
    end = f"<p><em>… and {rest:,} more characters</em></p>" if rest > 0 else ""
    return f'<div class="{NO_MATH}">{body}{end}</div>'


@functools.cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt  # noqa: PLC0415 (not when the extension is loaded)

    options = {"html": False, "linkify": False, "maxNesting": DEPTH + 2}
    parser = MarkdownIt("commonmark", options)
    parser.enable(["table", "strikethrough"]).disable(["image", "reference"])
    parser.block.ruler.before("table", "depth", _end_nesting)
    parser.core.ruler.after("block", "last", _leave_last)
    parser.core.ruler.push("places", _show_places)
    return parser


def _end_nesting(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Take what is nested too deeply as it was written: the parser would leave it out."""
    if silent or state.level < DEPTH:
        return False
    line = start + 1
    while line < end and (state.isEmpty(line) or not 0 <= state.sCount[line] < state.blkIndent):
        line += 1
    token = state.push("code_block", "code", 0)
    token.content = state.getLines(start, line, state.blkIndent, keepLastLF=False) + "\n"
    token.map = [start, line]
    state.line = line
    return True


@functools.cache
def _cleaner() -> nh3.Cleaner:
    import nh3  # noqa: PLC0415 (not when the extension is loaded)

    return nh3.Cleaner(
        tags=_TAGS,
        attributes=_ATTRIBUTES,
        attribute_filter=_kept,
        filter_style_properties=_STYLES,
        url_schemes=_SCHEMES,
        link_rel="noopener noreferrer",
        set_tag_attribute_values={
            "a": {"target": "_blank"},
            "blockquote": {"style": _QUOTE},
            "pre": {"style": _PRE},
        },
    )


_PRE = "border-left:3px solid #8886;padding:2px 10px;white-space:pre-wrap"
_QUOTE = "margin:8px 0 8px 8px;padding:0 0 0 8px"  # quotes in each other leave room for words
_STYLES = {"text-align", "border-left", "margin", "padding", "white-space"}
_SCHEMES = {"http", "https", "mailto"}
_ADDRESS = re.compile(r"https?://[^/\\]|mailto:", re.IGNORECASE)
_ATTRIBUTES = {"*": set(), "a": {"href"}, "ol": {"start"}, "td": {"style"}, "th": {"style"}}
_TAGS = set(
    "a blockquote br code del em h1 h2 h3 h4 h5 h6 hr li ol p pre s strong "  # noqa: SIM905
    "table tbody td th thead tr ul".split()
)


def _kept(_tag: str, attribute: str, value: str) -> str | None:
    """Drop addresses without a host: in a notebook they would lead into Jupyter itself."""
    return value if attribute != "href" or _ADDRESS.match(value) else None


def _show_places(state: StateCore) -> None:
    """Write behind each link where it leads, unless its text is that very address."""
    from markdown_it.token import Token  # noqa: PLC0415 (not when the extension is loaded)

    for block in state.tokens:
        shown: list[Token] = []
        href = said = ""
        for token in block.children or ():
            shown.append(token)
            if token.type == "link_open":
                href, said = str(token.attrs.get("href", "")), ""
            elif token.type == "link_close":
                place = _place(href)
                if place not in {said.strip(), _place(said.strip())}:
                    shown.append(Token("text", "", 0, content=f" ({place})"))
            else:
                said += token.content
        if shown:
            block.children = shown


def _place(href: str) -> str:
    """Return the host that an address leads to, or the address where it names none."""
    try:
        host = urllib.parse.urlsplit(href).hostname
    except ValueError:
        host = None
    return host or href.removeprefix("mailto:")
