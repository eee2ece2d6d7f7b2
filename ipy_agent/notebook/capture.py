"""What code prints, shows and raises while the model runs it, held back until it is over.

All of it is told to the model as text. What is more than text is shown to the user as well: the
user allowed the code, so it is shown as the code made it.

Rule 1: what the code cleared is neither told nor shown, and nothing else is ever cleared.
Rule 2: a question to the user is not held back.
Rule 3: whatever is shown from here is redacted; what the model is told is redacted as an output.
Rule 4: however much it is, memory is bounded: head and tail are kept, as `rings` does.
"""

from __future__ import annotations

import builtins
import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

from IPython.core.formatters import DisplayFormatter
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import RichOutput, capture_output

from ipy_agent.agent.redaction import cleaned
from ipy_agent.agent.tools import bounded
from ipy_agent.notebook.preview import looks
from ipy_agent.notebook.rings import CHARACTERS, Displays, Noted, Ring
from ipy_agent.notebook.substitutes import replaced
from ipy_agent.secrets import learn, redacted

__all__ = ["Capture", "captured"]

TRACEBACK_LINES = 12
TRACEBACKS = 20
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
    """What came of a run of code so far, in a bounded memory.

    Attributes:
        streams: what it prints and warns of.
        shown: what it displays, as IPython notes it.
        raised: the tracebacks, as text.
    """

    def __init__(self) -> None:
        self.streams = (Ring(), Ring())
        self.shown = Displays()
        self.raised: list[str] = []
        self._before: tuple[list[str], list[Noted]] | None = None

    def clear(self, wait: bool = False) -> None:
        """Forget what came so far; with `wait` once something else comes."""
        self._before = self._came() if wait else None
        for stream in self.streams:
            stream.clear()
        self.shown.clear()

    def publish(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        source: object = None,  # noqa: ARG002 (as a publisher of displays is called)
        *,
        transient: dict[str, Any] | None = None,
        update: bool = False,
    ) -> None:
        """Take in a display."""
        self.shown.append(
            {"data": data, "metadata": metadata, "transient": transient, "update": update}
        )

    def texts(self, *, raised: bool = True) -> list[str]:
        """Return all that came as text, with or without what was raised."""
        printed, shown = self._came()
        parts = [*printed, *(bounded(_text(RichOutput(**noted)), CHARACTERS) for noted in shown)]
        parts += self.raised if raised else []
        plain = (_ANSI.sub("", part).strip("\n") for part in parts)
        return [part for part in plain if part.strip()]

    def pictures(self) -> list[str]:
        """Return the first pictures as PNG data URLs."""
        found = [one.data["image/png"] for one in self._outputs() if "image/png" in one.data]
        return [f"data:image/png;base64,{_one_line(png)}" for png in found[:PICTURES]]

    def display(self) -> None:
        """Show the user what is more than text, in its order."""
        learn()  # what ran may have brought secrets into the environment
        for output in self._outputs():
            if _is_rich(output):
                output.data = cleaned(output.data)
                output.display()

    def _outputs(self) -> list[RichOutput]:
        return [RichOutput(**noted) for noted in self._came()[1]]

    def _came(self) -> tuple[list[str], list[Noted]]:
        """Return what was printed and what was shown; what is to be cleared, if nothing is new."""
        is_new = self.shown.noted or any(stream.written for stream in self.streams)
        if self._before is not None and not is_new:
            return self._before
        return [stream.getvalue() for stream in self.streams], list(self.shown)


@contextlib.contextmanager
def captured(shell: InteractiveShell) -> Iterator[Capture]:
    """Capture what code within this context prints, shows and raises."""
    capture = Capture()
    with _asked_on_screen(), _tracebacks(shell, capture.raised), capture_output():
        # What IPython captures with would keep all of it.
        sys.stdout, sys.stderr = cast("tuple[TextIO, TextIO]", capture.streams)
        with replaced(
            shell.display_pub,
            publish=capture.publish,
            clear_output=capture.clear,
        ):
            sys.displayhook = _noting(shell, capture.shown)
            yield capture


@contextlib.contextmanager
def _tracebacks(shell: InteractiveShell, raised: list[str]) -> Iterator[None]:
    """Collect tracebacks as text; a kernel would publish them past any capture."""

    def collect(_type: Any, _value: Any, lines: list[str]) -> None:
        plain = _ANSI.sub("", "\n".join(lines)).splitlines()
        if len(raised) < TRACEBACKS:
            raised.append(bounded("\n".join(plain[-TRACEBACK_LINES:]), CHARACTERS))

    with replaced(shell, _showtraceback=collect):  # IPython has no other way in
        yield


@contextlib.contextmanager
def _asked_on_screen() -> Iterator[None]:
    """Have what `input()` asks reach the user, who would wait without knowing for what."""
    screen, ask = sys.stdout, builtins.input

    def asked(prompt: object = "", /) -> str:
        with contextlib.redirect_stdout(screen):
            return ask(redacted(str(prompt)))

    with replaced(builtins, input=asked):
        yield


def _noting(shell: InteractiveShell, shown: Displays) -> Callable[[Any], None]:
    """Return a display hook that notes a value; of a table what the model is told, and no more.

    A table that the user is to see is displayed.
    """

    def take(value: Any) -> None:
        if value is None:
            return
        data, metadata = cast("DisplayFormatter", shell.display_formatter).format(value)
        if id(type(value)) in looks():
            data = {kind: data[kind] for kind in data if kind == "text/plain"}
        shown.append({"data": data, "metadata": metadata})

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
