"""Images, audio and files on the way to a provider: what the dialects share.  Floor 3, below them.

What a provider's wire has no place for is an error before anything is sent. What a model of it cannot read, such as
an image for a model without eyes, the provider says itself.
"""

from __future__ import annotations

from helix.errors import ModelError
from helix.parts import Audio, File, Image


def data_url(part: Image | Audio | File) -> str:
    """The part's data as a URL (RFC 2397)."""
    return f"data:{part.media_type};base64,{part.base64}"


def file_id(part: Image | Audio | File, provider: str) -> str | None:
    """The id that the provider gave the file when it was uploaded, if it was."""
    return (part.file_ids or {}).get(provider)


def refused(part: Image | Audio | File, api: str, takes: str) -> ModelError:
    """The error for a part that cannot be sent; `takes` says what can."""
    given = "data" if part.data is not None else "a URL" if part.url is not None else "another provider's file id"
    kind = f" of type {part.media_type}" if part.media_type else ""
    text = f"{api} does not take {part!r}{kind}, given as {given}. It takes {takes}."
    return ModelError("model_rejected", text)
