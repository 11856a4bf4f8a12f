"""Unattended runs with something wrong in between: what is told, and what is done all the same."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC
from pathlib import Path

import pytest

from safehold.app import service
from safehold.app.backup import BackupOptions
from safehold.app.host import Host
from safehold.app.service import Job, Memory, Plan, Result, from_source, run_due
from safehold.model.context import Context
from safehold.model.errors import SourceError
from safehold.model.resource import ResourceRef
from safehold.objects.memory import MemoryStore
from safehold.policies.retention import KeepRules
from safehold.policies.schedule import Schedule
from safehold.ports.source import Source
from safehold.testing.fault_store import Killed
from tests.clocks import FakeClock
from tests.worlds import BLOCK, BytesDisk, BytesSource, World

DAY = 86400.0
HOST = Host("host", "id", "boot/ns")
PLAN = Plan(Schedule(every=DAY), KeepRules(last=2), (20 * DAY, 100 * BLOCK), pruning=3 * DAY)


class Unattended:
    """A vault, and runs on it by a clock of its own. `trouble` is called by each backup of a resource of that name."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.ctx = Context(clock=self.clock)
        self.world = World(folder / "world", MemoryStore(self.clock), ctx=self.ctx)
        self.memory = folder / "memory"
        self.warned: list[str] = []
        self.trouble: dict[str, Callable[[], None]] = {}

    def job(self, name: str, plan: Plan = PLAN) -> Job:
        def find(ctx: Context) -> tuple[Source, ResourceRef, BackupOptions]:
            self.trouble.get(name, lambda: None)()
            disk = BytesDisk(bytearray(name.encode() * BLOCK))
            return BytesSource(disk), ResourceRef("volume", name, name), BackupOptions()

        return Job(name, "main", plan, from_source(find), (name,))

    def run(self, *jobs: Job, everything: bool = False) -> list[Result]:
        results: list[Result] = []
        memory = Memory(self.memory, self.warned.append)
        run_due(
            jobs,
            lambda name: self.world.open(),
            HOST,
            memory,
            UTC,
            results.append,
            lambda store: "",
            self.ctx,
            everything=everything,
        )
        return results


@pytest.fixture
def unattended(tmp_path: Path) -> Unattended:
    return Unattended(tmp_path)


def told(results: list[Result]) -> list[tuple[str, str, int]]:
    return [(one.step, one.on, one.code) for one in results]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/var/lib/x"), "no room left on this machine: /var/lib/x"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "Too many open files"),
        (MemoryError(), "out of memory"),
        (KeyError("x"), "internal error: KeyError: 'x'"),
    ],
)
def test_no_error_of_a_step_ends_the_run(unattended: Unattended, error: Exception, says: str) -> None:
    def fail() -> None:
        raise error

    unattended.trouble["one"] = fail
    results = unattended.run(unattended.job("one"), unattended.job("two"))
    assert told(results)[:2] == [("backup", "one", 1), ("backup", "two", 0)]
    assert says in str(results[0].error)
    assert ("prune", "main", 0) in told(results)


def test_a_memory_that_cannot_be_kept(unattended: Unattended) -> None:
    unattended.memory.mkdir()
    assert told(unattended.run(unattended.job("one")))[0] == ("backup", "one", 0)
    assert "cannot be remembered" in unattended.warned[0]


@pytest.mark.parametrize(("step", "on"), [("verify", "main"), ("expire", "one"), ("prune", "main")])
def test_upkeep_that_was_killed_is_begun_anew(
    unattended: Unattended, monkeypatch: pytest.MonkeyPatch, step: str, on: str
) -> None:
    """Long before the next backup is due."""
    names = {"verify": "verify_next", "expire": "plan_expiry", "prune": "prune_vault"}

    def die(*args: object, **more: object) -> None:
        raise Killed

    job = unattended.job("one")
    with monkeypatch.context() as patch:
        patch.setattr(service, names[step], die)
        with pytest.raises(Killed):
            unattended.run(job)
    unattended.clock.sleep(800)
    assert not [one for one in told(unattended.run(job)) if one[:2] == (step, on)]
    unattended.clock.sleep(200)
    again = told(unattended.run(job))
    assert (step, on, 0) in again
    assert ("backup", "one", 0) not in again
    unattended.clock.sleep(7200)
    assert told(unattended.run(job)) == []


def test_a_prune_is_due_by_itself(unattended: Unattended) -> None:
    rare = replace(PLAN, schedule=Schedule(every=30 * DAY))
    assert len(unattended.run(unattended.job("one", rare))) == 4
    unattended.clock.sleep(2 * DAY)
    assert told(unattended.run(unattended.job("one", rare))) == []
    unattended.clock.sleep(DAY)
    assert told(unattended.run(unattended.job("one", rare))) == [("prune", "main", 0)]


def test_a_first_backup_that_fails_is_told_of_once(unattended: Unattended) -> None:
    def fail() -> None:
        raise SourceError("no such file")

    unattended.trouble["one"] = fail
    bad = [one for one in told(unattended.run(unattended.job("one"))) if one[2]]
    assert bad == [("backup", "one", 1)]
