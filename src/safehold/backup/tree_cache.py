"""What a machine remembers of the last backup of a tree, so that unchanged files need not be opened.

A writer cannot read its own past, so the pages it stored are kept here too: sealed, in the order of the tree, read once and in step with
the walk. It can be thrown away at any time; the next backup then reads everything.

    file    header frame ‖ page frame …
    frame   u32 length ‖ sealed part (see `vault.sealing.seal_body`) of a zstd frame
"""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import zstandard
from blake3 import blake3

from safehold.model.context import Context
from safehold.model.errors import DamageError
from safehold.model.files import path_key
from safehold.vault.sealing import open_body, seal_body

__all__ = ["CachedGroup", "CachedPage", "TreeCache", "TreeCacheWriter"]

_LENGTH = struct.Struct("<I")
_LARGEST = 256 * 1024 * 1024
_VERSION = 1


class CachedGroup(msgspec.Struct, frozen=True, array_like=True):
    """Entries of one directory in a page: the name of the first, the digest of what the directory's scan said (empty where it cannot be
    relied on), when it was scanned (nanoseconds since 1970), and the entries as stored.
    """

    parent: bytes
    first: bytes
    signature: bytes
    scanned: int
    entries: msgspec.Raw


class CachedPage(msgspec.Struct, frozen=True, array_like=True):
    """A stored leaf page: its id, the ids that its entries refer to by position, how many bytes of each chunk they use as pieces, and
    `deep`: ids below its nodes.
    """

    identity: bytes
    chunks: bytes
    nodes: bytes
    live: list[int]
    deep: bytes
    entries: int
    size: int
    groups: list[CachedGroup]


class _Header(msgspec.Struct, frozen=True, array_like=True):
    version: int
    resource: str
    sparse: list[bytes]


_T = TypeVar("_T")


def _decode(plain: bytes, type_: type[_T]) -> _T | None:
    try:
        return msgspec.msgpack.decode(plain, type=type_)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


class TreeCache:
    """The pages of the last backup, read once from front to back."""

    def __init__(self, path: Path, vault: bytes, dedup_key: bytes, resource: str, ctx: Context) -> None:
        self.path, self._vault, self._ctx, self._resource = path, vault, ctx, resource
        self._key = blake3(dedup_key, derive_key_context="safehold 1 tree cache").digest()
        frames = self._frames()
        header = _decode(next(frames, b""), _Header)
        self.cold = header is None or header.version != _VERSION or header.resource != resource
        self.sparse: frozenset[bytes] = frozenset(header.sparse) if header and not self.cold else frozenset()
        self._pages = iter(()) if self.cold else (page for plain in frames if (page := _decode(plain, CachedPage)))
        self._ahead = next(self._pages, None)

    def _frames(self) -> Iterator[bytes]:
        try:
            file = self.path.open("rb")
        except OSError:
            return
        decompressor = zstandard.ZstdDecompressor()
        with file:
            number = 0
            while len(raw := file.read(_LENGTH.size)) == _LENGTH.size:
                length = _LENGTH.unpack(raw)[0]
                try:
                    if length > _LARGEST:
                        raise DamageError("frame is too long", on=str(self.path))
                    plain = open_body(self._key, self._vault, f"tree cache {number}", file.read(length))
                    yield decompressor.decompress(plain, max_output_size=_LARGEST)
                except (DamageError, zstandard.ZstdError):
                    self._ctx.progress.warn(
                        "the memory of the last backup is damaged: files after the damage are read again"
                    )
                    return
                number += 1

    def upto(self, parent: bytes) -> Iterator[CachedPage]:
        """Pages not given yet that begin at or before a directory; to be asked with directories in order."""
        key = path_key(parent)
        while self._ahead is not None and path_key(self._ahead.groups[0].parent) <= key:
            page, self._ahead = self._ahead, next(self._pages, None)
            yield page

    def writer(self) -> TreeCacheWriter:
        """Writes the pages of the backup at work; they replace these only when it is done."""
        return TreeCacheWriter(self.path, self._vault, self._key, self._resource, self._ctx)


class TreeCacheWriter:
    """Takes pages in order. Use as a context manager; without `commit` nothing is replaced."""

    def __init__(self, path: Path, vault: bytes, key: bytes, resource: str, ctx: Context) -> None:
        self._path, self._vault, self._key, self._ctx = path, vault, key, ctx
        self._resource = resource
        self._compressor = zstandard.ZstdCompressor(level=1)
        self._number = 1
        self._usable = True
        self._stack = contextlib.ExitStack()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Pages first: the header, which comes in front of them, is known only at the end.
            self._file = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 - closed by __exit__
            # What it still holds back may not fit either; by then it has been given up.
            self._stack.enter_context(contextlib.suppress(OSError))
            self._stack.callback(self._file.close)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._usable = False
        self._ctx.progress.warn(
            f"what was read cannot be remembered ({error.strerror}): the next backup reads every file again"
        )

    def __enter__(self) -> TreeCacheWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _frame(self, number: int, plain: bytes) -> bytes:
        sealed = seal_body(self._key, self._vault, f"tree cache {number}", self._compressor.compress(plain))
        return _LENGTH.pack(len(sealed)) + sealed

    def add(self, page: CachedPage) -> None:
        """The next page."""
        if not self._usable or not page.groups:
            return
        try:
            self._file.write(self._frame(self._number, msgspec.msgpack.encode(page)))
        except OSError as error:
            self._give_up(error)
        self._number += 1

    def commit(self, sparse: list[bytes]) -> None:
        """Replace the pages of the last backup; `sparse` are chunks of which less than half is in use."""
        if not self._usable:
            return
        header = self._frame(0, msgspec.msgpack.encode(_Header(_VERSION, self._resource, sparse)))
        try:
            fd, fresh = tempfile.mkstemp(dir=self._path.parent)
            with os.fdopen(fd, "wb") as out:
                out.write(header)
                self._file.seek(0)
                while data := self._file.read(1 << 20):
                    out.write(data)
            os.replace(fresh, self._path)
        except OSError as error:
            self._give_up(error)
