"""`partial_items`: the elements of a list in a structured output, each as soon as it is written.

Floor 2: above `filters`. A scanner that looks at every character once cuts the list into the texts of its elements.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncIterable
from typing import Any, TypeVar, cast

from pydantic_core import from_json, to_json
from typing_extensions import TypeForm

from helix import chunks as c
from helix.chunks import Chunk
from helix.filters import Stream
from helix.schema import WRAPPER, OutputSchema

T = TypeVar("T")

_IN_STRING = re.compile(r'["\\]')
_OUTSIDE = re.compile(r'["\[\]{},:]')


def partial_items(
    stream: AsyncIterable[Chunk], item_type: TypeForm[T], field: str | None = None, agent_id: str | None = None
) -> Stream[T]:
    """The elements of a list in the structured output, typed, each once: when what comes behind it is written.

    `partial_items(run, Finding, "findings")` for an output type with a field `findings: list[Finding]`; without `field`
    for an output type that is a list itself. Of the root, unless told otherwise. When the model has to write the output
    again, elements that it repeats at their place are not given again, changed ones are.

    Args:
        stream: the run, or any stream of its chunks.
        item_type: the type of one element; each is validated against it.
        field: the output's field, as the model writes it (its alias, if it has one).
        agent_id: whose output.

    Raises:
        DefinitionError: `item_type` has no JSON Schema.
        ValueError: by the iteration: an element is not valid; says which, and why. Iterating on goes on behind it. (The
            run will have the model correct its output.)
    """
    return _Items(stream, OutputSchema(item_type), field, agent_id)


class _Items(Stream[T]):
    def __init__(
        self, stream: AsyncIterable[Chunk], schema: OutputSchema[T], field: str | None, agent_id: str | None
    ) -> None:
        super().__init__(stream, lambda item: cast(T, item))
        self._schema, self._field, self._agent_id = schema, field, agent_id
        self._ready: deque[tuple[int, Any]] = deque()
        self._given: list[bytes] = []  # as JSON
        self._begin()

    def _begin(self) -> None:
        self._scanner = _Scanner(self._field)
        self._written = 0

    async def __anext__(self) -> T:
        while not self._ready:
            self._take(await self._source.__anext__())
        index, value = self._ready.popleft()
        try:
            return self._schema.validate_text(value) if isinstance(value, _NotJson) else self._schema.load(value)
        except ValueError as error:
            raise ValueError(f"{self._field or 'output'}[{index}]: {error}") from None

    def _take(self, chunk: Chunk | c.Control) -> None:
        if isinstance(chunk, c.StreamEnd):
            return
        if isinstance(chunk, c.Resync):
            self._begin()
            for value in self._list_in(chunk.snapshot.output(self._agent_id)):
                self._add(value)
            return
        if chunk.agent_id != self._agent_id and (self._agent_id is not None or "." in chunk.agent_id):
            return
        if isinstance(chunk, c.StepStart):
            self._begin()
        elif isinstance(chunk, c.OutputDelta):
            for text in self._scanner.feed(chunk.delta):
                self._add(_parsed(text))
        elif isinstance(chunk, c.Output):
            for value in self._list_in(chunk.output)[self._written :]:  # an output that nobody wrote piece by piece
                self._add(value)

    def _add(self, value: Any) -> None:
        index, self._written = self._written, self._written + 1
        known = to_json(value)
        if self._given[index : index + 1] == [known]:
            return
        self._given[index:] = [known]
        self._ready.append((index, value))

    def _list_in(self, output: Any) -> list[Any]:
        if self._field is not None:
            output = cast(dict[str, Any], output).get(self._field) if isinstance(output, dict) else None
        return cast(list[Any], output) if isinstance(output, list) else []


class _NotJson(str):
    """The text of an element that cannot be parsed."""


def _parsed(text: str) -> Any:
    try:
        return from_json(text)
    except ValueError:
        return _NotJson(text)


class _Scanner:
    """Finds the list in a JSON text that comes in pieces, and cuts it; each character is looked at once."""

    def __init__(self, field: str | None) -> None:
        inner: list[str | None] = [] if field is None else [field]
        self._wanted = (inner, [WRAPPER, *inner])  # providers want an object: others than objects are wrapped
        self._path: list[str | None] = []  # the key in each object that is open, None for lists
        self._inside = 0  # how deep the list stands, once its bracket was there
        self._root_keys = 0
        self._in_string = self._escaped = False
        self._string = ""  # the last string outside of the list, as it was written
        self._text: list[str] = []  # the pieces of the string or element that is being written
        self._delta, self._start = "", 0

    def feed(self, delta: str) -> list[str]:
        """Takes the next piece; gives the elements that are complete with it."""
        found: list[str] = []
        self._delta, self._start = delta, 0
        at, self._escaped = int(self._escaped), False
        while match := (_IN_STRING if self._in_string else _OUTSIDE).search(delta, at):
            at = match.end()
            if not self._in_string:
                item = self._structure(match[0], at)
                if item is not None and item.strip():
                    found.append(item)
            elif match[0] == '"':
                self._end_string(match.start())
            else:
                self._escaped = at == len(delta)
                at += 1
        if self._in_string or self._inside:
            self._text.append(delta[self._start :])
        return found

    def _structure(self, char: str, at: int) -> str | None:
        """A quote, bracket, comma or colon outside of strings; gives the element that ends with it."""
        match char:
            case '"':
                self._in_string = True
                if not self._inside:
                    self._restart(at)
            case "{" | "[":
                self._open(char, at)
            case "," if self._inside and self._inside == len(self._path):
                return self._cut(at)
            case ":" if self._path and not self._inside:
                self._path[-1] = self._string
                self._root_keys += len(self._path) == 1
            case "}" | "]" if self._path:
                ends = self._inside == len(self._path)
                self._path.pop()
                if ends:
                    self._inside = 0
                    return self._cut(at)
            case _:
                pass
        return None

    def _open(self, char: str, at: int) -> None:
        wanted = char == "[" and not self._inside and self._path in self._wanted[: 1 + (self._root_keys == 1)]
        self._path.append(None)
        if wanted:
            self._inside = len(self._path)
            self._restart(at)

    def _end_string(self, end: int) -> None:
        self._in_string = False
        if not self._inside:
            written = "".join([*self._text, self._delta[self._start : end]])
            key = _parsed(f'"{written}"')
            self._string = key if isinstance(key, str) else written

    def _cut(self, at: int) -> str:
        text = "".join([*self._text, self._delta[self._start : at - 1]])
        self._restart(at)
        return text

    def _restart(self, at: int) -> None:
        self._text, self._start = [], at
