"""What a file system says of a file."""

from __future__ import annotations

import stat
from enum import IntEnum

import msgspec

__all__ = ["Entry", "Form", "path_key"]


class Form(IntEnum):
    """How an entry's content is referred to: see `Entry.content`."""

    NONE = 0
    PIECE = 1
    PARTS = 2
    NODE = 3


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One name in a directory: a file, directory, symbolic link, device, fifo or socket.

    `mode` is the type and permission bits of stat(2), times are nanoseconds since 1970, `size` bytes (0 for what is no regular file).
    `ino`, `ctime` and `fs` (the file system's ordinal in the tree) tell whether the file is the one that was read before; entries of
    one `fs` and `ino` with `links` above 1 are one file. Extended attributes hold ACLs and capabilities too.

    `content` refers to the page's chunk and node lists by position. PIECE: [chunk, offset], `size` bytes of that chunk from there.
    PARTS: [chunk or -1 for a hole, length, …]. NODE: [node]. `digest` is the keyed hash of a piece's bytes.
    """

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    ctime: int
    ino: int
    fs: int = 0
    links: int = 1
    rdev: int = 0
    target: bytes = b""
    xattrs: dict[bytes, bytes] = {}
    form: int = Form.NONE
    content: tuple[int, ...] = ()
    digest: bytes = b""

    @property
    def is_file(self) -> bool:
        """True for a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_directory(self) -> bool:
        """True for a directory."""
        return stat.S_ISDIR(self.mode)


def path_key(parent: bytes) -> bytes:
    """What directories are ordered by: their components, so that a directory's descendants follow it at once."""
    return parent.replace(b"/", b"\0")
