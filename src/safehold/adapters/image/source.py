"""Disks in files and devices as a source of backups, and how still they were."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from safehold.adapters.image.qcow2 import is_qcow2, serve_qcow2
from safehold.adapters.image.raw import RawBlocks, open_for_reading
from safehold.adapters.image.topology import cleanly_unmounted, detect
from safehold.adapters.linux.holders import device_holders, file_holders
from safehold.adapters.linux.mounts import major_minor
from safehold.adapters.linux.openers import open_for_writing
from safehold.model.consistency import Consistency
from safehold.model.context import Context
from safehold.model.errors import ConsistencyError, UsageError
from safehold.model.resource import ResourceRef
from safehold.model.topology import Topology
from safehold.ports.blocks import Blocks
from safehold.ports.source import Interval

__all__ = ["ImageSource"]

KIND = "volume"
_PREFIX = "volume:"
_QCOW2 = (".qcow2", ".qcow")
"""Only a file of such a name is opened as qcow2. What a raw disk begins with is its guest's to write: taken at its word, a guest could have any
file of the host opened as its disk's backing file. One of another name that begins like qcow2 is refused: stored as raw, a backing file would be
missing, and nothing could tell what lies on the disk.
"""
_TICK_NS = 20_000_000
"""A file changed less than this long ago may change again without its time moving: file times have a granularity of
some milliseconds.
"""

_LESS = {
    Consistency.APPLICATION: "a disk by itself cannot tell whether its applications had written everything: ask for filesystem or crash",
    Consistency.FILESYSTEM: "unmount its file system cleanly first, or ask for less with --require crash",
    Consistency.CRASH: "stop what writes to it, or accept what comes with --require none",
}
"""What to do where the level that was required is not reached."""


class ImageSource:
    """Raw images, qcow2 images and block devices."""

    def resolve(self, spec: str) -> ResourceRef | None:
        """A regular file or block device. See `ports.source.Source`."""
        forced = spec.startswith(_PREFIX)
        path = Path(spec.removeprefix(_PREFIX)).expanduser()
        try:
            mode = path.stat().st_mode
        except OSError as error:
            if forced:
                raise UsageError(
                    f"cannot be backed up ({error.strerror})", on=str(path), remedy="check the path"
                ) from error
            return None
        if stat.S_ISBLK(mode):
            return ResourceRef(KIND, str(path).strip("/").replace("/", "-"), os.path.abspath(path))
        if stat.S_ISREG(mode):
            return ResourceRef(KIND, path.stem or path.name, os.path.abspath(path))
        if forced:
            raise UsageError(
                "neither an image file nor a block device",
                on=str(path),
                remedy="give a raw or qcow2 image or a block device",
            )
        return None

    @contextlib.contextmanager
    def capture(self, ref: ResourceRef, require: Consistency, ctx: Context) -> Iterator[DiskCapture]:
        """See `ports.source.Source`. What is being written is refused, with who writes it, unless `require` is NONE."""
        fd = open_for_reading(ref.location)
        try:
            watch = _Watch(fd, ref.location, ctx)
            if watch.writer and require > Consistency.NONE:
                raise _refusal(ref, watch.writer, require)
            head = os.pread(fd, 4, 0)
            with contextlib.ExitStack() as stack:
                blocks: Blocks
                if is_qcow2(head) and not watch.device:
                    _named_qcow2(ref)
                    blocks = stack.enter_context(serve_qcow2(ref.location, shared=bool(watch.writer)))
                    topology = detect(blocks, "qcow2")
                else:
                    blocks = RawBlocks(fd, ref.location)
                    topology = detect(blocks, "device" if watch.device else "raw")
                capture = DiskCapture(ref, blocks, topology, watch, ctx)
                if capture.still < require:
                    raise ConsistencyError(
                        f"{ref.name} is only {capture.still.label}-consistent as it lies there, {require.label} was asked for",
                        on=ref.location,
                        remedy=_LESS[require],
                    )
                yield capture
        finally:
            os.close(fd)


def _named_qcow2(ref: ResourceRef) -> None:
    """UsageError for a file that begins like qcow2 and is not called so."""
    if not ref.location.endswith(_QCOW2):
        raise UsageError(
            "the file begins like a qcow2 image, and its name does not say that it is one",
            on=ref.location,
            remedy=f"if it is one, name it {_QCOW2[0]}; the file as it is: safehold backup tree:{ref.location}",
        )


def _refusal(ref: ResourceRef, who: str, require: Consistency) -> ConsistencyError:
    return ConsistencyError(
        f"{ref.name} is being written to by somebody: {who}; {require.label} consistency cannot be reached",
        on=ref.location,
        remedy="unmount or stop what writes to it, back up a snapshot of it, or accept what comes with --require none",
    )


class _Watch:
    """Notices whoever can write to a disk, and whether anybody did since the watch began."""

    def __init__(self, fd: int, path: str, ctx: Context) -> None:
        self._fd, self._path = fd, path
        self.device = stat.S_ISBLK(os.fstat(fd).st_mode)
        if not self.device:
            now, changed = ctx.clock.now() * 1e9, os.fstat(fd).st_ctime_ns
            if 0 <= now - changed < _TICK_NS:
                ctx.clock.sleep(_TICK_NS / 1e9)
        self.writer = self._who()
        self._before = self._state()

    def _who(self) -> str:
        """Whoever could write now, in words; empty where nobody could."""
        if self.device:
            return "; ".join(h.who for h in device_holders(self._path) if h.writes)
        held = open_for_writing(self._fd)
        if held is False:
            return ""
        # The kernel says that there is somebody, or cannot tell: look for who it is.
        seen = "; ".join(h.who for h in file_holders(self._path) if h.writes)
        return seen or ("a process that cannot be seen from here" if held else "")

    def _state(self) -> tuple[object, ...]:
        if self.device:
            return (_write_counter(self._path),)
        info = os.fstat(self._fd)
        return info.st_size, info.st_mtime_ns, info.st_ctime_ns

    def disturbed(self) -> bool:
        """True where somebody could write at the beginning or can now, or the disk changed in between."""
        return bool(self.writer) or self._state() != self._before or bool(self._who())


def _write_counter(device: str) -> int | None:
    """Sectors written to a block device since boot; None where the kernel does not count them."""
    try:
        fields = Path(f"/sys/dev/block/{major_minor(os.stat(device).st_rdev)}/stat").read_text().split()
    except OSError:
        return None
    return int(fields[6])


class DiskCapture:
    """A disk that nobody was writing to when it was captured. See `ports.source.Capture`."""

    def __init__(self, resource: ResourceRef, content: Blocks, topology: Topology, watch: _Watch, ctx: Context) -> None:
        self.resource = resource
        self.content = content
        self.topology: Topology | None = topology
        self._watch = watch
        self._ctx = ctx
        self._start = ctx.clock.now()
        if watch.writer:
            self.still = Consistency.NONE
        else:
            self.still = Consistency.FILESYSTEM if cleanly_unmounted(content) else Consistency.CRASH

    def committed(self) -> None:
        """Nothing is remembered."""

    @property
    def taken(self) -> Interval:
        """From the capture until now: a plain disk has to stay still for the whole copy."""
        return Interval(self._start, self._ctx.clock.now())

    @property
    def achieved(self) -> Consistency:
        """NONE once anybody could have written; see `ports.source.Capture`."""
        return Consistency.NONE if self._watch.disturbed() else self.still
