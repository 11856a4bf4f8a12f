"""What expiry may not let go of, whatever goes wrong around it."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC
from pathlib import Path

import pytest

from safehold.adapters.files.source import FilesSource, MountMemory
from safehold.adapters.files.walk import Rules
from safehold.app.backup import BackupOptions, back_up, back_up_together
from safehold.app.expire import ExpiryPlan, apply_expiry, note_verified, plan_expiry
from safehold.app.host import Host
from safehold.model.context import Context
from safehold.model.errors import UsageError
from safehold.model.progress import Silent
from safehold.model.resource import ResourceRef
from safehold.objects.memory import MemoryStore
from safehold.policies.retention import KeepRules
from safehold.vault.envelope import encode
from safehold.vault.names import commit_name
from safehold.vault.records import NoteBody, Parameters, PointObject
from safehold.vault.sealing import seal_body
from safehold.vault.vault import Vault
from safehold.vault.writers import WriterKey
from tests.clocks import FakeClock
from tests.faults.test_stolen_writer import Thief
from tests.worlds import BLOCK, BytesDisk, BytesSource, World

DAY = 86400.0
HOST = Host("host", "id", "boot")


class Told(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def clock() -> FakeClock:
    """The store's."""
    return FakeClock()


@pytest.fixture
def world(tmp_path: Path, clock: FakeClock) -> World:
    return World(tmp_path / "world", MemoryStore(clock), ctx=Context(clock=clock))


def planned(vault: Vault, patterns: Sequence[str], rules: KeepRules, ctx: Context) -> ExpiryPlan:
    plan = plan_expiry(vault, patterns, rules, vault.store_time(), UTC, ctx)
    note_verified(vault, plan)
    return plan


def left(world: World) -> list[str]:
    return [point.id for point in world.fresh().points()[0]]


def why(plan: ExpiryPlan) -> dict[str, tuple[str, ...]]:
    return {point.id: decision.reasons for point, decision in plan.decisions}


def test_a_point_of_several_resources_expires_only_where_all_of_them_do(world: World, clock: FakeClock) -> None:
    def together(*names: str) -> str:
        clock.sleep(DAY)
        pairs = [(BytesSource(BytesDisk(bytearray(BLOCK))), ResourceRef("volume", name, name)) for name in names]
        return back_up_together(world.open(), pairs, HOST, BackupOptions(), world.ctx)[0].point

    groups = [together("data", "log") for _ in range(3)]
    alone = [together("data") for _ in range(3)]
    vault = world.open()
    plan = planned(vault, ["data"], KeepRules(last=1), world.ctx)
    assert [p.id for p in plan.expiring] == alone[:2]
    assert all("belongs to others too" in why(plan)[one] for one in groups)
    apply_expiry(vault, plan.expiring, world.ctx)
    assert left(world) == [*groups, alone[2]]
    # Who speaks for both lets them go.
    plan = planned(world.open(), ["data", "l*"], KeepRules(last=1), world.ctx)
    assert [p.id for p in plan.expiring] == groups[:2]


def test_a_disk_that_begins_to_fail(
    world: World, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the fourth day on a file cannot be read. Weeks later the last complete point is there."""
    top = tmp_path / "top"
    top.mkdir()
    (top / "well").write_text("well")
    (top / "sick").write_text("sick")
    source = FilesSource(Rules(), MountMemory(tmp_path / "mounts"))
    ref = ResourceRef("tree", "top", str(top))
    readv = os.readv

    def failing(fd: int, buffers: Sequence[memoryview]) -> int:
        if os.readlink(f"/proc/self/fd/{fd}") == str(top / "sick"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return readv(fd, buffers)

    whole = ""
    for day in range(20):
        clock.sleep(DAY)
        (top / "sick").write_text(f"sick on day {day}")
        if day == 3:
            monkeypatch.setattr(os, "readv", failing)
        vault = world.open()
        outcome = back_up(vault, source, ref, HOST, BackupOptions(), world.ctx)
        assert bool(outcome.partial) == (day >= 3)
        whole = whole if outcome.partial else outcome.point
        plan = planned(vault, [], KeepRules(last=7), world.ctx)
        apply_expiry(vault, plan.expiring, world.ctx)
    assert whole in left(world)
    # Three complete ones, of which none was pushed out, and the newest seven.
    assert len(left(world)) == 3 + 7


def test_a_point_that_is_pinned_at_the_last_moment(world: World, clock: FakeClock) -> None:
    """It stays and is told of; the others go in the same run."""
    made = []
    for n in range(4):
        clock.sleep(DAY)
        made.append(world.back_up(b"%d" % n * BLOCK).point)
    told = Told()
    vault = world.open()
    plan = planned(vault, [], KeepRules(last=1), world.ctx)
    pinned = next(p for p in plan.expiring if p.id == made[1])
    vault.expiry().pin(pinned.wid, pinned.sid, NoteBody("pin", 0.0, {}))
    expired = apply_expiry(vault, plan.expiring, replace(world.ctx, progress=told))
    assert [p.id for p in expired] == [made[0], made[2]]
    assert left(world) == [made[1], made[3]]
    assert [line for line in told.warnings if made[1][:8] in line and "depends on this point" in line]


@pytest.fixture
def stolen(world: World, clock: FakeClock) -> WriterKey:
    """The credential of a host that made five points of its own, a day apart; the owner has verified them."""
    writer = world.new_writer("web")
    for n in range(5):
        clock.sleep(DAY)
        world.back_up(b"%d" % n * BLOCK, "web", world.open_writer(writer))
    planned(world.open(), [], KeepRules(last=5), world.ctx)
    clock.sleep(DAY)
    return WriterKey.load(writer.export("somewhere"), on="credential")


def forge(world: World, writer: WriterKey, number: int, clock: FakeClock) -> None:
    """Points whose structure is whole: they take the root of a true one."""
    true = world.open().points()[0][-1]
    for _ in range(number):
        clock.sleep(3000 / number)
        thief = Thief(world, writer)
        name = commit_name(writer.wid, thief.sid)
        sealed = seal_body(thief.secret.session_key, writer.vault, name, encode(true.body))
        thief.put(name, encode(PointObject(thief.key, sealed, thief.certificate)))


def test_a_flood_of_a_stolen_writer_pushes_nothing_out(
    world: World, clock: FakeClock, stolen: WriterKey, tmp_path: Path
) -> None:
    """A thousand sound points within an hour take one place of those that the rule keeps."""
    before = left(world)
    assert len(before) == 5
    forge(world, stolen, 1000, clock)
    vault = world.open()
    plan = planned(vault, [], KeepRules(last=5), world.ctx)
    assert plan.damaged.found == []
    assert len(plan.decisions) == 1005
    assert sum(decision.point.sound for _, decision in plan.decisions) == 1005
    apply_expiry(vault, plan.expiring, world.ctx)
    assert set(before[1:]) <= set(left(world))
    assert len(left(world)) == 5


@pytest.mark.parametrize("wrong", [-10 * 365 * DAY, 10 * 365 * DAY])
@pytest.mark.parametrize(
    ("minimum_age", "rules", "expiring"),
    [
        # Four of the six lie in the window, and the fifth is the one before it.
        (0, KeepRules(window=3.5 * DAY), 1),
        (216_000, KeepRules(last=1), 3),
    ],
)
def test_a_clients_clock_expires_nothing(
    tmp_path: Path, clock: FakeClock, wrong: float, minimum_age: int, rules: KeepRules, expiring: int
) -> None:
    """Neither windows nor the minimum age go by the clock of the machine that applies the rules."""
    world = World(tmp_path, MemoryStore(clock), Parameters(block_size=BLOCK, minimum_age=minimum_age))
    writer = world.new_writer("web")
    for n in range(6):
        clock.sleep(DAY)
        world.back_up(b"%d" % n * BLOCK, "web", world.open_writer(writer))
    points = left(world)
    world.ctx = Context(clock=FakeClock(clock.time + wrong))
    plan = planned(world.open(), [], rules, world.ctx)
    assert [p.id for p in plan.expiring] == points[:expiring]


def test_a_copied_vault_expires_nothing_by_its_times(tmp_path: Path, clock: FakeClock) -> None:
    """Its points have the times of the copying, in whatever order: the rules would keep the one that came last."""
    world = World(tmp_path, MemoryStore(clock), ctx=Context(clock=clock))
    for n in range(4):
        clock.sleep(DAY)
        world.back_up(b"%d" % n * BLOCK, "web")
    assert len(planned(world.open(), [], KeepRules(last=1), world.ctx).expiring) == 3
    copied = MemoryStore(clock)
    stamps = list(world.store.list(""))
    # Whatever lies there but the points, and then these, the newest first.
    for stamp in sorted(stamps, key=lambda one: (one.name.startswith("points/"), -one.time)):
        clock.sleep(0.01)
        copied.put(stamp.name, [world.store.get(stamp.name)])
    vault = world.fresh(copied)
    with pytest.raises(UsageError, match="copied, or its files were touched"):
        planned(vault, [], KeepRules(last=1), world.ctx)
    with pytest.raises(UsageError, match="copied"):
        planned(vault, ["web"], KeepRules(daily=7), world.ctx)
    plan = plan_expiry(vault, [], KeepRules(last=1), vault.store_time(), UTC, world.ctx, any_times=True)
    assert len(plan.expiring) == 3
