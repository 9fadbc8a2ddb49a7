"""Agents: frozen data that says who they are, what they may call and what they produce; sub-agents as tools.

Floor 3: above `tools`, `schema` and `state`; the loop runs them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from inspect import Parameter, signature
from types import NoneType
from typing import Any, Generic, TypeAlias, cast, get_args

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter
from pydantic_core import to_json
from typing_extensions import TypeForm, TypeVar

from helix.chunks import to_content, to_json_value
from helix.context import ToolContext
from helix.errors import DefinitionError, UsageError, check_arguments, did_you_mean
from helix.limits import Limits
from helix.messages import UserMessage
from helix.model import Model, ModelSettings, OutputDefinition, OutputMode
from helix.schema import OutputSchema, validated
from helix.state import StateSchema
from helix.strict import strict_schema
from helix.tools import AsksApproval, Tool, Toolset, check_name, make_tool

OutputT = TypeVar("OutputT", covariant=True, default=str)
StateT = TypeVar("StateT", default=None)
DepsT = TypeVar("DepsT", contravariant=True, default=object)
InputT = TypeVar("InputT", default=Any)

OUTPUT_TOOL = "final_result"
"""The name of the tool by which models give a structured output."""

Instructions = str | Callable[[ToolContext[Any, Any]], str | Awaitable[str]]


OutputValidator: TypeAlias = (
    Callable[[OutputT], OutputT | Awaitable[OutputT | None] | None]
    | Callable[[ToolContext[StateT, DepsT], OutputT], OutputT | Awaitable[OutputT | None] | None]
)
"""Gives a changed output, or None where it stays as it is; raises `ModelRetry` to have it corrected."""


class Agent(Generic[OutputT, StateT, DepsT]):
    """An agent: frozen data, reusable, shared between runs.

    Args:
        name: a letter, then up to 63 letters, digits, `_` or `-`.
        model: `provider:name` or a `Model`; None: the parent's, or the run's.
        description: what a parent's model reads of it.
        instructions: the system text, or a function of the context that gives it for each step.
        output_type: what it produces: `str`, or any type that pydantic has a JSON Schema for.
        state_type: the type of its state, all of whose fields have defaults; None without state.
        deps_type: the type of what its tools find in `ctx.deps`.
        tools: tools, toolsets, or plain typed functions.
        sub_agents: agents that it may delegate to, or `agent.as_tool(…)`.
        limits: bounds for it and everything below it.
        settings: how to ask its model.
        output_mode: how the model is asked for a structured output: as a call of a `tool`, or in its provider's own
            format (`native`). `auto`: native where the provider takes that beside tools.
        output_strict: whether the provider is to hold the model to the schema; fields with defaults are then required.
            None: where it can, and the type allows it.
        output_validators: functions of the output, or of the context and the output, sync or async. Each may give a
            changed output (None: it stays as it is), or raise `ModelRetry` with what the model is told. They are asked
            in this order for each output that fits its type, text included.
        output_retries: how often the model may correct an output that was not valid.

    Attributes:
        output_definition: what the model is asked to produce; None for plain text.
        toolsets, output_schema, state_schema: for the loop; each argument is an attribute, too.

    Raises:
        DefinitionError: something of this cannot work; says what and where.
    """

    name: str
    model: str | Model | None
    description: str
    instructions: Instructions
    output_type: TypeForm[OutputT]
    state_type: type[StateT]
    deps_type: type[DepsT]
    tools: tuple[Tool[..., Any], ...]
    toolsets: tuple[Toolset, ...]
    sub_agents: tuple[AgentTool, ...]
    limits: Limits | None
    settings: ModelSettings
    output_mode: OutputMode
    output_strict: bool | None
    output_validators: tuple[Callable[[ToolContext[Any, Any], Any], Any], ...]
    output_retries: int
    output_definition: OutputDefinition | None
    output_schema: OutputSchema[OutputT]
    state_schema: StateSchema[StateT]

    def __init__(
        self,
        name: str,
        *,
        model: str | Model | None = None,
        description: str = "",
        instructions: str | Callable[[ToolContext[StateT, DepsT]], str | Awaitable[str]] = "",
        output_type: TypeForm[OutputT] = str,
        output_mode: OutputMode = "auto",
        output_strict: bool | None = None,
        output_validators: Sequence[OutputValidator[OutputT, StateT, DepsT]] = (),
        state_type: type[StateT] = NoneType,
        deps_type: type[DepsT] = object,
        tools: Sequence[Tool[..., Any] | Toolset | Callable[..., Any]] = (),
        sub_agents: Sequence[Agent[Any, Any, DepsT] | Tool[..., Any]] = (),
        limits: Limits | None = None,
        settings: ModelSettings | None = None,
        output_retries: int = 2,
    ) -> None:
        self._arguments = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        check_name(name, "agent")
        _check_types(name, self._arguments)
        self.name = name
        self.model = model
        self.description = description
        self.instructions = instructions
        self.output_type = output_type
        self.state_type = state_type
        self.deps_type = deps_type
        self.limits = limits
        self.settings = settings or ModelSettings()
        self.output_retries = output_retries
        self.output_validators = tuple(_as_validator(name, function) for function in output_validators)
        self.output_mode = output_mode
        self.output_strict = output_strict
        self.output_schema = OutputSchema(output_type)
        self.output_definition = self._define_output() if self.output_schema.structured else None
        self.state_schema = StateSchema(state_type)
        self.state_schema.check_defaults()
        self.toolsets = tuple(item for item in tools if isinstance(item, Toolset))
        self.tools = tuple(_as_tool(item) for item in tools if not isinstance(item, Toolset))
        self.sub_agents = tuple(self._as_agent_tool(item) for item in sub_agents)
        self._toolbox = _by_name(name, self._reserved(), [*self.tools, *self.sub_agents])
        self._check_cycle()
        self._frozen = True

    def __setattr__(self, name: str, value: object) -> None:
        if getattr(self, "_frozen", False):
            raise AttributeError(f"agents are frozen; use agent.replace({name}=…), which gives a changed copy")
        object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        below = "".join(f", {tool.agent.name}" for tool in self.sub_agents)
        return f"Agent({self.name!r}{below and f', sub_agents=[{below[2:]}]'})"

    def replace(self, **changes: Any) -> Agent[OutputT, StateT, DepsT]:
        """A copy with other arguments.

        Raises:
            TypeError: there is no such argument.
        """
        check_arguments("replace", changes, self._arguments)
        return type(self)(**{**self._arguments, **changes})

    def as_tool(
        self,
        *,
        input_type: TypeForm[InputT] | None = None,
        prompt: Callable[[InputT], str] | None = None,
        name: str | None = None,
        description: str | None = None,
        share_state: bool = False,
        limits: Limits | None = None,
        timeout: float | None = None,
        requires_approval: bool | AsksApproval = False,
        approval_timeout: float | None = None,
    ) -> AgentTool:
        """This agent as a tool of another one.

        Args:
            input_type: what the parent's model must give; by default one text, `input`. A typed input reaches the
                child as JSON.
            prompt: turns the (validated) input into the child's first message.
            name, description: what the parent's model sees; by default the agent's own.
            share_state: the child works on its parent's state document; both need the same state type.
            limits: bounds for the child's subtree.
            timeout: seconds that the child may take.
            requires_approval, approval_timeout: as in `@tool`: a person is asked before the child begins.
        """
        schema = InputSchema(self.name, input_type)
        check_name(name or self.name, "tool")
        return AgentTool(
            name=name or self.name,
            description=self.description if description is None else description,
            parameters=schema.json_schema,
            function=_not_called,
            timeout=timeout,
            requires_approval=requires_approval,
            approval_timeout=approval_timeout,
            agent=self,
            prompt=cast(Any, prompt),
            share_state=share_state,
            limits=limits,
            input_schema=schema,
        )

    def toolbox(self, opened: Sequence[Tool[..., Any]] = ()) -> dict[str, Tool[..., Any]]:
        """All its tools by name: its own, its sub-agents, and those that its toolsets have opened.

        Raises:
            DefinitionError: two have the same name.
        """
        if not opened:
            return self._toolbox
        return _by_name(self.name, self._reserved(), [*self._toolbox.values(), *opened])

    def descendants(self) -> Iterator[Agent[Any, Any, Any]]:
        """The agents below it, each once for every place it stands at."""
        for tool in self.sub_agents:
            yield tool.agent
            yield from tool.agent.descendants()

    def _as_agent_tool(self, item: Agent[Any, Any, Any] | Tool[..., Any]) -> AgentTool:
        tool = item.as_tool() if isinstance(item, Agent) else item
        if not isinstance(tool, AgentTool):
            raise DefinitionError(f"agent {self.name!r}: sub_agents takes agents and agent.as_tool(…), not {item!r}")
        if tool.share_state and tool.agent.state_type is not self.state_type:
            raise DefinitionError(
                f"agent {self.name!r}: sub-agent {tool.agent.name!r} shares its state, so both need the same state_type"
            )
        return tool

    def _define_output(self) -> OutputDefinition:
        if self.output_mode not in get_args(OutputMode):
            hint = did_you_mean(self.output_mode, get_args(OutputMode))
            raise DefinitionError(f"agent {self.name!r}: there is no output_mode={self.output_mode!r}.{hint}")
        schema, strict, problem = self.output_schema.json_schema, None, ""
        try:
            strict = strict_schema(schema)
        except ValueError as error:
            problem = str(error)
        if problem and self.output_strict:
            raise DefinitionError(f"agent {self.name!r}: output_strict=True cannot be kept: {problem}")
        about = "The final result. Call it once, when everything is done."
        return OutputDefinition(OUTPUT_TOOL, about, schema, self.output_mode, strict, self.output_strict)

    def _reserved(self) -> tuple[str, ...]:
        return (OUTPUT_TOOL,) if self.output_schema.structured else ()

    def _check_cycle(self) -> None:
        for path in _paths(self, (self.name,)):
            if path[-1] in path[:-1]:
                raise DefinitionError(
                    f"child cycle: {' > '.join(path)}; an agent cannot stand below one of its own name. Give the inner "
                    "one another name, or start it from a tool with ctx.run_agent"
                )


@dataclass(slots=True, frozen=True, eq=False)
class AgentTool(Tool[..., Any]):
    """A sub-agent as a tool: its body is a run. Made by `Agent.as_tool`.

    Attributes:
        agent: whom it runs.
        prompt: turns the validated input into the child's first message; None: the text, or the input as JSON.
        share_state: whether the child works on its parent's document.
        limits: bounds for the child's subtree, over the agent's own.
    """

    agent: Agent[Any, Any, Any] = field(kw_only=True)
    prompt: Callable[[Any], str] | None = field(default=None, kw_only=True)
    share_state: bool = field(default=False, kw_only=True)
    limits: Limits | None = field(default=None, kw_only=True)
    input_schema: InputSchema = field(kw_only=True, repr=False)

    def validate(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The child's input, validated, as `{"input": …}`.

        Raises:
            ValueError: it does not fit; the message is meant for the model.
        """
        return {"input": self.input_schema.validate(arguments)}

    def message(self, arguments: dict[str, Any]) -> str:
        """The child's first message, for arguments that have been validated."""
        value = self.validate(arguments)["input"]
        if self.prompt is None:
            return as_text(value)
        text: Any = self.prompt(value)
        if not isinstance(text, str):
            raise TypeError(f"prompt= of agent {self.agent.name!r} must give a text, not {type(text).__name__}")
        return text


class InputSchema:
    """What a parent's model must give a child: one text, or a type."""

    def __init__(self, name: str, input_type: Any) -> None:
        self._plain = input_type is None
        try:
            self._adapter: TypeAdapter[Any] = TypeAdapter(str if input_type is None else input_type)
            inner = self._adapter.json_schema()
        except (PydanticSchemaGenerationError, PydanticUserError) as error:
            raise DefinitionError(f"agent {name!r}: input type {input_type!r}: {str(error).splitlines()[0]}") from None
        self._wrapped = inner.get("type") != "object"
        self.json_schema: dict[str, Any] = inner
        if self._wrapped:
            described = (
                {**inner, "description": "What to do, with everything it needs to know."} if self._plain else inner
            )
            definitions = {"$defs": described.pop("$defs")} if "$defs" in described else {}
            self.json_schema = {"type": "object", "properties": {"input": described}, "required": ["input"]}
            self.json_schema |= {"additionalProperties": False, **definitions}

    def validate(self, arguments: dict[str, Any]) -> Any:
        if self._wrapped and set(arguments) != {"input"}:
            raise ValueError("expected exactly one argument, `input`")
        return validated(self._adapter, arguments["input"] if self._wrapped else arguments)


def as_text(value: Any) -> str:
    """An input as a message: a text as it is, anything else as compact JSON."""
    return value if isinstance(value, str) else to_json(value, by_alias=False).decode()


def as_message(input: Any) -> UserMessage:
    """An input as a message: an image, audio, a file, or a list of texts and those as they are; else as `as_text`.

    Raises:
        ValueError: it has no JSON form, or something else stands beside an image, audio or a file.
    """
    content = to_content(input, where="input")
    return UserMessage(as_text(to_json_value(input, where="input")) if content is None else content)


def _not_called(*_: Any, **__: Any) -> Any:
    raise UsageError("a sub-agent is run by the executor, it cannot be called; use ctx.run_agent in a tool")


def _as_tool(item: Any) -> Tool[..., Any]:
    if isinstance(item, Agent):
        raise DefinitionError(f"{item!r} stands in tools; put it in sub_agents")
    return cast(Tool[..., Any], item) if isinstance(item, Tool) else make_tool(item)


def _check_types(agent: str, arguments: dict[str, Any]) -> None:
    for argument, (fits, wanted) in _TYPES.items():
        if not fits(arguments[argument]):
            raise DefinitionError(f"agent {agent!r}: {argument}= is to be {wanted}, not {arguments[argument]!r}")


def _is_model(value: Any) -> bool:
    return (
        value is None
        or isinstance(value, str)
        or (callable(getattr(value, "respond", None)) and not isinstance(value, type))
    )


def _is_instructions(value: Any) -> bool:
    if not callable(value):
        return isinstance(value, str)
    try:
        signature(value).bind(None)
    except TypeError:
        return False
    return True


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": (_is_model, "'provider:name' or a model object"),
    "description": (lambda value: isinstance(value, str), "a text"),
    "instructions": (_is_instructions, "a text, or a function of the context that gives one"),
    "tools": (_is_sequence, "a list"),
    "sub_agents": (_is_sequence, "a list"),
    "output_validators": (_is_sequence, "a list"),
    "limits": (lambda value: value is None or isinstance(value, Limits), "Limits(…)"),
    "settings": (lambda value: value is None or isinstance(value, ModelSettings), "ModelSettings(…)"),
    "output_retries": (lambda value: isinstance(value, int) and value >= 0, "a number from 0"),
}


def _as_validator(agent: str, function: Any) -> Callable[[Any, Any], Any]:
    """The function as one of the context and the output."""
    if not callable(function):
        raise DefinitionError(f"agent {agent!r}: an output validator is a function, not {function!r}")
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    parameters = signature(function).parameters.values()
    wanted = [p for p in parameters if p.default is p.empty and p.kind in positional]
    if len(wanted) not in (1, 2):
        problem = f"takes {len(wanted)} arguments, not (output) or (ctx, output)"
        raise DefinitionError(f"agent {agent!r}: the output validator {function!r} {problem}")
    return function if len(wanted) == 2 else lambda _, output: function(output)


def _by_name(agent: str, reserved: Sequence[str], tools: Sequence[Tool[..., Any]]) -> dict[str, Tool[..., Any]]:
    found: dict[str, Tool[..., Any]] = {}
    for tool in tools:
        if tool.name in reserved:
            raise DefinitionError(f"agent {agent!r}: the tool name {tool.name!r} is taken by its structured output")
        if tool.name in found:
            raise DefinitionError(f"agent {agent!r}: two tools are called {tool.name!r}; rename one with @tool(name=…)")
        found[tool.name] = tool
    return found


def _paths(agent: Agent[Any, Any, Any], above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for tool in agent.sub_agents:
        path = (*above, tool.agent.name)
        yield path
        yield from _paths(tool.agent, path)
