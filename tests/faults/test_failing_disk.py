"""Volumes on a disk that fails to write, or is full: what the kernel gives up once is never taken for written later."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from safehold.blocks import checkpoint
from safehold.blocks.directory import VolumeDirectory
from safehold.blocks.epochs import LiveHeader
from safehold.blocks.layers import DataFile
from safehold.blocks.layout import Snapshot, SnapshotState, VolumeFiles, VolumeRecord, write_record
from safehold.blocks.maps import BlockMap
from safehold.model.clock import SystemClock
from safehold.model.errors import FailedError

BLOCK = 64 * 1024
SIZE = 8 * BLOCK


def begin(root: Path, boot: str = "boot") -> VolumeDirectory:
    return VolumeDirectory(root / "volumes", boot, SystemClock())


def seal(directory: VolumeDirectory, name: str) -> Snapshot:
    return directory.seal([name], lambda held, taken: Snapshot(f"of-{name}", 1, taken, "crash", "crash"))[0]


@pytest.fixture
def directory(tmp_path: Path) -> VolumeDirectory:
    made = begin(tmp_path)
    for name in ("bad", "good"):
        held = made.create(VolumeRecord(name, name, SIZE, BLOCK, "vault", 0.0), (), ())
        held.volume.write(0, memoryview(name.encode() * 100))
    return made


def fail_once(patch: pytest.MonkeyPatch, kind: type[DataFile] | type[BlockMap], volume: str) -> None:
    """Of the next sync of a file of that volume the kernel says that it failed; later ones succeed, for it has forgotten."""
    right, failed = kind.sync, []

    def sync(self: DataFile | BlockMap) -> None:
        if self.path.parent.name == volume and not failed:
            failed.append(self.path)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        right(self)  # type: ignore[arg-type]

    patch.setattr(kind, "sync", sync)


@pytest.mark.parametrize("boot", ["boot", "later boot"])
@pytest.mark.parametrize("forgotten", ["", "live.map", "vol.json"])
def test_a_restart_does_not_forget_what_the_disk_lost(
    tmp_path: Path, directory: VolumeDirectory, monkeypatch: pytest.MonkeyPatch, boot: str, forgotten: str
) -> None:
    fail_once(monkeypatch, DataFile, "bad")
    files = VolumeFiles(tmp_path / "volumes" / "bad")
    was = files.record.read_bytes()
    with pytest.raises(OSError, match="Input/output"):
        directory.get("bad").volume.flush()
    directory.close()
    if forgotten == "vol.json":
        files.record.write_bytes(was)
    elif forgotten:
        with open(files.live, "r+b") as live:
            live.seek(9)
            live.write(b"\0")
    for _ in range(2):
        directory = begin(tmp_path, boot)
        held = directory.get("bad")
        assert held.volume.read_only
        assert held.record.suspect
        assert "read-only" in held.problem
        with pytest.raises(OSError, match="Read-only"):
            held.volume.write(0, memoryview(b"x"))
        with pytest.raises(FailedError, match="disk below"):
            seal(directory, "bad")
        assert not directory.get("good").volume.read_only
        directory.close()
    directory = begin(tmp_path, boot)
    directory.delete("bad", lambda: None, lambda name: None)
    directory.close()


def test_one_that_cannot_be_put_away_keeps_no_other(
    tmp_path: Path, directory: VolumeDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_once(monkeypatch, BlockMap, "bad")
    directory.close()
    assert LiveHeader(tmp_path / "volumes" / "good" / "live.map").read()[0]
    assert begin(tmp_path).get("bad").volume.read_only


def test_what_the_kernel_says_at_the_first_flush_it_says_once(
    tmp_path: Path, directory: VolumeDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The service was killed before it had flushed.
    os.close(directory._claim)
    fail_once(monkeypatch, DataFile, "bad")
    directory = begin(tmp_path)
    with pytest.raises(OSError, match="Input/output"):
        directory.get("bad").volume.flush()
    assert directory.get("bad").volume.read_only
    directory.close()
    directory = begin(tmp_path)
    assert directory.get("bad").volume.read_only
    directory.close()


def test_snapshots_of_a_failed_volume(
    tmp_path: Path, directory: VolumeDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was on the disk before is as good as ever; what was not is not sent."""
    held = directory.get("bad")
    safe = seal(directory, "bad")
    held.settle(safe)
    held.volume.write(0, memoryview(b"later"))
    second = directory.seal(["bad"], lambda held, taken: Snapshot("second", 2, taken, "crash", "crash"))[0]
    fail_once(monkeypatch, DataFile, "bad")
    with pytest.raises(OSError, match="Input/output"):
        held.settle(second)
    states = [one.state for one in held.record.snapshots]
    assert states == [SnapshotState.PENDING, SnapshotState.FAILED]
    directory.close()
    directory = begin(tmp_path)
    held = directory.get("bad")
    assert [one.state for one in held.record.snapshots] == states
    assert held.epochs.open == [1, 2]
    directory.close()


def test_a_map_that_is_lost_is_not_taken_for_written(
    tmp_path: Path, directory: VolumeDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = seal(directory, "bad")
    fail_once(monkeypatch, BlockMap, "bad")
    held = directory.get("bad")
    with pytest.raises(OSError, match="Input/output"):
        held.settle(snapshot)
    assert held.volume.read_only
    assert held.record.snapshots[0].state is SnapshotState.FAILED
    directory.close()


def test_a_full_disk_is_no_failed_one(
    tmp_path: Path, directory: VolumeDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal(directory, "bad")
    held = directory.get("bad")
    held.volume.write(0, memoryview(b"\7" * 4096))
    right, room = os.write, [10]

    def write(descriptor: int, data: bytes) -> int:
        if not room:
            return right(descriptor, data)
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return right(descriptor, data[: room.pop()]) + (room.append(0) or 0)  # type: ignore[func-returns-value]

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "write", write)
        with pytest.raises(OSError, match="No space"):
            held.volume.flush()
    assert not held.volume.read_only
    held.volume.flush()
    # As after a power loss: the log alone says that the sector lies in the overlay.
    os.close(directory._claim)
    directory = begin(tmp_path, "later boot")
    data = bytearray(4096)
    directory.get("bad").volume.read_into(0, memoryview(data))
    assert data == b"\7" * 4096
    directory.close()


def test_a_record_that_cannot_be_written_is_not_believed(
    directory: VolumeDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = directory.get("good")
    with monkeypatch.context() as patch:

        def full(files: VolumeFiles, record: VolumeRecord) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr("safehold.blocks.held.write_record", full)
        with pytest.raises(OSError, match="No space"):
            held.update(suspect="something")
    assert held.record.suspect == ""
    write_record(held.files, held.record)
    directory.close()


def test_a_group_that_cannot_be_sealed_whole_is_not_sealed(
    directory: VolumeDirectory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The second header finds no room: neither volume has another epoch, and after a crash neither looks as if it had."""
    right = LiveHeader.turn

    def turn(self: LiveHeader, epoch: int) -> None:
        if epoch == 2 and self is directory.get("good").epochs.header:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        right(self, epoch)

    def seal_both() -> None:
        directory.seal(["bad", "good"], lambda held, taken: Snapshot("both", 1, taken, "crash", "crash"))

    with monkeypatch.context() as patch:
        patch.setattr(LiveHeader, "turn", turn)
        with pytest.raises(OSError, match="No space"):
            seal_both()
    assert [held.epochs.header.read()[1] for held in directory.all()] == [1, 1]
    assert [held.epochs.open for held in directory.all()] == [[], []]
    seal_both()
    assert [held.epochs.open for held in directory.all()] == [[1], [1]]
    directory.close()


@pytest.mark.parametrize(("number", "told"), [(errno.ENOSPC, "its content is there"), (errno.EIO, "can be restored")])
def test_what_is_only_in_the_way_of_an_opening_is_told_as_that(
    tmp_path: Path, directory: VolumeDirectory, monkeypatch: pytest.MonkeyPatch, number: int, told: str
) -> None:
    directory.close()

    def refuse(self: LiveHeader, path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(LiveHeader, "__init__", refuse)
        directory = begin(tmp_path)
    assert told in directory.broken["bad"].remedy
    directory.close()
