"""Typed state as a JSON document: drafts that become RFC 6902 patches, and mirrors that fold patches back.

Floor 2: above `chunks` and `errors`, below the loop. Synchronous and without I/O. From top to bottom: `draft` is what
one block wants to change; `proxies` is what its user holds; `objects`, `lists` and `sets` are the overlay over the live
document, each a `node`, whose cost follows what was touched and not what is there; `merging`, `rendering` and
`footprint` turn that into operations beside those of others; `schema` and `spec` say what may stand where. Beside them,
`patches` applies operations, and `mirror` folds them.
"""

from __future__ import annotations

from helix.state.draft import Draft
from helix.state.mirror import StateMirror
from helix.state.patches import apply_patches
from helix.state.rendering import Rendered
from helix.state.schema import StateSchema

__all__ = ["Draft", "Rendered", "StateMirror", "StateSchema", "apply_patches"]
