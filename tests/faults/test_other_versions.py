"""An object is replaced by another valid one of its name: what the last column of the table in docs/format.md claims, kind by kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from safehold.app.expire import apply_expiry
from safehold.app.verify import Depth, Expected, check_expected, verify_points
from safehold.model.errors import DamageError, RollbackError
from safehold.objects.memory import MemoryStore
from safehold.recovery.verify import verify_stored
from safehold.vault.envelope import close, decode, encode, open_object
from safehold.vault.gc.prune import Prune
from safehold.vault.keys import seal_to
from safehold.vault.names import Kind, gc_name
from safehold.vault.records import (
    BaseRun,
    Certificate,
    Forget,
    GcRecord,
    LogPiece,
    Note,
    NoteBody,
    Pin,
    PointBody,
    PointObject,
    RunObject,
    SessionObject,
)
from safehold.vault.run import store_run
from safehold.vault.sealing import open_body, open_secret, seal_body
from safehold.vault.slots import Recipient
from safehold.vault.vault import Vault
from safehold.vault.writers import open_certificate
from tests.faults.everything import TABLE, Listed, copy, everything, names, never_wrong, random_disk
from tests.worlds import World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return everything(tmp_path_factory.mktemp("world"))


# -- other valid versions --------------------------------------------------------------------------------------------------


def _document(world: World, vault: Vault, name: str) -> bytes:
    other = msgspec.structs.replace(vault.document, created="1999-01-01T00:00:00Z")
    return close(vault.id, name, msgspec.json.format(msgspec.json.encode(other), indent=1))


def _slot(world: World, vault: Vault, name: str) -> bytes:
    recipient = Recipient(world.private.public_key().public_bytes_raw())
    slot = recipient.wrap(
        vault.id, bytes.fromhex(name.split("/")[1]), world.unlock().payload, "older", "1999-01-01T00:00:00Z"
    )
    return close(vault.id, name, encode(slot))


def _certificate(world: World, vault: Vault, name: str) -> bytes:
    """The same keys, sealed again."""
    record = decode(open_object(name, world.store.get(name)).payload, Certificate, name)
    secret = open_certificate(vault.id, vault.keyring, record)  # type: ignore[arg-type]
    sealed = seal_to(vault.owner.seal, encode(secret), b"SH1 writer" + vault.id + record.wid)
    return close(vault.id, name, encode(msgspec.structs.replace(record, sealed=sealed)), vault.owner_key.sign)


def _session(world: World, vault: Vault, name: str) -> bytes:
    record = decode(open_object(name, world.store.get(name)).payload, SessionObject, name)
    return close(vault.id, name, encode(msgspec.structs.replace(record, sealed=b"other")), vault.writer().sign)


def _run(world: World, vault: Vault, name: str) -> bytes:
    """One that knows nothing of its packs."""
    writer = vault.writer()
    return store_run(vault.id, name, writer.domain, writer.index_key, [], b"", writer.sign)


def _point(world: World, vault: Vault, name: str) -> bytes:
    record = decode(open_object(name, world.store.get(name)).payload, PointObject, name)
    secret = open_secret(vault.id, vault._require_keyring(), record.key, on=name)
    body = decode(open_body(secret.session_key, vault.id, name, record.sealed), PointBody, name)
    other = encode(msgspec.structs.replace(body, run="forged"))
    sealed = seal_body(secret.session_key, vault.id, name, other)
    return close(vault.id, name, encode(PointObject(record.key, sealed, record.certificate)), vault.writer().sign)


def _note(world: World, vault: Vault, name: str) -> bytes:
    body = encode(NoteBody("kit", 0.0, {"generation": 7}))
    sealed = seal_to(vault.owner.seal, body, b"SH1 note" + vault.id + name.encode())
    return close(vault.id, name, encode(Note(0, sealed)), vault.owner_key.sign)


def _pin(world: World, vault: Vault, name: str) -> bytes:
    return close(vault.id, name, encode(Pin(0, "a/other", b"sealed")), vault.owner_key.sign)


def _log(world: World, vault: Vault, name: str) -> bytes:
    record = decode(open_object(name, world.store.get(name)).payload, LogPiece, name)
    return close(vault.id, name, encode(LogPiece(record.key, b"other")), vault.writer().sign)


def _forget(world: World, vault: Vault, name: str) -> bytes:
    return close(vault.id, name, encode(Forget(0, "a/other")), vault.owner_key.sign)


def _gc(world: World, vault: Vault, name: str) -> bytes:
    record = decode(open_object(name, world.store.get(name)).payload, GcRecord, name)
    return close(
        vault.id, name, encode(msgspec.structs.replace(record, absorbed=("index/other",))), vault.owner_key.sign
    )


def _sibling(world: World, vault: Vault, name: str) -> bytes:
    """The nearest to another version that there is of what is named by its hash."""
    kind = Kind.PACK if name.startswith("packs/") else Kind.META
    return world.store.get(next(other for other in names(world, kind) if other != name))


OTHERS: dict[Kind, Callable[[World, Vault, str], bytes]] = {
    Kind.VAULT: _document,
    Kind.KEY: _slot,
    Kind.WRITER: _certificate,
    Kind.SESSION: _session,
    Kind.PACK: _sibling,
    Kind.META: _sibling,
    Kind.INDEX: _run,
    Kind.POINT: _point,
    Kind.NOTE: _note,
    Kind.PIN: _pin,
    Kind.LOG: _log,
    Kind.FORGET: _forget,
    Kind.GC: _gc,
}


def _mine(vault: Vault, kind: Kind, name: str) -> bool:
    """True for what the owner's own writer may sign."""
    return (
        kind not in (Kind.SESSION, Kind.INDEX, Kind.POINT, Kind.LOG) or vault.writer().wid.hex() == name.split("/")[1]
    )


# -- what the table claims -------------------------------------------------------------------------------------------------


def _found_by_nothing(world: World, store: MemoryStore, name: str) -> None:
    assert verify_stored(store, world.ctx).found == []
    assert verify_points(world.fresh(store), None, Depth.DATA, [], world.ctx).found == []
    assert never_wrong(world, store) == 4, "and nothing is lost by it"


def _found_by_stored(world: World, store: MemoryStore, name: str) -> None:
    assert name in {f.on for f in verify_stored(store, world.ctx).found}


def _found_on_opening(world: World, store: MemoryStore, name: str) -> None:
    assert verify_stored(store, world.ctx).found == []
    with pytest.raises(DamageError, match="replaced"):
        world.fresh(store)


def _found_by_expect(world: World, store: MemoryStore, name: str) -> None:
    expected = [Expected(p.name, p.digest.hex()) for p in world.fresh().points()[0]]
    assert check_expected(world.fresh().points()[0], expected) == []
    assert verify_stored(store, world.ctx).found == []
    assert verify_points(world.fresh(store), None, Depth.DATA, [], world.ctx).found == []
    found = verify_points(world.fresh(store), None, Depth.STRUCTURE, expected, world.ctx).found
    assert [f.on for f in found] == [name]
    store.delete(name)
    found = verify_points(world.fresh(store), None, Depth.STRUCTURE, expected, world.ctx).found
    assert [f.on for f in found] == [name]


def _found_by_who_has_seen_it(world: World, store: MemoryStore, name: str) -> None:
    assert verify_stored(store, world.ctx).found == []
    assert never_wrong(world, store) == 4, "a machine that knows nothing sees nothing"
    world.open(copy(world), "seer")
    with pytest.raises(RollbackError, match="is not the one this machine has seen"):
        world.open(store, "seer")


CLAIMS = {
    "opening the vault with a key slot": _found_on_opening,
    "nothing": _found_by_nothing,
    "`--stored`": _found_by_stored,
    "`--expect`": _found_by_expect,
    "a machine that has seen the chain before": _found_by_who_has_seen_it,
}


@pytest.mark.parametrize("listed", TABLE, ids=lambda listed: listed.prefix)
def test_the_claim_holds(world: World, listed: Listed) -> None:
    vault = world.fresh()
    name = next(name for name in reversed(names(world, listed.kind)) if _mine(vault, listed.kind, name))
    other = OTHERS[listed.kind](world, vault, name)
    assert other != world.store.get(name)
    store = copy(world)
    store.put(name, [other], create_only=False)
    CLAIMS[listed.claim.partition(":")[0]](world, store, name)


def test_an_older_gc_record_cannot_be_replaced_below_newer_ones(world: World) -> None:
    """The next record carries its hash: no key is needed to see that."""
    name = gc_name(0)
    store = copy(world)
    store.put(name, [_gc(world, world.fresh(), name)], create_only=False)
    assert any(f.on.startswith("gc/") for f in verify_stored(store, world.ctx).found)


def test_a_base_run_is_the_one_that_the_chain_lists(tmp_path: Path) -> None:
    """Another that the owner signed under its name is left out: nothing is deduplicated against it, and reading finds the packs."""
    world = World(tmp_path)
    world.back_up(random_disk(1))
    kept = random_disk(1)[: 12 * 4096] + random_disk(2)
    world.back_up(kept)
    vault = world.fresh()
    apply_expiry(vault, vault.points()[0][:1], world.ctx)
    Prune(world.fresh(), tmp_path, lambda session, now: True, world.ctx).run()
    vault = world.fresh()
    base: tuple[BaseRun, ...] = vault.chain.record.base  # type: ignore[union-attr]
    assert base
    # Undisturbed, everything is deduplicated.
    assert world.back_up(kept, vault=world.fresh(copy(world))).new == 0
    store = copy(world)
    for run in base:
        record = decode(open_object(run.name, store.get(run.name)).payload, RunObject, run.name)
        other = encode(msgspec.structs.replace(record, packs=record.packs[:0], rows=0, frames=()))
        forged = close(vault.id, run.name, other, vault.owner_key.sign)
        store.put(run.name, [forged], create_only=False)
    warned: list[str] = []
    changed = world.fresh(store)
    changed.ctx.progress.warn = warned.append  # type: ignore[method-assign]
    done = world.back_up(kept, vault=changed)
    assert done.new > 0
    assert any("not the one that the gc chain lists" in warning for warning in warned)
    assert never_wrong(world, store) >= 1
