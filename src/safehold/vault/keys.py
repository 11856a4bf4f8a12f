"""The owner's keys: sealing (X25519 in HPKE, RFC 9180) and signing (Ed25519), derived from one seed per generation."""

from __future__ import annotations

import os
from collections.abc import Iterable

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from safehold.model.errors import DamageError, VaultKeyError
from safehold.vault.records import Generation, OwnerPublic

__all__ = ["SUITE_X25519", "Keyring", "OwnerKey", "new_seed", "seal_to", "unseal_with"]

SUITE_X25519 = 1
"""DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM. Other numbers are left for hybrids with ML-KEM."""

_HPKE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


def new_seed() -> bytes:
    """32 random bytes."""
    return os.urandom(32)


def seal_to(public: bytes, plaintext: bytes, info: bytes) -> bytes:
    """Encrypt to the X25519 public key `public`, bound to `info`."""
    return _HPKE.encrypt(plaintext, X25519PublicKey.from_public_bytes(public), info=info)


def unseal_with(private: X25519PrivateKey, sealed: bytes, info: bytes, *, on: str) -> bytes:
    """Undo `seal_to`; DamageError naming `on` where it was not sealed to this key for this `info`."""
    try:
        return _HPKE.decrypt(sealed, private, info=info)
    except (InvalidTag, ValueError) as error:
        raise DamageError("sealed secret does not open with the owner's key", on=on) from error


class OwnerKey:
    """Both key pairs of one generation."""

    def __init__(self, generation: int, seed: bytes) -> None:
        self.generation = generation
        self.seed = seed
        self.seal = X25519PrivateKey.from_private_bytes(_derive(seed, "safehold 1 owner x25519"))
        self.sign = Ed25519PrivateKey.from_private_bytes(_derive(seed, "safehold 1 owner ed25519"))

    @property
    def public(self) -> OwnerPublic:
        """The public halves, always computed from the private ones."""
        return OwnerPublic(
            self.generation,
            self.seal.public_key().public_bytes_raw(),
            self.sign.public_key().public_bytes_raw(),
        )


def _derive(seed: bytes, context: str) -> bytes:
    return blake3(seed, derive_key_context=context).digest()


class Keyring:
    """All generations of an owner's key that are at hand; old ones keep old sessions readable."""

    def __init__(self, generations: Iterable[Generation]) -> None:
        self._keys = {g.number: OwnerKey(g.number, g.seed) for g in generations}
        if not self._keys:
            raise VaultKeyError("the key holds no secret", remedy="use another key slot or the recovery kit")

    @property
    def generations(self) -> tuple[Generation, ...]:
        """Every generation, oldest first."""
        return tuple(Generation(n, self._keys[n].seed) for n in sorted(self._keys))

    def __contains__(self, generation: int) -> bool:
        return generation in self._keys

    def get(self, generation: int) -> OwnerKey:
        """The key of that generation; VaultKeyError where this keyring is older than that."""
        try:
            return self._keys[generation]
        except KeyError:
            raise VaultKeyError(
                f"this key was rotated away: generation {generation} is needed",
                remedy="use the passphrase or recovery kit made by the last `safehold key rotate`",
            ) from None
