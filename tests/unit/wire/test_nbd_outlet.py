from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from safehold.wire import nbd_protocol as nbd
from safehold.wire.nbd_outlet import Outlet
from safehold.wire.nbd_replies import Replies
from tests.contents import equal

CONTENT = os.urandom(900_000)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    theirs.settimeout(20)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


def receive(client: socket.socket, length: int) -> bytes:
    got = b""
    while len(got) < length:
        part = client.recv(length - len(got))
        if not part:
            raise EOFError
        got += part
    return got


@pytest.mark.parametrize("length", [1, 4096, 300_001, len(CONTENT) - 7, len(CONTENT) + 300_000])
def test_a_range_of_a_file(pair: tuple[socket.socket, socket.socket], path: Path, length: int) -> None:
    """Zeros beyond its end, as a read of a volume's sparse file gives."""
    ours, theirs = pair
    found: list[int] = []
    with path.open("rb") as file:
        outlet = Outlet(ours)
        sender = threading.Thread(target=lambda: found.append(outlet.send_file(memoryview(b"head"), file, 7, length)))
        sender.start()
        got = receive(theirs, 4 + length)
        sender.join()
    equal(got, b"head" + CONTENT[7 : 7 + length].ljust(length, b"\0"))
    assert found == [0]


def test_a_file_that_cannot_be_passed_on_is_copied(pair: tuple[socket.socket, socket.socket]) -> None:
    """Not every file system can; this one is at hand."""
    ours, theirs = pair
    with open("/proc/self/cmdline", "rb") as file:
        with pytest.raises(OSError, match="Invalid argument"):
            os.sendfile(ours.fileno(), file.fileno(), 0, 8)
        assert Outlet(ours).send_file(memoryview(b"head"), file, 2, 8) == 0
        file.seek(2)
        assert receive(theirs, 12) == b"head" + file.read(8)


def test_what_cannot_be_read_is_an_error_after_as_many_zeros(
    pair: tuple[socket.socket, socket.socket], path: Path
) -> None:
    ours, theirs = pair
    replies = Replies(Outlet(ours), structured=True)
    with path.open("ab") as unreadable:
        assert replies.file(5, 4096, 1000, unreadable, 4096) == errno.EBADF
    replies.failed(5, errno.EIO)
    replies.flush()
    magic, flags, kind, cookie, length = nbd.CHUNK.unpack(receive(theirs, nbd.CHUNK.size))
    assert (magic, flags, kind, cookie) == (nbd.STRUCTURED_REPLY_MAGIC, 0, nbd.REPLY_TYPE_OFFSET_DATA, 5)
    assert receive(theirs, length) == struct.pack(">Q", 4096) + bytes(1000)
    _, flags, kind, cookie, length = nbd.CHUNK.unpack(receive(theirs, nbd.CHUNK.size))
    assert (flags, kind, cookie) == (nbd.REPLY_FLAG_DONE, nbd.REPLY_TYPE_ERROR, 5)
    assert struct.unpack(">IH", receive(theirs, length)) == (errno.EIO, 0)


def test_a_client_that_is_gone(pair: tuple[socket.socket, socket.socket], path: Path) -> None:
    ours, theirs = pair
    theirs.close()
    with path.open("rb") as file, pytest.raises(BrokenPipeError):
        Outlet(ours).send_file(memoryview(b"head"), file, 0, len(CONTENT))


def test_replies_of_two_threads_stay_whole(pair: tuple[socket.socket, socket.socket], path: Path) -> None:
    ours, theirs = pair
    outlet = Outlet(ours)

    def send(head: bytes) -> None:
        with path.open("rb") as file:
            for _ in range(20):
                outlet.send_file(memoryview(head), file, 0, len(CONTENT))

    threads = [threading.Thread(target=send, args=(head,)) for head in (b"one!", b"two!")]
    for thread in threads:
        thread.start()
    heads = []
    for _ in range(40):
        heads.append(receive(theirs, 4))
        equal(receive(theirs, len(CONTENT)), CONTENT)
    for thread in threads:
        thread.join()
    assert sorted(heads) == [b"one!"] * 20 + [b"two!"] * 20
