"""`module:agent` or `path/to/file.py:agent` to the agent that it names.  Floor 7."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from types import ModuleType
from typing import Any, cast

from helix.agent import Agent
from helix.errors import DefinitionError, HelixError, UsageError, did_you_mean


def load_agent(name: str) -> Agent[Any, Any, Any]:
    """The agent of that name; modules are looked for in the current folder first.

    Raises:
        UsageError: the name has not this form, or there is no such module.
        DefinitionError: the module cannot be imported, has no such attribute, or that is no agent.
    """
    where, _, attribute = name.rpartition(":")
    if not where or not attribute:
        raise UsageError(f"{name!r} names no agent; write module:agent or path/to/file.py:agent")
    module = _load(where)
    found = getattr(module, attribute, None)
    if isinstance(found, Agent):
        return cast("Agent[Any, Any, Any]", found)
    agents = [key for key, value in vars(module).items() if isinstance(value, Agent)]
    known = f" Its agents: {', '.join(agents)}." if agents else " It has no agents."
    if found is None:
        raise DefinitionError(f"{where} has no {attribute!r}.{did_you_mean(attribute, agents)}{known}")
    raise DefinitionError(f"{name} is not an Agent but {_a(type(found).__name__)}.{known}")


def _a(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def _load(where: str) -> ModuleType:
    sys.path.insert(0, os.getcwd())
    try:
        return _load_file(where) if where.endswith(".py") else _load_module(where)
    except HelixError as error:
        raise type(error)(f"{where}: {error}") from None
    except Exception as error:
        raise DefinitionError(f"{where} cannot be imported: {type(error).__name__}: {error}{_place(error)}") from None


def _load_module(where: str) -> ModuleType:
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise  # the module is there; something that it imports is not
        raise UsageError(f"no module {error.name!r} in the current folder or on the Python path") from None
    except (TypeError, ValueError):
        if where.strip(".") == where:
            raise
        raise UsageError("not a module's name") from None


def _load_file(path: str) -> ModuleType:
    if not os.path.isfile(path):
        raise UsageError("no such file")
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    name = f"helix_run_{os.path.basename(path)[:-3]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _place(error: Exception) -> str:
    """Where in the user's code it was raised."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""


def _is_users(filename: str) -> bool:
    return filename != __file__ and not filename.startswith("<frozen") and f"{os.sep}importlib{os.sep}" not in filename
