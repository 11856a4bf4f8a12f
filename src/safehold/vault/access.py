"""Opening a vault: which keys are at hand, what they are allowed to do, and whether the vault is what they say it
is.
"""

from __future__ import annotations

import msgspec

from safehold.model.errors import (
    DamageError,
    FormatError,
    ObjectExists,
    ObjectNotFound,
    SafeholdError,
    UsageError,
    VaultKeyError,
)
from safehold.ports.store import Store
from safehold.vault.bounds import check_size
from safehold.vault.envelope import close, decode, open_object
from safehold.vault.keys import Keyring, OwnerKey
from safehold.vault.kit import Kit
from safehold.vault.names import Kind, key_name
from safehold.vault.records import Features, KeyPayload, KeySlot, OwnerPublic, Parameters, VaultDocument
from safehold.vault.sealing import MAX_PLAIN
from safehold.vault.slots import Unlocker

__all__ = [
    "FORMAT",
    "Unlocked",
    "document_owner",
    "parse_document",
    "put_document_back",
    "read_document",
    "read_slots",
    "unlock",
    "unlock_with_kit",
]

FORMAT = 1
_LARGEST_PACK = 1 << 30


class Unlocked(msgspec.Struct, frozen=True):
    """An opened key: its generations, the document that goes with it, and the id of the slot (empty for a recovery kit).

    `document_lost` is true where the store has no usable `vault.json` and the key slot's copy can take its place.

    `proven` is true where only somebody who knew the passphrase, or the kit, can have made what was opened. What opens with an identity,
    anybody who knows its public key can have made.
    """

    payload: KeyPayload
    document: VaultDocument
    slot: bytes
    warnings: tuple[str, ...] = ()
    proven: bool = True
    document_lost: bool = False

    @property
    def keyring(self) -> Keyring:
        """The owner's keys."""
        return Keyring(self.payload.generations)


def parse_document(data: bytes, name: str) -> VaultDocument:
    """`vault.json` from its JSON text; FormatError for a newer format."""
    try:
        document = msgspec.json.decode(data, type=VaultDocument)
        vault = bytes.fromhex(document.id)
        document_owner(document)
    except (msgspec.MsgspecError, ValueError, KeyError, UnicodeDecodeError) as error:
        raise DamageError(f"not a vault document ({error})", on=name) from error
    if len(vault) != 16:
        raise DamageError("vault id has the wrong length", on=name)
    if document.format != FORMAT:
        raise FormatError(
            f"vault has format {document.format}, this program reads {FORMAT}", on=name, remedy="use a newer safehold"
        )
    parameters = document.parameters
    possible = (
        512 <= parameters.block_size <= MAX_PLAIN
        and 0 < parameters.pack_size <= _LARGEST_PACK
        and 2 <= parameters.page_refs <= 1 << 16
        and 1 <= parameters.compression <= 19
        and parameters.minimum_age >= 0
        and parameters.recycle >= 0
    )
    if not possible:
        # A writer has only this copy, which nobody vouches for: what it says must not be able to hurt.
        raise DamageError("vault document has parameters that cannot be", on=name)
    return document


def document_owner(document: VaultDocument) -> OwnerPublic:
    """The owner's public keys in a document; only as good as the document."""
    owner = document.owner
    return OwnerPublic(int(owner["generation"]), bytes.fromhex(str(owner["seal"])), bytes.fromhex(str(owner["sign"])))


def read_document(store: Store) -> tuple[VaultDocument | None, bytes, str]:
    """The store's `vault.json`, its JSON bytes, and what is wrong with it (then the document is None)."""
    try:
        opened = open_object(Kind.VAULT.prefix, store.get(Kind.VAULT.prefix))
        return parse_document(opened.payload, Kind.VAULT.prefix), opened.payload, ""
    except ObjectNotFound:
        return None, b"", "vault.json is missing"
    except DamageError as error:
        return None, b"", str(error)


def put_document_back(store: Store, vault: bytes, document: bytes) -> bool:
    """Create `vault.json` with the bytes that a key slot holds; false where an object of that name is there, be it a damaged one."""
    name = Kind.VAULT.prefix
    try:
        store.put(name, [close(vault, name, document.removesuffix(b"\n"))])
    except ObjectExists:
        return False
    return True


def read_slots(store: Store) -> tuple[dict[bytes, KeySlot], list[DamageError]]:
    """Every key slot by its id, and what is wrong with the unreadable ones."""
    slots: dict[bytes, KeySlot] = {}
    problems: list[DamageError] = []
    for stamp in store.list(Kind.KEY.prefix + "/"):
        try:
            check_size(stamp)
            slots[bytes.fromhex(stamp.name.split("/")[1])] = decode(
                open_object(stamp.name, store.get(stamp.name)).payload, KeySlot, stamp.name
            )
        except (DamageError, ValueError) as error:
            problems.append(error if isinstance(error, DamageError) else DamageError("not a key slot", on=stamp.name))
        except ObjectNotFound:
            continue
    return slots, problems


def _no_vault(store: Store) -> UsageError:
    return UsageError(
        "no vault here",
        on=store.url,
        remedy=f"is it mounted, and the address right? To make one: safehold vault init {store.url}",
    )


def unlock(store: Store, unlocker: Unlocker) -> Unlocked:
    """Open the vault's key with a passphrase or identity.

    The document inside the slot is the one that is believed. Slots that are for this unlocker and cannot be used are passed over with a
    warning: whoever may write can put more there. VaultKeyError where no slot opens, DamageError where `vault.json` says otherwise than
    those that do, UsageError where there is no vault.
    """
    document, raw, wrong = read_document(store)
    slots, problems = read_slots(store)
    if document is None and not slots and not problems:
        raise _no_vault(store)
    unusable: list[SafeholdError] = []
    replaced: list[SafeholdError] = []
    # Newest first: a rotation that was killed leaves old slots beside its own, and the same passphrase may open both.
    for slot, record in sorted(slots.items(), key=lambda found: found[1].created, reverse=True):
        try:
            payload = unlocker.unwrap(slot, record)
            if payload is None:
                continue
            authentic = _vouched_for(payload, key_name(slot))
        except (DamageError, FormatError) as error:
            unusable.append(error)
            continue
        if raw and payload.document != raw:
            replaced.append(
                DamageError(
                    "vault.json is not the one this key was made for: it was replaced",
                    on=store.url,
                    remedy="restore vault.json from a mirror; do not write to this vault before",
                )
            )
            continue
        passed_over = tuple(f"a key slot is passed over: {error}" for error in (*unusable, *replaced))
        warnings = (f"{wrong}; the copy inside the key slot is used",) if wrong else ()
        return Unlocked(
            payload,
            authentic,
            slot,
            (*passed_over, *warnings),
            proven=record.kdf is not None,
            document_lost=document is None,
        )
    for told in (*replaced, *(one for one in unusable if isinstance(one, FormatError))):
        raise told
    if unusable:
        raise DamageError(
            f"no key slot opens, and {len(unusable)} cannot be used ({unusable[0].what})",
            on=unusable[0].on,
            remedy="see that it is the right passphrase or key, or open the vault with the recovery kit: --kit FILE",
        )
    if not slots:
        raise DamageError(
            f"no key slot can be read ({problems[0]})" if problems else "all key slots are gone",
            on=store.url,
            remedy="open the vault with the recovery kit: --kit FILE",
        )
    raise VaultKeyError(
        "wrong passphrase or key",
        on=store.url,
        remedy="try again, or open the vault with the recovery kit: --kit FILE",
    )


def _vouched_for(payload: KeyPayload, name: str) -> VaultDocument:
    """The document in a key slot. DamageError where the slot's keys are not those of the owner that the document names."""
    document = parse_document(payload.document, name)
    named = document_owner(document)
    if not any(OwnerKey(one.number, one.seed).public == named for one in payload.generations):
        raise DamageError("key slot holds other keys than those of its vault's owner", on=name)
    return document


def unlock_with_kit(store: Store, kit: Kit) -> Unlocked:
    """Open the vault with its recovery kit: neither key slots nor `vault.json` are needed."""
    document, raw, wrong = read_document(store)
    keyring = Keyring(kit.generations)
    if document is not None:
        if bytes.fromhex(document.id) != kit.vault:
            raise VaultKeyError(
                "the recovery kit is of another vault", on=store.url, remedy=f"this vault's id is {document.id}"
            )
        public = document_owner(document)
        if public.generation in keyring and keyring.get(public.generation).public != public:
            raise DamageError("vault.json names another owner than the recovery kit: it was replaced", on=store.url)
        return Unlocked(KeyPayload(kit.generations, raw), document, b"")
    if not any(True for _ in store.list("")):
        raise _no_vault(store)
    public = keyring.get(kit.generations[0].number).public
    owner: dict[str, str | int] = {
        "generation": public.generation,
        "seal": public.seal.hex(),
        "sign": public.sign.hex(),
    }
    rebuilt = VaultDocument(FORMAT, kit.vault.hex(), "", Parameters(), Features(), owner)
    return Unlocked(KeyPayload(kit.generations, b""), rebuilt, b"", (f"{wrong}; default parameters are used",))
