"""Random histories of a live volume against a model disk: writes, seals, folds, hydration, crashes and power losses."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import pytest

from safehold.blocks import checkpoint, durability, epochs, layers, layout, maps, summary, volume
from safehold.blocks.checkpoint import CheckpointLog
from safehold.blocks.durability import Durability
from safehold.blocks.epochs import Epochs, LiveHeader, Prepared, seal_together
from safehold.blocks.ids import BlockIds
from safehold.blocks.layers import Phase
from safehold.blocks.layout import SECTOR, Lineage, Snapshot, VolumeFiles, VolumeRecord
from safehold.blocks.opening import create_volume, open_volume
from safehold.blocks.sealed import SealedDisk
from safehold.blocks.volume import LiveVolume
from safehold.model.errors import SourceError
from safehold.model.extents import ExtentKind
from tests.contents import equal

BLOCK = 4 * SECTOR
BLOCKS = 10
SIZE = BLOCK * BLOCKS - SECTOR - 700
NO_VAULT = "no vault today"


class Cut(BaseException):
    """The service was killed, or the power failed, in the middle of a flush."""


class Disk:
    """What a power loss leaves of a directory: of each file what was synced last, or, by chance, what it is."""

    def __init__(self, live: Path, kept: Path) -> None:
        self.live, self.kept = live, kept
        self.steps: int | None = None
        """After so many further steps of a flush it is cut off."""
        self.replaced = False
        """The log was replaced by a whole one, under a name that may not be durable."""

    def step(self) -> None:
        if self.steps is not None:
            self.steps -= 1
            if not self.steps:
                self.steps = None
                raise Cut

    def sync(self, path: Path) -> None:
        if path.exists() and self.kept.exists():
            shutil.copyfile(path, self.kept / path.name)

    def sync_names(self) -> None:
        for path in self.kept.iterdir():
            if not (self.live / path.name).exists():
                path.unlink()
        for path in self.live.iterdir():
            if not (self.kept / path.name).exists():
                # The name is there, and the length that every file is given first; the content was not synced.
                with open(self.kept / path.name, "wb") as out:
                    out.truncate(path.stat().st_size)

    def lose_power(self, rng: random.Random) -> None:
        after = self.live.with_name("after")
        shutil.rmtree(after, ignore_errors=True)
        after.mkdir()
        for path in self.kept.iterdir():
            now = self.live / path.name
            # The log's batches hold together by their checksums only if the end may be torn.
            wrote_back = rng.random() < 0.3 and now.exists() and path.name not in ("vol.json", "live.map")
            shutil.copyfile(now if wrote_back else path, after / path.name)
            if wrote_back and path.name == "ckpt.log" and not self.replaced:
                with open(after / path.name, "r+b") as log:
                    log.truncate(max(path.stat().st_size, now.stat().st_size - rng.randrange(40)))
        self.replaced = False
        shutil.rmtree(self.live)
        after.rename(self.live)


@contextlib.contextmanager
def watched(patch: pytest.MonkeyPatch) -> Iterator[Disk]:
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        disk = Disk(Path(folder) / "v", Path(folder) / "kept")
        patch.setattr(volume, "REGION", 2 * BLOCK)
        sync_file, append = layers.DataFile.sync, checkpoint.CheckpointLog.append
        sync_blocks, sync_sectors = maps.BlockMap.sync, maps.SectorMap.sync
        # Logs are written anew all the time.
        patch.setattr(checkpoint, "_GROWTH", 0)
        patch.setattr(layers.DataFile, "sync", lambda self: (disk.step(), sync_file(self), disk.sync(self.path))[0])
        patch.setattr(maps.BlockMap, "sync", lambda self: (sync_blocks(self), disk.sync(self.path))[0])
        patch.setattr(maps.SectorMap, "sync", lambda self: (sync_sectors(self), disk.sync(self.path))[0])

        def append_and_sync(self: checkpoint.CheckpointLog, changes: Iterable[checkpoint.Change]) -> None:
            disk.step()
            append(self, changes)
            disk.step()
            disk.sync(self.path)

        patch.setattr(checkpoint.CheckpointLog, "append", append_and_sync)

        def replaced(directory: Path) -> None:
            if directory != disk.live or not disk.kept.exists():
                return
            disk.replaced = True
            disk.step()
            disk.replaced = False
            for name in ("ckpt.log", "vol.json", "live.map"):
                disk.sync(directory / name)
            disk.sync_names()

        for module in (checkpoint, layout, epochs):
            patch.setattr(module, "sync_directory", replaced)
        yield disk


class History:
    """One volume and what must be true of it."""

    def __init__(self, disk: Disk, seed: int) -> None:
        self.rng = random.Random(seed)
        self.disk = disk
        self.story: list[str] = []
        self.origin = bytearray(SIZE)
        for block in range(BLOCKS):
            if self.rng.random() < 0.5:
                end = min((block + 1) * BLOCK, SIZE)
                self.origin[block * BLOCK : end] = self.rng.randbytes(end - block * BLOCK)
        self.from_point = self.rng.random() < 0.6
        if not self.from_point:
            self.origin = bytearray(SIZE)
        self.now = bytearray(self.origin)
        self.flushed = bytearray(self.origin)
        """Content at the last flush."""
        self.since: list[tuple[int, bytes]] = []
        """Changes since then: any of them may have reached the disk."""
        self.point = bytes(self.origin)
        """Content of the last completed snapshot."""
        self.sealed: dict[int, tuple[bytes, bool]] = {}
        """Content of each sealed epoch, and whether it was settled."""
        lineage = Lineage("vault", "p0", SIZE) if self.from_point else None
        self.record = VolumeRecord("v", "u", SIZE, BLOCK, "vault", 0.0, lineage=lineage)
        missing = [
            (n, n + 1) for n in range(BLOCKS) if any(self.origin[n * BLOCK : (n + 1) * BLOCK]) and self.from_point
        ]
        create_volume(disk.live, self.record, missing, [])
        shutil.copytree(disk.live, disk.kept, dirs_exist_ok=True)
        self.boot = 1
        self.same = self.from_point
        self.open()

    def open(self) -> None:
        self.files = VolumeFiles(self.disk.live)
        snapshots = tuple(
            Snapshot(str(epoch), epoch, (0.0, 0.0), "crash", "crash", durable=settled)
            for epoch, (_, settled) in self.sealed.items()
        )
        record = msgspec.structs.replace(self.record, snapshots=snapshots)
        opened = open_volume(self.disk.live, record, f"boot-{self.boot}", self.story.append)
        self.volume, self.epochs = opened.volume, opened.epochs
        self.volume.fetch = self.fetch
        self.suspect = opened.suspect
        self.disk.sync(self.files.live)

    def fetch(self, block: int) -> None:
        if self.rng.random() < 0.1:
            raise OSError(errno.EIO, NO_VAULT)
        start = block * BLOCK
        content = bytes(self.origin[start : start + BLOCK])
        self.volume.fill(block, memoryview(content))

    def play(self, steps: int = 60) -> None:
        for _ in range(steps):
            act = self.rng.choice(
                ["write"] * 8 + ["zero", "zero", "flush", "flush", "read", "read", "fill", "seal", "seal"]
                + ["settle", "complete", "complete", "give_up", "fold", "crash", "power", "cut", "cut", "damage"]
            )  # fmt: skip
            self.story.append(act)
            try:
                getattr(self, act)()
            except OSError as error:
                # Content that the vault does not give today is not given; nothing was changed then.
                if error.strerror != NO_VAULT:
                    raise
        self.read_all()

    def place(self) -> tuple[int, int]:
        offset = self.rng.randrange(SIZE)
        length = min(self.rng.choice([1, 100, 512, SECTOR, SECTOR, 2 * SECTOR, BLOCK, 3 * BLOCK]), SIZE - offset)
        if self.rng.random() < 0.7:
            offset = offset // SECTOR * SECTOR
            length = min(-(-length // SECTOR) * SECTOR, SIZE - offset)
        return offset, length

    def changed(self, offset: int, data: bytes) -> None:
        self.now[offset : offset + len(data)] = data
        self.since.append((offset, data))

    def write(self) -> None:
        offset, length = self.place()
        self.ready(offset, length)
        data = self.rng.randbytes(length)
        self.volume.write(offset, memoryview(data))
        self.changed(offset, data)

    def zero(self) -> None:
        offset, length = self.place()
        self.ready(offset, length)
        self.volume.write_zeroes(offset, length)
        self.changed(offset, bytes(length))

    def ready(self, offset: int, length: int) -> None:
        """A write that fails halfway may have changed its first blocks: have those that must be here fetched first."""
        for block in {offset // BLOCK, (offset + length - 1) // BLOCK}:
            if offset % SECTOR or (offset + length) % SECTOR:
                self.volume.require(block)

    def flush(self) -> None:
        self.volume.flush()
        self.flushed, self.since = bytearray(self.now), []

    def cut(self) -> None:
        """A flush that does not come to its end."""
        self.write()
        self.disk.steps = self.rng.randrange(1, 6)
        try:
            self.flush()
        except Cut:
            self.story[-1] = "cut off"
            self.rng.choice([self.crash, self.power])()
        finally:
            self.disk.steps = None

    def read(self) -> None:
        offset, length = self.place()
        buffer = bytearray(b"\xee" * length)
        # As a client's short reads come: where all of it is here, in one step.
        if self.rng.random() < 0.5 or not self.volume.read_ready(offset, memoryview(buffer)):
            self.volume.read_into(offset, memoryview(buffer))
        equal(buffer, self.now[offset : offset + length])

    def read_all(self) -> None:
        for _ in range(200):
            try:
                buffer = bytearray(SIZE)
                self.volume.read_into(0, memoryview(buffer))
            except OSError:
                continue
            equal(buffer, self.now)
            return
        raise AssertionError("never readable")

    def fill(self) -> None:
        if self.rng.random() < 0.5:
            self.volume.require(self.rng.randrange(BLOCKS))
            return
        first = self.rng.randrange(BLOCKS)
        content = self.origin[first * BLOCK :][: self.rng.randrange(1, BLOCKS) * BLOCK]
        pages = mmap.mmap(-1, len(content))
        pages[:] = bytes(content)
        self.volume.fill_run(first, memoryview(pages))

    def seal(self) -> None:
        if len(self.sealed) > 3:
            return
        epoch = self.volume.gate.phase.epoch
        prepared = self.epochs.prepare()
        if self.suspect:
            self.epochs.suspect()
        self.turn(prepared)
        self.suspect = ""
        self.sealed[epoch] = (bytes(self.now), False)

    def turn(self, prepared: object) -> None:
        seal_together([self.epochs], [prepared])  # type: ignore[list-item]

    def settle(self) -> None:
        for epoch, (content, settled) in self.sealed.items():
            if not settled:
                self.epochs.settle(epoch)
                self.flushed, self.since = bytearray(self.now), []
                self.sealed[epoch] = (content, True)
                return

    def complete(self) -> None:
        """The oldest sealed epoch reaches the vault: what it gives has to be what it was."""
        if not self.sealed:
            return
        epoch = min(self.sealed)
        content, _ = self.sealed[epoch]
        disk = SealedDisk(self.epochs, epoch, known=SIZE if self.same else 0, ids=BlockIds(self.files))
        stored = bytearray(b"\xee" * SIZE)
        at = 0
        for extent in disk.extents():
            assert extent.offset == at
            at = extent.end
            view = memoryview(stored)[extent.offset : extent.end]
            if extent.kind is ExtentKind.DATA:
                disk_read(disk, extent.offset, view)
            elif extent.kind is ExtentKind.SAME:
                view[:] = self.point[extent.offset : extent.end]
            else:
                view[:] = bytes(len(view))
        assert at == SIZE
        equal(stored, content)
        self.point, self.same = content, True
        del self.sealed[epoch]
        self.epochs.drop(epoch)
        self.flushed, self.since = bytearray(self.now), []

    def give_up(self) -> None:
        if self.sealed and self.rng.random() < 0.4:
            epoch = min(self.sealed)
            del self.sealed[epoch]
            self.epochs.pass_on(epoch)
            self.epochs.drop(epoch)
            self.flushed, self.since = bytearray(self.now), []

    def fold(self) -> None:
        self.epochs.fold()

    def crash(self) -> None:
        """The service is killed: what was acknowledged is there."""
        self.open()
        assert set(self.epochs.open) == set(self.sealed)
        self.read_all()

    def damage(self) -> None:
        """The map of what a sealed epoch changed is gone, or short: it is lost, and so are those that rest on it."""
        if not self.sealed:
            return
        lost = self.rng.choice(sorted(self.sealed))
        path = self.files.dirty(lost)
        self.rng.choice([path.unlink, lambda: os.truncate(path, 1)])()
        self.open()
        assert self.suspect
        assert set(self.epochs.open) == set(self.sealed) - {lost}
        for epoch in sorted(self.sealed, reverse=True):
            if epoch >= lost:
                del self.sealed[epoch]
                self.epochs.pass_on(epoch)
                self.epochs.drop(epoch)
        self.read_all()

    def power(self) -> None:
        """Unsynced data is gone, or is not: what was flushed is there, and sealed epochs that were settled."""
        self.disk.lose_power(self.rng)
        self.boot += 1
        self.open()
        settled = {epoch for epoch, (_, was) in self.sealed.items() if was}
        assert settled <= set(self.epochs.open)
        for epoch in sorted(self.sealed):
            if epoch not in self.epochs.open:
                del self.sealed[epoch]
        # One whose map was damaged, and is back as the disk had it.
        for epoch in sorted(set(self.epochs.open) - set(self.sealed)):
            self.epochs.pass_on(epoch)
            self.epochs.drop(epoch)
        assert set(self.sealed) == set(self.epochs.open)
        assert self.suspect
        was = self.allowed()
        buffer = bytearray(SIZE)
        for _ in range(200):
            try:
                self.volume.read_into(0, memoryview(buffer))
                break
            except OSError:
                continue
        for at in range(0, SIZE, 512):
            piece = bytes(buffer[at : at + 512])
            assert piece in was[at // 512], f"byte {at} is neither flushed nor written since"
        self.now = bytearray(buffer)
        self.flushed, self.since = bytearray(self.now), []

    def allowed(self) -> list[set[bytes]]:
        """For each 512 bytes what may be there: as flushed, or as after any of the later changes to it."""
        allowed = [{bytes(self.flushed[at : at + 512])} for at in range(0, SIZE, 512)]
        running = bytearray(self.flushed)
        for offset, data in self.since:
            running[offset : offset + len(data)] = data
            for sector in range(offset // 512, -(-(offset + len(data)) // 512)):
                allowed[sector].add(bytes(running[sector * 512 : sector * 512 + 512]))
        return allowed


def disk_read(disk: SealedDisk, offset: int, view: memoryview) -> None:
    for _ in range(200):
        try:
            disk.read_into(offset, view)
            return
        except SourceError:
            continue
    raise AssertionError("never readable")


def failures(seeds: range) -> list[str]:
    for seed in seeds:
        with pytest.MonkeyPatch.context() as patch, watched(patch) as disk:
            history = History(disk, seed)
            try:
                history.play()
            except Exception as error:
                return [f"seed {seed}: {error!r}"[:300] + "\n" + " ".join(history.story)]
    return []


@pytest.mark.parametrize("first", range(0, 2000, 250))
def test_histories(first: int) -> None:
    assert failures(range(first, first + 250)) == []


@pytest.mark.soak
@pytest.mark.parametrize("first", range(10_000, 110_000, 5000))
def test_long_histories(first: int) -> None:
    assert failures(range(first, first + 5000)) == []


def _believe(patch: pytest.MonkeyPatch) -> None:
    right = LiveHeader.read
    patch.setattr(LiveHeader, "read", lambda self: (True, *right(self)[1:]))


def _data_not_synced(patch: pytest.MonkeyPatch) -> None:
    def make_durable(self: Durability) -> None:
        self._log.append([self.changes.popleft() for _ in range(len(self.changes))])

    patch.setattr(Durability, "_make_durable", make_durable)


def _in_place(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Phase, "holds", lambda self, block: False)


def _not_folded(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LiveVolume, "fold_block", lambda self, overlay, block, buffer: 0)


def _forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Epochs, "pass_on", lambda self, epoch: None)


def _overwritten(patch: pytest.MonkeyPatch) -> None:
    def fill(self: LiveVolume, block: int, content: memoryview) -> None:
        self.data.write(block * self.block, content)
        self._present(block, block + 1)

    patch.setattr(LiveVolume, "fill", fill)


def _region_overwritten(patch: pytest.MonkeyPatch) -> None:
    def fill_region(self: LiveVolume, first: int, end: int, content: memoryview) -> bool:
        self.data.write_region(first * self.block, content)
        for block in range(first, end):
            self._present(block, block + 1)
        return True

    patch.setattr(LiveVolume, "_fill_region", fill_region)


def _map_not_synced(patch: pytest.MonkeyPatch) -> None:
    def settle(self: Epochs, epoch: int) -> None:
        self.volume.gate.drain()
        self.volume.note([checkpoint.Change(checkpoint.ChangeKind.SEALED, epoch, 0, 0, 1)])
        self.volume.flush()

    patch.setattr(Epochs, "settle", settle)


def _not_suspect(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Epochs, "suspect", lambda self: None)
    right = Prepared.__init__

    def prepared(self: Prepared, files: VolumeFiles, record: VolumeRecord, epoch: int) -> None:
        right(self, files, record, epoch)
        patch.setattr(self.dirty, "fill", lambda start, end, value: None)

    patch.setattr(Prepared, "__init__", prepared)


def _log_too_early(patch: pytest.MonkeyPatch) -> None:
    right = CheckpointLog.anew

    def anew(self: CheckpointLog, changes: Iterable[checkpoint.Change]) -> CheckpointLog | None:
        fresh = right(self, changes)
        if fresh is not None:
            fresh._take_place(self.path)
        return fresh

    patch.setattr(CheckpointLog, "anew", anew)
    patch.setattr(CheckpointLog, "take_over", lambda self, path, changes: (self.append(changes), True)[1])


def _log_without_seals(patch: pytest.MonkeyPatch) -> None:
    right = summary.everything
    patch.setattr(durability, "everything", lambda maps, phase, sealed: right(maps, phase, ()))


def _log_without_sectors(patch: pytest.MonkeyPatch) -> None:
    right = summary.everything
    patch.setattr(
        durability,
        "everything",
        lambda *what: (one for one in right(*what) if one.kind is not checkpoint.ChangeKind.SECTOR),
    )


MISTAKES = {
    "maps are believed after a power loss": _believe,
    "the map is durable before the data": _data_not_synced,
    "writes to held blocks go in place": _in_place,
    "an overlay goes before it is folded": _not_folded,
    "changes of a snapshot that failed are forgotten": _forgotten,
    "what comes from the vault overwrites what was written": _overwritten,
    "a region is filled in though some of it was written": _region_overwritten,
    "a sealed epoch's map is not synced": _map_not_synced,
    "a lost map of changes is taken for an empty one": _not_suspect,
    "a log that is written anew is in force before the data is synced": _log_too_early,
    "a log that is written anew forgets sealed epochs": _log_without_seals,
    "a log that is written anew forgets sectors": _log_without_sectors,
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistakes_are_found(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MISTAKES[mistake](monkeypatch)
    assert failures(range(500))
