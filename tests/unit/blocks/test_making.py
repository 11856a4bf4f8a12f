"""What a volume that has just been made is after a power loss."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from safehold.blocks import maps
from safehold.blocks.epochs import LiveHeader
from safehold.blocks.layers import DataFile
from safehold.blocks.layout import VolumeRecord
from safehold.blocks.opening import create_volume, open_volume

BLOCK = 64 * 1024


def test_maps_are_on_the_disk_before_they_are_to_be_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The power fails right after: of maps that were not synced zeros are left, and the header says that they are as they were put away."""
    synced = set()
    for kind in (DataFile, maps.BlockMap, maps.SectorMap):

        def sync(self: DataFile, right: object = kind.sync) -> None:
            right(self)  # type: ignore[operator]
            synced.add(self.path.name)

        monkeypatch.setattr(kind, "sync", sync)
    record = VolumeRecord("v", "v", 4 * BLOCK, BLOCK, "vault", 0.0)
    create_volume(tmp_path / "v", record, [(1, 2)], ())
    assert LiveHeader(tmp_path / "v" / "live.map").read()[0]
    for name in {"states", "sectors", "dirty.1"} - synced:
        path = tmp_path / "v" / name
        path.write_bytes(bytes(path.stat().st_size))
    volume = open_volume(tmp_path / "v", record, "another boot", lambda text: None).volume
    volume.read_into(0, memoryview(bytearray(BLOCK)))
    with pytest.raises(OSError, match="not here") as raised:
        volume.read_into(BLOCK, memoryview(bytearray(BLOCK)))
    assert raised.value.errno == errno.EIO
