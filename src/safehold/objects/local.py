"""A directory as an object store, durable: what a put returned survives a power cut, and what it did not return is
absent or whole.

An object is written under a temporary name, synced, linked to its own name (which fails if that exists), and then its
directory is synced, as is the parent of every directory made on the way. Temporary names start with a dot, which no
object's segment in this layout does.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

from safehold.model.errors import (
    ObjectExists,
    ObjectNotFound,
    ShortRead,
    StoreError,
    StoreFull,
    StorePermission,
    StoreUnavailable,
)
from safehold.objects.names import check_name, check_prefix
from safehold.ports.store import Capabilities, Stamp

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["FileCalls", "LocalStore", "SystemFileCalls"]

_TEMPORARY = ".new-"
_DIRECT = 1024 * 1024
"""Objects from this size on are written with O_DIRECT, in whole pages; the rest of the last page goes the usual way."""
_PAGE = 4096
_RESERVE, _RESERVE_SHARE = 64 * 1024 * 1024, 32
"""Bytes of a disk that backups leave free, and at most this share of it: expiry and prune need some to give space back."""
_NOT_DIRECT = {errno.EINVAL, errno.EOPNOTSUPP}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_PASSING = {errno.EINTR, errno.EAGAIN, errno.ETIMEDOUT, errno.ESTALE, errno.EHOSTDOWN}


class FileCalls(Protocol):
    """The file-system calls that change something, so that tests can record, fail and replay them."""

    def write_file(self, path: str, parts: Sequence[Buffer]) -> None:
        """Create `path`, which must not exist, mode 0600, with the parts' bytes, and fsync it."""
        ...

    def link(self, source: str, target: str) -> None:
        """Hard link; FileExistsError where the target exists."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Atomic rename over whatever is there."""
        ...

    def unlink(self, path: str) -> None:
        """Remove a file."""
        ...

    def mkdir(self, path: str) -> None:
        """Make one directory, mode 0700; FileExistsError where it exists."""
        ...

    def sync_directory(self, path: str) -> None:
        """Make the entries of a directory durable."""
        ...


class SystemFileCalls:
    """The operating system's calls."""

    def write_file(self, path: str, parts: Sequence[Buffer]) -> None:
        """See `FileCalls`. A large object goes past the page cache: nobody reads it back soon, and the copy costs more than the disk."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            for part in parts:
                rest = memoryview(part).cast("B")
                if len(parts) == 1 and len(rest) >= _DIRECT:
                    rest = rest[_write_direct(fd, rest) :]
                while rest:
                    rest = rest[os.write(fd, rest) :]
            os.fsync(fd)
        finally:
            os.close(fd)

    def link(self, source: str, target: str) -> None:
        """See `FileCalls`."""
        os.link(source, target)

    def rename(self, source: str, target: str) -> None:
        """See `FileCalls`."""
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        """See `FileCalls`."""
        os.unlink(path)

    def mkdir(self, path: str) -> None:
        """See `FileCalls`."""
        os.mkdir(path, 0o700)

    def sync_directory(self, path: str) -> None:
        """See `FileCalls`."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _write_direct(fd: int, data: memoryview) -> int:
    """Write whole pages of `data` with O_DIRECT; returns how many bytes, 0 where file system or buffer do not allow it."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    whole = len(data) - len(data) % _PAGE
    done = 0
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
        while done < whole:
            done += os.write(fd, data[done:whole])
            if done % _PAGE:
                break
    except OSError as error:
        if error.errno not in _NOT_DIRECT:
            raise
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
    return done


class LocalStore:
    """Objects as files below one directory. Store time is the file's ctime, which no user can set; the version is
    its inode and mtime.
    """

    def __init__(self, path: Path | str, calls: FileCalls | None = None) -> None:
        self._root = os.path.abspath(path)
        self._calls = calls or SystemFileCalls()
        self._made: set[str] = set()
        self._numbers = itertools.count()
        self.url = self._root
        self.caps = Capabilities(parallel=2, room=self._room)

    def _path(self, name: str) -> str:
        return os.path.join(self._root, check_name(name))

    def put(self, name: str, parts: Sequence[Buffer], *, create_only: bool = True) -> Stamp:
        """See `ports.store.Store`."""
        path = self._path(name)
        directory = os.path.dirname(path)
        if create_only and os.path.lexists(path):
            raise ObjectExists("object exists already", on=name)
        temporary = os.path.join(
            directory,  # Process numbers repeat across containers and hosts that share the directory.
            f"{_TEMPORARY}{os.getpid()}-{secrets.token_hex(6)}",
        )
        try:
            self._make_directories(directory)
            self._calls.write_file(temporary, parts)
            if create_only:
                self._calls.link(temporary, path)
                self._calls.sync_directory(directory)
                self._calls.unlink(temporary)
            else:
                self._calls.rename(temporary, path)
                self._calls.sync_directory(directory)
            return self._stamp(name, os.stat(path))
        except FileExistsError:
            self._discard(temporary)
            raise ObjectExists("object exists already", on=name) from None
        except OSError as error:
            self._discard(temporary)
            self._fail(error, name)

    def _room(self) -> float:
        try:
            disk = os.statvfs(self._root)
        except OSError:
            # It will be said of the request that fails.
            return float("inf")
        if not disk.f_blocks:
            # A file system that does not tell its size.
            return float("inf")
        return disk.f_bavail * disk.f_frsize - min(_RESERVE, disk.f_blocks * disk.f_frsize // _RESERVE_SHARE)

    def _discard(self, temporary: str) -> None:
        try:
            self._calls.unlink(temporary)
        except OSError:
            return

    def _make_directories(self, directory: str) -> None:
        """Make what is missing of `directory`; each new one is durable in its parent before anything is put into it."""
        if directory in self._made:
            return
        missing = []
        at = directory
        while not os.path.isdir(at):
            missing.append(at)
            at = os.path.dirname(at)
        for path in reversed(missing):
            try:
                self._calls.mkdir(path)
            except FileExistsError:
                if not os.path.isdir(path):
                    raise StoreError(
                        "something that is no directory is in the way", on=path, remedy="move it away"
                    ) from None
        # Also where another process made it: its own sync may still be under way.
        while at != os.path.dirname(at) and len(at) >= len(self._root):
            missing.append(at)
            at = os.path.dirname(at)
        for path in reversed(missing):
            self._calls.sync_directory(os.path.dirname(path))
        self._made.add(directory)

    def _open(self, name: str) -> int:
        try:
            return os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._fail(error, name)

    def read_into(self, name: str, offset: int, buf: memoryview) -> None:
        """See `ports.store.Store`."""
        fd = self._open(name)
        try:
            done = 0
            while done < len(buf):
                got = os.preadv(fd, [buf[done:]], offset + done)
                if not got:
                    raise ShortRead(f"object ends at {offset + done}, before {offset + len(buf)}", on=name)
                done += got
        except OSError as error:
            self._fail(error, name)
        finally:
            os.close(fd)

    def get(self, name: str) -> bytes:
        """See `ports.store.Store`."""
        fd = self._open(name)
        try:
            with os.fdopen(fd, "rb", buffering=0) as file:
                return file.read()
        except OSError as error:
            self._fail(error, name)

    def head(self, name: str) -> Stamp:
        """See `ports.store.Store`."""
        try:
            return self._stamp(name, os.stat(self._path(name)))
        except OSError as error:
            self._fail(error, name)

    def _stamp(self, name: str, stat: os.stat_result) -> Stamp:
        return Stamp(name, stat.st_size, f"{stat.st_ino:x}-{stat.st_mtime_ns:x}", stat.st_ctime)

    def list(self, prefix: str, after: str = "") -> Iterator[Stamp]:
        """See `ports.store.Store`."""
        check_prefix(prefix)
        start, _, _ = prefix.rpartition("/")
        try:
            yield from self._walk(start, prefix, after)
        except OSError as error:
            self._fail(error, prefix)

    def _walk(self, directory: str, prefix: str, after: str) -> Iterator[Stamp]:
        base = f"{directory}/" if directory else ""
        try:
            with os.scandir(os.path.join(self._root, directory)) as scan:
                found = [
                    (entry.name + "/" if entry.is_dir() else entry.name, entry)
                    for entry in scan
                    if not entry.name.startswith(".")
                ]
        except (FileNotFoundError, NotADirectoryError):
            return
        for key, entry in sorted(found, key=lambda pair: pair[0]):
            full = base + key
            if key.endswith("/"):
                # Skip a directory whose every name sorts at or before `after`, or lies outside of the prefix.
                if (full.startswith(prefix) or prefix.startswith(full)) and (full > after or after.startswith(full)):
                    yield from self._walk(full[:-1], prefix, after)
            elif full.startswith(prefix) and full > after:
                try:
                    yield self._stamp(full, entry.stat())
                except FileNotFoundError:
                    continue

    def delete(self, name: str, version: str | None = None) -> None:
        """See `ports.store.Store`."""
        path = self._path(name)
        try:
            if version is not None and self.head(name).version != version:
                return
            self._calls.unlink(path)
            self._calls.sync_directory(os.path.dirname(path))
        except (FileNotFoundError, ObjectNotFound):
            return
        except OSError as error:
            self._fail(error, name)

    def _fail(self, error: OSError, name: str) -> NoReturn:
        where = f"{self._root}/{name}"
        if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
            raise ObjectNotFound("no such object", on=name) from error
        if error.errno in _FULL:
            raise StoreFull(
                "the store is full",
                on=where,
                remedy='make room on the disk that it lies on: see the runbook, "Full vault"',
            ) from error
        if error.errno in _DENIED:
            # What is not there yet has neither owner nor mode: the directory that it would be in is what matters.
            while not os.path.lexists(where) and where != os.path.dirname(where):
                where = os.path.dirname(where)
            raise StorePermission(
                f"the store refuses access ({error.strerror})",
                on=where,
                remedy="check owner and mode there, or choose a place that is yours",
            ) from error
        kind = StoreUnavailable if error.errno in _PASSING else StoreError
        raise kind(
            f"the store failed ({error.strerror})", on=where, remedy="check the disk or mount behind it"
        ) from error
