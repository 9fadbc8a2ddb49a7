"""Tools: typed functions that a model may call, and the context that they get.

Floor 2: above `model`, `schema` and `results`; agents hold tools, `steps` runs them. A tool's JSON Schema, validation
and conversion come from pydantic, its descriptions from the docstring.
"""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
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
from typing_extensions import TypeForm, TypeVar

from helix.chunks import Channel
from helix.errors import DefinitionError, check_arguments
from helix.limits import Limits
from helix.model import ToolDefinition
from helix.results import RunResult
from helix.schema import validated

P = ParamSpec("P")
R = TypeVar("R", covariant=True)
StateT = TypeVar("StateT", default=None)
DepsT = TypeVar("DepsT", contravariant=True, default=object)
ChildOutputT = TypeVar("ChildOutputT")
ChildStateT = TypeVar("ChildStateT")
OutputT_co = TypeVar("OutputT_co", covariant=True)
StateT_co = TypeVar("StateT_co", covariant=True)

Replay: TypeAlias = Literal["never", "safe"]

NAME_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
DEFAULT_MAX_RESULT_BYTES = 256 * 1024


class Runnable(Protocol[OutputT_co, StateT_co]):
    """What can be run as a child: an `Agent`. (A protocol, so that the context need not know agents.)"""

    @property
    def name(self) -> str:
        """The agent's name."""
        ...

    @property
    def output_type(self) -> TypeForm[OutputT_co]:
        """The type of its output."""
        ...

    @property
    def state_type(self) -> type[StateT_co]:
        """The type of its state."""
        ...


class ChildRun(Protocol[OutputT_co, StateT_co]):
    """A child that runs: iterate it for its chunks and those of its subtree, await `result()` for what it came to."""

    @property
    def agent_id(self) -> str:
        """The child's run id."""
        ...

    def __aiter__(self) -> ChildRun[OutputT_co, StateT_co]: ...
    async def __anext__(self) -> Any: ...
    async def result(self) -> RunResult[OutputT_co, StateT_co]:
        """What it came to; never raises for a failed child."""
        ...


class CallHost(Protocol):
    """What stands behind a `ToolContext`: a running call, or the test double in `helix.testing`."""

    @property
    def cancelled(self) -> bool: ...
    def read_state(self) -> Any: ...
    def emit(self, name: str, data: Any) -> None: ...
    def write(self, text: str, channel: Channel) -> None: ...
    def update_state(self) -> AbstractContextManager[Any]: ...
    def remaining_time(self) -> float | None: ...
    async def run_agent(
        self, agent: Runnable[Any, Any], input: Any, *, key: str | None, limits: Limits | None
    ) -> RunResult[Any, Any]: ...
    def stream_agent(
        self, agent: Runnable[Any, Any], input: Any, *, key: str | None
    ) -> AbstractAsyncContextManager[ChildRun[Any, Any]]: ...


class _Done:
    """An awaitable that is done already: `ctx.emit(...)` has happened, `await ctx.emit(...)` is allowed too."""

    def __await__(self) -> Generator[Any, Any, None]:
        return
        yield


_DONE = _Done()


@dataclass(slots=True, frozen=True)
class ToolContext(Generic[StateT, DepsT]):
    """What a tool, or dynamic instructions, get as their first argument when they ask for it.

    Every method may be called from an async tool and from a sync tool's thread. After the call has ended (cancelled,
    timed out) they raise `ToolEnded`.

    Attributes:
        deps: what the run was given as `deps`; never logged.
        agent_id, run_id, session_id: where this happens: the agent's id, the root's, the session's.
        tool_call_id: this call's id; empty in dynamic instructions.
        attempt: how often this body has begun, from 1.
    """

    deps: DepsT = field(repr=False)
    agent_id: str
    run_id: str
    session_id: str | None
    tool_call_id: str
    attempt: int
    _host: CallHost = field(repr=False)

    @property
    def state(self) -> StateT:
        """The agent's state now: a validated copy. Change state with `update_state`, not here."""
        return self._host.read_state()

    @property
    def cancelled(self) -> bool:
        """True once the call has been cancelled; a long sync tool looks here and returns."""
        return self._host.cancelled

    def emit(self, name: str, data: Any = None) -> Awaitable[None]:
        """Appends a `custom` chunk at once. `data` is any JSON-able or pydantic value. May be awaited, need not be.

        Raises:
            ValueError: the data has no JSON form.
        """
        self._host.emit(name, data)
        return _DONE

    def write(self, text: str, *, channel: Channel = "text") -> None:
        """Appends a `tool_output_delta`: a piece of what the tool puts out while it runs."""
        self._host.write(text, channel)

    def update_state(self) -> AbstractContextManager[StateT]:
        """`with ctx.update_state() as draft:` records changes and appends them as one `state_patch` when it ends.

        An exception inside discards the draft.

        Raises:
            StateError: a value that the state's type does not allow, at the line that sets it.
        """
        return self._host.update_state()

    def remaining_time(self) -> float | None:
        """Seconds until this call's timeout or a time limit above it cuts it; None without one."""
        return self._host.remaining_time()

    async def run_agent(
        self,
        agent: Runnable[ChildOutputT, ChildStateT],
        input: Any,
        *,
        key: str | None = None,
        limits: Limits | None = None,
    ) -> RunResult[ChildOutputT, ChildStateT]:
        """Runs a child inside this call and returns what it came to; `result.output` raises if it failed.

        Args:
            agent: what to run.
            input: a text, or the child's typed input.
            key: a name for this child. When the body runs again, the child with the same agent and key (without a
                key: with equal input) is found in the log and not run again.
            limits: bounds for the child's subtree.
        """
        return await self._host.run_agent(agent, input, key=key, limits=limits)

    def stream_agent(
        self, agent: Runnable[ChildOutputT, ChildStateT], input: Any, *, key: str | None = None
    ) -> AbstractAsyncContextManager[ChildRun[ChildOutputT, ChildStateT]]:
        """Like `run_agent`, and watched: `async with ctx.stream_agent(…) as child: async for chunk in child: …`.

        Leaving the block cancels the child if it still runs.
        """
        return self._host.stream_agent(agent, input, key=key)


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
    _arguments: TypeAdapter[Any] | None = field(default=None, repr=False)

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


_OPTIONS = ("name", "description", "timeout", "retries", "replay", "sequential", "finishes", "max_result_bytes")
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
