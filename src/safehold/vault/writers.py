"""Who may write: credentials that can add points and can read nothing."""

from __future__ import annotations

import fnmatch
import os
from dataclasses import dataclass

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from safehold.model.errors import DamageError, VaultKeyError
from safehold.vault.envelope import Opened, close, decode, encode
from safehold.vault.keys import Keyring, OwnerKey, seal_to, unseal_with
from safehold.vault.names import writer_name
from safehold.vault.records import Certificate, CertificateSecret, OwnerPublic

__all__ = [
    "WriterKey",
    "allows",
    "new_writer",
    "open_certificate",
    "read_certificate",
    "store_certificate",
    "writer_from_secret",
]


@dataclass(frozen=True)
class WriterKey:
    """What a writer holds: who it is, how it signs, its domain's keys, and the owner's public keys, pinned.

    `resources` are shell patterns of names it may commit.
    """

    vault: bytes
    wid: bytes
    domain: bytes
    label: str
    resources: tuple[str, ...]
    sign_seed: bytes
    dedup_key: bytes
    index_key: bytes
    owner: OwnerPublic

    @property
    def sign(self) -> Ed25519PrivateKey:
        """The signing key."""
        return Ed25519PrivateKey.from_private_bytes(self.sign_seed)

    def may_write(self, resource: str) -> bool:
        """True where the certificate allows points of that name."""
        return allows(self.resources, resource)

    def export(self, url: str) -> bytes:
        """The credential file: JSON, secret, with the vault's location as a hint."""
        return (
            msgspec.json.format(msgspec.json.encode({"safehold": "writer credential", "url": url, **_plain(self)}))
            + b"\n"
        )

    @classmethod
    def load(cls, text: bytes, *, on: str) -> WriterKey:
        """Undo `export`; VaultKeyError naming `on` where the file is something else."""
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
            raise VaultKeyError(
                f"not a writer credential ({error})", on=on, remedy="give a file made by `safehold key writer`"
            ) from error


def _plain(writer: WriterKey) -> dict[str, object]:
    plain: dict[str, object] = msgspec.to_builtins(writer)
    return plain


def allows(patterns: tuple[str, ...], resource: str) -> bool:
    """True where one of the shell patterns matches the resource's name."""
    return any(fnmatch.fnmatchcase(resource, pattern) for pattern in patterns)


def new_writer(vault: bytes, owner: OwnerPublic, label: str, resources: tuple[str, ...]) -> WriterKey:
    """Fresh keys in a dedup domain of its own."""
    return WriterKey(
        vault=vault,
        wid=os.urandom(16),
        domain=os.urandom(16),
        label=label,
        resources=resources,
        sign_seed=os.urandom(32),
        dedup_key=os.urandom(32),
        index_key=os.urandom(32),
        owner=owner,
    )


def _info(vault: bytes, wid: bytes) -> bytes:
    return b"SH1 writer" + vault + wid


def store_certificate(writer: WriterKey, owner: OwnerKey, *, exported: bool) -> bytes:
    """The stored bytes of the writer's certificate. Only the owner's own writer leaves its signing key in it (sealed
    to the owner).
    """
    secret = CertificateSecret(
        writer.label, writer.resources, writer.dedup_key, writer.index_key, b"" if exported else writer.sign_seed
    )
    record = Certificate(
        wid=writer.wid,
        domain=writer.domain,
        verify=writer.sign.public_key().public_bytes_raw(),
        exported=exported,
        generation=owner.generation,
        sealed=seal_to(owner.public.seal, encode(secret), _info(writer.vault, writer.wid)),
    )
    return close(writer.vault, writer_name(writer.wid), encode(record), owner.sign)


def read_certificate(opened: Opened) -> Certificate:
    """The certificate in an object whose signature the caller checks; DamageError where the name is of another
    writer.
    """
    record = decode(opened.payload, Certificate, opened.name)
    if writer_name(record.wid) != opened.name or len(record.domain) != 16:
        raise DamageError("certificate is of another writer than its name says", on=opened.name)
    return record


def open_certificate(vault: bytes, keyring: Keyring, record: Certificate) -> CertificateSecret:
    """What the owner can read in a certificate."""
    name = writer_name(record.wid)
    plain = unseal_with(keyring.get(record.generation).seal, record.sealed, _info(vault, record.wid), on=name)
    return decode(plain, CertificateSecret, name)


def writer_from_secret(vault: bytes, owner: OwnerPublic, record: Certificate, secret: CertificateSecret) -> WriterKey:
    """The owner's own writer, put together from its certificate."""
    return WriterKey(
        vault=vault,
        wid=record.wid,
        domain=record.domain,
        label=secret.label,
        resources=secret.resources,
        sign_seed=secret.sign_seed,
        dedup_key=secret.dedup_key,
        index_key=secret.index_key,
        owner=owner,
    )
