"""Typed state as a JSON document: drafts that become RFC 6902 patches, and mirrors that fold patches back.

Floor 2: above `chunks` and `errors`, below the loop. Synchronous and without I/O. From top to bottom: what may
stand where (`StateSchema`, read off pydantic's core schema); what one block wants to change (`Draft`: an overlay over
the live document, whose cost follows what was touched and not what is there), the proxies that a user holds of it, and
its rendering as operations; and applying those (`apply_patches`, `StateMirror`).
"""

from __future__ import annotations

import base64
import copy
from bisect import bisect
from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    MutableSequence,
    MutableSet,
    Sequence,
)
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import cached_property
from inspect import getattr_static
from operator import is_
from sys import maxsize
from types import NoneType
from typing import Any, Generic, TypeAlias, TypeVar, cast

from jsonpatch import JsonPatch, JsonPatchException  # pyright: ignore[reportMissingTypeStubs]
from jsonpointer import JsonPointerException  # pyright: ignore[reportMissingTypeStubs]
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation, PydanticUserError
from pydantic_core import (
    PydanticSerializationError,
    SchemaSerializer,
    SchemaValidator,
    to_json,
    to_jsonable_python,
)

from helix.chunks import Patch, RunStart, StatePatch, to_json_value
from helix.errors import DefinitionError, InvalidPatch, StateError, UsageError, did_you_mean

StateT = TypeVar("StateT")
_S = TypeVar("_S")
_Schema: TypeAlias = dict[str, Any]
_Path: TypeAlias = tuple[str, ...]


class _Gone:
    """The mark of a member that is not there."""


_GONE: Any = _Gone()


def _pointer(path: _Path) -> str:
    return "".join("/" + token.replace("~", "~0").replace("/", "~1") for token in path)


def _tokens(pointer: str) -> _Path:
    return tuple(token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:])


def _same(a: Any, b: Any) -> bool:
    """Equal as JSON, strictly: `true` is not `1`, and `1` is not `1.0`: what was written is what stands there."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        mine, theirs = cast(dict[str, Any], a), cast(dict[str, Any], b)
        return len(mine) == len(theirs) and all(key in theirs and _same(mine[key], theirs[key]) for key in mine)
    if isinstance(a, list):
        return len(cast(list[Any], a)) == len(b) and all(map(_same, cast(list[Any], a), b))
    return a == b


# ---------------------------------------------------------------------------------------------------------------------
# What may stand where


class _World:
    """What the specs of one state type share: pydantic's definitions, and how bytes are written."""

    def __init__(self, schema: _Schema) -> None:
        self.definitions: dict[str, _Schema] = {}
        self.specs: dict[int, _Spec] = {}
        self.has_bytes = _mentions_bytes(schema, set())
        if self.has_bytes:
            schema = _with_base64(schema)
        if schema["type"] == "definitions":
            self.definitions = {entry["ref"]: entry for entry in schema["definitions"]}
            schema = schema["schema"]
        self.root = self.spec(schema, {})

    def spec(self, schema: _Schema, config: _Schema) -> _Spec:
        """The one spec of `schema`, which this world keeps alive, so that its id stays its own."""
        found = self.specs.get(id(schema))
        if found is None:
            found = self.specs[id(schema)] = _Spec(schema, config, self)
        return found

    def core(self, schema: _Schema) -> Any:
        if not self.definitions:
            return schema
        return {"type": "definitions", "schema": schema, "definitions": list(self.definitions.values())}

    @property
    def options(self) -> dict[str, Any]:
        # Bytes inside a user's class follow that class's own config (UTF-8) unless its validator is built anew.
        return {"_use_prebuilt": False} if self.has_bytes else {}


_BASE64 = {"val_json_bytes": "base64", "ser_json_bytes": "base64"}


def _encode_bytes(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _mentions_bytes(schema: Any, seen: set[int]) -> bool:
    if id(schema) in seen:
        return False
    seen.add(id(schema))
    if isinstance(schema, dict):
        parts = cast(_Schema, schema)
        return parts.get("type") == "bytes" or any(_mentions_bytes(part, seen) for part in parts.values())
    return isinstance(schema, list) and any(_mentions_bytes(part, seen) for part in cast(list[Any], schema))


def _with_base64(schema: Any) -> Any:
    """A copy of the core schema in which bytes are base64 in JSON, as everywhere in helix."""
    if isinstance(schema, list):
        return [_with_base64(part) for part in cast(list[Any], schema)]
    if not isinstance(schema, dict):
        return schema
    changed = {key: _with_base64(part) for key, part in cast(_Schema, schema).items()}
    if changed.get("type") in ("model", "dataclass", "typed-dict"):
        changed["config"] = {**(changed.get("config") or {}), **_BASE64}
    if changed.get("type") == "bytes":
        encode = {"type": "function-plain", "function": _encode_bytes, "when_used": "json"}
        changed = {"serialization": encode, **changed}
    return changed


_WRAPPERS = {
    "default": "schema",
    "nullable": "schema",
    "function-before": "schema",
    "function-after": "schema",
    "function-wrap": "schema",
    "json-or-python": "json_schema",
    "lax-or-strict": "lax_schema",
}
_RECORDS = ("model", "dataclass", "typed-dict")
_KINDS = {"list": "list", "dict": "dict", "set": "set", "any": "any", "union": "union", "tagged-union": "union"}
_PLAIN = {"str": str, "int": int, "bool": bool, "float": float}


class _Spec:
    """What may stand at one place: a record, a list, a dict, a set, or a leaf that is read and written whole."""

    def __init__(self, schema: _Schema, config: _Schema, world: _World) -> None:
        self.schema = schema
        self.config = config
        self.world = world
        self.core = self._unwrapped(schema)
        self.kind = self._kind()

    def _unwrapped(self, schema: _Schema) -> _Schema:
        while True:
            if schema["type"] in _WRAPPERS:
                schema = schema[_WRAPPERS[schema["type"]]]
            elif schema["type"] == "definition-ref":
                schema = self.world.definitions[schema["schema_ref"]]
            else:
                return schema

    def _kind(self) -> str:
        if self.core["type"] in _RECORDS and not self.core.get("root_model"):
            return "record"
        return _KINDS.get(self.core["type"], "leaf")

    @cached_property
    def validator(self) -> SchemaValidator:
        config: Any = {**self.config, **_BASE64}
        return SchemaValidator(self.world.core(self.schema), config, **self.world.options)

    @cached_property
    def serializer(self) -> SchemaSerializer:
        config: Any = {**self.config, **_BASE64}
        return SchemaSerializer(self.world.core(self.schema), config, **self.world.options)

    # What comes in and goes out

    def accept(self, value: Any, path: _Path) -> Any:
        """`value` as JSON, if the type allows it. The result shares nothing with `value`."""
        where = _pointer(path) or "state"
        try:
            valid = self.validator.validate_python(_unwrap(value), by_alias=True, by_name=True)
            raw = to_json_value(self._dump(valid), where=where)
            if type(raw) in (dict, list):  # an instance is not validated again by pydantic: see that it loads
                self._parse(raw)
        except ValidationError as error:
            raise StateError(f"{where}: {_first(error)}") from None
        except (PydanticSerializationError, ValueError) as error:
            raise StateError(f"{where}: {error}") from None
        return raw

    def _dump(self, value: Any) -> Any:
        # No warnings: what does not fit its type is found when it is parsed again.
        return self.serializer.to_python(
            value, mode="json", by_alias=False, exclude_computed_fields=True, warnings="none", fallback=_part
        )

    def _parse(self, raw: Any) -> Any:
        return self.validator.validate_json(to_json(raw), by_alias=True, by_name=True)

    def load(self, raw: Any, path: _Path = ()) -> Any:
        """`raw` as a fresh Python value of the declared type."""
        if type(raw) is _PLAIN.get(self.schema["type"]):
            return raw
        try:
            return self._parse(raw)
        except ValidationError as error:
            raise StateError(f"{_pointer(path) or 'state'}: {_first(error)}") from None

    # What is inside

    def container(self, raw: Any) -> _Spec | None:
        """The spec by which the inside of `raw` can be drafted, or None when it is read and written whole."""
        if self.kind == "any":
            return _ANY_DICT if type(raw) is dict else _ANY_LIST if type(raw) is list else None
        if self.kind == "union":
            return self._chosen(raw) if type(raw) in (dict, list) else None
        if type(raw) is dict:
            return self if self.kind in ("record", "dict") else None
        return self if type(raw) is list and self.kind in ("list", "set") else None

    def _chosen(self, raw: Any) -> _Spec | None:
        inside = [spec for choice in self._choices if (spec := choice.container(raw)) is not None]
        if len(inside) > 1:
            loaded = self.load(raw)
            inside = [spec for spec in inside if spec.made(loaded) and spec.allows(raw)]
        return inside[0] if inside else None

    @cached_property
    def _choices(self) -> list[_Spec]:
        choices: Any = self.core["choices"]
        tagged = self.core["type"] == "tagged-union"
        listed: list[Any] = list(choices.values()) if tagged else list(choices)
        schemas = [cast(_Schema, item[0] if isinstance(item, tuple) else item) for item in listed]
        return [self.world.spec(schema, self.config) for schema in schemas]

    def made(self, value: object) -> bool:
        """Is `value` of just the type that is loaded here?"""
        return type(value) is self.python_type

    def allows(self, raw: Any) -> bool:
        try:
            self._parse(raw)
        except ValidationError:
            return False
        return True

    @property
    def python_type(self) -> type[Any]:
        """What `isinstance` may expect of a value."""
        if self.kind == "record" and self.core["type"] != "typed-dict":
            return self.core["cls"]
        return {"list": list, "set": set}.get(self.kind, dict)

    @cached_property
    def fields(self) -> dict[str, _Schema]:
        """A record's fields by name."""
        core = self.core
        while "fields" not in core or core["type"] in ("model", "dataclass"):
            core = self._unwrapped(core["schema"])
        listed: Any = core["fields"]
        return {entry["name"]: entry for entry in listed} if core["type"] == "dataclass-args" else listed

    @cached_property
    def _inner_config(self) -> _Schema:
        return self.core.get("config") or self.config

    def at(self, key: str) -> _Spec:
        """The spec of a member. Only for keys that `check_key` lets pass."""
        if self.kind == "record":
            entry = self.fields.get(key)
            return _ANY if entry is None else self.world.spec(entry["schema"], self._inner_config)
        values = self.core.get("values_schema")
        return self.world.spec(values, self.config) if values else _ANY

    @cached_property
    def items(self) -> _Spec:
        inner = self.core.get("items_schema")
        return self.world.spec(inner, self.config) if inner else _ANY

    @cached_property
    def keys(self) -> _Spec | None:
        """The spec of a dict's keys, or None when they are plain texts."""
        inner = self.core.get("keys_schema") if self.kind == "dict" else None
        return None if not inner or inner == {"type": "str"} else self.world.spec(inner, self.config)

    def key_in(self, key: Any, path: _Path) -> str:
        if self.keys is None:
            if type(key) is str:
                return key
            if not isinstance(key, str):
                raise StateError(f"{_pointer(path) or 'state'}: the key {key!r} is not a text")
            return str(key)
        try:
            valid = self.keys.validator.validate_python(key)
        except ValidationError as error:
            raise StateError(f"{_pointer(path)}: the key {key!r}: {_first(error)}") from None
        return str(next(iter(to_jsonable_python({valid: None}))))

    def key_out(self, key: str) -> Any:
        return key if self.keys is None else self.keys.validator.validate_python(key)

    def check_key(self, key: str, path: _Path) -> None:
        """May `key` be written?"""
        if self.kind != "record":
            return
        entry = self.fields.get(key)
        name = f"{self.python_type.__name__}.{key}" if self.core["type"] != "typed-dict" else repr(key)
        if entry is None and self._inner_config.get("extra_fields_behavior") != "allow":
            raise StateError(f"{_pointer(path) or 'state'}: there is no field {name}.{did_you_mean(key, self.fields)}")
        if (entry or {}).get("frozen") or _is_frozen(self.python_type):
            raise StateError(f"{_pointer((*path, key))}: {name} is frozen")

    def check_removable(self, key: str, path: _Path) -> None:
        self.check_key(key, path)
        if self.kind == "record" and self.requires(key):
            raise StateError(f"{_pointer((*path, key))}: a required field cannot be deleted")

    def requires(self, key: str) -> bool:
        entry = self.fields.get(key)
        if entry is None:
            return False
        if entry["type"] == "typed-dict-field":
            return bool(entry.get("required", True))
        return entry["schema"]["type"] != "default"

    def default(self, key: str) -> Any:
        """What a record's field is, as JSON, while the document does not have it; `_GONE` when it has no default."""
        if self.kind != "record" or key not in self.fields:
            return _GONE
        value = self.at(key).validator.get_default_value()
        return _GONE if value is None else self.at(key).accept(value.value, (key,))

    def check_size(self, size: int, path: _Path) -> None:
        if not self.fits(size):
            least, most = self.core.get("min_length"), self.core.get("max_length")
            bound = f"at most {most}" if most is not None and size > most else f"at least {least}"
            raise StateError(f"{_pointer(path)}: expected {bound} items, not {size}")

    @cached_property
    def bounded(self) -> bool:
        """May there be too many or too few members?"""
        return self.kind != "record" and ("min_length" in self.core or "max_length" in self.core)

    def fits(self, size: int) -> bool:
        least, most = self.core.get("min_length"), self.core.get("max_length")
        return (least is None or size >= least) and (most is None or size <= most)


def _is_frozen(cls: type[Any]) -> bool:
    parameters, config = getattr(cls, "__dataclass_params__", None), getattr(cls, "model_config", {})
    return getattr(parameters, "frozen", False) or bool(config.get("frozen"))


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    inside = "".join(f"/{part}" for part in first["loc"])
    return f"{inside + ': ' if inside else ''}{first['msg']} (got {_short(first['input'])})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_ANY_WORLD = _World({"type": "any"})
_ANY = _ANY_WORLD.root
_ANY_DICT = _ANY_WORLD.spec({"type": "dict", "keys_schema": {"type": "str"}}, {})
_ANY_LIST = _ANY_WORLD.spec({"type": "list"}, {})


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
        self.spec: Any = _World(schema).root  # Any: for `Draft` alone
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
            a_typed_dict = self.spec.core["type"] == "typed-dict"
            advice = "mark them NotRequired" if a_typed_dict else "give them defaults"
            fields = ", ".join(missing)
            raise DefinitionError(f"the state type {self.name} has fields without defaults: {fields}; {advice}")
        try:
            self.load(self._default())
        except StateError as error:
            raise DefinitionError(f"the defaults of the state type {self.name} are not valid: {error}") from None

    def _default(self) -> Any:
        return self.spec.accept({} if self.spec.core["type"] == "typed-dict" else self.state_type(), ())

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


# ---------------------------------------------------------------------------------------------------------------------
# What one block wants to change: an overlay over the live document


class _Node:
    """What a draft has touched of one container of the document.

    `base` is the container itself, not a copy: it shows what others write meanwhile. Own writes lie over it, so that
    nothing is copied that is not touched, and throwing the draft away is forgetting it.
    """

    __slots__ = ("__weakref__", "base", "hint", "path", "proxy", "session", "spec")

    def __init__(self, spec: _Spec, base: Any, path: _Path, session: _Session) -> None:
        self.spec = spec
        self.base = base
        self.path = path
        self.session = session
        self.hint = 0
        self.proxy: Any = _PROXIES[spec.kind if spec.core["type"] != "typed-dict" else "dict"](self)

    def changed(self) -> bool:
        """Is anything written, here or below?"""
        raise NotImplementedError

    def plain(self) -> Any:
        """The container as this draft sees it, as JSON of its own."""
        raise NotImplementedError

    def render(self, live: Any, path: _Path, out: _Rendering) -> None:
        """Writes the operations that bring what was changed into `live`, which stands at `path`."""
        raise NotImplementedError

    def value(self) -> Any:
        """The container as a fresh Python value of its declared type."""
        return self.spec.load(self.plain(), self.path)

    def make(self, spec: _Spec, raw: Any, key: str) -> _Node | None:
        inside = spec.container(raw)
        return None if inside is None else _NODES[inside.kind](inside, raw, (*self.path, key), self.session)


class _Object(_Node):
    """A record or a dict: what was written, by key, and the members that were looked into."""

    __slots__ = ("children", "written")

    def __init__(self, spec: _Spec, base: Any, path: _Path, session: _Session) -> None:
        super().__init__(spec, base, path, session)
        self.written: dict[str, Any] = {}
        self.children: dict[str, _Node] = {}

    def raw(self, key: str) -> Any:
        return self.written[key] if key in self.written else self.base.get(key, _GONE)

    def has(self, key: str) -> bool:
        return self.raw(key) is not _GONE or self._filled(key)

    def _filled(self, key: str) -> bool:
        """Was a default, which the document does not have, looked into and changed?"""
        child = self.children.get(key)
        return child is not None and child.changed()

    def names(self) -> list[str]:
        present = [key for key in list(self.base) if self.has(key)]
        own = dict.fromkeys((*self.written, *self.children))
        return present + [key for key in own if key not in self.base and self.has(key)]

    def child(self, key: str) -> _Node | None:
        """The member's node, when it is a container that can be drafted."""
        raw, known = self.raw(key), self.children.get(key)
        if known is not None and (known.base is raw or raw is _GONE or known.changed()):
            return known
        if known is not None and self.spec.at(key).container(raw) is known.spec:
            known.base = raw  # others replaced the container: whoever holds the proxy goes on with the new one
            return known
        raw = self.spec.default(key) if raw is _GONE else raw
        made = self.make(self.spec.at(key), raw, key)
        if made is not None:
            self.children[key] = made
        return made

    def get(self, key: str) -> Any:
        """The member as a user reads it: a proxy, or a value; `_GONE` when there is none."""
        child = self.child(key)
        if child is not None:
            return child.proxy
        raw = self.raw(key)
        raw = self.spec.default(key) if raw is _GONE else raw
        return _GONE if raw is _GONE else self.spec.at(key).load(raw, (*self.path, key))

    def merge(self, values: Mapping[str, Any]) -> None:
        """Writes all of the members or, when one is not valid, none."""
        for key in values:
            self.spec.check_key(key, self.path)
        raws = {key: self.spec.at(key).accept(value, (*self.path, key)) for key, value in values.items()}
        self._check_size(sum(not self.has(key) for key in raws))
        for key, raw in raws.items():
            self.children.pop(key, None)
            self.written[key] = raw

    def set(self, key: str, value: Any) -> None:
        child = self.children.get(key)
        if child is None or value is not child.proxy:  # `draft.items += [...]` ends by assigning what it has changed
            self.merge({key: value})

    def drop(self, keys: Sequence[str]) -> None:
        """Removes all of the members or, when one has to stay, none."""
        for key in keys:
            self.spec.check_removable(key, self.path)
        self._check_size(-len(keys))
        for key in keys:
            self.children.pop(key, None)
            self.written[key] = _GONE

    def _check_size(self, more: int) -> None:
        if more and self.spec.bounded:
            self.spec.check_size(len(self.names()) + more, self.path)

    def take(self, key: str) -> Any:
        """Removes a member and gives its value."""
        value = self.spec.at(key).load(self.member(key), (*self.path, key))
        self.drop([key])
        return value

    def member(self, key: str) -> Any:
        """The member as JSON of its own, or `_GONE`."""
        child, raw = self.children.get(key), self.raw(key)
        if child is not None and (child.changed() or child.base is raw):
            return child.plain()
        return copy.deepcopy(raw) if raw is not _GONE else _GONE

    def changed(self) -> bool:
        return bool(self.written) or any(child.changed() for child in self.children.values())

    def plain(self) -> Any:
        return {key: self.member(key) for key in self.names()}

    def render(self, live: Any, path: _Path, out: _Rendering) -> None:
        size = len(live)
        for key in dict.fromkeys((*self.written, *self.children)):
            target, place, child = live.get(key, _GONE), (*path, key), self.children.get(key)
            if key not in self.written:
                if child is None or not child.changed():
                    continue
                if self.spec.at(key).container(target) is child.spec:
                    child.render(target, place, out)
                    continue
            value = self.member(key)
            grown = size + (value is not _GONE) - (target is not _GONE)
            if grown != size and self.spec.bounded and not self.spec.fits(grown):
                out.conflict(place)  # others have filled (or emptied) the dict: what they wrote stays valid
            else:
                size = grown
                out.write(place, target, value)


class _List(_Node):
    """A list. Appends and changes inside items lie over the live list; an edit by index takes the list's references.

    Until the first edit by index the list is `base` and then `tail`. From then on it is `own`, and `origin` says for
    each item of it where in `pinned`, the list as it was then, it came from: an index, or `~index` for a value that was
    put in the place of that item, or None for a new one.
    """

    __slots__ = ("children", "origin", "own", "pinned", "tail")

    def __init__(self, spec: _Spec, base: Any, path: _Path, session: _Session) -> None:
        super().__init__(spec, base, path, session)
        self.tail: list[Any] = []
        self.own: list[Any] | None = None
        self.origin: list[int | None] = []
        self.pinned: list[Any] = []
        self.children: dict[int, _Node] = {}  # by id of the item, which its node keeps alive: a node follows its item

    def size(self) -> int:
        return len(self.base) + len(self.tail) if self.own is None else len(self.own)

    def raws(self) -> list[Any]:
        return [*self.base, *self.tail] if self.own is None else list(self.own)

    def raw(self, index: int) -> Any:
        if self.own is not None:
            return self.own[index]
        length = len(self.base)
        return self.base[index] if index < length else self.tail[index - length]

    def child(self, index: int) -> _Node | None:
        raw = self.raw(index)
        known = self.children.get(id(raw))
        if known is None and type(raw) in (dict, list):
            known = self.make(self.spec.items, raw, str(index))
            if known is not None:
                known.hint = index
                self.children[id(raw)] = known
        return known

    def get(self, index: int) -> Any:
        child = self.child(index)
        if child is not None:
            return child.proxy
        return self.spec.items.load(self.raw(index), (*self.path, str(index)))

    def member(self, raw: Any) -> Any:
        child = self.children.get(id(raw))
        return child.plain() if child is not None else copy.deepcopy(raw)

    def accept(self, value: Any, index: int) -> Any:
        return self.spec.items.accept(value, (*self.path, str(index)))

    def set(self, index: int, value: Any) -> None:
        raw = self.raw(index)
        known = self.children.get(id(raw))
        if known is None or value is not known.proxy:
            fresh = self.accept(value, index)
            if not _same(self.member(raw), fresh):
                self.splice(index, index + 1, [fresh])

    def extend(self, values: Iterable[Any]) -> None:
        """All of them or, when one is not valid, none."""
        start = self.size()
        raws = [self.accept(value, start + n) for n, value in enumerate(values)]
        self.spec.check_size(start + len(raws), self.path)
        if self.own is None:
            self.tail.extend(raws)
        else:
            self.own.extend(raws)
            self.origin.extend([None] * len(raws))

    def splice(self, start: int, stop: int, raws: list[Any]) -> None:
        self.spec.check_size(self.size() - (stop - start) + len(raws), self.path)
        live = len(self.base)
        if self.own is None and start >= live:  # among its own appends: the live list is not concerned
            for gone in self.tail[start - live : stop - live]:
                self.children.pop(id(gone), None)
            self.tail[start - live : stop - live] = raws
            return
        self._pin()[start:stop] = raws
        over = self.origin[start:stop][: len(raws)]
        replaced = [origin if origin is None or origin < 0 else ~origin for origin in over]
        self.origin[start:stop] = [*replaced, *([None] * (len(raws) - len(replaced)))]

    def keep(self, order: Sequence[int]) -> None:
        """Leaves the items of these indices, in this order."""
        if list(order) != list(range(self.size())):
            self.spec.check_size(len(order), self.path)
            own, origin = self._pin(), self.origin
            self.own, self.origin = [own[index] for index in order], [origin[index] for index in order]

    def _pin(self) -> list[Any]:
        if self.own is None:
            self.pinned = list(self.base)
            self.own = [*self.pinned, *self.tail]
            self.origin = [*range(len(self.pinned)), *([None] * len(self.tail))]
            self.tail = []
        return self.own

    def changed(self) -> bool:
        return self.own is not None or bool(self.tail) or any(child.changed() for child in self.children.values())

    def plain(self) -> Any:
        return [self.member(raw) for raw in self.raws()]

    def render(self, live: Any, path: _Path, out: _Rendering) -> None:
        if self.own is not None:
            self._render_edits(self.own, live, path, out)
            return
        size = len(live)
        fresh = {id(raw) for raw in self.tail}
        touched = [child for key, child in self.children.items() if key not in fresh and child.changed()]
        for child, index in self._located(touched, live, path, out):
            if index is None:  # others removed the item that this draft changed: it comes back as this draft has it
                out.add((*path, str(min(child.hint, size))), child.plain(), conflict=True)
                size += 1
            else:
                out.enter(child, self.spec.items, live[index], (*path, str(index)))
        for raw in self.tail:
            if not self.spec.fits(size + 1):
                out.conflict(path)  # others have filled the list meanwhile
                break
            out.add((*path, str(size)), self.member(raw))
            size += 1

    def _located(
        self, touched: list[_Node], live: list[Any], path: _Path, out: _Rendering
    ) -> list[tuple[_Node, int | None]]:
        """Where the items are now, those that others removed last: items move, and take their identity with them."""
        if all(child.hint < len(live) and live[child.hint] is child.base for child in touched):
            return [(child, child.hint) for child in touched]
        in_place = out.footprint.keeps_places(path)
        places = {id(raw): index for index, raw in enumerate(self.base)}
        where = _align(self.base, live, positional=in_place)

        def place(child: _Node) -> int | None:
            index = places.get(id(child.base))
            if index is not None:
                return where[index]
            return child.hint if in_place and child.hint < len(live) else None  # others replaced the item

        found = [(child, place(child)) for child in touched]
        return sorted(found, key=lambda entry: entry[1] is None)

    def _render_edits(self, own: list[Any], live: list[Any], path: _Path, out: _Rendering) -> None:
        in_place = out.footprint.keeps_places(path)
        merge = _Merge(self, own, live, _align(self.pinned, live, positional=in_place))
        shifted = not in_place
        overfull = not self.spec.fits(merge.size)  # together with what others did it would be too long or too short
        edits = None if overfull else merge.edits()
        if edits is None or len(edits) > max(1, merge.size):
            out.write(path, live, self.plain() if overfull else merge.whole())
        else:
            merge.enter_items(path, out)
            for op, index, _, value in edits:
                out.emit(op, (*path, str(index)), value)
            shifted = bool(edits) and (shifted or self._meets_others(edits, path, out))
        if shifted or overfull or merge.moved:
            out.conflict(path)

    def _meets_others(self, edits: list[_Edit], path: _Path, out: _Rendering) -> bool:
        """Notes conflicts of single items; and does the list as a whole conflict?"""
        for op, index, before, _ in edits:
            if op == "replace" and out.footprint.covers((*path, str(before))):
                out.conflict((*path, str(index)))
        return any(op != "replace" for op, *_ in edits) and out.footprint.edited(path)


class _Merge:
    """An edited list, and the same list as others have it now, made one.

    `where` says for each item of the pinned list where it is in the live one; None: others removed it.
    """

    def __init__(self, node: _List, own: list[Any], live: list[Any], where: list[int | None]) -> None:
        self.node = node
        self.own = own
        self.live = live
        self.where = where
        self.moved = where != list(range(len(live)))
        self.slots = list(map(self._slot, own, node.origin)) if self.moved else node.origin
        self.size = len(own) - self.slots.count(_LOST) + len(live) - len(where) + where.count(None)

    def _slot(self, raw: Any, origin: int | None) -> int | None:
        """As `origin`, but by the live list's indices; `_LOST` when others removed the item, and it is left out."""
        if origin is None:
            return None
        index = self.where[_place(origin)]
        if index is not None:
            return index if origin >= 0 else ~index
        child = self.node.children.get(id(raw))
        return None if origin < 0 or (child is not None and child.changed()) else _LOST

    def whole(self) -> list[Any]:
        """The merged list: this draft's order, and behind it what only others have."""
        mine = [self.node.member(raw) for raw, slot in zip(self.own, self.slots, strict=True) if slot != _LOST]
        matched = set(self.where)
        theirs = [copy.deepcopy(raw) for index, raw in enumerate(self.live) if index not in matched]
        return mine + theirs

    def enter_items(self, path: _Path, out: _Rendering) -> None:
        if not self.node.children:
            return
        for raw, slot in zip(self.own, self.slots, strict=True):
            child = self.node.children.get(id(raw))
            if child is not None and slot is not None and 0 <= slot < _LOST and child.changed():
                out.enter(child, self.node.spec.items, self.live[slot], (*path, str(slot)))

    def edits(self) -> list[_Edit] | None:
        """The edits between each two kept items, from left to right; None when the order of the kept ones changed."""
        kept = {_place(slot) for slot in self.slots if slot is not None}
        dropped = sorted(index for index in self.where if index is not None and index not in kept)
        edits, fresh, last, end = _Edits(), list[Any](), -1, len(self.live)
        for raw, slot in zip([*self.own, None], [*self.slots, end], strict=True):
            if slot is None:
                fresh.append(self.node.member(raw))
            elif slot != _LOST:
                place = _place(slot)
                if place <= last:
                    return None
                if fresh or place != last + 1:
                    gap = dropped[bisect(dropped, last) : bisect(dropped, place - 1)]
                    edits.gap(fresh, gap, end if place == end else last + 1)
                    fresh = []
                if slot < 0:
                    edits.replace(place, self.node.member(raw))
                last = place
        return edits.ops


_LOST = maxsize


def _place(slot: int) -> int:
    return slot if slot >= 0 else ~slot


_Edit: TypeAlias = tuple[str, int, int, Any]
"""Operation, index, the index as it was before all edits, value."""


class _Edits:
    """Operations on one list, written from left to right."""

    def __init__(self) -> None:
        self.ops: list[_Edit] = []
        self.shift = 0  # how many items more there are by now, left of here

    def replace(self, place: int, value: Any) -> None:
        self.ops.append(("replace", place + self.shift, place, value))

    def gap(self, fresh: list[Any], dropped: list[int], at: int) -> None:
        """Between two kept items: `dropped` go, and `fresh` come in at `at`."""
        middle = bisect(dropped, at - 1)
        self._remove(dropped[:middle])
        for value in fresh:
            self.ops.append(("add", at + self.shift, at, value))
            self.shift += 1
        self._remove(dropped[middle:])

    def _remove(self, places: list[int]) -> None:
        for place in places:
            self.ops.append(("remove", place + self.shift, place, _GONE))
            self.shift -= 1


def _align(old: list[Any], new: list[Any], *, positional: bool) -> list[int | None]:
    """For each item of `old` its index in `new`; None when it is not there any more."""
    if len(old) == len(new) and (positional or all(map(is_, old, new))):
        return list(range(len(old)))
    a, b = _marks(old, new)
    start = 0
    while start < min(len(a), len(b)) and a[start] == b[start]:
        start += 1
    end = 0
    while end < min(len(a), len(b)) - start and a[-1 - end] == b[-1 - end]:
        end += 1
    where: list[int | None] = [*range(start), *([None] * (len(a) - start))]
    for n in range(end):
        where[len(a) - 1 - n] = len(b) - 1 - n
    matcher = SequenceMatcher(None, a[start : len(a) - end], b[start : len(b) - end])
    for i, j, size in matcher.get_matching_blocks():
        for n in range(size):
            where[start + i + n] = start + j + n
    _match_moved(where, a, b)
    return where


def _match_moved(where: list[int | None], old: list[Any], new: list[Any]) -> None:
    """What has no place in order yet may stand elsewhere: others sorted the list."""
    matched = set(where)
    spare: dict[Any, list[int]] = {}
    for index in reversed(range(len(new))):
        if index not in matched:
            spare.setdefault(new[index], []).append(index)
    for index, mark in enumerate(old):
        if where[index] is None and spare.get(mark):
            where[index] = spare[mark].pop()


def _marks(old: list[Any], new: list[Any]) -> tuple[list[Any], list[Any]]:
    """Hashable marks by which items are recognised: containers by identity, or by content when `new` is a copy."""
    mine = {id(raw) for raw in old if type(raw) in (dict, list)}
    moved = not mine or any(id(raw) in mine for raw in new)

    def mark(raw: Any) -> Any:
        if moved and type(raw) in (dict, list):
            return ("at", id(raw))
        return _mark(raw)

    return [mark(raw) for raw in old], [mark(raw) for raw in new]


def _mark(raw: Any) -> Any:
    """Equal for values that are equal as JSON."""
    if isinstance(raw, dict):
        return ("dict", frozenset((key, _mark(value)) for key, value in cast(dict[str, Any], raw).items()))
    if isinstance(raw, list):
        return ("list", tuple(map(_mark, cast(list[Any], raw))))
    return (type(raw) is bool, raw)


class _Set(_Node):
    """A set, which in JSON is a list in no order that means anything: merged by element, not by index."""

    __slots__ = ("added", "removed")

    def __init__(self, spec: _Spec, base: Any, path: _Path, session: _Session) -> None:
        super().__init__(spec, base, path, session)
        self.added: dict[Any, Any] = {}
        self.removed: set[Any] = set()

    def raws(self) -> list[Any]:
        marked = {_mark(raw): raw for raw in list(self.base)}
        return [raw for mark, raw in (marked | self.added).items() if mark not in self.removed]

    def accept(self, value: Any) -> Any:
        return self.spec.items.accept(value, (*self.path, "-"))

    def change(self, add: Iterable[Any], remove: Iterable[Any] = ()) -> None:
        """Raw elements; all of it or, when the set's bounds forbid it, nothing."""
        added, removed = {_mark(raw): raw for raw in add}, {_mark(raw) for raw in remove}
        now = {_mark(raw) for raw in self.raws()}
        if (now - removed) | added.keys() != now:
            self.spec.check_size(len((now - removed) | added.keys()), self.path)
        self.removed = (self.removed | removed) - added.keys()
        self.added = {mark: raw for mark, raw in (self.added | added).items() if mark not in self.removed}

    def changed(self) -> bool:
        return bool(self.added or self.removed)

    def plain(self) -> Any:
        return copy.deepcopy(self.raws())

    def render(self, live: Any, path: _Path, out: _Rendering) -> None:
        marks = [_mark(raw) for raw in live]
        dropped = [index for index, mark in enumerate(marks) if mark in self.removed]
        fresh = [raw for mark, raw in self.added.items() if mark not in set(marks)]
        result = [raw for index, raw in enumerate(live) if index not in set(dropped)] + fresh
        if not self.spec.fits(len(result)):  # together with what others did it would be too large or too small
            out.conflict(path)
            if self.spec.fits(len(self.raws())):
                out.write(path, live, self.plain())
        elif len(dropped) + len(fresh) > max(1, len(result)):
            out.write(path, live, copy.deepcopy(result))
        else:
            for index in reversed(dropped):
                out.emit("remove", (*path, str(index)), _GONE)
            for n, raw in enumerate(fresh):
                out.add((*path, str(len(live) - len(dropped) + n)), copy.deepcopy(raw))


# ---------------------------------------------------------------------------------------------------------------------
# What the user holds: proxies that look like the declared types


class _Proxy:
    """Reads through to a node, and writes into it.

    `isinstance` answers as the state type's annotation says (`isinstance(draft.sources, list)` is true): user code is
    checked against that annotation. The real class is none of the builtin ones, because C code would read their
    storage past the draft: so `json.dumps(draft.sources)` fails loudly instead of writing an empty list.
    """

    __slots__ = ("_helix_node",)
    __hash__ = None  # pyright: ignore[reportAssignmentType] -- the usual way to say "mutable, not hashable"
    _helix_node: Any

    def __init__(self, node: Any) -> None:
        object.__setattr__(self, "_helix_node", node)

    @property
    def __class__(self) -> type[Any]:  # pyright: ignore[reportIncompatibleMethodOverride] -- as wrapt and mock do
        return self._helix_node.spec.python_type

    def __eq__(self, other: object) -> bool:
        return _node(self).value() == _unwrap(other)

    def __repr__(self) -> str:
        node = self._helix_node
        return "<closed state draft>" if node.session.closed else f"<draft of {node.value()!r}>"

    def __str__(self) -> str:
        return str(_node(self).value())  # what a prompt made with an f-string should read

    def __copy__(self) -> Any:
        return _node(self).value()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _node(self).value()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _itself, (_node(self).value(),)


def _itself(value: Any) -> Any:
    return value


def _node(proxy: Any) -> Any:
    """The proxy's node, if its draft is open. `Any`: each proxy class knows the class of its nodes."""
    node = proxy._helix_node
    if node.session.closed:
        raise UsageError("this state draft has ended with its `with` block; open a new one with ctx.update_state()")
    return node


def _unwrap(value: Any) -> Any:
    """`value` with a plain copy in place of each part of a draft in it."""
    kind = cast(Any, type(value))  # not isinstance: proxies answer that like what they stand for
    if kind in _PROXIES.values():
        return _node(value).value()
    if kind is dict:
        return {key: _unwrap(item) for key, item in value.items()}
    made = _MADE_OF_ITEMS.get(kind)
    return value if made is None else made([_unwrap(item) for item in value])


def _part(value: Any) -> Any:
    """JSON of a part of a draft that the user has put into a model."""
    if cast(Any, type(value)) in _PROXIES.values():
        return _node(value).plain()
    raise ValueError(f"{value.__class__.__name__} has no JSON form")


_MADE_OF_ITEMS: dict[Any, Callable[[list[Any]], Any]] = {list: list, tuple: tuple, set: set, frozenset: frozenset}


class _DraftRecord(_Proxy):
    """A model or a dataclass. Its methods and properties work on the draft; pydantic's own on a copy."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        node: _Object = _node(self)
        if name in node.spec.fields or node.has(name):
            value = node.get(name)
            if value is not _GONE:
                return value
        return _class_attribute(self, node, name)

    def __setattr__(self, name: str, value: Any) -> None:
        node: _Object = _node(self)
        member = getattr(node.spec.python_type, name, None)
        if name not in node.spec.fields and isinstance(member, property):
            member.__set__(self, value)
        else:
            node.set(name, value)

    def __delattr__(self, name: str) -> None:
        node: _Object = _node(self)
        if not node.has(name):
            raise AttributeError(name)
        node.drop([name])

    def __dir__(self) -> list[str]:
        return sorted({*dir(self._helix_node.spec.python_type), *self._helix_node.spec.fields})


def _class_attribute(proxy: _DraftRecord, node: _Object, name: str) -> Any:
    cls = cast(Any, node.spec.python_type)
    if name in node.spec.fields or name.startswith("__") or not hasattr(cls, name):
        near = did_you_mean(name, node.spec.fields)
        raise AttributeError(f"{cls.__name__} has no {name!r} here.{near}")
    if hasattr(BaseModel, name) and issubclass(cls, BaseModel):
        return getattr(node.value(), name)
    found = getattr_static(cls, name)
    if isinstance(getattr(found, "wrapped", found), cached_property):  # it would keep its value in the proxy
        return getattr(node.value(), name)
    return found.__get__(proxy, cls) if hasattr(found, "__get__") else found


class _DraftDict(_Proxy, MutableMapping[Any, Any]):
    """A dict, or a TypedDict."""

    __slots__ = ()
    __eq__ = _Proxy.__eq__  # Mapping has its own

    def __getitem__(self, key: Any) -> Any:
        node: _Object = _node(self)
        value = node.get(_known_key(node, key))
        if value is _GONE:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        node: _Object = _node(self)
        node.set(node.spec.key_in(key, node.path), value)

    def __delitem__(self, key: Any) -> None:
        node: _Object = _node(self)
        node.drop([_present_key(node, key)])

    def __contains__(self, key: object) -> bool:
        node: _Object = _node(self)
        try:
            return node.has(_known_key(node, key))
        except KeyError:
            return False

    def __iter__(self) -> Iterator[Any]:
        node: _Object = _node(self)
        return iter([node.spec.key_out(key) for key in node.names()])

    def __len__(self) -> int:
        return len(_node(self).names())

    def __or__(self, other: Mapping[Any, Any]) -> dict[Any, Any]:
        return _node(self).value() | _unwrap(other)

    def __ror__(self, other: Mapping[Any, Any]) -> dict[Any, Any]:
        return _unwrap(other) | _node(self).value()

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        return self

    def copy(self) -> dict[Any, Any]:
        """A plain dict, detached from the draft."""
        return _node(self).value()

    def update(self, other: Any = (), /, **more: Any) -> None:
        node: _Object = _node(self)
        values: dict[Any, Any] = {**dict(_unwrap(other)), **more}
        node.merge({node.spec.key_in(key, node.path): value for key, value in values.items()})

    def pop(self, key: Any, default: Any = _GONE, /) -> Any:
        node: _Object = _node(self)
        if key in self:
            return node.take(_present_key(node, key))
        if default is _GONE:
            raise KeyError(key)
        return default

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def popitem(self) -> tuple[Any, Any]:
        node: _Object = _node(self)
        names = node.names()
        if not names:
            raise KeyError("popitem(): dictionary is empty")
        return node.spec.key_out(names[-1]), node.take(names[-1])

    def clear(self) -> None:
        node: _Object = _node(self)
        node.drop(node.names())


def _known_key(node: _Object, key: Any) -> str:
    try:
        return node.spec.key_in(key, node.path)
    except StateError:
        raise KeyError(key) from None


def _present_key(node: _Object, key: Any) -> str:
    name = _known_key(node, key)
    if not node.has(name):
        raise KeyError(key)
    return name


class _DraftList(_Proxy, MutableSequence[Any]):
    """A list."""

    __slots__ = ()

    def __len__(self) -> int:
        return _node(self).size()

    def __getitem__(self, index: Any) -> Any:
        node: _List = _node(self)
        if isinstance(index, slice):
            return [node.get(n) for n in _indices(node, index)]
        return node.get(_index(node, index))

    def __setitem__(self, index: Any, value: Any) -> None:
        node: _List = _node(self)
        if isinstance(index, slice):
            _set_slice(node, cast(Any, index), list(_unwrap(value)))
        else:
            node.set(_index(node, index), value)

    def __delitem__(self, index: Any) -> None:
        node: _List = _node(self)
        if isinstance(index, slice):
            gone = set(_indices(node, index))
            node.keep([n for n in range(node.size()) if n not in gone])
        else:
            at = _index(node, index)
            node.splice(at, at + 1, [])

    def insert(self, index: Any, value: Any) -> None:
        node: _List = _node(self)
        at = min(slice(index, None).indices(node.size())[0], node.size())
        if at == node.size():
            node.extend([value])
        else:
            node.splice(at, at, [node.accept(value, at)])

    def append(self, value: Any) -> None:
        _node(self).extend([value])

    def extend(self, values: Iterable[Any]) -> None:
        _node(self).extend(list(_unwrap(values)))

    def pop(self, index: Any = -1) -> Any:
        node: _List = _node(self)
        at = _index(node, index)
        value = node.spec.items.load(node.member(node.raw(at)))
        node.splice(at, at + 1, [])
        return value

    def clear(self) -> None:
        _node(self).keep([])

    def reverse(self) -> None:
        node: _List = _node(self)
        node.keep(range(node.size() - 1, -1, -1))

    def sort(self, *, key: Callable[[Any], Any] | None = None, reverse: bool = False) -> None:
        node: _List = _node(self)
        by = [item if key is None else key(item) for item in self]
        node.keep(sorted(range(node.size()), key=by.__getitem__, reverse=reverse))

    def copy(self) -> list[Any]:
        """A plain list, detached from the draft."""
        return _node(self).value()

    def __add__(self, other: list[Any]) -> list[Any]:
        return _node(self).value() + _unwrap(other)

    def __radd__(self, other: list[Any]) -> list[Any]:
        return _unwrap(other) + _node(self).value()

    def __mul__(self, times: int) -> list[Any]:
        return _node(self).value() * times

    __rmul__ = __mul__

    def __iadd__(self, values: Iterable[Any]) -> Any:
        self.extend(values)
        return self

    def __imul__(self, times: int) -> Any:
        if times <= 0:
            self.clear()
        else:
            self.extend(_node(self).value() * (times - 1))
        return self


def _indices(node: _List, index: Any) -> range:
    return cast(range, range(node.size()).__getitem__(index))


def _index(node: _List, index: Any) -> int:
    try:
        return cast(int, range(node.size()).__getitem__(index))
    except IndexError:
        raise IndexError("list index out of range") from None


def _set_slice(node: _List, index: Any, values: list[Any]) -> None:
    at = _indices(node, index)
    raws = [node.accept(value, at.start + n) for n, value in enumerate(values)]
    if at.step == 1:
        node.splice(at.start, max(at.start, at.stop), raws)
    elif len(raws) != len(at):
        raise ValueError(f"attempt to assign sequence of size {len(raws)} to extended slice of size {len(at)}")
    else:
        for n, raw in zip(at, raws, strict=True):
            node.splice(n, n + 1, [raw])


class _DraftSet(_Proxy, MutableSet[Any]):
    """A set."""

    __slots__ = ()
    __eq__ = _Proxy.__eq__  # Set has its own

    @classmethod
    def _from_iterable(cls, it: Iterable[Any]) -> set[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return set(it)  # what `|`, `&`, `-` and `^` give is a plain set

    def __contains__(self, value: object) -> bool:
        return value in _node(self).value()

    def __iter__(self) -> Iterator[Any]:
        return iter(_node(self).value())

    def __len__(self) -> int:
        return len(_node(self).raws())

    def add(self, value: Any) -> None:
        self.update([value])

    def discard(self, value: Any) -> None:
        self.difference_update([value])

    def remove(self, value: Any) -> None:
        if value not in self:
            raise KeyError(value)
        self.discard(value)

    def clear(self) -> None:
        node: _Set = _node(self)
        node.change((), node.raws())

    def copy(self) -> set[Any]:
        """A plain set, detached from the draft."""
        return _node(self).value()

    def update(self, *others: Iterable[Any]) -> None:
        node: _Set = _node(self)
        node.change([node.accept(value) for other in others for value in _unwrap(other)])

    def difference_update(self, *others: Iterable[Any]) -> None:
        node: _Set = _node(self)
        gone = {value for other in others for value in _unwrap(other)} & node.value()
        node.change((), [node.accept(value) for value in gone])

    def intersection_update(self, *others: Iterable[Any]) -> None:
        value: set[Any] = _node(self).value()
        self.difference_update(value - value.intersection(*map(_unwrap, others)))

    def symmetric_difference_update(self, other: Iterable[Any]) -> None:
        node: _Set = _node(self)
        given: set[Any] = set(_unwrap(other))
        both = given & node.value()
        node.change([node.accept(value) for value in given - both], [node.accept(value) for value in both])

    def __ior__(self, other: Iterable[Any]) -> Any:
        self.update(other)
        return self

    def __isub__(self, other: Iterable[Any]) -> Any:
        self.difference_update(other)
        return self

    def __iand__(self, other: Iterable[Any]) -> Any:
        self.intersection_update(other)
        return self

    def __ixor__(self, other: Iterable[Any]) -> Any:
        self.symmetric_difference_update(other)
        return self

    def union(self, *others: Iterable[Any]) -> set[Any]:
        return _node(self).value().union(*map(_unwrap, others))

    def intersection(self, *others: Iterable[Any]) -> set[Any]:
        return _node(self).value().intersection(*map(_unwrap, others))

    def difference(self, *others: Iterable[Any]) -> set[Any]:
        return _node(self).value().difference(*map(_unwrap, others))

    def symmetric_difference(self, other: Iterable[Any]) -> set[Any]:
        return _node(self).value().symmetric_difference(_unwrap(other))

    def issubset(self, other: Iterable[Any]) -> bool:
        return _node(self).value().issubset(_unwrap(other))

    def issuperset(self, other: Iterable[Any]) -> bool:
        return _node(self).value().issuperset(_unwrap(other))


_NODES: dict[str, Callable[..., _Node]] = {"record": _Object, "dict": _Object, "list": _List, "set": _Set}
_PROXIES: dict[str, Callable[[Any], _Proxy]] = {
    "record": _DraftRecord,
    "dict": _DraftDict,
    "list": _DraftList,
    "set": _DraftSet,
}


# ---------------------------------------------------------------------------------------------------------------------
# Rendering


class _Footprint:
    """Which paths others have changed, at the indices as they are now: a tree with a node for each token."""

    __slots__ = ("below", "shifted", "top", "written")

    def __init__(self) -> None:
        self.below: dict[str, _Footprint] = {}
        self.top = -1  # no index above this one was noted: an append, the common case, moves nothing
        self.written = False
        self.shifted = False

    @classmethod
    def of(cls, others: Iterable[Mapping[str, Any]], document: Any) -> _Footprint:
        root = cls()
        for operation in others:
            if operation["op"] == "move":
                root._note("remove", _tokens(operation["from"]), document)
            if operation["op"] != "test":
                root._note(operation["op"], _tokens(operation["path"]), document)
        return root

    def _note(self, op: str, path: _Path, document: Any) -> None:
        node, here = self, document
        for token in path[:-1]:
            node, here = node._enter(token), _step(here, token)
        if not path:
            node.written = True
            return
        in_list = isinstance(here, list)
        if in_list and op != "replace":
            node._shift(path[-1], -1 if op == "remove" else 1)
        if not (in_list and op == "remove"):
            node._enter(path[-1]).written = True

    def _enter(self, token: str) -> _Footprint:
        if token.isdigit():
            self.top = max(self.top, int(token))
        return self.below.setdefault(token, _Footprint())

    def _shift(self, token: str, by: int) -> None:
        self.shifted = True
        if not token.isdigit() or int(token) > self.top:
            return
        if by < 0:
            self.below.pop(token, None)
        moved = [int(key) for key in self.below if key.isdigit() and int(key) >= int(token)]
        for index in sorted(moved, reverse=by > 0):
            self.below[str(index + by)] = self.below.pop(str(index))
        self.top += by

    def covers(self, path: _Path) -> bool:
        """Did others write this path, one above it, or one below it?"""
        node: _Footprint | None = self
        for token in path:
            if node.written:
                return True
            node = node.below.get(token)
            if node is None:
                return False
        return True

    def above(self, path: _Path) -> bool:
        """Did others write one of the containers that this path leads through?"""
        node: _Footprint | None = self
        for token in path:
            if node is None or node.written:
                break
            node = node.below.get(token)
        else:
            return False
        return node is not None

    def keeps_places(self, path: _Path) -> bool:
        """Is the list at this path the one that it was, its items where they were? (Some may have been replaced.)"""
        node = self._at(path)
        return not (node is not None and node.shifted) and not self.above((*path, "0"))

    def edited(self, path: _Path) -> bool:
        """Did others insert, append, remove or replace items of the list at this path?"""
        node = self._at(path)
        return node is not None and (node.shifted or any(item.written for item in node.below.values()))

    def _at(self, path: _Path) -> _Footprint | None:
        node: _Footprint | None = self
        for token in path:
            node = node.below.get(token) if node else None
        return node


def _step(container: Any, token: str) -> Any:
    if isinstance(container, dict):
        return cast(dict[str, Any], container).get(token)
    if isinstance(container, list) and token.isdigit() and int(token) < len(cast(list[Any], container)):
        return cast(list[Any], container)[int(token)]
    return None


class _Rendering:
    """The operations so far, each applicable after those before it."""

    def __init__(self, footprint: _Footprint) -> None:
        self.footprint = footprint
        self.patches: Patch = []
        self.conflicts: dict[str, None] = {}

    def conflict(self, path: _Path) -> None:
        self.conflicts[_pointer(path)] = None

    def emit(self, op: str, path: _Path, value: Any) -> None:
        self.patches.append({"op": op, "path": _pointer(path)} | ({} if value is _GONE else {"value": value}))

    def write(self, path: _Path, target: Any, value: Any) -> None:
        """Makes `value` stand where `target` stands now; either may be `_GONE`.

        An equal value is written as well when others wrote here: two increments may come to the same number.
        """
        met = self.footprint.covers(path)
        if (value is _GONE and target is _GONE) or (not met and value is not _GONE and _same(target, value)):
            return
        self.emit("remove" if value is _GONE else "add" if target is _GONE else "replace", path, value)
        if met:
            self.conflict(path)

    def add(self, path: _Path, value: Any, *, conflict: bool = False) -> None:
        """Inserts into a list."""
        self.emit("add", path, value)
        if conflict or self.footprint.above(path):
            self.conflict(path)

    def enter(self, child: _Node, spec: _Spec, target: Any, path: _Path) -> None:
        """What changed inside `child`, now at `path`; all of it when what stands there is of another shape."""
        if spec.container(target) is child.spec:
            child.render(target, path, self)
        else:
            self.write(path, target, child.plain())


@dataclass(slots=True, frozen=True)
class Rendered:
    """What a draft comes to.

    Attributes:
        patches: RFC 6902 operations (`add`, `replace`, `remove`), applicable in order to the document that they were
            rendered for. Empty when nothing was changed.
        conflicts: JSON pointers of what this draft wrote and an overlapping draft had written as well; this one won,
            except where a bound of the type (a list's `max_length`) left it no room: then there is a conflict without
            an operation, so look at both.
    """

    patches: Patch = field(default_factory=list[dict[str, Any]])
    conflicts: list[str] = field(default_factory=list[str])


class _Session:
    """Is the draft open? Shared by all its nodes."""

    __slots__ = ("closed",)

    def __init__(self) -> None:
        self.closed = False


class Draft(Generic[StateT]):
    """What one `update_state` block wants to change.

    Reads go through to `document`, which others may go on changing, with the draft's own writes over it; nothing is
    written until the caller renders the draft and applies what comes out. To discard a draft, do not render it.

    Args:
        schema: the state's type.
        document: the live document, the one that patches are applied to in place.

    Raises:
        UsageError: the agent has no state.
    """

    def __init__(self, schema: StateSchema[StateT], document: Any) -> None:
        if schema.state_type is NoneType:
            raise UsageError("this agent has no state to update; give it a state_type")
        self._session = _Session()
        self._root = _Object(schema.spec, document, (), self._session)

    @property
    def proxy(self) -> StateT:
        """What the block works on: it reads and writes like an object of the state type, and records the writes."""
        return self._root.proxy

    def render(self, document: Any, others: Sequence[Mapping[str, Any]] = ()) -> Rendered:
        """The operations that bring this draft into `document` as it is now. Changes nothing, and may be called again.

        Args:
            document: the live document, or a copy of it.
            others: the operations that were applied to it since this draft was made, in order, but for the draft's own.
        """
        out = _Rendering(_Footprint.of(others, document))
        if isinstance(document, dict):
            self._root.render(document, (), out)
        elif self._root.changed():
            out.write((), document, self._root.plain())
        return Rendered(out.patches, list(out.conflicts))

    def close(self) -> None:
        """Ends the block: from now on its proxies raise `UsageError`. `render` still works."""
        self._session.closed = True


# ---------------------------------------------------------------------------------------------------------------------
# Applying patches


def apply_patches(document: Any, patches: Iterable[Mapping[str, Any]]) -> Any:
    """Applies RFC 6902 operations to `document`, in place, all or none; gives the document.

    Use the result: an operation on the whole document (the empty path) gives another object. The document does not
    share anything with `patches` afterwards. The cost follows the patches, not the document.

    Raises:
        InvalidPatch: the patches are malformed, or cannot be applied; the document is as it was.
    """
    try:
        return JsonPatch(patches).apply(document, in_place=True, atomic=True)
    except (JsonPatchException, JsonPointerException, TypeError) as error:
        raise InvalidPatch(f"the patch cannot be applied: {error}") from error


class StateMirror:
    """The state documents of a run, folded from its chunks, in order and from the first one.

    Attributes:
        documents: each agent's document by `agent_id`, as of the last chunk. They are the mirror's own, and it changes
            them in place. An agent that works on another's document (`share_state`) has none itself.
    """

    def __init__(self) -> None:
        self.documents: dict[str, Any] = {}
        self._shared: dict[str, str] = {}
        self._schemas: dict[Any, StateSchema[Any]] = {}

    def apply(self, chunk: object) -> None:
        """Takes one chunk in. Chunks that say nothing about state, of whatever kind, are passed over.

        Raises:
            InvalidPatch: a patch does not apply, or its agent's `run_start` was not seen; nothing was changed.
        """
        if isinstance(chunk, RunStart):
            if chunk.state_id is None:
                self.documents[chunk.agent_id] = copy.deepcopy(chunk.state)
            else:
                self._shared[chunk.agent_id] = chunk.state_id
        elif isinstance(chunk, StatePatch):
            owner = chunk.state_id or self._owner(chunk.agent_id)
            if owner not in self.documents:
                raise InvalidPatch(f"a patch for the state of {owner!r}, whose run_start was not seen")
            self.documents[owner] = apply_patches(self.documents[owner], chunk.patches)

    def _owner(self, agent_id: str) -> str:
        return self._shared.get(agent_id, agent_id)

    def state(self, agent_id: str, state_type: type[_S]) -> _S:
        """The state that an agent works on, as a fresh object of `state_type`.

        Raises:
            KeyError: its `run_start` was not seen.
            StateError: the document does not fit the type.
        """
        schema = self._schemas.setdefault(state_type, StateSchema(state_type))
        return cast(_S, schema.load(self.documents[self._owner(agent_id)]))
