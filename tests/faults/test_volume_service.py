"""Live volumes and a vault that fails them: what is missing is said, what is here stays, and all goes on by itself."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import random
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from safehold.app import recycling, settling, uploader
from safehold.app.snapshots import next_group
from safehold.app.uploader import Uploader
from safehold.app.volumes import SnapshotRequest
from safehold.blocks import directory as directory_module
from safehold.blocks import growing, opening, sealing
from safehold.blocks import held as held_module
from safehold.blocks.checkpoint import NoRoom
from safehold.blocks.epochs import Epochs, LiveHeader, PutAway
from safehold.blocks.held import HeldVolume
from safehold.blocks.ids import BlockIds
from safehold.blocks.layers import PRESENT, Overlay
from safehold.blocks.layout import Snapshot, SnapshotState, VolumeFiles, VolumeRecord
from safehold.blocks.maps import BlockMap, SectorMap
from safehold.blocks.recycle_bin import RecycleBin
from safehold.blocks.volume import LiveVolume
from safehold.compose.volume_service import Orders
from safehold.model.consistency import Consistency
from safehold.model.errors import ConsistencyError, FailedError, StoreUnavailable, UsageError
from safehold.model.quiet import Quieted
from safehold.testing.fault_store import Fault
from tests.contents import equal
from tests.descriptors import opened
from tests.sites import SIZE, UNIT, Site, at_site, content, dependent, pins, until


@pytest.fixture(params=[4096, UNIT])
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    yield from at_site(tmp_path, monkeypatch, request.param)


def test_a_snapshot_waits_for_its_store_and_is_what_was_sealed(site: Site) -> None:
    held = site.service.create("data", SIZE, "vault")
    site.write(held)
    was = content(held)
    site.down("put", "packs/")
    snapshot = site.snapshot("data")
    site.write(held)
    until(lambda: "waits" in site.service.problem(held))
    assert site.state(snapshot).state is SnapshotState.PENDING
    second, now = site.snapshot("data"), content(held)
    site.write(held)
    site.up()
    first_done, second_done = site.finish(snapshot), site.finish(second)
    assert (first_done.state, second_done.state) == (SnapshotState.COMPLETED, SnapshotState.COMPLETED)
    equal(site.point(first_done.point, "data"), was)
    equal(site.point(second_done.point, "data"), now)
    assert site.service.problem(held) == ""
    assert not list(held.files.directory.glob("ov.*")) or held.epochs.open == []


def test_only_what_changed_is_read(site: Site) -> None:
    held = site.service.create("data", SIZE, "vault")
    site.write(held, 200)
    site.finish(site.snapshot("data"))
    held.volume.write(0, memoryview(bytes([1]) * 4096))
    held.volume.write(3 * UNIT, memoryview(bytes([2]) * 4096))
    site.restart()
    held = site.service.directory.get("data")
    done = site.finish(site.snapshot("data"))
    assert done.read == 2 * UNIT
    equal(site.point(done.point, "data"), content(held))


def test_hydration_gives_errors_for_what_is_missing_alone_and_goes_on(site: Site) -> None:
    origin, was = site.made()
    site.service.create("data", 0, "vault", origin)
    until(lambda: site.service.directory.get("data").missing == 0)
    site.service.delete("data")
    fault = site.down("read", "packs/")
    held = site.service.create("data", 0, "vault", origin)
    assert held.missing > 0
    data = bytearray(4096)
    block = held.volume.maps.states.cells[: held.record.blocks].find(0)
    with pytest.raises(OSError) as raised:  # noqa: PT011, its errno is looked at below
        held.volume.read_into(block * UNIT, memoryview(data))
    assert raised.value.errno == errno.EIO
    assert fault.hits
    # Whole sectors need nothing; of parts of them, that at either end.
    held.volume.prepare(block * UNIT, 8192)
    for offset, length in ((block * UNIT + 512, 4096 - 512), (block * UNIT, 4097), (block * UNIT - 4096, 4097)):
        with pytest.raises(OSError, match="down"):
            held.volume.prepare(offset, length)
    fresh = random.Random(2).randbytes(4096)
    held.volume.write(block * UNIT, memoryview(fresh))
    held.volume.read_into(block * UNIT, memoryview(data))
    assert data == fresh
    until(lambda: "down" in site.service.problem(held))
    site.up()
    held.volume.prepare(block * UNIT + 512, 1)
    assert held.volume.maps.states.cells[block] == PRESENT
    until(lambda: held.missing == 0)
    wanted = bytearray(was)
    wanted[block * UNIT : block * UNIT + 4096] = fresh
    equal(content(held), wanted)
    until(lambda: site.service.problem(held) == "")


def test_a_damaged_pack_costs_its_blocks_and_no_others(site: Site) -> None:
    origin, was = site.made()
    packs = [stamp.name for stamp in site.world.store.list("packs/") if "-x" not in stamp.name]
    data_packs = [name for name in packs if site.world.store.head(name).size > 3 * 4096]
    broken = bytearray(site.world.store.get(data_packs[0]))
    broken[5000] ^= 1
    site.world.store.put(data_packs[0], [bytes(broken)], create_only=False)
    held = site.service.create("data", 0, "vault", origin)
    until(lambda: bool(site.service.problem(held)))
    failed, right = 0, 0
    for at in range(0, SIZE, UNIT):
        data = bytearray(UNIT)
        try:
            held.volume.read_into(at, memoryview(data))
        except OSError:
            failed += 1
        else:
            right += 1
            equal(data, was[at : at + UNIT])
    assert failed
    assert right
    until(lambda: held.missing == failed)


def test_a_volume_pins_its_point_until_it_is_filled_in(site: Site) -> None:
    origin, _ = site.made()
    site.down("read", "packs/")
    held = site.service.create("data", 0, "vault", origin)
    vault = site.world.open()
    point = vault.points()[0][0]
    with pytest.raises(UsageError, match="the volume data on here is filled in"):
        vault.expiry().forget(point.wid, point.sid)
    site.up()
    until(lambda: held.record.pin == "")
    vault.expiry().forget(point.wid, point.sid)


def test_a_point_that_could_not_be_let_go_of_is_let_go_of_when_that_can_be_said(site: Site) -> None:
    """The store was down when all was here, as where the service is killed at that moment."""
    origin, _ = site.made()
    site.down("delete", "pins/")
    held = site.service.create("data", 0, "vault", origin)
    until(lambda: not held.missing)
    for _ in range(2):
        site.restart()
        time.sleep(0.2)
        assert len(pins(site)) == 1
    site.up()
    # By itself, after a moment of patience.
    until(lambda: site.service.directory.get("data").record.pin == "")
    assert pins(site) == []


def test_a_restart_in_the_middle_goes_on(site: Site) -> None:
    origin, was = site.made()
    site.down("read", "packs/")
    site.service.create("data", 0, "vault", origin)
    site.restart()
    site.up()
    held = site.service.directory.get("data")
    until(lambda: held.missing == 0)
    equal(content(held), was)


def test_a_base_that_went_leads_to_a_comparison_of_everything(site: Site) -> None:
    held = site.service.create("data", SIZE, "vault")
    site.write(held, 60)
    site.finish(site.snapshot("data"))
    # The owner throws away all that the vault held, behind the volume's back.
    for stamp in [
        *site.world.store.list("packs/"),
        *site.world.store.list("index/"),
        *site.world.store.list("points/"),
    ]:
        site.world.store.delete(stamp.name)
    site.write(held, 1)
    failed = site.finish(site.snapshot("data"))
    assert failed.state is SnapshotState.FAILED
    assert "lacks blocks" in failed.problem
    done = site.finish(site.snapshot("data"))
    assert done.full
    equal(site.point(done.point, "data"), content(held))


def test_a_group_is_one_point(site: Site) -> None:
    one, two = (site.service.create(name, SIZE, "vault") for name in ("one", "two"))
    site.write(one)
    site.write(two)
    was = content(one), content(two)
    snapshot = site.snapshot("one", "two")
    site.write(one)
    site.write(two)
    done = site.finish(snapshot)
    point = next(p for p in site.world.open().points()[0] if p.id == done.point)
    assert point.resources == ("one", "two")
    equal(site.point(done.point, "one"), was[0])
    equal(site.point(done.point, "two"), was[1])


def test_too_many_snapshots_on_their_way_are_refused(site: Site) -> None:
    held = site.service.create("data", SIZE, "vault")
    site.down("put", "packs/")
    taken = []
    for _ in range(8):
        site.write(held, 2)
        taken.append(site.snapshot("data"))
    with pytest.raises(Exception, match="still on their way"):
        site.snapshot("data")
    site.up()
    assert site.finish(taken[-1]).state is SnapshotState.COMPLETED
    equal(site.point(site.state(taken[-1]).point, "data"), content(held))


def test_no_volume_is_called_like_what_its_directory_has_of_its_own(site: Site) -> None:
    """All that lies there beside volumes, once one was made and one was deleted."""
    for name in ("data", "gone"):
        site.service.create(name, SIZE, "vault")
    site.service.delete("gone")
    own = {path.name for path in site.service.directory.root.iterdir()} - {"data"}
    assert own == {"deleted", "lock"}
    for name in own:
        with pytest.raises(UsageError, match="cannot be called that"):
            site.service.create(name, SIZE, "vault")


def test_a_volume_in_use_is_not_deleted(site: Site) -> None:
    site.service.create("data", SIZE, "vault")
    assert site.service.directory.open("data") is not None
    with pytest.raises(UsageError, match="attached"):
        site.service.delete("data")
    site.service.directory.release("data")
    site.service.delete("data")
    with pytest.raises(UsageError, match="no such volume"):
        site.service.directory.get("data")
    site.service.undelete("data")


def test_growing_keeps_what_was_there(site: Site) -> None:
    origin, was = site.made()
    held = site.service.create("data", SIZE + 3 * UNIT, "vault", origin)
    until(lambda: site.service.directory.get("data").missing == 0)
    held = site.service.directory.get("data")
    equal(content(held), was + bytes(3 * UNIT))
    held.volume.write(SIZE + UNIT, memoryview(b"end" * 1000))
    held = site.service.resize("data", SIZE + 4 * UNIT)
    done = site.finish(site.snapshot("data"))
    equal(site.point(done.point, "data"), content(held))
    assert content(held)[SIZE + UNIT :][:3] == b"end"


class FullDisk:
    """The disk that the volumes are on, while it has no room for what is patched to need it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.full = False
        self.refused = 0
        self._patch = patch

    def needed_by(self, holder: object, name: str) -> None:
        right = getattr(holder, name)

        def limited(*arguments: object, **more: object) -> object:
            if self.full:
                self.refused += 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return right(*arguments, **more)

        self._patch.setattr(holder, name, limited)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FullDisk:
    return FullDisk(monkeypatch)


@pytest.mark.parametrize(
    ("holder", "name"), [(held_module, "write_record"), (BlockIds, "keep"), (BlockIds, "adopt"), (Epochs, "drop")]
)
def test_a_point_that_cannot_be_noted_is_not_committed_again(
    site: Site, disk: FullDisk, holder: object, name: str
) -> None:
    one, two = (site.service.create(name, SIZE, "vault") for name in ("one", "two"))
    site.write(one)
    site.write(two)
    site.finish(site.snapshot("one", "two"))
    site.write(one)
    was = content(one)
    first = site.snapshot("one", "two")
    disk.needed_by(holder, name)
    disk.full = True
    until(lambda: disk.refused > 3)
    assert "No space left" in site.service.problem(one)
    disk.full = False
    if name != "write_record":
        # One after it counts on what is to be noted.
        site.write(one, 3)
        disk.full = True
        now, second = content(one), site.snapshot("one")
        until(lambda: disk.refused > 6)
        assert site.state(second).state is SnapshotState.PENDING
        disk.full = False
        done = site.finish(second)
        equal(site.point(done.point, "one"), now)
    done = site.finish(first)
    until(lambda: site.service.problem(one) == "")
    equal(site.point(done.point, "one"), was)
    until(lambda: one.epochs.open == two.epochs.open == [])
    assert len(site.world.open().points()[0]) == (2 if name == "write_record" else 3)


@pytest.mark.parametrize("lineage", ["none", "an earlier point"])
@pytest.mark.parametrize("end", ["killed", "unanswered"])
def test_a_point_that_nobody_was_told_of_is_not_made_again(site: Site, disk: FullDisk, lineage: str, end: str) -> None:
    """The service ended when the vault had the point, and the volumes did not know it; or the vault's answer never came. What follows counts on
    the ids of that point.
    """
    names = ("one", "two")
    one, two = (site.service.create(name, SIZE, "vault") for name in names)
    if lineage != "none":
        site.write(one), site.write(two)
        site.finish(site.snapshot(*names))
    points = len(site.world.open().points()[0])
    site.write(one), site.write(two)
    was = {name: content(held) for name, held in zip(names, (one, two), strict=True)}
    if end == "killed":
        disk.needed_by(HeldVolume, "complete_snapshot")
        disk.full = True
        first = site.snapshot(*names)
        until(lambda: disk.refused > 0)
    else:
        site.store.fail("put", "points/", lost=True, error=lambda: ConnectionError("no answer"))
        site.down("put", "points/")
        first = site.snapshot(*names)
        until(lambda: "no answer" in site.service.problem(site.service.directory.get("one")))
    del one, two
    site.service.stop()
    disk.full = False
    site.up()
    site.service = site.begin()
    done = site.finish(first)
    assert site.state(first).attempt is None
    assert len(site.world.open().points()[0]) == points + 1
    for name in names:
        equal(site.point(done.point, name), was[name])
    assert done.read > 0
    assert done.stored > 0
    one = site.service.directory.get("one")
    site.write(one, 3)
    done = site.finish(site.snapshot("one"))
    assert not done.full
    equal(site.point(done.point, "one"), content(one))


@pytest.mark.parametrize("other", ["knows its point", "is gone", "is gone, and so is the point"])
def test_a_volume_that_alone_was_not_told_of_its_point_is_told(
    site: Site, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """The service was killed between two volumes of a group."""
    one, two = (site.service.create(name, SIZE, "vault") for name in ("one", "two"))
    site.write(one), site.write(two)
    was = content(two)
    right = HeldVolume.complete_snapshot

    def killed(self: HeldVolume, *of: Any, **stored: Any) -> None:
        if self.name == "two":
            raise OSError("killed")
        right(self, *of, **stored)

    with monkeypatch.context() as patch:
        patch.setattr(HeldVolume, "complete_snapshot", killed)
        first = site.snapshot("one", "two")
        until(lambda: "killed" in site.service.problem(two))
        if other != "knows its point":
            site.service.delete_for_good("one")
        del one, two
        site.service.stop()
    if other.endswith("the point"):
        for stamp in site.world.store.list("points/"):
            site.world.store.delete(stamp.name)
    site.service = site.begin()
    two = site.service.directory.get("two")
    until(lambda: not two.record.pending)
    done = next(one for one in two.record.snapshots if one.id == first.id)
    if other.endswith("the point"):
        assert done.state is SnapshotState.FAILED
        assert done.problem == "one has no part of it any more, and its point is not there"
        assert not two.record.suspect
    else:
        assert done.state is SnapshotState.COMPLETED
        equal(site.point(done.point, "two"), was)
        assert len(site.world.open().points()[0]) == 1
    site.write(two, 3)
    equal(site.point(site.finish(site.snapshot("two")).point, "two"), content(two))


@pytest.mark.parametrize("lost", ["the point", "the ids"])
def test_an_attempt_that_came_to_nothing_is_made_again(site: Site, lost: str) -> None:
    held = site.service.create("data", SIZE, "vault")
    site.write(held)
    site.finish(site.snapshot("data"))
    site.write(held)
    was = content(held)
    site.store.fail("put", "points/", lost=lost == "the ids", error=lambda: ConnectionError("no answer"))
    site.down("put", "points/")
    first = site.snapshot("data")
    until(lambda: "no answer" in site.service.problem(held))
    assert site.state(first).attempt is not None
    files = held.files
    del held
    site.service.stop()
    if lost == "the ids":
        os.truncate(files.ids_delta, 100)
    site.up()
    site.service = site.begin()
    held = site.service.directory.get("data")
    equal(site.point(site.finish(first).point, "data"), was)
    site.write(held, 3)
    equal(site.point(site.finish(site.snapshot("data")).point, "data"), content(held))
    assert len(site.world.open().points()[0]) == (4 if lost == "the ids" else 3)


def test_what_cannot_be_discarded_keeps_no_other_waiting(
    site: Site, disk: FullDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that brings snapshots to the vault outlives whatever it meets."""
    monkeypatch.setattr(settling, "_VOUCHING", 0.05)
    held = site.service.create("data", SIZE, "vault")
    site.write(held)
    disk.needed_by(HeldVolume, "discard_snapshot")
    disk.full = True
    lost = site.service.snapshot(SnapshotRequest(["data"], vouching=True))
    until(lambda: disk.refused > 1)
    assert "No space left" in site.service.problem(held)
    disk.full = False
    assert site.finish(lost).state is SnapshotState.FAILED
    done = site.finish(site.snapshot("data"))
    equal(site.point(done.point, "data"), content(held))


def test_nobody_vouches_for_a_snapshot_that_has_failed(site: Site) -> None:
    site.service.create("data", SIZE, "vault")
    snapshot = site.service.snapshot(SnapshotRequest(["data"], vouching=True))
    site.service.discard(snapshot.id, "it took too long")
    with pytest.raises(FailedError, match="it took too long"):
        site.service.vouch(snapshot.id, {"data": Consistency.FILESYSTEM}, {})
    assert site.state(snapshot).achieved == "crash"


def test_a_snapshot_on_its_way_is_not_discarded_and_loses_nothing_by_another(site: Site) -> None:
    held = site.service.create("data", SIZE, "vault")
    site.write(held)
    site.finish(site.snapshot("data"))
    site.write(held)
    reached, go_on = threading.Event(), threading.Event()

    def slow() -> StoreUnavailable:
        reached.set()
        assert go_on.wait(20)
        return StoreUnavailable("the store was slow")

    site.store.faults.append(Fault("put", "points/", times=1, error=slow))
    first = site.snapshot("data")
    assert reached.wait(20)
    second = site.service.snapshot(SnapshotRequest(["data"], vouching=True))
    site.service.discard(first.id, "somebody else's")
    site.service.discard(second.id, "nobody vouches for it")
    go_on.set()
    assert site.finish(first).state is SnapshotState.COMPLETED
    assert site.state(second).state is SnapshotState.FAILED
    site.write(held, 1)
    done = site.finish(site.snapshot("data"))
    equal(site.point(done.point, "data"), content(held))


def test_a_snapshot_taken_while_another_ends_leaves_both_on_record(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    held = site.service.create("data", SIZE, "vault")
    site.write(held)
    right, reached, go_on = held_module.write_record, threading.Event(), threading.Event()

    def slow(files: VolumeFiles, record: VolumeRecord) -> None:
        if any(one.state is SnapshotState.COMPLETED for one in record.snapshots) and not reached.is_set():
            reached.set()
            assert go_on.wait(20)
        right(files, record)

    monkeypatch.setattr(held_module, "write_record", slow)
    first = site.snapshot("data")
    assert reached.wait(20)
    taken: list[Snapshot] = []
    taker = threading.Thread(target=lambda: taken.append(site.snapshot("data")))
    taker.start()
    until(lambda: len(held.epochs.open) == 2)
    time.sleep(0.1)
    go_on.set()
    taker.join()
    assert site.finish(first).state is site.finish(taken[0]).state is SnapshotState.COMPLETED
    site.restart()
    assert {one.state for one in site.service.directory.get("data").record.snapshots} == {SnapshotState.COMPLETED}


def test_what_a_discarded_snapshot_changed_is_in_the_next(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is sent while whoever discards has only just put that on record."""
    held = site.service.create("data", SIZE, "vault")
    site.write(held)
    site.finish(site.snapshot("data"))
    site.write(held)
    first = site.service.snapshot(SnapshotRequest(["data"], vouching=True))
    site.write(held, 1)
    second = site.snapshot("data")
    was, right, sent = content(held), Epochs.drop, threading.Event()

    def late(self: Epochs, epoch: int) -> None:
        if threading.current_thread() is discarder:
            assert sent.wait(20)
        right(self, epoch)

    monkeypatch.setattr(Epochs, "drop", late)
    discarder = threading.Thread(target=site.service.discard, args=(first.id, "nobody vouches for it"))
    discarder.start()
    until(lambda: site.state(first).state is SnapshotState.FAILED)
    site.service._uploader.wake()
    done = site.finish(second)
    sent.set()
    discarder.join()
    assert done.state is SnapshotState.COMPLETED
    equal(site.point(done.point, "data"), was)
    assert held.epochs.open == []


def test_a_snapshot_behind_one_that_is_discarded_goes_at_once(site: Site) -> None:
    held = site.service.create("data", SIZE, "vault")
    first = site.service.snapshot(SnapshotRequest(["data"], vouching=True))
    second = site.snapshot("data")
    until(lambda: all(one.durable for one in held.record.pending))
    time.sleep(0.1)
    site.service.discard(first.id, "nobody vouches for it")
    assert site.finish(second).state is SnapshotState.COMPLETED


def test_a_group_waits_for_the_word_about_each_of_its_volumes(site: Site) -> None:
    names = ["data", "log"]
    for name in names:
        site.write(site.service.create(name, SIZE, "vault"))
    asked = {"data": Consistency.FILESYSTEM}
    snapshot = site.service.snapshot(SnapshotRequest(names, asked, vouching=True))
    data, log = (site.service.directory.get(name) for name in names)
    data.vouch(snapshot.id, "filesystem", ())
    assert next_group([data, log], ()) == ([], [])
    quiet = Quieted("fsfreeze:/srv", "filesystem", 0.1, (1.0, 2.0), (3.0, 4.0))
    site.service.vouch(snapshot.id, {"data": Consistency.FILESYSTEM}, {"data": (quiet,)})
    done = site.finish(snapshot)
    point = next(p for p in site.world.open().points()[0] if p.id == done.point)
    assert {m.name: (m.asked, m.achieved, m.brackets) for m in point.body.members} == {
        "data": ("filesystem", "filesystem", (quiet,)),
        "log": ("crash", "crash", ()),
    }


def test_one_volume_that_was_not_still_enough_fails_its_group(site: Site) -> None:
    for name in ("data", "log"):
        site.service.create(name, SIZE, "vault")
    asked = dict.fromkeys(("data", "log"), Consistency.FILESYSTEM)
    snapshot = site.service.snapshot(SnapshotRequest(["data", "log"], asked, vouching=True))
    with pytest.raises(ConsistencyError, match="crash consistency reached, filesystem asked for: log"):
        site.service.vouch(snapshot.id, {"data": Consistency.FILESYSTEM}, {})
    assert {found.state for _, found in site.service.find(snapshot.id)} == {SnapshotState.FAILED}


def test_whoever_vouches_first_is_believed(site: Site) -> None:
    held = site.service.create("data", SIZE, "vault")
    snapshot = site.service.snapshot(SnapshotRequest(["data"], vouching=True))
    site.service.vouch(snapshot.id, {}, {})
    held.discard_snapshot(snapshot, "as it was when somebody looked")
    assert site.finish(snapshot).state is SnapshotState.COMPLETED
    held.fail_snapshot(snapshot, "too late", compare=True)
    assert site.state(snapshot).state is SnapshotState.COMPLETED
    assert not held.record.suspect


def test_a_reason_to_compare_that_comes_between_stays(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    held = site.service.create("data", SIZE, "vault")
    site.finish(site.snapshot("data"))
    right = sealing.seal_together

    def between(*of: Any) -> tuple[float, float]:
        taken = right(*of)
        held.update(suspect="the one before has just failed")
        return taken

    with monkeypatch.context() as patch:
        patch.setattr(sealing, "seal_together", between)
        assert not site.finish(site.snapshot("data")).full
    assert held.record.suspect
    assert site.finish(site.snapshot("data")).full
    assert not held.record.suspect


def test_a_group_half_on_record_has_lost_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        site.service.create(name, SIZE, "vault")
    right, fold = HeldVolume.put_on_record, Uploader._fold
    looking, reached = threading.Event(), threading.Event()

    def slow(self: HeldVolume, snapshot: Snapshot, compared: str) -> None:
        if self.name == "two":
            reached.set()
            time.sleep(0.3)
        right(self, snapshot, compared)

    def looks(self: Uploader, volumes: Any) -> None:
        fold(self, volumes)
        looking.set()
        assert reached.wait(20)

    monkeypatch.setattr(HeldVolume, "put_on_record", slow)
    monkeypatch.setattr(Uploader, "_fold", looks)
    site.service._uploader.wake()
    assert looking.wait(20)
    assert site.finish(site.snapshot("one", "two")).state is SnapshotState.COMPLETED


@pytest.mark.parametrize(
    ("order", "holder", "name"), [("resize", growing, "write_record"), ("delete", RecycleBin, "make")]
)
def test_an_order_that_fails_leaves_a_volume_that_is_filled_in(
    site: Site, disk: FullDisk, order: str, holder: object, name: str
) -> None:
    dependent(site, "data")
    disk.needed_by(holder, name)
    disk.full = True
    with pytest.raises((OSError, FailedError), match=r"No space left|cannot be resized"):
        site.service.resize("data", SIZE + UNIT) if order == "resize" else site.service.delete("data")
    disk.full = False
    site.up()
    held = site.service.directory.get("data")
    until(lambda: held.missing == 0)
    # It is open again: a power loss would not find it put away in order.
    assert not held.epochs.header.read()[0]
    assert held.record.size == SIZE


@pytest.mark.parametrize(
    ("order", "holder", "name"),
    [
        ({"verb": "snapshot", "names": ["data"], "tags": {}}, held_module, "write_record"),
        ({"verb": "resize", "name": "data", "size": SIZE + UNIT}, growing, "write_record"),
        ({"verb": "delete", "name": "data"}, RecycleBin, "make"),
        ({"verb": "create", "name": "more", "size": SIZE, "vault": "vault"}, opening, "write_record"),
    ],
    ids=lambda value: value["verb"] if isinstance(value, dict) else "",
)
def test_an_order_that_finds_no_room_says_where_and_what_to_do(
    site: Site, disk: FullDisk, order: dict[str, object], holder: object, name: str
) -> None:
    site.service.create("data", SIZE, "vault")
    disk.needed_by(holder, name)
    disk.full = True
    with pytest.raises(FailedError, match="No space left") as failed:
        Orders(site.service, lambda name: set(), lambda name: "", lambda: None).answer(order)
    disk.full = False
    assert str(site.root / "volumes") in failed.value.on
    assert "room" in failed.value.remedy


def test_a_volume_that_could_not_be_made_larger_keeps_its_point(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    origin, was = site.made()
    site.down("read", "packs/")

    def full(files: VolumeFiles, record: VolumeRecord, size: int) -> None:
        raise FailedError("the volume cannot be resized (No space left on device)")

    monkeypatch.setattr(directory_module, "grow_volume", full)
    with pytest.raises(FailedError, match="could not be made larger"):
        site.service.create("data", SIZE + UNIT, "vault", origin)
    vault = site.world.open()
    point = vault.points()[0][0]
    with pytest.raises(UsageError, match="the volume data on here is filled in"):
        vault.expiry().forget(point.wid, point.sid)
    site.up()
    until(lambda: site.service.directory.get("data").missing == 0)
    equal(content(site.service.directory.get("data")), was)


def test_a_list_has_the_last_snapshot_of_each_volume(site: Site) -> None:
    site.service.create("data", SIZE, "vault")
    taken = [site.finish(site.snapshot("data")) for _ in range(3)]
    orders = Orders(site.service, lambda name: set(), lambda name: "", lambda: None)
    told: Any = orders.answer({"verb": "list"})["result"]
    assert [one["id"] for one in told["volumes"][0]["snapshots"]] == [taken[-1].id]
    told = orders.answer({"verb": "show", "name": "data"})["result"]
    assert [one["id"] for one in told["snapshots"]] == [one.id for one in taken]


def test_a_text_that_is_none_is_not_the_fault_of_another_version(site: Site) -> None:
    """A command line may have any bytes among its words."""
    orders = Orders(site.service, lambda name: set(), lambda name: "", lambda: None)
    with pytest.raises(UsageError, match="no text in UTF-8") as told:
        orders.answer({"verb": "show", "name": "a\udc80"})
    assert "version" not in told.value.remedy


@pytest.mark.parametrize(
    "wrong",
    [
        {"names": []},
        {"names": "s1"},
        {"names": ["s1", "s1"]},
        {"names": [""]},
        {"names": [1]},
        {"names": [["s1"]]},
        {"names": None},
        {"tags": {"a": [1]}},
        {"tags": {"a": None}},
        {"tags": {"": "x"}},
        {"tags": {"a": "\ud800"}},
        {"tags": [1]},
        {"tags": None},
        {"asked": {"s1": "somehow"}},
        {"asked": {"s1": 1}},
        {"asked": {"other": "crash"}},
        {"vouching": "no"},
        {"verb": ["snapshot"]},
    ],
    ids=str,
)
def test_an_order_that_makes_no_sense_is_refused_and_leaves_no_trace(site: Site, wrong: dict[str, object]) -> None:
    site.service.create("s1", SIZE, "vault")
    orders = Orders(site.service, lambda name: set(), lambda name: "", lambda: None)
    right: dict[str, object] = {"verb": "snapshot", "names": ["s1"], "tags": {"a": "b"}, "asked": {"s1": "crash"}}
    with pytest.raises(UsageError) as refused:
        orders.answer(right | wrong)
    assert refused.value.remedy
    assert site.service.directory.get("s1").record.snapshots == ()
    site.restart()
    orders = Orders(site.service, lambda name: set(), lambda name: "", lambda: None)
    told: Any = orders.answer(right)["result"]
    assert site.finish(site.service.find(told["id"])[0][1]).tags == {"a": "b"}


@pytest.mark.parametrize("wrong", [{"achieved": "somehow"}, {"expected": float("nan")}, {"leaving": (0, float("inf"))}])
def test_what_is_vouched_for_can_be_read_again(site: Site, wrong: dict[str, object]) -> None:
    held = site.service.create("s1", SIZE, "vault")
    taken = site.service.snapshot(SnapshotRequest(["s1"], vouching=True))
    orders = Orders(site.service, lambda name: set(), lambda name: "", lambda: None)
    quiet = {"bracket": "fsfreeze:/x", "achieved": "filesystem", "expected": 0.1, "entering": (0, 1), "leaving": (2, 3)}
    with pytest.raises(UsageError):
        orders.answer({"verb": "vouch", "id": taken.id, "achieved": {"s1": "crash"}, "quiet": {"s1": [quiet | wrong]}})
    assert held.record.snapshots[0].quiet == ()
    site.restart()
    assert site.service.directory.broken == {}
    site.service.vouch(taken.id, {}, {})
    assert site.finish(taken).state is SnapshotState.COMPLETED


def test_the_recycle_bin_lets_go_of_points(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    dependent(site, "data")
    site.service.delete("data")
    site.service.empty_bin()
    assert len(pins(site)) == 1, "it can be taken back"
    monkeypatch.setattr(recycling, "RECYCLE", -1.0)
    site.down("delete", "pins/")
    site.service.empty_bin()
    assert [record.name for record in site.service.directory.deleted()] == ["data"]
    site.up()
    site.service.empty_bin()
    assert site.service.directory.deleted() == []
    assert pins(site) == []


def test_what_is_deleted_for_good_lets_go_of_its_point_at_once(site: Site) -> None:
    dependent(site, "data")
    origin = site.service.directory.get("data").record.origin
    site.service.delete("data")
    site.up()
    site.down("read", "packs/")
    site.service.create("data", 0, "vault", origin)
    site.down("delete", "pins/")
    with pytest.raises(FailedError, match="is in the recycle bin"):
        site.service.delete_for_good("data")
    assert len(site.service.directory.deleted()) == 2
    site.up()
    site.down("read", "packs/")
    site.service.undelete("data")
    site.service.delete_for_good("data")
    assert len(site.service.directory.deleted()) == 1, "an older one of its name stays"
    site.service.delete_for_good("data")
    assert pins(site) == []
    assert os.listdir(site.service.directory.root / "deleted") == []
    with pytest.raises(UsageError, match="no such volume"):
        site.service.delete_for_good("data")


def test_a_group_that_cannot_be_put_on_record_leaves_nothing_sealed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (site.service.create(name, SIZE, "vault") for name in ("one", "two"))
    site.finish(site.snapshot("one", "two"))
    right = HeldVolume.put_on_record

    def full(self: HeldVolume, snapshot: Snapshot, compared: str) -> None:
        if self.name == "two":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        right(self, snapshot, compared)

    with monkeypatch.context() as patch:
        patch.setattr(HeldVolume, "put_on_record", full)
        for _ in range(10):
            site.write(one, 2)
            site.write(two, 2)
            with pytest.raises(OSError, match="No space left"):
                site.snapshot("one", "two")
    assert one.epochs.open == two.epochs.open == []
    until(lambda: not list(two.files.directory.glob("ov.*")))
    was = content(one), content(two)
    done = site.finish(site.snapshot("one", "two"))
    equal(site.point(done.point, "one"), was[0])
    equal(site.point(done.point, "two"), was[1])


def test_a_group_goes_to_one_vault(site: Site) -> None:
    """Nothing is sealed where its volumes go to several: the first one's vault is not the place for the other's content."""
    one, other = site.service.create("one", SIZE, "vault"), site.service.create("other", SIZE, "elsewhere")
    with pytest.raises(UsageError, match="one to vault, other to elsewhere"):
        site.snapshot("one", "other")
    assert [*one.record.snapshots, *other.record.snapshots] == []
    assert one.epochs.open == other.epochs.open == []
    assert site.finish(site.snapshot("other")).state is SnapshotState.COMPLETED


def test_what_a_power_loss_leaves_is_told_until_everything_was_compared(site: Site) -> None:
    held = site.service.create("data", SIZE, "vault")
    site.write(held)
    site.finish(site.snapshot("data"))
    site.crash("data")
    # Another start of the service mends nothing.
    for _ in range(2):
        assert "compares everything" in site.service.problem(site.service.directory.get("data"))
        site.restart()
    done = site.finish(site.snapshot("data"))
    assert done.full
    assert site.service.problem(site.service.directory.get("data")) == ""


@pytest.mark.parametrize("power", ["stays", "fails"])
@pytest.mark.parametrize("left", [0, UNIT])
@pytest.mark.parametrize("kind", ["data", "overlay"])
def test_content_that_was_cut_short_is_never_given_out_as_zeros(site: Site, kind: str, left: int, power: str) -> None:
    """The volume is not opened, whatever is known of it; the other one is. With its content whole again nothing is lost."""
    held, other = site.service.create("data", SIZE, "vault"), site.service.create("other", SIZE, "vault")
    site.write(held), site.write(other)
    site.down("put", "packs/")
    pending = site.snapshot("data")
    site.write(held)
    held.volume.flush()
    until(lambda: site.state(pending).durable)
    was, others, files = content(held), content(other), held.files
    path = files.data if kind == "data" else files.overlay(held.volume.gate.phase.epoch)
    del held, other
    site.service.stop()
    if power == "fails":
        LiveHeader(files.live).write(clean=False, epoch=1, boot="another")
    whole = path.read_bytes()
    os.truncate(path, left)
    for _ in range(2):
        site.service = site.begin()
        with pytest.raises(FailedError, match=f"{path.name} has {left} of {SIZE} bytes") as refused:
            site.service.directory.get("data")
        assert "restore" in refused.value.remedy
        equal(content(site.service.directory.get("other")), others)
        site.service.stop()
    path.write_bytes(whole)
    site.service = site.begin()
    equal(content(site.service.directory.get("data")), was)


def test_an_overlay_that_never_counted_may_be_short(site: Site) -> None:
    """The power failed after it was made, and before anything in it was flushed."""
    held = site.service.create("data", SIZE, "vault")
    site.write(held)
    held.volume.flush()
    was, files = content(held), held.files
    del held
    site.service.stop()
    for path in (files.overlay(2), files.overlay_sectors(2), files.dirty(2)):
        path.touch()
    LiveHeader(files.live).write(clean=False, epoch=2, boot="another")
    site.service = site.begin()
    equal(content(site.service.directory.get("data")), was)


def _missing(path: Path, patch: pytest.MonkeyPatch) -> None:
    path.unlink()


def _short(path: Path, patch: pytest.MonkeyPatch) -> None:
    os.truncate(path, 1)


def _unreadable(path: Path, patch: pytest.MonkeyPatch) -> None:
    """The disk does not give back what is in it; what is written anew gets another place."""
    right, was = os.pread, path.stat()

    def pread(descriptor: int, length: int, offset: int) -> bytes:
        now, data = os.fstat(descriptor), right(descriptor, length, offset)
        if (now.st_ino, now.st_mtime_ns) == (was.st_ino, was.st_mtime_ns) and data.count(0) < length:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return data

    patch.setattr(os, "pread", pread)


@pytest.mark.parametrize(
    ("kind", "harm"),
    [
        *((kind, harm) for kind in ("dirty", "states", "sectors", "ov.map") for harm in (_missing, _short)),
        # There is nothing in the map of sectors that could be unreadable, as no block is partial.
        *((kind, _unreadable) for kind in ("dirty", "states", "ov.map")),
    ],
)
def test_a_lost_map_costs_a_comparison_and_no_other_volume(
    site: Site, monkeypatch: pytest.MonkeyPatch, kind: str, harm: Callable[[Path, pytest.MonkeyPatch], None]
) -> None:
    """What was flushed is there, the next snapshot is right, and the other volume never notices."""
    held, other = site.service.create("data", SIZE, "vault"), site.service.create("other", SIZE, "vault")
    site.write(held), site.write(other)
    site.finish(site.snapshot("data"))
    site.down("put", "packs/")
    site.write(held)
    sealed = content(held)
    pending = site.snapshot("data")
    site.write(held)
    held.volume.flush()
    until(lambda: site.state(pending).durable)
    was, others, epoch = content(held), content(other), held.volume.gate.phase.epoch
    files = held.files
    del held, other
    site.service.stop()
    maps = {
        "states": files.states,
        "sectors": files.sectors,
        "dirty": files.dirty(epoch),
        "ov.map": files.overlay_sectors(epoch),
    }
    path = maps[kind]
    assert path.exists()
    harm(path, monkeypatch)
    site.service = site.begin()
    held, other = site.service.directory.get("data"), site.service.directory.get("other")
    equal(content(held), was)
    equal(content(other), others)
    assert "compares everything" in held.record.suspect
    assert other.record.suspect == ""
    site.up()
    assert site.finish(pending).state is SnapshotState.COMPLETED
    equal(site.point(site.state(pending).point, "data"), sealed)
    done = site.finish(site.snapshot("data"))
    assert done.full
    equal(site.point(done.point, "data"), was)


@pytest.mark.parametrize("cut", [0, None])
def test_a_short_map_of_a_sealed_epoch_loses_no_change(site: Site, cut: int | None) -> None:
    held = site.service.create("data", SIZE, "vault")
    site.write(held)
    site.finish(site.snapshot("data"))
    site.down("put", "packs/")
    site.write(held)
    pending, was = site.snapshot("data"), content(held)
    path = held.files.dirty(pending.epoch)
    del held
    site.service.stop()
    path.unlink() if cut is None else os.truncate(path, cut)
    site.service = site.begin()
    site.up()
    done = site.finish(pending)
    assert done.state is SnapshotState.FAILED
    after = site.finish(site.snapshot("data"))
    assert after.full
    equal(site.point(after.point, "data"), was)


def test_maps_that_were_half_made_anew_are_made_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """There was no room for the rest of them, or the service was killed: at the next start they are there, long enough, and say too little."""
    held = site.service.create("data", SIZE, "vault")
    site.write(held, 50)
    site.down("put")
    pending = site.snapshot("data")
    site.write(held, 50)
    held.volume.flush()
    was, directory = content(held), held.files.directory
    del held
    site.service.stop()
    os.truncate(next(directory.glob("ov.*.map")), 10)
    filled: list[int] = []
    fill = opening.SectorMap.fill

    def full(self: SectorMap, start: int, end: int, value: int) -> None:
        if len(filled) >= 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        filled.append(start)
        fill(self, start, end, value)

    with monkeypatch.context() as patch:
        patch.setattr(SectorMap, "fill", full)
        # The reason is kept, and no file of it is kept open with it.
        gc.disable()
        try:
            site.service = site.begin()
            assert "No space left" in str(site.service.directory.broken["data"])
            with pytest.raises(FailedError, match="No space left"):
                site.service.directory.get("data")
            assert not opened(str(directory))
        finally:
            gc.enable()
        assert filled
        site.service.stop()
    site.service = site.begin()
    held = site.service.directory.get("data")
    equal(content(held), was)
    site.up()
    until(lambda: not held.record.pending)
    assert site.state(pending).state is SnapshotState.COMPLETED
    equal(site.point(site.finish(site.snapshot("data")).point, "data"), was)


def test_a_map_of_changes_that_was_half_made_anew_is_made_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    held = site.service.create("data", SIZE, "vault")
    site.write(held, 3)
    site.finish(site.snapshot("data"))
    until(lambda: not site.service.directory.get("data").epochs.open)
    held.volume.write(8 * UNIT, memoryview(b"N" * 4096))
    was, path = content(held), held.files.dirty(held.volume.gate.phase.epoch)
    del held
    site.service.stop()
    os.truncate(path, 3)
    with monkeypatch.context() as patch:
        patch.setattr(BlockMap, "fill", lambda *arguments: no_room())
        site.service = site.begin()
        assert "No space left" in str(site.service.directory.broken["data"])
        site.service.stop()
    site.service = site.begin()
    done = site.finish(site.snapshot("data"))
    assert done.full
    equal(site.point(done.point, "data"), was)


def _gone(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    os.truncate(path, 40)


def _zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[next(at for at, byte in enumerate(data) if byte)] ^= 1
    path.write_bytes(data)


def _swapped(path: Path) -> None:
    """As valid as can be, and not those of the last point."""
    data = path.read_bytes()
    ids = [data[at : at + 32] for at in range(0, len(data), 32)]
    one, other = [number for number, identity in enumerate(ids) if identity.strip(b"\0")][:2]
    ids[one], ids[other] = ids[other], ids[one]
    path.write_bytes(b"".join(ids))


@pytest.mark.parametrize("harm", [_gone, _cut, _zeroed, _flipped, _swapped])
@pytest.mark.parametrize("origin", ["written here", "made of a point"])
def test_what_is_noted_of_the_last_point_is_verified_before_it_is_trusted(
    site: Site, harm: Callable[[Path], None], origin: str
) -> None:
    """Where it is damaged the snapshot fails, and the next one reads everything: no point is ever made of ids that are not those of the last."""
    if origin == "written here":
        held = site.service.create("data", SIZE, "vault")
        site.write(held, 400)
        site.finish(site.snapshot("data"))
    else:
        held = dependent(site, "data")
    ids = held.files.ids
    del held
    site.service.stop()
    harm(ids)
    site.up()
    site.service = site.begin()
    held = site.service.directory.get("data")
    site.write(held, 3)
    was = content(held)
    lost = site.finish(site.snapshot("data"))
    assert (lost.state, lost.point) == (SnapshotState.FAILED, "")
    assert "what was noted here of the volume's last point is damaged" in lost.problem
    assert "what was noted here" in held.problem
    done = site.finish(site.snapshot("data"))
    assert done.full
    equal(site.point(done.point, "data"), was)
    site.write(held, 3)
    done = site.finish(site.snapshot("data"))
    assert not done.full
    equal(site.point(done.point, "data"), content(held))


def test_damage_that_nobody_thought_of_is_one_volumes(site: Site) -> None:
    """It is listed with the reason; the other one is served."""
    other = site.service.create("other", SIZE, "vault")
    files = site.service.create("data", SIZE, "vault").files
    site.write(other)
    others = content(other)
    site.service.stop()
    body = struct.pack("<BBxxIQQ", 99, 0, 0, 0, 1)
    files.checkpoint.write_bytes(b"SHCKPT01" + struct.pack("<I16s", 1, blake3(body).digest(16)) + body)
    LiveHeader(files.live).write(clean=False, epoch=1, boot="another")
    site.service = site.begin()
    equal(content(site.service.directory.get("other")), others)
    with pytest.raises(FailedError):
        site.service.directory.get("data")
    assert site.service.directory.names() == ["other"]


def no_room() -> None:
    raise NoRoom(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("room", [True, False])
@pytest.mark.parametrize("order", ["resize", "delete"])
def test_nothing_goes_on_with_a_volume_that_is_put_away(
    site: Site, monkeypatch: pytest.MonkeyPatch, order: str, room: bool
) -> None:
    """What was redirected beside the data is still being folded away when somebody else opens the volume, also where there was no room to put it
    away in order.
    """
    held = site.service.create("data", SIZE, "vault")
    site.write(held, 100)
    with monkeypatch.context() as patch:
        site.down("put", "packs/")
        snapshot = site.snapshot("data")
        site.write(held, 100)
        folded: list[LiveVolume] = []
        right = LiveVolume.fold_block

        def slow(self: LiveVolume, overlay: Overlay, block: int, buffer: memoryview) -> int:
            folded.append(self)
            time.sleep(0.05)
            return right(self, overlay, block, buffer)

        patch.setattr(LiveVolume, "fold_block", slow)
        site.up()
        assert site.finish(snapshot).state is SnapshotState.COMPLETED
        until(lambda: len(folded) > 0)
        if not room:
            patch.setattr(held.volume, "flush", no_room)
        if order == "resize":
            with contextlib.nullcontext() if room else pytest.raises(NoRoom):
                site.service.resize("data", 2 * SIZE)
            again = site.service.directory.get("data")
        else:
            site.service.delete("data")
            again = site.service.undelete("data")
        assert again is not held
        gone = folded.count(held.volume)
        for step in (held.epochs.fold, lambda: held.epochs.drop(1), lambda: held.epochs.settle(1), held.epochs.prepare):
            with pytest.raises(PutAway):
                step()
        site.write(again, 100)
        now = content(again)
        assert folded.count(held.volume) == gone
    until(lambda: not again.volume.gate.phase.overlays)
    equal(content(again), now)
    done = site.finish(site.snapshot("data"))
    equal(site.point(done.point, "data"), now)


def test_a_snapshot_survives_a_power_loss_while_another_is_sent(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (site.service.create(name, SIZE, "vault") for name in ("one", "other"))
    site.write(one)
    site.write(other)
    sending, go, right = threading.Event(), threading.Event(), uploader.commit

    def slow(*of: Any) -> Any:
        sending.set()
        assert go.wait(20)
        return right(*of)

    monkeypatch.setattr(uploader, "commit", slow)
    site.snapshot("one")
    assert sending.wait(20)
    second = site.snapshot("other")
    until(lambda: site.state(second).durable)
    assert site.state(second).state is SnapshotState.PENDING
    go.set()
    assert site.finish(second).state is SnapshotState.COMPLETED
