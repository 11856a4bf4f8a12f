"""Walks directories through descriptors and reads what is in them."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from safehold.model.clock import Clock
from safehold.model.errors import SourceError
from safehold.model.extents import Extent, ExtentKind
from safehold.model.shown import printable
from safehold.ports.tree import Attributes, Listing, SmallFile, Unreadable

__all__ = [
    "DirectoryFd",
    "DirectoryListing",
    "FileTree",
    "OpenFd",
    "Rules",
    "file_below",
    "file_extents",
    "open_below",
    "read_attributes",
]

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_SMALL_FLAGS = _FLAGS | os.O_NONBLOCK
_CACHE_TAG = b"CACHEDIR.TAG"
_CACHE_MARK = b"Signature: 8a477f597d28d172789f06886806bc55"


@dataclass(frozen=True)
class Rules:
    """What a walk leaves out. `exclude` is asked for each path from the top; `never` are absolute paths that are left out without
    being asked for, such as the vault itself; of `own` directories, known by device and inode, the content is not taken whatever leads there;
    `hollow` are mount points whose directory is taken and whose content is not.
    """

    exclude: Callable[[bytes], bool] | None = None
    caches: bool = False
    one_file_system: bool = False
    never: frozenset[bytes] = frozenset()
    own: frozenset[tuple[int, int]] = frozenset()
    hollow: frozenset[bytes] = frozenset()


class DirectoryFd:
    """An open directory, closed with the last reference to it."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


_NO_ATTRIBUTE = (errno.ENOTSUP, errno.ENODATA, errno.EPERM)


def open_below(directory: int | None, name: bytes, flags: int) -> int:
    """Open without touching the access time, where that is allowed."""
    try:
        return os.open(name, flags | os.O_NOATIME, dir_fd=directory)
    except PermissionError:
        return os.open(name, flags, dir_fd=directory)


def file_extents(fd: int, size: int) -> Iterator[Extent]:
    """Data and holes of a file, as far as its file system tells."""
    at = 0
    while at < size:
        try:
            data = min(os.lseek(fd, at, os.SEEK_DATA), size)
        except OSError as error:
            if error.errno != errno.ENXIO:
                yield Extent(at, size - at, ExtentKind.DATA)
                return
            data = size
        if data > at:
            yield Extent(at, data - at, ExtentKind.ZERO)
        if data == size:
            return
        at = min(os.lseek(fd, data, os.SEEK_HOLE), size)
        yield Extent(data, at - data, ExtentKind.DATA)


def read_attributes(path: int | str | bytes, *, follow: bool) -> dict[bytes, bytes]:
    """Extended attributes; none where the file system has none. One that went away meanwhile, or that nobody may read, is none."""
    try:
        names = os.listxattr(path, follow_symlinks=follow)
    except OSError as error:
        if error.errno in _NO_ATTRIBUTE:
            return {}
        raise
    found = {}
    for name in names:
        try:
            found[os.fsencode(name)] = os.getxattr(path, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in _NO_ATTRIBUTE:
                raise
    return found


class OpenFd:
    """See `ports.tree.OpenFile`; the descriptor stays the caller's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.status = os.fstat(fd)
        self.size = self.status.st_size

    def extents(self) -> Iterator[Extent]:
        """See `ports.tree.OpenFile`."""
        if self.status.st_blocks * 512 >= self.size:
            return iter([Extent(0, self.size, ExtentKind.DATA)] if self.size else [])
        return file_extents(self._fd, self.size)

    def read_into(self, offset: int, buf: memoryview) -> int:
        """See `ports.tree.OpenFile`."""
        done = 0
        with _reasons():
            while done < len(buf):
                got = os.preadv(self._fd, [buf[done:]], offset + done)
                if not got:
                    break
                done += got
        return done

    def finish(self) -> SmallFile:
        """See `ports.tree.OpenFile`."""
        with _reasons():
            return SmallFile(self.size, os.fstat(self._fd), read_attributes(self._fd, follow=True))


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _reason(error) from error


def _reason(error: OSError) -> Unreadable:
    return Unreadable("vanished" if error.errno == errno.ENOENT else error.strerror or str(error))


@contextlib.contextmanager
def file_below(directory: int, name: bytes) -> Iterator[OpenFd]:
    """A regular file of an open directory, to read; no link is followed. Unreadable."""
    with _reasons():
        fd = open_below(directory, name, _FLAGS | os.O_NONBLOCK)
    try:
        yield OpenFd(fd)
    finally:
        os.close(fd)


class DirectoryListing:
    """See `ports.tree.Listing`."""

    __slots__ = ("_directory", "fs", "names", "parent", "scanned", "stats")

    def __init__(
        self,
        parent: bytes,
        directory: DirectoryFd,
        names: Sequence[bytes],
        stats: Sequence[os.stat_result],
        fs: int,
        scanned: float,
    ) -> None:
        self.parent, self._directory, self.names, self.stats = parent, directory, names, stats
        self.fs, self.scanned = fs, scanned

    def read_small(self, position: int, buf: memoryview) -> SmallFile:
        """See `ports.tree.Listing`."""
        # Written out, without helpers: this runs once for each file.
        name, directory = self.names[position], self._directory.fd
        try:
            try:
                fd = os.open(name, _SMALL_FLAGS | os.O_NOATIME, dir_fd=directory)
            except PermissionError:
                fd = os.open(name, _SMALL_FLAGS, dir_fd=directory)
            try:
                length = os.readv(fd, (buf,))
                status = os.fstat(fd)
                while 0 < length < status.st_size and length < len(buf):
                    got = os.readv(fd, (buf[length:],))
                    if not got:
                        break
                    length += got
                try:
                    xattrs = read_attributes(fd, follow=True) if os.listxattr(fd) else {}
                except OSError as error:
                    if error.errno != errno.ENOTSUP:
                        raise
                    xattrs = {}
            finally:
                os.close(fd)
        except OSError as error:
            raise _reason(error) from error
        return SmallFile(length, status, xattrs)

    @contextlib.contextmanager
    def open(self, position: int) -> Iterator[OpenFd]:
        """See `ports.tree.Listing`."""
        with file_below(self._directory.fd, self.names[position]) as opened:
            yield opened

    def attributes(self, position: int) -> Attributes:
        """See `ports.tree.Listing`."""
        name = self.names[position]
        with _reasons():
            # Symbolic links have no descriptor to ask, so the directory's own leads to the name.
            path = b"/proc/self/fd/%d/%s" % (self._directory.fd, name or b".")
            xattrs = read_attributes(path, follow=False)
            if stat.S_ISLNK(self.stats[position].st_mode):
                return Attributes(xattrs, os.readlink(name, dir_fd=self._directory.fd))
            return Attributes(xattrs)


_Trie = dict[bytes, "_Trie | None"]


@dataclass
class _Pending:
    """A directory to visit: below which one, under which name; `below` are the only names to take, None for all of them."""

    path: bytes
    above: DirectoryFd | None
    name: bytes
    below: _Trie | None
    device: int | None


@dataclass
class FileTree:
    """See `ports.tree.Tree`."""

    roots: Sequence[bytes]
    rules: Rules
    clock: Clock
    problems: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _systems: dict[int, int] = field(default_factory=dict)

    def report(self, path: bytes, reason: str) -> None:
        """See `ports.tree.Tree`."""
        with self._lock:
            self.problems.append(f"/{printable(path)}: {reason}")

    def listings(self) -> Iterator[Listing]:
        """See `ports.tree.Tree`."""
        stack = [_Pending(b"", None, b"/", self._trie(), None)]
        while stack:
            pending = stack.pop()
            try:
                visited = self._visit(pending)
            except OSError as error:
                if pending.below is not None:
                    raise SourceError(
                        f"cannot be read ({error.strerror})",
                        on="/" + printable(pending.path),
                        remedy="check the path and the permissions",
                    ) from error
                if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                    self.report(pending.path, error.strerror or str(error))
                elif error.errno == errno.ENOENT:
                    self.report(pending.path, "vanished")
                continue
            if visited is not None:
                listing, below = visited
                yield listing
                stack += reversed(below)

    def _trie(self) -> _Trie | None:
        """The roots as nested names; None where the top itself is a root."""
        trie: _Trie = {}
        for root in self.roots:
            at = trie
            parts = [part for part in root.split(b"/") if part]
            if not parts:
                return None
            for part in parts[:-1]:
                found = at.setdefault(part, {})
                if found is None:
                    break
                at = found
            else:
                at[parts[-1]] = None
        return trie

    def _visit(self, pending: _Pending) -> tuple[DirectoryListing, list[_Pending]] | None:
        flags = _FLAGS | os.O_DIRECTORY
        directory = DirectoryFd(open_below(pending.above.fd if pending.above else None, pending.name, flags))
        pending.above = None
        status = os.fstat(directory.fd)
        path, scanned = pending.path, self.clock.now()
        if pending.below is not None:
            found = [(name, os.stat(name, dir_fd=directory.fd, follow_symlinks=False)) for name in pending.below]
        else:
            found = self._scan(directory, path)
            if self.rules.caches and any(name == _CACHE_TAG for name, _ in found) and _is_cache(directory):
                found = [pair for pair in found if pair[0] == _CACHE_TAG]
        if path == b"" and pending.below is None:
            found.append((b"", status))
        found.sort()
        fs = self._systems.setdefault(status.st_dev, len(self._systems))
        if pending.below is None and pending.device is None:
            pending.device = status.st_dev
        listing = DirectoryListing(
            path, directory, [name for name, _ in found], [info for _, info in found], fs, scanned
        )
        return listing, list(self._below(pending, directory, found))

    def _scan(self, directory: DirectoryFd, path: bytes) -> list[tuple[bytes, os.stat_result]]:
        found = []
        exclude, never = self.rules.exclude, self.rules.never
        prefix = path + b"/" if path else b""
        with os.scandir(directory.fd) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                if exclude is not None and exclude(prefix + name):
                    continue
                if never and b"/" + prefix + name in never:
                    continue
                try:
                    found.append((name, entry.stat(follow_symlinks=False)))
                except OSError as error:
                    reason = "vanished" if error.errno == errno.ENOENT else error.strerror
                    self.report(prefix + name, reason or str(error))
        return found

    def _below(
        self, pending: _Pending, directory: DirectoryFd, found: list[tuple[bytes, os.stat_result]]
    ) -> Iterator[_Pending]:
        prefix = pending.path + b"/" if pending.path else b""
        for name, status in found:
            if not stat.S_ISDIR(status.st_mode) or not name:
                continue
            path = prefix + name
            if b"/" + path in self.rules.hollow or (status.st_dev, status.st_ino) in self.rules.own:
                continue
            below = pending.below[name] if pending.below is not None else None
            device = pending.device
            if pending.below is not None and below is None:
                device = status.st_dev
            elif self.rules.one_file_system and device is not None and status.st_dev != device:
                continue
            yield _Pending(path, directory, name, below, device)


def _is_cache(directory: DirectoryFd) -> bool:
    """True where the directory holds a cache directory tag; see the Cache Directory Tagging Specification."""
    try:
        fd = os.open(_CACHE_TAG, _FLAGS | os.O_NONBLOCK, dir_fd=directory.fd)
    except OSError:
        return False
    try:
        return os.pread(fd, len(_CACHE_MARK), 0) == _CACHE_MARK
    finally:
        os.close(fd)
