"""Files of a volume: what is written past the page cache, where that can be done and where not."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest

from safehold.blocks.layers import REGION, DataFile
from tests.descriptors import opened


def test_a_file_system_that_refuses_writes_past_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has them all the same, and no descriptor is left when the file is closed."""
    file = DataFile(tmp_path / "data", size=2 * REGION)
    ordinary, right, refused = file.descriptor, os.pwrite, []

    def write(descriptor: int, data: memoryview, offset: int) -> int:
        if descriptor != ordinary:
            refused.append(descriptor)
            raise OSError(errno.EINVAL, "Invalid argument")
        return right(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", write)
    content = mmap.mmap(-1, REGION)
    content[:] = os.urandom(REGION)
    for at in (0, REGION):
        file.write_region(at, memoryview(content))
    # Others may be writing by it at this moment, so it stays open as long as the file.
    assert len(refused) == 1
    os.fstat(refused[0])
    monkeypatch.undo()
    assert (tmp_path / "data").read_bytes() == content[:] * 2
    del file
    assert not opened(str(tmp_path / "data"))
