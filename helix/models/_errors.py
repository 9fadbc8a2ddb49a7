"""What a provider says when it fails, as a `ModelError`: the code, whether to try again, and the provider's own words.

Floor 3, below the adapters. Pure: the adapters bring statuses, headers and parsed bodies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, cast

from pydantic_core import to_json

from helix.chunks import clean_text
from helix.errors import ModelError
from helix.limits import Usage

MAX_MESSAGE = 1_000
MAX_DETAIL = 4_000
"""Characters of a provider's words that are kept: an error is written to the log, and a web page may be large."""

_SECRET = re.compile("key|auth|token|secret|cookie", re.IGNORECASE)
_RETRYABLE_STATUSES = frozenset({408, 409, 425})
_NO_QUOTA = ("insufficient_quota", "billing")
_FILTERED = ("content_filter", "content_policy", "responsibleaipolicy")
_KINDS: tuple[tuple[str, bool, tuple[str, ...]], ...] = (
    (
        "model_rate_limited",
        True,
        ("rate_limit", "rate limit", "too_many_requests", "too many requests", "resource_exhausted"),
    ),
    (
        "model_unavailable",
        True,
        ("overloaded", "server_error", "server error", "internal_error", "unavailable", "timeout", "api_error"),
    ),
    (
        "model_rejected",
        False,
        ("invalid_", "authentication_", "permission_", "not_found", "context_length", "unsupported_", "bad_request"),
    ),
)


def from_status(
    status: int, body: object, headers: Mapping[str, str], *, secrets: Sequence[str] = (), place: str = ""
) -> ModelError:
    """The error for an HTTP answer that is one. `body` is its parsed JSON, or its text; `place` is for developers."""
    told = _read(body)
    code, retryable = _classify(status, told.kind)
    should_retry = headers.get("x-should-retry")
    if should_retry in ("true", "false"):
        retryable = should_retry == "true"
    detail = f"HTTP {status} {place}: {told.detail}"
    return ModelError(
        code,
        scrub(told.message, secrets)[:MAX_MESSAGE] or f"The provider answered with HTTP status {status}.",
        retryable=retryable,
        retry_after=(told.retry_after if (after := retry_after(headers)) is None else after) if retryable else None,
        detail=scrub(detail, secrets)[:MAX_DETAIL],
    )


def from_event(error: object, *, secrets: Sequence[str] = (), usage: Usage | None = None) -> ModelError:
    """The error for one that a provider sent inside a reply that had begun well."""
    told = _read(error)
    code, retryable = _classify(told.status, told.kind)
    return ModelError(
        code,
        scrub(told.message, secrets)[:MAX_MESSAGE] or "The provider stopped with an error.",
        retryable=retryable,
        retry_after=told.retry_after if retryable else None,
        detail=scrub(told.detail, secrets)[:MAX_DETAIL],
        usage=usage,
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from `retry-after-ms` or `retry-after` (seconds, or an HTTP date); None when not said."""
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        seconds = _number(headers.get(name))
        if seconds is not None:
            return seconds * scale
    try:
        date = parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def secrets_in(headers: Mapping[str, str]) -> list[str]:
    """The values of a request's headers that nobody may read, longest first."""
    values = [value for name, value in headers.items() if _SECRET.search(name)]
    values += [value.partition(" ")[2] for value in values]  # "Bearer <key>": the key alone
    return sorted(
        {value for value in values if len(value) >= 8}, key=len, reverse=True
    )  # shorter ones are placeholders


def scrub(text: str, secrets: Sequence[str]) -> str:
    """`text` without the `secrets`, should a provider have echoed one."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return clean_text(text)


@dataclass(slots=True, frozen=True)
class _Told:
    """What an error says, whatever its shape."""

    message: str
    kind: str
    """Its type, code and status in lower case; its message when it has none of them."""
    status: int | None
    detail: str
    retry_after: float | None = None


def _read(error: object) -> _Told:
    detail = error if isinstance(error, str) else to_json(error, fallback=repr).decode()
    if isinstance(error, list) and error:
        error = cast("list[Any]", error)[0]
    fields = _fields(cast("object", error))
    message = _message(fields)
    said = [str(fields[name]) for name in ("type", "code") if fields.get(name)]
    if (state := str(fields.get("status"))).isupper():  # one of Google's; of others it may be anything
        said.append(state)
    kind = " ".join(said) or message
    numbers = (_number(fields.get(name)) for name in ("status_code", "code", "status"))
    status = next((int(number) for number in numbers if number is not None and 400 <= number < 600), None)
    return _Told(message, kind.lower(), status, detail, _retry_delay(fields.get("details")))


def _fields(error: object) -> dict[str, Any]:
    """The error as one flat object, whether it came as text, bare, or under the key `error`."""
    if not isinstance(error, dict):
        return {"message": error}
    fields = cast("dict[str, Any]", error)
    inner = fields.get("error")
    return {**fields, **cast("dict[str, Any]", inner)} if isinstance(inner, dict) else fields


def _retry_delay(details: object) -> float | None:
    """The seconds in a `google.rpc.RetryInfo`, such as `"34.4s"`."""
    for detail in map(_fields, cast("list[Any]", details) if isinstance(details, list) else []):
        if str(detail.get("@type")).endswith("RetryInfo"):
            return _number(str(detail.get("retryDelay")).removesuffix("s"))
    return None


def _message(error: dict[str, Any]) -> str:
    for name in ("message", "detail", "error_description", "msg", "error"):
        value = error.get(name)
        if value:
            text = value if isinstance(value, str) else to_json(value, fallback=repr).decode()
            return "" if text.lstrip().startswith("<") else text.strip()  # a web page is nobody's sentence
    return ""


def _classify(status: int | None, kind: str) -> tuple[str, bool]:
    if any(word in kind for word in _FILTERED):
        return "model_filtered", False
    if status is not None:
        if status == 429:
            return "model_rate_limited", not any(word in kind for word in _NO_QUOTA)
        if status in _RETRYABLE_STATUSES or status >= 500:
            return "model_unavailable", True
        return "model_rejected", False
    if any(word in kind for word in _NO_QUOTA):
        return "model_rate_limited", False
    for code, retryable, words in _KINDS:
        if any(word in kind for word in words):
            return code, retryable
    return "model_stream_dropped", True


def _number(value: object) -> float | None:
    try:
        number = float(cast("str", value))
    except (TypeError, ValueError):
        return None
    return number if 0 <= number < 1e9 else None
