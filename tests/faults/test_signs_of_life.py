"""Which sessions a prune takes for dead: by their process on the same host, by the store's clock elsewhere, and by revocation."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from safehold.app import prune as pruning
from safehold.app.host import UNKNOWN, Host, process_start
from safehold.app.keys import revoke_writer
from safehold.app.prune import prune_vault, session_dead
from safehold.model.context import Context
from safehold.model.errors import (
    CancelledError,
    FencedError,
    SafeholdError,
    SourceError,
    StorePermission,
    StoreUnavailable,
)
from safehold.objects.memory import MemoryStore
from safehold.testing.fault_store import FaultStore
from safehold.vault import session as sessions
from safehold.vault.gc.report import PruneReport
from safehold.vault.gc.sessions import OpenSession, Sessions
from safehold.vault.names import Kind
from safehold.vault.records import PointBody, SessionInfo
from safehold.vault.session import Session
from tests.clocks import FakeClock
from tests.worlds import BLOCK, World, read_back

HOUR, DAY = 3600.0, 86400.0
PATIENCE = 36 * HOUR
NOW = 1_795_000_000.0
BODY = PointBody((), (), "elsewhere", "id", "test", "run", 0.0, 0.0)
HERE = Host("host", "host id", "boot/namespace")


def info(host: str = HERE.id, boot: str = HERE.boot, pid: int = 0, start: int = 0) -> SessionInfo:
    return SessionInfo(host, boot, pid, start, "test", 0.0, "run")


def mine(**changes: object) -> SessionInfo:
    """A session of this very process."""
    fields: dict[str, object] = {"pid": os.getpid(), "start": process_start(os.getpid())}
    return info(**(fields | changes))  # type: ignore[arg-type]


def none_has() -> int:
    """A process number that is not in use."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


# -- one session ---------------------------------------------------------------------------------------------------------


def dead(about: SessionInfo | None, silent: float = 0.0) -> bool:
    return session_dead(HERE, PATIENCE)(OpenSession(b"w" * 16, b"s" * 16, NOW - silent, about), NOW)


def test_a_process_of_this_host_that_runs_is_alive() -> None:
    assert not dead(mine())


def test_a_process_of_this_host_that_is_gone_is_dead_at_once() -> None:
    assert dead(info(pid=none_has(), start=7))


def test_another_process_under_the_same_number_is_not_it() -> None:
    assert dead(mine(start=process_start(os.getpid()) - 1))


def test_what_ran_before_this_boot_is_dead() -> None:
    assert dead(mine(boot="another boot/namespace"))


def test_numbers_of_other_namespaces_say_nothing() -> None:
    gone = none_has()
    assert not dead(info(boot="boot/container", pid=gone, start=7))
    assert dead(info(boot="boot/container", pid=gone, start=7), PATIENCE + 1)


@pytest.mark.parametrize("about", [info(host="another", pid=1, start=1), info(boot="", pid=1, start=1), None])
def test_elsewhere_only_silence_tells(about: SessionInfo | None) -> None:
    assert not dead(about)
    assert not dead(about, PATIENCE - 1)
    assert dead(about, PATIENCE + 1)


def test_a_process_that_cannot_be_seen_is_not_called_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "process_start", lambda pid: UNKNOWN)
    assert not dead(mine())
    assert dead(mine(), PATIENCE + 1)


def test_a_clock_that_went_back_makes_nobody_dead() -> None:
    assert not dead(info(host="another"), -40 * DAY)


# -- sessions in a vault -------------------------------------------------------------------------------------------------


def world_of(tmp_path: Path, store_clock: FakeClock, client_clock: FakeClock) -> World:
    world = World(tmp_path, MemoryStore(store_clock), ctx=Context(clock=client_clock))
    world.back_up(b"old" * BLOCK, "old")
    vault = world.open()
    point = vault.points()[0][0]
    vault.expiry().forget(point.wid, point.sid)
    return world


def prune(world: World) -> PruneReport:
    return prune_vault(world.fresh(), HERE, PATIENCE, None, world.ctx)


def beats_of(world: World, session: Session) -> list[str]:
    return [stamp.name for stamp in world.store.list("sessions/") if f"{session.sid.hex()}." in stamp.name]


@pytest.mark.parametrize("skew", [-40 * DAY, 0.0, 40 * DAY])
def test_only_the_stores_clock_counts(tmp_path: Path, skew: float) -> None:
    """However wrong the clock of the machine is that prunes."""
    store_clock, client_clock = FakeClock(), FakeClock(NOW + skew)
    world = world_of(tmp_path, store_clock, client_clock)
    with world.open(machine="elsewhere").session(info(host="another"), 1) as session:
        for clock in (store_clock, client_clock):
            clock.time += PATIENCE - HOUR
        report = prune(world)
        assert ([one.sid for one in report.waiting], report.fenced) == ([session.sid], [])
        assert report.deleted_packs == 0
        for clock in (store_clock, client_clock):
            clock.time += 2 * HOUR
        report = prune(world)
        assert ([one.sid for one in report.fenced], report.waiting) == ([session.sid], [])
        assert report.deleted_packs
        with pytest.raises(FencedError):
            session.commit(BODY)


def test_heartbeats_keep_a_session_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_clock = FakeClock()
    world = world_of(tmp_path, store_clock, FakeClock())
    monkeypatch.setattr(sessions, "HEARTBEAT", 0.01)
    waited = threading.Event()
    with world.open(machine="elsewhere").session(info(host="another"), 1) as session:
        store_clock.time += 10 * DAY
        before = len(beats_of(world, session))
        for _ in range(3000):
            if len(beats_of(world, session)) > before + 1:
                break
            waited.wait(0.01)
        assert len(beats_of(world, session)) > before + 1, "no heartbeat came"
        heard = {one.sid: one.heard for one in Sessions(world.fresh()).open()}
        assert heard == {session.sid: store_clock.time}
        report = prune(world)
        assert ([one.sid for one in report.waiting], report.fenced) == ([session.sid], [])
        session.commit(BODY)
    assert prune(world).deleted_packs
    assert list(world.store.list("sessions/")) == [], "heartbeats of sessions that ended go as well"


def test_without_a_heartbeat_it_is_taken_for_dead(tmp_path: Path) -> None:
    """That the test before can fail."""
    store_clock = FakeClock()
    world = world_of(tmp_path, store_clock, FakeClock())
    with world.open(machine="elsewhere").session(info(host="another"), 1) as session:
        store_clock.time += 10 * DAY
        assert [one.sid for one in prune(world).fenced] == [session.sid]


def test_the_session_of_a_revoked_writer_is_ended(tmp_path: Path) -> None:
    world = world_of(tmp_path, FakeClock(), FakeClock())
    writer, other = world.new_writer("web*"), world.new_writer("mail*")
    world.back_up(b"kept" * BLOCK, "mail", world.open_writer(other))
    with (
        world.open_writer(writer, machine="stolen").session(info(host="another"), 1) as session,
        world.open_writer(other, machine="other").session(info(host="another"), 1) as good,
    ):
        assert {one.sid for one in prune(world).waiting} == {session.sid, good.sid}
        revoke_writer(world.open(), writer.wid.hex())
        report = prune(world)
        assert [one.sid for one in report.fenced] == [session.sid]
        assert [one.sid for one in report.waiting] == [good.sid]
        with pytest.raises(FencedError):
            session.commit(BODY)
        good.commit(BODY)
    assert prune(world).deleted_packs
    vault = world.fresh()
    kept = next(point for point in vault.points()[0] if "mail" in point.resources)
    assert read_back(vault, kept) == b"kept" * BLOCK


# -- a session that its own maker ends ------------------------------------------------------------------------------------


def announced(world: World, session: Session) -> bool:
    return any(session.sid.hex() in stamp.name for stamp in world.store.list("sessions/"))


def fail_with(error: BaseException, session: Session) -> None:
    """After some of it was stored, and with the session in the store."""
    session.lane().put(Kind.PACK, [memoryview(os.urandom(BLOCK))])
    session.flush()
    raise error


@pytest.mark.parametrize("error", [SourceError("failed"), CancelledError("stopped"), KeyboardInterrupt()], ids=repr)
def test_a_backup_that_fails_holds_no_prune_up(tmp_path: Path, error: BaseException) -> None:
    """Unless nobody has the patience: then it is the process that is looked for, as ever."""
    world = world_of(tmp_path, FakeClock(), FakeClock())
    with pytest.raises(type(error)), world.open().session(info(host="another"), 1) as session:
        fail_with(error, session)
    orderly = isinstance(error, Exception)
    assert announced(world, session) is not orderly
    report = prune(world)
    assert [one.sid for one in report.waiting] == ([] if orderly else [session.sid])
    assert bool(report.deleted_packs) is orderly
    assert not report.fenced


def test_one_that_tried_to_commit_is_not_taken_back(tmp_path: Path) -> None:
    """Its point may still come, by a put that the store was slow with."""
    world = world_of(tmp_path, FakeClock(), FakeClock())
    store = FaultStore(world.store)
    store.fail("put", "points/", error=lambda: StorePermission("may not"), times=10**9)
    with pytest.raises(StorePermission), world.open(store).session(info(host="another"), 1) as session:
        session.commit(BODY)
    assert announced(world, session)
    with pytest.raises(RuntimeError, match="nothing to commit"):
        session.commit(BODY)


@pytest.mark.parametrize(
    ("verb", "error"), [("delete", StorePermission("may not")), ("put", StoreUnavailable("no answer"))], ids=str
)
def test_a_store_that_does_not_delete_or_does_not_answer(tmp_path: Path, verb: str, error: SafeholdError) -> None:
    """It is asked once, or not at all."""
    world = world_of(tmp_path, FakeClock(), FakeClock())
    writer = world.new_writer("web*")
    store = FaultStore(world.store)
    asked = store.fail("delete", error=lambda: error, times=10**9)
    failure = error if verb == "put" else SourceError("the dump failed")
    with pytest.raises(type(failure)), world.open_writer(writer, store).session(info(host="another"), 1) as session:
        raise failure
    assert asked.hits == (verb == "delete")
    assert announced(world, session)
