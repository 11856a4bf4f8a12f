"""The client side of the Network Block Device protocol, as far as reading a disk needs it.

Source: the NBD protocol document of the reference implementation (fixed newstyle negotiation, NBD_OPT_GO, structured
replies, block status).
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

from safehold.model.errors import SourceError
from safehold.model.shown import in_words
from safehold.wire import nbd_protocol as nbd
from safehold.wire.nbd_negotiation import Negotiation

__all__ = ["NbdClient"]

_STATUS_SPAN = 1 << 30
"""Bytes asked about in one block status request: servers answer for as much of it as they like."""
_LARGEST = 64 * 1024 * 1024
"""No reply to a request of ours is longer than this; a longer one is rubbish."""


class NbdClient:
    """One connection to a server on a unix socket. Thread-safe: one request at a time."""

    def __init__(self, path: str, export: str = "", timeout: float = 60.0) -> None:
        """SourceError where the server cannot be reached or speaks something else; `timeout` in seconds, for each
        answer.
        """
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        self._lock = threading.Lock()
        self._handle = 0
        self._context: int | None = None
        self._where = path
        try:
            self._socket.connect(path)
            self.size = self._negotiate(export)
        except OSError as error:
            self._socket.close()
            raise SourceError(f"NBD server cannot be used ({in_words(error)})", on=path) from error
        except SourceError:
            self._socket.close()
            raise

    def close(self) -> None:
        """Say good-bye and disconnect."""
        try:
            self._socket.sendall(nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, nbd.CMD_DISC, 0, 0, 0))
        except OSError:
            pass
        finally:
            self._socket.close()

    def _wrong(self, what: str) -> SourceError:
        return SourceError(f"NBD server answered {what}", on=self._where)

    def _receive(self, length: int) -> bytearray:
        if length > _LARGEST:
            raise self._wrong(f"with {length} bytes")
        data = bytearray(length)
        self._receive_into(memoryview(data))
        return data

    def _receive_into(self, view: memoryview) -> None:
        while view:
            got = self._socket.recv_into(view)
            if not got:
                raise self._wrong("nothing and hung up")
            view = view[got:]

    def _negotiate(self, export: str) -> int:
        talk = Negotiation(self._socket, self._where)
        if talk.ask_for_chunks():
            self._context = talk.ask_for_allocation(export)
        return talk.go(export).size

    # -- requests ----------------------------------------------------------------------------------------------------

    def _request(self, command: int, offset: int, length: int) -> int:
        self._handle += 1
        self._socket.sendall(nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, command, self._handle, offset, length))
        return self._handle

    def read_into(self, offset: int, buf: memoryview) -> None:
        """Fill `buf` from byte `offset`. SourceError where the server reports an error or breaks the protocol."""
        with self._lock:
            try:
                done = 0
                while done < len(buf):
                    part = buf[done : done + _LARGEST // 2]
                    self._read(offset + done, part)
                    done += len(part)
            except (OSError, struct.error) as error:
                raise SourceError(f"reading over NBD failed ({in_words(error)})", on=self._where) from error

    def _read(self, offset: int, view: memoryview) -> None:
        handle = self._request(nbd.CMD_READ, offset, len(view))
        filled = 0
        for kind, length in self._chunks(handle, len(view)):
            if kind == nbd.REPLY_TYPE_OFFSET_DATA:
                at = struct.unpack(">Q", self._receive(8))[0] - offset
                size = length - 8
                if at < 0 or size < 0 or at + size > len(view):
                    raise self._wrong("with data outside of what was asked for")
                self._receive_into(view[at : at + size])
            elif kind == nbd.REPLY_TYPE_OFFSET_HOLE and length == 12:
                start, size = nbd.CHUNK_HOLE_BODY.unpack(self._receive(12))
                at = start - offset
                if at < 0 or at + size > len(view):
                    raise self._wrong("with a hole outside of what was asked for")
                view[at : at + size] = bytes(size)
            else:
                raise self._wrong(f"a read with a chunk of type {kind}")
            filled += size
        if filled != len(view):
            raise self._wrong(f"{filled} of {len(view)} bytes")

    def _chunks(self, handle: int, simple_length: int) -> Iterator[tuple[int, int]]:
        """(type, payload length) of each chunk of one reply; the caller takes the payload off the wire."""
        while True:
            magic = struct.unpack(">I", self._receive(4))[0]
            if magic == nbd.SIMPLE_REPLY_MAGIC:
                error, echoed = struct.unpack(">IQ", self._receive(12))
                if echoed != handle or error:
                    raise self._wrong(f"error {error}")
                raise self._wrong(f"an unstructured reply of {simple_length} bytes")
            flags, kind, echoed, length = struct.unpack(">HHQI", self._receive(16))
            if magic != nbd.STRUCTURED_REPLY_MAGIC or echoed != handle:
                raise self._wrong("to another request")
            if kind & nbd.REPLY_TYPE_ERROR_BIT:
                body = bytes(self._receive(length))
                code = struct.unpack(">I", body[:4])[0] if length >= 6 else 0
                raise self._wrong(f"error {code} {body[6:].decode(errors='replace')}")
            if kind == nbd.REPLY_TYPE_NONE:
                self._receive(length)
            else:
                yield kind, length
            if flags & nbd.REPLY_FLAG_DONE:
                return

    def status(self) -> Iterator[tuple[int, int, bool]]:
        """The whole disk as (offset, length, known to be zero); one piece of data where the server cannot tell."""
        at = 0
        if self._context is None:
            yield 0, self.size, False
            return
        while at < self.size:
            for length, zero in self._status(at, min(_STATUS_SPAN, self.size - at)):
                length = min(length, self.size - at)
                if length:
                    yield at, length, zero
                at += length

    def _status(self, offset: int, length: int) -> list[tuple[int, bool]]:
        with self._lock:
            try:
                handle = self._request(nbd.CMD_BLOCK_STATUS, offset, length)
                found: list[tuple[int, bool]] = []
                for kind, size in self._chunks(handle, length):
                    body = bytes(self._receive(size))
                    if (
                        kind != nbd.REPLY_TYPE_BLOCK_STATUS
                        or (size - 4) % 8
                        or struct.unpack(">I", body[:4])[0] != self._context
                    ):
                        raise self._wrong("a status request with something else")
                    found += [(run, bool(flags & nbd.STATE_ZERO)) for run, flags in struct.iter_unpack(">II", body[4:])]
                if not sum(run for run, _ in found):
                    raise self._wrong("a status request with nothing")
                return found
            except (OSError, struct.error) as error:
                raise SourceError(f"NBD block status failed ({in_words(error)})", on=self._where) from error
