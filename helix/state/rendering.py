"""What a draft comes to: operations and conflicts, written one behind the other.

Above `footprint`, below the overlay.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from helix.chunks import Patch
from helix.state.footprint import Footprint
from helix.state.values import GONE, JsonPath, pointer_of, same_json


class Rendering:
    """The operations so far, each applicable after those before it."""

    def __init__(self, footprint: Footprint) -> None:
        self.footprint = footprint
        self.patches: Patch = []
        self.conflicts: dict[str, None] = {}

    def conflict(self, path: JsonPath) -> None:
        self.conflicts[pointer_of(path)] = None

    def emit(self, op: str, path: JsonPath, value: Any) -> None:
        self.patches.append({"op": op, "path": pointer_of(path)} | ({} if value is GONE else {"value": value}))

    def write(self, path: JsonPath, target: Any, value: Any) -> None:
        """Makes `value` stand where `target` stands now; either may be `GONE`.

        An equal value is written as well when others wrote here: two increments may come to the same number.
        """
        met = self.footprint.covers(path)
        if (value is GONE and target is GONE) or (not met and value is not GONE and same_json(target, value)):
            return
        self.emit("remove" if value is GONE else "add" if target is GONE else "replace", path, value)
        if met:
            self.conflict(path)

    def add(self, path: JsonPath, value: Any, *, conflict: bool = False) -> None:
        """Inserts into a list."""
        self.emit("add", path, value)
        if conflict or self.footprint.above(path):
            self.conflict(path)


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
