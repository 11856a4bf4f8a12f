"""Seals while several threads write: what was acknowledged before is in, what began after is not, across volumes."""

from __future__ import annotations

import contextlib
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from safehold.blocks.epochs import Epochs, Prepared, seal_together
from safehold.blocks.ids import BlockIds
from safehold.blocks.layers import Phase
from safehold.blocks.layout import VolumeFiles, VolumeRecord
from safehold.blocks.opening import Opened, create_volume, open_volume
from safehold.blocks.sealed import SealedDisk

BLOCK = 16 * 1024
SIZE = 8 * BLOCK
WRITERS = 3
COUNTER = struct.Struct("<Q")

Seal = Callable[[Sequence[Epochs], Sequence[Prepared]], object]


class Pair:
    """Two volumes. Each writer counts up: first in one volume, and once that is acknowledged in the other."""

    def __init__(self, folder: Path) -> None:
        self.opened: list[Opened] = []
        for name in ("a", "b"):
            record = VolumeRecord(name, name, SIZE, BLOCK, "vault", 0.0)
            create_volume(folder / name, record, (), ())
            self.opened.append(open_volume(folder / name, record, "boot", lambda text: None))
        self.acknowledged = [0] * WRITERS
        self.begun = [0] * WRITERS
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self.write, args=(n,)) for n in range(WRITERS)]

    def write(self, number: int) -> None:
        # Writers share blocks: what one redirects another has next to it.
        place = number * 4096
        while not self.stop.is_set():
            count = self.begun[number] + 1
            self.begun[number] = count
            data = memoryview(COUNTER.pack(count).ljust(4096, b"\1"))
            for opened in self.opened:
                for block in range(3):
                    opened.volume.write(block * BLOCK + place, data)
            self.acknowledged[number] = count

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        for thread in self.threads:
            thread.start()
        try:
            yield
        finally:
            self.stop.set()
            for thread in self.threads:
                thread.join()

    def capture(self, seal: Seal) -> list[str]:
        """Seal both, read what stands still, let go; returns what is wrong."""
        epochs = [opened.epochs for opened in self.opened]
        prepared = [one.prepare() for one in epochs]
        before = list(self.acknowledged)
        seal(epochs, prepared)
        after = list(self.begun)
        numbers = [one.epoch - 1 for one in prepared]
        for one in epochs:
            one.volume.gate.drain()
        wrong = []
        for writer in range(WRITERS):
            seen = [
                [self.read(one, epoch, block * BLOCK + writer * 4096) for block in range(3)]
                for one, epoch in zip(epochs, numbers, strict=True)
            ]
            order = [count for counts in seen for count in counts]
            if any(count < before[writer] for count in order):
                wrong.append(f"writer {writer}: {order} lacks {before[writer]}, which was acknowledged before the seal")
            if any(count > after[writer] for count in order):
                wrong.append(f"writer {writer}: {order} has what began after {after[writer]}")
            if order != sorted(order, reverse=True):
                wrong.append(f"writer {writer}: {order} has a write without the one that was acknowledged before it")
        for one, epoch in zip(epochs, numbers, strict=True):
            one.drop(epoch)
        return wrong

    def read(self, epochs: Epochs, epoch: int, offset: int) -> int:
        disk = SealedDisk(epochs, epoch, same=False, ids=BlockIds(VolumeFiles(epochs.files.directory)))
        buffer = bytearray(8)
        disk.read_into(offset, memoryview(buffer))
        return int(COUNTER.unpack(buffer)[0])


def violations(captures: int, seal: Seal) -> list[str]:
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        pair = Pair(Path(folder))
        with pair.writing():
            for number in range(captures):
                wrong = pair.capture(seal)
                if wrong:
                    return [f"capture {number}: {wrong}"]
    return []


def test_a_group_is_one_instant() -> None:
    assert violations(1000, seal_together) == []


def one_after_the_other(epochs: Sequence[Epochs], prepared: Sequence[Prepared]) -> None:
    for one, ready in zip(epochs, prepared, strict=True):
        seal_together([one], [ready])
        time.sleep(0.001)


def test_a_seal_of_one_after_the_other_is_caught() -> None:
    assert violations(20, one_after_the_other)


def test_writes_that_are_not_redirected_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Phase, "holds", lambda self, block: False)
    monkeypatch.setattr(Phase, "shadows", lambda self, low, high: False)
    assert violations(20, seal_together)
