"""A raw NBD client for tests: it sends what it is told, right or wrong, and an export whose reads wait."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safehold.ports.export import OpenFile
from safehold.wire import nbd_protocol as nbd


def option(kind: int, body: bytes = b"") -> bytes:
    return nbd.OPTION.pack(nbd.OPTION_MAGIC, kind, len(body)) + body


def named(name: str) -> bytes:
    return struct.pack(">I", len(name.encode())) + name.encode()


def go(name: str, kind: int = nbd.OPT_GO) -> bytes:
    return option(kind, named(name) + b"\0\0")


def metadata(name: str, *queries: bytes, kind: int = nbd.OPT_SET_META_CONTEXT) -> bytes:
    listed = b"".join(struct.pack(">I", len(q)) + q for q in queries)
    return option(kind, named(name) + struct.pack(">I", len(queries)) + listed)


def request(command: int, cookie: int, offset: int = 0, length: int = 0, flags: int = 0) -> bytes:
    return nbd.REQUEST.pack(nbd.REQUEST_MAGIC, flags, command, cookie, offset, length)


HELLO = struct.pack(">I", nbd.FLAG_FIXED_NEWSTYLE | nbd.FLAG_NO_ZEROES)
STRUCTURED = option(nbd.OPT_STRUCTURED_REPLY)


def negotiation(name: str = "disk") -> bytes:
    return HELLO + STRUCTURED + metadata(name, nbd.ALLOCATION_CONTEXT) + go(name)


@dataclass
class Chunk:
    cookie: int
    kind: int
    flags: int
    body: bytes


class RawClient:
    """A connection on which a test says every byte."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(path)
        try:
            self.receive(nbd.GREETING.size)
        except (EOFError, OSError):
            self.socket.close()
            raise

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            got = self.socket.recv(length - len(data))
            if not got:
                raise EOFError
            data += got
        return data

    def answer(self) -> tuple[int, int, bytes]:
        """(option, kind, body) of one reply in the negotiation."""
        magic, echoed, kind, length = nbd.OPTION_REPLY.unpack(self.receive(nbd.OPTION_REPLY.size))
        assert magic == nbd.OPTION_REPLY_MAGIC
        return echoed, kind, self.receive(length)

    def settle(self, *, structured: bool = True, name: str = "disk") -> None:
        """Negotiate to the end."""
        self.send(negotiation(name) if structured else HELLO + go(name))
        while True:
            echoed, kind, _ = self.answer()
            assert kind < nbd.REP_ERR_BIT
            if echoed == nbd.OPT_GO and kind == nbd.REP_ACK:
                return

    def simple(self) -> tuple[int, int]:
        """(cookie, error) of a simple reply."""
        magic, error, cookie = nbd.SIMPLE_REPLY.unpack(self.receive(nbd.SIMPLE_REPLY.size))
        assert magic == nbd.SIMPLE_REPLY_MAGIC
        return cookie, error

    def chunk(self) -> Chunk:
        magic, flags, kind, cookie, length = nbd.CHUNK.unpack(self.receive(nbd.CHUNK.size))
        assert magic == nbd.STRUCTURED_REPLY_MAGIC
        return Chunk(cookie, kind, flags, self.receive(length))

    def at_end(self) -> bool:
        """True once the server has hung up."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True


class MemoryExport:
    """A disk in memory. Reads from `far` on are not ready and wait until `arrived` is set; what `broken` holds is raised."""

    block_size = 4096

    def __init__(self, size: int = 1 << 20, far: int | None = None) -> None:
        self.content = bytearray(size)
        self.size = size
        self.read_only = False
        self.zeroes_fast = True
        self.far = size if far is None else far
        self.arrived = threading.Event()
        self.asked = threading.Event()
        self.broken: dict[str, Exception] = {}
        self.calls: list[str] = []

    def _called(self, what: str) -> None:
        self.calls.append(what)
        if what in self.broken:
            raise self.broken[what]

    def read_ready(self, offset: int, buf: memoryview) -> bool:
        if not self.ready(offset, len(buf)):
            return False
        self.read_into(offset, buf)
        return True

    def ready(self, offset: int, length: int) -> bool:
        return offset + length <= self.far or self.arrived.is_set()

    def read_into(self, offset: int, buf: memoryview) -> None:
        self._called("read")
        if offset + len(buf) > self.far:
            self.asked.set()
            assert self.arrived.wait(20)
        buf[:] = self.content[offset : offset + len(buf)]

    def lies(self, offset: int, length: int) -> tuple[OpenFile, int] | None:
        return None

    def unreadable(self, error: OSError) -> None:
        self._called("unreadable")

    def prepare(self, offset: int, length: int) -> None:
        self._called("prepare")
        if offset + length > self.far:
            self.asked.set()
            assert self.arrived.wait(20)

    def write(self, offset: int, data: memoryview) -> None:
        self._called("write")
        self.content[offset : offset + len(data)] = data

    def write_zeroes(self, offset: int, length: int) -> None:
        self._called("zeroes")
        self.content[offset : offset + length] = bytes(length)

    def discard(self, offset: int, length: int) -> None:
        self._called("discard")
        self.content[offset : offset + length] = bytes(length)

    def flush(self) -> None:
        self._called("flush")

    def status(self, offset: int, length: int) -> Iterator[tuple[int, bool, bool]]:
        self._called("status")
        end = offset + length
        while offset < end:
            stop = min(end, offset - offset % 4096 + 4096)
            zero = not any(self.content[offset:stop])
            yield stop - offset, zero, zero
            offset = stop


class Writer:
    """A client that writes over NBD and counts what was acknowledged."""

    def __init__(self, path: Path, name: str) -> None:
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.settimeout(30)
        self.connection.connect(str(path))
        self._take(18)
        self.connection.sendall(struct.pack(">I", 3))
        self.connection.sendall(struct.pack(">QII", 0x49484156454F5054, 1, len(name)) + name.encode())
        self._take(10)

    def _take(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self.connection.recv(length - len(data))
            if not part:
                raise ConnectionError
            data += part
        return data

    def write(self, offset: int, data: bytes, flags: int = 0) -> None:
        assert self.attempt(offset, data, flags) == 0

    def attempt(self, offset: int, data: bytes, flags: int = 0) -> int:
        """The error number that comes back."""
        self.connection.sendall(struct.pack(">IHHQQI", 0x25609513, flags, 1, 7, offset, len(data)) + data)
        _, error, _ = struct.unpack(">IIQ", self._take(16))
        return int(error)
