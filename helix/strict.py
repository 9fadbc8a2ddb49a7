"""JSON Schemas in the subset that providers can hold a model to, which they call strict.

Floor 2: pure; below `agent` and the adapters. The subset is what OpenAI ("Structured Outputs", supported schemas) and
Anthropic ("Structured outputs", JSON Schema limitations) both take: closed objects with all fields required, and
neither bounds nor patterns. What it cannot express stands in the descriptions, and is validated all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from pydantic_core import to_json

_SCALARS = ("string", "integer", "number", "boolean", "null")
_FORMATS = ("date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid")
_STRUCTURE = ("type", "properties", "required", "additionalProperties", "items", "anyOf", "oneOf", "$ref", "$defs")
_SAID = ("description", "enum", "const")
_UNSAID = ("title", "discriminator", "examples", "deprecated", "readOnly", "writeOnly")


def strict_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema of a pydantic type in the strict subset.

    Fields with defaults are required in it: the model says what they are.

    Raises:
        ValueError: some part cannot be strict; says which and why.
    """
    definitions = {name: _strict(part, name) for name, part in schema.get("$defs", {}).items()}
    return {**_strict(schema, ""), **({"$defs": definitions} if definitions else {})}


def is_recursive(schema: dict[str, Any]) -> bool:
    """Whether a part of the schema contains itself, which not every provider takes."""
    parts: dict[str, Any] = schema.get("$defs", {})

    def leads_back(name: str, above: frozenset[str]) -> bool:
        return any(below in above or leads_back(below, above | {below}) for below in _references(parts[name]))

    return any(leads_back(name, frozenset((name,))) for name in parts)


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        for key, value in cast("dict[str, Any]", part).items():
            if key == "$ref" and isinstance(value, str):
                yield value.rpartition("/")[2]
            else:
                yield from _references(value)
    elif isinstance(part, list):
        for item in cast("list[Any]", part):
            yield from _references(item)


def _strict(schema: dict[str, Any], where: str) -> dict[str, Any]:
    about, shape = _about(schema), _shape(schema, where)
    if "$ref" in shape and about:
        shape = {"anyOf": [shape]}  # nothing may stand beside a reference
    return {**shape, **about}


def _shape(schema: dict[str, Any], where: str) -> dict[str, Any]:
    kind, variants = schema.get("type"), schema.get("anyOf") or schema.get("oneOf")
    if "$ref" in schema:
        return {"$ref": schema["$ref"]}
    if variants:
        return {"anyOf": [_strict(variant, where) for variant in variants]}
    if kind == "object" and not schema.get("additionalProperties") and "properties" in schema:
        fields = {name: _strict(field, f"{where}.{name}".lstrip(".")) for name, field in schema["properties"].items()}
        return {"type": kind, "properties": fields, "required": [*fields], "additionalProperties": False}
    if kind == "array" and "prefixItems" not in schema and "items" in schema:
        return {"type": kind, "items": _strict(schema["items"], f"{where}[]")}
    if kind in _SCALARS:
        return {"type": kind, **({"format": schema["format"]} if schema.get("format") in _FORMATS else {})}
    raise ValueError(
        f"{where or 'the type'} is {_NAMES.get(str(kind), 'of no one type')}, which no strict schema can say"
    )


_NAMES = {"object": "a mapping with any keys", "array": "an array of no one type"}


def _about(schema: dict[str, Any]) -> dict[str, Any]:
    """What else is said of a part; as words, where the subset has no keyword for it."""
    about = {key: schema[key] for key in _SAID if key in schema}
    known = (*_STRUCTURE, *_SAID, *_UNSAID)
    rest = {key: value for key, value in schema.items() if key not in known and value is not None}
    if rest.get("format") in _FORMATS:
        del rest["format"]
    if rest:
        words = ", ".join(f"{key}: {to_json(value).decode()}" for key, value in rest.items())
        about["description"] = f"{about.get('description', '')} ({words})".lstrip()
    return about
