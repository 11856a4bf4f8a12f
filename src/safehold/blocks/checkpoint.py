"""The durable form of a volume's maps: a log of what changed in them, each batch with a checksum.

A batch is on the disk only after the data it speaks of. A torn last batch is what a power loss leaves; it was never promised.
"""

from __future__ import annotations

import enum
import errno
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

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
_LARGEST = 1 << 22
"""Entries of a batch; a larger number is rubbish."""


class NoRoom(OSError):
    """There is no room for a batch: nothing of it is in the log, and it can be appended later."""


class CheckpointLog:
    """Appends batches; each is durable when `append` returns. Closed when nobody refers to it any more. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self.size = os.fstat(self._descriptor).st_size

    def append(self, changes: Iterable[Change]) -> None:
        """NoRoom where the disk is full; another OSError where the batch cannot be made durable: nothing that comes after can be believed
        then.
        """
        batch = _encode(changes)
        view = memoryview(batch)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            # Behind half a batch nothing would be found.
            os.ftruncate(self._descriptor, self.size)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoRoom(error.errno, error.strerror, str(self._path)) from error
            raise
        os.fdatasync(self._descriptor)
        self.size += len(batch)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    @classmethod
    def write_new(cls, path: Path, changes: Iterable[Change]) -> CheckpointLog:
        """A log of one batch in the place of whatever log there was, durably."""
        fresh = path.with_suffix(".new")
        with open(fresh, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as out:
            out.write(_MAGIC)
            out.write(_encode(changes))
            out.flush()
            os.fsync(out.fileno())
        os.replace(fresh, path)
        sync_directory(path.parent)
        return cls(path)

    @staticmethod
    def read(path: Path) -> Iterator[Change]:
        """All entries, oldest first, up to a torn end. FailedError where there is no log."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise _damaged(path, str(error)) from error
        if data[:8] != _MAGIC:
            raise _damaged(path, "it is something else")
        at = 8
        while at + _HEAD.size <= len(data):
            count, digest = _HEAD.unpack_from(data, at)
            end = at + _HEAD.size + count * _ENTRY.size
            body = data[at + _HEAD.size : end]
            if count > _LARGEST or end > len(data) or blake3(body).digest(16) != digest:
                return
            for kind, value, epoch, start, cells in _ENTRY.iter_unpack(body):
                yield Change(ChangeKind(kind), epoch, start, cells, value)
            at = end


def _encode(changes: Iterable[Change]) -> bytes:
    entries = list(changes)
    out = bytearray()
    for at in range(0, len(entries) or 1, _LARGEST):
        part = entries[at : at + _LARGEST]
        body = b"".join(_ENTRY.pack(c.kind, c.value, c.epoch, c.start, c.cells) for c in part)
        out += _HEAD.pack(len(part), blake3(body).digest(16)) + body
    return bytes(out)


def _damaged(path: Path, why: str) -> FailedError:
    return FailedError(
        f"the checkpoint of a volume cannot be read ({why})",
        on=str(path),
        remedy="its last completed snapshot can be restored: safehold restore NAME@latest --to volume:OTHER",
    )
