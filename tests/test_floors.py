"""The package's shape: what `import helix` costs, what it offers, and that imports only go down."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import helix

ROOT = Path(helix.__file__).parent

FLOORS: list[set[str]] = [
    {"bell", "chunks", "commands", "messages", "parts", "limits", "errors"},
    {
        "fold",
        "nodes",
        "outline",
        "log",
        "state",
        "schema",
        "strict",
        "filters",
        "items",
        "context",
        "tools",
        "model",
        "providers",
        "results",
        "store",
        "stores",
        "trimming",
    },
    {
        "agent",
        "models",
        "reply",
        "call",
        "decide",
        "endings",
        "steps",
        "judging",
        "live",
        "owner",
        "approvals",
        "journal",
        "shelf",
        "forking",
        "prices",
        "inputs",
        "resources",
        "turns",
    },
    {"loop", "root"},
    {"handle", "executor", "api", "session", "sync"},
    {"testing"},
    {"", "cli"},
]
"""The modules and packages of each floor, from the lowest; the empty name is `helix` itself."""

PUBLIC = [
    "Agent",
    "AgentEnded",
    "AlreadyAnswered",
    "Approve",
    "AssistantMessage",
    "Audio",
    "Chunk",
    "ClientResult",
    "DefinitionError",
    "Deny",
    "Executor",
    "File",
    "HelixError",
    "Image",
    "InvalidAnswer",
    "InvalidChunk",
    "InvalidPatch",
    "LimitReached",
    "Limits",
    "MemoryStore",
    "Message",
    "MissingKey",
    "Model",
    "ModelError",
    "ModelProfile",
    "ModelReply",
    "ModelRequest",
    "ModelRetry",
    "ModelSettings",
    "Price",
    "ProviderLimits",
    "RunBusy",
    "RunCancelled",
    "RunEnded",
    "RunError",
    "RunExists",
    "RunFailed",
    "RunHandle",
    "RunResult",
    "RunStream",
    "RunSuspended",
    "RunTree",
    "Session",
    "SessionBusy",
    "StaleWriter",
    "StateError",
    "StateMirror",
    "StoreError",
    "Tool",
    "ToolContext",
    "ToolEnded",
    "ToolMessage",
    "Toolset",
    "UnknownAgent",
    "UnknownApproval",
    "UnknownChunk",
    "UnknownModel",
    "UnknownRun",
    "Usage",
    "UsageError",
    "UserMessage",
    "apply_patches",
    "chunk_to_dict",
    "chunk_to_json",
    "collect",
    "filter_stream",
    "filter_stream_by_agent",
    "filter_stream_by_type",
    "parse_chunk",
    "partial_items",
    "partial_outputs",
    "run",
    "run_sync",
    "stream",
    "stream_sync",
    "text",
    "tool",
]


def modules() -> dict[str, Path]:
    """Every module of helix by its full name."""
    found: dict[str, Path] = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ["helix", *path.relative_to(ROOT).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(source: str, module: str, package: str) -> Iterator[str]:
    """The helix modules that the source text imports anywhere: at its top, in functions, for type checkers."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "helix")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")
                base = ".".join([*above[: len(above) - node.level + 1], *([base] if base else [])])
            if base.split(".")[0] == "helix":
                names = [f"{base}.{alias.name}" for alias in node.names]
                yield from {name if name in MODULES else base for name in names}


def imports_of(module: str) -> set[str]:
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return set(imported(path.read_text("utf-8"), module, package))


def floor_of(module: str) -> int:
    first = module.removeprefix("helix").removeprefix(".").split(".")[0]
    return next(number for number, names in enumerate(FLOORS, start=1) if first in names)


def test_importing_helix_loads_no_provider_and_no_other_event_loop() -> None:
    heavy = ["openai", "httpx2", "httpcore2", "aiohttp", "trio"]
    code = f"import sys, helix; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


def test_the_public_names_are_these() -> None:
    assert helix.__all__ == PUBLIC
    assert [name for name in PUBLIC if not hasattr(helix, name)] == []


def test_every_module_stands_on_a_floor_and_every_floor_is_built() -> None:
    tops = {module.removeprefix("helix").removeprefix(".").split(".")[0] for module in MODULES}
    assert tops == set().union(*FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_or_sideways(module: str) -> None:
    upwards = {other for other in imports_of(module) if floor_of(other) > floor_of(module)}
    assert upwards == set()


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {module: imports_of(module) for module in MODULES}
    order = list(TopologicalSorter(graph).static_order())  # CycleError names the circle
    assert set(order) == set(MODULES)


def test_the_import_finder_sees_every_way_to_import() -> None:
    source = (
        "import helix.log\n"
        "from helix import chunks as c\n"
        "from helix.state import StateMirror, patches\n"
        "def late():\n    from helix.models._sse import x\n"
        "if TYPE_CHECKING:\n    from . import _errors\n    from .. import api\n    from ..loop import run_agent\n"
    )
    found = set(imported(source, "helix.models.openai_chat", "helix.models"))
    names = ("log", "chunks", "state", "state.patches", "models._sse", "models._errors", "api", "loop")
    assert found == {f"helix.{name}" for name in names}
