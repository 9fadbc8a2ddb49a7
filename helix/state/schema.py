"""The state type as the rest of helix knows it: the documents it starts with, and the objects it is read as.

Above `spec`, below `draft` and `mirror`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any, Generic, TypeVar, cast

from pydantic import TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation, PydanticUserError

from helix.errors import DefinitionError, StateError
from helix.state.spec import spec_of

StateT = TypeVar("StateT")


class StateSchema(Generic[StateT]):
    """A state type and its JSON form: field names (never aliases), bytes as base64, computed fields left out.

    `state_type` is a pydantic model, a stdlib dataclass, a TypedDict, or `NoneType`: no state, the document is None.

    Raises:
        DefinitionError: it is none of these, or pydantic has no schema for it.
    """

    def __init__(self, state_type: type[StateT]) -> None:
        self.state_type = state_type
        if state_type is NoneType:
            schema: Any = {"type": "none"}
        else:
            try:
                schema = TypeAdapter(state_type).core_schema
            except (PydanticUserError, PydanticUndefinedAnnotation, PydanticSchemaGenerationError, TypeError) as error:
                raise DefinitionError(f"the state type {self.name} cannot be used: {error}") from error
        self.spec = spec_of(schema)
        """What may stand where: for `Draft` alone."""
        if state_type is not NoneType and self.spec.kind != "record":
            raise DefinitionError(f"the state type {self.name} is not a pydantic model, a dataclass or a TypedDict")

    @property
    def name(self) -> str:
        """The type's name, for messages."""
        return getattr(self.state_type, "__name__", str(self.state_type))

    def check_defaults(self) -> None:
        """See that the state can be made without being given.

        Raises:
            DefinitionError: fields have no default, or one that the type itself refuses; names the type and the fields.
        """
        if self.state_type is NoneType:
            return
        missing = [name for name in self.spec.fields if self.spec.requires(name)]
        if missing:
            advice = "mark them NotRequired" if self.spec.is_typed_dict else "give them defaults"
            fields = ", ".join(missing)
            raise DefinitionError(f"the state type {self.name} has fields without defaults: {fields}; {advice}")
        try:
            self.load(self._default())
        except StateError as error:
            raise DefinitionError(f"the defaults of the state type {self.name} are not valid: {error}") from None

    def _default(self) -> Any:
        return self.spec.accept({} if self.spec.is_typed_dict else self.state_type(), ())

    def initial(self, value: StateT | Mapping[str, Any] | None = None) -> Any:
        """The document that a run starts with: of `value`, or default-constructed.

        Raises:
            StateError: `value` does not fit the type.
            DefinitionError: there is no value, and the type has fields without defaults.
        """
        if self.state_type is NoneType:
            if value is not None:
                raise StateError("this agent has no state_type; it cannot be given a state")
            return None
        if value is None:
            self.check_defaults()
            return self._default()
        return self.spec.accept(dict(cast(Mapping[str, Any], value)) if isinstance(value, Mapping) else value, ())

    def load(self, document: Any) -> StateT:
        """A fresh object of the state type; changing it changes nothing else.

        Raises:
            StateError: the document does not fit the type; says where.
        """
        return self.spec.load(document)
