"""The seam to file trees: what a walk finds, and where a restore puts it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, runtime_checkable

from safehold.model.extents import Extent
from safehold.model.files import Entry

__all__ = [
    "Attributes",
    "ByteStream",
    "Listing",
    "OpenFile",
    "Piece",
    "Problem",
    "SmallFile",
    "Tree",
    "TreeTarget",
    "Unreadable",
]


class Unreadable(Exception):
    """A file that vanished, may not be read, or failed. The run goes on without it; `reason` is for people."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Attributes(NamedTuple):
    """What a stat does not say: extended attributes, and where a symbolic link leads."""

    xattrs: dict[bytes, bytes]
    target: bytes = b""


class SmallFile(NamedTuple):
    """A file that was read as a whole: its length, its stat after the read, and its extended attributes."""

    length: int
    status: os.stat_result
    xattrs: dict[bytes, bytes]


class Piece(NamedTuple):
    """A small file that is to be written: its bytes are the `entry.size` ones from `offset` on in a buffer that it shares."""

    path: bytes
    entry: Entry
    offset: int


class Problem(NamedTuple):
    """What a restore could not do to the thing at `path` (as people read it, `.` for the directory restored into): `what`, worded alike wherever
    it is the same, with what is special to this one in `detail`, and `reason` why. `absent` says that the thing itself is not there, as it was
    backed up; `unwritten` are bytes that `TreeTarget.write_pieces` was given for it, which it says only later that it could not write.
    """

    path: str
    what: str
    reason: str
    detail: str = ""
    absent: bool = False
    unwritten: int = 0

    def __str__(self) -> str:
        what = f"{self.what}: {self.detail}" if self.detail else self.what
        return f"{self.path}: {what} ({self.reason})"


class OpenFile(Protocol):
    """A regular file that is open for reading."""

    @property
    def size(self) -> int:
        """Length in bytes when it was opened."""
        ...

    @property
    def status(self) -> os.stat_result:
        """Its stat when it was opened."""
        ...

    def extents(self) -> Iterator[Extent]:
        """Data and holes, in order and without gaps."""
        ...

    def read_into(self, offset: int, buf: memoryview) -> int:
        """Fill `buf` from byte `offset`; fewer bytes than asked for only where the file ends. Unreadable."""
        ...

    def finish(self) -> SmallFile:
        """The file's state now that it was read. Unreadable."""
        ...


class Listing(Protocol):
    """One directory: names in order of their bytes, with a stat of each that follows no link."""

    @property
    def parent(self) -> bytes:
        """The directory's path from the top of the tree, components joined by slashes; empty for the top."""
        ...

    @property
    def names(self) -> Sequence[bytes]:
        """Names, ascending; a top that is itself part of the tree stands first, with an empty name."""
        ...

    @property
    def stats(self) -> Sequence[os.stat_result]:
        """A stat for each name."""
        ...

    @property
    def fs(self) -> int:
        """The ordinal of the file system that it lies on."""
        ...

    @property
    def scanned(self) -> float:
        """When the stats were taken, in seconds since 1970."""
        ...

    def read_small(self, position: int, buf: memoryview) -> SmallFile:
        """Read a file that should fit into `buf`. Unreadable."""
        ...

    def open(self, position: int) -> AbstractContextManager[OpenFile]:
        """Open a regular file. Unreadable."""
        ...

    def attributes(self, position: int) -> Attributes:
        """Of what is no regular file. Unreadable."""
        ...


@runtime_checkable
class ByteStream(Protocol):
    """Bytes that come once, from front to back."""

    def read_some(self, buf: memoryview) -> int:
        """Fill the front of `buf` with what comes next; 0 at the end. SourceError where the stream broke off."""
        ...


@runtime_checkable
class Tree(Protocol):
    """Files as they are found, directory by directory: each after the directories whose path comes before its own."""

    def listings(self) -> Iterator[Listing]:
        """Every directory, in the order of `model.files.path_key`. SourceError where a root cannot be read at all."""
        ...

    @property
    def problems(self) -> list[str]:
        """What was left out so far, as `path: reason`; only complete once the walk and all reading is done."""
        ...

    def report(self, path: bytes, reason: str) -> None:
        """Note something that was left out or is not as it should be. Thread-safe."""
        ...


class TreeReader(Protocol):
    """Files below one directory. Nothing that is asked for leads outside of it."""

    def state(self, path: bytes) -> os.stat_result | None:
        """A stat of what is there, following no link; None where nothing is."""
        ...

    def read(self, path: bytes) -> AbstractContextManager[OpenFile]:
        """Open a regular file that is there. Unreadable."""
        ...


class TreeView(TreeReader, Protocol):
    """More to look at, where nothing is written."""

    def leads_to(self, path: bytes) -> bytes:
        """Where a symbolic link leads; empty for what is none."""
        ...

    def attributes(self, path: bytes) -> dict[bytes, bytes]:
        """Extended attributes of what is there."""
        ...


class TreeTarget(TreeReader, Protocol):
    """Where a restore puts files. Nothing that it is asked for leads outside of it: TargetError instead."""

    def directory(self, path: bytes) -> None:
        """Make sure that a directory is there, and those above it."""
        ...

    def write_file(self, path: bytes, entry: Entry, data: Iterator[tuple[int, memoryview | bytes]]) -> bool:
        """Make a regular file of (offset, bytes) pieces in any order, the rest holes, with all its attributes; replaces what is there only when
        all of it is written. Returns whether it is there.
        """
        ...

    def write_pieces(self, data: memoryview, files: Sequence[Piece]) -> None:
        """Like `write_file` for many small files whose bytes lie in `data`, which is free again when it returns; they may be written only
        by the time `settle` returns.
        """
        ...

    def settle(self) -> None:
        """Return when all that was handed in is written."""
        ...

    def make(self, path: bytes, entry: Entry) -> None:
        """Make a symbolic link, device, fifo or socket."""
        ...

    def link(self, path: bytes, first: bytes) -> None:
        """Make `path` another name of the file `first`."""
        ...

    def set_attributes(self, path: bytes, entry: Entry) -> None:
        """Owner, permissions, extended attributes and times of what is there."""
        ...

    @property
    def problems(self) -> list[Problem]:
        """What could not be made or set."""
        ...
