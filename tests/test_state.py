"""Drafts of a typed state, what they come to as RFC 6902 patches, and the mirror that folds patches back."""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from functools import cached_property
from pathlib import Path
from time import perf_counter
from types import NoneType
from typing import Annotated, Any, Literal, NotRequired

import anyio
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jsonpatch import JsonPatch
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, computed_field, field_validator, model_validator
from typing_extensions import TypedDict

from helix.chunks import RunStart, StatePatch, TextDelta, parse_chunk
from helix.errors import DefinitionError, InvalidPatch, StateError, UsageError
from helix.state import Draft, Rendered, StateMirror, StateSchema, apply_patches
from tests.js_client import validate_runs, validate_with_fast_json_patch


class Item(BaseModel):
    name: str = ""
    done: bool = False
    tags: list[str] = []


class Board(BaseModel):
    count: int = 0
    title: str = ""
    notes: list[str] = []
    items: list[Item] = []
    scores: dict[str, int] = {}
    groups: dict[str, list[int]] = {}
    labels: set[str] = set()
    owner: Item | None = None
    temp: str | None = None


BOARD = StateSchema(Board)


class Room:
    """A document and the drafts that are open on it, as an executor keeps them."""

    def __init__(self, schema: StateSchema[Any], value: Any) -> None:
        self.schema = schema
        self.document = schema.initial(value)
        self._others: dict[Draft[Any], list[Any]] = {}

    def open(self) -> Draft[Any]:
        draft: Draft[Any] = Draft(self.schema, self.document)
        self._others[draft] = []
        return draft

    def render(self, draft: Draft[Any], document: Any) -> Rendered:
        return draft.render(document, self._others[draft])

    def commit(self, draft: Draft[Any]) -> Rendered:
        rendered = self.render(draft, self.document)
        draft.close()
        self.document = apply_patches(self.document, copy.deepcopy(rendered.patches))
        del self._others[draft]
        for others in self._others.values():
            others.extend(rendered.patches)
        return rendered


def written(schema: StateSchema[Any], value: Any, change: Callable[[Any], Any]) -> list[Any]:
    """The patches of one draft; sees that they apply, and that the result is a state."""
    document = schema.initial(value)
    draft = Draft(schema, document)
    change(draft.proxy)
    rendered = draft.render(document)
    assert rendered.conflicts == []
    schema.load(apply_patches(copy.deepcopy(document), rendered.patches))
    return rendered.patches


# ---------------------------------------------------------------------------------------------------------------------
# The page's examples, and what a draft comes to


class Page(BaseModel):
    count: int = 0
    items: list[str] = []
    temp: str | None = None


def test_the_three_examples_of_the_page_come_out_literally() -> None:
    page = StateSchema(Page)

    def delete(draft: Any) -> None:
        del draft.temp

    assert written(page, None, lambda d: setattr(d, "count", 5)) == [{"op": "replace", "path": "/count", "value": 5}]
    assert written(page, None, lambda d: d.items.append("new")) == [{"op": "add", "path": "/items/0", "value": "new"}]
    assert written(page, None, delete) == [{"op": "remove", "path": "/temp"}]


def test_an_empty_draft_and_equal_values_render_nothing() -> None:
    assert written(BOARD, None, lambda d: None) == []
    assert written(BOARD, None, lambda d: setattr(d, "count", 0)) == []
    assert written(BOARD, None, lambda d: len(d.items) + len(d.labels) + len(d.scores)) == []


def test_writes_to_one_place_are_squeezed_into_one() -> None:
    def change(d: Board) -> None:
        for n in (1, 2, 3):
            d.count = n
        d.notes.append("a")
        d.notes.append("b")
        d.notes.pop()
        d.scores["x"] = 1
        del d.scores["x"]

    assert written(BOARD, None, change) == [
        {"op": "replace", "path": "/count", "value": 3},
        {"op": "add", "path": "/notes/0", "value": "a"},
    ]


def test_paths_are_escaped() -> None:
    patches = written(BOARD, None, lambda d: d.scores.update({"a/b": 1, "m~n": 2}))
    assert [patch["path"] for patch in patches] == ["/scores/a~1b", "/scores/m~0n"]


EDITS: list[tuple[str, Callable[[list[str]], Any], list[tuple[Any, ...]]]] = [
    ("set", lambda n: n.__setitem__(1, "X"), [("replace", "/notes/1", "X")]),
    ("insert", lambda n: n.insert(1, "X"), [("add", "/notes/1", "X")]),
    ("insert at the end", lambda n: n.insert(9, "X"), [("add", "/notes/3", "X")]),
    ("pop", lambda n: n.pop(0), [("remove", "/notes/0")]),
    ("remove", lambda n: n.remove("b"), [("remove", "/notes/1")]),
    ("del slice", lambda n: n.__delitem__(slice(0, 1)), [("remove", "/notes/0")]),
    ("set slice", lambda n: n.__setitem__(slice(0, 2), ["X"]), [("replace", "/notes/0", "X"), ("remove", "/notes/1")]),
    ("clear", lambda n: n.clear(), [("replace", "/notes", [])]),
    ("reverse", lambda n: n.reverse(), [("replace", "/notes", ["c", "b", "a"])]),
    ("sort", lambda n: n.sort(), []),
    ("insert and pop", lambda n: (n.insert(0, "X"), n.pop(0)), []),
    ("edit and append", lambda n: (n.pop(0), n.append("d")), [("remove", "/notes/0"), ("add", "/notes/2", "d")]),
]


@pytest.mark.parametrize(("edit", "expected"), [entry[1:] for entry in EDITS], ids=[entry[0] for entry in EDITS])
def test_list_edits_use_concrete_indices(edit: Callable[[Any], Any], expected: list[tuple[Any, ...]]) -> None:
    patches = written(BOARD, {"notes": ["a", "b", "c"]}, lambda d: edit(d.notes))
    assert [tuple(patch.values()) for patch in patches] == expected


def test_a_proxy_follows_its_item_when_the_list_changes() -> None:
    def change(d: Board) -> None:
        second = d.items[1]
        d.items.pop(0)
        second.done = True
        assert d.items[0].done

    assert written(BOARD, Board(items=[Item(name="a"), Item(name="b")]), change) == [
        {"op": "replace", "path": "/items/1/done", "value": True},
        {"op": "remove", "path": "/items/0"},
    ]


def test_sets_are_lists_in_json_and_are_merged_by_element() -> None:
    room = Room(BOARD, Board(labels={"a"}))
    first, second = room.open(), room.open()
    first.proxy.labels |= {"b", "a"}
    second.proxy.labels.update(["b", "c"])
    second.proxy.labels.discard("a")
    assert room.commit(first).patches == [{"op": "add", "path": "/labels/1", "value": "b"}]
    assert room.commit(second).conflicts == []
    assert sorted(room.document["labels"]) == ["b", "c"]


def test_assigning_a_part_of_the_draft_elsewhere_stores_a_copy() -> None:
    def change(d: Board) -> None:
        d.items.append(d.items[0])
        d.owner = d.items[0]
        d.items[0].name = "changed"
        assert [item.name for item in d.items] == ["changed", "a"]
        assert d.owner == Item(name="a")

    written(BOARD, Board(items=[Item(name="a")]), change)


def test_a_part_of_the_draft_may_go_into_a_new_model() -> None:
    class Box(BaseModel):
        inner: Item = Item()
        tags: list[str] = []

    class Boxes(BaseModel):
        item: Item = Item(name="a", tags=["t"])
        boxes: list[Box] = []

    def change(d: Boxes) -> None:
        d.boxes.append(Box(inner=d.item, tags=d.item.tags))
        d.item.tags.append("later")
        with pytest.raises(StateError, match=r"/item: .*object has no JSON form"):
            d.item = Item.model_construct(name=object())

    assert written(StateSchema(Boxes), None, change)[0]["value"] == {
        "inner": {"name": "a", "done": False, "tags": ["t"]},
        "tags": ["t"],
    }


def test_what_is_assigned_is_not_shared_with_the_caller() -> None:
    given = Item(tags=["a"])
    document = BOARD.initial()
    draft = Draft(BOARD, document)
    draft.proxy.owner = given
    given.tags.append("b")
    assert draft.proxy.owner == Item(tags=["a"])
    patches = draft.render(document).patches
    apply_patches(document, patches)["owner"]["tags"].append("c")
    assert patches[0]["value"]["tags"] == ["a"]


# ---------------------------------------------------------------------------------------------------------------------
# What a draft is for those who hold it


def test_a_draft_reads_like_the_declared_types() -> None:
    draft = Draft(BOARD, BOARD.initial(Board(items=[Item(name="a", tags=["t"])], scores={"k": 1}, labels={"x"}))).proxy

    assert isinstance(draft, Board)
    assert isinstance(draft.items, list)
    assert isinstance(draft.scores, dict)
    assert isinstance(draft.labels, set)
    assert isinstance(draft.items[0], Item)
    assert draft.items == [Item(name="a", tags=["t"])]
    assert draft.items[0].tags == ["t"] == draft.items[-1].tags[:]
    assert draft.scores == {"k": 1}
    assert draft.labels == {"x"}
    assert "t" in draft.items[0].tags
    assert "k" in draft.scores
    assert draft.items is draft.items
    assert [item.name for item in draft.items] == ["a"]
    assert repr(draft.scores) == "<draft of {'k': 1}>"
    assert f"{draft.scores}" == "{'k': 1}"
    assert draft.model_dump()["scores"] == {"k": 1}
    assert draft.items + [Item()] == [Item(name="a", tags=["t"]), Item()]  # noqa: RUF005 - this is what is tested
    assert draft.labels | {"y"} == {"x", "y"}
    match draft.items[0]:
        case Item(name=name):
            assert name == "a"


CONTAINER_CALLS: dict[str, Callable[[Any], Any]] = {
    "dict or": lambda s: s.scores | {"z": 3},
    "or dict": lambda s: {"z": 3} | s.scores,
    "dict ior": lambda s: s.scores.__ior__({"z": 3}) and None,
    "dict.copy": lambda s: s.scores.copy(),
    "dict.popitem": lambda s: s.scores.popitem(),
    "dict.pop of nothing": lambda s: s.scores.pop("nothing"),
    "dict of another key": lambda s: 3 in s.scores,
    "dict get of another key": lambda s: s.scores[3],
    "groups.setdefault": lambda s: s.groups.setdefault("g", [1]),
    "list radd": lambda s: ["z"] + s.notes,  # noqa: RUF005 - this is what is tested
    "list mul": lambda s: (s.notes * 2, 2 * s.notes),
    "list imul": lambda s: s.notes.__imul__(2) and None,
    "list imul nothing": lambda s: s.notes.__imul__(0) and None,
    "list iadd itself": lambda s: s.notes.__iadd__(s.notes) and None,
    "list slice of another size": lambda s: s.notes.__setitem__(slice(None, None, 2), ["z"]),
    "set.clear": lambda s: s.labels.clear(),
    "set.copy": lambda s: s.labels.copy(),
    "set.remove of nothing": lambda s: s.labels.remove("nothing"),
    "set.remove": lambda s: s.labels.remove("x"),
    "set isub": lambda s: s.labels.__isub__({"x"}) and None,
    "set iand": lambda s: s.labels.__iand__({"x"}) and None,
    "set.union": lambda s: s.labels.union(["z"], s.notes),
    "set.intersection": lambda s: s.labels.intersection(["x"]),
    "set.difference": lambda s: s.labels.difference(["x"]),
    "set.symmetric_difference": lambda s: s.labels.symmetric_difference(["x", "z"]),
    "set.issubset": lambda s: (s.labels.issubset(["x", "y", "z"]), s.labels.issubset(["x"])),
    "set.issuperset": lambda s: (s.labels.issuperset(["x"]), s.labels.issuperset(["z"])),
}


@pytest.mark.parametrize("call", CONTAINER_CALLS.values(), ids=CONTAINER_CALLS)
def test_a_container_of_a_draft_does_what_the_builtin_one_does(call: Callable[[Any], Any]) -> None:
    def outcome(state: Any) -> Any:
        try:
            return call(state)
        except (KeyError, ValueError) as error:
            return type(error)

    board = Board(notes=["a", "b", "c"], scores={"k": 1, "l": 2}, labels={"x", "y"})
    document, plain = BOARD.initial(board), board.model_copy(deep=True)
    draft = Draft(BOARD, document)

    assert outcome(draft.proxy) == outcome(plain)
    assert draft.proxy == plain
    assert BOARD.load(apply_patches(document, draft.render(document).patches)) == plain


def test_the_keys_of_a_dict_are_checked_against_their_type() -> None:
    class Keyed(BaseModel):
        by_id: dict[int, str] = {}
        by_name: dict[str, int] = {}

    state: Any = Draft(StateSchema(Keyed), {"by_id": {}, "by_name": {}}).proxy
    with pytest.raises(StateError, match="/by_id: the key 'x': Input should be a valid integer"):
        state.by_id["x"] = "a"
    with pytest.raises(StateError, match="/by_name: the key 3 is not a text"):
        state.by_name[3] = 1


def test_copies_are_plain_and_detached() -> None:
    document = BOARD.initial(Board(items=[Item(name="a")]))
    draft = Draft(BOARD, document)
    copied, pickled = copy.deepcopy(draft.proxy.items), pickle.loads(pickle.dumps(draft.proxy.items))
    draft.close()
    assert type(copied) is list
    assert copied == pickled == [Item(name="a")]
    assert type(copied[0]) is Item


def test_json_dumps_of_a_proxy_fails_loudly_and_of_its_copy_works() -> None:
    draft = Draft(BOARD, BOARD.initial(Board(notes=["a"]))).proxy
    with pytest.raises(TypeError, match="not JSON serializable"):
        json.dumps(draft.notes)
    assert json.dumps(draft.notes.copy()) == '["a"]'


def test_after_its_block_a_draft_raises_and_still_renders() -> None:
    document = BOARD.initial()
    draft = Draft(BOARD, document)
    notes = draft.proxy.notes
    notes.append("a")
    draft.close()
    for use in (lambda: notes.append("b"), lambda: draft.proxy.count, lambda: len(notes), lambda: notes == []):
        with pytest.raises(UsageError, match="has ended with its `with` block"):
            use()
    assert repr(notes) == "<closed state draft>"
    assert draft.render(document).patches == [{"op": "add", "path": "/notes/0", "value": "a"}]


def test_a_draft_that_is_not_rendered_leaves_no_trace() -> None:
    document = BOARD.initial(Board(items=[Item(name="a")]))
    before = copy.deepcopy(document)
    draft = Draft(BOARD, document).proxy
    draft.items[0].tags.append("t")
    draft.items.insert(0, Item())
    draft.scores["k"] = 1
    draft.labels.add("x")
    assert document == before


def test_methods_and_properties_of_a_state_class_work_on_the_draft() -> None:
    class Counter(BaseModel):
        model_config = ConfigDict(frozen=False)
        n: int = 0

        @property
        def half(self) -> float:
            return self.n / 2

        @half.setter
        def half(self, value: float) -> None:
            self.n = int(value * 2)

        @cached_property
        def square(self) -> int:
            return self.n**2

        def bump(self) -> int:
            self.n += 1
            return self.n

    def change(d: Counter) -> None:
        assert d.bump() == 1
        d.half = 4
        assert d.half == 4
        assert d.square == 64

    assert written(StateSchema(Counter), None, change) == [{"op": "replace", "path": "/n", "value": 8}]


# ---------------------------------------------------------------------------------------------------------------------
# Validation


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: setattr(d, "count", "many"), r"^/count: Input should be a valid integer.*got 'many'"),
        (lambda d: d.notes.append(3), r"^/notes/1: Input should be a valid string"),
        (lambda d: d.notes.extend(["fine", 3]), r"^/notes/2: "),
        (lambda d: d.notes.__setitem__(0, None), r"^/notes/0: "),
        (lambda d: setattr(d.items[0], "done", "perhaps"), r"^/items/0/done: "),
        (lambda d: d.items.append({"nam": 3, "tags": 4}), r"^/items/1: /tags: "),
        (lambda d: d.scores.update({"fine": 1, "not": "x"}), r"^/scores/not: "),
        (lambda d: d.labels.add(3), r"^/labels/-: "),
        (lambda d: setattr(d, "coun", 3), r"there is no field Board.coun. Did you mean 'count'\?"),
        (lambda d: delattr(d.items[0], "nam"), r"nam"),
    ],
)
def test_an_invalid_mutation_says_where_and_keeps_nothing(change: Callable[[Any], Any], message: str) -> None:
    document = BOARD.initial(Board(notes=["a"], items=[Item()]))
    draft = Draft(BOARD, document)
    with pytest.raises((StateError, AttributeError), match=message):
        change(draft.proxy)
    assert draft.render(document).patches == []


def test_an_unknown_attribute_names_the_nearest() -> None:
    with pytest.raises(AttributeError, match="Did you mean 'notes'"):
        _ = Draft(BOARD, BOARD.initial()).proxy.note  # pyright: ignore[reportAttributeAccessIssue]


def test_a_required_field_cannot_be_deleted() -> None:
    class Strict(BaseModel):
        need: int

    with pytest.raises(StateError, match="/need: a required field cannot be deleted"):
        del Draft(StateSchema(Strict), {"need": 1}).proxy.need


def test_constraints_and_field_validators_hold_and_bounds_are_kept_when_drafts_meet() -> None:
    class Bounded(BaseModel):
        small: Annotated[int, Field(lt=10)] = 0
        word: str = ""
        few: Annotated[list[int], Field(max_length=2)] = []

        @field_validator("word")
        @classmethod
        def lower(cls, value: str) -> str:
            return value.lower()

    schema = StateSchema(Bounded)
    room = Room(schema, None)
    first, second = room.open(), room.open()
    for draft in (first, second):
        draft.proxy.few.extend([1, 2])
        draft.proxy.word = "WORD"
        with pytest.raises(StateError, match="/few: expected at most 2 items, not 3"):
            draft.proxy.few.append(3)
        with pytest.raises(StateError, match="/small: Input should be less than 10"):
            draft.proxy.small = 10
    room.commit(first)
    assert room.commit(second).conflicts == ["/word", "/few"]
    assert schema.load(room.document) == Bounded(few=[1, 2], word="word")


def test_bounds_of_sets_and_dicts_are_kept_when_drafts_meet() -> None:
    class Bounded(BaseModel):
        labels: Annotated[set[str], Field(max_length=1)] = set()
        scores: Annotated[dict[str, int], Field(max_length=1)] = {}

    schema = StateSchema(Bounded)
    room = Room(schema, None)
    first, second = room.open(), room.open()
    for name, draft in (("a", first), ("b", second)):
        draft.proxy.labels.add(name)
        draft.proxy.scores[name] = 1
        with pytest.raises(StateError, match="/labels: expected at most 1 items, not 2"):
            draft.proxy.labels.add("c")
        with pytest.raises(StateError, match="/scores: expected at most 1 items, not 2"):
            draft.proxy.scores["c"] = 1
    room.commit(first)
    assert room.commit(second).conflicts == ["/labels", "/scores/b"]
    assert schema.load(room.document) == Bounded(labels={"a"}, scores={"a": 1})


def test_a_draft_over_a_document_that_is_no_object_any_more_writes_it_whole() -> None:
    draft = Draft(BOARD, BOARD.initial())
    assert draft.render(None).patches == []
    draft.proxy.count = 3
    (patch,) = draft.render(None, [{"op": "replace", "path": "", "value": None}]).patches
    assert (patch["op"], patch["path"], patch["value"]["count"]) == ("replace", "", 3)


def test_values_come_out_as_their_declared_types() -> None:
    class Kind(Enum):
        A = "a"

    class Typed(BaseModel):
        when: datetime = datetime(2026, 1, 1, tzinfo=UTC)
        raw: bytes = b"\xff"
        kind: Kind = Kind.A
        pair: tuple[int, str] = (1, "x")
        by_id: dict[int, bytes] = {1: b"\xfe"}
        frozen: frozenset[int] = frozenset({1})

    schema = StateSchema(Typed)
    document = schema.initial()
    assert document["raw"] == "/w=="
    assert document["when"] == "2026-01-01T00:00:00Z"
    assert schema.load(document) == Typed()

    draft = Draft(schema, document)
    state = draft.proxy
    assert (state.when, state.raw, state.kind, state.pair, state.frozen) == tuple(
        getattr(Typed(), name) for name in ("when", "raw", "kind", "pair", "frozen")
    )
    state.by_id[2] = b"\xfd"
    state.pair = (2, "y")
    assert state.by_id == {1: b"\xfe", 2: b"\xfd"}
    assert list(state.by_id) == [1, 2]
    apply_patches(document, draft.render(document).patches)
    assert schema.load(document) == Typed(by_id={1: b"\xfe", 2: b"\xfd"}, pair=(2, "y"))


def test_nan_has_no_json_form() -> None:
    class Number(BaseModel):
        x: float = 0

    with pytest.raises(StateError, match="/x: nan has no JSON form"):
        Draft(StateSchema(Number), {"x": 0.0}).proxy.x = float("nan")


def test_unions_are_drafted_by_what_stands_there() -> None:
    class Circle(BaseModel):
        kind: Literal["circle"] = "circle"
        r: int = 1

    class Square(BaseModel):
        kind: Literal["square"] = "square"
        side: int = 1

    class Drawing(BaseModel):
        shape: Circle | Square | None = None
        tagged: Annotated[Circle | Square, Field(discriminator="kind")] = Circle()
        free: Any = None

    def change(d: Drawing) -> None:
        d.shape = Square()
        assert isinstance(d.shape, Square)
        d.shape.side = 3
        assert isinstance(d.tagged, Circle)
        d.tagged.r = 2
        d.free = {"list": [1]}
        d.free["list"].append({"x": None})

    assert written(StateSchema(Drawing), None, change) == [
        {"op": "replace", "path": "/shape", "value": {"kind": "square", "side": 3}},
        {"op": "replace", "path": "/free", "value": {"list": [1, {"x": None}]}},
        {"op": "replace", "path": "/tagged/r", "value": 2},
    ]


# ---------------------------------------------------------------------------------------------------------------------
# State types


@dataclass
class Part:
    n: int = 0


@dataclass
class Data:
    parts: list[Part] = field(default_factory=list[Part])
    name: str = "x"


class Typed(TypedDict, total=False):
    count: int
    temp: str
    tags: list[str]


class Needy(TypedDict):
    count: int
    temp: NotRequired[str]


def test_dataclasses_are_states() -> None:
    schema = StateSchema(Data)

    def change(d: Data) -> None:
        d.parts.append(Part(1))
        d.parts[0].n += 1
        assert isinstance(d.parts[0], Part)
        del d.name
        assert d.name == "x"

    assert written(schema, Data(name="y"), change) == [
        {"op": "remove", "path": "/name"},
        {"op": "add", "path": "/parts/0", "value": {"n": 2}},
    ]
    assert schema.load({"parts": [{"n": 1}]}) == Data([Part(1)])


def test_typed_dicts_are_states() -> None:
    schema = StateSchema(Typed)
    assert schema.initial() == {}

    def change(d: Typed) -> None:
        d["count"] = 5
        d["tags"] = []
        d["tags"].append("a")
        del d["temp"]
        with pytest.raises(StateError, match=r"there is no field 'cont'\. Did you mean 'count'"):
            d["cont"] = 3  # type: ignore

    assert written(schema, {"temp": "x"}, change) == [
        {"op": "add", "path": "/count", "value": 5},
        {"op": "add", "path": "/tags", "value": ["a"]},
        {"op": "remove", "path": "/temp"},
    ]
    with pytest.raises(KeyError):
        Draft(schema, {}).proxy["temp"]  # pyright: ignore[reportTypedDictNotRequiredAccess]


def test_no_state_is_the_document_none() -> None:
    schema = StateSchema(NoneType)
    schema.check_defaults()
    assert schema.initial() is None
    assert schema.load(None) is None
    with pytest.raises(UsageError, match="give it a state_type"):
        Draft(schema, None)
    with pytest.raises(StateError, match="cannot be given a state"):
        schema.initial({})  # pyright: ignore[reportArgumentType]


def test_a_state_without_defaults_is_refused_with_the_fields_named() -> None:
    class Wanting(BaseModel):
        a: int
        b: str = ""
        c: list[int]

    with pytest.raises(DefinitionError, match="Wanting has fields without defaults: a, c; give them defaults"):
        StateSchema(Wanting).check_defaults()
    with pytest.raises(DefinitionError, match="Needy has fields without defaults: count; mark them NotRequired"):
        StateSchema(Needy).initial()
    assert StateSchema(Wanting).initial({"a": 1, "c": []}) == {"a": 1, "b": "", "c": []}


def test_defaults_that_the_type_refuses_are_a_definition_error() -> None:
    class Wrong(BaseModel):
        a: int = None  # pyright: ignore[reportAssignmentType]

    with pytest.raises(DefinitionError, match="the defaults of the state type Wrong are not valid"):
        StateSchema(Wrong).check_defaults()


@pytest.mark.parametrize("state_type", [int, list[int], object()])
def test_other_types_are_not_states(state_type: Any) -> None:
    with pytest.raises(DefinitionError, match="the state type"):
        StateSchema(state_type)


def test_documents_have_field_names_and_no_computed_fields() -> None:
    class Aliased(BaseModel):
        model_config = ConfigDict(extra="forbid")
        user_name: str = Field("x", alias="userName")
        other: int = Field(1, validation_alias=AliasChoices("o", "oth"), serialization_alias="OTHER")

        @computed_field
        @property
        def twice(self) -> int:
            return self.other * 2

    schema = StateSchema(Aliased)
    assert schema.initial() == {"user_name": "x", "other": 1}
    assert schema.initial({"userName": "y", "o": 2}) == {"user_name": "y", "other": 2}
    assert schema.load({"user_name": "z", "other": 3}).twice == 6

    def change(d: Aliased) -> None:
        d.other = 4
        assert d.twice == 8

    assert written(schema, None, change) == [{"op": "replace", "path": "/other", "value": 4}]


def test_model_validators_run_when_a_model_is_given_not_when_its_fields_are_set() -> None:
    class Range(BaseModel):
        low: int = 0
        high: int = 1

        @model_validator(mode="after")
        def ordered(self) -> Range:
            if self.low > self.high:
                raise ValueError("low is above high")
            return self

    class Holder(BaseModel):
        range: Range = Range()

    draft = Draft(StateSchema(Holder), {"range": {"low": 0, "high": 1}}).proxy
    draft.range.low = 5
    with pytest.raises(StateError, match="low is above high"):
        draft.range = {"low": 2, "high": 1}  # pyright: ignore[reportAttributeAccessIssue]


def test_recursive_and_frozen_models_work() -> None:
    class Tree(BaseModel):
        name: str = ""
        children: list[Tree] = []

    class Fixed(BaseModel):
        model_config = ConfigDict(frozen=True)
        tags: list[str] = []

    class Root(BaseModel):
        tree: Tree = Tree()
        fixed: Fixed = Fixed()

    def change(d: Root) -> None:
        d.tree.children.append(Tree(name="a"))
        d.tree.children[0].children.append(Tree(name="b"))
        with pytest.raises(StateError, match=r"/fixed/tags: Fixed\.tags is frozen"):
            d.fixed.tags = ["x"]  # pyright: ignore[reportAttributeAccessIssue]

    Tree.model_rebuild(_types_namespace={"Tree": Tree})
    patches = written(StateSchema(Root), None, change)
    assert [patch["path"] for patch in patches] == ["/tree/children/0"]


def test_a_member_that_the_document_lacks_reads_as_its_default_and_is_written_when_changed() -> None:
    schema, document = BOARD, {"count": 1}
    draft = Draft(schema, document)
    assert draft.proxy.notes == []
    assert draft.proxy.title == ""
    draft.proxy.items.append(Item())
    assert [patch["path"] for patch in draft.render(document).patches] == ["/items"]


# ---------------------------------------------------------------------------------------------------------------------
# Overlapping drafts


def overlap(value: Any, *changes: Callable[[Any], Any]) -> tuple[Board, list[list[str]]]:
    """Drafts that are all open at once and end in this order: the state, and each one's conflicts."""
    room = Room(BOARD, value)
    drafts = [room.open() for _ in changes]
    for draft, change in zip(drafts, changes, strict=True):
        change(draft.proxy)
    conflicts = [room.commit(draft).conflicts for draft in drafts]
    return BOARD.load(room.document), conflicts


def test_appends_to_one_list_are_both_added_at_the_indices_as_they_are() -> None:
    board, conflicts = overlap({"notes": ["x"]}, lambda d: d.notes.append("a"), lambda d: d.notes.append("b"))
    assert (board.notes, conflicts) == (["x", "a", "b"], [[], []])


def test_of_two_writes_to_one_path_the_last_wins_and_is_a_conflict() -> None:
    board, conflicts = overlap(None, lambda d: setattr(d, "count", 1), lambda d: setattr(d, "count", 2))
    assert (board.count, conflicts) == (2, [[], ["/count"]])


def test_two_overlapping_increments_are_a_conflict_not_a_sum() -> None:
    def increment(d: Board) -> None:
        d.count += 1

    board, conflicts = overlap(None, increment, increment)
    assert (board.count, conflicts) == (1, [[], ["/count"]])


def test_a_list_replaced_over_an_append_of_others_is_a_conflict() -> None:
    board, conflicts = overlap(None, lambda d: d.notes.append("a"), lambda d: setattr(d, "notes", ["b"]))
    assert (board.notes, conflicts) == (["b"], [[], ["/notes"]])


def test_an_append_to_a_list_that_others_replaced_is_kept_and_is_a_conflict() -> None:
    board, conflicts = overlap({"notes": ["x"]}, lambda d: setattr(d, "notes", []), lambda d: d.notes.append("b"))
    assert (board.notes, conflicts) == (["b"], [[], ["/notes/0"]])


def test_index_edits_of_a_list_that_others_changed_hit_the_same_items_and_are_conflicts() -> None:
    board, conflicts = overlap(
        {"notes": ["a", "b", "c"]}, lambda d: d.notes.insert(0, "new"), lambda d: d.notes.__setitem__(1, "B")
    )
    assert (board.notes, conflicts) == (["new", "a", "B", "c"], [[], ["/notes"]])

    board, conflicts = overlap({"notes": ["a", "b"]}, lambda d: d.notes.append("c"), lambda d: d.notes.pop(0))
    assert (board.notes, conflicts) == (["b", "c"], [[], ["/notes"]])

    board, conflicts = overlap({"notes": ["b", "a"]}, lambda d: d.notes.append("c"), lambda d: d.notes.sort())
    assert (board.notes, conflicts) == (["a", "b", "c"], [[], ["/notes"]])


def test_of_two_writes_to_one_index_the_last_wins() -> None:
    board, conflicts = overlap(
        {"notes": ["a", "b"]}, lambda d: d.notes.__setitem__(1, "x"), lambda d: d.notes.__setitem__(1, "y")
    )
    assert (board.notes, conflicts) == (["a", "y"], [[], ["/notes/1"]])


def test_writes_to_different_indices_both_survive_without_conflict() -> None:
    board, conflicts = overlap(
        {"notes": ["a", "b"]}, lambda d: d.notes.__setitem__(0, "x"), lambda d: d.notes.__setitem__(1, "y")
    )
    assert (board.notes, conflicts) == (["x", "y"], [[], []])


def test_a_change_inside_an_item_follows_the_item() -> None:
    board, conflicts = overlap(
        Board(items=[Item(name="a"), Item(name="b")]),
        lambda d: d.items.pop(0),
        lambda d: setattr(d.items[1], "done", True),
    )
    assert (board.items, conflicts) == ([Item(name="b", done=True)], [[], []])


def test_an_item_that_others_removed_comes_back_when_it_was_changed() -> None:
    board, conflicts = overlap(
        Board(items=[Item(name="a"), Item(name="b")]),
        lambda d: d.items.pop(0),
        lambda d: setattr(d.items[0], "done", True),
    )
    assert (board.items, conflicts) == ([Item(name="a", done=True), Item(name="b")], [[], ["/items/0"]])


def test_a_member_whose_parent_others_removed_is_written_with_its_parent() -> None:
    board, conflicts = overlap(
        Board(owner=Item(name="a")), lambda d: setattr(d, "owner", None), lambda d: d.owner.tags.append("t")
    )
    assert (board.owner, conflicts) == (Item(name="a", tags=["t"]), [[], ["/owner"]])

    board, conflicts = overlap(Board(groups={"g": [1]}), lambda d: d.groups.pop("g"), lambda d: d.groups["g"].append(2))
    assert (board.groups, conflicts) == ({"g": [1, 2]}, [[], ["/groups/g"]])


def test_a_member_whose_parent_others_replaced_is_written_into_the_new_one() -> None:
    board, conflicts = overlap(
        Board(owner=Item(name="a")),
        lambda d: setattr(d, "owner", Item(name="new")),
        lambda d: setattr(d.owner, "done", True),
    )
    assert (board.owner, conflicts) == (Item(name="new", done=True), [[], ["/owner/done"]])


def test_a_member_of_a_union_that_others_replaced_by_another_kind_is_written_whole() -> None:
    class Dog(BaseModel):
        barks: int = 0

    class Cat(BaseModel):
        model_config = ConfigDict(extra="forbid")
        purrs: int = 0

    class Home(BaseModel):
        pet: Dog | Cat = Dog()

    room = Room(StateSchema(Home), None)
    first, second = room.open(), room.open()
    first.proxy.pet = Cat()
    second.proxy.pet.barks = 2
    room.commit(first)
    assert room.commit(second).conflicts == ["/pet"]
    assert room.document == {"pet": {"barks": 2}}


def test_a_draft_sees_what_others_commit_while_it_is_open() -> None:
    room = Room(BOARD, None)
    slow, quick = room.open(), room.open()
    slow.proxy.notes.append("mine")
    quick.proxy.notes.append("theirs")
    quick.proxy.count = 3
    room.commit(quick)
    assert slow.proxy.notes == ["theirs", "mine"]
    slow.proxy.count += 1
    assert room.commit(slow).conflicts == ["/count"]  # it saw the 3; helix cannot know that, and says so
    assert room.document["count"] == 4


def test_a_proxy_that_was_taken_before_others_replaced_its_list_still_writes() -> None:
    room = Room(BOARD, Board(notes=["old"]))
    slow, quick = room.open(), room.open()
    held = slow.proxy.notes
    quick.proxy.notes = ["new"]
    room.commit(quick)
    assert slow.proxy.notes == ["new"]
    held.append("mine")
    assert room.commit(slow).conflicts == ["/notes/1"]
    assert room.document["notes"] == ["new", "mine"]


def test_a_change_inside_an_item_follows_it_through_a_sort() -> None:
    board, conflicts = overlap(
        Board(items=[Item(name="b"), Item(name="a")]),
        lambda d: d.items.sort(key=lambda item: item.name),
        lambda d: setattr(d.items[0], "done", True),
    )
    assert (board.items, conflicts) == ([Item(name="a"), Item(name="b", done=True)], [[], ["/items/1/done"]])


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_block_may_await_while_another_one_ends(backend: str) -> None:
    async def main() -> None:
        room, open_now, ended = Room(BOARD, None), anyio.Event(), anyio.Event()

        async def slow() -> None:
            draft = room.open()
            draft.proxy.notes.append("slow")
            open_now.set()
            await ended.wait()
            room.commit(draft)

        async def quick() -> None:
            await open_now.wait()
            draft = room.open()
            draft.proxy.notes.append("quick")
            room.commit(draft)
            ended.set()

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(slow)
                tasks.start_soon(quick)
        assert room.document["notes"] == ["quick", "slow"]

    anyio.run(main, backend=backend)


# ---------------------------------------------------------------------------------------------------------------------
# Cost


def _append_seconds(size: int) -> float:
    """The best of many: one draft that appends one item, rendered and applied."""
    document = BOARD.initial(Board(notes=["x"] * size))
    best = 1.0
    for _ in range(200):
        start = perf_counter()
        draft = Draft(BOARD, document)
        draft.proxy.notes.append("new")
        patches = draft.render(document).patches
        apply_patches(document, patches)
        best = min(best, perf_counter() - start)
    return best


def test_an_append_costs_the_same_however_large_the_state_is() -> None:
    assert _append_seconds(5000) < 3 * _append_seconds(0)


def test_folding_appends_is_linear() -> None:
    def fold(size: int) -> float:
        document: dict[str, Any] = {"notes": ["x"] * size}
        start = perf_counter()
        for n in range(1000):
            apply_patches(document, [{"op": "add", "path": f"/notes/{size + n}", "value": "new"}])
        return perf_counter() - start

    assert min(fold(5000) for _ in range(3)) < 3 * min(fold(0) for _ in range(3))


# ---------------------------------------------------------------------------------------------------------------------
# Applying, and the mirror


def test_a_failing_patch_leaves_the_document_as_it_was() -> None:
    document = {"a": [1, 2], "b": 1}
    patches = [
        {"op": "remove", "path": "/b"},
        {"op": "add", "path": "/a/0", "value": 0},
        {"op": "remove", "path": "/x"},
    ]
    with pytest.raises(InvalidPatch, match="non-existent object 'x'"):
        apply_patches(document, patches)
    assert document == {"a": [1, 2], "b": 1}
    assert list(document) == ["a", "b"]


def test_the_document_shares_nothing_with_the_patches() -> None:
    patch = {"op": "add", "path": "/a", "value": [1]}
    document = apply_patches({}, [patch])
    document["a"].append(2)
    assert patch["value"] == [1]


def start(agent_id: str, state: Any, **more: Any) -> RunStart:
    return RunStart(agent_id, "worker", input=[], model="m", state=state, **more)


def test_the_mirror_folds_a_stream_into_documents() -> None:
    mirror = StateMirror()
    append = [{"op": "add", "path": "/notes/0", "value": "a"}]
    chunks: list[object] = [
        start("r", {"count": 0, "notes": []}),
        parse_chunk({"type": "from_the_future", "agentId": "r"}),
        TextDelta("r", "boss", "hello"),
        start("r.w-1", None, state_id="r"),
        StatePatch("r.w-1", "worker", append, state_id="r"),
        start("r.w-2", {"count": 7}),
        StatePatch("r.w-2", "worker", [{"op": "replace", "path": "/count", "value": 8}]),
        object(),
    ]
    for chunk in chunks:
        mirror.apply(chunk)

    assert mirror.documents == {"r": {"count": 0, "notes": ["a"]}, "r.w-2": {"count": 8}}
    assert mirror.state("r.w-1", Board) == Board(notes=["a"]) == mirror.state("r", Board)
    assert mirror.state("r.w-2", Board).count == 8


def test_the_mirror_owns_its_copies() -> None:
    mirror, state, patches = StateMirror(), {"notes": []}, [{"op": "add", "path": "/notes/0", "value": "a"}]
    mirror.apply(start("r", state))
    mirror.apply(StatePatch("r", "worker", patches))
    mirror.documents["r"]["notes"].append("b")
    assert state == {"notes": []}
    assert patches == [{"op": "add", "path": "/notes/0", "value": "a"}]


def test_the_mirror_refuses_a_patch_for_a_document_that_it_has_not_seen() -> None:
    with pytest.raises(InvalidPatch, match="'r', whose run_start was not seen"):
        StateMirror().apply(StatePatch("r", "worker", []))
    with pytest.raises(KeyError):
        StateMirror().state("r", Board)


def test_the_code_of_the_docs_page_runs() -> None:
    page = (Path(__file__).parent.parent / "docs" / "state.md").read_text()
    names: dict[str, Any] = {"__name__": "docs_state"}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "docs/state.md", "exec", dont_inherit=True), names)
    assert names["shown"] == 4


def test_fast_json_patch_gives_the_documents_of_the_page() -> None:
    room = Room(StateSchema(Page), None)
    initial, patches, documents = copy.deepcopy(room.document), list[Any](), list[Any]()
    for change in (
        lambda d: setattr(d, "count", 5),
        lambda d: d.items.append("new"),
        lambda d: delattr(d, "temp"),
        lambda d: d.items.extend(["é", "\u2028"]),
    ):
        draft = room.open()
        change(draft.proxy)
        patches.append(room.commit(draft).patches)
        documents.append(copy.deepcopy(room.document))
    validate_with_fast_json_patch(initial, patches, documents)


# ---------------------------------------------------------------------------------------------------------------------
# Properties: a draft does what a Python object does; overlapping drafts always come to applicable patches


texts = st.sampled_from(["a", "b", "c", "d/e", "~f"])
small = st.integers(-4, 4)
items = st.builds(Item, name=texts, tags=st.lists(texts, max_size=2))
slices = st.builds(slice, small | st.none(), small | st.none(), st.sampled_from([None, 1, 2, -1]))

ACTIONS: dict[str, tuple[Callable[..., Any], list[st.SearchStrategy[Any]]]] = {
    "set count": (lambda s, n: setattr(s, "count", n), [small]),
    "increment": (lambda s, n: setattr(s, "count", s.count + n), [small]),
    "title +=": (lambda s, t: setattr(s, "title", s.title + t), [texts]),
    "owner": (lambda s, i: setattr(s, "owner", i), [items | st.none()]),
    "owner.name": (lambda s, t: setattr(s.owner, "name", t), [texts]),
    "owner.tags": (lambda s, t: s.owner.tags.append(t), [texts]),
    "append": (lambda s, t: s.notes.append(t), [texts]),
    "extend": (lambda s, ts: s.notes.extend(ts), [st.lists(texts, max_size=3)]),
    "insert": (lambda s, n, t: s.notes.insert(n, t), [small, texts]),
    "pop": (lambda s, n: s.notes.pop(n), [small]),
    "pop last": (lambda s: s.notes.pop(), []),
    "remove": (lambda s, t: s.notes.remove(t), [texts]),
    "clear": (lambda s: s.notes.clear(), []),
    "sort": (lambda s, r: s.notes.sort(reverse=r), [st.booleans()]),
    "reverse": (lambda s: s.notes.reverse(), []),
    "set item": (lambda s, n, t: s.notes.__setitem__(n, t), [small, texts]),
    "set slice": (lambda s, n, ts: s.notes.__setitem__(n, ts), [slices, st.lists(texts, max_size=3)]),
    "del item": (lambda s, n: s.notes.__delitem__(n), [small]),
    "del slice": (lambda s, n: s.notes.__delitem__(n), [slices]),
    "replace list": (lambda s, ts: setattr(s, "notes", ts), [st.lists(texts, max_size=3)]),
    "items.append": (lambda s, i: s.items.append(copy.deepcopy(i)), [items]),
    "items.insert": (lambda s, n, i: s.items.insert(n, copy.deepcopy(i)), [small, items]),
    "items.pop": (lambda s, n: s.items.pop(n).name, [small]),
    "items.sort": (lambda s: s.items.sort(key=lambda i: i.name), []),
    "item.done": (lambda s, n: setattr(s.items[n], "done", True), [small]),
    "item.tags": (lambda s, n, t: s.items[n].tags.append(t), [small, texts]),
    "item.tags.pop": (lambda s, n: s.items[n].tags.pop(0), [small]),
    "every item": (lambda s, t: [setattr(i, "name", i.name + t) for i in s.items] and None, [texts]),
    "scores": (lambda s, k, n: s.scores.__setitem__(k, n), [texts, small]),
    "del score": (lambda s, k: s.scores.__delitem__(k), [texts]),
    "update": (lambda s, d: s.scores.update(d), [st.dictionaries(texts, small, max_size=3)]),
    "pop score": (lambda s, k: s.scores.pop(k, None), [texts]),
    "setdefault": (lambda s, k, n: s.scores.setdefault(k, n), [texts, small]),
    "scores.clear": (lambda s: s.scores.clear(), []),
    "groups": (lambda s, k, n: s.groups.setdefault(k, []).append(n), [texts, small]),
    "del group": (lambda s, k: s.groups.pop(k), [texts]),
    "labels.add": (lambda s, t: s.labels.add(t), [texts]),
    "labels.discard": (lambda s, t: s.labels.discard(t), [texts]),
    "labels.remove": (lambda s, t: s.labels.remove(t), [texts]),
    "labels |=": (lambda s, t: setattr(s, "labels", s.labels | t), [st.sets(texts)]),
    "labels ^=": (lambda s, t: s.labels.__ixor__(t) and None, [st.sets(texts)]),
    "copy a part": (lambda s, n: s.items.append(copy.deepcopy(s.items[n])), [small]),
}
action = st.sampled_from(sorted(ACTIONS)).flatmap(lambda name: st.tuples(st.just(name), *ACTIONS[name][1]))
boards = st.builds(
    Board,
    notes=st.lists(texts, max_size=5),
    items=st.lists(items, max_size=4),
    scores=st.dictionaries(texts, small, max_size=3),
    labels=st.sets(texts),
    owner=items | st.none(),
)


def act(state: Any, step: tuple[Any, ...]) -> Any:
    """What one action gives: its value, or the kind of its error."""
    try:
        return ACTIONS[step[0]][0](state, *copy.deepcopy(step[1:]))
    except (IndexError, KeyError, ValueError, AttributeError) as error:
        return type(error) if not isinstance(error, AttributeError) else AttributeError


@settings(max_examples=400, deadline=None)
@given(boards, st.lists(action, max_size=12))
def test_a_draft_does_what_a_plain_object_does(board: Board, steps: list[Any]) -> None:
    document = BOARD.initial(board)
    before = copy.deepcopy(document)
    plain = BOARD.load(document)
    draft = Draft(BOARD, document)

    for step in steps:
        assert act(draft.proxy, step) == act(plain, step)
        assert draft.proxy == plain

    rendered = draft.render(document)
    assert document == before
    assert not rendered.conflicts
    patched = JsonPatch(rendered.patches).apply(document)
    assert BOARD.load(patched) == plain


@settings(max_examples=400, deadline=None)
@given(boards, st.lists(st.tuples(st.integers(0, 2), action | st.just(("commit",))), max_size=16))
def test_overlapping_drafts_always_come_to_patches_that_apply_and_validate(board: Board, script: list[Any]) -> None:
    room = Room(BOARD, board)
    drafts = {n: room.open() for n in range(3)}

    for n, step in [*script, *((n, ("commit",)) for n in range(3))]:
        if step == ("commit",):
            on_a_copy = room.render(drafts[n], copy.deepcopy(room.document))
            BOARD.load(apply_patches(copy.deepcopy(room.document), on_a_copy.patches))
            room.commit(drafts[n])
            BOARD.load(room.document)
            drafts[n] = room.open()
        else:
            act(drafts[n].proxy, step)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), texts), max_size=12), st.permutations(range(3)), st.lists(small, max_size=3)
)
def test_appends_of_overlapping_drafts_and_writes_to_different_paths_all_survive(
    appends: list[tuple[int, str]], order: list[int], edits: list[int]
) -> None:
    room = Room(BOARD, Board(notes=["first"], items=[Item(name="x")]))
    drafts = [room.open() for _ in range(3)]
    writes: list[Callable[[Any], None]] = [
        lambda s: setattr(s, "count", 7),
        lambda s: setattr(s.items[0], "done", True),
        lambda s: s.scores.__setitem__("k", 3),
    ]
    for n, text in appends:
        drafts[n].proxy.notes.append(f"{n}{text}")
    for draft, write in zip(drafts, writes, strict=True):
        write(draft.proxy)
    conflicts = [room.commit(drafts[n]).conflicts for n in order]

    board = BOARD.load(room.document)
    expected = ["first", *(f"{n}{text}" for n in order for m, text in appends if m == n)]
    assert board.notes == expected
    assert (board.count, board.items[0].done, board.scores) == (7, True, {"k": 3})
    assert conflicts == [[], [], []]


@settings(max_examples=400, deadline=None)
@given(
    st.integers(0, 5),
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["append", "insert", "pop", "sort", "commit"]), small)),
)
def test_nothing_that_is_put_into_a_list_is_lost_unless_a_draft_took_it_out(size: int, script: list[Any]) -> None:
    room = Room(BOARD, Board(notes=[f"start{n}" for n in range(size)]))
    drafts = {n: room.open() for n in range(3)}
    put, taken = set(room.document["notes"]), set[str]()

    for number, (n, step, index) in enumerate([*script, *((n, "commit", 0) for n in range(3))]):
        notes = drafts[n].proxy.notes
        if step == "append":
            notes.append(f"new{number}")
            put.add(f"new{number}")
        elif step == "insert":
            notes.insert(index, f"new{number}")
            put.add(f"new{number}")
        elif step == "pop" and len(notes) > index >= -len(notes):
            taken.add(notes.pop(index))
        elif step == "sort":
            notes.sort()
        elif step == "commit":
            room.commit(drafts[n])
            drafts[n] = room.open()

    assert len(room.document["notes"]) == len(set(room.document["notes"]))
    assert set(room.document["notes"]) == put - taken


def test_fast_json_patch_rebuilds_random_runs_at_every_prefix() -> None:
    runs: list[tuple[Any, list[Any], list[Any]]] = []

    @settings(max_examples=80, deadline=None, phases=[Phase.generate], derandomize=True)
    @given(boards, st.lists(st.tuples(st.integers(0, 1), action | st.just(("commit",))), max_size=20))
    def collect(board: Board, script: list[Any]) -> None:
        room = Room(BOARD, board)
        initial, patches, documents = copy.deepcopy(room.document), list[Any](), list[Any]()
        drafts = {n: room.open() for n in range(2)}
        for n, step in [*script, (0, ("commit",)), (1, ("commit",))]:
            if step == ("commit",):
                patches.append(room.commit(drafts[n]).patches)
                documents.append(copy.deepcopy(room.document))
                drafts[n] = room.open()
            else:
                act(drafts[n].proxy, step)
        runs.append((initial, patches, documents))

    collect()
    validate_runs(runs)
