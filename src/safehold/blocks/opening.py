"""Making a volume's files, and opening them again after whatever happened."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safehold.blocks.checkpoint import ChangeKind, CheckpointLog
from safehold.blocks.epochs import Epochs, LiveHeader, Prepared
from safehold.blocks.ids import write_ids
from safehold.blocks.layers import PRESENT, DataFile, Overlay, Phase
from safehold.blocks.layout import SECTOR, VolumeFiles, VolumeRecord, sync_directory, write_record
from safehold.blocks.maps import BlockMap, Maps, SectorMap, is_sound
from safehold.blocks.summary import block_states, everything
from safehold.blocks.volume import LiveVolume
from safehold.model.errors import FailedError

__all__ = ["Opened", "close_volume", "create_volume", "open_volume", "unfinished"]


_LOST = "the disk below failed to write, so what the volume has may not be what was written: it is read-only"
_COMPARES = "the next snapshot compares everything"


@dataclass(frozen=True)
class Opened:
    """An open volume. `suspect` says why the map of changes cannot be believed, or nothing."""

    volume: LiveVolume
    epochs: Epochs
    suspect: str


def unfinished(directory: Path) -> Path:
    """Where a volume is made that is to be that directory."""
    return directory.with_name(f".{directory.name}.new")


def create_volume(
    directory: Path,
    record: VolumeRecord,
    missing: Iterable[tuple[int, int]],
    ids: Iterable[tuple[int, bytes]],
    recorded: Callable[[], None] = lambda: None,
) -> None:
    """Make the files of a volume: zeros, but for the `missing` runs of blocks (start, end), which are to be filled in; `ids` as for
    `ids.write_ids`. It is there whole or not at all. FailedError where the name is taken or there is no room.

    `recorded` is called when its record is durable in `unfinished(directory)`, before anything else is made. What lies there after a failure, or a
    kill, is for the caller to put away.
    """
    fresh = unfinished(directory)
    if directory.exists():
        raise FailedError("there is a volume of that name", on=record.name, remedy="choose another name, or delete it")
    try:
        fresh.mkdir(parents=True, mode=0o700)
        files = VolumeFiles(fresh)
        write_record(files, record)
        sync_directory(fresh.parent)
        recorded()
        DataFile(files.data, size=record.blocks * record.block).sync()
        states = BlockMap.create(files.states, record.blocks)
        states.fill(0, record.blocks, PRESENT)
        for start, end in missing:
            states.fill(start, end, 0)
        # The header says that the maps can be believed, after a power loss too.
        states.sync()
        SectorMap.create(files.sectors, record.sectors).sync()
        BlockMap.create(files.dirty(1), record.blocks).sync()
        CheckpointLog.write_new(files.checkpoint, block_states(states))
        write_ids(files.ids, ids)
        LiveHeader(files.live).write(clean=True, epoch=1, boot="")
        sync_directory(fresh)
        os.replace(fresh, directory)
        sync_directory(directory.parent)
    except OSError as error:
        raise FailedError(
            f"the volume cannot be made ({error.strerror})", on=str(directory), remedy="see that there is room"
        ) from error


def open_volume(directory: Path, record: VolumeRecord, boot: str, report: Callable[[str], None]) -> Opened:
    """Open a volume after an orderly end, after a crash of the service, or after a power loss. FailedError where its files are damaged.

    After a crash on the same boot (or an orderly end) the maps are believed: the page cache outlives the process. After a
    power loss, and where the maps of what is there are missing, short or unreadable, they are made anew from the checkpoint, everything counts as
    changed, and sealed epochs that had not been made durable are lost as such (their writes are not). Where a map of changes is,
    everything counts as changed, and the epoch that it belongs to is lost if it was sealed: what it did not name was overwritten in place since.
    A volume that its disk has failed is read-only.
    """
    files = VolumeFiles(directory)
    try:
        for path in files.lone_maps():
            # One that was being deleted has nothing any more: what it had was moved first.
            if is_sound(path, record.sectors) and any(SectorMap(path, record.sectors).runs()):
                raise _damaged(path.with_suffix(""), "is gone")
            path.unlink()
        header = LiveHeader(files.live)
        if record.failed:
            header.fail()
        clean, current, last_boot = header.read()
        if not current or not (clean or last_boot == boot):
            return _rebuilding(
                files,
                record,
                header,
                boot,
                report,
                _why_anew(current, last_boot),
            )
        lost = _lost_states(files, record)
        if lost:
            return _rebuilding(
                files,
                record,
                header,
                boot,
                report,
                f"what the volume has is known from its last flush, {lost} is damaged",
            )
        return _trusting(files, record, header, current, boot, report)
    except OSError as error:
        # What is lost is to be restored. What is only in the way is not: all that was flushed is there.
        gone = error.errno in (errno.ENOENT, errno.EIO)
        raise FailedError(
            f"the volume cannot be opened ({error.strerror})",
            on=str(error.filename or directory),
            remedy="its last completed snapshot can be restored: safehold restore NAME@latest --to volume:OTHER"
            if gone
            else "its content is there: mend that, then restart the service (safehold volume stop; safehold volume list)",
        ) from error


def close_volume(volume: LiveVolume, epochs: Epochs) -> None:
    """Put a volume away in order: its maps can be believed after a reboot too. OSError where something cannot be written. A volume that its disk
    has failed is left as it is.
    """
    if volume.read_only:
        return
    with epochs.put_away():
        maps, phase = volume.maps, volume.gate.phase
        with volume.failing():
            for blocks in (maps.states, phase.dirty, *phase.held):
                blocks.sync()
            for sectors in (maps.sectors, *(overlay.sectors for overlay in phase.overlays)):
                sectors.sync()
        # An overlay that was folded away must not be back after a power loss: it would lie over what was written since.
        sync_directory(epochs.files.directory)
        epochs.header.put_away()


def _why_anew(current: int, last_boot: str) -> str:
    if not current:
        return "nothing says which of its maps count"
    return "this machine went down without putting the volume away" if last_boot else "its maps were half made"


def _trusting(
    files: VolumeFiles,
    record: VolumeRecord,
    header: LiveHeader,
    current: int,
    boot: str,
    report: Callable[[str], None],
) -> Opened:
    _demand_whole(files, record, lambda: (one for one in files.epochs("ov") if one <= current))
    maps = _maps(files, record)
    for epoch in {*files.epochs("dirty"), *files.epochs("ov")}:
        if epoch > current:
            # Made for a seal that did not come about.
            _remove(files, epoch)
    overlays = tuple(
        Overlay(
            epoch,
            DataFile(files.overlay(epoch)),
            SectorMap(files.overlay_sectors(epoch), record.sectors),
            maps.per_block,
        )
        for epoch in reversed(files.epochs("ov"))
    )
    there = {*files.epochs("dirty"), *(one.epoch for one in record.pending), current}
    lost = [epoch for epoch in sorted(there) if not is_sound(files.dirty(epoch), record.blocks)]
    dirty = _dirty(files, record, current)
    if not header.failed:
        _forget(files, dirty, [epoch for epoch in lost if epoch != current])
    sealed = {
        epoch: BlockMap(files.dirty(epoch), record.blocks)
        for epoch in files.epochs("dirty")
        if epoch < current and epoch not in lost
    }
    if sealed and not (overlays and overlays[0].epoch == current):
        raise _damaged(files.overlay(current), "is gone")
    phase = Phase(current, dirty, tuple(sealed.values()), overlays)
    data = DataFile(files.data)
    if header.failed or files.checkpoint.exists():
        # It says what was flushed, which is as much as is promised, and the first flush begins another. To wait for the disk here would keep
        # the clients of all volumes waiting, who give up after a while.
        log = CheckpointLog(files.checkpoint)
        settled = {one.epoch for one in record.pending if one.durable} & set(sealed)
    else:
        log = _fresh_log(files, header, data, maps, phase, sealed)
        settled = set(sealed)
    opened = _assemble(files, record, header, data, maps, phase, sealed, log, settled, report)
    header.write(clean=False, epoch=current, boot=boot)
    suspect = f"the map of changes was damaged ({files.dirty(lost[0]).name}): {_COMPARES}" if lost else ""
    return Opened(*opened, _LOST if header.failed else suspect)


def _forget(files: VolumeFiles, current: BlockMap, lost: Sequence[int]) -> None:
    """Sealed epochs whose maps are gone or damaged are none, and what they changed counts as changed since."""
    if lost:
        current.fill(0, current.length, 1)
        # First: what is gone without a trace cannot be passed on the next time.
        current.sync()
    for epoch in lost:
        files.dirty(epoch).unlink(missing_ok=True)


def _rebuilding(
    files: VolumeFiles, record: VolumeRecord, header: LiveHeader, boot: str, report: Callable[[str], None], why: str
) -> Opened:
    # First: where the log is damaged, the maps that it would replace stay as they are.
    changes = CheckpointLog.read(files.checkpoint)
    _demand_whole(
        files,
        record,
        lambda: (one.epoch for one in CheckpointLog.read(files.checkpoint) if one.kind is ChangeKind.OVERLAY),
    )
    # From here on, should this end halfway, the maps are nobody's: the next start makes them anew too.
    header.write(clean=False, epoch=header.read()[1], boot="")
    states = BlockMap.create(files.states, record.blocks)
    sectors = SectorMap.create(files.sectors, record.sectors)
    masks: dict[int, SectorMap] = {}
    settled: set[int] = set()
    drained: set[int] = set()
    there = set(files.epochs("ov"))
    told = 0
    for change in changes:
        end = change.start + change.cells
        if change.kind is ChangeKind.STATE:
            states.fill(change.start, end, change.value)
            told = max(told, end)
        elif change.kind is ChangeKind.SECTOR:
            sectors.fill(change.start, end, change.value)
        elif change.kind is ChangeKind.SEALED:
            settled.add(change.epoch)
        elif change.kind is ChangeKind.DRAINED:
            drained.add(change.epoch)
        else:
            # Also of one that is not there: it may have been deleted, and then it had nothing any more.
            if change.epoch not in masks:
                masks[change.epoch] = SectorMap.create(files.overlay_sectors(change.epoch), record.sectors)
            masks[change.epoch].fill(change.start, end, change.value)
    for epoch in masks.keys() - there:
        if any(masks[epoch].runs()):
            raise _damaged(files.overlay(epoch), "is gone")
        del masks[epoch]
        files.overlay_sectors(epoch).unlink()
    # It begins with every block that there was: what lies behind was added since, as zeros.
    states.fill(told, record.blocks, PRESENT)
    # A partial block that filled up says so in its state; its sectors do not matter then.
    maps = Maps(states, sectors, record.block // SECTOR, -(-record.size // SECTOR))
    every = {*files.epochs("dirty"), *there}
    sealed = {
        epoch: BlockMap(files.dirty(epoch), record.blocks)
        for epoch in sorted((settled - drained) & set(files.epochs("dirty")))
        if is_sound(files.dirty(epoch), record.blocks)
    }
    for epoch in every:
        if epoch not in sealed:
            files.dirty(epoch).unlink(missing_ok=True)
        if epoch not in masks:
            files.overlay(epoch).unlink(missing_ok=True)
            files.overlay_sectors(epoch).unlink(missing_ok=True)
    overlays = tuple(
        Overlay(epoch, DataFile(files.overlay(epoch)), masks[epoch], maps.per_block)
        for epoch in sorted(masks, reverse=True)
    )
    fresh = Prepared(files, record, max((*every, *(one.epoch for one in record.snapshots)), default=0) + 1)
    fresh.dirty.fill(0, record.blocks, 1)
    fresh.dirty.sync()
    phase = Phase(fresh.epoch, fresh.dirty, tuple(sealed.values()), (fresh.overlay, *overlays))
    data = DataFile(files.data)
    # What the disk lost counts as written to the kernel; what the log says is still true.
    log = CheckpointLog(files.checkpoint) if header.failed else _fresh_log(files, header, data, maps, phase, sealed)
    opened = _assemble(files, record, header, data, maps, phase, sealed, log, sealed, report)
    # What was being moved, the maps do not say any more.
    header.move(begun=False)
    header.write(clean=False, epoch=fresh.epoch, boot=boot)
    return Opened(*opened, _LOST if header.failed else f"{why}: {_COMPARES}")


def _fresh_log(
    files: VolumeFiles,
    header: LiveHeader,
    data: DataFile,
    maps: Maps,
    phase: Phase,
    sealed: dict[int, BlockMap],
) -> CheckpointLog:
    """A log of the maps as they are, so what they say has to be on the disk before."""
    try:
        data.sync()
        for overlay in phase.overlays:
            overlay.file.sync()
        for dirty in sealed.values():
            dirty.sync()
    except OSError:
        # The kernel says so once.
        header.fail()
        raise
    return CheckpointLog.write_new(files.checkpoint, everything(maps, phase, sealed))


def _assemble(
    files: VolumeFiles,
    record: VolumeRecord,
    header: LiveHeader,
    data: DataFile,
    maps: Maps,
    phase: Phase,
    sealed: dict[int, BlockMap],
    log: CheckpointLog,
    settled: Iterable[int],
    report: Callable[[str], None],
) -> tuple[LiveVolume, Epochs]:
    volume = LiveVolume(record.size, record.block, data, maps, phase, log, report, header.fail)
    volume.read_only = header.failed
    volume.settled.update(settled)
    return volume, Epochs(volume, files, record, header, sealed)


def _maps(files: VolumeFiles, record: VolumeRecord) -> Maps:
    return Maps(
        BlockMap(files.states, record.blocks),
        SectorMap(files.sectors, record.sectors),
        record.block // SECTOR,
        -(-record.size // SECTOR),
    )


def _lost_states(files: VolumeFiles, record: VolumeRecord) -> str:
    """The name of a map of what is there that is missing, short, or cannot be read; or nothing."""
    maps = [(files.states, record.blocks), (files.sectors, record.sectors)]
    maps += [(files.overlay_sectors(epoch), record.sectors) for epoch in files.epochs("ov")]
    return next((path.name for path, length in maps if not is_sound(path, length)), "")


def _demand_whole(files: VolumeFiles, record: VolumeRecord, counted: Callable[[], Iterable[int]]) -> None:
    """FailedError where the content, or what is beside it in an overlay of an epoch that is `counted`, is shorter than it was made: what is gone
    would read as zeros. OSError.
    """
    whole = record.blocks * record.block
    short = {epoch for epoch in files.epochs("ov") if files.overlay(epoch).stat().st_size < whole}
    # An overlay that nothing was flushed to need not have got its length before the power failed.
    gone = [files.overlay(epoch) for epoch in sorted(short.intersection(counted() if short else ()))]
    if files.data.stat().st_size < whole:
        gone.insert(0, files.data)
    for path in gone:
        raise _damaged(path, f"has {path.stat().st_size} of {whole} bytes")


def _damaged(path: Path, how: str) -> FailedError:
    return FailedError(
        f"the volume cannot be opened, its content is damaged: {path.name} {how}",
        on=str(path),
        remedy="its last completed snapshot can be restored: safehold restore NAME@latest --to volume:OTHER",
    )


def _dirty(files: VolumeFiles, record: VolumeRecord, epoch: int) -> BlockMap:
    """The map of the blocks that an epoch changed; where it is lost, that is all of them."""
    path = files.dirty(epoch)
    if not is_sound(path, record.blocks):
        # Beside it: should this end halfway, the next start is not to find a map that says too little.
        fresh = BlockMap.create(path.with_name("dirty.new"), record.blocks)
        fresh.fill(0, record.blocks, 1)
        fresh.sync()
        os.replace(fresh.path, path)
        sync_directory(files.directory)
    return BlockMap(path, record.blocks)


def _remove(files: VolumeFiles, epoch: int) -> None:
    for path in (files.dirty(epoch), files.overlay(epoch), files.overlay_sectors(epoch)):
        path.unlink(missing_ok=True)
