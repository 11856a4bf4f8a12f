"""The log of a volume, written anew all the time while several threads write: it alone has to lead to what the maps say."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from safehold.blocks import checkpoint, durability, summary
from safehold.blocks.epochs import LiveHeader, seal_together
from safehold.blocks.growing import grow_volume
from safehold.blocks.layers import Phase
from safehold.blocks.layout import SECTOR, VolumeFiles, VolumeRecord, read_record
from safehold.blocks.maps import Maps
from safehold.blocks.opening import close_volume, create_volume, open_volume
from safehold.blocks.volume import LiveVolume
from tests.contents import equal

BLOCK = 8 * SECTOR
BLOCKS = 64
SIZE = BLOCKS * BLOCK
ORIGIN = random.Random(0).randbytes(SIZE)


def fetching(volume: LiveVolume) -> None:
    volume.fetch = lambda block: volume.fill(block, memoryview(ORIGIN)[block * BLOCK :][:BLOCK])


def content(volume: LiveVolume) -> bytes:
    data = bytearray(volume.size)
    volume.read_into(0, memoryview(data))
    return bytes(data)


@pytest.mark.parametrize("seed", range(5))
def test_the_log_alone_leads_to_what_was_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(checkpoint.CheckpointLog, "long", True)
    record = VolumeRecord("v", "v", SIZE, BLOCK, "vault", 0.0)
    create_volume(tmp_path / "v", record, [(0, BLOCKS)], ())
    opened = open_volume(tmp_path / "v", record, "boot", lambda text: None)
    fetching(opened.volume)
    ended, anew, right = threading.Event(), [], checkpoint.CheckpointLog.anew
    monkeypatch.setattr(
        checkpoint.CheckpointLog, "anew", lambda self, changes: (anew.append(1), right(self, changes))[1]
    )

    def write(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        for turn in itertools.count():
            if turn >= 300 and len(anew) > 3:
                return
            sector = rng.randrange(SIZE // SECTOR)
            opened.volume.write(sector * SECTOR, memoryview(bytes([rng.randrange(256)]) * SECTOR))
            if rng.random() < 0.02:
                opened.volume.require(rng.randrange(BLOCKS))

    def flush() -> None:
        while not ended.is_set():
            opened.volume.flush()

    writers = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    flusher = threading.Thread(target=flush)
    for thread in (*writers, flusher):
        thread.start()
    while any(thread.is_alive() for thread in writers):
        epoch = opened.volume.gate.phase.epoch
        seal_together([opened.epochs], [opened.epochs.prepare()])
        opened.epochs.settle(epoch)
        opened.epochs.drop(epoch)
    epoch = opened.volume.gate.phase.epoch
    seal_together([opened.epochs], [opened.epochs.prepare()])
    opened.epochs.settle(epoch)
    opened.volume.write(0, memoryview(b"\xaa" * SECTOR))
    ended.set()
    for thread in (*writers, flusher):
        thread.join()
    opened.volume.flush()
    shutil.copytree(tmp_path / "v", tmp_path / "copy")
    states = bytes(opened.volume.maps.states.cells[:BLOCKS])
    again = open_volume(tmp_path / "copy", record, "another boot", lambda text: None)
    assert again.epochs.open == [epoch]
    assert bytes(again.volume.maps.states.cells[:BLOCKS]) == states
    fetching(again.volume)
    equal(content(again.volume), content(opened.volume))


def written_meanwhile(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[bytes, bytes]:
    """A write that comes when the maps have been read for the log, and before the flush takes the changes; returns what another boot finds
    of it, and what it was.
    """
    record = VolumeRecord("v", "v", SIZE, BLOCK, "vault", 0.0)
    create_volume(folder / "v", record, [(0, BLOCKS)], ())
    opened = open_volume(folder / "v", record, "boot", lambda text: None)
    right = summary.everything
    written = b"\x77" * SECTOR

    def everything(maps: Maps, phase: Phase, sealed: Iterable[int]) -> Iterator[checkpoint.Change]:
        yield from right(maps, phase, sealed)
        opened.volume.write(5 * BLOCK, memoryview(written))

    monkeypatch.setattr(checkpoint.CheckpointLog, "long", True)
    monkeypatch.setattr(durability, "everything", everything)
    opened.volume.flush()
    again = open_volume(folder / "v", record, "another boot", lambda text: None)
    fetching(again.volume)
    return content(again.volume)[5 * BLOCK :][:SECTOR], written


def test_a_write_while_the_log_is_written_anew_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, written = written_meanwhile(tmp_path, monkeypatch)
    assert found == written


def test_a_log_that_leaves_out_what_came_meanwhile_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = checkpoint.CheckpointLog.take_over
    monkeypatch.setattr(checkpoint.CheckpointLog, "take_over", lambda self, path, changes: right(self, path, ()))
    found, written = written_meanwhile(tmp_path, monkeypatch)
    assert found != written


def test_a_disk_without_room_for_another_log_keeps_the_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = VolumeRecord("v", "v", SIZE, BLOCK, "vault", 0.0)
    create_volume(tmp_path / "v", record, [(0, BLOCKS)], ())
    opened = open_volume(tmp_path / "v", record, "boot", lambda text: None)
    opened.volume.flush()
    right = checkpoint.CheckpointLog._write

    def write(self: checkpoint.CheckpointLog, data: bytes) -> int:
        if self.path.name == "ckpt.new" and self.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return right(self, data)

    monkeypatch.setattr(checkpoint.CheckpointLog, "long", True)
    monkeypatch.setattr(checkpoint.CheckpointLog, "_write", write)
    opened.volume.write(5 * BLOCK, memoryview(b"\x77" * SECTOR))
    opened.volume.flush()
    assert not opened.volume.read_only
    assert not (tmp_path / "v" / "ckpt.new").exists()
    monkeypatch.undo()
    again = open_volume(tmp_path / "v", record, "another boot", lambda text: None)
    fetching(again.volume)
    assert content(again.volume)[5 * BLOCK :][:SECTOR] == b"\x77" * SECTOR


def test_a_log_of_an_earlier_process_is_not_appended_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end may be torn, and the maps may say more: without room for another one no flush is promised."""
    record = VolumeRecord("v", "v", SIZE, BLOCK, "vault", 0.0)
    create_volume(tmp_path / "v", record, [(0, BLOCKS)], ())
    opened = open_volume(tmp_path / "v", record, "boot", lambda text: None)
    opened.volume.write(5 * BLOCK, memoryview(b"\x77" * SECTOR))
    opened = open_volume(tmp_path / "v", record, "boot", lambda text: None)
    was = (tmp_path / "v" / "ckpt.log").read_bytes()

    def full(self: checkpoint.CheckpointLog, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.CheckpointLog, "_write", full)
        opened.volume.write(7 * BLOCK, memoryview(b"\x78" * SECTOR))
        for _ in range(2):
            with pytest.raises(checkpoint.NoRoom):
                opened.volume.flush()
    assert not opened.volume.read_only
    assert (tmp_path / "v" / "ckpt.log").read_bytes() == was
    opened.volume.flush()
    again = open_volume(tmp_path / "v", record, "another boot", lambda text: None)
    fetching(again.volume)
    assert content(again.volume)[5 * BLOCK :][:SECTOR] == b"\x77" * SECTOR
    assert content(again.volume)[7 * BLOCK :][:SECTOR] == b"\x78" * SECTOR


def test_blocks_that_were_added_and_not_logged_are_zeros(tmp_path: Path) -> None:
    """Power is lost when a volume has just grown."""
    record = VolumeRecord("v", "v", SIZE, BLOCK, "vault", 0.0)
    create_volume(tmp_path / "v", record, (), ())
    opened = open_volume(tmp_path / "v", record, "boot", lambda text: None)
    opened.volume.write(0, memoryview(b"\x77" * SECTOR))
    close_volume(opened.volume, opened.epochs)
    files = VolumeFiles(tmp_path / "v")
    grow_volume(files, record, 3 * SIZE)
    LiveHeader(files.live).write(clean=False, epoch=1, boot="boot")
    again = open_volume(tmp_path / "v", read_record(files), "another boot", lambda text: None)
    assert content(again.volume) == (b"\x77" * SECTOR).ljust(3 * SIZE, b"\0")


def test_a_log_does_not_grow_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_GROWTH", 10_000)
    record = VolumeRecord("v", "v", SIZE, BLOCK, "vault", 0.0)
    create_volume(tmp_path / "v", record, (), ())
    opened = open_volume(tmp_path / "v", record, "boot", lambda text: None)
    opened.volume.write_zeroes(0, SIZE)
    seal_together([opened.epochs], [opened.epochs.prepare()])
    for _ in range(500):
        for sector in range(10):
            opened.volume.write(2 * sector * SECTOR, memoryview(bytes(SECTOR)))
        opened.volume.flush()
    assert (tmp_path / "v" / "ckpt.log").stat().st_size < 40_000, "120,000 bytes were appended"
