"""Ranges that become zeros: fast where that is asked for or not at all, and long ones in nobody's way."""

from __future__ import annotations

import ctypes
import errno
import threading
from pathlib import Path

import pytest

from safehold.blocks import layers
from safehold.blocks.directory import VolumeDirectory
from safehold.blocks.layout import VolumeRecord
from safehold.blocks.server import NbdServer
from safehold.model.clock import SystemClock
from safehold.testing.file_export import FixedDirectory
from safehold.wire import nbd_protocol as nbd
from tests.nbd import MemoryExport, RawClient, request

FAST = nbd.CMD_FLAG_FAST_ZERO
MIB = 1 << 20
PATIENCE = 20


class SlowExport(MemoryExport):
    """Each step of zeroing waits for its turn."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.ranges: list[tuple[int, int]] = []
        self.begun, self.turns = threading.Semaphore(0), threading.Semaphore(0)

    def discard(self, offset: int, length: int) -> None:
        self.ranges.append((offset, length))
        self.begun.release()
        assert self.turns.acquire(timeout=PATIENCE)


def test_what_is_to_be_fast_is_refused_where_it_is_not(tmp_path: Path) -> None:
    export = MemoryExport()
    export.zeroes_fast = False
    with NbdServer(str(tmp_path / "s"), FixedDirectory({"disk": export})) as server, RawClient(server.path) as client:
        client.settle()
        client.send(request(nbd.CMD_WRITE_ZEROES, 1, 0, 4096, FAST) + request(nbd.CMD_WRITE_ZEROES, 2, 0, 4096))
        assert [client.simple(), client.simple()] == [(1, errno.ENOTSUP), (2, 0)]
        assert export.calls == ["discard"]


@pytest.mark.parametrize("punches", [True, False])
def test_a_volume_knows_beforehand_whether_it_is_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, punches: bool
) -> None:
    class Library:
        """A file system that makes no holes."""

        def fallocate(self, *_: object) -> int:
            ctypes.set_errno(errno.EOPNOTSUPP)
            return -1

    if not punches:
        monkeypatch.setattr(layers, "_LIBC", Library())
    directory = VolumeDirectory(tmp_path / "volumes", "boot", SystemClock())
    volume = directory.create(VolumeRecord("v", "v", MIB, MIB // 8, "vault", 0.0), (), ()).volume
    assert volume.zeroes_fast == punches
    volume.write(0, memoryview(b"\7" * MIB))
    volume.write_zeroes(4096, 65536)
    content = bytearray(MIB)
    volume.read_into(0, memoryview(content))
    assert content == b"\7" * 4096 + bytes(65536) + b"\7" * (MIB - 4096 - 65536)
    directory.close()


@pytest.mark.parametrize("command", [nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES])
def test_a_long_range_keeps_nobody_waiting(tmp_path: Path, command: int) -> None:
    export = SlowExport(100 * MIB)
    with NbdServer(str(tmp_path / "s"), FixedDirectory({"disk": export})) as server, RawClient(server.path) as client:
        client.settle()
        client.send(request(command, 1, MIB, 98 * MIB) + request(nbd.CMD_FLUSH, 2))
        assert export.begun.acquire(timeout=PATIENCE)
        assert client.simple() == (2, 0)
        export.turns.release(10)
        assert client.simple() == (1, 0)
    assert export.ranges == [(MIB, 31 * MIB), (32 * MIB, 32 * MIB), (64 * MIB, 32 * MIB), (96 * MIB, 3 * MIB)]


def test_a_client_that_hangs_up_ends_a_long_range(tmp_path: Path) -> None:
    export = SlowExport(100 * MIB)
    with NbdServer(str(tmp_path / "s"), FixedDirectory({"disk": export})) as server:
        with RawClient(server.path) as client:
            client.settle()
            client.send(request(nbd.CMD_TRIM, 1, 0, 100 * MIB))
            assert export.begun.acquire(timeout=PATIENCE)
        with RawClient(server.path) as successor:
            successor.settle()
            successor.send(request(nbd.CMD_WRITE, 2, 0, 3) + b"abc")
            with server._lock:
                (first,) = (one for one in server._serving if one._changing.ended or one.gone())
            while not first._changing.ended:
                assert not export.begun.acquire(timeout=0.01)
            export.turns.release(10)
            assert successor.simple() == (2, 0)
    assert export.ranges == [(0, 32 * MIB)]
    assert export.calls[:2] == ["prepare", "write"]
