"""The sending side of one NBD client's socket: whole replies of several threads, and ranges of files without a copy."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import threading
import time
from collections.abc import Iterator

from safehold.ports.export import OpenFile

__all__ = ["Outlet"]

_PIECE = 256 * 1024
_TAKES_NOTHING = 1.0
"""Seconds after which a client that has not taken what is sent to it is thought to take nothing any more."""
_ZEROS = memoryview(bytes(_PIECE))


class Outlet:
    """Thread-safe: what one call sends is not broken up by another's. OSError where the client is gone."""

    def __init__(self, client: socket.socket) -> None:
        self._socket = client
        self._sending = threading.Lock()
        self._began = math.inf

    @property
    def stalled(self) -> bool:
        """True where something has been being sent for so long that the client seems to take nothing."""
        return time.monotonic() - self._began > _TAKES_NOTHING

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        with self._sending:
            self._began = time.monotonic()
            try:
                yield
            finally:
                self._began = math.inf

    def send(self, data: memoryview) -> None:
        """Send all of `data`, which belongs to the caller again afterwards."""
        with self._turn():
            self._socket.sendall(data)

    def send_file(self, head: memoryview, file: OpenFile, offset: int, length: int) -> int:
        """Send `head` and then `length` bytes of a file from byte `offset` on; zeros beyond its end.

        The kernel passes the page cache's own pages on (sendfile(2)), so the client sees what the file holds when the client takes it:
        later than a read would, and still before its request is answered. Returns 0, or the errno of a file that could not
        be read; zeros took the place of what was missing then.
        """
        with self._turn():
            self._socket.sendall(head)
            sent = self._pass_on(file, offset, length)
            if sent < length:
                return self._copy(file, offset + sent, length - sent)
        return 0

    def _pass_on(self, file: OpenFile, offset: int, length: int) -> int:
        """Bytes sent, fewer where the file ends or cannot be read or passed on; a client that is gone is found by whoever sends next."""
        sent = 0
        while sent < length:
            try:
                step = os.sendfile(self._socket.fileno(), file.fileno(), offset + sent, length - sent)
            except OSError:
                break
            if not step:
                break
            sent += step
        return sent

    def _copy(self, file: OpenFile, offset: int, length: int) -> int:
        """The way that tells errors of the file from those of the socket."""
        buffer = memoryview(bytearray(min(length, _PIECE)))
        problem = 0
        while length:
            part = buffer[: min(length, _PIECE)]
            got = 0
            if not problem:
                try:
                    got = os.preadv(file.fileno(), [part], offset)
                except OSError as error:
                    problem = error.errno or errno.EIO
            self._socket.sendall(part[:got] if got else _ZEROS[: len(part)])
            offset, length = offset + (got or len(part)), length - (got or len(part))
        return problem
