"""The ids of a volume's blocks in its last point."""

from __future__ import annotations

import os
import random
import threading
import tracemalloc
from pathlib import Path

import pytest

from safehold.blocks.ids import BlockIds, write_ids
from safehold.blocks.layout import VolumeFiles

ZERO = bytes(32)


@pytest.fixture
def files(tmp_path: Path) -> VolumeFiles:
    made = VolumeFiles(tmp_path)
    write_ids(made.ids, [(3, b"a" * 64), (9, b"b" * 32)])
    return made


def all_of(files: VolumeFiles) -> list[bytes]:
    return BlockIds(files).read(0, 12)


def test_what_is_kept_is_adopted_for_its_point_alone(files: VolumeFiles) -> None:
    ids = BlockIds(files)
    was = all_of(files)
    ids.remember(5, [b"c" * 32, ZERO])
    ids.remember_zeros(3, 1)
    for _ in range(2):
        # It may have to be tried again.
        ids.keep("point")
    BlockIds(files).adopt("another")
    assert all_of(files) == was
    assert not files.ids_delta.exists()
    ids.forget()
    ids.remember(5, [b"c" * 32])
    ids.remember_zeros(3, 1)
    ids.keep("point")
    BlockIds(files).adopt("point")
    BlockIds(files).adopt("point")
    assert all_of(files) == [ZERO] * 4 + [b"a" * 32, b"c" * 32] + [ZERO] * 3 + [b"b" * 32] + [ZERO] * 2


@pytest.mark.parametrize("place", [0, 40, 70, -1])
def test_a_damaged_delta_is_not_adopted(files: VolumeFiles, place: int) -> None:
    was = all_of(files)
    ids = BlockIds(files)
    ids.remember(5, [b"c" * 32])
    ids.keep("point")
    data = bytearray(files.ids_delta.read_bytes())
    data[place] ^= 1
    files.ids_delta.write_bytes(data)
    BlockIds(files).adopt("point")
    assert all_of(files) == was


def test_what_was_not_kept_or_forgotten_is_not_adopted(files: VolumeFiles) -> None:
    was = all_of(files)
    ids = BlockIds(files)
    ids.remember(5, [b"c" * 32])
    BlockIds(files).adopt("")
    ids.forget()
    ids.keep("point")
    ids.adopt("point")
    assert all_of(files) == was


def test_ids_of_a_whole_volume_are_not_held_in_memory(files: VolumeFiles) -> None:
    ids, rng = BlockIds(files), random.Random(1)
    piece = [rng.randbytes(32) for _ in range(1000)]

    def remember(start: int) -> None:
        for n in range(start, 400, 2):
            ids.remember(n * 1000, piece)

    tracemalloc.start()
    threads = [threading.Thread(target=remember, args=(n,)) for n in (0, 1)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    ids.keep("point")
    ids.adopt("point")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 << 20, "13 MB of ids"
    assert ids.read(399_000, 1000) == piece


def test_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, right = VolumeFiles(tmp_path), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: right(fd, memoryview(data)[:7], at))
    write_ids(files.ids, [(3, b"a" * 64)])
    assert BlockIds(files).read(3, 2) == [b"a" * 32] * 2
