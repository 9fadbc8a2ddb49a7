"""Applying RFC 6902 operations. Above `errors`, below `mirror` and, elsewhere, the fold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jsonpatch import JsonPatch, JsonPatchException
from jsonpointer import JsonPointerException

from helix.errors import InvalidPatch


def apply_patches(document: Any, patches: Iterable[Mapping[str, Any]]) -> Any:
    """Applies RFC 6902 operations to `document`, in place, all or none; gives the document.

    Use the result: an operation on the whole document (the empty path) gives another object. The document does not
    share anything with `patches` afterwards. The cost follows the patches, not the document.

    Raises:
        InvalidPatch: the patches are malformed, or cannot be applied; the document is as it was.
    """
    try:
        return JsonPatch(patches).apply(document, in_place=True, atomic=True)
    except (JsonPatchException, JsonPointerException, TypeError) as error:
        raise InvalidPatch(f"the patch cannot be applied: {error}") from error
