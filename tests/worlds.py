"""Whole vaults in a process, for tests of what happens to them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from safehold.app.backup import BackupOptions, BackupOutcome, back_up
from safehold.app.host import Host
from safehold.app.keys import export_writer
from safehold.model.consistency import Consistency
from safehold.model.context import Context
from safehold.model.extents import Extent, ExtentKind
from safehold.model.resource import ResourceRef
from safehold.model.topology import Topology
from safehold.objects.memory import MemoryStore
from safehold.ports.blocks import Blocks, Lineage
from safehold.ports.source import Interval
from safehold.ports.store import Store
from safehold.recovery.disk import Losses, write_disk
from safehold.vault.access import Unlocked, unlock
from safehold.vault.catalogue import Point
from safehold.vault.create import create_vault
from safehold.vault.places import Places
from safehold.vault.records import Parameters
from safehold.vault.slots import Identity, Recipient
from safehold.vault.vault import Vault
from safehold.vault.writers import WriterKey

QUICK = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""A directory in memory, for histories of which only the order counts; None (the usual place) where there is none."""

BLOCK = 4096


@dataclass
class BytesDisk:
    """A disk in memory, to read and to write."""

    data: bytearray

    @property
    def size(self) -> int:
        return len(self.data)

    def extents(self, since: Lineage | None = None) -> Iterator[Extent]:
        if self.data:
            yield Extent(0, len(self.data), ExtentKind.DATA)

    def read_into(self, offset: int, buf: memoryview) -> None:
        buf[:] = self.data[offset : offset + len(buf)]

    def write(self, offset: int, data: memoryview) -> None:
        self.data[offset : offset + len(data)] = data

    def write_zeroes(self, offset: int, length: int) -> None:
        self.data[offset : offset + length] = bytes(length)

    def flush(self) -> None:
        pass


@dataclass
class _Capture:
    resource: ResourceRef
    content: Blocks
    taken: Interval = field(default_factory=lambda: Interval(0.0, 0.0))
    topology: Topology | None = None
    achieved: Consistency = Consistency.CRASH

    def committed(self) -> None:
        pass


@dataclass
class BytesSource:
    """Captures one disk in memory."""

    disk: BytesDisk

    def resolve(self, spec: str) -> ResourceRef | None:
        return ResourceRef("volume", spec, spec)

    @contextlib.contextmanager
    def capture(self, ref: ResourceRef, require: Consistency, ctx: Context) -> Iterator[_Capture]:
        yield _Capture(ref, self.disk)


@dataclass
class World:
    """A vault with an identity as its key (cheap to open), and what was backed up into it, by point id."""

    root: Path
    store: Store = field(default_factory=MemoryStore)
    parameters: Parameters = field(
        default_factory=lambda: Parameters(block_size=BLOCK, pack_size=8 * BLOCK, page_refs=8)
    )
    ctx: Context = field(default_factory=Context)

    def __post_init__(self) -> None:
        self.private = X25519PrivateKey.generate()
        self.expected: dict[str, bytes] = {}
        made = create_vault(
            self.store, Recipient(self.private.public_key().public_bytes_raw()), self.parameters, "test", self.ctx
        )
        self.kit = made.kit
        self._machines = 0

    @property
    def identity(self) -> Identity:
        return Identity(self.private)

    def places(self, machine: str = "home") -> Places:
        return Places(self.root / machine / "state", self.root / machine / "cache")

    def unlock(self, store: Store | None = None) -> Unlocked:
        return unlock(store or self.store, self.identity)

    def open(self, store: Store | None = None, machine: str = "home") -> Vault:
        store = store or self.store
        return Vault.for_owner(store, store, self.unlock(store), self.places(machine), self.ctx)

    def open_writer(self, writer: WriterKey, store: Store | None = None, machine: str = "writer") -> Vault:
        store = store or self.store
        return Vault.for_writer(store, store, self.unlock().document, writer, self.places(machine), self.ctx)

    def new_writer(self, *resources: str) -> WriterKey:
        return export_writer(self.open(), "exported", resources)

    def back_up(self, data: bytes, name: str = "disk", vault: Vault | None = None) -> BackupOutcome:
        """Back up `data` as the disk `name`."""
        source = BytesSource(BytesDisk(bytearray(data)))
        outcome = back_up(
            vault or self.open(),
            source,
            ResourceRef("volume", name, name),
            Host("host", "id", "boot"),
            BackupOptions(),
            self.ctx,
        )
        self.expected[outcome.point] = data
        return outcome

    def fresh(self, store: Store | None = None) -> Vault:
        """Opened on a machine that knows nothing."""
        self._machines += 1
        return self.open(store, f"machine-{self._machines}")


def read_back(vault: Vault, point: Point, losses: Losses | None = None) -> bytes:
    """The bytes of a point's only disk, restored."""
    disk = vault.disk(point, point.body.members[0])
    target = BytesDisk(bytearray(b"\xff" * disk.size))
    write_disk(disk, target, losses or Losses(False), vault.ctx)
    return bytes(target.data)


__all__ = ["BLOCK", "QUICK", "BytesDisk", "BytesSource", "World", "read_back"]
