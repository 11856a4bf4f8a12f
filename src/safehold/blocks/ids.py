"""The ids of a volume's blocks in the last point of it, in a local file: what is unchanged there needs no reading."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path

from blake3 import blake3

from safehold.blocks.layers import DataFile
from safehold.blocks.layout import VolumeFiles, sync_directory

__all__ = ["BlockIds", "write_ids"]

_ID = 32
_POINT = 32
_RUN = struct.Struct("<QQ?")


class BlockIds:
    """32 bytes for each of the vault's blocks, zeros for a block of zeros. A sparse file, read where it is asked for.

    `remember` collects what a snapshot in the making changes; `keep` and `adopt` make that the ids, in two steps that a power
    loss may come between. A point's name has at most 32 characters.
    """

    def __init__(self, files: VolumeFiles) -> None:
        self._files = files
        self._fresh: list[tuple[int, int, bytes]] = []

    def read(self, first: int, count: int) -> list[bytes]:
        """The ids of consecutive blocks; beyond what the file has, blocks are zeros."""
        with open(self._files.ids, "rb") as file:
            data = os.pread(file.fileno(), count * _ID, first * _ID).ljust(count * _ID, b"\0")
        return [data[at : at + _ID] for at in range(0, len(data), _ID)]

    def remember(self, first: int, identities: Iterable[bytes]) -> None:
        """Blocks that were read and stored. From several threads."""
        joined = b"".join(identities)
        self._fresh.append((first, len(joined) // _ID, joined))

    def remember_zeros(self, first: int, count: int) -> None:
        """Blocks that are zeros. From several threads."""
        self._fresh.append((first, count, b""))

    def forget(self) -> None:
        """The snapshot in the making failed."""
        self._fresh = []

    def keep(self, point: str) -> None:
        """Make what is remembered durable beside the ids, before the record names the point that they are of."""
        body = b"".join(_RUN.pack(first, count, bool(ids)) + ids for first, count, ids in sorted(self._fresh))
        body = point.encode().ljust(_POINT, b"\0") + body
        with open(self._files.ids_delta, "wb", opener=_private) as out:
            out.write(blake3(body).digest())
            out.write(body)
            out.flush()
            os.fsync(out.fileno())
        sync_directory(self._files.directory)
        self._fresh = []

    def adopt(self, point: str) -> None:
        """Put what was kept for the point into the ids; harmless a second time. What was kept for another one never became the
        volume's last point, and goes.
        """
        try:
            data = self._files.ids_delta.read_bytes()
        except FileNotFoundError:
            return
        digest, body = data[:32], data[32:]
        if blake3(body).digest() == digest and body[:_POINT].rstrip(b"\0").decode() == point:
            ids, at = DataFile(self._files.ids), _POINT
            while at < len(body):
                first, count, listed = _RUN.unpack_from(body, at)
                at += _RUN.size
                if listed:
                    ids.write(first * _ID, memoryview(body)[at : at + count * _ID])
                    at += count * _ID
                else:
                    ids.zero(first * _ID, count * _ID)
            ids.sync()
        self._files.ids_delta.unlink()


def write_ids(path: Path, pieces: Iterable[tuple[int, bytes]]) -> None:
    """Make the file: pieces of (first block, ids joined); what no piece is about is blocks of zeros."""
    with open(path, "wb", opener=_private) as out:
        for first, ids in pieces:
            if ids.strip(b"\0"):
                os.pwrite(out.fileno(), ids, first * _ID)
        os.fsync(out.fileno())


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)
