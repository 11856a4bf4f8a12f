"""Compares files that are there with stored ones, and says what a restore would write."""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from safehold.model.files import Entry, Form
from safehold.ports.tree import TreeReader, TreeView, Unreadable
from safehold.vault.content import LostParts
from safehold.vault.fetch import ChunkReader
from safehold.vault.names import ZERO_ID
from safehold.vault.sealing import chunk_id
from safehold.vault.tree import EntryAt

__all__ = ["Change", "Difference", "content_is_right", "difference"]

_COMPARE = 1024 * 1024


class Difference(enum.Enum):
    """How what is there differs from what is stored: it is missing, something else or of other content, or has other attributes only."""

    MISSING = "new"
    CONTENT = "content"
    ATTRIBUTES = "attributes"


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that a restore would write: its path from the target, and how many bytes of content."""

    path: bytes
    difference: Difference
    size: int


def difference(found: EntryAt, path: bytes, there: TreeView, chunks: ChunkReader) -> Difference | None:
    """What a restore that compares would write at `path`; None where nothing."""
    entry = found.entry
    now = there.state(path)
    if now is None:
        return Difference.MISSING
    if stat.S_IFMT(now.st_mode) != stat.S_IFMT(entry.mode):
        return Difference.CONTENT
    if entry.is_file and not content_is_right(found, path, there, chunks):
        return Difference.CONTENT
    if (
        not entry.is_file
        and not entry.is_directory
        and (now.st_rdev, there.leads_to(path)) != (entry.rdev, entry.target)
    ):
        return Difference.CONTENT
    return (
        None
        if _attributes(now) == _attributes(entry) and there.attributes(path) == entry.xattrs
        else Difference.ATTRIBUTES
    )


def _attributes(one: os.stat_result | Entry) -> tuple[int, ...]:
    if isinstance(one, Entry):
        return stat.S_IMODE(one.mode), one.uid, one.gid, one.mtime
    return stat.S_IMODE(one.st_mode), one.st_uid, one.st_gid, one.st_mtime_ns


def content_is_right(found: EntryAt, path: bytes, there: TreeReader, chunks: ChunkReader) -> bool:
    """True where a regular file of just this content is there. Only hashes are compared: nothing of it is fetched."""
    entry = found.entry
    now = there.state(path)
    if now is None or not stat.S_ISREG(now.st_mode) or now.st_size != entry.size:
        return False
    key = chunks.dedup_key
    try:
        with there.read(path) as opened:
            if entry.form == Form.PIECE:
                buffer = memoryview(bytearray(entry.size))
                got = opened.read_into(0, buffer)
                return got == entry.size and chunk_id(key, buffer)[: len(entry.digest)] == entry.digest
            at = 0
            for part in found.parts_or_lost(chunks.one):
                # What nobody can tell is not known to be right.
                if isinstance(part, LostParts) or not _same_part(opened.read_into, at, *part, key):
                    return False
                at += part[1]
            return True
    except Unreadable:
        return False


def _same_part(read: Callable[[int, memoryview], int], at: int, identity: bytes, length: int, key: bytes) -> bool:
    if identity != ZERO_ID:
        buffer = memoryview(bytearray(length))
        return read(at, buffer) == length and chunk_id(key, buffer) == identity
    buffer = memoryview(bytearray(min(length, _COMPARE)))
    while length:
        some = buffer[: min(length, _COMPARE)]
        if read(at, some) != len(some) or bytes(some).strip(b"\0"):
            return False
        at, length = at + len(some), length - len(some)
    return True
