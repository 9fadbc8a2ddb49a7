"""JSON values and the paths to them: what everything here agrees on. Below everything else of `helix.state`."""

from __future__ import annotations

from typing import Any, TypeAlias, cast

JsonPath: TypeAlias = tuple[str, ...]


class _Gone:
    """The mark of a member that is not there."""


GONE: Any = _Gone()


def pointer_of(path: JsonPath) -> str:
    return "".join("/" + token.replace("~", "~0").replace("/", "~1") for token in path)


def place_of(path: JsonPath) -> str:
    """The path as messages name it."""
    return pointer_of(path) or "state"


def path_of(pointer: str) -> JsonPath:
    return tuple(token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:])


def same_json(a: Any, b: Any) -> bool:
    """Equal as JSON, strictly: `true` is not `1`, and `1` is not `1.0`: what was written is what stands there."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        mine, theirs = cast(dict[str, Any], a), cast(dict[str, Any], b)
        return len(mine) == len(theirs) and all(key in theirs and same_json(mine[key], theirs[key]) for key in mine)
    if isinstance(a, list):
        return len(cast(list[Any], a)) == len(b) and all(map(same_json, cast(list[Any], a), b))
    return a == b


def json_mark(raw: Any) -> Any:
    """Equal for values that are equal as JSON."""
    if isinstance(raw, dict):
        return ("dict", frozenset((key, json_mark(value)) for key, value in cast(dict[str, Any], raw).items()))
    if isinstance(raw, list):
        return ("list", tuple(map(json_mark, cast(list[Any], raw))))
    return (type(raw) is bool, raw)
