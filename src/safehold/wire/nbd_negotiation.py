"""The client's part of the fixed newstyle negotiation of NBD, up to where requests begin.

Source: the NBD protocol document of the reference implementation.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from safehold.model.errors import SourceError
from safehold.model.shown import in_words
from safehold.wire import nbd_protocol as nbd

__all__ = ["Negotiation", "Offered", "open_export"]

_LARGEST = 64 * 1024 * 1024
"""No reply to a question of ours is longer than this; a longer one is rubbish."""


@dataclass(frozen=True)
class Offered:
    """What the server says of an export: its size in bytes, and its transmission flags."""

    size: int
    flags: int


class Negotiation:
    """One connection that negotiates. OSError of the socket, SourceError for what is no answer."""

    def __init__(self, connection: socket.socket, where: str) -> None:
        """Exchanges greetings; `where` is what errors are about."""
        self._socket, self._where = connection, where
        magic, option_magic, flags = nbd.GREETING.unpack(self._receive(nbd.GREETING.size))
        if magic != nbd.INIT_MAGIC or option_magic != nbd.OPTION_MAGIC or not flags & nbd.FLAG_FIXED_NEWSTYLE:
            raise self._wrong("no fixed newstyle greeting")
        self._socket.sendall(struct.pack(">I", flags & (nbd.FLAG_FIXED_NEWSTYLE | nbd.FLAG_NO_ZEROES)))

    def ask_for_chunks(self) -> bool:
        """True where replies come in chunks from here on (structured replies)."""
        return any(kind == nbd.REP_ACK for kind, _ in self._ask(nbd.OPT_STRUCTURED_REPLY, b""))

    def ask_for_allocation(self, export: str) -> int | None:
        """The id by which block status tells of holes; None where the server does not."""
        query, found = nbd.ALLOCATION_CONTEXT, None
        for kind, data in self._ask(
            nbd.OPT_SET_META_CONTEXT, _text(export) + struct.pack(">II", 1, len(query)) + query
        ):
            if kind == nbd.REP_META_CONTEXT and len(data) >= 4 and data[4:] == query:
                found = struct.unpack(">I", data[:4])[0]
        return found

    def go(self, export: str) -> Offered:
        """Choose an export: requests begin. SourceError where there is none of that name, or it is refused."""
        offered = None
        for kind, data in self._ask(nbd.OPT_GO, _text(export) + struct.pack(">H", 0)):
            if kind == nbd.REP_INFO and len(data) == 12 and struct.unpack(">H", data[:2])[0] == nbd.INFO_EXPORT:
                offered = Offered(*struct.unpack(">QH", data[2:]))
            elif kind > nbd.REP_ERR_BIT:
                reason = bytes(data).decode(errors="replace")
                none = kind == nbd.REP_ERR_UNKNOWN
                raise self._wrong(f"that it has no such export ({reason})" if none else f"no: {reason}")
        if offered is None:
            raise self._wrong("without a size")
        return offered

    def _ask(self, option: int, body: bytes) -> Iterator[tuple[int, bytes]]:
        self._socket.sendall(nbd.OPTION.pack(nbd.OPTION_MAGIC, option, len(body)) + body)
        while True:
            magic, echoed, kind, length = nbd.OPTION_REPLY.unpack(self._receive(nbd.OPTION_REPLY.size))
            if magic != nbd.OPTION_REPLY_MAGIC or echoed != option:
                raise self._wrong("to another question")
            yield kind, self._receive(length)
            if kind == nbd.REP_ACK or kind > nbd.REP_ERR_BIT:
                return

    def _receive(self, length: int) -> bytes:
        if length > _LARGEST:
            raise self._wrong(f"with {length} bytes")
        data = bytearray(length)
        view = memoryview(data)
        while view:
            got = self._socket.recv_into(view)
            if not got:
                raise self._wrong("nothing and hung up")
            view = view[got:]
        return bytes(data)

    def _wrong(self, what: str) -> SourceError:
        return SourceError(f"NBD server answered {what}", on=self._where)


def open_export(path: str, export: str, timeout: float) -> tuple[socket.socket, Offered]:
    """A connection on which plain requests can begin, such as the kernel makes them. SourceError; `timeout` in seconds for each answer."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout)
    try:
        connection.connect(path)
        offered = Negotiation(connection, path).go(export)
        connection.settimeout(None)
    except OSError as error:
        connection.close()
        raise SourceError(f"NBD server cannot be used ({in_words(error)})", on=path) from error
    except BaseException:
        connection.close()
        raise
    return connection, offered


def _text(name: str) -> bytes:
    return struct.pack(">I", len(name.encode())) + name.encode()
