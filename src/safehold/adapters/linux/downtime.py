"""File systems that are taken out of use for as long as they are read: unmounted, or mounted read-only."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from safehold.adapters.linux.mounts import Mounted, mount_of, mounts
from safehold.adapters.linux.syscalls import (
    MS_PRIVATE,
    MS_RDONLY,
    MS_REMOUNT,
    MS_SHARED,
    drop_cached,
    mount,
    sync_file_system,
    unmount,
)
from safehold.model.consistency import Consistency
from safehold.model.errors import ConsistencyError, StillHeldError, UsageError
from safehold.ports.bracket import Begin, Undo

__all__ = ["ReadOnly", "Unmount"]


class _Downtime:
    """What both have in common: one mount point, and the device below it."""

    expected = 0.5
    promises = reaches = Consistency.FILESYSTEM

    def __init__(self, word: str, path: str) -> None:
        self.spec = f"{word}:{path}"
        real = os.path.realpath(path)
        try:
            self.mounted = mount_of(real)
        except OSError as error:
            raise UsageError(
                f"cannot be taken out of use ({error.strerror})", on=path, remedy="check the path"
            ) from error
        if self.mounted.path != real or self.mounted.root != "/":
            raise UsageError("is not where a file system is mounted", on=path, remedy=f"give {self.mounted.path}")
        self.path = real

    @property
    def stops(self) -> frozenset[str]:
        """The file system."""
        return frozenset({self.mounted.device})

    def prepare(self) -> None:
        """Write out what is dirty, so that little is left to write once nobody can use it."""
        self._check()
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                sync_file_system(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise self.failed(f"cannot be written out ({error.strerror})", "see the kernel's log") from error

    def _check(self) -> None:
        if "ro" in self.mounted.super_options:
            raise self.failed("is mounted read-only already", "leave the bracket out")

    def failed(self, what: str, remedy: str) -> ConsistencyError:
        return ConsistencyError(f"the file system {what}", on=self.path, remedy=remedy)

    def stuck(self, what: str) -> StillHeldError:
        return StillHeldError(f"the file system {what}", on=self.path, remedy="the watchdog keeps trying")

    def busy(self, error: OSError, action: str) -> ConsistencyError:
        if error.errno == errno.EBUSY:
            return self.failed(
                f"is in use and cannot be {action}", f"stop what uses it: fuser -vm {self.path} names it"
            )
        return self.failed(f"cannot be {action} ({error.strerror})", "it needs root; see the kernel's log")

    @contextlib.contextmanager
    def device(self) -> Iterator[int]:
        """The device below, kept open: a loop device may otherwise end with its last user."""
        try:
            fd = os.open(self.mounted.source, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self.failed(
                f"lies on {self.mounted.source}, which cannot be opened ({error.strerror})", "run as root"
            ) from error
        try:
            yield fd
        finally:
            os.close(fd)


class Unmount(_Downtime):
    """`unmount:PATH`: unmounted, and mounted again with the same options and flags. See `ports.bracket.Bracket`."""

    def __init__(self, path: str) -> None:
        """UsageError where no file system is mounted there."""
        super().__init__("unmount", path)

    def _check(self) -> None:
        super()._check()
        for other in mounts():
            if other.parent == self.mounted.number:
                raise self.failed(f"has another one mounted in it ({other.path})", "unmount that first")

    def undo(self) -> Undo:
        """See `ports.bracket.Bracket`."""
        return {
            "kind": "mount",
            "source": self.mounted.source,
            "path": self.path,
            "type": self.mounted.type,
            "flags": self.mounted.flags,
            "options": self.mounted.data,
            "shared": self.mounted.shared,
        }

    @contextlib.contextmanager
    def hold(self, deadline: float, begin: Begin) -> Iterator[Consistency]:
        """See `ports.bracket.Bracket`."""
        with self.device() as device:
            begin()
            try:
                unmount(self.path)
            except OSError as error:
                raise self.busy(error, "unmounted") from error
            try:
                self._alone()
                drop_cached(device)
                yield Consistency.FILESYSTEM
            finally:
                self._mount()

    def _alone(self) -> None:
        """A file system that is mounted elsewhere too, perhaps out of sight, goes on being used."""
        try:
            os.close(os.open(self.mounted.source, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
        except OSError as error:
            raise self.failed(
                "is still in use elsewhere", "unmount it everywhere, other namespaces included"
            ) from error

    def _mount(self) -> None:
        if self._mounted_before():
            raise self._overtaken()
        try:
            mount(self.mounted.source, self.path, self.mounted.type, self.mounted.flags, self.mounted.data)
            mount("", self.path, "", MS_SHARED if self.mounted.shared else MS_PRIVATE, "")
        except OSError as error:
            # The kernel mounts nothing twice in one place: the watchdog may have come first, after the look above.
            if error.errno == errno.EBUSY and self._mounted_before():
                raise self._overtaken() from error
            raise self.stuck(f"cannot be mounted again ({error.strerror})") from error

    def _mounted_before(self) -> bool:
        return any(_same(other, self.mounted) for other in mounts())

    def _overtaken(self) -> ConsistencyError:
        return self.failed("was mounted again by somebody else in between", "start again; nothing was kept")


def _same(one: Mounted, other: Mounted) -> bool:
    return (one.path, one.source) == (other.path, other.source)


class ReadOnly(_Downtime):
    """`readonly:PATH`: readable by all, writable by nobody. See `ports.bracket.Bracket`."""

    def __init__(self, path: str) -> None:
        """UsageError where no file system is mounted there."""
        super().__init__("readonly", path)

    def undo(self) -> Undo:
        """See `ports.bracket.Bracket`."""
        number = os.stat(self.path).st_dev
        return {
            "kind": "remount",
            "path": self.path,
            "device": f"{os.major(number)}:{os.minor(number)}",
            "flags": self.mounted.flags,
            "options": self.mounted.data,
        }

    @contextlib.contextmanager
    def hold(self, deadline: float, begin: Begin) -> Iterator[Consistency]:
        """See `ports.bracket.Bracket`."""
        with self.device() as device:
            begin()
            try:
                self._remount(self.mounted.flags | MS_RDONLY)
            except OSError as error:
                raise self.busy(error, "made read-only") from error
            try:
                drop_cached(device)
                yield Consistency.FILESYSTEM
            finally:
                self._writable()

    def _writable(self) -> None:
        there = mount_of(self.path)
        disturbed = there.device != self.mounted.device or "ro" not in there.super_options
        try:
            self._remount(self.mounted.flags)
        except OSError as error:
            raise self.stuck(f"cannot be made writable again ({error.strerror})") from error
        if disturbed:
            raise self.failed("was made writable by somebody else in between", "start again; nothing was kept")

    def _remount(self, flags: int) -> None:
        mount("", self.path, "", flags | MS_REMOUNT, self.mounted.data)
