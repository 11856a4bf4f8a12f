"""A disk that takes less of a write than it was given: nothing of a table is left out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from safehold.vault.index.rows import pack_row
from safehold.vault.index.table import write_table


def test_a_table_is_whole_after_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [pack_row(n.to_bytes(4, "big") + bytes(28), 0, n, 1, 1, 0) for n in range(50_000)]
    right = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: right(fd, memoryview(data)[: len(data) // 2 + 1], at))
    table = write_table(tmp_path, ["run"], [f"packs/hot/00/{'0' * 64}"], rows, len(rows), None)
    monkeypatch.undo()
    assert list(table) == rows
    table.close()
