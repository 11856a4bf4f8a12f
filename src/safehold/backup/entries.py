"""Entries in the making, and what the pages of the last backup say of the same files."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field

from safehold.backup.tree_cache import CachedPage
from safehold.model.files import Entry, Form
from safehold.vault.names import ZERO_ID

__all__ = ["References", "make_entry", "references", "same_file", "split_ids", "unmoved"]


@dataclass
class References:
    """The lists that a page's entries refer to by position."""

    chunks: list[bytes] = field(default_factory=list)
    live: list[int] = field(default_factory=list)
    nodes: list[bytes] = field(default_factory=list)
    deep: list[bytes] = field(default_factory=list)
    _chunk_at: dict[bytes, int] = field(default_factory=dict)
    _node_at: dict[bytes, int] = field(default_factory=dict)

    def reserve(self) -> int:
        """A position for a chunk whose id is not known yet."""
        self.chunks.append(ZERO_ID)
        self.live.append(0)
        return len(self.chunks) - 1

    def fill(self, position: int, identity: bytes) -> None:
        """The id for a reserved position."""
        self.chunks[position] = identity

    def chunk(self, identity: bytes) -> int:
        """The position of a chunk; -1 for the zero id."""
        if identity == ZERO_ID:
            return -1
        position = self._chunk_at.get(identity)
        if position is None:
            position = self._chunk_at[identity] = self.reserve()
            self.chunks[position] = identity
        return position

    def node(self, identity: bytes) -> int:
        """The position of a node."""
        position = self._node_at.get(identity)
        if position is None:
            position = self._node_at[identity] = len(self.nodes)
            self.nodes.append(identity)
        return position


def split_ids(ids: bytes) -> list[bytes]:
    """Ids that are set end to end."""
    return [ids[at : at + 32] for at in range(0, len(ids), 32)]


def references(entry: Entry, page: CachedPage) -> list[bytes]:
    """Ids of the chunks or the node that an entry of a page refers to, zero ids for holes."""
    if entry.form == Form.NODE:
        return [page.nodes[entry.content[0] * 32 :][:32]]
    return [ZERO_ID if position < 0 else page.chunks[position * 32 :][:32] for position in entry.content[::2]]


def same_file(entry: Entry, status: os.stat_result, fs: int) -> bool:
    """True where nothing tells the file from the one that the entry was made of."""
    return (
        entry.ctime == status.st_ctime_ns
        and entry.mtime == status.st_mtime_ns
        and entry.ino == status.st_ino
        and entry.mode == status.st_mode
        and entry.fs == fs
        and (entry.size == status.st_size or not stat.S_ISREG(entry.mode))
    )


def unmoved(before: os.stat_result, after: os.stat_result) -> bool:
    """True where a file was not changed between two looks at it."""
    return (
        before.st_ino == after.st_ino
        and before.st_size == after.st_size
        and before.st_mtime_ns == after.st_mtime_ns
        and before.st_ctime_ns == after.st_ctime_ns
    )


def make_entry(
    name: bytes,
    status: os.stat_result,
    fs: int,
    xattrs: dict[bytes, bytes],
    *,
    target: bytes = b"",
    size: int = 0,
    form: int = Form.NONE,
    content: tuple[int, ...] = (),
    digest: bytes = b"",
) -> Entry:
    """The entry of what a stat describes."""
    mode = status.st_mode
    return Entry(
        name=name,
        mode=mode,
        uid=status.st_uid,
        gid=status.st_gid,
        size=size,
        mtime=status.st_mtime_ns,
        ctime=status.st_ctime_ns,
        ino=status.st_ino,
        fs=fs,
        links=1 if stat.S_ISDIR(mode) else status.st_nlink,
        rdev=status.st_rdev if stat.S_ISBLK(mode) or stat.S_ISCHR(mode) else 0,
        target=target,
        xattrs=xattrs,
        form=form,
        content=content,
        digest=digest,
    )
