"""Which vaults this machine knows at which address.

Anybody can make a vault for a public key: what opens with an identity alone may be somebody else's vault, put where the real one was. What
opens with a passphrase or a kit was made by somebody who knows it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec
from blake3 import blake3

from safehold.model.errors import DamageError
from safehold.model.remembered import keep, recall
from safehold.vault.access import Unlocked

__all__ = ["Addresses"]


class _Known(msgspec.Struct, frozen=True):
    """A vault's id, and the public signing key of one generation of its owner: an id alone can be copied."""

    vault: str
    generation: int
    sign: str

    def is_of(self, unlocked: Unlocked) -> bool:
        keyring = unlocked.keyring
        if self.vault != unlocked.document.id or self.generation not in keyring:
            return False
        return keyring.get(self.generation).public.sign.hex() == self.sign


class _Address(msgspec.Struct, frozen=True):
    place: str = ""
    vaults: tuple[_Known, ...] = ()


class Addresses:
    """One small file for each address in a directory of this machine's state. Several vaults may be known at one: disks that take turns."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def knows(self, place: str) -> bool:
        """True where a vault was opened or made at `place`."""
        return bool(self._load(place).vaults)

    def admit(self, place: str, unlocked: Unlocked) -> None:
        """Let a vault in that was opened at `place`, and remember it. DamageError where others are known there, and nothing proves that this
        one was made by somebody who may.
        """
        known = self._load(place)
        if any(one.is_of(unlocked) for one in known.vaults):
            return
        if known.vaults and not unlocked.proven:
            raise DamageError(
                f"vault {unlocked.document.id[:8]} stands where this machine knows vault "
                f"{', '.join(one.vault[:8] for one in known.vaults)}, and anybody can have made it for this public key",
                on=place,
                remedy="find out who put it there; if it is yours, prove it once by its recovery kit: safehold key check --kit FILE",
            )
        oldest = unlocked.keyring.get(unlocked.keyring.generations[0].number).public
        found = _Known(unlocked.document.id, oldest.generation, oldest.sign.hex())
        self._store(_Address(place, (*known.vaults, found)))

    def _path(self, place: str) -> Path:
        return self._directory / f"{blake3(place.encode()).hexdigest()[:32]}.json"

    def _load(self, place: str) -> _Address:
        return recall(self._path(place), _Address, _Address())

    def _store(self, address: _Address) -> None:
        """A machine that cannot remember goes on without."""
        with contextlib.suppress(OSError):
            keep(self._path(address.place), msgspec.json.encode(address))
