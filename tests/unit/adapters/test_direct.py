"""Files written past the page cache are what was handed in, wherever their pieces begin and end."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safehold.adapters.files.destination import open_directory
from safehold.adapters.files.direct import DirectBuffer
from tests.unit.adapters.test_directory_target import entry

PAGE, ROOM = 4096, 4 * 1024 * 1024
SOME = random.Random(3).randbytes(2 * ROOM + PAGE)
BUFFER = DirectBuffer()
"""Used for one file after another, as a restore does: nothing of an earlier one may show."""

lengths = st.one_of(st.integers(0, 3 * PAGE), st.integers(ROOM - 2, ROOM + 2), st.sampled_from([PAGE, ROOM, 2 * ROOM]))


def written(path: Path, pieces: list[tuple[int, int]], tail: int, order: random.Random | None = None) -> bytes:
    """Write pieces, each (hole before it, length), then a hole; returns what belongs into the file. Pieces come in their order, or in any."""
    wanted = bytearray()
    parts = []
    for hole, length in pieces:
        wanted += bytes(hole)
        parts.append((len(wanted), SOME[:length]))
        wanted += SOME[:length]
    wanted += bytes(tail)
    if order is not None:
        order.shuffle(parts)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        BUFFER.begin(fd)
        for offset, data in parts:
            BUFFER.write(offset, data)
        BUFFER.finish(len(wanted))
    finally:
        os.close(fd)
    return bytes(wanted)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(st.lists(st.tuples(lengths, lengths), max_size=5), lengths, st.none() | st.randoms(use_true_random=False))
def test_pieces_and_holes(
    tmp_path: Path, pieces: list[tuple[int, int]], tail: int, order: random.Random | None
) -> None:
    assert written(tmp_path / "file", pieces, tail, order) == (tmp_path / "file").read_bytes()


@pytest.mark.parametrize("fs", ["tmpfs", "ramfs"])
def test_where_there_is_no_way_past_the_cache(tmp_path: Path, fs: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    subprocess.run(["mount", "-t", fs, "none", tmp_path], check=True)
    try:
        wanted = written(tmp_path / "file", [(0, 5000), (7, ROOM), (3 * PAGE, 1)], 100)
        assert wanted == (tmp_path / "file").read_bytes()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def cached(path: Path) -> int:
    """Bytes of a file in the page cache; see mincore(2)."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as mapped:
        pages = (ctypes.c_ubyte * (-(-len(mapped) // PAGE)))()
        first = ctypes.c_char.from_buffer(mapped)
        assert ctypes.CDLL(None).mincore(ctypes.byref(first), ctypes.c_size_t(len(mapped)), pages) == 0
        del first
        return sum(page & 1 for page in pages) * PAGE


def test_holes_stay_holes_and_the_cache_stays_empty(tmp_path: Path) -> None:
    size = 64 * ROOM

    def data() -> Iterator[tuple[int, bytes]]:
        yield 0, SOME[:ROOM]
        yield size - ROOM, SOME[:ROOM]

    with open_directory(str(tmp_path / "top"), existing=False) as target:
        target.write_file(b"file", entry(b"file", 0o100644, size=size), data())
    path = tmp_path / "top/file"
    assert path.stat().st_size == size
    assert path.stat().st_blocks * 512 <= 3 * ROOM
    assert cached(path) < ROOM
    with path.open("rb") as file:
        assert file.read(ROOM) == SOME[:ROOM]
        file.seek(size - ROOM)
        assert file.read() == SOME[:ROOM]
    # Reading brings it there: the count can tell.
    assert cached(path) >= 2 * ROOM
    assert target.problems == []
