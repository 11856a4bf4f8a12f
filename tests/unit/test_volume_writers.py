"""Who writes to volumes, of devices that this machine need not have."""

from __future__ import annotations

import pytest

from safehold.adapters.linux.mounts import Mounted
from safehold.compose import volume_writers
from safehold.compose.volume_writers import Served, others


def test_what_lies_on_several_volumes_writes_to_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system on a loop device over a logical volume that spans both: further down than from that loop device nothing is looked."""
    mounted = Mounted(9, 1, "7:9", "/", "/srv", ("rw",), False, "ext4", "/dev/loop9", ("rw",))
    monkeypatch.setattr(volume_writers, "above", lambda number: frozenset({number, "253:0", "7:9"}))
    monkeypatch.setattr(volume_writers, "mounts", lambda: [mounted])
    monkeypatch.setattr(volume_writers, "mounts_elsewhere", list)
    monkeypatch.setattr(volume_writers, "roots_seen", lambda one: {one.device: one.source})
    monkeypatch.setattr(volume_writers, "device_writers", lambda numbers: [])
    served = Served({"a": "/dev/nbd0", "b": "/dev/nbd1"}, [], lambda name: [], ["a", "b"])
    volumes = {"43:0": "a", "43:1": "b"}
    assert others(served, volumes, set(), set()) == dict.fromkeys(("a", "b"), "what is mounted on /srv")
    assert others(served, volumes, {"7:9"}, set()) == {}
