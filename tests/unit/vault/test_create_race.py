"""Two attempts to make a vault in one place: whoever reports a vault has one, and what the other leaves does not disturb it."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from safehold.model.clock import SystemClock
from safehold.model.context import Context
from safehold.model.errors import UsageError
from safehold.objects.memory import MemoryStore
from safehold.ports.store import Store
from safehold.testing.interleave import InterleavedStore
from safehold.vault.access import unlock
from safehold.vault.create import create_vault
from safehold.vault.places import Places
from safehold.vault.records import Parameters
from safehold.vault.slots import Identity, Recipient
from safehold.vault.vault import Vault


class Hasty(SystemClock):
    def sleep(self, seconds: float) -> None:
        return


@pytest.mark.parametrize("at", range(1, 16))
@pytest.mark.parametrize("remains", [False, True])
def test_two_at_once(tmp_path: Path, at: int, remains: bool) -> None:
    ctx = Context(clock=Hasty())
    store = MemoryStore()
    keys = [X25519PrivateKey.generate() for _ in range(2)]
    if remains:
        half = InterleavedStore(store, 3, lambda: 1 / 0)  # type: ignore[arg-type,return-value]
        with pytest.raises(ZeroDivisionError):
            create_vault(half, Recipient(keys[0].public_key().public_bytes_raw()), Parameters(), "died", ctx)
    made: list[int] = []

    def attempt(who: int, through: Store) -> None:
        try:
            create_vault(through, Recipient(keys[who].public_key().public_bytes_raw()), Parameters(), "x", ctx)
            made.append(who)
        except UsageError:
            return

    attempt(0, InterleavedStore(store, at, lambda: attempt(1, store)))
    assert len(made) <= 1
    for who in made:
        unlocked = unlock(store, Identity(keys[who]))
        vault = Vault.for_owner(store, store, unlocked, Places(tmp_path / "s", tmp_path / "c"), ctx)
        assert vault.problems == []
        assert vault.points() == ([], [])
    if not made:
        # Both gave way; the place is free for a third.
        attempt(0, store)
        assert made == [0]
