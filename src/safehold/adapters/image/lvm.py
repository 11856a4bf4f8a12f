"""Logical volumes as a source of backups: while somebody can write to one, a snapshot of it is read."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from safehold.adapters.image.raw import RawBlocks, open_for_reading
from safehold.adapters.image.source import ImageSource
from safehold.adapters.image.still import StillCapture, still_capture
from safehold.adapters.linux.holders import device_holders
from safehold.adapters.linux.lvm import is_logical_volume, logical_volume, lvm_snapshot
from safehold.model.consistency import Consistency
from safehold.model.context import Context
from safehold.model.errors import ConsistencyError, FailedError, SourceError
from safehold.model.resource import ResourceRef
from safehold.ports.source import Capture, Interval

__all__ = ["DiskSource", "LvmSource", "can_snapshot"]


def can_snapshot(path: str) -> bool:
    """Whether a path is a logical volume."""
    return stat.S_ISBLK(os.stat(path).st_mode) and is_logical_volume(path)


class LvmSource:
    """Logical volumes by a snapshot: everything up to one instant. Their file systems are frozen by the kernel for the moment it takes."""

    def resolve(self, spec: str) -> ResourceRef | None:
        """See `ports.source.Source`."""
        return ImageSource().resolve(spec)

    @contextlib.contextmanager
    def capture(self, ref: ResourceRef, require: Consistency, ctx: Context) -> Iterator[StillCapture]:
        """See `ports.source.Source`. Who writes to the volume does not matter. FailedError where no snapshot can be made."""
        volume = logical_volume(ref.location)
        start = ctx.clock.now()
        with lvm_snapshot(volume, ctx) as snapshot:
            taken = Interval(start, ctx.clock.now())
            room = f"with room for {snapshot.room >> 20:,} MiB of changes" if snapshot.room else "in its thin pool"
            ctx.progress.note(f"{ref.name}: read from an LVM snapshot {room}")
            fd = open_for_reading(snapshot.path)
            try:
                blocks = RawBlocks(fd, ref.location)
                yield still_capture(ref, blocks, "device", taken, require, snapshot.check)
            except SourceError:
                # A snapshot that had no room for more changes gives errors to those who read it: say that instead.
                snapshot.check()
                raise
            finally:
                os.close(fd)


class DiskSource:
    """Disks in files and devices: a logical volume that somebody can write to by a snapshot, all others as they lie there."""

    def resolve(self, spec: str) -> ResourceRef | None:
        """See `ports.source.Source`."""
        return ImageSource().resolve(spec)

    @contextlib.contextmanager
    def capture(self, ref: ResourceRef, require: Consistency, ctx: Context) -> Iterator[Capture]:
        """See `ports.source.Source`. Where no snapshot can be made it is refused, unless `require` is NONE: then it is read as it lies there."""
        with contextlib.ExitStack() as stack:
            capture: Capture | None = None
            if can_snapshot(ref.location) and any(holder.writes for holder in device_holders(ref.location)):
                try:
                    capture = stack.enter_context(LvmSource().capture(ref, require, ctx))
                except FailedError as error:
                    if require > Consistency.NONE:
                        raise ConsistencyError(
                            f"{ref.name} is in use, and no LVM snapshot of it can be made: {error}",
                            on=ref.location,
                            remedy=error.remedy,
                        ) from error
                    ctx.progress.warn(f"{ref.name}: no LVM snapshot can be made ({error})")
            yield capture or stack.enter_context(ImageSource().capture(ref, require, ctx))
