"""The owner's key was rotated, and the records that say so are hidden: nothing is sealed to the old key, and everything can be restored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from safehold.app.keys import export_writer, rotate_key
from safehold.app.verify import Depth, verify_points
from safehold.model.errors import DamageError, RollbackError
from safehold.vault.access import document_owner, parse_document
from safehold.vault.envelope import close
from safehold.vault.gc.prune import Prune
from safehold.vault.keys import OwnerKey, new_seed
from safehold.vault.names import gc_name
from safehold.vault.slots import Recipient
from safehold.vault.vault import Vault
from tests.worlds import BLOCK, World, read_back

DATA = b"".join(bytes([n + 1]) * BLOCK for n in range(8))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def rotate(world: World, vault: Vault | None = None) -> None:
    private = Recipient(world.private.public_key().public_bytes_raw())
    rotate_key(vault or world.open(), world.unlock(), private, "next")


def records(world: World) -> list[str]:
    return [stamp.name for stamp in world.store.list("gc/")]


def reads_all(world: World) -> None:
    vault = world.fresh()
    points, rejected = vault.points()
    assert rejected == []
    assert len(points) == len(world.expected)
    for point in points:
        assert read_back(vault, point) == world.expected[point.id]


@pytest.mark.parametrize("hidden", [[1], [0, 1]], ids=["newest", "all"])
def test_nothing_is_written_with_a_key_that_was_rotated_away(world: World, hidden: list[int]) -> None:
    world.back_up(DATA)
    rotate(world)
    world.back_up(DATA, "after")
    for number in hidden:
        world.store.delete(gc_name(number))
    before = records(world)
    writes: list[Callable[[Vault], object]] = [
        lambda vault: world.back_up(DATA, "late", vault),
        lambda vault: Prune(vault, world.root, lambda session, now: True, world.ctx).run(),
        lambda vault: vault.expiry(),
        lambda vault: export_writer(vault, "late", ("late",)),
    ]
    for write in writes:
        with pytest.raises(RollbackError, match="owner key 1 is at hand"):
            write(world.fresh())
    reads_all(world)
    # What a verification finds is told, and noted in no record that would stand in the place of the hidden one.
    world.store.delete(next(stamp.name for stamp in world.store.list("packs/")))
    found = verify_points(world.fresh(), None, Depth.DATA, [], world.ctx).found
    assert any("owner key 1 is at hand" in finding.what for finding in found)
    assert any("cannot be read" in finding.what for finding in found)
    assert records(world) == before


def test_rotating_again_puts_the_lost_record_back(world: World) -> None:
    world.back_up(DATA)
    rotate(world)
    world.back_up(DATA, "after", world.open(machine="witness"))
    lost = world.store.get(gc_name(1))
    world.store.delete(gc_name(1))
    rotate(world, world.fresh())
    assert world.store.get(gc_name(1)) == lost
    assert world.open(machine="witness").owner.generation == 2
    world.back_up(DATA, "later", world.open(machine="witness"))
    reads_all(world)


def test_a_vault_whose_key_was_never_rotated_goes_on_without_its_chain(world: World) -> None:
    world.back_up(DATA)
    world.store.delete(gc_name(0))
    world.back_up(DATA, "after", world.fresh())
    reads_all(world)


def test_a_key_that_never_came_into_force_is_not_remembered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a killed rotation its slot is left: the next rotation, by the old slot, may make another key of that number."""
    whole = f"keys/{world.unlock().slot.hex()}"

    def killed(*_: object, **__: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("safehold.app.keys.add_link", killed)
        with pytest.raises(KeyboardInterrupt):
            rotate(world)
    half = next(stamp.name for stamp in world.store.list("keys/") if stamp.name != whole)
    kept = world.store.get(whole)
    world.store.delete(whole)
    with pytest.raises(RollbackError):
        world.back_up(DATA)
    world.store.delete(half)
    world.store.put(whole, [kept])
    rotate(world)
    world.back_up(DATA)
    reads_all(world)


def test_a_writer_seals_to_the_key_of_its_credential_where_the_chain_is_gone(world: World) -> None:
    """`vault.json` is a hint, and whoever can hide the chain can put another there."""
    writer = world.new_writer("mine")
    document = world.store.get("vault.json")
    his = OwnerKey(0, new_seed()).public
    right = document_owner(parse_document(document[:-32], "vault.json"))
    forged = document[:-33].replace(right.seal.hex().encode(), his.seal.hex().encode())
    assert forged != document[:-33]
    world.store.delete(gc_name(0))
    world.store.put("vault.json", [close(writer.vault, "vault.json", forged)], create_only=False)
    read = parse_document(forged, "vault.json")
    vault = Vault.for_writer(world.store, world.store, read, writer, world.places("its"), world.ctx)
    assert vault.document.owner["seal"] == his.seal.hex()
    world.back_up(DATA, "mine", vault)
    world.store.put("vault.json", [document], create_only=False)
    reads_all(world)


def test_a_damaged_chain_is_no_reason_to_seal_to_the_oldest_key(world: World) -> None:
    rotate(world)
    for name in records(world):
        stored = world.store.get(name)
        world.store.put(name, [stored[:-1]], create_only=False)
    vault = world.fresh()
    assert vault.owner.generation == 1
    with pytest.raises(DamageError):
        world.back_up(DATA, vault=vault)
