"""Opens the directory that a restore writes into."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

from safehold.adapters.files.target import DirectoryTarget
from safehold.adapters.files.walk import DirectoryFd
from safehold.adapters.files.writers import FileWriters
from safehold.model.errors import TargetError
from safehold.ports.tree import Piece

__all__ = ["check_directory", "open_directory"]

_ALONE = 2000
"""So many small files are written before processes are started for more: starting them takes as long as writing these."""

_MOST_WRITERS = 4
"""More only wait for each other in the file system's journal."""


def check_directory(path: str, *, existing: bool) -> None:
    """TargetError where something is in the way: no directory, or one with something in it unless `existing`."""
    try:
        with os.scandir(path) as entries:
            full = next(entries, None) is not None
    except FileNotFoundError:
        return
    except OSError as error:
        raise TargetError(f"cannot be used as a directory ({error.strerror})", on=path) from error
    if full and not existing:
        raise TargetError(
            "directory is not empty",
            on=path,
            remedy="restore elsewhere, or say --overwrite (replace what is in the way) or --delta (write only what differs)",
        )


@contextlib.contextmanager
def open_directory(path: str, *, existing: bool) -> Iterator[DirectoryTarget]:
    """A directory to restore into. It is made where it is missing; one that has something in it is refused unless `existing`.

    Everything is durable when the block ends. TargetError.
    """
    check_directory(path, existing=existing)
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        root = DirectoryFd(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as error:
        raise TargetError(f"cannot be used as a directory ({error.strerror})", on=path) from error
    writers = min(len(os.sched_getaffinity(0)), _MOST_WRITERS)
    with _Destination(root, path, replace=existing, writers=writers) as target:
        yield target
        target.settle()
        target.sync()


class _Destination(DirectoryTarget):
    """Leaves small files to processes once there are many. Leaving the block ends them."""

    def __init__(self, root: DirectoryFd, where: str, *, replace: bool, writers: int) -> None:
        super().__init__(root, where, replace=replace)
        self._left = _ALONE
        self._count = writers if writers > 1 else 0
        self._writers: FileWriters | None = None

    def __enter__(self) -> _Destination:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._writers is not None:
            self._writers.close()

    def write_pieces(self, data: memoryview, files: Sequence[Piece]) -> None:
        """See `ports.tree.TreeTarget`."""
        writers = self._ready(len(files))
        if writers is None or not writers.write(data, files):
            super().write_pieces(data, files)

    def _ready(self, files: int) -> FileWriters | None:
        with self._lock:
            self._left -= files
            if self._left < 0 and self._count and self._writers is None:
                self._writers = FileWriters(self._root, self._where, replace=self._replace, count=self._count)
            return self._writers

    def settle(self) -> None:
        """See `ports.tree.TreeTarget`."""
        if self._writers is not None:
            self.problems += self._writers.settle()
