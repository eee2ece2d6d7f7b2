"""A function as a tool: its signature is the schema, its docstring the description.

Types are msgspec's: what it can decode strictly can be a parameter (numbers, text, `Literal`,
enums, lists, dicts, dataclasses, `X | None`, `Annotated` with `msgspec.Meta`). Anything else
is an error where the tool is made, since a user who defines a tool is still there to mend it.
What the model then gets wrong is an error for the model, never an exception for the user.

An `async def` is a tool like any other. It runs on the loop that the user's own clients live
on, the kernel's in a notebook, while whoever called it waits (see `coroutines`).
"""

from __future__ import annotations

import inspect
import numbers
import typing
from collections.abc import Callable, Mapping
from typing import Any, cast, overload

import msgspec

from ipy_agent.agent import OFFERS
from ipy_agent.agent.arguments import check_size, check_strictly
from ipy_agent.agent.reprs import in_time, is_small, repr_of
from ipy_agent.agent.schemas import Misfit, decoded, schema_of
from ipy_agent.errors import ToolError
from ipy_agent.protocol.items import Item, image

__all__ = ["TOOLS", "BadArguments", "Result", "Tool", "bounded", "tool"]

Function = Callable[..., Any]
KEPT = 1_000_000


class BadArguments(ValueError):
    """What the model sent does not fit the tool's schema; the text is for the model."""


class Result(msgspec.Struct, frozen=True):
    """What a tool says to the model when a plain value does not do.

    `pictures` are PNG data URLs. `failed` marks a call that ran and went wrong. The text can
    always be sent and kept: half a surrogate pair in it becomes a question mark, and of more than
    a million characters the middle is left out.
    """

    text: str
    pictures: list[str] = []
    failed: bool = False

    def __post_init__(self) -> None:
        whole = bounded(str(self.text), KEPT)
        sound = whole.encode("utf-8", "replace").decode()
        msgspec.structs.force_setattr(self, "text", sound)

    def output(self, limit: int, *, images: bool) -> str | list[Item]:
        """Return the output for the model: a bounded text, with the pictures if it takes any."""
        said = bounded(self.text, limit)
        if not (self.pictures and images):
            return said
        return [{"type": "input_text", "text": said}, *map(image, self.pictures)]


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model may call. `shows` is the parameter that holds code, if any.

    A `custom` tool is called with a text instead of JSON: `shows` is its one parameter.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    function: Function
    shape: type[msgspec.Struct]
    read_only: bool = False
    custom: bool = False
    shows: str | None = None

    @property
    def definition(self) -> dict[str, Any]:
        """The tool as the Responses API lists it."""
        told = {"name": self.name, "description": self.description}
        if self.custom:
            return {"type": "custom", **told}
        return {"type": "function", **told, "parameters": self.parameters}

    def bind(self, arguments: str) -> dict[str, Any]:
        """Return the call's keyword arguments, checked and converted; of a custom tool the text.

        Raises:
            BadArguments: they are not JSON, do not mean one thing only, or do not fit.
        """
        try:
            if self.custom:
                check_size(arguments)
                return dict.fromkeys(self.shape.__struct_fields__, arguments)
            check_strictly(arguments)
            bound = decoded(arguments or "{}", self.shape)
        except Misfit as misfit:
            raise BadArguments(f"{self.name}: bad arguments: {misfit}") from None
        return {name: getattr(bound, name) for name in self.shape.__struct_fields__}


TOOLS: dict[str, Tool] = {}
"""The tools of this process, by name. A function defined again replaces itself."""


@overload
def tool(function: Function) -> Function: ...
@overload
def tool(*, read_only: bool = False, custom: bool = False) -> Callable[[Function], Function]: ...
def tool(
    function: Function | None = None, *, read_only: bool = False, custom: bool = False
) -> Function | Callable[[Function], Function]:
    """Offer a function to the model; usable bare or as `@tool(read_only=True)`.

    Args:
        function: needs type hints on every parameter and a docstring; it may be `async`.
        read_only: it has no side effects and runs without asking.
        custom: the model calls it with a plain text, such as code, instead of JSON; it has
            one parameter, a `str`.

    Raises:
        ToolError: the signature cannot be told to a model.
    """
    if function is not None:
        return tool_of(function, register=True).function
    return lambda function: (
        tool_of(function, read_only=read_only, custom=custom, register=True).function
    )


def tool_of(
    function: Function,
    *,
    name: str | None = None,
    description: str | None = None,
    read_only: bool = False,
    custom: bool = False,
    shows: str | None = None,
    register: bool = False,
) -> Tool:
    """Return the tool that a function makes.

    Raises:
        ToolError: the signature cannot be told to a model.
    """
    name = name or str(getattr(function, "__name__", type(function).__name__))
    if inspect.isasyncgenfunction(function):
        raise ToolError(f"tool {name}: it is an async generator; return the whole value at once")
    description = description or inspect.getdoc(function)
    if not description:
        raise ToolError(f"tool {name}: it needs a docstring that tells the model what it does")
    shape = _shape(name, function)
    if custom:
        shows = _only_text(name, shape)
    made = Tool(
        name=name,
        description=description,
        parameters=_schema(name, shape),
        function=function,
        shape=shape,
        read_only=read_only,
        custom=custom,
        shows=shows,
    )
    if register:
        TOOLS[name] = made
    return made


def _shape(name: str, function: Function) -> type[msgspec.Struct]:
    """Return a struct whose fields are the function's parameters."""
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception as error:  # noqa: BLE001 (a hint is code, and may raise anything)
        raise ToolError(f"tool {name}: a type hint cannot be read: {error}") from None
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ToolError(f"tool {name}: {parameter} cannot be told to a model; name each one")
        if parameter.name not in hints:
            raise ToolError(f"tool {name}: parameter {parameter.name!r} needs a type hint")
        field = (parameter.name, hints[parameter.name])
        if parameter.default is parameter.empty:
            fields.append(field)
        else:
            fields.append((*field, _default(parameter.default)))
    try:
        return msgspec.defstruct(
            f"{name}_arguments", fields, kw_only=True, forbid_unknown_fields=True
        )
    except (TypeError, ValueError) as error:
        raise ToolError(f"tool {name}: {error}") from None


def _default(value: Any) -> Any:
    mutable = isinstance(value, (list, dict, set)) or hasattr(value, "__dict__")
    return msgspec.field(default_factory=lambda: value) if mutable else value


def _only_text(name: str, shape: type[msgspec.Struct]) -> str:
    """Return the one parameter of a custom tool."""
    fields = msgspec.structs.fields(shape)
    if [field.type for field in fields] != [str]:
        raise ToolError(f"tool {name}: a custom tool has exactly one parameter, a `str`")
    return fields[0].name


def _schema(name: str, shape: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the JSON Schema of a shape."""
    try:
        schema = schema_of(shape)
    except (TypeError, ValueError) as error:
        line = str(error).splitlines()[0]
        raise ToolError(
            f"tool {name}: a parameter's type cannot be told to a model: {line}"
        ) from None
    schema.pop("title", None)
    return schema


def bounded(text: str, limit: int) -> str:
    """Return a text of at most about `limit` characters, its middle left out if need be."""
    if len(text) <= limit:
        return text
    head, tail = text[: limit * 2 // 3], text[len(text) - limit // 3 :]
    return f"{head}\n… {len(text) - len(head) - len(tail):,} characters left out …\n{tail}"


def result_of(value: Any) -> Result:
    """Return what a tool's value says to the model: text as it is, else JSON, else its repr."""
    kind = type(value)  # a value may lie about its class
    if issubclass(kind, Result):
        return cast("Result", value)
    if issubclass(kind, str):
        return Result(str.__str__(value))
    try:
        with in_time():
            if is_small(value):
                return Result(msgspec.json.encode(value, enc_hook=_number).decode())
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001, S110 (what cannot be JSON has a repr)
        pass
    return Result(repr_of(value))


def _number(value: Any) -> float:
    """Return numpy's numbers as Python's own."""
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise NotImplementedError  # so msgspec wants to be told of a type that it cannot encode


def offered(
    tools: Mapping[str, Tool], wanted: tuple[str, ...] | None, hidden: frozenset[str]
) -> dict[str, Tool]:
    """Return the tools on offer: those wanted by name, else all but the hidden ones.

    Raises:
        ToolError: a wanted tool is not there.
    """
    if wanted is None:
        return {name: tool for name, tool in tools.items() if name not in hidden}
    missing = [name for name in wanted if name not in tools]
    if missing:
        raise ToolError(f"there is no tool {missing[0]!r}: there are {', '.join(tools) or 'none'}")
    return {name: tools[name] for name in wanted}


while OFFERS:  # of those who came before this was loaded: their tools are the first
    OFFERS.pop(0)()
