"""Image files on a file system that can clone them: a capture that stays as it is while the image goes on being used."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from safehold.adapters.image.qcow2 import is_qcow2
from safehold.adapters.image.raw import RawBlocks, open_for_reading
from safehold.adapters.image.source import ImageSource
from safehold.adapters.image.still import StillCapture, still_capture
from safehold.model.consistency import Consistency
from safehold.model.context import Context
from safehold.model.errors import ConsistencyError
from safehold.model.resource import ResourceRef
from safehold.ports.source import Interval

__all__ = ["CloneSource", "can_clone"]

_FICLONE = 0x40049409
"""`_IOW(0x94, 9, int)`, ioctl_ficlonerange(2): both files share all blocks until one of them is written to."""


def can_clone(path: str) -> bool:
    """Whether a raw image file can be cloned where it lies; qcow2 keeps some of its state in the memory of its user."""
    try:
        fd = open_for_reading(path)
        try:
            if is_qcow2(os.pread(fd, 4, 0)):
                return False
            os.close(_clone(fd, path))
        finally:
            os.close(fd)
    except OSError:
        return False
    return True


def _clone(fd: int, path: str) -> int:
    """A clone without a name, which goes when it is closed. OSError."""
    clone = os.open(os.path.dirname(path), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.ioctl(clone, _FICLONE, fd)
    except BaseException:
        os.close(clone)
        raise
    return clone


class CloneSource:
    """Raw image files by a clone: everything up to one instant, as the kernel keeps writers out for the moment it takes."""

    def resolve(self, spec: str) -> ResourceRef | None:
        """See `ports.source.Source`."""
        return ImageSource().resolve(spec)

    @contextlib.contextmanager
    def capture(self, ref: ResourceRef, require: Consistency, ctx: Context) -> Iterator[StillCapture]:
        """See `ports.source.Source`. Who writes to the image does not matter."""
        fd = open_for_reading(ref.location)
        try:
            start = ctx.clock.now()
            try:
                clone = _clone(fd, ref.location)
            except OSError as error:
                raise ConsistencyError(
                    f"the image cannot be cloned ({error.strerror})", on=ref.location, remedy="free some space"
                ) from error
        finally:
            os.close(fd)
        try:
            taken = Interval(start, ctx.clock.now())
            yield still_capture(ref, RawBlocks(clone, ref.location), "raw", taken, require)
        finally:
            os.close(clone)
