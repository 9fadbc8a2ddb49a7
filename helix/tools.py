"""Tools: typed functions that a model may call.

Floor 2: above `context`, `model` and `schema`; agents hold tools, `steps` runs them. A tool's JSON Schema, validation
and conversion come from pydantic, its descriptions from the docstring.
"""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, make_dataclass, replace
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypeAlias,
    get_args,
    get_origin,
    get_type_hints,
    overload,
    runtime_checkable,
)

import docstring_parser
from pydantic import ConfigDict, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter
from pydantic import Field as PydanticField
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.fields import FieldInfo
from typing_extensions import TypeVar

from helix.context import ToolContext
from helix.errors import DefinitionError, check_arguments
from helix.model import ToolDefinition
from helix.schema import validated

P = ParamSpec("P")
R = TypeVar("R", covariant=True)

Replay: TypeAlias = Literal["never", "safe"]
RunsOn: TypeAlias = Literal["server", "client"]

NAME_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
DEFAULT_MAX_RESULT_BYTES = 256 * 1024


@runtime_checkable
class Toolset(Protocol):
    """Tools that are opened and closed with the executor, such as a connection to a tool server.

    `async with` opens it, once an executor, before the first run that uses it; leaving the executor closes it.
    """

    async def __aenter__(self) -> Any: ...
    async def __aexit__(self, *exc_info: Any) -> Any: ...
    def tools(self) -> Sequence[Tool[..., Any]]:
        """The tools, once it is open."""
        ...


AsksApproval: TypeAlias = Callable[[ToolContext[Any, Any], dict[str, Any]], bool | str | Awaitable[bool | str]]
"""Whether a call with these (converted) arguments needs approval; a text is the reason that the person reads."""


@dataclass(slots=True, frozen=True, eq=False)
class Tool(Generic[P, R]):
    """A tool, ready for use. Calling it calls the function.

    Attributes:
        name: as the model calls it.
        description: what the model reads.
        parameters: the JSON Schema of its arguments.
        function: what it calls; `takes_context` when that wants a `ToolContext` first.
        timeout: seconds a body may take.
        retries: in how many steps in a row it may fail and the model try again; one more ends the agent. None: as
            often as its steps allow.
        replay: `safe` when running the body again does no harm; then it is, after an interrupt or a crash.
        sequential: the calls of a step that has this tool run one after the other.
        finishes: its result is the agent's output, and the run ends.
        max_result_bytes: longer results are cut and marked.
        requires_approval: whether a person must approve a call before it runs; or a function of the context and the
            arguments that says so. If it gives a text, that is the reason that the person reads.
        runs_on: `client`: no body runs here, a client is asked for the result.
        approval_timeout: seconds that a person or a client may take to answer; then the call fails.

    Raises:
        DefinitionError: settings that do not go together.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    function: Callable[P, R] = field(repr=False)
    takes_context: bool = False
    timeout: float | None = None
    retries: int | None = None
    replay: Replay = "never"
    sequential: bool = False
    finishes: bool = False
    max_result_bytes: int = DEFAULT_MAX_RESULT_BYTES
    requires_approval: bool | AsksApproval = False
    runs_on: RunsOn = "server"
    approval_timeout: float | None = None
    _arguments: TypeAdapter[Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.runs_on not in get_args(RunsOn):
            raise DefinitionError(f"tool {self.name!r}: runs_on={self.runs_on!r} is neither 'server' nor 'client'")
        if self.runs_on == "client" and self.requires_approval:
            problem = "a client is asked for each call anyway, and may deny it; leave out requires_approval"
            raise DefinitionError(f"tool {self.name!r}: {problem}")
        if self.approval_timeout is not None and self.approval_timeout <= 0:
            raise DefinitionError(f"tool {self.name!r}: approval_timeout={self.approval_timeout} must be more than 0")

    @property
    def asks(self) -> bool:
        """Whether somebody may have to be asked before a call of it is answered."""
        return bool(self.requires_approval) or self.runs_on == "client"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    @property
    def definition(self) -> ToolDefinition:
        """What a model reads of it."""
        return ToolDefinition(self.name, self.description, self.parameters)

    def validate(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The function's keyword arguments, converted to their declared types.

        Raises:
            ValueError: they do not fit; the message is meant for the model.
        """
        if self._arguments is None:
            return arguments
        valid = validated(self._arguments, arguments)
        return {name: getattr(valid, name) for name in valid.__dataclass_fields__}

    def replace(self, **changes: Any) -> Tool[P, R]:
        """A copy with other settings.

        Raises:
            TypeError: there is no such setting.
        """
        check_arguments("replace", changes, _OPTIONS)
        return replace(self, **changes)


_OPTIONS = (
    "name",
    "description",
    "timeout",
    "retries",
    "replay",
    "sequential",
    "finishes",
    "max_result_bytes",
    "requires_approval",
    "runs_on",
    "approval_timeout",
)
"""The settings of a tool that users choose."""


@overload
def tool(function: Callable[P, R], /) -> Tool[P, R]: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float | None = None,
    retries: int | None = None,
    replay: Replay = "never",
    sequential: bool = False,
    finishes: bool = False,
    max_result_bytes: int = DEFAULT_MAX_RESULT_BYTES,
    requires_approval: bool | AsksApproval = False,
    runs_on: RunsOn = "server",
    approval_timeout: float | None = None,
) -> Callable[[Callable[P, R]], Tool[P, R]]: ...
def tool(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Makes a tool of a typed function: async, sync (runs in a thread), or a generator (its texts are streamed).

    The function's first parameter may be a `ToolContext`. All others need annotations; they become the JSON Schema, and
    the docstring describes them.

    Raises:
        DefinitionError: a parameter has no annotation or no JSON form, or the name is not usable; says which.
    """
    check_arguments("tool", options, _OPTIONS)
    if function is None:
        return functools.partial(make_tool, **options)
    return make_tool(function, **options)


def make_tool(
    function: Callable[..., Any], /, *, name: str | None = None, description: str | None = None, **options: Any
) -> Tool[..., Any]:
    """`tool`, as a plain function."""
    if not callable(function):
        raise DefinitionError(f"a tool must be a function, not {function!r}")
    described = _unwrapped(function)
    name = name or str(getattr(described, "__name__", type(described).__name__))
    check_name(name, "tool")
    parameters = list(inspect.signature(function).parameters.values())
    hints = _hints(function, name)
    takes_context = bool(parameters) and _is_context(hints.get(parameters[0].name))
    doc = docstring_parser.parse(inspect.getdoc(described) or "")
    about = {param.arg_name: param.description or "" for param in doc.params}
    arguments = _arguments_type(name, parameters[takes_context:], hints, about)
    return Tool(
        name=name,
        description=description if description is not None else _described(doc),
        parameters=_schema(name, arguments),
        function=function,
        takes_context=takes_context,
        _arguments=arguments,
        **options,
    )


def check_name(name: str, what: str) -> None:
    """Names of agents and tools are what providers accept: `[A-Za-z][A-Za-z0-9_-]{0,63}`.

    Raises:
        DefinitionError: this one is not.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise DefinitionError(
            f"{what} name {name!r} is not usable: it must be a letter, then up to 63 letters, digits, '_' or '-'"
        )


def _unwrapped(function: Any) -> Any:
    """What a partial calls; anything else is itself."""
    return function.func if isinstance(function, functools.partial) else function


def _hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    target = _unwrapped(function)
    if not (inspect.isfunction(target) or inspect.ismethod(target)):
        target = target.__call__
    try:
        return get_type_hints(target, include_extras=True)
    except NameError:
        pass
    try:
        return get_type_hints(target, localns=_callers_names(), include_extras=True)
    except NameError as error:
        raise DefinitionError(
            f"tool {name!r}: an annotation cannot be resolved ({error}); define that type at module level"
        ) from None


def _callers_names() -> dict[str, Any]:
    """What is defined in the functions around the place where the tool is made: annotations may name it."""
    names: dict[str, Any] = {}
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] != "helix":
            names = {**frame.f_locals, **names}
        frame = frame.f_back
    return names


def _is_context(hint: Any) -> bool:
    return hint is ToolContext or get_origin(hint) is ToolContext


def _arguments_type(
    name: str, parameters: list[inspect.Parameter], hints: dict[str, Any], about: dict[str, str]
) -> TypeAdapter[Any]:
    fields: list[tuple[str, Any, Any]] = []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise DefinitionError(
                f"tool {name!r}: parameter {str(parameter)!r} cannot be filled by name; name each one"
            )
        if parameter.name not in hints:
            raise DefinitionError(
                f"tool {name!r}: parameter {parameter.name!r} has no annotation; write its type, as in "
                f"`{parameter.name}: str`" + _context_hint(parameter, parameters)
            )
        if _is_context(hints[parameter.name]):
            raise DefinitionError(f"tool {name!r}: the ToolContext must be the first parameter")
        fields.append(
            (parameter.name, _described_type(hints[parameter.name], about.get(parameter.name)), _default(parameter))
        )
    namespace = {"__pydantic_config__": ConfigDict(extra="forbid", arbitrary_types_allowed=False)}
    try:
        return TypeAdapter(make_dataclass(f"{name}_arguments", fields, kw_only=True, namespace=namespace))
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        raise DefinitionError(f"tool {name!r}: {str(error).splitlines()[0]}") from None


def _context_hint(parameter: inspect.Parameter, parameters: list[inspect.Parameter]) -> str:
    return " (or `ToolContext`, if it is the context)" if parameter is parameters[0] else ""


def _described_type(hint: Any, description: str | None) -> Any:
    has_one = any(isinstance(extra, FieldInfo) and extra.description for extra in get_args(hint)[1:])
    if not description or (get_origin(hint) is Annotated and has_one):
        return hint
    return Annotated[hint, PydanticField(description=description)]


def _default(parameter: inspect.Parameter) -> Any:
    default: Any = parameter.default
    if default is parameter.empty:
        return field()
    if type(default).__hash__ is None:  # a list, a dict, a model: each call gets its own
        return field(default_factory=functools.partial(copy.deepcopy, default))
    return field(default=default)


def _schema(name: str, arguments: TypeAdapter[Any]) -> dict[str, Any]:
    try:
        schema = arguments.json_schema(mode="validation")
    except (PydanticInvalidForJsonSchema, PydanticUserError) as error:
        raise DefinitionError(f"tool {name!r}: {str(error).splitlines()[0]}") from None
    schema.pop("title", None)
    schema.setdefault("properties", {})
    for about in schema["properties"].values():
        about.pop("title", None)
    return schema


def _described(doc: docstring_parser.Docstring) -> str:
    parts = [doc.short_description, doc.long_description]
    return "\n\n".join(part for part in parts if part)
