"""What each NBD command does to an export, and which errors its client sees."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from safehold.model.progress import Progress
from safehold.ports.export import Export
from safehold.wire import nbd_protocol as nbd
from safehold.wire.nbd_replies import CAPACITY, Replies, error_on_the_wire

__all__ = ["SHORT", "Execution"]

SHORT = 64 * 1024
"""Reads shorter than this many bytes are answered with data alone: asking for holes costs more than sending zeros."""
_WORTH_PASSING_ON = 64 * 1024
"""From this many bytes on, having the kernel send a file's pages costs less than copying them."""
_MOST_RUNS = 4096
"""Runs in one block status reply; clients ask again from its end."""
_DONE = nbd.REPLY_FLAG_DONE
_FLAGS = {
    nbd.CMD_READ: nbd.CMD_FLAG_DF,
    nbd.CMD_WRITE: 0,
    nbd.CMD_FLUSH: 0,
    nbd.CMD_TRIM: 0,
    nbd.CMD_CACHE: 0,
    nbd.CMD_WRITE_ZEROES: nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO,
    nbd.CMD_BLOCK_STATUS: nbd.CMD_FLAG_REQ_ONE,
}
"""The flags that each command may have besides FUA, which is allowed, and without meaning where nothing changes."""


class Execution:
    """One client's requests on one export. Any thread, each with its own `Replies`.

    No error of the export escapes: OSErrors become the errno that they carry, whatever else an export raises becomes EIO
    and a warning to the operator.
    """

    def __init__(self, export: Export, name: str, context: int | None, progress: Progress) -> None:
        self._export = export
        self._name = name
        self._context = context
        self._progress = progress
        self._size = export.size
        self._read_ready = export.read_ready

    def refusal(self, flags: int, command: int, offset: int, length: int) -> int:
        """The protocol's error number of a request that cannot be carried out by what it says; 0 where it can."""
        allowed = _FLAGS.get(command)
        if allowed is None or flags & ~(allowed | nbd.CMD_FLAG_FUA):
            return errno.EINVAL
        if command == nbd.CMD_FLUSH:
            return 0
        if offset + length > self._size:
            return errno.ENOSPC if command in (nbd.CMD_WRITE, nbd.CMD_WRITE_ZEROES) else errno.EINVAL
        if command == nbd.CMD_READ and length > nbd.LARGEST_PAYLOAD:
            return errno.EINVAL
        if command == nbd.CMD_BLOCK_STATUS and (self._context is None or not length):
            return errno.EINVAL
        if command in (nbd.CMD_WRITE, nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES):
            if self._export.read_only:
                return errno.EPERM
            if flags & nbd.CMD_FLAG_FAST_ZERO and not self._export.zeroes_fast:
                return errno.ENOTSUP
        return 0

    # -- reading -----------------------------------------------------------------------------------------------------

    def read(self, flags: int, cookie: int, offset: int, length: int, replies: Replies) -> None:
        """Answer a read that was not refused."""
        if not length:
            replies.nothing(cookie)
        elif length < SHORT:
            self._read_piece(cookie, offset, length, _DONE, replies)
        elif not replies.structured or flags & nbd.CMD_FLAG_DF:
            if length <= replies.capacity:
                self._read_piece(cookie, offset, length, _DONE, replies)
            elif replies.structured:
                replies.failed(cookie, errno.EOVERFLOW)
            else:
                # The reply begins with the error number, so all of the data come before any of it is sent.
                replies.flush()
                whole = replies.resized(length)
                if self._read_piece(cookie, offset, length, _DONE, whole):
                    whole.flush()
                else:
                    replies.failed(cookie, whole.failure)
        else:
            self._read_runs(cookie, offset, length, replies)

    def read_short(self, cookie: int, offset: int, length: int, replies: Replies) -> bool:
        """Answer a read of less than SHORT bytes, none of them beyond the end, without flags; False, and no answer, where that may have to wait for
        more than local disks.
        """
        view = replies.data(cookie, offset, length, _DONE)
        try:
            if self._read_ready(offset, view):
                return True
        except Exception as error:
            replies.withdraw()
            replies.failed(cookie, self._seen(error))
            return True
        replies.withdraw()
        return False

    def _read_piece(self, cookie: int, offset: int, length: int, flags: int, replies: Replies) -> bool:
        """True where it went well; otherwise the reply has ended with an error."""
        view = replies.data(cookie, offset, length, flags)
        try:
            self._export.read_into(offset, view)
        except Exception as error:
            replies.withdraw()
            replies.failed(cookie, self._seen(error))
            return False
        return True

    def _read_runs(self, cookie: int, offset: int, length: int, replies: Replies) -> None:
        end = offset + length
        try:
            runs = list(self._runs(offset, length))
        except Exception as error:
            replies.failed(cookie, self._seen(error))
            return
        told = offset + sum(run for run, _ in runs)
        if told < end:
            runs.append((end - told, 0))
        for run, state in runs:
            last = _DONE if offset + run == end else 0
            if state & nbd.STATE_ZERO:
                replies.hole(cookie, offset, run, last)
            elif not self._read_run(cookie, offset, run, last, replies):
                return
            offset += run

    def _read_run(self, cookie: int, offset: int, length: int, last: int, replies: Replies) -> bool:
        """True where it went well; otherwise the reply has ended with an error. `last` is _DONE where the reply ends with this run."""
        lies = self._export.lies(offset, length) if length >= _WORTH_PASSING_ON else None
        if lies is None:
            for at in range(offset, offset + length, replies.capacity):
                piece = min(offset + length - at, replies.capacity)
                flags = last if at + piece == offset + length else 0
                if not self._read_piece(cookie, at, piece, flags, replies):
                    return False
            return True
        problem = replies.file(cookie, offset, length, *lies)
        if problem:
            self._export.unreadable(OSError(problem, os.strerror(problem)))
            replies.failed(cookie, error_on_the_wire(problem))
        elif last:
            replies.nothing(cookie)
        return not problem

    def fetch(self, cookie: int, offset: int, length: int, replies: Replies) -> None:
        """Answer a request to cache: read the range, so that an export that fetches has it."""
        scratch = memoryview(bytearray(min(length, CAPACITY)))

        def fetch() -> None:
            for at in range(offset, offset + length, CAPACITY):
                self._export.read_into(at, scratch[: min(CAPACITY, offset + length - at)])

        replies.done(cookie, self._attempt(fetch))

    # -- status ------------------------------------------------------------------------------------------------------

    def status(self, flags: int, cookie: int, offset: int, length: int, replies: Replies) -> None:
        """Answer a block status request that was not refused."""
        assert self._context is not None
        numbers: list[int] = []
        most = 1 if flags & nbd.CMD_FLAG_REQ_ONE else _MOST_RUNS
        try:
            for run, state in self._runs(offset, length):
                numbers += (run, state)
                if len(numbers) >= 2 * most:
                    break
        except Exception as error:
            replies.failed(cookie, self._seen(error))
            return
        replies.status(cookie, self._context, numbers or (length, 0))

    def _runs(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """(length, state) within the range, neighbours of the same state as one."""
        gathered, before, left = 0, 0, length
        for run, hole, zero in self._export.status(offset, length):
            run = min(run, left)
            state = (nbd.STATE_HOLE if hole else 0) | (nbd.STATE_ZERO if zero else 0)
            if gathered and state != before:
                yield gathered, before
                gathered = 0
            gathered, before, left = gathered + run, state, left - run
            if not left:
                break
        if gathered:
            yield gathered, before

    # -- changing ----------------------------------------------------------------------------------------------------

    def prepare(self, offset: int, length: int) -> int:
        """The error number of fetching what a change of the range waits for."""
        return self._attempt(lambda: self._export.prepare(offset, length))

    def write(self, offset: int, data: memoryview) -> int:
        """The error number of writing `data`, 0 where it went well."""
        try:
            self._export.write(offset, data)
        except Exception as error:
            return self._seen(error)
        return 0

    def clear(self, flags: int, command: int, offset: int, length: int) -> int:
        """The error number of a trim or a write of zeros. Only NO_HOLE asks for the space to stay taken."""
        if not length:
            return 0
        if command == nbd.CMD_WRITE_ZEROES and flags & nbd.CMD_FLAG_NO_HOLE:
            return self._attempt(lambda: self._export.write_zeroes(offset, length))
        return self._attempt(lambda: self._export.discard(offset, length))

    def flush(self) -> int:
        """The error number of making everything durable that was answered."""
        return self._attempt(self._export.flush)

    # -- errors ------------------------------------------------------------------------------------------------------

    def _attempt(self, step: Callable[[], None]) -> int:
        try:
            step()
        except Exception as error:
            return self._seen(error)
        return 0

    def _seen(self, error: Exception) -> int:
        if not isinstance(error, OSError):
            self._progress.warn(f"a request to {self._name!r} failed ({type(error).__name__}: {error})")
            return errno.EIO
        return error_on_the_wire(error.errno)
