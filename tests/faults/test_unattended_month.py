"""A month of unattended runs by an injected clock, with runs killed in between: the history that the rules ask for is there, and restores."""

from __future__ import annotations

import contextlib
import random
from datetime import UTC
from pathlib import Path

from safehold.app.backup import BackupOptions
from safehold.app.host import Host
from safehold.app.service import Job, Memory, Plan, Result, from_source, run_due
from safehold.app.verify import Depth, verify_points
from safehold.model.context import Context
from safehold.model.resource import ResourceRef
from safehold.objects.check import broken_order
from safehold.objects.memory import MemoryStore
from safehold.policies.retention import KeepRules
from safehold.policies.schedule import parse_schedule
from safehold.ports.source import Source
from safehold.testing.fault_store import FaultStore, Killed
from safehold.vault.vault import Vault
from tests.clocks import FakeClock
from tests.worlds import BLOCK, BytesDisk, BytesSource, World, read_back

DAY = 86400.0


def test_a_month(tmp_path: Path) -> None:
    rng = random.Random(11)
    clock = FakeClock(1_795_000_000.0 // DAY * DAY)
    ctx = Context(clock=clock)
    world = World(tmp_path, store=MemoryStore(clock), ctx=ctx)
    disks = {name: bytearray(random.Random(name).randbytes(40 * BLOCK)) for name in ("web", "mail")}
    states: dict[str, set[bytes]] = {name: set() for name in disks}
    results: list[Result] = []
    killed = 0
    host = Host("host", "id", "boot/ns")

    def job(name: str) -> Job:
        def find(ctx: Context) -> tuple[Source, ResourceRef, BackupOptions]:
            return BytesSource(BytesDisk(disks[name])), ResourceRef("volume", name, name), BackupOptions()

        return Job(name, "main", plan, from_source(find), (name,))

    plan = Plan(parse_schedule("02:00"), KeepRules(last=2, daily=7, weekly=3), (20 * DAY, 12 * BLOCK), pruning=3 * DAY)
    jobs = [job(name) for name in disks]
    for hour in range(31 * 24):
        clock.time = 1_795_000_000.0 // DAY * DAY + hour * 3600.0
        for name, disk in disks.items():
            at = rng.randrange(40) * BLOCK
            disk[at : at + BLOCK] = rng.randbytes(BLOCK)
            states[name].add(bytes(disk))
        store = FaultStore(world.store)
        if rng.random() < 0.3:
            store.fail(rng.choice(["put", "put", "get", "delete"]), nth=rng.randrange(1, 25), error=Killed)

        def opened(name: str, store: FaultStore = store) -> Vault:
            return world.open(store)

        with contextlib.suppress(Killed):
            try:
                run_due(jobs, opened, host, Memory(tmp_path / "memory", print), UTC, results.append, broken_order, ctx)
            except Killed:
                killed += 1
                raise
    assert killed >= 5
    failed = [(r.step, str(r.error)) for r in results if r.error is not None]
    assert failed == []
    steps = {step: sum(r.step == step for r in results) for step in ("backup", "expire", "verify", "prune")}
    assert steps["backup"] >= 2 * 20
    assert min(steps.values()) >= 5
    vault = world.fresh()
    points = vault.points()[0]
    for name in disks:
        mine = [p for p in points if name in p.resources]
        # Seven days, three weeks that partly overlap them, and what killed runs left to be expired.
        assert 8 <= len(mine) <= 13
        assert clock.time - mine[-1].time < 3 * DAY
        assert clock.time - mine[0].time > 12 * DAY
        for point in mine:
            assert read_back(vault, point) in states[name]
    assert verify_points(vault, None, Depth.DATA, [], ctx).found == []
    live = sum(s.size for s in world.store.list("packs/"))
    # The data of a month is gone but for what the points that are left need.
    assert live < 60 * 40 * BLOCK
