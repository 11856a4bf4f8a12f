"""Replies of an NBD server, put one after the other into a reused buffer and sent together."""

from __future__ import annotations

import errno
import mmap
import struct
from collections.abc import Sequence

from safehold.ports.export import OpenFile
from safehold.wire import nbd_protocol as nbd
from safehold.wire.nbd_outlet import Outlet

__all__ = ["CAPACITY", "Replies", "error_on_the_wire", "room_for"]

CAPACITY = 1024 * 1024
"""The most data of one chunk, in bytes: what is read and sent should not have left the processor's cache in between."""
_ENOUGH = 256 * 1024
"""With this many bytes waiting the client is better served by sending them than by gathering more."""
_OVERHEAD = 4096
"""Room for headers and small replies besides the data."""

_PLAIN = {
    errno.EPERM,
    errno.EIO,
    errno.ENOMEM,
    errno.EINVAL,
    errno.ENOSPC,
    errno.EOVERFLOW,
    errno.ENOTSUP,
    errno.ESHUTDOWN,
}
_MEANT = {errno.EROFS: errno.EPERM, errno.EACCES: errno.EPERM, errno.EDQUOT: errno.ENOSPC, errno.EFBIG: errno.ENOSPC}
_pack_data = nbd.CHUNK_DATA_HEADER.pack_into
_pack_simple = nbd.SIMPLE_REPLY.pack_into
_DATA_HEADER, _SIMPLE_HEADER = nbd.CHUNK_DATA_HEADER.size, nbd.SIMPLE_REPLY.size


def room_for(length: int) -> memoryview:
    """Memory of at least `length` bytes that takes none of the machine's until it is used: most connections are idle."""
    return memoryview(mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def error_on_the_wire(number: int | None) -> int:
    """The protocol's number for an errno: EPERM where nothing may change, ENOSPC for all kinds of full, EIO for the rest."""
    if number in _PLAIN:
        return number
    return _MEANT.get(number or 0, errno.EIO)


class Replies:
    """Replies of one thread, gathered until `flush`.

    The order of use for data: `data` gives the place to fill, and `withdraw` takes that chunk back if filling fails.
    """

    def __init__(self, outlet: Outlet, structured: bool, capacity: int = CAPACITY) -> None:
        self.structured = structured
        self.capacity = capacity
        self._outlet = outlet
        self._view = room_for(capacity + _OVERHEAD)
        self._most = len(self._view)
        self._used = 0
        self._before = 0
        self.failure = 0
        """The number of the last failure."""

    def flush(self) -> None:
        """Send everything that waits."""
        if self._used:
            used, self._used = self._used, 0
            self._outlet.send(self._view[:used])

    def drop(self) -> None:
        """Forget what waits: the client is left without an answer."""
        self._used = 0

    def resized(self, capacity: int) -> Replies:
        """Another buffer for the same client, with room for `capacity` bytes of data."""
        return Replies(self._outlet, self.structured, capacity)

    def _room(self, length: int) -> int:
        if self._used + length > self._most or self._used >= _ENOUGH:
            self.flush()
        return self._used

    def done(self, cookie: int, error: int = 0) -> None:
        """Answer to a request without data in its reply; every client takes the simple form of it."""
        at = self._room(_SIMPLE_HEADER)
        _pack_simple(self._view, at, nbd.SIMPLE_REPLY_MAGIC, error, cookie)
        self._used = at + _SIMPLE_HEADER

    def data(self, cookie: int, offset: int, length: int, flags: int) -> memoryview:
        """The place for `length` bytes (at most `capacity`) read at byte `offset`; `flags` is REPLY_FLAG_DONE in the last."""
        at = self._used
        if at + length + _DATA_HEADER > self._most or at >= _ENOUGH:
            self.flush()
            at = 0
        if self.structured:
            _pack_data(self._view, at, nbd.STRUCTURED_REPLY_MAGIC, flags, 1, cookie, length + 8, offset)
            start = at + _DATA_HEADER
        else:
            _pack_simple(self._view, at, nbd.SIMPLE_REPLY_MAGIC, 0, cookie)
            start = at + _SIMPLE_HEADER
        self._before = at
        self._used = start + length
        return self._view[start : start + length]

    def file(self, cookie: int, offset: int, length: int, file: OpenFile, at: int) -> int:
        """Send `length` bytes of a file from its byte `at` on as data read at byte `offset`, as one chunk of a structured reply that does not
        end it: where the file cannot be read, which its errno says (0 where it can), an error may still follow.
        """
        start = self._room(_DATA_HEADER)
        _pack_data(self._view, start, nbd.STRUCTURED_REPLY_MAGIC, 0, 1, cookie, length + 8, offset)
        self._used = 0
        return self._outlet.send_file(self._view[: start + _DATA_HEADER], file, at, length)

    def withdraw(self) -> None:
        """Take back the chunk that `data` began last."""
        self._used = self._before

    def hole(self, cookie: int, offset: int, length: int, flags: int) -> None:
        """A run of zeros in a structured reply to a read."""
        self._chunk(nbd.REPLY_TYPE_OFFSET_HOLE, cookie, nbd.CHUNK_HOLE_BODY.pack(offset, length), flags)

    def failed(self, cookie: int, error: int) -> None:
        """The end of a reply to a read or block status that failed, with the protocol's number."""
        self.failure = error
        if self.structured:
            self._chunk(nbd.REPLY_TYPE_ERROR, cookie, struct.pack(">IH", error, 0), nbd.REPLY_FLAG_DONE)
        else:
            self.done(cookie, error)

    def nothing(self, cookie: int) -> None:
        """The end of a reply to a read all of whose data has been given."""
        if self.structured:
            self._chunk(nbd.REPLY_TYPE_NONE, cookie, b"", nbd.REPLY_FLAG_DONE)
        else:
            self.done(cookie)

    def status(self, cookie: int, context: int, runs: Sequence[int]) -> None:
        """The reply to a block status request: length, state, length, state and so on."""
        body = struct.pack(f">{len(runs) + 1}I", context, *runs)
        self._chunk(nbd.REPLY_TYPE_BLOCK_STATUS, cookie, body, nbd.REPLY_FLAG_DONE)

    def _chunk(self, kind: int, cookie: int, body: bytes, flags: int) -> None:
        at = self._room(nbd.CHUNK.size + len(body))
        nbd.CHUNK.pack_into(self._view, at, nbd.STRUCTURED_REPLY_MAGIC, flags, kind, cookie, len(body))
        start = at + nbd.CHUNK.size
        self._view[start : start + len(body)] = body
        self._used = start + len(body)
