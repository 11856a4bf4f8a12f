"""Two sessions that store the same content at once: the one that ends later reports just what is there twice."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field
from pathlib import Path

from safehold.app.backup import BackupOptions, back_up
from safehold.app.host import Host
from safehold.model.resource import ResourceRef
from safehold.vault.names import Kind, kind_of
from safehold.vault.pack import PackRow
from safehold.vault.sealing import RECORD_OVERHEAD
from tests.worlds import BLOCK, BytesDisk, BytesSource, World, read_back

COMMON = random.Random(1).randbytes(20 * BLOCK)
OWN = random.Random(2).randbytes(5 * BLOCK)


@dataclass
class Interrupted(BytesDisk):
    """Backs another disk up, wholly, before the first byte of this one is read: both sessions have their views by then."""

    world: World
    began: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read_into(self, offset: int, buf: memoryview) -> None:
        with self.lock:
            if not self.began:
                self.began = True
                self.other = self.world.back_up(COMMON, "other")
        super().read_into(offset, buf)


def rows_by_session(world: World) -> dict[str, list[PackRow]]:
    """What each session stored, by the tables of contents of its packs."""
    vault = world.fresh()
    finder = vault.finder(vault.writer().wid)
    found: dict[str, list[PackRow]] = {}
    for stamp in world.store.list(""):
        if kind_of(stamp.name) in (Kind.PACK, Kind.META):
            header = vault.fetcher.read_header(stamp.name)
            sid = header.sessions[0].sid.hex()
            found.setdefault(sid, []).extend(finder.read_table(stamp.name, stamp.size, header))
    return found


def test_what_is_stored_twice_is_told_to_the_byte(tmp_path: Path) -> None:
    world = World(tmp_path)
    disk = Interrupted(bytearray(COMMON + OWN), world)
    ref = ResourceRef("volume", "disk", "disk")
    done = back_up(world.open(), BytesSource(disk), ref, Host("host", "id", "boot"), BackupOptions(), world.ctx)
    world.expected[done.point] = bytes(disk.data)
    assert disk.other.twice == 0, "nobody else had stored anything that it could see"

    rows = rows_by_session(world)
    points = {point.resources[0]: point.sid.hex() for point in world.fresh().points()[0]}
    ids = {row.identity for row in rows[points["other"]]}
    again = [row for row in rows[points["disk"]] if row.identity in ids]
    assert done.twice == sum(row.stored for row in again)
    # All of the common blocks are among them, which do not compress, and pages of the tree besides.
    assert sum(row.plain == BLOCK for row in again) == len(COMMON) // BLOCK
    assert done.twice > len(COMMON) + len(COMMON) // BLOCK * RECORD_OVERHEAD
    for point in world.fresh().points()[0]:
        assert read_back(world.fresh(), point) == world.expected[point.id]

    # One after the other, there is nothing twice.
    assert world.back_up(COMMON + OWN, "third").twice == 0
