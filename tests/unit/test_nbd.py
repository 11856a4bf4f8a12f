"""The NBD client against qemu-nbd, and against servers that send rubbish."""

from __future__ import annotations

import socket
import struct
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safehold.adapters.image.qcow2 import serve_qcow2
from safehold.model.errors import SourceError
from safehold.model.extents import ExtentKind
from safehold.wire.nbd import NbdClient

GREETING = struct.pack(">QQH", 0x4E42444D41474943, 0x49484156454F5054, 3)


def reply(option: int, kind: int, body: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x0003E889045565A9, option, kind, len(body)) + body


SETTLED = (
    GREETING
    + reply(8, 1)
    + reply(10, 4, struct.pack(">I", 7) + b"base:allocation")
    + reply(10, 1)
    + reply(7, 3, struct.pack(">HQH", 0, 65536, 0))
    + reply(7, 1)
)


def against(sent: bytes) -> NbdClient:
    """A client of a server that sends these bytes, whatever it is told, and hangs up."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "s")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
                try:
                    while connection.recv(65536):
                        pass
                except OSError:
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            client = NbdClient(path, timeout=5)
            try:
                client.read_into(0, memoryview(bytearray(4096)))
                list(client.status())
            finally:
                client.close()
            return client
        finally:
            thread.join()
            listener.close()


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.builds(lambda n, b: SETTLED[:n] + b, st.integers(0, len(SETTLED)), st.binary(max_size=120)),
    )
)
def test_rubbish_ends_in_an_error(sent: bytes) -> None:
    with pytest.raises(SourceError):
        against(sent)


def chunk(kind: int, body: bytes, done: int = 1, handle: int = 1) -> bytes:
    return struct.pack(">IHHQI", 0x668E33EF, done, kind, handle, len(body)) + body


STATUS = chunk(5, struct.pack(">IIIII", 7, 4096, 0, 61440, 3), handle=2)


def test_a_good_server() -> None:
    data = chunk(1, struct.pack(">Q", 0) + b"x" * 4096)
    assert against(SETTLED + data + STATUS).size == 65536


@pytest.mark.parametrize(
    "answer",
    [
        chunk(1, struct.pack(">Q", 1) + b"x" * 4096),
        chunk(1, struct.pack(">Q", 0) + b"x" * 4095),
        chunk(1, struct.pack(">Q", 0) + b"x" * 4096, handle=9),
        chunk(2, struct.pack(">QI", 0, 8192)),
        chunk(2, struct.pack(">QI", 1 << 40, 16)),
        chunk(0x8001, struct.pack(">IH", 5, 2) + b"io"),
        chunk(77, b"?" * 16),
        chunk(1, b""),
        struct.pack(">IHHQI", 0x668E33EF, 1, 1, 1, 0xFFFFFFFF),
        struct.pack(">IIQ", 0x67446698, 5, 1),
        b"\0" * 20,
    ],
    ids=range(11),
)
def test_wrong_answers(answer: bytes) -> None:
    with pytest.raises(SourceError):
        against(SETTLED + answer + STATUS)


def test_a_server_that_does_not_advance() -> None:
    data = chunk(1, struct.pack(">Q", 0) + b"x" * 4096)
    with pytest.raises(SourceError):
        against(SETTLED + data + chunk(5, struct.pack(">III", 7, 0, 0), handle=2))


def test_a_missing_export() -> None:
    with pytest.raises(SourceError, match="no such export"):
        against(GREETING + reply(8, 1) + reply(10, 1) + reply(7, 0x80000006, b"what?"))


def test_qemu(tmp_path: Path) -> None:
    image = tmp_path / "disk, with a comma.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "8M"], check=True)
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 64k", "-c", "write -z 3M 1M", image],
        check=True,
        capture_output=True,
    )
    with serve_qcow2(str(image), shared=False) as blocks:
        assert blocks.size == 8 << 20
        extents = list(blocks.extents())
        assert extents[0].offset == 0
        assert extents[-1].end == blocks.size
        assert sum(e.length for e in extents if e.kind is ExtentKind.DATA) == 65536
        part = bytearray(65536 + 2)
        blocks.read_into((1 << 20) - 1, memoryview(part))
        assert part == b"\0" + b"\7" * 65536 + b"\0"
        with pytest.raises(SourceError):
            blocks.read_into((8 << 20) - 1, memoryview(bytearray(2)))
