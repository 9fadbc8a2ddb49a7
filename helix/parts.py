"""What a message can hold beside words: images, audio, files.  Floor 1: imports nothing of helix.

Plain data, base64 on the wire. No repr, error or terminal shows the data, or a URL's query, which may be a secret.
"""

from __future__ import annotations

import mimetypes
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias, cast
from urllib.parse import urlsplit

from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer
from pydantic.alias_generators import to_camel

_MEDIA_TYPE = re.compile(r"[a-z]+/[a-z0-9][a-z0-9.+-]*", re.IGNORECASE)
_BY_SUFFIX = {
    ".flac": "audio/flac",
    ".heic": "image/heic",
    ".heif": "image/heif",
    ".m4a": "audio/mp4",
    ".md": "text/markdown",
    ".ogg": "audio/ogg",
    ".wav": "audio/wav",
    ".webp": "image/webp",
}
"""What `mimetypes` does not know everywhere, or calls by an elder name."""


def _absent(value: object) -> bool:
    return value is None


def _from_base64(value: object) -> object:
    return b64decode(value, validate=True) if isinstance(value, str) else value


def _to_base64(data: bytes) -> str:
    return b64encode(data).decode("ascii")


_Data: TypeAlias = Annotated[
    bytes | None,
    BeforeValidator(_from_base64),
    PlainSerializer(_to_base64, when_used="json-unless-none"),
    Field(exclude_if=_absent),
]
_Text: TypeAlias = Annotated[str | None, Field(exclude_if=_absent)]
_Ids: TypeAlias = Annotated[Mapping[str, str] | None, Field(exclude_if=_absent)]


@dataclass(slots=True, frozen=True, kw_only=True, repr=False)
class Media:
    """What `Image`, `Audio` and `File` share: `data`, a `url`, or ids of files that were uploaded to providers.

    Attributes:
        data: the bytes; base64 on the wire. They stand in the log once, and are sent with each request after that.
        url: where the provider finds it, instead of `data`. helix itself fetches nothing.
        media_type: such as `image/png`. Needed with `data`; of a URL it is guessed from the ending, if that tells.
        name: a file's name, which some providers tell the model.
        file_ids: provider (`openai`, `anthropic`, `google`) to the id (Google: the URI) of the uploaded file. A
            provider that is named here gets the id; others get `data` or `url`, if there is one.
    """

    __pydantic_config__ = ConfigDict(alias_generator=to_camel, populate_by_name=True)
    _kind: ClassVar[str] = ""
    _family: ClassVar[str] = ""

    data: _Data = None
    url: _Text = None
    media_type: _Text = None
    name: _Text = None
    file_ids: _Ids = None

    def __post_init__(self) -> None:
        """Raises ValueError if it is empty or cannot be what it says."""
        who = type(self).__name__
        if self.data is not None and self.url is not None:
            raise ValueError(f"{who}: give data= or url=, not both")
        if self.data is None and self.url is None and not self.file_ids:
            raise ValueError(f"{who} is empty: give data= and media_type=, url=, or use {who}.from_path(…)")
        if self.data is not None:
            self._check_data()
        if self.url is not None and not urlsplit(self.url).netloc:
            raise ValueError(f"{who}: url= must begin with https:// or the like; for a file use {who}.from_path(…)")
        if self.media_type is None and self.url is not None:
            guessed = _media_type_of(urlsplit(self.url).path)
            fits = guessed is not None and guessed.startswith(self._family)
            object.__setattr__(self, "media_type", guessed if fits else None)
        if self.media_type is not None:
            self._check_media_type(self.media_type)

    def _check_data(self) -> None:
        who, data = type(self).__name__, cast(Any, self.data)
        if not isinstance(data, bytes):
            raise ValueError(f"{who}: data= takes bytes, not {type(data).__name__}")
        if not data:
            raise ValueError(f"{who}: data= is empty")
        if self.media_type is None:
            raise ValueError(f"{who}: data= needs media_type=, such as {_EXAMPLES[self._kind]!r}")

    def _check_media_type(self, media_type: str) -> None:
        if not _MEDIA_TYPE.fullmatch(media_type) or not media_type.startswith(self._family):
            who, example = type(self).__name__, _EXAMPLES[self._kind]
            raise ValueError(f"{who}: media_type= must be one such as {example!r}, not {media_type!r}")

    @classmethod
    def from_path(cls, path: str | PurePath, *, media_type: str | None = None) -> Self:
        """Reads a file, at once.

        Args:
            path: where it is.
            media_type: by default what its ending says.

        Raises:
            OSError: it cannot be read.
            ValueError: it is empty, or its ending does not say what it is.
        """
        found = media_type or _media_type_of(str(path))
        if found is None:
            raise ValueError(f"{cls.__name__}: the ending of {str(path)!r} does not say what it is; give media_type=")
        return cls(data=Path(path).read_bytes(), media_type=found, name=PurePath(path).name)

    @property
    def base64(self) -> str:
        """The data, in the standard alphabet. Made anew each time."""
        return _to_base64(self.data or b"")

    @property
    def label(self) -> str:
        """What people are shown of it: its name or place, else its kind and size."""
        if self.name:
            return self.name
        if self.url:
            place = urlsplit(self.url)
            return f"{place.scheme}://{place.hostname}{place.path}"
        if self.data is not None:
            return f"{self.media_type}, {len(self.data)} bytes"
        return ", ".join(f"{provider} {file_id}" for provider, file_id in (self.file_ids or {}).items())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.label})"

    def __str__(self) -> str:
        return f"[{self._kind}: {self.label}]"


@dataclass(slots=True, frozen=True, kw_only=True, repr=False)
class Image(Media):
    """A picture for the model to see: `Image.from_path("cat.png")`, `Image(url=…)`, `Image(data=…, media_type=…)`.

    Attributes and errors are those of `Media`.
    """

    _kind: ClassVar[str] = "image"
    _family: ClassVar[str] = "image/"

    type: Literal["image"] = field(default="image")


@dataclass(slots=True, frozen=True, kw_only=True, repr=False)
class Audio(Media):
    """Sound for the model to hear: `Audio.from_path("call.mp3")`, `Audio(data=…, media_type=…)`.

    Attributes and errors are those of `Media`.
    """

    _kind: ClassVar[str] = "audio"
    _family: ClassVar[str] = "audio/"

    type: Literal["audio"] = field(default="audio")


@dataclass(slots=True, frozen=True, kw_only=True, repr=False)
class File(Media):
    """A document for the model to read, such as a PDF: `File.from_path("report.pdf")`, `File(url=…)`.

    Attributes and errors are those of `Media`.
    """

    _kind: ClassVar[str] = "file"

    type: Literal["file"] = field(default="file")


_EXAMPLES = {"image": "image/png", "audio": "audio/wav", "file": "application/pdf"}

MediaPart: TypeAlias = Annotated[Image | Audio | File, Field(discriminator="type")]
"""An image, a sound or a file; told apart by `type`."""
Content: TypeAlias = str | Sequence[str | MediaPart]
"""What a message says: words, or words and media in their order."""


def attach(path: str | PurePath) -> Image | Audio | File:
    """The file as the kind that its ending says.

    Raises:
        OSError: it cannot be read.
        ValueError: it is empty, or its ending does not say what it is.
    """
    family = (_media_type_of(str(path)) or "").partition("/")[0]
    kind = {"image": Image, "audio": Audio}.get(family, File)
    return kind.from_path(path)


def as_parts(content: Content) -> Sequence[str | MediaPart]:
    """The content as a list, also if it is one text."""
    return [content] if isinstance(content, str) else content


def as_words(content: Content) -> str:
    """The content as people are shown it: its words, and marks such as `[image: a.png]`."""
    return content if isinstance(content, str) else "\n".join(map(str, content))


def _media_type_of(name: str) -> str | None:
    return _BY_SUFFIX.get(PurePath(name).suffix.lower()) or mimetypes.guess_type(name)[0]
