"""Volumes whose own files cannot be read or written for a while: the client is told, and so is the operator, until it is over."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from safehold.blocks import checkpoint, troubles
from safehold.blocks.directory import VolumeDirectory
from safehold.blocks.held import HeldVolume
from safehold.blocks.layers import DataFile
from safehold.blocks.layout import Snapshot, VolumeRecord
from safehold.blocks.server import NbdServer
from safehold.blocks.troubles import Doing, Told, Troubles
from safehold.model.clock import SystemClock
from safehold.wire import nbd_protocol as nbd
from tests.nbd import RawClient, request

BLOCK = 64 * 1024
SIZE = 8 * BLOCK
PAGE = b"\7" * 4096


class Site:
    def __init__(self, root: Path) -> None:
        self.log: list[str] = []
        self.directory = VolumeDirectory(root / "volumes", "boot", SystemClock(), self.log.append)
        self.held: HeldVolume = self.directory.create(VolumeRecord("data", "data", SIZE, BLOCK, "vault", 0.0), (), ())


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.directory.close()


def failing(number: int) -> object:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_write_that_finds_no_room(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = site.held.volume
    with monkeypatch.context() as patch:
        patch.setattr(DataFile, "write", failing(errno.ENOSPC))
        for _ in range(3):
            with pytest.raises(OSError, match="No space"):
                volume.write(0, memoryview(PAGE))
    assert "writes fail in " in site.held.problem
    assert "No space left on device" in site.held.problem
    assert len(site.log) == 1
    assert site.log[0].startswith("volume data: writes fail in ")
    # What needs no room goes well all the while.
    volume.write(0, memoryview(PAGE))
    assert "No space left on device" in site.held.problem
    monkeypatch.setattr(troubles, "_QUIET", 0.0)
    volume.read_into(0, memoryview(bytearray(4096)))
    assert "No space left on device" in site.held.problem
    volume.write(0, memoryview(PAGE))
    assert site.held.problem == ""
    assert "go well again" in site.log[-1]
    assert len(site.log) == 2


def test_a_read_that_fails(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = site.held.volume
    with monkeypatch.context() as patch:
        patch.setattr(DataFile, "read_into", failing(errno.EIO))
        with pytest.raises(OSError, match="Input/output"):
            volume.read_into(0, memoryview(bytearray(4096)))
    assert "reads fail in " in site.held.problem
    assert volume.lies(0, BLOCK) is None, "a read that goes past the volume would not tell that it is over"
    monkeypatch.setattr(troubles, "_QUIET", 0.0)
    volume.read_into(0, memoryview(bytearray(4096)))
    assert site.held.problem == ""
    assert volume.lies(0, BLOCK) is not None


def test_a_read_that_the_kernel_was_to_pass_on(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    site.held.volume.write(0, memoryview(PAGE * (2 * BLOCK // 4096)))
    unreadable = os.open(tmp_path / "unreadable", os.O_WRONLY | os.O_CREAT)
    with NbdServer(str(tmp_path / "s"), site.directory) as server, RawClient(server.path) as client:
        client.settle(name="data")
        with monkeypatch.context() as patch:
            patch.setattr(DataFile, "fileno", lambda self: unreadable)
            client.send(request(nbd.CMD_READ, 1, 0, 2 * BLOCK))
            while not client.chunk().flags & nbd.REPLY_FLAG_DONE:
                pass
        assert "reads fail in " in site.held.problem
    os.close(unreadable)


def test_a_flush_that_finds_no_room(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = site.held.volume
    site.directory.seal(["data"], _snapshot)
    volume.write(0, memoryview(PAGE))
    site.directory.seal(["data"], _snapshot)
    volume.write(0, memoryview(PAGE))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "write", failing(errno.ENOSPC))
        with pytest.raises(OSError, match="No space"):
            volume.flush()
    assert "flushes fail in " in site.held.problem
    assert not volume.read_only
    monkeypatch.setattr(troubles, "_QUIET", 0.0)
    volume.flush()
    assert site.held.problem == ""


def _snapshot(held: HeldVolume, taken: tuple[float, float]) -> Snapshot:
    return Snapshot(f"of-{held.volume.gate.phase.epoch}", held.volume.gate.phase.epoch - 1, taken, "crash", "crash")


def test_what_is_told_otherwise_is_no_trouble(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = site.held.volume

    def fetch(block: int) -> None:
        raise OSError(errno.EIO, "the vault is away")

    volume.fetch = fetch
    volume.maps.states.fill(0, 1, 0)
    with pytest.raises(OSError, match="away"):
        volume.read_into(0, memoryview(bytearray(512)))
    assert site.held.problem == ""
    monkeypatch.setattr(DataFile, "sync", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        volume.flush()
    with pytest.raises(OSError, match="Read-only"):
        volume.write(0, memoryview(PAGE))
    assert site.held.problem.count("fail") == 1
    assert ["read-only" in line for line in site.log] == [True]


def test_each_kind_and_error_is_told_once_and_is_over_by_itself(tmp_path: Path) -> None:
    now, log = [0.0], []
    seen = Troubles(tmp_path, lambda: now[0])
    seen.log = log.append
    for _ in range(5):
        seen.met(Doing.WRITING, OSError(errno.ENOSPC, "full"))
        seen.met(Doing.WRITING, OSError(errno.EIO, "broken"))
        seen.met(Doing.READING, OSError(errno.EIO, "broken"))
        seen.met(Doing.READING, Told(errno.EIO, "the vault"))
    assert len(log) == 3
    now[0] = 59.0
    seen.met(Doing.READING, OSError(errno.EIO, "broken"))
    now[0] = 60.0
    seen.passed(Doing.READING)
    seen.passed(Doing.WRITING)
    assert seen.text == f"reads fail in {tmp_path}: broken"
    now[0] = 119.0
    seen.passed(Doing.READING)
    assert not seen.now
    assert seen.text == ""
    assert len(log) == 5
