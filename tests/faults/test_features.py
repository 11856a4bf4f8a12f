"""A vault that uses what this program lacks: each list keeps it from what would do harm, and from nothing else, also without the gc chain."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from safehold.model.errors import FormatError
from safehold.vault.gc.link import add_link
from safehold.vault.gc.prune import Prune
from safehold.vault.records import Features
from safehold.vault.vault import Vault
from tests.worlds import BLOCK, World, read_back

DATA = b"".join(bytes([n + 1]) * BLOCK for n in range(8))
LISTS = ["read", "write", "delete"]


def allowed(world: World, open_vault: Callable[[], Vault]) -> set[str]:
    """The names of the lists that keep this program from nothing."""
    done = set()
    with contextlib.suppress(FormatError):
        vault = open_vault()
        point = vault.points()[0][0]
        assert read_back(vault, point) == world.expected[point.id]
        done.add("read")
        vault.expiry()
        done.add("delete")
    with contextlib.suppress(FormatError):
        world.back_up(DATA, "late", open_vault())
        done.add("write")
    return done


def permitted(kind: str) -> set[str]:
    """What is left where a feature is on one list."""
    return set() if kind == "read" else set(LISTS) - {kind}


@pytest.mark.parametrize("kind", LISTS)
def test_features_in_the_chain(tmp_path: Path, kind: str) -> None:
    world = World(tmp_path)
    world.back_up(DATA)
    vault = world.open()
    assert allowed(world, world.fresh) == set(LISTS)
    assert vault.chain.record is not None
    features = Features(**{kind: ("of the future",)})
    assert add_link(world.store, vault.id, vault.owner_key, vault.chain.record, vault.chain.digest, features=features)
    assert allowed(world, world.fresh) == permitted(kind)
    if kind == "delete":
        with pytest.raises(FormatError):
            Prune(world.fresh(), tmp_path, lambda session, now: True, world.ctx)


@pytest.mark.parametrize("kind", LISTS)
def test_features_of_a_vault_whose_chain_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Those that it began with are in its document, of which each key slot holds a copy."""
    given = iter([Features(**{kind: ("of the future",)})])
    monkeypatch.setattr("safehold.vault.create.Features", lambda: next(given))
    world = World(tmp_path)
    # The first record of the chain lists none, and it is the chain that counts as long as it is there.
    world.back_up(DATA)
    writer = world.new_writer("late")
    world.store.delete("gc/0000000000")
    assert allowed(world, world.fresh) == permitted(kind)
    if kind in ("read", "write"):
        with pytest.raises(FormatError):
            world.back_up(DATA, "late", world.open_writer(writer))
