"""A store that fails at every put and delete of what an owner does to a vault: it opens as before or as after, and doing it again works."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from safehold.app.keys import add_key, check_key, export_writer, remove_key, revoke_writer, rotate_key
from safehold.app.keys import list_keys as slots
from safehold.app.verify import Depth, verify_points
from safehold.model.context import Context
from safehold.model.errors import SafeholdError, StoreFull, StorePermission, StoreUnavailable, UsageError
from safehold.objects.memory import MemoryStore
from safehold.recovery.verify import verify_stored
from safehold.testing.fault_store import FaultStore, Killed
from safehold.vault.create import create_vault
from safehold.vault.slots import Recipient
from safehold.vault.vault import Vault
from tests.clocks import FakeClock
from tests.struck import Struck
from tests.worlds import BLOCK, World, read_back

ERRORS = [Killed, StoreFull, StorePermission, StoreUnavailable]
Act = Callable[[World, Vault], object]


def mine(world: World) -> Recipient:
    return Recipient(world.private.public_key().public_bytes_raw())


def revoke(world: World, vault: Vault) -> None:
    revoke_writer(vault, next(wid for wid, c in vault.writers.items() if c.exported).hex())


def remove(world: World, vault: Vault) -> None:
    remove_key(vault, next(slot for slot in slots(vault) if slot.label == "spare"))


# What is done, how to tell that it was done, and whether it can be done again.
ACTS: dict[str, tuple[Act, Callable[[World, Vault], bool]]] = {
    "rotate": (
        lambda world, vault: rotate_key(vault, world.unlock(), mine(world), "rotated"),
        # One that was killed may count: the next rotation goes on behind it.
        lambda world, vault: vault.owner.generation >= 1,
    ),
    "add": (
        lambda world, vault: add_key(vault, world.unlock(), mine(world), "second"),
        lambda world, vault: any(slot.label == "second" for slot in slots(vault)),
    ),
    "remove": (remove, lambda world, vault: all(slot.label != "spare" for slot in slots(vault))),
    "writer": (
        lambda world, vault: export_writer(vault, "exported", ("x",)),
        lambda world, vault: len([c for c in vault.writers.values() if c.exported]) == 2,
    ),
    "revoke": (revoke, lambda world, vault: bool(vault.notes().revocations())),
    "check": (lambda world, vault: check_key(vault, by_kit=True), lambda world, vault: vault.notes().kit_known()),
}


def prepared(root: Path) -> World:
    clock = FakeClock()
    world = World(root, ctx=Context(clock=clock))
    world.back_up(random.Random(1).randbytes(4 * BLOCK))
    world.new_writer("mine")
    add_key(world.open(), world.unlock(), mine(world), "spare")
    clock.sleep(60)
    return world


def whole(world: World, *, halfway: bool = False) -> Vault:
    """The vault as a machine has it that knows nothing: everything is right, but for a rotation that stands `halfway`, of which it says so."""
    vault = world.fresh()
    assert verify_stored(world.store, world.ctx).found == []
    found = verify_points(vault, None, Depth.DATA, [], world.ctx).found
    assert [one for one in found if not (halfway and "a rotation was killed" in one.what)] == []
    points, rejected = vault.points()
    assert rejected == []
    assert [read_back(vault, point) for point in points] == [world.expected[point.id] for point in points]
    assert points
    return vault


@pytest.mark.parametrize("lost", [False, True], ids=["refused", "carried out and unanswered"])
@pytest.mark.parametrize("what", ACTS)
def test_every_change_of_a_key_fails_once(tmp_path: Path, what: str, lost: bool, struck: Struck) -> None:
    act, done = ACTS[what]
    world = prepared(tmp_path / "counted")
    assert not done(world, world.fresh())
    counting = FaultStore(world.store)
    act(world, world.open(counting))
    assert done(world, world.fresh())
    changes = {verb: sum(one == verb for one, _ in counting.log) for verb in ("put", "delete")}
    assert sum(changes.values()) >= 1
    hits = 0
    for error in ERRORS:
        for verb, count in changes.items():
            for nth in range(1, count + 1):
                world = prepared(tmp_path / f"{error.__name__}-{verb}-{nth}")
                faulty = FaultStore(world.store)
                make = error if error is Killed else (lambda error=error: error("injected"))
                fault = faulty.fail(verb, nth=nth, lost=lost, error=make)
                # A kit that was proved is proved, also where that cannot be noted.
                fails = pytest.raises((SafeholdError, Killed)) if what != "check" else contextlib.suppress(Killed)
                with fails:
                    act(world, world.open(faulty))
                hits += fault.hits
                vault = whole(world, halfway=what == "rotate")
                if not done(world, vault):
                    act(world, vault)
                assert done(world, whole(world))
                world.back_up(random.Random(2).randbytes(4 * BLOCK), vault=world.fresh())
                whole(world)
    struck("store faults (keys)", hits)
    assert hits == len(ERRORS) * sum(changes.values())


@pytest.mark.parametrize("lost", [False, True], ids=["refused", "carried out and unanswered"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_put_of_an_init_fails_once(
    tmp_path: Path, error: type[BaseException], lost: bool, struck: Struck
) -> None:
    ctx = Context(clock=FakeClock())
    hits = 0
    for nth in range(1, 5):
        world = World(tmp_path / str(nth))
        store = MemoryStore()
        faulty = FaultStore(store)
        make = error if error is Killed else (lambda: error("injected"))
        fault = faulty.fail("put", nth=nth, lost=lost, error=make)
        with pytest.raises((SafeholdError, Killed)):
            create_vault(faulty, mine(world), world.parameters, "test", ctx)
        hits += fault.hits
        # There is a vault, where the last put was carried out; else the next attempt clears the remains away.
        if nth == 4 and lost:
            with pytest.raises(UsageError, match="a vault here already"):
                create_vault(store, mine(world), world.parameters, "test", ctx)
        else:
            create_vault(store, mine(world), world.parameters, "test", ctx)
        world.store = store
        world.back_up(random.Random(1).randbytes(4 * BLOCK), vault=world.fresh())
        whole(world)
    struck("store faults (init)", hits)
    assert hits == 4
