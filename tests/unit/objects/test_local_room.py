"""A directory tells how much of its disk backups may still use, and a session takes no more."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from safehold.model.errors import StoreFull
from safehold.objects.local import LocalStore
from safehold.vault.gc.prune import Prune
from safehold.vault.names import Kind
from tests.faults.test_prune_among_others import INFO
from tests.worlds import BLOCK, World

SIZE = 16 * 1024 * 1024


def free(place: Path) -> int:
    disk = os.statvfs(place)
    return disk.f_bavail * disk.f_frsize


def fill(world: World) -> None:
    for _ in range(10):
        with world.open().session(INFO, 4) as session:
            for lane in [session.lane() for _ in range(4)]:
                lane.put(Kind.PACK, [memoryview(os.urandom(BLOCK)) for _ in range(160)])
            session.flush()


def test_backups_leave_room_for_giving_space_back(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting takes root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", tmp_path], check=True)
    try:
        store = LocalStore(tmp_path / "vault")
        world = World(Path("/proc/none"), store)
        with pytest.raises(StoreFull):
            fill(world)
        assert SIZE // 32 <= free(tmp_path) < SIZE // 4
        (tmp_path / "other").write_bytes(bytes(free(tmp_path) - SIZE // 40))
        before = len(list(store.list("sessions/")))
        with pytest.raises(StoreFull), world.open().session(INFO, 1):
            pass
        assert len(list(store.list("sessions/"))) == before, "a backup that cannot be made leaves nothing"
        Prune(world.fresh(), tmp_path, lambda session, now: True, world.ctx).run()
        assert list(store.list("packs/")) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)
