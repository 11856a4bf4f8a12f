"""The vault's keys: slots, rotation, recovery kits and writer credentials."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

from safehold.model.errors import DamageError, StoreError, UsageError, VaultKeyError
from safehold.vault.access import Unlocked, document_owner, read_slots
from safehold.vault.catalogue import Rejected
from safehold.vault.create import add_slot, timestamp
from safehold.vault.gc.link import add_link
from safehold.vault.keys import Keyring, OwnerKey, new_seed
from safehold.vault.kit import Kit, render_kit
from safehold.vault.names import gc_name, key_name, writer_name
from safehold.vault.records import Generation, KeyPayload, KeySlot
from safehold.vault.slots import Wrapper
from safehold.vault.trust import Chain
from safehold.vault.vault import Vault
from safehold.vault.writers import WriterKey, new_writer, open_certificate, store_certificate

__all__ = [
    "Checked",
    "LateWriter",
    "Rotation",
    "Slot",
    "Writer",
    "add_key",
    "check_key",
    "export_writer",
    "find_slot",
    "late_writers",
    "list_keys",
    "list_writers",
    "paper_kit",
    "remove_key",
    "revoke_writer",
    "rotate_key",
    "store_policy",
    "writer_labels",
]


@dataclass(frozen=True)
class Slot:
    """A key slot as users see it; `method` is passphrase or recipient."""

    id: str
    label: str
    method: str
    created: str


def list_keys(vault: Vault) -> list[Slot]:
    """Every readable key slot."""
    slots, problems = read_slots(vault.store)
    for problem in problems:
        vault.ctx.progress.warn(str(problem))
    return [_slot(slot, record) for slot, record in slots.items()]


def _slot(slot: bytes, record: KeySlot) -> Slot:
    return Slot(slot.hex(), record.label, "passphrase" if record.kdf else "recipient", record.created)


def add_key(vault: Vault, unlocked: Unlocked, wrapper: Wrapper, label: str) -> Slot:
    """One more way into the vault."""
    vault.mend()
    slot = add_slot(vault.store, vault.id, _payload(vault, unlocked), wrapper, label, timestamp(vault.ctx))
    slots, _ = read_slots(vault.store)
    return _slot(slot, slots[slot])


def _payload(vault: Vault, unlocked: Unlocked) -> KeyPayload:
    """What goes into a new slot: a kit opens the vault without the document, which a slot has to carry."""
    if not unlocked.payload.document:
        raise UsageError(
            "vault.json is lost, so no key slot can be made that vouches for it",
            on=vault.store.url,
            remedy="restore what is needed with the kit, and make a new vault",
        )
    if document_owner(unlocked.document).generation not in unlocked.keyring:
        raise UsageError(
            "the kit's older secrets are missing, and a key slot needs all of them",
            on=vault.store.url,
            remedy="give the whole page of the kit",
        )
    return unlocked.payload


def find_slot(vault: Vault, prefix: str) -> Slot:
    """The slot whose id starts with `prefix`. UsageError where there is none or more than one, or where it is the
    last slot.
    """
    slots = list_keys(vault)
    fitting = [slot for slot in slots if slot.id.startswith(prefix)]
    if len(fitting) != 1:
        raise UsageError("no single key slot of that id", on=prefix, remedy="see them: safehold key list")
    if len(slots) == 1:
        raise UsageError("this is the last key slot", on=prefix, remedy="add another first: safehold key add")
    return fitting[0]


def remove_key(vault: Vault, slot: Slot) -> None:
    """Delete a slot."""
    vault.store.delete(key_name(bytes.fromhex(slot.id)))


@dataclass(frozen=True)
class Writer:
    """A writer as the owner sees it; `revoked_at` is when it was revoked by the store's clock, 0 for never."""

    id: str
    label: str
    resources: tuple[str, ...]
    exported: bool
    revoked: bool
    revoked_at: float = 0.0


def list_writers(vault: Vault) -> list[Writer]:
    """Every certified writer; none for a mere writer, who cannot read certificates."""
    if vault.keyring is None:
        return []
    revoked = vault.notes().revocations()
    out = []
    for wid, certificate in vault.writers.items():
        secret = open_certificate(vault.id, vault.keyring, certificate)
        since = revoked.get(wid, 0.0)
        out.append(Writer(wid.hex(), secret.label, secret.resources, certificate.exported, wid in revoked, since))
    return out


def writer_labels(vault: Vault) -> dict[bytes, str]:
    """The label of each certified writer, by its id; empty for one whose certificate cannot be opened."""
    labels = {}
    for wid, certificate in vault.writers.items():
        labels[wid] = ""
        if vault.keyring is not None:
            with contextlib.suppress(DamageError, VaultKeyError):
                labels[wid] = open_certificate(vault.id, vault.keyring, certificate).label
    return labels


@dataclass(frozen=True)
class LateWriter:
    """A writer that was revoked at `revoked` and that what lies in the vault since is of: the ids of these points, which do not count, and the
    newest one's time; both times by the store's clock. `resources` are patterns of what it was allowed.
    """

    id: str
    label: str
    resources: tuple[str, ...]
    revoked: float
    points: tuple[str, ...]
    last: float


def late_writers(vault: Vault, rejected: Sequence[Rejected]) -> list[LateWriter]:
    """Revoked writers that went on adding, by what is `rejected` among the points."""
    late: dict[bytes, list[Rejected]] = {}
    for one in rejected:
        if one.void and one.sid:
            late.setdefault(one.wid, []).append(one)
    if not late:
        return []
    revoked, labels, catalogue = vault.notes().revocations(), writer_labels(vault), vault.catalogue()
    return [
        LateWriter(
            wid.hex(),
            labels.get(wid, ""),
            catalogue.patterns(mine[0].name),
            revoked.get(wid, 0.0),
            tuple(one.id for one in mine),
            max(one.time for one in mine),
        )
        for wid, mine in late.items()
    ]


@dataclass(frozen=True)
class Checked:
    """What a credential turned out to be."""

    vault: str
    role: str
    can: str


def check_key(vault: Vault, *, by_kit: bool) -> Checked:
    """Prove that the credential at hand works on the vault as it is now. DamageError or VaultKeyError where it does
    not. That a recovery kit opened it is remembered in the vault: a second copy of the key is known.
    """
    if vault.keyring is None:
        writer = vault.writer()
        certificate = vault.certificate(writer.wid)
        if certificate is None or certificate.verify != writer.sign.public_key().public_bytes_raw():
            raise VaultKeyError(
                "the credential's certificate is not in the vault",
                on=writer.label,
                remedy="have the owner make a new one",
            )
        vault.demand_standing()
        return Checked(
            vault.document.id,
            f"writer {writer.wid.hex()[:8]}",
            "adds points of " + ", ".join(writer.resources) + "; reads nothing",
        )
    owner = vault.owner_key
    if by_kit:
        try:
            vault.notes().remember_kit()
        except StoreError as error:
            # The kit is as good as ever: a rescue may well have no more than a copy that it can only read.
            vault.ctx.progress.warn(f"the vault cannot be written to, and so does not remember this: {error}")
    return Checked(
        vault.document.id, f"owner, key generation {owner.generation}", "reads everything, adds points, manages keys"
    )


def store_policy(url: str, writer: WriterKey) -> str:
    """The least access to the store that a writer needs, as an S3 policy; for a directory, what it cannot be kept
    from.
    """
    parts = urlsplit(url)
    if parts.scheme != "s3":
        return (
            "A directory cannot keep a writer from deleting or overwriting: give it to hosts you trust,\n"
            "or serve it as an S3 store and use the policy printed for that."
        )
    bucket, prefix = parts.netloc, parts.path.strip("/")
    base = f"arn:aws:s3:::{bucket}/{prefix + '/' if prefix else ''}"
    wid = writer.wid.hex()
    readable = [
        "vault.json",
        "gc/*",
        "writers/*",
        f"index/{wid}/*",
        f"index/{writer.domain.hex()}/*",
        f"sessions/{wid}/*",
        f"points/{wid}/*",
        f"logs/{wid}/*",
        "forget/*",
        "packs/*",
        "meta/*",
    ]
    writable = [f"sessions/{wid}/*", f"index/{wid}/*", f"points/{wid}/*", f"logs/{wid}/*", "packs/*", "meta/*"]
    statements = [
        {"Effect": "Allow", "Action": "s3:GetObject", "Resource": [base + name for name in readable]},
        {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": f"arn:aws:s3:::{bucket}"},
        {
            "Effect": "Allow",
            "Action": "s3:PutObject",
            "Resource": [base + name for name in writable],
            "Condition": {"Null": {"s3:if-none-match": "false"}},
        },
    ]
    return msgspec.json.format(
        msgspec.json.encode({"Version": "2012-10-17", "Statement": statements}), indent=1
    ).decode()


@dataclass(frozen=True)
class Rotation:
    """A new owner generation, the kit that goes with it, the new slot, and the old slots that were removed."""

    generation: int
    kit: str
    slot: Slot
    removed: list[Slot]


def rotate_key(vault: Vault, unlocked: Unlocked, wrapper: Wrapper, label: str) -> Rotation:
    """Make a new owner key that later sessions are sealed to.

    In this order, so that a killed rotation leaves a vault that opens: the new slot (it holds the old generations
    too), the record in the gc chain that puts the new key in force, and then the old slots go. Writer credentials
    made before keep working: the chain tells them.
    """
    vault.mend()
    ctx, chain = vault.ctx, _in_force(vault, unlocked.keyring)
    record = chain.record
    if record is None:
        raise UsageError(
            "the gc chain is missing, and a rotation is recorded there", on="gc/", remedy="see runbook: damaged vault"
        )
    old = unlocked.keyring.get(record.owner.generation)
    number = old.generation + 1
    fresh = OwnerKey(number, new_seed())
    kept = tuple(g for g in unlocked.payload.generations if g.number < number)
    payload = KeyPayload((*kept, Generation(number, fresh.seed)), _payload(vault, unlocked).document)
    before = list_keys(vault)
    slot = add_slot(vault.store, vault.id, payload, wrapper, label, timestamp(ctx))
    if not add_link(vault.store, vault.id, old, record, chain.digest, owner=fresh.public):
        vault.store.delete(key_name(slot))
        raise UsageError(
            "somebody else changed the vault at the same moment",
            on=gc_name(record.number + 1),
            remedy="rotate again",
        )
    for one in before:
        vault.store.delete(key_name(bytes.fromhex(one.id)))
    kit = Kit(vault.id, Keyring(payload.generations).generations)
    return Rotation(
        number,
        render_kit(vault.store.url, kit, timestamp(ctx)),
        Slot(slot.hex(), label, "passphrase", timestamp(ctx)),
        before,
    )


def _in_force(vault: Vault, keyring: Keyring) -> Chain:
    """The chain once it puts the newest key at hand in force: the records of a rotation that was killed, or whose records are gone, are made
    (again). What is sealed to a key must never become unreadable because the next rotation made another one of the same number.
    """
    chain = vault.chain
    while chain.behind and chain.record:
        number = chain.record.owner.generation
        signer, following = keyring.get(number), keyring.get(number + 1)
        # Lost to somebody else who makes one at this moment: then that is followed.
        add_link(vault.store, vault.id, signer, chain.record, chain.digest, owner=following.public)
        chain = vault.newest_chain()
    return chain


def paper_kit(vault: Vault, unlocked: Unlocked) -> str:
    """The recovery kit's text. That one was made says nothing of where it is: `check_key` notes that it is there, and works."""
    kit = Kit(vault.id, unlocked.keyring.generations)
    return render_kit(vault.store.url, kit, timestamp(vault.ctx))


def export_writer(vault: Vault, label: str, resources: tuple[str, ...]) -> WriterKey:
    """A new credential that may only add points of the resources that the patterns match, in a dedup domain of its
    own.
    """
    vault.chain.require("write")
    vault.mend()
    writer = new_writer(vault.id, vault.owner, label, resources)
    vault.store.put(writer_name(writer.wid), [store_certificate(writer, vault.owner_key, exported=True)])
    return writer


def revoke_writer(vault: Vault, prefix: str) -> str:
    """From now on no point of that writer counts; returns its id in hex. UsageError where the id is unknown or the
    owner's own.
    """
    fitting = [
        wid for wid, certificate in vault.writers.items() if wid.hex().startswith(prefix) and certificate.exported
    ]
    if len(fitting) != 1:
        raise UsageError("no single exported writer of that id", on=prefix, remedy="see them: safehold key list")
    vault.mend()
    vault.notes().add(fitting[0], "revoked", {})
    return fitting[0].hex()
