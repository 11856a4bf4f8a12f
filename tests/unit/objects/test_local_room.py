"""Bulk leaves the last of a disk to what is small."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from safehold.model.errors import StoreFull
from safehold.objects.local import LocalStore

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")


def test_bulk_leaves_room_for_records(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", tmp_path], check=True)
    try:
        store = LocalStore(tmp_path / "vault", bulk=("packs/",))
        for number in range(200):
            try:
                store.put(f"packs/{number}", [bytes(50_000)])
            except StoreFull:
                break
        assert number > 60
        free = os.statvfs(tmp_path)
        assert free.f_bavail * free.f_frsize >= 4 * 1024 * 1024 // 32
        store.put("notes/1", [bytes(60_000)])
        with pytest.raises(StoreFull):
            store.put("packs/1000", [bytes(20_000)])
    finally:
        subprocess.run(["umount", tmp_path], check=True)
