"""A volume is filled in while clients read and write it, on real file systems: the page cache and what goes past it never disagree."""

from __future__ import annotations

import gc
import mmap
import os
import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from safehold.blocks.layout import SECTOR, Lineage, VolumeRecord
from safehold.blocks.opening import create_volume, open_volume
from safehold.blocks.volume import LiveVolume
from tests.mounts import mounted

MIB = 1 << 20
BLOCK = MIB // 2
SIZE = 64 * MIB
BLOCKS = SIZE // BLOCK
BATCH = 8


class Load:
    """A volume of which all is missing, and threads at work on it. Sectors of even numbers are never written by clients."""

    def __init__(self, place: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.origin = b"".join(self.rng.randbytes(MIB) for _ in range(SIZE // MIB))
        self.expected = bytearray(self.origin)
        record = VolumeRecord("v", "u", SIZE, BLOCK, "vault", 0.0, lineage=Lineage("vault", "p0", SIZE))
        create_volume(place / "v", record, [(0, BLOCKS)], [])
        self.volume: LiveVolume = open_volume(place / "v", record, "boot", lambda text: None).volume
        self.volume.fetch = self.fetch
        self.wrong: list[str] = []
        self.filled = threading.Event()

    def fetch(self, block: int) -> None:
        self.volume.fill(block, memoryview(self.origin)[block * BLOCK : (block + 1) * BLOCK])

    def fill(self, batches: list[int]) -> None:
        pages = memoryview(mmap.mmap(-1, BATCH * BLOCK))
        for first in batches:
            pages[:] = self.origin[first * BLOCK : (first + BATCH) * BLOCK]
            self.volume.fill_run(first, pages)

    def write(self, number: int) -> None:
        rng = random.Random(number)
        while not self.filled.is_set():
            sector = rng.randrange(SIZE // SECTOR // 4) * 4 + 1 + 2 * number
            data = rng.randbytes(SECTOR)
            # Nobody else writes there, so what was acknowledged last is what is there.
            self.volume.write(sector * SECTOR, memoryview(data))
            self.expected[sector * SECTOR : (sector + 1) * SECTOR] = data

    def read(self, number: int) -> None:
        """Long reads one after another, with which the kernel reads ahead into what is missing."""
        rng = random.Random(number)
        buffer = bytearray(MIB)
        while not self.filled.is_set():
            at = rng.randrange(0, SIZE - MIB, MIB // 4)
            if not self.volume.ready(at, MIB):
                continue
            self.volume.read_into(at, memoryview(buffer))
            for sector in range(0, MIB // SECTOR, 2):
                low = sector * SECTOR
                if buffer[low : low + SECTOR] != self.origin[at + low : at + low + SECTOR]:
                    self.wrong.append(f"sector at {at + low} while it was filled in")

    def run(self) -> list[str]:
        batches = list(range(0, BLOCKS, BATCH))
        self.rng.shuffle(batches)
        filling = [threading.Thread(target=self.fill, args=(batches[n::2],)) for n in range(2)]
        others = [threading.Thread(target=self.write, args=(n,)) for n in range(2)]
        others += [threading.Thread(target=self.read, args=(n,)) for n in range(2)]
        for thread in (*others, *filling):
            thread.start()
        for thread in filling:
            thread.join()
        self.filled.set()
        for thread in others:
            thread.join()
        self.compare("from the cache")
        self.volume.flush()
        os.posix_fadvise(self.volume.data.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        self.compare("from the disk")
        return self.wrong

    def compare(self, when: str) -> None:
        buffer = bytearray(SECTOR)
        for at in range(0, SIZE, SECTOR):
            self.volume.read_into(at, memoryview(buffer))
            if buffer != self.expected[at : at + SECTOR]:
                self.wrong.append(f"sector at {at} {when}")


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system with room for the volume."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    with mounted(tmp_path, request.param, size=400 * MIB) as where:
        yield where
        # A volume and what fetches for it refer to each other.
        gc.collect()


def test_nothing_is_mixed_up(place: Path) -> None:
    for seed in range(3):
        assert Load(place / f"{seed}", seed).run() == []


def test_it_goes_past_the_cache(place: Path) -> None:
    """What was filled in takes no memory; otherwise the test above would say nothing."""
    load = Load(place / "v", 1)
    load.fill(list(range(0, BLOCKS, BATCH)))
    assert load.volume.ready(0, SIZE)
    cached = subprocess.run(
        ["fincore", "-b", "-n", "-o", "RES", load.volume.data.path], check=True, capture_output=True, text=True
    ).stdout
    assert int(cached) < MIB
    load.compare("from the disk")
    assert load.wrong == []
