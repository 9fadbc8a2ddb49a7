"""Every public name says what it is: modules, functions, constants, classes, their methods and their fields."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import helix
from helix import chunks

ROOT = Path(helix.__file__).parent.parent
MODULES = [
    "helix",
    "helix.chunks",
    "helix.commands",
    "helix.errors",
    "helix.filters",
    "helix.limits",
    "helix.messages",
    "helix.model",
    "helix.models",
    "helix.models.openai_chat",
    "helix.models.openai_responses",
    "helix.results",
    "helix.state",
    "helix.testing",
]
_TABLED = {
    kind.__name__ for kind in (*chunks.CHUNK_TYPES.values(), chunks.UnknownChunk, chunks.StreamEnd, chunks.Resync)
}
"""Whose fields stand in the table of `docs/streaming.md`, which `test_docs` compares with them."""


def tree_of(module: ModuleType) -> ast.Module:
    return ast.parse(Path(str(module.__file__)).read_text("utf-8"))


def assigned(body: list[ast.stmt]) -> dict[str, bool]:
    """The names that are assigned in a module or class, and whether a docstring stands below each."""
    found: dict[str, bool] = {}
    for statement, below in zip(body, [*body[1:], None], strict=True):
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        told = (
            isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
        )
        for target in targets:
            if isinstance(target, ast.Name | ast.Attribute):
                found[target.id if isinstance(target, ast.Name) else target.attr] = told
    return found


def own_names(module: ModuleType) -> set[str]:
    """The module's `__all__`, or the public names that it defines."""
    if hasattr(module, "__all__"):
        return set(module.__all__)
    tree = tree_of(module)
    defined = {
        node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    }
    return {name for name in defined | set(assigned(tree.body)) if not name.startswith("_")}


def is_variable(value: Any) -> bool:
    """Type variables, which are for signatures."""
    return type(value).__name__ in ("TypeVar", "ParamSpec")


def undocumented(module: ModuleType) -> Iterator[str]:
    for name in sorted(own_names(module)):
        value = getattr(module, name)
        if inspect.isclass(value):
            yield from (f"{name}{problem}" for problem in undocumented_in(value))
        elif inspect.isroutine(value):
            if not value.__doc__:
                yield name
        elif not is_variable(value) and not documented_constant(name, module):
            yield name


def documented_constant(name: str, module: ModuleType) -> bool:
    """Whether a docstring stands below it, here or in the module that it comes from."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return documented_constant(name, importlib.import_module(str(node.module)))
    return assigned(tree_of(module).body).get(name, False)


def undocumented_in(cls: type[Any]) -> Iterator[str]:
    if not own_doc(cls):
        yield ""
    for name, member in vars(cls).items():
        if name.startswith("_") or not (inspect.isroutine(member) or isinstance(member, property)):
            continue
        if not inspect.getdoc(getattr(cls, name)):
            yield f".{name}"
    if cls.__name__ not in _TABLED:
        yield from (f".{name}" for name in sorted(fields_of(cls)) if not told(cls, name))


def own_doc(cls: type[Any]) -> str:
    """Its docstring, unless `@dataclass` wrote that by itself."""
    text = cls.__doc__ or ""
    return "" if text.startswith(f"{cls.__name__}(") else text


def class_node(cls: type[Any]) -> ast.ClassDef:
    tree = tree_of(importlib.import_module(cls.__module__))
    return next(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == cls.__name__)


def fields_of(cls: type[Any]) -> set[str]:
    """Its own public dataclass fields, and what its `__init__` sets."""
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    names = {field.name for field in fields if not str(field.type).startswith("Literal[")}  # which say what they are
    for node in ast.walk(class_node(cls)):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            targets = [target for target in ast.walk(node) if isinstance(target, ast.Attribute)]
            names |= {
                target.attr
                for target in targets
                if isinstance(target.ctx, ast.Store)
                and isinstance(target.value, ast.Name)
                and target.value.id == "self"
            }
    return {name for name in names if not name.startswith("_")}


def told(cls: type[Any], name: str) -> bool:
    """Whether the docstring of the class, of its `__init__` or of a base names it, or one stands below it."""
    word = re.compile(rf"\b{name}\b")
    for base in cls.__mro__:
        if base.__module__.startswith("helix"):
            texts = (own_doc(base), vars(base).get("__init__") and base.__init__.__doc__)
            bodies = [
                node.body for node in ast.walk(class_node(base)) if isinstance(node, ast.ClassDef | ast.FunctionDef)
            ]
            if any(word.search(text or "") for text in texts) or any(assigned(body).get(name) for body in bodies):
                return True
    return False


@pytest.mark.parametrize("name", MODULES)
def test_everything_public_is_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    assert list(undocumented(module)) == []


def in_code(page: Path) -> set[str]:
    """The words in the code of a page, in blocks and in lines."""
    return set(re.findall(r"\w+", " ".join(re.findall(r"```.*?```|`[^`]+`", page.read_text("utf-8"), re.S))))


def test_the_reference_page_has_every_name_of_helix_once() -> None:
    rows = re.findall(r"^\| (`.*?`) \|", (ROOT / "docs" / "reference.md").read_text("utf-8"), re.M)
    assert sorted(re.findall(r"\w+", " ".join(rows))) == sorted(helix.__all__)


def test_the_page_about_testing_has_every_name_of_helix_testing() -> None:
    assert set(importlib.import_module("helix.testing").__all__) - in_code(ROOT / "docs" / "testing.md") == set()


def test_the_search_finds_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        '"""A module."""\nfrom dataclasses import dataclass\nLIMIT = 3\nTOLD = 4\n"""A number."""\n'
        "def function(): ...\n@dataclass\nclass Bare:\n    field: int\n"
        'class Told:\n    """Told; `size` is there."""\n    def __init__(self):\n        self.size = self.color = 1\n'
        "    def method(self): ...\n    @property\n    def prop(self): ...\n    def _private(self): ...\n"
    )
    (tmp_path / "helix_sample.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    missing = {"LIMIT", "function", "Bare", "Bare.field", "Told.method", "Told.prop", "Told.color"}
    assert set(undocumented(importlib.import_module("helix_sample"))) == missing
