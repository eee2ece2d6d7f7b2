"""What a model is told of the user's variables: on purpose, and by itself.

A variable is handed over on purpose with $`name` in a prompt. By itself a model is told what
came, changed and went since it heard last, so that what it was told before stays as it is.

Rule 1: by itself no value is ever told, only names, types and sizes: a variable may hold a key.
Rule 2: what is remembered of a variable keeps nothing of it alive, and costs the same whatever
is in it: its identity, its type's name and its size. The same variables tell nothing again.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from types import BuiltinFunctionType, FunctionType, MappingProxyType, ModuleType
from typing import Any, NamedTuple

import msgspec

from ipy_agent.agent.pictures import picture
from ipy_agent.errors import UsageError
from ipy_agent.notebook.figures import drawable
from ipy_agent.notebook.literals import home, short
from ipy_agent.notebook.preview import Look, looks, preview, sized
from ipy_agent.protocol.items import Item

__all__ = ["Handed", "Told", "handed_over", "told"]

HANDED_OVER = re.compile(r"\$`([^`\n]+)`")
NAMES = 20
"""How many names are told of at once, of each: new, changed, gone."""
NAME = 60


class Handed(msgspec.Struct, frozen=True):
    """A cell's prompt, and what it hands over.

    Attributes:
        text: what the user wrote, the names in it as code.
        previews: a few lines for each variable, in the order in which they are named.
        pictures: the content parts of those that are pictures.
    """

    text: str
    previews: tuple[str, ...] = ()
    pictures: tuple[Item, ...] = ()

    @property
    def prompt(self) -> str:
        """All of the text: the previews, and behind them what the user wrote."""
        return "\n\n".join([*self.previews, self.text])


def handed_over(
    cell: str, names: Mapping[str, Any], *, images: bool | None = None, heads: bool = True
) -> Handed:
    """Return a prompt with what it hands over by $`name`.

    Args:
        cell: what the user wrote.
        names: the variables of the notebook.
        images: whether the model takes pictures; `None`, it may.
        heads: whether first rows are shown.

    Raises:
        UsageError: there is no such variable, it is no name, or a figure cannot be drawn.
    """
    previews: list[str] = []
    pictures: list[Item] = []
    for name in dict.fromkeys(HANDED_OVER.findall(cell)):
        value = _named(name, names)
        figure = drawable(value)
        if figure is None:
            previews.append(preview(name, value, head=heads))
        elif images is False:
            previews.append(f"{name}: {sized(value)}, a picture, which this model cannot see")
        else:
            pictures.append(picture(figure))
            previews.append(f"{name}: {sized(value)}, picture {len(pictures)} of this message")
    return Handed(HANDED_OVER.sub(r"`\1`", cell).strip("\n"), tuple(previews), tuple(pictures))


def _named(name: str, names: Mapping[str, Any]) -> Any:
    if not name.isidentifier():
        raise UsageError(
            f"$`{name}` is not the name of a variable: assign it to one first, "
            f"such as x = {name}, and hand over $`x`"
        )
    if name not in names:
        known = [one for one in list(names) if isinstance(one, str)]
        close = [one for one in known if one.lower() == name.lower()]
        close = close or difflib.get_close_matches(name, known, 3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ": make it in a cell above"
        raise UsageError(f"there is no variable {name!r} to hand over with $`{name}`{hint}")
    return names[name]


class _Mark(NamedTuple):
    """What is remembered of a variable. `said` is its type and size."""

    value: int
    names: int
    said: str


class Told(msgspec.Struct, frozen=True):
    """What a model knows of the variables, as they were when it was told."""

    marks: Mapping[str, _Mark] = MappingProxyType({})


def told(
    names: Mapping[str, Any], hidden: Mapping[str, Any], before: Told | None, how: str
) -> tuple[str, Told]:
    """Return what to tell of the variables by itself, and what is then told.

    Args:
        names: the variables of the notebook.
        hidden: those that IPython put there, as `shell.user_ns_hidden`.
        before: what was told before; nothing yet, if it is `None`.
        how: `names`, or `delta` for types and sizes too.

    Returns:
        An empty text, and `before` itself, where nothing changed.
    """
    known, own = looks(), names.get("__name__")
    marks = {
        name: _mark(value, known)
        for name, value in dict(names).items()  # a thread of the user's may bind one meanwhile
        if _counts(name, value, hidden, own)
    }
    old = {} if before is None else before.marks
    changes = {
        "new": [name for name in marks if name not in old],
        "changed": [name for name, mark in marks.items() if old.get(name, mark) != mark],
        "gone": [name for name in old if name not in marks],
    }
    lines = [
        f"{kind}: {_listed(found, marks if how == 'delta' else {})}"
        for kind, found in changes.items()
        if found
    ]
    if not lines:
        return "", before or Told()
    return "\n".join(["Variables in the notebook:", *lines]), Told(MappingProxyType(marks))


def _counts(name: Any, value: Any, hidden: Mapping[str, Any], own: Any) -> bool:
    """Whether a name is the user's: what was imported from a library is not worth a word."""
    if type(name) is not str or name.startswith("_") or not name.isidentifier():
        return False
    if name in hidden and hidden[name] is value:
        return False
    kind = type(value)
    if kind is FunctionType:
        found = value.__globals__.get("__name__")
        return type(found) is str and found == own
    if issubclass(kind, type):
        return bool(home(value) == own)
    return kind is not BuiltinFunctionType and home(kind) not in _NOISE


_NOISE = frozenset({"typing", "__future__"})


def _mark(value: Any, known: Mapping[int, Look]) -> _Mark:
    look = known.get(id(type(value)))
    names = 0 if look is None or look.names is None else id(getattr(value, look.names))
    said = "module" if issubclass(type(value), ModuleType) else sized(value, known)
    return _Mark(id(value), names, said)


def _listed(names: list[str], marks: Mapping[str, _Mark]) -> str:
    """Return names, the latest of them where they are many, with their types where known."""
    shown = names[-NAMES:]
    words = [
        f"{short(name, NAME)} ({marks[name].said})" if name in marks else short(name, NAME)
        for name in shown
    ]
    rest = len(names) - len(shown)
    return ", ".join(words) + (f" and {rest} more" if rest else "")
