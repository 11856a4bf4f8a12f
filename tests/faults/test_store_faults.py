"""Stores that fail at every call: the run stops with a reason, and what is committed stays whole."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from safehold.app.verify import Depth, verify_points
from safehold.model.clock import Clock
from safehold.model.errors import FencedError, ObjectExists, SafeholdError, StoreFull, StorePermission, StoreUnavailable
from safehold.objects.memory import MemoryStore
from safehold.objects.retry import RetryPolicy, RetryStore
from safehold.testing.fault_store import FaultStore, Killed
from safehold.vault.vault import Vault
from tests.clocks import FakeClock
from tests.struck import Struck
from tests.worlds import BLOCK, World, read_back


def content(seed: int) -> bytes:
    return random.Random(seed).randbytes(30 * BLOCK)


def whole(world: World) -> int:
    vault = world.fresh()
    assert verify_points(vault, None, Depth.DATA, [], world.ctx).found == []
    points, rejected = vault.points()
    assert rejected == []
    for point in points:
        assert read_back(vault, point) == world.expected[point.id]
    return len(points)


@pytest.mark.parametrize("error", [Killed, StoreFull, StorePermission, StoreUnavailable], ids=lambda e: e.__name__)
@pytest.mark.parametrize("lost", [False, True], ids=["refused", "carried out and unanswered"])
def test_every_put_of_a_backup_fails_once(
    tmp_path: Path, error: type[BaseException], lost: bool, struck: Struck
) -> None:
    world = World(tmp_path)
    world.back_up(content(1))
    counting = FaultStore(world.store)
    world.back_up(content(2), vault=world.open(counting))
    puts = sum(verb == "put" for verb, _ in counting.log)
    hits = 0
    for nth in range(1, puts + 1):
        faulty = FaultStore(world.store)
        make = error if error is Killed else (lambda: error("injected"))
        fault = faulty.fail("put", nth=nth, lost=lost, error=make)
        before = whole(world)
        data = content(100 + nth)
        try:
            world.back_up(data, vault=world.open(faulty))
        except (SafeholdError, Killed):
            failed = True
        else:
            failed = False
        # A commit that the store did not answer is tried again; everything else ends this run.
        assert failed or error is StoreUnavailable or not fault.hits
        hits += fault.hits
        points, _ = world.fresh().points()
        for point in points:
            # A commit whose answer was lost may have been carried out; then it has to be right.
            world.expected.setdefault(point.id, data)
        assert whole(world) - before in (0, 1 if lost or not failed else 0)
    struck("store faults (a put fails)", hits)
    # How packs and runs fall differs from run to run by one or two.
    assert hits >= puts - 2 >= 4


def test_retries_make_passing_faults_invisible(tmp_path: Path, struck: Struck) -> None:
    world = World(tmp_path)
    faulty = FaultStore(world.store)
    rng = random.Random(7)
    hits = []
    for verb in ("put", "get", "head", "list", "read"):
        for nth in range(1, 8):
            hits.append(faulty.fail(verb, nth=rng.randrange(1, 40) + nth, lost=rng.random() < 0.5))
    store = RetryStore(faulty, FakeClock(), rng=random.Random(1))
    for seed in range(4):
        vault = Vault.for_owner(store, faulty, world.unlock(store), world.places(), world.ctx)
        world.back_up(content(seed), vault=vault)
    struck("store faults (passing)", sum(fault.hits for fault in hits))
    assert sum(fault.hits for fault in hits) >= 10
    assert whole(world) == 4


def retrying(inner: FaultStore, attempts: int = 4) -> tuple[RetryStore, FakeClock]:
    clock = FakeClock(1_000_000.0)
    return RetryStore(inner, clock, RetryPolicy(attempts=attempts), random.Random(0)), clock


def test_a_lost_answer_of_a_create_counts_as_done() -> None:
    inner = FaultStore(MemoryStore())
    store, clock = retrying(inner)
    fault = inner.fail("put", lost=True)
    assert store.put("x", [b"a", b"bc"]).size == 3
    assert fault.hits == 1
    assert [verb for verb, _ in inner.log if verb == "put"] == ["put"], "looked first, and did not write again"
    assert clock.time == 1_000_000.0


def test_a_create_that_met_somebody_elses_object_is_told() -> None:
    inner = FaultStore(MemoryStore())
    store, _ = retrying(inner)
    inner.inner.put("x", [b"theirs"])
    for fault in (None, inner.fail("put", lost=False)):
        with pytest.raises(ObjectExists):
            store.put("x", [b"mine!!"])
        assert fault is None or fault.hits == 1
    assert store.get("x") == b"theirs"


def test_a_delayed_duplicate_is_the_same_object() -> None:
    inner = FaultStore(MemoryStore())
    store, _ = retrying(inner)
    store.put("x", [b"data"])
    assert store.put("x", [b"data"]).size == 4
    with pytest.raises(ObjectExists):
        store.put("x", [b"data and more"])
    with pytest.raises(ObjectExists):
        store.put("x", [b""])


def test_retries_end_and_their_waits_are_bounded() -> None:
    inner = FaultStore(MemoryStore())
    store, clock = retrying(inner)
    fault = inner.fail("get", times=1000)
    with pytest.raises(StoreUnavailable):
        store.get("x")
    assert fault.hits == 4
    assert 0 < clock.time - 1_000_000.0 < 0.5 * (1 + 2 + 4)


def test_a_listing_that_breaks_off_goes_on_where_it_was() -> None:
    inner = MemoryStore()
    for n in range(10):
        inner.put(f"n{n}", [b""])

    class Breaking(FaultStore):
        def list(self, prefix: str, after: str = ""):  # type: ignore[no-untyped-def]
            for count, stamp in enumerate(self.inner.list(prefix, after)):
                if count == 3:
                    raise StoreUnavailable("broke off")
                yield stamp

    store, _ = retrying(Breaking(inner))
    assert [s.name for s in store.list("")] == [f"n{n}" for n in range(10)]


def test_a_fenced_session_cannot_commit(tmp_path: Path) -> None:
    world = World(tmp_path)

    class Fencing(FaultStore):
        def put(self, name, parts, *, create_only=True):  # type: ignore[no-untyped-def]
            if name.startswith("points/"):
                self.inner.put(name, [b""])
            return super().put(name, parts, create_only=create_only)

    with pytest.raises(FencedError, match="took it for dead"):
        world.back_up(content(1), vault=world.open(Fencing(world.store)))
    assert whole(world) == 0
    # Runs of a fenced session do not count for deduplication.
    done = world.back_up(content(1))
    assert done.new >= 30 * BLOCK
    assert whole(world) == 1


def test_a_commit_is_retried_only_while_its_session_exists(tmp_path: Path) -> None:
    clock: Clock = FakeClock()
    world = World(tmp_path)
    world.ctx = type(world.ctx)(clock=clock)
    faulty = FaultStore(world.store)
    fault = faulty.fail("put", "points/")
    world.back_up(content(1), vault=world.open(faulty))
    assert fault.hits == 1
    assert whole(world) == 1

    class Pruning(FaultStore):
        def put(self, name, parts, *, create_only=True):  # type: ignore[no-untyped-def]
            if name.startswith("points/"):
                for stamp in list(self.inner.list("sessions/")):
                    self.inner.delete(stamp.name)
                raise StoreUnavailable("lost on the way, while a prune ended the session")
            return super().put(name, parts, create_only=create_only)

    with pytest.raises(FencedError):
        world.back_up(content(2), vault=world.open(Pruning(world.store)))
    assert whole(world) == 1
