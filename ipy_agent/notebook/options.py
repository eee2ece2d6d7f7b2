"""What the words behind `%agent` and `%%agent` stand for: options, and things of the notebook.

Rule 1: what does not fit is a `UsageError` of one line, told before anything is sent.
"""

from __future__ import annotations

import keyword
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from IPython.core.error import UsageError as WrongOption
from IPython.core.magic_arguments import MagicArgumentParser

from ipy_agent.agent.pictures import picture
from ipy_agent.agent.schemas import Shape, shape_of
from ipy_agent.errors import UsageError
from ipy_agent.protocol.items import Item
from ipy_agent.secrets import MASK

__all__ = ["parsed", "pictures_of", "shape_named", "variable"]


def parsed(parser: MagicArgumentParser, line: str) -> Any:
    """Return what a line says; quotes hold words together, and a backslash is a backslash."""
    words = shlex.shlex(line, posix=True, punctuation_chars=False)
    words.whitespace_split, words.commenters, words.escape = True, "", ""
    try:
        return parser.parse_args(list(words))
    except (WrongOption, ValueError) as error:
        told = " ".join(str(error).split())
        raise UsageError(_OPAQUE.sub(MASK, told)) from None


_OPAQUE = re.compile(r"(?<![\w./-])(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[\w-]{20,}(?![\w./-])")
"""A word in the wrong place that may be a key, of whatever kind: it is not repeated."""


def variable(name: str) -> str:
    """Return a name that a variable can have."""
    if not name.isidentifier() or keyword.iskeyword(name):
        raise UsageError(f"-o {name!r} is no name for a variable")
    return name


def shape_named(name: str, names: Mapping[str, Any]) -> Shape:
    """Return the shape of a type in the notebook."""
    if name not in names:
        raise UsageError(f"there is no type {name!r} for --schema: define it in a cell above")
    return shape_of(names[name], name=name)


def pictures_of(sources: Iterable[str], names: Mapping[str, Any]) -> list[Item]:
    """Return the pictures that variables of the notebook hold, else files."""
    found = []
    for source in sources:
        if source.isidentifier() and source not in names and not Path(source).exists():
            raise UsageError(f"there is no variable and no file {source!r} for --image")
        found.append(picture(names.get(source, source)))
    return found
