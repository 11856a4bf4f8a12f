from __future__ import annotations

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from safehold.model.errors import DamageError
from safehold.vault.records import Generation, KeyPayload, KeySlot
from safehold.vault.slots import Identity, Passphrase, Recipient

VAULT, SLOT = b"v" * 16, b"s" * 16
PAYLOAD = KeyPayload((Generation(0, b"x" * 32),), b"document")


def test_passphrase() -> None:
    record = Passphrase("right").wrap(VAULT, SLOT, PAYLOAD, "label", "now")
    assert Passphrase("right").unwrap(SLOT, record) == PAYLOAD
    assert Passphrase("wrong").unwrap(SLOT, record) is None
    assert Passphrase("right").unwrap(b"t" * 16, record) is None, "bound to its slot"
    assert Passphrase("right").unwrap(SLOT, msgspec.structs.replace(record, vault=b"w" * 16)) is None, (
        "and to its vault"
    )
    assert b"right" not in msgspec.msgpack.encode(record)


def test_recipient() -> None:
    private = X25519PrivateKey.generate()
    record = Recipient(private.public_key().public_bytes_raw()).wrap(VAULT, SLOT, PAYLOAD, "label", "now")
    assert Identity(private).unwrap(SLOT, record) == PAYLOAD
    assert Identity(X25519PrivateKey.generate()).unwrap(SLOT, record) is None
    assert Passphrase("x").unwrap(SLOT, record) is None
    with pytest.raises(DamageError):
        Identity(private).unwrap(b"t" * 16, record)


@pytest.mark.parametrize(
    "changes",
    [
        {"memory": 1 << 30},
        {"memory": 1},
        {"iterations": 10**6},
        {"iterations": 0},
        {"lanes": 0},
        {"lanes": 1000},
        {"salt": b""},
    ],
    ids=str,
)
def test_unreasonable_parameters_are_refused_before_they_cost_anything(changes: dict[str, object]) -> None:
    record = Passphrase("x").wrap(VAULT, SLOT, PAYLOAD, "", "")
    assert record.kdf is not None
    forged: KeySlot = msgspec.structs.replace(record, kdf=msgspec.structs.replace(record.kdf, **changes))
    with pytest.raises(DamageError, match="unreasonable"):
        Passphrase("x").unwrap(SLOT, forged)
