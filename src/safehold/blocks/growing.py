"""A volume that becomes larger while it is put away."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from safehold.blocks.epochs import LiveHeader
from safehold.blocks.layers import PRESENT
from safehold.blocks.layout import VolumeFiles, VolumeRecord, write_record
from safehold.blocks.maps import BlockMap
from safehold.model.errors import FailedError

__all__ = ["grow_volume"]


def grow_volume(files: VolumeFiles, record: VolumeRecord, size: int) -> None:
    """Make the files of a volume that was put away fit a larger size; what is added is zeros, present and changed. FailedError."""
    grown = msgspec.structs.replace(record, size=size)
    clean, epoch, _ = LiveHeader(files.live).read()
    if not clean:
        raise FailedError(
            "the volume was not put away in order", on=record.name, remedy="start the service and try again"
        )
    sparse = [(files.data, grown.blocks * grown.block), (files.sectors, grown.sectors)]
    for one in files.epochs("ov"):
        sparse += [(files.overlay(one), grown.blocks * grown.block), (files.overlay_sectors(one), grown.sectors)]
    try:
        for path, length in sparse:
            _lengthen(path, length)
        for path in (files.states, *(files.dirty(one) for one in files.epochs("dirty"))):
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, grown.blocks)
                os.fsync(file.fileno())
        # The block that was last may have been short: what lies behind its old end is part of the volume from here on.
        states, dirty = BlockMap(files.states, grown.blocks), BlockMap(files.dirty(epoch), grown.blocks)
        states.fill(record.blocks, grown.blocks, PRESENT)
        dirty.fill(max(record.blocks - 1, 0), grown.blocks, 1)
        states.sync()
        dirty.sync()
        write_record(files, grown)
    except OSError as error:
        raise FailedError(
            f"the volume cannot be resized ({error.strerror})",
            on=f"{record.name}, in {files.directory}",
            remedy=f"see that its disk has room for files of that size: df -h {files.directory}; the volume is as it was",
        ) from error


def _lengthen(path: Path, length: int) -> None:
    """Durably: the record that asks for the length is durable too, and a map that is short of it is taken for damaged."""
    with open(path, "r+b") as file:
        os.truncate(file.fileno(), length)
        os.fsync(file.fileno())
