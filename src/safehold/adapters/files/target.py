"""Puts restored files below one directory, and never anywhere else.

Every directory on the way is opened by its name in the one above it and no link is followed, so neither a name in a point nor a link that
somebody puts in the way while the restore runs leads outside.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

from safehold.adapters.files.direct import DirectBuffer
from safehold.adapters.files.walk import DirectoryFd, file_below, read_attributes
from safehold.model.errors import TargetError
from safehold.model.files import Entry
from safehold.model.shown import printable
from safehold.model.writing import write_all
from safehold.ports.tree import OpenFile, Piece, Problem, Unreadable

__all__ = ["DirectoryTarget"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIRECTORIES = 128
_LARGE = 1024 * 1024
"""Files from this size on are written past the page cache."""
_NOT_RESTORED = "not restored"


class DirectoryTarget:
    """See `ports.tree.TreeTarget`. Thread-safe for different paths."""

    def __init__(self, root: DirectoryFd, where: str, *, replace: bool) -> None:
        self._root, self._where, self._replace = root, where, replace
        # In a directory that hands its group down, or among what others may reach, nothing is foretold.
        plain = not replace and not os.fstat(root.fd).st_mode & stat.S_ISGID
        self._maker = (os.geteuid(), os.getegid()) if plain else None
        self._open: OrderedDict[bytes, DirectoryFd] = OrderedDict({b"": root})
        self._file_systems = {os.fstat(root.fd).st_dev: root}
        self._lock = threading.Lock()
        self._own = threading.local()
        self.problems: list[Problem] = []

    # -- directories -------------------------------------------------------------------------------------------------

    def directory(self, path: bytes) -> None:
        """See `ports.tree.TreeTarget`."""
        with self._failing(path, _NOT_RESTORED, absent=True):
            self._directory(path)

    def _directory(self, path: bytes) -> DirectoryFd:
        last: tuple[bytes, DirectoryFd] | None = getattr(self._own, "directory", None)
        if last is not None and last[0] == path:
            return last[1]
        found = self._walk(path)
        self._own.directory = path, found
        return found

    def _walk(self, path: bytes) -> DirectoryFd:
        missing = []
        at = path
        while (found := self._opened(at)) is None:
            at, _, name = at.rpartition(b"/")
            missing.append(name)
        for name in reversed(missing):
            at = at + b"/" + name if at else name
            found = DirectoryFd(self._enter(found.fd, name))
            # Where nothing was there before, nothing was mounted.
            device = os.fstat(found.fd).st_dev if self._replace else None
            with self._lock:
                self._open[at] = found
                if device is not None:
                    self._file_systems.setdefault(device, found)
                while len(self._open) > _OPEN_DIRECTORIES:
                    self._open.popitem(last=False)
                self._open[b""] = self._root
        return found

    def _opened(self, path: bytes) -> DirectoryFd | None:
        with self._lock:
            found = self._open.get(path)
            if found is not None and path:
                self._open.move_to_end(path)
            return found

    def _enter(self, parent: int, name: bytes) -> int:
        for _ in range(3):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=parent)
            try:
                return os.open(name, _DIRECTORY, dir_fd=parent)
            except FileNotFoundError:
                continue
            except OSError as error:
                # A link, or a file: something else than the directory that belongs here.
                if error.errno not in (errno.ENOTDIR, errno.ELOOP) or not self._replace:
                    raise
                # Somebody else at work on this restore may have put the directory there by now.
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    os.unlink(name, dir_fd=parent)
        raise FileExistsError(errno.EEXIST, "something comes back where a directory belongs")

    def _at(self, path: bytes) -> tuple[int, bytes, DirectoryFd]:
        """(descriptor, name) of a path, and what keeps the descriptor open."""
        above, _, name = path.rpartition(b"/")
        parent = self._directory(above)
        return parent.fd, name or b".", parent

    # -- reading what is there ---------------------------------------------------------------------------------------

    def state(self, path: bytes) -> os.stat_result | None:
        """See `ports.tree.TreeTarget`."""
        with self._failing(path, "not looked at"):
            fd, name, _keep = self._at(path)
            try:
                return os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                return None

    @contextlib.contextmanager
    def read(self, path: bytes) -> Iterator[OpenFile]:
        """See `ports.tree.TreeTarget`."""
        try:
            parent, name, _keep = self._at(path)
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from error
        with file_below(parent, name) as opened:
            yield opened

    # -- writing -----------------------------------------------------------------------------------------------------

    def write_file(self, path: bytes, entry: Entry, data: Iterator[tuple[int, memoryview | bytes]]) -> bool:
        """See `ports.tree.TreeTarget`."""
        with self._failing(path, _NOT_RESTORED, absent=True):
            parent, name, _keep = self._at(path)
            self._write(parent, name, path, entry, data)
            return True
        return False

    def write_pieces(self, data: memoryview, files: Sequence[Piece]) -> None:
        """See `ports.tree.TreeTarget`."""
        for path, entry, offset in files:
            try:
                parent, name, _keep = self._at(path)
                self._write(parent, name, path, entry, ((0, data[offset : offset + entry.size]),))
            except OSError as error:
                self._failed(path, error, _NOT_RESTORED, absent=True, unwritten=entry.size)

    def settle(self) -> None:
        """See `ports.tree.TreeTarget`: nothing is left for later here."""

    def _write(
        self, parent: int, name: bytes, path: bytes, entry: Entry, data: Iterable[tuple[int, memoryview | bytes]]
    ) -> None:
        # Where nothing is replaced the name can be taken at once.
        own = b".safehold-" + os.urandom(8).hex().encode() if self._replace else name
        fd = os.open(own, _CREATE, self._first_mode(entry), dir_fd=parent)
        try:
            if entry.size < _LARGE:
                end = 0
                for offset, piece in data:
                    write_all(fd, offset, piece)
                    end = offset + len(piece)
                if end < entry.size:
                    os.ftruncate(fd, entry.size)
            else:
                self._write_large(fd, entry.size, data)
            self._attributes(fd, path, entry, os.fstat(fd))
            if own != name:
                self._move_into_place(parent, own, name)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(own, dir_fd=parent)
            raise
        finally:
            os.close(fd)

    def _write_large(self, fd: int, size: int, data: Iterable[tuple[int, memoryview | bytes]]) -> None:
        buffer: DirectBuffer | None = getattr(self._own, "buffer", None)
        if buffer is None:
            buffer = self._own.buffer = DirectBuffer()
        buffer.begin(fd)
        for offset, piece in data:
            buffer.write(offset, piece)
        buffer.finish(size)

    def _first_mode(self, entry: Entry) -> int:
        """Permissions to make a file with: its own where it will be the maker's anyway, so that nothing is left to set; else nobody's but
        the maker's, who without privileges needs them for attributes too.
        """
        if (entry.uid, entry.gid) == self._maker and not entry.xattrs:
            return entry.mode & 0o777
        return 0o600

    def _move_into_place(self, parent: int, own: bytes, name: bytes) -> None:
        try:
            os.rename(own, name, src_dir_fd=parent, dst_dir_fd=parent)
        except IsADirectoryError:
            os.rmdir(name, dir_fd=parent)
            os.rename(own, name, src_dir_fd=parent, dst_dir_fd=parent)

    def make(self, path: bytes, entry: Entry) -> None:
        """See `ports.tree.TreeTarget`."""
        with self._failing(path, _NOT_RESTORED, absent=True):
            parent, name, _keep = self._at(path)
            self._clear(parent, name)
            if stat.S_ISLNK(entry.mode):
                os.symlink(entry.target, name, dir_fd=parent)
            else:
                os.mknod(name, stat.S_IFMT(entry.mode) | 0o600, entry.rdev, dir_fd=parent)
            self._attributes_by_name(parent, name, path, entry)

    def link(self, path: bytes, first: bytes) -> None:
        """See `ports.tree.TreeTarget`."""
        with self._failing(path, _NOT_RESTORED, absent=True):
            parent, name, _keep = self._at(path)
            source, source_name, _keep_too = self._at(first)
            there = None
            with contextlib.suppress(FileNotFoundError):
                there = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if there is not None:
                wanted = os.stat(source_name, dir_fd=source, follow_symlinks=False)
                if (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino):
                    return
                self._clear(parent, name)
            os.link(source_name, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)

    def _clear(self, parent: int, name: bytes) -> None:
        """Make room for a name, where replacing was asked for. A directory that is not empty stays, and the caller fails."""
        if not self._replace:
            return
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            return
        except IsADirectoryError:
            os.rmdir(name, dir_fd=parent)

    # -- attributes --------------------------------------------------------------------------------------------------

    def set_attributes(self, path: bytes, entry: Entry) -> None:
        """See `ports.tree.TreeTarget`."""
        with self._failing(path, "attributes not set"):
            parent, name, _keep = self._at(path)
            if not entry.is_directory and not entry.is_file:
                self._attributes_by_name(parent, name, path, entry)
                return
            kind = os.O_DIRECTORY if entry.is_directory else 0
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | kind, dir_fd=parent)
            try:
                self._attributes(fd, path, entry, os.fstat(fd))
            finally:
                os.close(fd)

    def _attributes(self, fd: int, path: bytes, entry: Entry, now: os.stat_result) -> None:
        """Owner first, as changing it takes capabilities and special bits away; times last. `now` is what stands there: what is right
        already is left alone, as each change is one of the file system's journal.
        """
        # Written out, without helpers: this runs once for each file.
        disturbed = (now.st_uid, now.st_gid) != (entry.uid, entry.gid)
        mode = stat.S_IMODE(entry.mode)
        if disturbed:
            try:
                os.chown(fd, entry.uid, entry.gid)
            except OSError as error:
                mode = self._not_owned(path, entry, error)
        if entry.xattrs or self._replace:
            self._xattrs(fd, path, entry, follow=True)
            # An access control list moves the permissions of the group.
            disturbed = True
        if disturbed or stat.S_IMODE(now.st_mode) != mode:
            with self._reporting(path, "permissions not set"):
                os.chmod(fd, mode)
        try:
            os.utime(fd, ns=(entry.mtime, entry.mtime))
        except OSError as error:
            self._problem(path, "times not set", error)

    def _attributes_by_name(self, parent: int, name: bytes, path: bytes, entry: Entry) -> None:
        now = os.stat(name, dir_fd=parent, follow_symlinks=False)
        mode = stat.S_IMODE(entry.mode)
        if (now.st_uid, now.st_gid) != (entry.uid, entry.gid):
            try:
                os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
            except OSError as error:
                mode = self._not_owned(path, entry, error)
        if entry.xattrs:
            self._xattrs(b"/proc/self/fd/%d/%s" % (parent, name), path, entry, follow=False)
        if not stat.S_ISLNK(entry.mode):
            # Through a descriptor of the thing itself: by its name a link that was put there would be followed.
            itself = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                with self._reporting(path, "permissions not set"):
                    os.chmod(f"/proc/self/fd/{itself}", mode)
            finally:
                os.close(itself)
        with self._reporting(path, "times not set"):
            os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)

    def _not_owned(self, path: bytes, entry: Entry, error: OSError) -> int:
        """The permissions of what could not be given to its owner: whoever has it instead lends nobody their rights."""
        self._problem(path, "owner not set", error, f"{entry.uid}:{entry.gid}")
        special = entry.mode & (stat.S_ISUID | stat.S_ISGID)
        if special:
            self._problem(path, "setuid and setgid not set", "it has another owner")
        return stat.S_IMODE(entry.mode) & ~special

    def _xattrs(self, at: int | bytes, path: bytes, entry: Entry, *, follow: bool) -> None:
        there = read_attributes(at, follow=follow) if self._replace else {}
        for name, value in entry.xattrs.items():
            if there.get(name) != value:
                with self._reporting(path, "attribute not set", printable(name)):
                    os.setxattr(at, name, value, follow_symlinks=follow)
        for name in there.keys() - entry.xattrs.keys():
            with self._reporting(path, "attribute not removed", printable(name)):
                os.removexattr(at, name, follow_symlinks=follow)

    # -- failures ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _failing(self, path: bytes, what: str, *, absent: bool = False) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._failed(path, error, what, absent=absent)

    def _failed(self, path: bytes, error: OSError, what: str, *, absent: bool, unwritten: int = 0) -> None:
        """What makes the rest of the restore pointless is raised, the rest reported."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
            raise TargetError(
                f"cannot be written ({error.strerror})",
                on=f"{self._where}/{printable(path)}",
                remedy="make room, and restore with --delta",
            ) from error
        self._problem(path, what, error, absent=absent, unwritten=unwritten)

    @contextlib.contextmanager
    def _reporting(self, path: bytes, what: str, detail: str = "") -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._problem(path, what, error, detail)

    def _problem(
        self,
        path: bytes,
        what: str,
        why: OSError | str,
        detail: str = "",
        *,
        absent: bool = False,
        unwritten: int = 0,
    ) -> None:
        reason = why if isinstance(why, str) else why.strerror or str(why)
        with self._lock:
            self.problems.append(Problem(printable(path) or ".", what, reason, detail, absent, unwritten))

    def sync(self) -> None:
        """Return when everything is durable; see syncfs(2)."""
        libc = ctypes.CDLL(None, use_errno=True)
        for root in self._file_systems.values():
            if not libc.syncfs(root.fd):
                continue
            code = ctypes.get_errno()
            raise TargetError(f"could not be made durable ({os.strerror(code)})", on=self._where)
