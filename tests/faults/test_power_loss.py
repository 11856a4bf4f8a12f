"""The power fails after every single file-system call: what a put returned is there, and the vault is whole."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from safehold.app.verify import Depth, verify_points
from safehold.objects.local import LocalStore
from safehold.objects.memory import MemoryStore
from safehold.ports.store import Stamp
from safehold.testing.power_loss import Call, RecordingCalls, after_power_loss
from tests.struck import Struck
from tests.worlds import BLOCK, World, read_back

if TYPE_CHECKING:
    from typing_extensions import Buffer


class PromisingStore(LocalStore):
    """Records when a put has returned."""

    def __init__(self, root: Path, calls: RecordingCalls) -> None:
        super().__init__(root, calls)
        self.recording = calls
        self.root = str(root)

    def put(self, name: str, parts: Sequence[Buffer], *, create_only: bool = True) -> Stamp:
        stamp = super().put(name, parts, create_only=create_only)
        self.recording.promise(os.path.join(self.root, name), b"".join(bytes(part) for part in parts))
        return stamp


def history(tmp_path: Path, calls: RecordingCalls) -> tuple[World, str]:
    root = tmp_path / "deep" / "vault"
    (tmp_path / "deep").mkdir()
    with calls.watching():
        world = World(tmp_path / "machine", PromisingStore(root, calls))
        for seed in range(3):
            world.back_up(random.Random(seed).randbytes(12 * BLOCK))
    return world, str(root)


def broken_promises(calls: Sequence[Call], root: str) -> int:
    """Prefixes after which something promised is missing or different."""
    return sum(
        any(survived.get(path) != data for path, data in promised.items())
        for _, survived, promised in after_power_loss(calls, root)
    )


def test_every_moment(tmp_path: Path, struck: Struck) -> None:
    recording = RecordingCalls()
    world, root = history(tmp_path, recording)
    whole = {call.target: None for call in recording.calls if call.verb == "link"}
    moments = checked = 0
    seen: set[frozenset[str]] = set()
    for _, survived, promised in after_power_loss(recording.calls, root):
        moments += 1
        for path, data in promised.items():
            assert survived.get(path) == data
        visible = {os.path.relpath(p, root): d for p, d in survived.items() if not os.path.basename(p).startswith(".")}
        assert set(survived) - {os.path.join(root, n) for n in visible} <= {
            c.path for c in recording.calls if c.verb == "write"
        }
        assert all(os.path.join(root, name) in whole for name in visible)
        if frozenset(visible) in seen or "vault.json" not in visible:
            continue
        seen.add(frozenset(visible))
        store = MemoryStore()
        for name, data in visible.items():
            store.put(name, [data])
        vault = world.fresh(store)
        points, rejected = vault.points()
        assert rejected == []
        for point in points:
            assert read_back(vault, point) == world.expected[point.id]
        assert verify_points(vault, None, Depth.DATA, [], world.ctx).found == []
        checked += len(points)
    struck("power losses", moments)
    assert moments > 100
    assert checked >= 6


class Forgetful(RecordingCalls):
    """Leaves a sync out."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def synced(self, path: str, *, directory: bool) -> None:
        if not directory or self.what not in path:
            super().synced(path, directory=directory)


@pytest.mark.parametrize("what", ["points", "/vault", "packs/hot", "deep"])
def test_a_forgotten_sync_is_found(tmp_path: Path, what: str) -> None:
    recording = Forgetful(what)
    _, root = history(tmp_path, recording)
    assert broken_promises(recording.calls, root) > 0


class Unflushed(RecordingCalls):
    """Leaves the files' own syncs out: as where the program made only the names durable."""

    def synced(self, path: str, *, directory: bool) -> None:
        if directory:
            super().synced(path, directory=True)


def test_forgotten_bytes_are_found(tmp_path: Path) -> None:
    recording = Unflushed()
    _, root = history(tmp_path, recording)
    assert broken_promises(recording.calls, root) > 0


def test_replacing_is_durable_too(tmp_path: Path) -> None:
    recording = RecordingCalls()
    root = tmp_path / "store"
    store = PromisingStore(root, recording)
    with recording.watching():
        for n in range(3):
            store.put("a/b", [b"%d" % n], create_only=False)
    moments = 0
    for _, survived, promised in after_power_loss(recording.calls, str(root)):
        for path, data in promised.items():
            assert int(survived[path]) >= int(data), "the promised version, or already the next"
            moments += 1
    assert moments >= 9
