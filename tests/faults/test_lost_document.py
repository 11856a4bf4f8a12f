"""`vault.json` is gone: whatever the owner writes puts it back, and what only reads does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from safehold.app.expire import apply_expiry
from safehold.app.host import Host
from safehold.app.keys import add_key, export_writer, list_writers, revoke_writer, rotate_key
from safehold.app.prune import preview_prune, prune_vault
from safehold.app.verify import Depth, verify_points
from safehold.model.errors import ObjectNotFound
from safehold.vault.slots import Recipient
from tests.worlds import BLOCK, World

DATA = b"".join(bytes([n + 1]) * BLOCK for n in range(8))


def recipient(world: World) -> Recipient:
    return Recipient(world.private.public_key().public_bytes_raw())


def revoke(world: World) -> object:
    vault = world.open()
    return revoke_writer(vault, next(one.id for one in list_writers(vault) if one.exported))


HOST = Host("host", "id", "boot")
WRITES: dict[str, Callable[[World], object]] = {
    "backup": lambda world: world.back_up(DATA),
    "expire": lambda world: apply_expiry(world.open(), [], world.ctx),
    "prune": lambda world: prune_vault(world.open(), HOST, 60.0, None, world.ctx),
    "key add": lambda world: add_key(world.open(), world.unlock(), recipient(world), "second"),
    "key rotate": lambda world: rotate_key(world.open(), world.unlock(), recipient(world), "next"),
    "key writer": lambda world: export_writer(world.open(), "late", ("late",)),
    "key revoke": revoke,
}
READS: dict[str, Callable[[World], object]] = {
    "points": lambda world: world.open().points(),
    "verify": lambda world: verify_points(world.open(), None, Depth.DATA, [], world.ctx),
    "prune --dry-run": lambda world: preview_prune(world.open(), HOST, 60.0, world.ctx),
}


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.back_up(DATA)
    world.new_writer("mine")
    return world


@pytest.mark.parametrize("verb", WRITES)
def test_what_writes_puts_it_back(world: World, verb: str) -> None:
    before = world.store.get("vault.json")
    world.store.delete("vault.json")
    WRITES[verb](world)
    assert world.store.get("vault.json") == before


@pytest.mark.parametrize("verb", READS)
def test_what_reads_does_not(world: World, verb: str) -> None:
    world.store.delete("vault.json")
    READS[verb](world)
    with pytest.raises(ObjectNotFound):
        world.store.get("vault.json")


def test_a_damaged_one_stays_for_people_to_look_at(world: World) -> None:
    world.store.put("vault.json", [b"rubbish"], create_only=False)
    world.back_up(DATA)
    assert world.store.get("vault.json") == b"rubbish"
