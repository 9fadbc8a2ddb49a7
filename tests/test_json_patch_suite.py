"""`apply_patches` against the public RFC 6902 suite (tests/fixtures/json-patch-tests)."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from helix.errors import InvalidPatch
from helix.state import apply_patches

SUITE = Path(__file__).parent / "fixtures" / "json-patch-tests"


def _records() -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    for name in ("tests", "spec_tests"):
        for number, record in enumerate(json.loads((SUITE / f"{name}.json").read_text())):
            if "patch" in record and not record.get("disabled"):
                found.append((f"{name}-{number}-{record.get('comment', '')}", record))
    return found


RECORDS = _records()


def strictly(value: Any) -> Any:
    """A form that is equal only for equal JSON: `true` is not `1`, but `1` is `1.0`."""
    if isinstance(value, dict):
        return {key: strictly(item) for key, item in value.items()}
    if isinstance(value, list):
        return [strictly(item) for item in value]
    return (type(value) is bool, value)


def test_the_whole_suite_is_here() -> None:
    assert len(RECORDS) == 108


@pytest.mark.parametrize("record", [record for _, record in RECORDS], ids=[name for name, _ in RECORDS])
def test_record(record: dict[str, Any]) -> None:
    document = copy.deepcopy(record["doc"])

    if "error" in record:
        with pytest.raises(InvalidPatch, match="cannot be applied"):
            apply_patches(document, record["patch"])
        assert strictly(document) == strictly(record["doc"])
    else:
        result = apply_patches(document, record["patch"])
        if "expected" in record:
            assert strictly(result) == strictly(record["expected"])
