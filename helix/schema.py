"""Output types: a JSON Schema for the model, validation of what it wrote, JSON for the log.

Floor 2: above `errors` and `chunks`; agents, steps and `partial_outputs` use it. All of the work is pydantic's.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Generic, TypeVar, cast

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic_core import from_json, to_json

from helix.chunks import to_json_value
from helix.errors import DefinitionError, ModelRetry

OutputT = TypeVar("OutputT")

WRAPPER = "result"
"""A type whose JSON is no object is asked for as `{"result": …}`, because providers want an object."""


class OutputSchema(Generic[OutputT]):
    """An output type, ready for use.

    Attributes:
        structured: whether the model is asked for JSON; false for `str`.
        json_schema: the JSON Schema to give to the model; always an object.
        wrapped: whether that object only wraps the type.
    """

    def __init__(self, output_type: Any) -> None:
        """Takes a pydantic model, dataclass, TypedDict, list, union, …: whatever pydantic has a JSON Schema for.

        Raises:
            DefinitionError: the type has no schema.
        """
        self.structured = output_type is not str
        try:
            self._adapter: TypeAdapter[OutputT] = TypeAdapter(output_type)
            schema = self._adapter.json_schema(mode="validation")
        except (PydanticSchemaGenerationError, PydanticInvalidForJsonSchema, PydanticUserError, NameError) as error:
            raise DefinitionError(
                f"output type {output_type!r} has no JSON Schema; use a pydantic model, a dataclass, a TypedDict, "
                f"or lists and unions of them ({str(error).splitlines()[0]})"
            ) from None
        schema = _without_root_reference(schema)
        self.wrapped = schema.get("type") != "object"
        self.json_schema: dict[str, Any] = _wrap(schema) if self.wrapped else schema

    def validate_text(self, text: str) -> OutputT:
        """The output that a JSON text gives, wrapped or not.

        Raises:
            ValueError: it is not JSON, or not of the type; the message is meant for the model.
        """
        try:
            value = from_json(text)
        except ValueError as error:
            raise ValueError(f"not valid JSON: {error}") from None
        return self.validate(value)

    def validate(self, value: Any) -> OutputT:
        """The output that parsed JSON gives, wrapped or not.

        Raises:
            ValueError: it is not of the type; the message is meant for the model.
        """
        if self.wrapped and isinstance(value, dict) and set(cast(dict[str, Any], value)) == {WRAPPER}:
            try:
                return self.load(cast(dict[str, Any], value)[WRAPPER])
            except ValueError:
                with suppress(ValueError):  # a type of the user's own may look like the wrapper
                    return self.load(value)
                raise
        return self.load(value)

    def load(self, value: Any) -> OutputT:
        """The output that its own JSON gives, never wrapped.

        Raises:
            ValueError: it is not of the type; the message is meant for the model.
        """
        return validated(self._adapter, value)

    def check(self, output: Any) -> OutputT:
        """What a validator gave for an output.

        Raises:
            TypeError: it is not of the type.
        """
        try:
            return self._adapter.validate_python(output)
        except ValidationError as error:
            raise TypeError(f"an output validator gave what is no output: {explain(error)}") from None

    def to_json(self, output: OutputT) -> Any:
        """The output as JSON data.

        Raises:
            ValueError: it has no JSON form.
        """
        return to_json_value(self._adapter.dump_python(output, mode="json", by_alias=False), where="output")


def is_json(text: str) -> bool:
    """Whether the text is JSON, whatever its type."""
    try:
        from_json(text)
    except ValueError:
        return False
    return True


def validated(adapter: TypeAdapter[Any], value: Any) -> Any:
    """JSON data as a value of the adapter's type, by alias or by field name.

    Raises:
        ValueError: it does not fit, or a validator of the user's own raised; the message is meant for the model.
    """
    try:
        return adapter.validate_json(to_json(value), by_alias=True, by_name=True)
    except ValidationError as error:
        raise ValueError(explain(error)) from None
    except ModelRetry as error:
        raise ValueError(str(error)) from None
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def explain(error: ValidationError) -> str:
    """What pydantic found wrong, one line a problem, for a model to read: no input values, no links."""
    lines = [
        f"{'.'.join(str(part) for part in problem['loc']) or 'value'}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    return "\n".join(lines)


def _without_root_reference(schema: dict[str, Any]) -> dict[str, Any]:
    """A recursive type is only a reference to its definition; providers want the object itself at the root."""
    reference = schema.get("$ref")
    if not isinstance(reference, str):
        return schema
    return {**schema["$defs"][reference.rpartition("/")[2]], "$defs": schema["$defs"]}


def _wrap(schema: dict[str, Any]) -> dict[str, Any]:
    inner = {key: value for key, value in schema.items() if key != "$defs"}
    wrapped: dict[str, Any] = {
        "type": "object",
        "properties": {WRAPPER: inner},
        "required": [WRAPPER],
        "additionalProperties": False,
    }
    if "$defs" in schema:
        wrapped["$defs"] = schema["$defs"]
    return wrapped
