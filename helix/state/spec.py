"""What may stand at each place of a document, read off pydantic's core schema: one `Spec` for each place.

Above `values` and `proxy`, below `schema` and the overlay.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, TypeAlias, cast

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, SchemaSerializer, SchemaValidator, to_json, to_jsonable_python

from helix.chunks import to_json_value
from helix.errors import StateError, did_you_mean
from helix.state.base64_bytes import BASE64, mentions_bytes, with_base64
from helix.state.proxy import part_to_json, unwrap
from helix.state.values import GONE, JsonPath, place_of, pointer_of

_Schema: TypeAlias = dict[str, Any]


class _World:
    """What the specs of one state type share: pydantic's definitions, and how bytes are written."""

    def __init__(self, schema: _Schema) -> None:
        self.definitions: dict[str, _Schema] = {}
        self.specs: dict[int, Spec] = {}
        self.has_bytes = mentions_bytes(schema, set())
        if self.has_bytes:
            schema = with_base64(schema)
        if schema["type"] == "definitions":
            self.definitions = {entry["ref"]: entry for entry in schema["definitions"]}
            schema = schema["schema"]
        self.root = self.spec(schema, {})

    def spec(self, schema: _Schema, config: _Schema) -> Spec:
        """The one spec of `schema`, which this world keeps alive, so that its id stays its own."""
        found = self.specs.get(id(schema))
        if found is None:
            found = self.specs[id(schema)] = Spec(schema, config, self)
        return found

    def core(self, schema: _Schema) -> Any:
        if not self.definitions:
            return schema
        return {"type": "definitions", "schema": schema, "definitions": list(self.definitions.values())}

    @property
    def options(self) -> dict[str, Any]:
        # Bytes inside a user's class follow that class's own config (UTF-8) unless its validator is built anew.
        return {"_use_prebuilt": False} if self.has_bytes else {}


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


class Spec:
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
        config: Any = {**self.config, **BASE64}
        return SchemaValidator(self.world.core(self.schema), config, **self.world.options)

    @cached_property
    def serializer(self) -> SchemaSerializer:
        config: Any = {**self.config, **BASE64}
        return SchemaSerializer(self.world.core(self.schema), config, **self.world.options)

    @property
    def is_typed_dict(self) -> bool:
        """Is this a record that is used like a dict?"""
        return self.core["type"] == "typed-dict"

    # What comes in and goes out

    def accept(self, value: Any, path: JsonPath) -> Any:
        """`value` as JSON, if the type allows it. The result shares nothing with `value`."""
        where = place_of(path)
        try:
            valid = self.validator.validate_python(unwrap(value), by_alias=True, by_name=True)
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
            value, mode="json", by_alias=False, exclude_computed_fields=True, warnings="none", fallback=part_to_json
        )

    def _parse(self, raw: Any) -> Any:
        return self.validator.validate_json(to_json(raw), by_alias=True, by_name=True)

    def load(self, raw: Any, path: JsonPath = ()) -> Any:
        """`raw` as a fresh Python value of the declared type."""
        if type(raw) is _PLAIN.get(self.schema["type"]):
            return raw
        try:
            return self._parse(raw)
        except ValidationError as error:
            raise StateError(f"{place_of(path)}: {_first(error)}") from None

    # What is inside

    def container(self, raw: Any) -> Spec | None:
        """The spec by which the inside of `raw` can be drafted, or None when it is read and written whole."""
        if self.kind == "any":
            return _ANY_DICT if type(raw) is dict else _ANY_LIST if type(raw) is list else None
        if self.kind == "union":
            return self._chosen(raw) if type(raw) in (dict, list) else None
        if type(raw) is dict:
            return self if self.kind in ("record", "dict") else None
        return self if type(raw) is list and self.kind in ("list", "set") else None

    def _chosen(self, raw: Any) -> Spec | None:
        inside = [spec for choice in self._choices if (spec := choice.container(raw)) is not None]
        if len(inside) > 1:
            loaded = self.load(raw)
            inside = [spec for spec in inside if spec.made(loaded) and spec.allows(raw)]
        return inside[0] if inside else None

    @cached_property
    def _choices(self) -> list[Spec]:
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
        if self.kind == "record" and not self.is_typed_dict:
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

    def at(self, key: str) -> Spec:
        """The spec of a member. Only for keys that `check_key` lets pass."""
        if self.kind == "record":
            entry = self.fields.get(key)
            return _ANY if entry is None else self.world.spec(entry["schema"], self._inner_config)
        values = self.core.get("values_schema")
        return self.world.spec(values, self.config) if values else _ANY

    @cached_property
    def items(self) -> Spec:
        inner = self.core.get("items_schema")
        return self.world.spec(inner, self.config) if inner else _ANY

    @cached_property
    def keys(self) -> Spec | None:
        """The spec of a dict's keys, or None when they are plain texts."""
        inner = self.core.get("keys_schema") if self.kind == "dict" else None
        return None if not inner or inner == {"type": "str"} else self.world.spec(inner, self.config)

    def key_in(self, key: Any, path: JsonPath) -> str:
        if self.keys is None:
            if not isinstance(key, str):
                raise StateError(f"{place_of(path)}: the key {key!r} is not a text")
            return str(key)
        try:
            valid = self.keys.validator.validate_python(key)
        except ValidationError as error:
            raise StateError(f"{place_of(path)}: the key {key!r}: {_first(error)}") from None
        return str(next(iter(to_jsonable_python({valid: None}))))

    def key_out(self, key: str) -> Any:
        return key if self.keys is None else self.keys.validator.validate_python(key)

    def check_key(self, key: str, path: JsonPath) -> None:
        """May `key` be written?"""
        if self.kind != "record":
            return
        entry = self.fields.get(key)
        name = repr(key) if self.is_typed_dict else f"{self.python_type.__name__}.{key}"
        if entry is None and self._inner_config.get("extra_fields_behavior") != "allow":
            raise StateError(f"{place_of(path)}: there is no field {name}.{did_you_mean(key, self.fields)}")
        if (entry or {}).get("frozen") or _is_frozen(self.python_type):
            raise StateError(f"{pointer_of((*path, key))}: {name} is frozen")

    def check_removable(self, key: str, path: JsonPath) -> None:
        self.check_key(key, path)
        if self.kind == "record" and self.requires(key):
            raise StateError(f"{pointer_of((*path, key))}: a required field cannot be deleted")

    def requires(self, key: str) -> bool:
        entry = self.fields.get(key)
        if entry is None:
            return False
        if entry["type"] == "typed-dict-field":
            return bool(entry.get("required", True))
        return entry["schema"]["type"] != "default"

    def default(self, key: str) -> Any:
        """What a record's field is, as JSON, while the document does not have it; `GONE` when it has no default."""
        if self.kind != "record" or key not in self.fields:
            return GONE
        value = self.at(key).validator.get_default_value()
        return GONE if value is None else self.at(key).accept(value.value, (key,))

    def check_size(self, size: int, path: JsonPath) -> None:
        if not self.fits(size):
            least, most = self.core.get("min_length"), self.core.get("max_length")
            bound = f"at most {most}" if most is not None and size > most else f"at least {least}"
            raise StateError(f"{place_of(path)}: expected {bound} items, not {size}")

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


def spec_of(schema: Any) -> Spec:
    """The spec of what a core schema describes."""
    return _World(schema).root


_ANY_WORLD = _World({"type": "any"})

_ANY = _ANY_WORLD.root

_ANY_DICT = _ANY_WORLD.spec({"type": "dict", "keys_schema": {"type": "str"}}, {})

_ANY_LIST = _ANY_WORLD.spec({"type": "list"}, {})
