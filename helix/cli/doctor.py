"""`helix doctor`: whether what helix needs is there: versions, extras, keys, servers, the terminal.

Floor 7. Of the environment only names are shown, never values; of a server's address only what cannot be a secret. The
servers are asked without a key, in threads of their own, since a look-up of a name may hang for as long as it likes.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
import queue
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic_core import to_json

from helix import __version__
from helix.cli.console import Console
from helix.cli.loops import run_async
from helix.cli.stored import VARIABLE, is_missing_file, store_of
from helix.errors import HelixError
from helix.outline import plain

DISTRIBUTION = "helix-agents"
EXTRAS = {
    "cli": ("rich",),
    "cost": ("genai-prices",),
    "fast": ("aiohttp", "uvloop"),
    "postgres": ("psycopg",),
    "redis": ("redis",),
    "trio": ("trio",),
}
"""What each extra brings, by the names of distributions."""
if sys.platform == "win32":
    EXTRAS["fast"] = ("aiohttp",)

KEYS = (
    "OPENAI_API_KEY",
    "AZURE_OPENAI_API_KEY",
    "AZURE_OPENAI_AD_TOKEN",
    "ANTHROPIC_API_KEY",
    "GEMINI_API_KEY",
    "GOOGLE_API_KEY",
)
SETTINGS = (
    "OPENAI_BASE_URL",
    "AZURE_OPENAI_ENDPOINT",
    "OPENAI_API_VERSION",
    "ANTHROPIC_BASE_URL",
    "GOOGLE_GEMINI_BASE_URL",
    VARIABLE,
)
PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy", "all_proxy")

_GOOGLE = "https://generativelanguage.googleapis.com"
_SERVERS = (
    ("openai", ("OPENAI_API_KEY",), "OPENAI_BASE_URL", "https://api.openai.com/v1"),
    ("azure", (), "AZURE_OPENAI_ENDPOINT", ""),
    ("anthropic", ("ANTHROPIC_API_KEY",), "ANTHROPIC_BASE_URL", "https://api.anthropic.com"),
    ("google", ("GEMINI_API_KEY", "GOOGLE_API_KEY"), "GOOGLE_GEMINI_BASE_URL", _GOOGLE),
)
"""Each with its keys, the variable with its address, and the address if there is none."""
_MARKS = {"ok": "✓", "absent": "·", "broken": "✗", "fact": " "}


@dataclass(slots=True, frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        status: `ok`; `absent`, which is no fault; `broken`, which is one; or a `fact`.
        value: what was found.
        advice: what to do about it, if anything.
    """

    section: str
    name: str
    status: Literal["ok", "absent", "broken", "fact"]
    value: str
    advice: str = ""


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "doctor",
        help="see whether everything that helix needs is there",
        description="Look at versions, extras, the environment (names only, never values), the servers of models, "
        "the store and the terminal. Exit codes: 0 all is well, 1 something that is needed is broken.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument("--timeout", type=float, default=3.0, metavar="SECONDS", help="how long a server may take (3)")
    parser.set_defaults(command=doctor)


def doctor(options: argparse.Namespace) -> int:
    """Runs the command and gives its exit code."""
    servers, store = _servers(options.timeout), _store(options.timeout)
    findings = [*_versions(), *_extras(), *_environment(), *servers, *store, *_terminal()]
    broken = sum(finding.status == "broken" for finding in findings)
    out = Console(sys.stdout)
    if options.json:
        out.write(to_json({"ok": not broken, "findings": [asdict(finding) for finding in findings]}) + b"\n")
    else:
        for line in _lines(findings):
            out.line(plain(line))
        out.line(f"{broken} broken" if broken else "all is well")
    return 1 if broken else 0


def _lines(findings: Iterable[Finding]) -> Iterator[str]:
    for section, group in groupby(findings, key=lambda finding: finding.section):
        yield section
        for item in group:
            yield f"  {_MARKS[item.status]} {item.name:<22} {item.value}{item.advice and f': {item.advice}'}"


# --- versions and extras


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "helix", "ok", __version__)
    where = f"{platform.python_version()} ({platform.python_implementation()}, {platform.system()}), {sys.executable}"
    yield Finding("versions", "python", "ok", where)
    for requirement in importlib.metadata.requires(DISTRIBUTION) or ():
        if "extra ==" not in requirement:
            yield _dependency(requirement)


def _dependency(requirement: str) -> Finding:
    """Whether it is installed, new enough, and can be imported."""
    found = re.match(r"[\w.-]+", requirement)
    name = found[0] if found else requirement
    wanted = requirement.removeprefix(name).partition(";")[0].strip()
    advice = f"pip install '{name}{wanted}'"
    version = _version(name)
    if version is None:
        return Finding("versions", name, "broken", f"not installed, {wanted} is needed", advice)
    if not _fits(version, wanted):
        return Finding("versions", name, "broken", f"{version}, but {wanted} is needed", advice)
    try:
        importlib.import_module(name.replace("-", "_"))
    except Exception as error:
        return Finding("versions", name, "broken", f"{version}, which cannot be imported ({error!r})", advice)
    return Finding("versions", name, "ok", version)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _fits(version: str, wanted: str) -> bool:
    """Whether the version is within bounds such as `>=3.0,<4`, the only ones that helix writes."""
    for sign, bound in re.findall(r"(>=|<)([\d.]+)", wanted):
        if (_numbers(version) >= _numbers(bound)) != (sign == ">="):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    """Its first three numbers; of `1.2rc1`, 1, 2 and 0."""
    found = re.match(r"\d*(?:\.\d+)*", version)
    numbers = [int(number) for number in (found[0] if found else "").split(".") if number]
    return tuple([*numbers, 0, 0, 0][:3])


def _extras() -> Iterator[Finding]:
    for extra, distributions in EXTRAS.items():
        found = {name: _version(name) for name in distributions}
        missing = [name for name, version in found.items() if version is None]
        there = ", ".join(f"{name} {version}" for name, version in found.items() if version is not None)
        if missing:
            value = f"without {', '.join(missing)}" if there else "not installed"
            yield Finding("extras", extra, "absent", value, f"pip install '{DISTRIBUTION}[{extra}]'")
        else:
            yield Finding("extras", extra, "ok", there)


# --- the environment and the servers


def _environment() -> Iterator[Finding]:
    for name in (*KEYS, *SETTINGS):
        value = _given(name)
        if name in KEYS and not re.fullmatch(r"[^\s'\"\x00-\x1f\x7f-\U0010ffff]*", value):
            yield Finding("environment", name, "broken", "set, with a character in it that no key has", "set it anew")
        else:
            yield Finding("environment", name, "ok" if value else "absent", "set" if value else "not set")
    for name in PROXIES:
        if _given(name):
            yield Finding("environment", name, "ok", "set; servers are reached through it")


def _given(name: str) -> str:
    return os.environ.get(name, "").strip()


def _servers(timeout: float) -> list[Finding]:
    """Tries the servers for which there is a key or an address, all at once."""
    wanted = {
        name: _given(variable) or default
        for name, keys, variable, default in _SERVERS
        if _given(variable) or any(map(_given, keys))
    }
    if not wanted:
        return [Finding("servers", "none", "absent", "neither a key nor an address is set, so none is tried")]
    answers: queue.Queue[Finding] = queue.Queue()
    for name, url in wanted.items():
        threading.Thread(target=_answer, args=(answers, name, url, timeout), daemon=True).start()
    deadline = time.monotonic() + timeout + 1
    found: dict[str, Finding] = {}
    while len(found) < len(wanted):
        try:
            answer = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        found[answer.name] = answer
    return [found.get(name) or _unreached(name, url, f"no answer in {timeout:g} s") for name, url in wanted.items()]


def _answer(answers: queue.Queue[Finding], name: str, url: str, timeout: float) -> None:
    answers.put(_try(name, url, timeout))


def _try(name: str, url: str, timeout: float) -> Finding:
    shown = shown_url(url)
    if shown is None:
        return Finding("servers", name, "broken", "its address does not begin with http:// or https:// and a host")
    try:
        import httpx2  # here, so that the doctor can also tell that it is missing
    except ImportError:
        return _unreached(name, url, "httpx2 cannot be imported")
    begun = time.monotonic()
    try:
        with httpx2.Client(timeout=timeout) as client, client.stream("GET", url) as response:
            status = response.status_code
    except httpx2.TimeoutException:
        return _unreached(name, url, f"no answer in {timeout:g} s")
    except (httpx2.HTTPError, OSError) as error:
        return _unreached(name, url, str(error).partition("\n")[0] or type(error).__name__)
    except Exception as error:  # its text may quote the address, or a header
        return _unreached(name, url, type(error).__name__)
    took = round((time.monotonic() - begun) * 1000)
    return Finding("servers", name, "ok", f"{shown} answers (HTTP {status}, asked without a key) in {took} ms")


def _unreached(name: str, url: str, why: str) -> Finding:
    value = f"{shown_url(url) or 'the server'} cannot be reached ({why})"
    return Finding("servers", name, "broken", value, "look at the address, the network and the proxy")


def shown_url(url: str) -> str | None:
    """The address without user, password, query, and long parts of its path; None if it is none."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not host:
        return None
    path = "/".join("…" if len(part) > 20 else part for part in parts.path.split("/"))
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{path}"


# --- the store


def _store(timeout: float) -> Iterator[Finding]:
    """Opens the store of the environment as a run would; a file that is not there yet is not made."""
    url = _given(VARIABLE)
    if not url:
        yield Finding("store", "store", "absent", f"{VARIABLE} is not set, so none is tried")
    elif is_missing_file(url):
        yield Finding("store", "store", "absent", "its file is not there yet; the first run makes it")
    else:
        answers: queue.Queue[Finding] = queue.Queue()
        threading.Thread(target=lambda: answers.put(_open(url)), daemon=True).start()
        try:
            yield answers.get(timeout=timeout)
        except queue.Empty:
            why = f"it cannot be reached (no answer in {timeout:g} s)"
            yield Finding("store", "store", "broken", why, "look at the address and the network")


def _open(url: str) -> Finding:
    begun = time.monotonic()
    try:
        run_async(_look, url)
    except HelixError as error:  # its text has no password in it
        return Finding("store", "store", "broken", " ".join(str(error).split()))
    except Exception as error:  # its text may quote the address
        return Finding("store", "store", "broken", f"it cannot be opened ({type(error).__name__})")
    return Finding("store", "store", "ok", f"can be read, in {round((time.monotonic() - begun) * 1000)} ms")


async def _look(url: str) -> None:
    async with store_of(url) as store:
        await store.runs(limit=1)


# --- the terminal


def _terminal() -> Iterator[Finding]:
    size = shutil.get_terminal_size()
    shown = sys.stdout is not None and sys.stdout.isatty()
    yield Finding("terminal", "standard output", "fact", "a terminal" if shown else "not a terminal")
    yield Finding("terminal", "size", "fact", f"{size.columns} columns, {size.lines} lines")
    yield Finding("terminal", "encoding", "fact", getattr(sys.stdout, "encoding", None) or "none")
    yield Finding("terminal", "colour", "fact", _colour(shown))


def _colour(shown: bool) -> str:
    if os.environ.get("NO_COLOR"):
        return "none (NO_COLOR is set)"
    if not shown and not os.environ.get("FORCE_COLOR"):
        return "none"
    try:
        from rich.console import Console as RichConsole
    except ImportError:
        return os.environ.get("COLORTERM") or os.environ.get("TERM") or "unknown"
    return RichConsole().color_system or "none"
