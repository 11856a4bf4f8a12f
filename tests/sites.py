"""A vault that can be made to fail and a machine with live volumes, in one process."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from safehold.app import settling, uploader
from safehold.app.host import Host
from safehold.app.volumes import SnapshotRequest, VolumeService
from safehold.blocks.directory import VolumeDirectory
from safehold.blocks.epochs import LiveHeader
from safehold.blocks.held import HeldVolume
from safehold.blocks.layout import Snapshot, SnapshotState
from safehold.model.clock import SystemClock
from safehold.model.context import Context
from safehold.model.errors import StoreUnavailable
from safehold.model.topology import Topology
from safehold.recovery import hydration
from safehold.recovery.disk import Losses, write_disk
from safehold.testing.fault_store import Fault, FaultStore
from safehold.vault.records import Parameters
from safehold.vault.vault import Vault
from tests.worlds import BytesDisk, World

__all__ = ["SIZE", "UNIT", "Site", "at_site", "content", "dependent", "pins", "until"]

SIZE = 6 << 20
UNIT = 512 * 1024


class Site:
    """A vault behind a store that can be made to fail, and a machine with volumes."""

    def __init__(self, root: Path, block_size: int) -> None:
        self.root = root
        self.world = World(root, parameters=Parameters(block_size=block_size, pack_size=1 << 20, page_refs=64))
        self.store = FaultStore(self.world.store)
        self.service = self.begin()
        self.rng = random.Random(1)

    def begin(self) -> VolumeService:
        directory = VolumeDirectory(self.root / "volumes", "boot", SystemClock())
        service = VolumeService(
            directory, self.vault, Host("here", "here", "boot"), lambda blocks: Topology(), Context()
        )
        service.start()
        return service

    def restart(self) -> None:
        self.service.stop()
        self.service = self.begin()

    def crash(self, name: str) -> None:
        """As after a power loss: the maps of the volume are of another boot, and were not put away."""
        files = self.service.directory.get(name).files
        self.service.stop()
        LiveHeader(files.live).write(clean=False, epoch=1, boot="another")
        self.service = self.begin()

    def vault(self, address: str) -> Vault:
        return self.world.open(self.store)  # type: ignore[arg-type]

    def down(self, verb: str = "get", prefix: str = "") -> Fault:
        fault = Fault(verb, prefix, times=10**9, error=lambda: StoreUnavailable("the store is down"))
        self.store.faults.append(fault)
        return fault

    def up(self) -> None:
        self.store.faults.clear()

    def write(self, held: HeldVolume, count: int = 20) -> None:
        for _ in range(count):
            offset = self.rng.randrange(held.volume.size // 4096) * 4096
            held.volume.write(offset, memoryview(self.rng.randbytes(4096)))

    def snapshot(self, *names: str) -> Snapshot:
        return self.service.snapshot(SnapshotRequest(names))

    def state(self, snapshot: Snapshot) -> Snapshot:
        return self.service.find(snapshot.id)[0][1]

    def finish(self, snapshot: Snapshot) -> Snapshot:
        until(lambda: self.state(snapshot).state is not SnapshotState.PENDING)
        return self.state(snapshot)

    def point(self, identity: str, name: str) -> bytes:
        vault = self.world.open()
        point = next(p for p in vault.points()[0] if p.id == identity)
        member = next(m for m in point.body.members if m.name == name)
        target = BytesDisk(bytearray(b"\xff" * member.size))
        write_disk(vault.disk(point, member), target, Losses(False), vault.ctx)
        return bytes(target.data)

    def made(self) -> tuple[str, bytes]:
        """A point with some content, as RESOURCE@ID."""
        held = self.service.create("first", SIZE, "vault")
        self.write(held, 40)
        done = self.finish(self.snapshot("first"))
        return f"first@{done.point}", content(held)


def content(held: HeldVolume) -> bytes:
    data = bytearray(held.volume.size)
    held.volume.read_into(0, memoryview(data))
    return bytes(data)


def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it never came about")


def dependent(site: Site, name: str) -> HeldVolume:
    """A volume that cannot be filled in before the store is up."""
    origin, _ = site.made()
    site.down("read", "packs/")
    held = site.service.create(name, 0, "vault", origin)
    assert held.missing
    return held


def pins(site: Site) -> list[str]:
    return [stamp.name for stamp in site.world.store.list("pins/")]


def at_site(root: Path, patch: pytest.MonkeyPatch, block_size: int = UNIT) -> Iterator[Site]:
    """A site at which whatever failed is tried again at once; put away behind the test."""
    patch.setattr(uploader, "_PATIENCE", (0.05,))
    patch.setattr(settling, "_AGAIN", 0.05)
    patch.setattr(hydration, "_PATIENCE", (0.05,))
    made = Site(root, block_size)
    yield made
    made.up()
    made.service.stop()
