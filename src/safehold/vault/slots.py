"""Key slots: the owner's secrets wrapped by a passphrase (Argon2id, RFC 9106) or for an X25519 recipient."""

from __future__ import annotations

import os
import threading
from typing import Protocol

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from safehold.model.errors import DamageError
from safehold.vault.envelope import decode, encode
from safehold.vault.keys import seal_to, unseal_with
from safehold.vault.names import key_name
from safehold.vault.records import KeyPayload, KeySlot, PassphraseKdf

__all__ = ["Identity", "Passphrase", "Recipient", "Unlocker", "Wrapper", "new_slot_id"]

_ITERATIONS, _LANES, _MEMORY = 3, 4, 64 * 1024
"""RFC 9106's second recommended choice: 64 MiB, three passes, four lanes. About 0.12 s on the machines measured."""

_MAX_ITERATIONS, _MAX_LANES, _MAX_MEMORY = 16, 16, 1024 * 1024
"""Caps on reading, so that a forged slot cannot make a reader spend minutes or more than 1 GiB."""

_DERIVING = threading.Lock()
"""One derivation at a time in a process: two with several lanes that run at once wait for each other for ever, inside `cryptography`. The lanes
are what slots were made with. No process that is forked here derives anything, so none inherits this while it is held.
"""


def new_slot_id() -> bytes:
    """16 random bytes."""
    return os.urandom(16)


class Wrapper(Protocol):
    """What can make a key slot."""

    def wrap(self, vault: bytes, slot: bytes, payload: KeyPayload, label: str, created: str) -> KeySlot:
        """The slot record that holds `payload`."""
        ...


class Unlocker(Protocol):
    """What can open key slots."""

    def unwrap(self, slot: bytes, record: KeySlot) -> KeyPayload | None:
        """What the slot holds, or None where it is not for this unlocker."""
        ...


def _passphrase_cipher(kdf: PassphraseKdf, passphrase: bytes) -> AESGCM:
    argon = Argon2id(salt=kdf.salt, length=32, iterations=kdf.iterations, lanes=kdf.lanes, memory_cost=kdf.memory)
    with _DERIVING:
        derived = argon.derive(passphrase)
    return AESGCM(blake3(derived, derive_key_context="safehold 1 passphrase slot").digest())


def _aad(vault: bytes, slot: bytes) -> bytes:
    return b"SH1 key slot" + vault + slot


class Passphrase:
    """Wraps and opens slots with a passphrase."""

    def __init__(self, passphrase: str) -> None:
        self._passphrase = passphrase.encode()

    def wrap(self, vault: bytes, slot: bytes, payload: KeyPayload, label: str, created: str) -> KeySlot:
        """A slot with a fresh salt."""
        kdf = PassphraseKdf(os.urandom(16), _ITERATIONS, _LANES, _MEMORY)
        nonce = os.urandom(12)
        sealed = nonce + _passphrase_cipher(kdf, self._passphrase).encrypt(nonce, encode(payload), _aad(vault, slot))
        return KeySlot(vault=vault, label=label, created=created, sealed=sealed, kdf=kdf)

    def unwrap(self, slot: bytes, record: KeySlot) -> KeyPayload | None:
        """None where the passphrase is another; DamageError where the slot's parameters are beyond the caps."""
        kdf = record.kdf
        if kdf is None:
            return None
        within = 1 <= kdf.iterations <= _MAX_ITERATIONS and 1 <= kdf.lanes <= _MAX_LANES
        if not within or not 8 * kdf.lanes <= kdf.memory <= _MAX_MEMORY or len(kdf.salt) < 8:
            raise DamageError("key slot asks for an unreasonable key derivation", on=key_name(slot))
        try:
            plain = _passphrase_cipher(kdf, self._passphrase).decrypt(
                record.sealed[:12], record.sealed[12:], _aad(record.vault, slot)
            )
        except (InvalidTag, ValueError):
            return None
        return decode(plain, KeyPayload, key_name(slot))


class Recipient:
    """Wraps slots for the holder of an X25519 private key; `public` is the raw public key."""

    def __init__(self, public: bytes) -> None:
        self._public = public

    def wrap(self, vault: bytes, slot: bytes, payload: KeyPayload, label: str, created: str) -> KeySlot:
        """A slot that only the private key opens."""
        sealed = seal_to(self._public, encode(payload), _aad(vault, slot))
        return KeySlot(vault=vault, label=label, created=created, sealed=sealed, recipient=self._public)


class Identity:
    """Opens slots made for the public half of an X25519 private key."""

    def __init__(self, private: X25519PrivateKey) -> None:
        self._private = private
        self._public = private.public_key().public_bytes_raw()

    def unwrap(self, slot: bytes, record: KeySlot) -> KeyPayload | None:
        """None where the slot is for somebody else; DamageError where it is for us and does not open."""
        if record.recipient != self._public:
            return None
        plain = unseal_with(self._private, record.sealed, _aad(record.vault, slot), on=key_name(slot))
        return decode(plain, KeyPayload, key_name(slot))
