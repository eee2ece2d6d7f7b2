"""The variables that a conversation talks about: of another process, they are likely to be gone."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterable, Iterator

import msgspec

from ipy_agent.protocol.items import Item, is_call, text

__all__ = ["mentioned"]

_TOLD = re.compile(r"^(new|changed|gone): (.*)$", re.MULTILINE)
_NAME = re.compile(r"(?:^|, )([^\W\d]\w*)(?: \([^)]*\))?(?=, | and |$)")
_PREVIEW = re.compile(r"^([^\W\d]\w*): ", re.MULTILINE)
_BEGINS = "Variables in the notebook:\n"


def mentioned(items: Iterable[Item]) -> frozenset[str]:
    """Return the names that were told of, handed over, or bound by code of the model's."""
    names: set[str] = set()
    for item in items:
        if is_call(item):
            names |= set(_bound(item))
        elif item.get("role") == "user":
            said = text(item)
            names |= set(_handed_over(said))
            if said.startswith(_BEGINS):
                for kind, told in _TOLD.findall(said.partition("\n\n")[0]):
                    found = set(_NAME.findall(told))
                    names = names - found if kind == "gone" else names | found
    return frozenset(names)


def _handed_over(said: str) -> Iterator[str]:
    """Yield the names that have a preview, and stand as code behind it."""
    for name in _PREVIEW.findall(said):
        if f"`{name}`" in said:
            yield name


def _bound(call: Item) -> Iterator[str]:
    """Yield the names that the code of a call of `python` binds."""
    if call.get("name") != "python":
        return
    try:
        code = msgspec.json.decode(call.get("arguments", ""), type=dict[str, str])["code"]
        with warnings.catch_warnings(action="ignore"):
            body = ast.parse(code).body
    except (msgspec.MsgspecError, KeyError, SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for statement in body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield statement.name
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            for alias in statement.names:
                yield (alias.asname or alias.name).partition(".")[0]
        else:
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    yield node.id
