"""The benchmarks of stores run where a service is missing: the others are measured, and one line says what is not."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks import stores
from benchmarks.table import Row, Table


async def _took(pair: stores.Pair) -> float:
    begun = time.perf_counter()
    async with pair.writer, pair.reader:
        assert await pair.reader.runs() == []
    return time.perf_counter() - begun


def test_a_store_whose_service_is_not_there_is_skipped_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stores, "POSTGRES", "postgresql://postgres@127.0.0.1:1/test")
    monkeypatch.setattr(stores, "REDIS", "redis://127.0.0.1:1/0")
    found = stores.measured(stores.STORES, {"open": _took}, repeats=2)
    assert found.names("open") == ["memory", "sqlite", "sqlite (normal)"]
    table = Table("t", "s", [Row(name, cost) for name, cost in found.costs.items()], [], found.notes)
    skipped = [line for line in table.lines() if "is skipped" in line]
    assert [line.split()[0] for line in skipped] == ["postgres", "redis"]
    assert all("127.0.0.1:1" in line and "\n" not in line for line in skipped)
