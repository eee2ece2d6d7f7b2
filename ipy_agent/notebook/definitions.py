"""Functions, classes and modules in a few lines: how they are called, and what they say of it.

Rule 1: nothing is asked of the object that its type does not hold: a signature is read from the
code, not by `inspect`, which follows `__wrapped__` and `__signature__` wherever they lead.
"""

from __future__ import annotations

import functools
import inspect
import linecache
import re
import textwrap
import tokenize
from collections.abc import Iterable
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any

from ipy_agent.notebook.literals import attributes, fitting, label, safe, short, type_name

__all__ = ["definition"]

WIDTH = 200
LINE = 60
SOURCE_LINES = 200
SOURCE_ROOM = 1_500
METHODS = 20
NAMES_ROOM = 800
WRAPS = 8

_CACHED = type(functools.cache(lambda: None))
_MEMBERS = frozenset(map(id, (property, functools.cached_property, MethodDescriptorType)))
_NOTHING = object()
_SELF = re.compile(r"\(\$\w+(?:, )?(?:/(?:, )?)?")
_names_in = vars(ModuleType)["__dict__"].__get__
_bases_of = type.__dict__["__bases__"].__get__
_mro_of = type.__dict__["__mro__"].__get__


def definition(value: Any) -> list[str] | None:
    """Return what a function, class or module is called, and lines about it; else nothing."""
    kind = type(value)
    if kind is BuiltinFunctionType:
        return [
            f"built-in {value.__name__}{_SELF.sub('(', value.__text_signature__ or '(…)')}",
            *_doc(value.__doc__),
        ]
    function = _function(value)
    if function is not None:
        lines = _source(function.__code__) or _doc(function.__doc__)
        return [f"function {function.__name__}{_signature(function)}", *lines]
    if issubclass(kind, type):
        return _class(value)
    if issubclass(kind, ModuleType):
        return _module(_names_in(value))
    return None


def _function(value: Any) -> FunctionType | None:
    """Return the function that a value is or, as a method or decorated, holds."""
    for _ in range(WRAPS):
        kind, inner = type(value), None
        if kind is MethodType or kind is staticmethod or kind is classmethod:
            inner = value.__func__
        elif kind is FunctionType or kind is _CACHED:
            inner = dict.get(value.__dict__, "__wrapped__")
        if inner is None:
            return value if kind is FunctionType else None
        value = inner
    return None


def _signature(function: FunctionType, *, skip: int = 0) -> str:
    """Return the parameters behind the first `skip`, with their defaults as far as plain."""
    code, parts = function.__code__, []
    named, only = code.co_argcount, code.co_kwonlyargcount
    given = function.__defaults__ or ()
    for index, name in enumerate(code.co_varnames[:named]):
        default = index - named + len(given)
        parts.append(f"{name}={safe(given[default], 1)}" if default >= 0 else name)
        if index + 1 == code.co_posonlyargcount:
            parts.append("/")
    more = list(code.co_varnames[named + only :])
    if code.co_flags & inspect.CO_VARARGS:
        parts.append(f"*{more.pop(0)}")
    elif only:
        parts.append("*")
    for name in code.co_varnames[named : named + only]:
        held = dict.get(function.__kwdefaults__ or {}, name, _NOTHING)
        parts.append(name if held is _NOTHING else f"{name}={safe(held, 1)}")
    if code.co_flags & inspect.CO_VARKEYWORDS:
        parts.append(f"**{more.pop(0)}")
    return short(f"({', '.join(parts[skip:])})", WIDTH)


def _source(code: CodeType) -> list[str]:
    """Return the lines that a function was written in, if they are known."""
    linecache.checkcache(code.co_filename)
    lines = linecache.getlines(code.co_filename)[code.co_firstlineno - 1 :][:SOURCE_LINES]
    try:
        block = inspect.getblock(lines) if lines else []
    except (tokenize.TokenError, SyntaxError):
        block = lines[:1]
    told = textwrap.dedent("".join(block)).splitlines()
    shown = fitting(told, SOURCE_ROOM)
    rest = len(told) - len(shown)
    return [*shown, f"… and {rest} lines more"] if rest else shown


def _class(kind: type) -> list[str]:
    """Return a class: its signature, where it comes from, its documentation and its methods."""
    own = attributes(kind)
    makers = (attributes(base).get("__init__") for base in _mro_of(kind))
    maker = next((one for one in makers if type(one) is FunctionType), None)
    bases = ", ".join(type_name(base) for base in _bases_of(kind) if base is not object)
    lines = [
        f"class {type_name(kind)}{_signature(maker, skip=1) if maker else ''}",
        *([f"  subclass of {bases}"] if bases else []),
        *_doc(own.get("__doc__")),
    ]
    hints = own.get("__annotations__")
    if type(hints) is dict and hints:
        lines.append(f"  fields: {_listed(filter(_is_public, hints))}")
    methods = [
        f"  .{name}{_signature(function) if function else ''}"
        for name, value in own.items()
        if _is_public(name)
        and ((function := _function(value)) is not None or id(type(value)) in _MEMBERS)
    ]
    shown = fitting(methods[:METHODS], SOURCE_ROOM)
    rest = len(methods) - len(shown)
    return [*lines, *shown, *([f"  … and {rest} methods more"] if rest else [])]


def _module(names: dict[str, Any]) -> list[str]:
    """Return a module: its name and version, its documentation, what it offers."""
    version = names.get("__version__")
    title = f"module {label(names.get('__name__'))}"
    lines = [
        f"{title} {short(version, LINE)}" if type(version) is str else title,
        *_doc(names.get("__doc__")),
    ]
    offered = names.get("__all__")
    if type(offered) is not list and type(offered) is not tuple:
        held = dict(names).items()
        offered = [name for name, value in held if not issubclass(type(value), ModuleType)]
    public = sorted(filter(_is_public, offered))
    return [*lines, f"  offers {_listed(public)}"] if public else lines


def _listed(names: Iterable[Any]) -> str:
    """Return names in a row, as many as there is room for."""
    told = [label(name) for name in names]
    shown = fitting(told, NAMES_ROOM)
    rest = len(told) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def _is_public(name: Any) -> bool:
    return type(name) is str and not name.startswith("_")


def _doc(text: Any) -> list[str]:
    """Return the line that a documentation begins with, if it is a text."""
    line = text.strip().partition("\n")[0].strip() if type(text) is str else ""
    return [f"  {short(line, WIDTH)}"] if line else []
