"""Files and devices to restore onto."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from safehold.adapters.linux.holders import device_holders, file_holders
from safehold.adapters.linux.openers import open_for_writing
from safehold.model.errors import TargetError

__all__ = ["DiskTarget", "check_existing", "check_new", "open_existing", "open_new"]

_PUNCH_HOLE, _KEEP_SIZE = 0x02, 0x01
_BLKZEROOUT = 0x127F
_PAGE = 4096
_NOT_DIRECT = {errno.EINVAL, errno.EOPNOTSUPP}
_START_WRITING = 2  # SYNC_FILE_RANGE_WRITE of sync_file_range(2)
_LIBC = ctypes.CDLL(None, use_errno=True)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DiskTarget:
    """An open file or device that is written at explicit offsets. See `ports.blocks.MutableBlocks`."""

    def __init__(self, fd: int, path: str, *, blank: bool) -> None:
        """`fd` stays the caller's; `blank` says that it reads as zeros everywhere, so zeros need not be written."""
        self._fd, self._path, self._blank = fd, path, blank
        self._device = stat.S_ISBLK(os.fstat(fd).st_mode)
        self.size = os.lseek(fd, 0, os.SEEK_END)
        self._direct = _open_direct(fd)

    def close(self) -> None:
        """Give back what the target opened besides `fd`."""
        if self._direct >= 0:
            os.close(self._direct)
            self._direct = -1

    def _failed(self, error: OSError, offset: int) -> TargetError:
        remedy = "make room and start again" if error.errno in _FULL else "check the disk behind it"
        return TargetError(f"cannot be written at byte {offset} ({error.strerror})", on=self._path, remedy=remedy)

    def read_into(self, offset: int, buf: memoryview) -> None:
        """Fill `buf` from byte `offset`; TargetError."""
        done = 0
        while done < len(buf):
            try:
                got = os.preadv(self._fd, [buf[done:]], offset + done)
            except OSError as error:
                raise TargetError(
                    f"cannot be read at byte {offset + done} ({error.strerror})", on=self._path
                ) from error
            if not got:
                raise TargetError(f"ends at byte {offset + done}", on=self._path)
            done += got

    def write(self, offset: int, data: memoryview) -> None:
        """See `ports.blocks.MutableBlocks`. Whole pages go past the page cache: the copy into it costs more than the disk."""
        done = self._write_direct(offset, data) if self._direct >= 0 and not offset % _PAGE else 0
        while done < len(data):
            try:
                done += os.pwrite(self._fd, data[done:], offset + done)
            except OSError as error:
                raise self._failed(error, offset + done) from error
        if self._direct < 0:
            # Let the disk begin now, so that little is left to wait for at the end. A hint: its failure shows in `flush`.
            _LIBC.sync_file_range(self._fd, ctypes.c_long(offset), ctypes.c_long(len(data)), _START_WRITING)

    def _write_direct(self, offset: int, data: memoryview) -> int:
        """Write whole pages; returns how many bytes, 0 where the file system or the place of the data in memory does not allow it."""
        whole = len(data) - len(data) % _PAGE
        done = 0
        while done < whole:
            try:
                done += os.pwrite(self._direct, data[done:whole], offset + done)
            except OSError as error:
                if error.errno not in _NOT_DIRECT:
                    raise self._failed(error, offset + done) from error
                break
            if done % _PAGE:
                break
        return done

    def write_zeroes(self, offset: int, length: int) -> None:
        """See `ports.blocks.MutableBlocks`: holes in files, zeroed or discarded-to-zero blocks on devices, zeros
        where neither works.
        """
        if self._blank or not length:
            return
        if self._device and not (offset | length) % 512:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._fd, _BLKZEROOUT, offset.to_bytes(8, "little") + length.to_bytes(8, "little"))
                return
        elif not self._device:
            punch = _LIBC.fallocate(self._fd, _PUNCH_HOLE | _KEEP_SIZE, ctypes.c_long(offset), ctypes.c_long(length))
            if punch == 0:
                return
        zeros = memoryview(bytes(1024 * 1024))
        for at in range(offset, offset + length, len(zeros)):
            self.write(at, zeros[: offset + length - at])

    def flush(self) -> None:
        """See `ports.blocks.MutableBlocks`."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise self._failed(error, 0) from error


def _open_direct(fd: int) -> int:
    """The same file once more, for writing past the page cache; -1 where its file system cannot."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return -1


def _take_name(temporary: Path, path: str) -> None:
    """Give the file its name without replacing anything. FileExistsError."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        # A file system without links, such as vfat: between the look and the renaming somebody could take the name.
        check_new(path)
        os.rename(temporary, path)


@contextlib.contextmanager
def open_new(path: str, size: int) -> Iterator[DiskTarget]:
    """A sparse file of `size` bytes that takes its name only when the block ends well; mode 0600. TargetError where
    the name is taken.

    A restore that is killed or fails leaves no file that could be taken for a whole one.
    """
    directory = Path(path).parent
    temporary = directory / f".{Path(path).name}.{os.getpid()}.restoring"
    check_new(path)
    try:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise TargetError(f"cannot be made ({error.strerror})", on=path, remedy="check the directory") from error
    try:
        try:
            os.ftruncate(fd, size)
        except OSError as error:
            raise TargetError(f"a file of {size} bytes cannot be made ({error.strerror})", on=path) from error
        target = DiskTarget(fd, path, blank=True)
        try:
            yield target
        finally:
            target.close()
        try:
            _take_name(temporary, path)
        except FileExistsError:
            raise TargetError("target appeared during the restore", on=path, remedy="give another name") from None
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory_fd)
        finally:
            os.close(directory_fd)
    finally:
        os.close(fd)
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def check_new(path: str) -> None:
    """TargetError where the name is taken."""
    if os.path.isdir(path):
        raise TargetError(
            "target is a directory", on=path, remedy=f"name a new file in it: {os.path.join(path, 'NAME')}"
        )
    if os.path.lexists(path):
        raise TargetError("target exists", on=path, remedy="give another name, or write over it with --overwrite")


def check_existing(path: str) -> None:
    """TargetError where `open_existing` would refuse because of who uses the file or device, or because there is none."""
    try:
        _free(path)
    except OSError as error:
        raise TargetError(
            f"cannot be opened ({error.strerror})", on=path, remedy="check the path and the permissions"
        ) from error


def _free(path: str) -> bool:
    """True for a device, false for a file. TargetError where anybody else uses it."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise TargetError("target is a directory", on=path, remedy="name a file or a device")
    device = stat.S_ISBLK(mode)
    holders = [holder.who for holder in (device_holders(path) if device else file_holders(path))]
    if not holders and not device:
        # Other users' processes cannot be looked into, but the kernel tells that there is one.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            holders = ["open for writing in a process that cannot be seen from here"] if open_for_writing(fd) else []
        finally:
            os.close(fd)
    if holders:
        raise TargetError(f"in use: {'; '.join(holders)}", on=path, remedy="unmount or detach it first")
    return device


@contextlib.contextmanager
def open_existing(path: str, size: int) -> Iterator[DiskTarget]:
    """A device of at least `size` bytes, or a file, which is brought to `size`.

    TargetError where it is mounted, held or being written by anybody else, whatever the user said.
    """
    try:
        device = _free(path)
        # An exclusive open of a block device fails where anything in the kernel holds it.
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_EXCL if device else 0))
    except OSError as error:
        busy = error.errno == errno.EBUSY
        raise TargetError(
            "in use by the kernel" if busy else f"cannot be opened ({error.strerror})",
            on=path,
            remedy="unmount or detach it first" if busy else "check the path and the permissions",
        ) from error
    try:
        target = DiskTarget(fd, path, blank=False)
        if device and target.size < size:
            raise TargetError(f"has {target.size} bytes, the point needs {size}", on=path, remedy="use a larger device")
        if not device and target.size != size:
            os.ftruncate(fd, size)
        try:
            yield target
        finally:
            target.close()
    finally:
        os.close(fd)
