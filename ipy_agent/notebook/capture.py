"""What code prints, shows and raises while the model runs it, held back until it is over.

All of it is told to the model as text. What is more than text is shown to the user as well: the
user allowed the code, so it is shown as the code made it.

Rule 1: what the code cleared is neither told nor shown, and nothing else is ever cleared.
Rule 2: a question to the user is not held back.
Rule 3: whatever is shown from here is redacted; what the model is told is redacted as an output.
"""

from __future__ import annotations

import builtins
import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any, cast

from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import RichOutput, capture_output

from ipy_agent.agent.redaction import cleaned
from ipy_agent.notebook.preview import looks
from ipy_agent.notebook.substitutes import replaced
from ipy_agent.secrets import learn, redacted

__all__ = ["Capture", "captured"]

TRACEBACK_LINES = 12
PICTURES = 4

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")

# What an object says of itself if it says nothing: `<IPython.core.display.HTML object>`.
_MUTE = re.compile(r"(<[\w.]+( object)?( at 0x[0-9A-Fa-f]+)?>)?")

_KINDS = {
    "text/html": "HTML",
    "text/markdown": "Markdown",
    "text/latex": "LaTeX",
    "application/javascript": "JavaScript",
}
"""How the model is told of what has no text of its own; the first that fits."""


class Capture:
    """What came of a run of code so far.

    Args:
        streams: what it prints and warns of.
        shown: what it displays, as IPython notes it.
        raised: the tracebacks, as text.
    """

    def __init__(
        self, streams: tuple[StringIO, StringIO], shown: list[dict[str, Any]], raised: list[str]
    ) -> None:
        self._streams = streams
        self._shown = shown
        self._raised = raised
        self._cleared = (0, 0, 0)

    def clear(self, wait: bool = False) -> None:
        """Forget what came so far; with `wait` once something else comes."""
        self._settle()
        self._cleared = self._sizes()
        if not wait:
            self._forget()

    def texts(self, *, raised: bool = True) -> list[str]:
        """Return all that came as text, with or without what was raised."""
        self._settle()
        parts = [stream.getvalue() for stream in self._streams]
        parts += map(_text, self._outputs())
        parts += self._raised if raised else []
        plain = (_ANSI.sub("", part).strip("\n") for part in parts)
        return [part for part in plain if part.strip()]

    def pictures(self) -> list[str]:
        """Return the first pictures as PNG data URLs."""
        self._settle()
        found = [one.data["image/png"] for one in self._outputs() if "image/png" in one.data]
        return [f"data:image/png;base64,{_one_line(png)}" for png in found[:PICTURES]]

    def display(self) -> None:
        """Show the user what is more than text, in its order."""
        self._settle()
        learn()  # what ran may have brought secrets into the environment
        for output in self._outputs():
            if _is_rich(output):
                output.data = cleaned(output.data)
                output.display()

    def _outputs(self) -> list[RichOutput]:
        return [RichOutput(**noted) for noted in self._shown]

    def _settle(self) -> None:
        """Forget what was to be cleared once something else comes, if that came."""
        if self._sizes() != self._cleared:
            self._forget()

    def _forget(self) -> None:
        for stream, cleared in zip(self._streams, self._cleared, strict=False):
            rest = stream.getvalue()[cleared:]
            stream.seek(0)
            stream.truncate()
            stream.write(rest)
        del self._shown[: self._cleared[-1]]
        self._cleared = (0, 0, 0)

    def _sizes(self) -> tuple[int, int, int]:
        printed, warned = self._streams
        return printed.tell(), warned.tell(), len(self._shown)


@contextlib.contextmanager
def captured(shell: InteractiveShell) -> Iterator[Capture]:
    """Capture what code within this context prints, shows and raises."""
    with _asked_on_screen(), _tracebacks(shell) as raised, capture_output():
        streams = cast("tuple[StringIO, StringIO]", (sys.stdout, sys.stderr))
        publisher = cast("CapturingDisplayPublisher", shell.display_pub)
        shown: list[dict[str, Any]] = publisher.outputs
        capture = Capture(streams, shown, raised)
        with replaced(publisher, clear_output=capture.clear):
            sys.displayhook = _tables_as_text(sys.displayhook, shown)
            yield capture


@contextlib.contextmanager
def _tracebacks(shell: InteractiveShell) -> Iterator[list[str]]:
    """Collect tracebacks as text; a kernel would publish them past any capture."""
    raised: list[str] = []

    def collect(_type: Any, _value: Any, lines: list[str]) -> None:
        plain = _ANSI.sub("", "\n".join(lines)).splitlines()
        raised.append("\n".join(plain[-TRACEBACK_LINES:]))

    with replaced(shell, _showtraceback=collect):  # IPython has no other way in
        yield raised


@contextlib.contextmanager
def _asked_on_screen() -> Iterator[None]:
    """Have what `input()` asks reach the user, who would wait without knowing for what."""
    screen, ask = sys.stdout, builtins.input

    def asked(prompt: object = "", /) -> str:
        with contextlib.redirect_stdout(screen):
            return ask(redacted(str(prompt)))

    with replaced(builtins, input=asked):
        yield


def _tables_as_text(
    hook: Callable[[Any], Any], shown: list[dict[str, Any]]
) -> Callable[[Any], None]:
    """Return a display hook that keeps of a table what the model is told, and shows no more.

    A table that the user is to see is displayed.
    """

    def take(value: Any) -> None:
        hook(value)
        if id(type(value)) in looks():
            data = shown[-1]["data"]
            shown[-1]["data"] = {kind: data[kind] for kind in data if kind == "text/plain"}

    return take


def _text(output: RichOutput) -> str:
    """Return what the model is told of an output."""
    if any(kind.startswith("image/") for kind in output.data):
        return "(a picture, shown to the user)"
    said = str(output.data.get("text/plain", ""))
    if _is_rich(output) and _MUTE.fullmatch(said.strip()):
        names = (name for kind, name in _KINDS.items() if kind in output.data)
        return f"({next(names, 'an output')}, shown to the user)"
    return said


def _is_rich(output: RichOutput) -> bool:
    """Whether an output is more than text: a picture, a page, a widget, an interactive chart."""
    return any(kind not in ("text/plain", "application/json") for kind in output.data)


def _one_line(png: Any) -> str:
    if isinstance(png, bytes):
        import base64  # noqa: PLC0415 (pictures are rare)

        return base64.b64encode(png).decode()
    return "".join(str(png).split())
