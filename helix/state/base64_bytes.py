"""Bytes in a core schema: base64 in JSON, as everywhere in helix. Below `spec`."""

from __future__ import annotations

import base64
from typing import Any, cast

BASE64 = {"val_json_bytes": "base64", "ser_json_bytes": "base64"}


def _encode_bytes(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def mentions_bytes(schema: Any, seen: set[int]) -> bool:
    """Are there bytes anywhere in the core schema, past what is in `seen`? (It may have circles.)"""
    if id(schema) in seen:
        return False
    seen.add(id(schema))
    if isinstance(schema, dict):
        parts = cast(dict[str, Any], schema)
        return parts.get("type") == "bytes" or any(mentions_bytes(part, seen) for part in parts.values())
    return isinstance(schema, list) and any(mentions_bytes(part, seen) for part in cast(list[Any], schema))


def with_base64(schema: Any) -> Any:
    """A copy of the core schema in which bytes are base64 in JSON."""
    if isinstance(schema, list):
        return [with_base64(part) for part in cast(list[Any], schema)]
    if not isinstance(schema, dict):
        return schema
    changed = {key: with_base64(part) for key, part in cast(dict[str, Any], schema).items()}
    if changed.get("type") in ("model", "dataclass", "typed-dict"):
        changed["config"] = {**(changed.get("config") or {}), **BASE64}
    if changed.get("type") == "bytes":
        encode = {"type": "function-plain", "function": _encode_bytes, "when_used": "json"}
        changed = {"serialization": encode, **changed}
    return changed
