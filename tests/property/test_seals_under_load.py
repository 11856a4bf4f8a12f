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
from safehold.blocks.layers import DataFile, Gate, Phase
from safehold.blocks.layout import SECTOR, VolumeFiles, VolumeRecord
from safehold.blocks.opening import Opened, create_volume, open_volume
from safehold.blocks.sealed import SealedDisk

BLOCK = 16 * 1024
SIZE = 8 * BLOCK
WRITERS = 3
COUNTER = struct.Struct("<Q")

Seal = Callable[[Sequence[Epochs], Sequence[Prepared]], object]


class Pair:
    """Two volumes. Each writer counts up: first in one volume, and once that is acknowledged in the other. Each has `step` bytes of every
    block to itself.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.step = step
        self.lost: list[str] = []
        """Writes that were acknowledged and read back otherwise."""
        self.captured: dict[tuple[int, int], int] = {}
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
        place = number * self.step
        seen = bytearray(self.step)
        while not self.stop.is_set():
            count = self.begun[number] + 1
            self.begun[number] = count
            data = memoryview(COUNTER.pack(count).ljust(self.step, b"\1"))
            for opened in self.opened:
                for block in range(3):
                    opened.volume.write(block * BLOCK + place, data)
            for opened in self.opened:
                for block in range(3):
                    opened.volume.read_into(block * BLOCK + place, memoryview(seen))
                    if seen != data:
                        self.lost.append(
                            f"writer {number}: {count} was acknowledged, block {block} has {seen[:8].hex()}"
                        )
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
        wrong = list(self.lost)
        for writer in range(WRITERS):
            seen = [
                [self.read(one, epoch, block * BLOCK + writer * self.step) for block in range(3)]
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
        place = (id(epochs), offset)
        if not epochs.dirty(epoch).cells[offset // BLOCK]:
            # Nothing holds a block that did not change: what it has is what the last capture had.
            return self.captured.get(place, 0)
        disk = SealedDisk(epochs, epoch, known=0, ids=BlockIds(VolumeFiles(epochs.files.directory)))
        buffer = bytearray(8)
        disk.read_into(offset, memoryview(buffer))
        self.captured[place] = int(COUNTER.unpack(buffer)[0])
        return self.captured[place]


def violations(captures: int, seal: Seal, step: int = SECTOR) -> list[str]:
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        pair = Pair(Path(folder), step)
        with pair.writing():
            for number in range(captures):
                wrong = pair.capture(seal)
                if wrong:
                    return [f"capture {number}: {wrong}"]
                if number % 8 == 7:
                    # As behind each upload, so that overlays do not pile up.
                    for one in pair.opened:
                        one.epochs.fold()
    return []


@pytest.mark.parametrize("step", [SECTOR, 512])
def test_a_group_is_one_instant(step: int) -> None:
    assert violations(1000, seal_together, step) == []


def one_after_the_other(epochs: Sequence[Epochs], prepared: Sequence[Prepared]) -> None:
    for one, ready in zip(epochs, prepared, strict=True):
        seal_together([one], [ready])
        time.sleep(0.001)


def test_a_seal_of_one_after_the_other_is_caught() -> None:
    assert violations(20, one_after_the_other)


def test_writes_that_are_not_redirected_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Phase, "holds", lambda self, block: False)
    monkeypatch.setattr(Phase, "shadows", lambda self, low, high: False)
    assert violations(500, seal_together), "on a busy machine few writes meet a seal"


def slow_write_of_an_earlier_phase(folder: Path) -> bytes:
    """Two writes into one sector: the first is on its way to the data when a seal comes, the second begins after. Returns the sector."""
    on_its_way, land = threading.Event(), threading.Event()
    right = DataFile.write

    def write(self: DataFile, offset: int, view: memoryview) -> None:
        if view[:1] == b"\1" and self.path.name == "data":
            on_its_way.set()
            assert land.wait(20)
        right(self, offset, view)

    record = VolumeRecord("a", "a", SIZE, BLOCK, "vault", 0.0)
    create_volume(folder / "a", record, (), ())
    opened = open_volume(folder / "a", record, "boot", lambda text: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DataFile, "write", write)
        writers = [
            threading.Thread(target=opened.volume.write, args=(n * 512, memoryview(bytes([n + 1]) * 512)))
            for n in (0, 1)
        ]
        writers[0].start()
        assert on_its_way.wait(20)
        seal_together([opened.epochs], [opened.epochs.prepare()])
        writers[1].start()
        # One that does not wait for the first is through by then.
        writers[1].join(0.3)
        land.set()
        for one in writers:
            one.join()
    sector = bytearray(SECTOR)
    opened.volume.read_into(0, memoryview(sector))
    return bytes(sector[:1024])


def test_a_write_of_an_earlier_phase_is_not_lost_beneath_a_copy_of_its_sector(tmp_path: Path) -> None:
    assert slow_write_of_an_earlier_phase(tmp_path) == b"\1" * 512 + b"\2" * 512


def test_a_copy_that_does_not_wait_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Gate.drain
    monkeypatch.setattr(Gate, "drain", lambda self, before=None: right(self) if before is None else None)
    assert slow_write_of_an_earlier_phase(tmp_path) != b"\1" * 512 + b"\2" * 512
