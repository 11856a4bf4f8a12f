"""The durable form of a volume's maps: a log of what changed in them, each batch with a checksum.

A batch is on the disk only after the data it speaks of, and before the next batch is begun. A torn last batch is what a power loss leaves; it was
never promised.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import itertools
import math
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from blake3 import blake3

from safehold.blocks.layout import sync_directory
from safehold.model.errors import FailedError

__all__ = ["Change", "ChangeKind", "CheckpointLog", "NoRoom"]


class ChangeKind(enum.IntEnum):
    """Which map an entry is about."""

    STATE = 1
    SECTOR = 2
    OVERLAY = 3
    SEALED = 4
    DRAINED = 5


class Change(NamedTuple):
    """`cells` cells from `start` of a map were set to `value`; `epoch` for overlays and for epochs themselves."""

    kind: ChangeKind
    epoch: int
    start: int
    cells: int
    value: int


_MAGIC = b"SHCKPT01"
_HEAD = struct.Struct("<I16s")
_ENTRY = struct.Struct("<BBxxIQQ")
_STEP = math.gcd(_HEAD.size, _ENTRY.size)
"""Bytes: a batch begins at a multiple of this behind the last."""
_LARGEST = 1 << 22
"""Entries of a batch; a larger number is rubbish."""
_BATCH = 1 << 16
"""Entries that are encoded at once where a log is begun: one of everything may have very many."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_GROWTH = 16 * 1024 * 1024
"""Bytes by which a log may grow beyond twice what it began with: about 350,000 redirected writes, read again in a second."""


class NoRoom(OSError):
    """There is no room for a batch: nothing of it is in the log, and it can be appended later."""


class CheckpointLog:
    """Appends batches; each is durable when `append` returns. Closed when nobody refers to it any more. Not thread-safe.

    A log grows with every batch. One that has grown long is written `anew` beside itself, from what the maps say, and the fresh one takes over.
    """

    behind = False
    """True where the maps say more than the log and what is to be appended: it cannot be appended to, only another can take over."""

    def __init__(self, path: Path) -> None:
        """The log that is in force, of an earlier process: it is behind, and its end may be torn."""
        self.path = path
        self.behind = True
        self._begin(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC))

    def _begin(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        self._limit = 2 * self.size + _GROWTH

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    @property
    def long(self) -> bool:
        """True where it is time to write it anew."""
        return self.behind or self.size > self._limit

    def append(self, changes: Iterable[Change]) -> None:
        """NoRoom where the disk is full, or had no room for a log that was to take over from one that is behind; another OSError where the batch
        cannot be made durable: nothing that comes after can be believed then.
        """
        if self.behind:
            raise NoRoom(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        written = 0
        for batch in _encode(changes, _LARGEST):
            try:
                written += self._write(batch)
            except OSError as error:
                # Behind half a batch nothing would be found.
                os.ftruncate(self._descriptor, self.size)
                if error.errno in _FULL:
                    raise NoRoom(error.errno, error.strerror, str(self.path)) from error
                raise
            os.fdatasync(self._descriptor)
        self.size += written

    def _write(self, data: bytes) -> int:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        return len(data)

    @classmethod
    def write_new(cls, path: Path, changes: Iterable[Change]) -> CheckpointLog:
        """A log of those changes in the place of whatever log there was, durably. OSError."""
        fresh = cls._beside(path, changes)
        fresh._take_place(path)
        return fresh

    def anew(self, changes: Iterable[Change]) -> CheckpointLog | None:
        """A log of those changes beside this one, which stays in force; None where it cannot be written now. Where this one is behind that is an
        error: NoRoom, or another OSError.
        """
        # Whatever comes of it: not with the next batch again.
        self._limit = self.size + _GROWTH
        try:
            return self._beside(self.path, changes)
        except OSError as error:
            if not self.behind:
                return None
            if error.errno in _FULL:
                raise NoRoom(error.errno, error.strerror, str(self.path)) from error
            raise

    def take_over(self, path: Path, changes: Iterable[Change]) -> bool:
        """Take the place of the log at `path`, which this was written beside of, with changes that came meanwhile; false where that cannot be
        now, and nothing has changed. What the log says has to be on the disk. OSError where nobody can say which log is in force.
        """
        try:
            self.append(changes)
        except OSError:
            self._abandon()
            return False
        self._take_place(path)
        return True

    @classmethod
    def _beside(cls, path: Path, changes: Iterable[Change]) -> CheckpointLog:
        fresh = cls.__new__(cls)
        fresh.path = path.with_suffix(".new")
        fresh._begin(os.open(fresh.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
        try:
            fresh.size = fresh._write(_MAGIC) + sum(fresh._write(batch) for batch in _encode(changes, _BATCH))
        except OSError:
            fresh._abandon()
            raise
        return fresh

    def _abandon(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _take_place(self, path: Path) -> None:
        os.fsync(self._descriptor)
        os.replace(self.path, path)
        self.path = path
        self._limit = 2 * self.size + _GROWTH
        sync_directory(path.parent)

    @staticmethod
    def read(path: Path) -> Iterator[Change]:
        """All entries, oldest first, up to a torn end. FailedError where there is no log, and where it is damaged before its end: what stands
        behind was promised.
        """
        try:
            with open(path, "rb") as log:
                if log.read(len(_MAGIC)) != _MAGIC:
                    raise _damaged(path, "it is something else")
                end = len(_MAGIC)
                while (size := _batch(log, end)) is not None:
                    end += size
                # Each batch was durable before the next was begun, so a power loss leaves nothing whole behind what it tore.
                if _whole_behind(log, end):
                    raise _damaged(path, f"it is damaged at byte {end}, and not at its end")
        except OSError as error:
            raise _damaged(path, str(error)) from error
        return _entries(path, end)


def _entries(path: Path, end: int) -> Iterator[Change]:
    with open(path, "rb") as log:
        log.seek(len(_MAGIC))
        while log.tell() < end:
            count, _ = _HEAD.unpack(log.read(_HEAD.size))
            for kind, value, epoch, start, cells in _ENTRY.iter_unpack(log.read(count * _ENTRY.size)):
                yield Change(ChangeKind(kind), epoch, start, cells, value)


def _batch(log: BinaryIO, at: int) -> int | None:
    """The size of the batch that begins there, or None where none does."""
    log.seek(at)
    head = log.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    count, digest = _HEAD.unpack(head)
    if count > _LARGEST:
        return None
    body = log.read(count * _ENTRY.size)
    if len(body) < count * _ENTRY.size or blake3(body).digest(16) != digest:
        return None
    return len(head) + len(body)


def _whole_behind(log: BinaryIO, at: int) -> bool:
    """True where a batch begins anywhere behind the one that is torn there."""
    log.seek(at)
    data = memoryview(log.read())
    for later in range(_STEP, len(data) - _HEAD.size + 1, _STEP):
        count, digest = _HEAD.unpack_from(data, later)
        body = data[later + _HEAD.size : later + _HEAD.size + count * _ENTRY.size]
        if count > _LARGEST or len(body) < count * _ENTRY.size:
            continue
        # Looked for at every place, so the cheap signs first: that there is a kind, and nothing between the fields.
        if count and (not body[0] or body[2] or body[3]):
            continue
        if blake3(body).digest(16) == digest:
            return True
    return False


def _encode(changes: Iterable[Change], most: int) -> Iterator[bytes]:
    """Batches of at most so many entries. Each is whole or not there; several together are not."""
    entries = iter(changes)
    while part := list(itertools.islice(entries, most)):
        body = b"".join(_ENTRY.pack(c.kind, c.value, c.epoch, c.start, c.cells) for c in part)
        yield _HEAD.pack(len(part), blake3(body).digest(16)) + body


def _damaged(path: Path, why: str) -> FailedError:
    return FailedError(
        f"the checkpoint of a volume cannot be read ({why})",
        on=str(path),
        remedy="its last completed snapshot can be restored: safehold restore NAME@latest --to volume:OTHER",
    )
