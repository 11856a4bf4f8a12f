"""The ids of a volume's blocks in the last point of it, in a local file: what is unchanged there needs no reading."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

from safehold.blocks.layers import DataFile
from safehold.blocks.layout import VolumeFiles, sync_directory
from safehold.model.writing import write_all

__all__ = ["BlockIds", "write_ids"]

_ID = 32
_POINT = 32
_HEAD = 32 + _POINT
"""Bytes before the runs: a digest over the point's name and the digest of the runs, and the name."""
_RUN = struct.Struct("<QQ?")
_PIECE = 1 << 20


class BlockIds:
    """32 bytes for each of the vault's blocks, zeros for a block of zeros. A sparse file, read where it is asked for.

    `remember` collects what a snapshot in the making changes, in a file of its own: that is as much as all ids of a volume. `keep` and `adopt`
    make it the ids, in two steps that a power loss may come between; either can be tried again. A point's name has at most 32 characters.
    """

    def __init__(self, files: VolumeFiles) -> None:
        self._files = files
        self._writing = threading.Lock()
        self._digest: blake3 | None = None
        """Of the runs that are collected; None where nothing is."""

    def read(self, first: int, count: int) -> list[bytes]:
        """The ids of consecutive blocks; beyond what the file has, blocks are zeros. OSError."""
        data = self.joined(first, count)
        return [data[at : at + _ID] for at in range(0, len(data), _ID)]

    def joined(self, first: int, count: int) -> bytes:
        """The same in one piece. Nothing here says whether they are right: that is for whoever knows the point's root to see."""
        with open(self._files.ids, "rb") as file:
            return os.pread(file.fileno(), count * _ID, first * _ID).ljust(count * _ID, b"\0")

    def remember(self, first: int, identities: Iterable[bytes]) -> None:
        """Blocks that were read and stored. From several threads. OSError."""
        joined = b"".join(identities)
        self._collect(_RUN.pack(first, len(joined) // _ID, True) + joined)

    def remember_zeros(self, first: int, count: int) -> None:
        """Blocks that are zeros. From several threads. OSError."""
        self._collect(_RUN.pack(first, count, False))

    def _collect(self, run: bytes) -> None:
        with self._writing:
            if self._digest is None:
                self._digest = self._begin()
            with open(self._files.ids_delta, "ab") as out:
                out.write(run)
            self._digest.update(run)

    def _begin(self) -> blake3:
        with open(self._files.ids_delta, "wb", opener=_private) as out:
            out.write(bytes(_HEAD))
        return blake3()

    def forget(self) -> None:
        """The snapshot in the making failed."""
        with self._writing:
            self._digest = None
            self._files.ids_delta.unlink(missing_ok=True)

    def keep(self, point: str) -> None:
        """Make what is remembered durable beside the ids, before anything names the point that they are of; again is harmless, also by another
        process. OSError.
        """
        with self._writing:
            if self._digest is None:
                if self.kept(point):
                    return
                self._digest = self._begin()
            name = _named(point)
            with open(self._files.ids_delta, "r+b") as out:
                out.write(blake3(name + self._digest.digest()).digest() + name)
                out.flush()
                os.fsync(out.fileno())
            sync_directory(self._files.directory)

    def kept(self, point: str) -> bool:
        """True where `keep` did so for that point, and all of it is there and can be read."""
        try:
            with open(self._files.ids_delta, "rb") as delta:
                return _whole(delta, point)
        except OSError:
            return False

    def adopt(self, point: str) -> None:
        """Put what was kept for the point into the ids; harmless a second time. What was kept for another one never became the
        volume's last point, and goes. OSError.
        """
        if self.kept(point):
            with open(self._files.ids_delta, "rb") as delta:
                delta.seek(_HEAD)
                self._put(delta)
        self.forget()

    def _put(self, delta: BinaryIO) -> None:
        if not self._files.ids.exists():
            write_ids(self._files.ids, ())
        ids = DataFile(self._files.ids)
        while run := delta.read(_RUN.size):
            first, count, listed = _RUN.unpack(run)
            if listed:
                ids.write(first * _ID, memoryview(delta.read(count * _ID)))
            else:
                ids.zero(first * _ID, count * _ID)
        ids.sync()


def _whole(delta: BinaryIO, point: str) -> bool:
    head, name = delta.read(_HEAD), _named(point)
    digest = blake3()
    while piece := delta.read(_PIECE):
        digest.update(piece)
    return head == blake3(name + digest.digest()).digest() + name


def _named(point: str) -> bytes:
    return point.encode().ljust(_POINT, b"\0")


def write_ids(path: Path, pieces: Iterable[tuple[int, bytes]]) -> None:
    """Make the file: pieces of (first block, ids joined); what no piece is about is blocks of zeros."""
    with open(path, "wb", opener=_private) as out:
        for first, ids in pieces:
            if ids.strip(b"\0"):
                write_all(out.fileno(), first * _ID, ids)
        os.fsync(out.fileno())


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)
