"""The NBD server against a client that says every byte itself."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from safehold.blocks.server import NbdServer
from safehold.model.errors import FailedError, SourceError, UsageError
from safehold.testing.file_export import FixedDirectory
from safehold.wire import nbd_protocol as nbd
from safehold.wire.nbd_negotiation import open_export
from tests.nbd import HELLO, STRUCTURED, MemoryExport, RawClient, go, metadata, option, request

FUA = nbd.CMD_FLAG_FUA


@pytest.fixture
def export() -> MemoryExport:
    disk = MemoryExport()
    disk.content[:] = random.Random(1).randbytes(disk.size)
    return disk


@pytest.fixture
def directory(export: MemoryExport) -> FixedDirectory:
    return FixedDirectory({"disk": export})


@pytest.fixture
def server(tmp_path: Path, directory: FixedDirectory) -> Iterator[NbdServer]:
    with NbdServer(str(tmp_path / "s"), directory) as server:
        yield server


@pytest.fixture
def client(server: NbdServer) -> Iterator[RawClient]:
    with RawClient(server.path) as client:
        yield client


# -- negotiation -------------------------------------------------------------------------------------------------------


def test_options(client: RawClient) -> None:
    client.send(HELLO + option(nbd.OPT_STARTTLS) + option(99) + option(nbd.OPT_LIST) + option(nbd.OPT_LIST, b"?"))
    assert client.answer()[:2] == (nbd.OPT_STARTTLS, nbd.REP_ERR_POLICY)
    assert client.answer()[:2] == (99, nbd.REP_ERR_UNSUP)
    assert client.answer() == (nbd.OPT_LIST, nbd.REP_SERVER, b"\0\0\0\4disk")
    assert client.answer()[1] == nbd.REP_ACK
    assert client.answer()[1] == nbd.REP_ERR_INVALID
    client.send(go("none") + go("disk", nbd.OPT_INFO) + option(nbd.OPT_GO, b"\0\0\0\xffdisk"))
    assert client.answer()[1] == nbd.REP_ERR_UNKNOWN
    assert client.answer()[2][:10] == struct.pack(">HQ", nbd.INFO_EXPORT, 1 << 20)
    assert client.answer()[2] == struct.pack(">HIII", nbd.INFO_BLOCK_SIZE, 1, 4096, 32 << 20)
    assert client.answer()[1] == nbd.REP_ACK
    assert client.answer()[1] == nbd.REP_ERR_INVALID
    client.send(option(nbd.OPT_ABORT))
    assert client.answer()[:2] == (nbd.OPT_ABORT, nbd.REP_ACK)
    assert client.at_end()


def test_metadata_contexts(client: RawClient) -> None:
    client.send(HELLO + metadata("disk", nbd.ALLOCATION_CONTEXT) + STRUCTURED)
    assert client.answer()[1] == nbd.REP_ERR_INVALID
    assert client.answer()[1] == nbd.REP_ACK
    listing = nbd.OPT_LIST_META_CONTEXT
    client.send(metadata("disk", kind=listing) + metadata("disk", b"qemu:x", kind=listing) + metadata("none", b"base:"))
    assert client.answer()[1:] == (nbd.REP_META_CONTEXT, b"\0\0\0\0base:allocation")
    assert [client.answer()[1] for _ in range(3)] == [nbd.REP_ACK, nbd.REP_ACK, nbd.REP_ERR_UNKNOWN]
    client.send(option(nbd.OPT_SET_META_CONTEXT, b"\0\0\0\4disk\0\0\0\2\0\0\0\1x"))
    assert client.answer()[1] == nbd.REP_ERR_INVALID


def test_status_needs_a_context_of_the_same_export(client: RawClient) -> None:
    client.send(HELLO + STRUCTURED + go("disk") + request(nbd.CMD_BLOCK_STATUS, 1, 0, 4096))
    for _ in range(4):
        client.answer()
    chunk = client.chunk()
    assert (chunk.kind, chunk.body[:4]) == (nbd.REPLY_TYPE_ERROR, struct.pack(">I", errno.EINVAL))


@pytest.mark.parametrize("padding", [0, 124])
def test_the_oldest_way_to_an_export(client: RawClient, export: MemoryExport, padding: int) -> None:
    flags = nbd.FLAG_FIXED_NEWSTYLE | (0 if padding else nbd.FLAG_NO_ZEROES)
    client.send(struct.pack(">I", flags) + option(nbd.OPT_EXPORT_NAME, b"disk") + request(nbd.CMD_READ, 5, 100, 10))
    size, flags = struct.unpack(">QH", client.receive(10))
    assert size == export.size
    assert flags & nbd.FLAG_CAN_MULTI_CONN
    client.receive(padding)
    assert client.simple() == (5, 0)
    assert client.receive(10) == export.content[100:110]


@pytest.mark.parametrize(
    "said",
    [
        struct.pack(">I", 1 << 7),
        HELLO + b"\0" * 16,
        HELLO + nbd.OPTION.pack(nbd.OPTION_MAGIC, 7, 1 << 30),
        HELLO + option(nbd.OPT_EXPORT_NAME, b"none"),
        struct.pack(">I", 0) + go("disk"),
    ],
    ids=range(5),
)
def test_rubbish_ends_the_connection(client: RawClient, server: NbdServer, said: bytes) -> None:
    client.send(said)
    assert client.at_end()
    with RawClient(server.path) as other:
        other.settle()


def test_a_client_that_negotiates_for_too_long(tmp_path: Path, directory: FixedDirectory) -> None:
    with NbdServer(str(tmp_path / "s"), directory, patience=0.05) as server, RawClient(server.path) as client:
        assert client.at_end()


# -- requests ----------------------------------------------------------------------------------------------------------


def test_many_requests_at_once(client: RawClient, export: MemoryExport) -> None:
    client.settle()
    before = bytes(export.content)
    reads = [request(nbd.CMD_READ, i, i * 100, 100) for i in range(3000)]
    client.send(b"".join(reads))
    for i in range(3000):
        chunk = client.chunk()
        assert (chunk.cookie, chunk.flags, chunk.kind) == (i, nbd.REPLY_FLAG_DONE, nbd.REPLY_TYPE_OFFSET_DATA)
        assert chunk.body == struct.pack(">Q", i * 100) + before[i * 100 : i * 100 + 100]


def test_payloads_of_all_sizes_in_all_pieces(tmp_path: Path) -> None:
    disk = MemoryExport(size=8 << 20)
    chance = random.Random(2)
    sizes = [1, 4096, 65508, 65536, 65537, 300_000, 1 << 20, (1 << 20) + 65536, 5_000_000]
    expected = bytearray(disk.size)
    sent = b""
    for cookie in range(40):
        size = chance.choice(sizes)
        at = chance.randrange(disk.size - size + 1)
        data = chance.randbytes(size)
        expected[at : at + size] = data
        sent += request(nbd.CMD_WRITE, cookie, at, size) + data
    with NbdServer(str(tmp_path / "s"), FixedDirectory({"disk": disk})) as server, RawClient(server.path) as client:
        client.settle()

        def send() -> None:
            at = 0
            while at < len(sent):
                piece = chance.choice([1, 27, 29, 4096, 70_000, 1 << 20])
                client.send(sent[at : at + piece])
                at += piece

        thread = threading.Thread(target=send)
        thread.start()
        assert [client.simple() for _ in range(40)] == [(cookie, 0) for cookie in range(40)]
        thread.join()
        assert disk.content == expected


def test_a_long_read_is_data_and_holes(client: RawClient, export: MemoryExport) -> None:
    export.content[65536:131072] = bytes(65536)
    client.settle()
    client.send(request(nbd.CMD_READ, 1, 4096, 200_000) + request(nbd.CMD_READ, 2, 4096, 200_000, nbd.CMD_FLAG_DF))
    chunks = [client.chunk() for _ in range(3)]
    assert [c.kind for c in chunks] == [1, nbd.REPLY_TYPE_OFFSET_HOLE, 1]
    assert [c.flags for c in chunks] == [0, 0, nbd.REPLY_FLAG_DONE]
    assert chunks[1].body == struct.pack(">QI", 65536, 65536)
    assert chunks[0].body[8:] + bytes(65536) + chunks[2].body[8:] == export.content[4096:204_096]
    whole = client.chunk()
    assert whole.body[8:] == export.content[4096:204_096]
    client.send(request(nbd.CMD_READ, 3, 61440, 65536 + 4096))
    assert [(c.kind, c.flags) for c in (client.chunk(), client.chunk())] == [(1, 0), (2, nbd.REPLY_FLAG_DONE)]


@pytest.mark.parametrize("structured", [True, False])
def test_the_longest_read(tmp_path: Path, structured: bool) -> None:
    disk = MemoryExport(size=32 << 20)
    disk.content[:] = random.Random(3).randbytes(disk.size)
    with NbdServer(str(tmp_path / "s"), FixedDirectory({"disk": disk})) as server, RawClient(server.path) as client:
        client.settle(structured=structured)
        client.send(request(nbd.CMD_READ, 1, 0, 32 << 20))
        if structured:
            found = b"".join(client.chunk().body[8:] for _ in range(32))
        else:
            assert client.simple() == (1, 0)
            found = client.receive(32 << 20)
        assert found == disk.content


def test_changes(client: RawClient, export: MemoryExport) -> None:
    client.settle()
    client.send(request(nbd.CMD_WRITE, 1, 7, 3) + b"abc" + request(nbd.CMD_TRIM, 2, 4096, 4096))
    client.send(request(nbd.CMD_WRITE_ZEROES, 3, 16384, 10, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO))
    client.send(request(nbd.CMD_WRITE_ZEROES, 4, 32768, 10))
    assert [client.simple() for _ in range(4)] == [(i, 0) for i in range(1, 5)]
    assert export.calls == ["write", "discard", "zeroes", "discard"]
    assert export.content[7:10] == b"abc"
    assert not any(export.content[4096:8192] + export.content[16384:16394] + export.content[32768:32778])


@pytest.mark.parametrize("command", [nbd.CMD_WRITE, nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES])
def test_fua_is_durable_before_the_answer(client: RawClient, export: MemoryExport, command: int) -> None:
    client.settle()
    payload = b"x" * 512 if command == nbd.CMD_WRITE else b""
    client.send(request(command, 1, 0, 512, FUA) + payload)
    assert client.simple() == (1, 0)
    assert len(export.calls) == 2
    assert export.calls[1] == "flush"
    export.broken["flush"] = OSError(errno.EIO, "no disk")
    client.send(request(command, 2, 0, 512, FUA) + payload)
    assert client.simple() == (2, errno.EIO)


def test_status_of_one_run_and_of_all(client: RawClient, export: MemoryExport) -> None:
    export.content[4096:12288] = bytes(8192)
    client.settle()
    client.send(request(nbd.CMD_BLOCK_STATUS, 1, 0, 20480))
    client.send(request(nbd.CMD_BLOCK_STATUS, 2, 4096, 4096, nbd.CMD_FLAG_REQ_ONE))
    assert struct.unpack(">7I", client.chunk().body)[1:] == (4096, 0, 8192, 3, 8192, 0)
    assert struct.unpack(">3I", client.chunk().body)[1:] == (4096, 3)


@pytest.mark.parametrize(
    ("asked", "number"),
    [
        (request(nbd.CMD_WRITE, 1, (1 << 20) - 1, 2) + b"xx", errno.ENOSPC),
        (request(nbd.CMD_WRITE, 1, (1 << 64) - 1, 2) + b"xx", errno.ENOSPC),
        (request(nbd.CMD_TRIM, 1, 1 << 20, 1), errno.EINVAL),
        (request(nbd.CMD_WRITE_ZEROES, 1, 1, 1 << 20), errno.ENOSPC),
        (request(77, 1, 0, 1), errno.EINVAL),
        (request(nbd.CMD_TRIM, 1, 0, 1, nbd.CMD_FLAG_DF), errno.EINVAL),
    ],
    ids=range(6),
)
def test_requests_that_are_refused(client: RawClient, export: MemoryExport, asked: bytes, number: int) -> None:
    before = bytes(export.content)
    client.settle()
    client.send(asked + request(nbd.CMD_FLUSH, 2))
    assert sorted(client.simple() for _ in range(2)) == [(1, number), (2, 0)]
    assert export.content == before


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (OSError(errno.EROFS, "read-only"), errno.EPERM),
        (OSError(errno.EDQUOT, "quota"), errno.ENOSPC),
        (OSError(errno.ENODEV, "gone"), errno.EIO),
        (OSError("no number"), errno.EIO),
        (ValueError("a mistake"), errno.EIO),
    ],
    ids=range(6),
)
def test_errors_of_the_export(client: RawClient, export: MemoryExport, raised: Exception, seen: int) -> None:
    client.settle()
    export.broken = {"read": raised, "write": raised, "status": raised}
    client.send(request(nbd.CMD_WRITE, 1, 0, 1) + b"x" + request(nbd.CMD_READ, 2, 0, 9))
    client.send(request(nbd.CMD_READ, 3, 0, 100_000) + request(nbd.CMD_BLOCK_STATUS, 4, 0, 4096))
    assert client.simple() == (1, seen)
    for cookie in (2, 3, 4):
        chunk = client.chunk()
        assert (chunk.cookie, chunk.kind, chunk.flags) == (cookie, nbd.REPLY_TYPE_ERROR, nbd.REPLY_FLAG_DONE)
        assert chunk.body == struct.pack(">IH", seen, 0)
    export.broken = {}
    client.send(request(nbd.CMD_READ, 5, 0, 9))
    assert client.chunk().body[8:] == export.content[:9]


def test_a_disk_that_turns_read_only(client: RawClient, export: MemoryExport) -> None:
    client.settle()
    export.read_only = True
    client.send(request(nbd.CMD_WRITE, 1, 0, 4) + b"xxxx" + request(nbd.CMD_TRIM, 2, 0, 4) + request(nbd.CMD_FLUSH, 3))
    assert sorted(client.simple() for _ in range(3)) == [(1, errno.EPERM), (2, errno.EPERM), (3, 0)]
    assert "write" not in export.calls


def test_a_payload_beyond_the_largest_ends_the_connection(client: RawClient) -> None:
    client.settle()
    client.send(request(nbd.CMD_WRITE, 1, 0, (32 << 20) + 1))
    assert client.at_end()


# -- what waits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [nbd.CMD_READ, nbd.CMD_CACHE])
def test_others_pass_a_request_that_waits(tmp_path: Path, command: int) -> None:
    disk = MemoryExport(far=65536)
    with NbdServer(str(tmp_path / "s"), FixedDirectory({"disk": disk})) as server, RawClient(server.path) as client:
        client.settle()
        client.send(request(command, 1, 65536, 4096) + request(nbd.CMD_WRITE, 2, 0, 4) + b"abcd")
        assert client.simple() == (2, 0)
        assert disk.asked.wait(20)
        client.send(request(nbd.CMD_FLUSH, 3))
        assert client.simple() == (3, 0)
        disk.arrived.set()
        if command == nbd.CMD_READ:
            assert client.chunk().body[8:] == bytes(4096)
        else:
            assert client.simple() == (1, 0)


def test_others_pass_a_write_of_a_part_that_waits(tmp_path: Path) -> None:
    """So do flushes, when as many reads wait as there are threads for them."""
    disk = MemoryExport(far=65536)
    with NbdServer(str(tmp_path / "s"), FixedDirectory({"disk": disk})) as server, RawClient(server.path) as client:
        client.settle()
        client.send(request(nbd.CMD_WRITE, 1, 65536 + 512, 512, FUA) + b"x" * 512)
        client.send(b"".join(request(nbd.CMD_READ, 100 + i, 65536, 4096) for i in range(100)))
        client.send(request(nbd.CMD_WRITE, 2, 65536 + 4096, 4096) + b"y" * 4096 + request(nbd.CMD_FLUSH, 3))
        assert {client.simple(), client.simple()} == {(2, 0), (3, 0)}
        assert disk.asked.wait(20)
        assert disk.content[65536 : 65536 + 8192] == bytes(4096) + b"y" * 4096
        disk.arrived.set()
        answered = set()
        for _ in range(101):
            (magic,) = struct.unpack(">I", client.socket.recv(4, socket.MSG_PEEK))
            answered.add(client.simple() if magic == nbd.SIMPLE_REPLY_MAGIC else (client.chunk().cookie, 0))
        assert answered == {(1, 0), *((100 + i, 0) for i in range(100))}
    assert disk.content[65536 : 65536 + 4096] == bytes(512) + b"x" * 512 + bytes(4096 - 1024)
    assert disk.calls.count("flush") >= 2


def test_a_long_write_of_a_part_waits_in_its_place(tmp_path: Path) -> None:
    disk = MemoryExport(far=65536)
    with NbdServer(str(tmp_path / "s"), FixedDirectory({"disk": disk})) as server, RawClient(server.path) as client:
        client.settle()
        client.send(request(nbd.CMD_FLUSH, 1) + request(nbd.CMD_WRITE, 2, 65535, 500_000) + b"x" * 500_000)
        assert client.simple() == (1, 0)
        disk.arrived.set()
        assert client.simple() == (2, 0)
    assert disk.content[65535:565_535] == b"x" * 500_000


def test_what_a_part_needs_cannot_be_had(tmp_path: Path) -> None:
    disk = MemoryExport(far=65536)
    disk.broken["prepare"] = OSError(errno.EIO, "no vault")
    with NbdServer(str(tmp_path / "s"), FixedDirectory({"disk": disk})) as server, RawClient(server.path) as client:
        client.settle()
        client.send(request(nbd.CMD_WRITE, 1, 65536, 512) + b"x" * 512 + request(nbd.CMD_TRIM, 2, 65536, 512))
        client.send(request(nbd.CMD_WRITE, 3, 65535, 500_000) + b"x" * 500_000)
        assert {client.simple() for _ in range(3)} == {(1, errno.EIO), (2, errno.EIO), (3, errno.EIO)}
    assert not any(disk.content)


# -- clients that are gone ---------------------------------------------------------------------------------------------


class Gate(MemoryExport):
    """A disk whose writes to its beginning wait until they may go on."""

    def __init__(self, far: int | None = None) -> None:
        super().__init__(far=far)
        self.begun, self.go_on = threading.Event(), threading.Event()

    def write(self, offset: int, data: memoryview) -> None:
        if not offset:
            self.begun.set()
            assert self.go_on.wait(20)
        super().write(offset, data)


@pytest.mark.parametrize("behind", [nbd.CMD_WRITE, nbd.CMD_TRIM])
def test_nothing_is_begun_for_a_client_that_left(tmp_path: Path, behind: int) -> None:
    """It may have sent the same again by another connection, and newer writes after it."""
    disk = Gate()
    with NbdServer(str(tmp_path / "s"), FixedDirectory({"disk": disk})) as server:
        with RawClient(server.path) as client:
            client.settle()
            client.send(request(nbd.CMD_WRITE, 1, 0, 4096) + b"a" * 4096)
            client.send(request(behind, 2, 8192, 4096) + b"b" * 4096 * (behind == nbd.CMD_WRITE))
            assert disk.begun.wait(20)
            time.sleep(0.1)
        disk.go_on.set()
    assert [call for call in disk.calls if call != "flush"] == ["write"]


def test_the_next_client_is_served_after_what_the_last_one_began(tmp_path: Path) -> None:
    disk = Gate()
    with NbdServer(str(tmp_path / "s"), FixedDirectory({"disk": disk})) as server:
        with RawClient(server.path) as client:
            client.settle()
            client.send(request(nbd.CMD_WRITE, 1, 0, 8192) + b"a" * 8192)
            assert disk.begun.wait(20)
        with RawClient(server.path) as other:
            other.settle()
            other.send(request(nbd.CMD_WRITE, 1, 4096, 4096) + b"b" * 4096)
            other.socket.settimeout(0.3)
            with pytest.raises(TimeoutError):
                other.simple()
            other.socket.settimeout(20)
            disk.go_on.set()
            assert other.simple() == (1, 0)
    assert disk.content[:8192] == b"a" * 4096 + b"b" * 4096


def test_a_write_that_waited_for_the_vault_is_not_made_for_a_client_that_left(tmp_path: Path) -> None:
    disk = MemoryExport(far=65536)
    with NbdServer(str(tmp_path / "s"), FixedDirectory({"disk": disk})) as server:
        with RawClient(server.path) as client:
            client.settle()
            client.send(request(nbd.CMD_WRITE, 1, 65536, 512) + b"x" * 512)
            assert disk.asked.wait(20)
        with RawClient(server.path) as other:
            other.settle()
            other.send(request(nbd.CMD_WRITE, 1, 65536, 4096) + b"y" * 4096)
            assert other.simple() == (1, 0)
            disk.arrived.set()
    assert disk.content[65536 : 65536 + 4096] == b"y" * 4096


@pytest.mark.parametrize("parting", [request(nbd.CMD_DISC, 2), b""])
def test_a_leave_does_not_take_back_what_was_asked_for(tmp_path: Path, parting: bytes) -> None:
    """Whoever says no more and listens has not left either."""
    disk = MemoryExport(far=65536)
    with NbdServer(str(tmp_path / "s"), FixedDirectory({"disk": disk})) as server:
        with RawClient(server.path) as client:
            client.settle()
            client.send(request(nbd.CMD_WRITE, 1, 65536, 512) + b"x" * 512 + parting)
            assert disk.asked.wait(20)
            client.socket.shutdown(socket.SHUT_WR)
            time.sleep(0.1)
            if not parting:
                disk.arrived.set()
                assert client.simple() == (1, 0)
        disk.arrived.set()
        for _ in range(1000):
            if "write" in disk.calls:
                break
            time.sleep(0.01)
    assert disk.content[65536 : 65536 + 512] == b"x" * 512


def test_who_says_no_more_and_listens_is_served(tmp_path: Path) -> None:
    disk = Gate()
    with NbdServer(str(tmp_path / "s"), FixedDirectory({"disk": disk})) as server, RawClient(server.path) as client:
        client.settle()
        client.send(request(nbd.CMD_WRITE, 1, 0, 4096) + b"a" * 4096 + request(nbd.CMD_TRIM, 2, 8192, 4096))
        client.socket.shutdown(socket.SHUT_WR)
        assert disk.begun.wait(20)
        time.sleep(0.1)
        disk.go_on.set()
        assert [client.simple(), client.simple()] == [(1, 0), (2, 0)]


def test_replies_do_not_wait_for_the_rest_of_a_request(client: RawClient, export: MemoryExport) -> None:
    client.settle()
    late = request(nbd.CMD_WRITE, 2, 0, 500_000)
    client.send(request(nbd.CMD_READ, 1, 0, 10) + late + b"x" * 100_000)
    assert client.chunk().cookie == 1
    client.send(b"x" * 400_000)
    assert client.simple() == (2, 0)
    assert export.content[:500_000] == b"x" * 500_000


# -- ends --------------------------------------------------------------------------------------------------------------


def test_an_end_releases_the_export(server: NbdServer, directory: FixedDirectory) -> None:
    with RawClient(server.path) as client:
        client.settle()
        assert directory.held == {"disk": 1}
        client.send(request(nbd.CMD_DISC, 0))
        assert client.at_end()
    server.stop()
    assert directory.held == {"disk": 0}


def until_held(server: NbdServer) -> None:
    """Return once the server carries out nothing more."""
    while not all(one._stopping for one in server._serving):
        time.sleep(0.01)


def test_a_stop_lets_requests_end_and_flushes(tmp_path: Path) -> None:
    disk = MemoryExport(far=65536)
    directory = FixedDirectory({"disk": disk})
    server = NbdServer(str(tmp_path / "s"), directory)
    with RawClient(server.path) as client:
        client.settle()
        client.send(request(nbd.CMD_READ, 1, 65536, 4096))
        assert disk.asked.wait(20)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        until_held(server)
        disk.arrived.set()
        assert client.chunk().body[8:] == bytes(4096)
        assert client.at_end()
        stopping.join()
    assert disk.calls[-1] == "flush"
    assert directory.held == {"disk": 0}
    assert not os.path.exists(server.path)


def test_requests_behind_a_stop_get_no_answer(tmp_path: Path) -> None:
    """A client that reconnects sends them again; an error it would pass on to whoever waits for them."""
    disk = MemoryExport(far=65536)
    disk.ready = lambda offset, length: True  # type: ignore[method-assign]
    server = NbdServer(str(tmp_path / "s"), FixedDirectory({"disk": disk}))
    with RawClient(server.path) as client:
        client.settle()
        client.send(request(nbd.CMD_READ, 1, 65536, 10) + request(nbd.CMD_WRITE, 2, 0, 1) + b"x")
        assert disk.asked.wait(20)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        until_held(server)
        disk.arrived.set()
        assert client.chunk().cookie == 1
        with contextlib.suppress(ConnectionResetError):
            assert client.socket.recv(1) == b""
        stopping.join()
    assert "write" not in disk.calls


def test_a_client_is_held_for_as_long_as_it_takes(tmp_path: Path) -> None:
    """It is told nothing of what fails meanwhile, for it asks again where it is answered; and it can go on sending."""
    disk = MemoryExport(far=65536)
    server = NbdServer(str(tmp_path / "s"), FixedDirectory({"disk": disk}))
    with RawClient(server.path) as client:
        client.settle()
        client.send(request(nbd.CMD_READ, 1, 65536, 4096))
        client.send(request(nbd.CMD_CACHE, 2, 65536, 4096))
        assert disk.asked.wait(20)
        server.hold()
        disk.broken["read"] = OSError(errno.EIO, "nobody fetches it any more")
        disk.read_into = lambda offset, buf: disk._called("read")  # type: ignore[method-assign]
        client.send(request(nbd.CMD_WRITE, 3, 0, 1) + b"x")
        disk.arrived.set()
        server.rest()
        client.send(request(nbd.CMD_FLUSH, 4))
        client.socket.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            # The one read that was under way may have come to a good end.
            assert client.chunk().cookie == 1
            client.socket.recv(1)
            raise AssertionError("it was answered, or hung up on")
        client.socket.settimeout(20)
        server.stop()
        assert client.at_end()
    assert "write" not in disk.calls
    assert disk.calls[-1] == "flush"


@pytest.mark.parametrize("structured", [True, False])
def test_what_fails_while_clients_are_held_is_not_told(tmp_path: Path, structured: bool) -> None:
    disk = MemoryExport(size=4 << 20, far=65536)
    disk.content[:] = b"x" * disk.size
    reading = threading.Event()

    def fail(offset: int, buf: memoryview) -> None:
        reading.set()
        assert disk.arrived.wait(20)
        raise OSError(errno.EIO, "nobody fetches it any more")

    disk.read_into = fail  # type: ignore[method-assign]
    server = NbdServer(str(tmp_path / "s"), FixedDirectory({"disk": disk}))
    with RawClient(server.path) as client:
        client.settle(structured=structured)
        client.send(request(nbd.CMD_READ, 1, 65536, 3 << 20))
        assert reading.wait(20)
        server.hold()
        disk.arrived.set()
        server.stop()
        assert client.at_end()


@pytest.mark.parametrize("late", [False, True])
def test_a_client_that_takes_no_replies_is_cut_off(tmp_path: Path, export: MemoryExport, late: bool) -> None:
    """Those of its loop, and those of what had to be fetched first."""
    if late:
        export.far = 0
    server = NbdServer(str(tmp_path / "s"), FixedDirectory({"disk": export}))
    with RawClient(server.path) as client:
        client.settle()
        client.send(request(nbd.CMD_READ, 1, 0, 1 << 20) * 20)
        if late:
            assert export.asked.wait(20)
            time.sleep(0.1)  # all of them wait beside the loop by now
        export.arrived.set()
        client.receive(1)
        server.stop(grace=0.2)
        taken = 0
        while part := client.socket.recv(1 << 20):
            taken += len(part)
        assert taken < 20 << 20


@pytest.mark.parametrize("command", [nbd.CMD_FLUSH, nbd.CMD_READ])
def test_a_client_that_waits_longer_than_that_is_not(tmp_path: Path, export: MemoryExport, command: int) -> None:
    """Its replies are late because what it asked for takes its time."""
    begun, over = threading.Event(), threading.Event()

    def slow(*_: object) -> None:
        begun.set()
        assert over.wait(20)

    export.flush = slow  # type: ignore[method-assign]
    if command == nbd.CMD_READ:
        export.far, export.arrived = 0, over
        begun = export.asked
    server = NbdServer(str(tmp_path / "s"), FixedDirectory({"disk": export}))
    with RawClient(server.path) as client:
        client.settle()
        client.send(request(command, 1, 0, 4096 if command == nbd.CMD_READ else 0))
        assert begun.wait(20)
        stopping = threading.Thread(target=server.stop, args=(0.1,))
        stopping.start()
        time.sleep(1.5)
        assert stopping.is_alive()
        over.set()
        answered = client.chunk().cookie if command == nbd.CMD_READ else client.simple()[0]
        assert answered == 1
        stopping.join()


def test_one_client_too_many(tmp_path: Path, directory: FixedDirectory) -> None:
    server = NbdServer(str(tmp_path / "s"), directory, clients=2)
    with server, RawClient(server.path) as one, RawClient(server.path) as two:
        one.settle()
        two.settle()
        for _ in range(3):
            with pytest.raises(SourceError, match="the service has 2 clients, as many as it takes"):
                open_export(server.path, "disk", 5)
        with RawClient(server.path) as third:
            third.send(HELLO + option(nbd.OPT_EXPORT_NAME, b"disk"))
            assert third.at_end()
        one.send(request(nbd.CMD_FLUSH, 1))
        assert one.simple() == (1, 0)


# -- the socket --------------------------------------------------------------------------------------------------------


def test_the_socket_is_the_users_own(server: NbdServer) -> None:
    assert os.stat(server.path).st_mode & 0o777 == 0o600


def test_a_live_socket_stays(server: NbdServer, directory: FixedDirectory) -> None:
    with pytest.raises(FailedError, match="another server"):
        NbdServer(server.path, directory)
    with RawClient(server.path) as client:
        client.settle()


def test_a_live_socket_of_another_program_stays(tmp_path: Path, directory: FixedDirectory) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()
        with pytest.raises(FailedError, match="another program"):
            NbdServer(path, directory)
        assert os.path.exists(path)


def test_a_dead_servers_socket_is_replaced(tmp_path: Path, directory: FixedDirectory) -> None:
    path = str(tmp_path / "s")
    code = (
        "import os, sys; from safehold.blocks.server import NbdServer;"
        "from safehold.testing.file_export import FixedDirectory; NbdServer(sys.argv[1], FixedDirectory({})); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, path]).returncode == 9
    assert os.path.exists(path)
    with NbdServer(path, directory), RawClient(path) as client:
        client.settle()


def test_a_file_in_the_way_stays(tmp_path: Path, directory: FixedDirectory) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(UsageError, match="in the way"):
        NbdServer(str(tmp_path / "s"), directory)
    assert (tmp_path / "s").read_text() == "precious"
    with pytest.raises(UsageError, match="too long"):
        NbdServer(str(tmp_path / ("x" * 120)), directory)
