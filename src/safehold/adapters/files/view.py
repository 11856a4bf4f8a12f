"""Looks at what lies below a directory, as a restore would find it."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from safehold.adapters.files.walk import DirectoryFd, file_below, read_attributes
from safehold.model.errors import TargetError
from safehold.model.shown import printable
from safehold.ports.tree import OpenFile, Unreadable

__all__ = ["DirectoryView", "open_view"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NOTHING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""Nothing, or on the way a link or a file where a directory would be made."""


class DirectoryView:
    """See `ports.tree.TreeView`. A directory that is not there has nothing in it."""

    def __init__(self, root: DirectoryFd | None) -> None:
        self._root = root
        self._last: tuple[bytes, DirectoryFd | None] = (b"", root)

    def _directory(self, path: bytes) -> DirectoryFd | None:
        """The directory at a path, opened name by name, following no link; None where there is none."""
        if self._last[0] == path:
            return self._last[1]
        at = self._root
        for name in path.split(b"/") if path else ():
            if at is None:
                break
            with _looking_at(path):
                try:
                    at = DirectoryFd(os.open(name, _DIRECTORY, dir_fd=at.fd))
                except OSError as error:
                    if error.errno not in _NOTHING:
                        raise
                    at = None
        self._last = path, at
        return at

    def _at(self, path: bytes) -> tuple[DirectoryFd | None, bytes]:
        above, _, name = path.rpartition(b"/")
        return self._directory(above), name or b"."

    def state(self, path: bytes) -> os.stat_result | None:
        """See `ports.tree.TreeReader`."""
        above, name = self._at(path)
        with _looking_at(path), contextlib.suppress(FileNotFoundError):
            return None if above is None else os.stat(name, dir_fd=above.fd, follow_symlinks=False)
        return None

    @contextlib.contextmanager
    def read(self, path: bytes) -> Iterator[OpenFile]:
        """See `ports.tree.TreeReader`."""
        above, name = self._at(path)
        if above is None:
            raise Unreadable("nothing is there")
        with file_below(above.fd, name) as opened:
            yield opened

    def leads_to(self, path: bytes) -> bytes:
        """See `ports.tree.TreeView`."""
        above, name = self._at(path)
        now = self.state(path)
        if above is None or now is None or not stat.S_ISLNK(now.st_mode):
            return b""
        with _looking_at(path):
            return os.readlink(name, dir_fd=above.fd)

    def attributes(self, path: bytes) -> dict[bytes, bytes]:
        """See `ports.tree.TreeView`."""
        above, name = self._at(path)
        if above is None:
            return {}
        with _looking_at(path):
            return read_attributes(b"/proc/self/fd/%d/%s" % (above.fd, name), follow=False)


@contextlib.contextmanager
def _looking_at(path: bytes) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TargetError(
            f"what is there cannot be looked at ({error.strerror})", on=printable(path) or ".", remedy="run it as root"
        ) from error


def open_view(path: str) -> DirectoryView:
    """What lies below a directory, or below the place where one would be made. TargetError where it cannot be looked into."""
    try:
        return DirectoryView(DirectoryFd(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)))
    except FileNotFoundError:
        return DirectoryView(None)
    except OSError as error:
        raise TargetError(f"cannot be looked into ({error.strerror})", on=path) from error
