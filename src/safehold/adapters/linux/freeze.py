"""A frozen file system: everything is written out, and new writes wait."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from safehold.adapters.linux.mounts import major_minor, mount_of
from safehold.adapters.linux.syscalls import freeze, sync_file_system, thaw
from safehold.model.consistency import Consistency
from safehold.model.errors import ConsistencyError, StillHeldError, UsageError
from safehold.ports.bracket import Begin, Undo

__all__ = ["Freeze"]


class Freeze:
    """`fsfreeze:PATH`: the file system that a directory lies on, by the FIFREEZE ioctl (ioctl_fs(2)). See `ports.bracket.Bracket`."""

    expected = 0.2
    promises = reaches = Consistency.FILESYSTEM

    def __init__(self, path: str) -> None:
        """UsageError where there is no such directory."""
        self.spec = f"fsfreeze:{path}"
        # The watchdog has another working directory.
        self._path = os.path.realpath(path)
        try:
            self._mounted = mount_of(self._path)
            self._device = os.stat(self._path).st_dev
        except OSError as error:
            raise UsageError(f"cannot be frozen ({error.strerror})", on=path, remedy="check the path") from error

    @property
    def stops(self) -> frozenset[str]:
        """The file system."""
        return frozenset({self._mounted.device})

    def prepare(self) -> None:
        """Write out what is dirty, so that the freeze itself has little left to write."""
        with self._open() as fd:
            try:
                sync_file_system(fd)
            except OSError as error:
                raise self._failed(
                    f"cannot be written out ({error.strerror})",
                    "see the kernel's log; a file system that has met errors is unmounted and checked with fsck, one on a live volume once that "
                    "was detached and attached again",
                ) from error

    def undo(self) -> Undo:
        """See `ports.bracket.Bracket`."""
        return {"kind": "thaw", "path": self._path, "device": major_minor(self._device)}

    @contextlib.contextmanager
    def hold(self, deadline: float, begin: Begin) -> Iterator[Consistency]:
        """See `ports.bracket.Bracket`. The kernel gives the freeze no time limit; the watchdog thaws what comes too late."""
        with self._open() as fd:
            begin()
            try:
                freeze(fd)
            except OSError as error:
                raise self._refused(error) from error
            try:
                yield Consistency.FILESYSTEM
            finally:
                self._thaw(fd)

    def _thaw(self, fd: int) -> None:
        try:
            frozen = thaw(fd)
        except OSError as error:
            raise StillHeldError(
                f"the file system cannot be thawed ({error.strerror})",
                on=self._path,
                remedy="the watchdog keeps trying",
            ) from error
        if not frozen:
            raise self._failed("was thawed by somebody else in between", "start again; nothing was kept")

    def _refused(self, error: OSError) -> ConsistencyError:
        match error.errno:
            case errno.EBUSY:
                return self._failed("is frozen already, by somebody else", f"thaw it: fsfreeze --unfreeze {self._path}")
            case errno.EOPNOTSUPP | errno.ENOTTY:
                return self._failed(
                    f"({self._mounted.type}) cannot be frozen", f"use --bracket readonly:{self._path} or a snapshot"
                )
            case errno.EPERM:
                return self._failed("may only be frozen by root", "run as root")
        return self._failed(f"cannot be frozen ({error.strerror})", "see the kernel's log")

    def _failed(self, what: str, remedy: str) -> ConsistencyError:
        return ConsistencyError(f"the file system {what}", on=self._path, remedy=remedy)

    @contextlib.contextmanager
    def _open(self) -> Iterator[int]:
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._failed(f"cannot be opened ({error.strerror})", "check the path") from error
        try:
            if os.fstat(fd).st_dev != self._device:
                # Where it was unmounted, what lies below is another one, which nobody asked to freeze.
                raise self._failed(
                    "was unmounted, or another one was mounted over it, in between",
                    f"nothing was frozen; see what is mounted there: findmnt --target {self._path}",
                )
            yield fd
        finally:
            os.close(fd)
