"""What the objects of a vault hold, as data. Stored as MessagePack maps; unknown fields are ignored, so that fields
can be added.
"""

from __future__ import annotations

from typing import Any

import msgspec

from safehold.model.quiet import Quieted
from safehold.model.topology import Topology

__all__ = [
    "BaseRun",
    "Certificate",
    "CertificateSecret",
    "Features",
    "Forget",
    "GcRecord",
    "Generation",
    "Heartbeat",
    "KeyPayload",
    "KeySlot",
    "LogPiece",
    "Member",
    "Note",
    "NoteBody",
    "OwnerPublic",
    "Parameters",
    "PassphraseKdf",
    "Pin",
    "PointBody",
    "PointObject",
    "RunObject",
    "RunPack",
    "SealedKey",
    "SessionInfo",
    "SessionObject",
    "VaultDocument",
]


class Features(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a program must know to read, to write, and to expire, prune or repack."""

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    delete: tuple[str, ...] = ()


class OwnerPublic(msgspec.Struct, frozen=True):
    """The public keys of one owner generation: `seal` X25519, `sign` Ed25519, 32 raw bytes each."""

    generation: int
    seal: bytes
    sign: bytes


class Parameters(msgspec.Struct, frozen=True):
    """Fixed when the vault is made. Sizes in bytes, times in seconds.

    `minimum_age` and `recycle` protect points of exported writers from being expired or deleted early; 0 is off.
    """

    block_size: int = 512 * 1024
    pack_size: int = 16 * 1024 * 1024
    page_refs: int = 512
    compression: int = 1
    minimum_age: int = 0
    recycle: int = 0


class VaultDocument(msgspec.Struct, frozen=True):
    """`vault.json`. A hint: whoever has an owner key trusts the copy inside a key slot instead."""

    format: int
    id: str
    created: str
    parameters: Parameters
    features: Features
    owner: dict[str, str | int]


class PassphraseKdf(msgspec.Struct, frozen=True):
    """Argon2id: `memory` in KiB."""

    salt: bytes
    iterations: int
    lanes: int
    memory: int


class KeySlot(msgspec.Struct, frozen=True, omit_defaults=True):
    """`keys/<id>`: the owner's secrets, wrapped. Exactly one of `kdf` (a passphrase) and `recipient` (an X25519
    public key) is set.
    """

    vault: bytes
    label: str
    created: str
    sealed: bytes
    kdf: PassphraseKdf | None = None
    recipient: bytes | None = None


class Generation(msgspec.Struct, frozen=True):
    """One owner seed, 32 bytes, from which both key pairs of that generation are derived."""

    number: int
    seed: bytes


class KeyPayload(msgspec.Struct, frozen=True):
    """Inside a key slot: every generation of the owner's key, and the whole of `vault.json`, which this
    authenticates.
    """

    generations: tuple[Generation, ...]
    document: bytes


class SealedKey(msgspec.Struct, frozen=True):
    """A session's secrets (session key, then dedup key), sealed by HPKE to one generation of the owner."""

    wid: bytes
    sid: bytes
    generation: int
    suite: int
    sealed: bytes


class CertificateSecret(msgspec.Struct, frozen=True):
    """Sealed to the owner inside a certificate. `sign_seed` is there only for the owner's own writer.

    `resources` are shell patterns of resource names that the writer may commit.
    """

    label: str
    resources: tuple[str, ...]
    dedup_key: bytes
    index_key: bytes
    sign_seed: bytes


class Certificate(msgspec.Struct, frozen=True):
    """`writers/<wid>`, signed by the owner: whose signature counts as that writer's, and in which dedup domain it
    writes.
    """

    wid: bytes
    domain: bytes
    verify: bytes
    exported: bool
    generation: int
    sealed: bytes


class SessionInfo(msgspec.Struct, frozen=True):
    """Sealed inside a session object: enough to tell whether the process is still alive, for someone on the same
    host.
    """

    host: str
    boot: str
    pid: int
    process_start: int
    program: str
    started: float
    run: str


class SessionObject(msgspec.Struct, frozen=True):
    """`sessions/<wid>/<sid>`, signed by the writer."""

    key: SealedKey
    sealed: bytes


class Heartbeat(msgspec.Struct, frozen=True):
    """`sessions/<wid>/<sid>.<n>`, signed by the writer: still at work. The store's time of the object is what
    counts.
    """

    number: int


class RunPack(msgspec.Struct, frozen=True):
    """A pack that an index run speaks of; in clear, so that its absence shows without a key."""

    name: str
    size: int


class RunObject(msgspec.Struct, frozen=True):
    """`index/<wid>/<sid>-<k>`, signed by the writer, or for a base run by the owner.

    `frames` are sealed under the domain's index key, at most 1 MiB of 48-byte rows each.
    """

    domain: bytes
    generation: int
    base: bool
    packs: tuple[RunPack, ...]
    rows: int
    frames: tuple[bytes, ...]


class Member(msgspec.Struct, frozen=True, omit_defaults=True):
    """One resource inside a point.

    `root` is the id of the top node (32 zero bytes: all zeros), `levels` the depth of the tree below it, `size` the
    length in bytes, `entries` the files, directories and so on of a tree. `location` and `more` are where it lay. `partial` says
    what of it is missing, one line each. Consistency is recorded as words: what was asked for, and what was achieved. `taken` is from
    when to when it was held still, `pause` the seconds for which others had to wait for it, and `brackets` what they waited for.
    `lineage` names the point of the same resource that this one
    followed, as `<wid>/<sid>` in hex.
    """

    kind: str
    name: str
    root: bytes
    levels: int
    size: int
    block_size: int
    page_refs: int
    asked: str
    achieved: str
    taken: tuple[float, float]
    pause: float = 0.0
    topology: Topology | None = None
    lineage: str = ""
    location: str = ""
    more: tuple[str, ...] = ()
    entries: int = 0
    partial: tuple[str, ...] = ()
    brackets: tuple[Quieted, ...] = ()


class PointBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sealed inside a point. `nodes` are the roots to walk for everything the point needs, whatever the kinds of its
    members.

    `adopted`: the user said that this host goes on with what another began.

    Byte counts: `read` from the sources, `new` of plaintext that was not in the vault, `stored` added to it, `twice`
    that another writer stored at the same time.
    """

    nodes: tuple[bytes, ...]
    members: tuple[Member, ...]
    host: str
    host_id: str
    program: str
    run: str
    started: float
    finished: float
    tags: dict[str, str] = {}
    keep: bool = False
    adopted: bool = False
    read: int = 0
    new: int = 0
    stored: int = 0
    twice: int = 0


class PointObject(msgspec.Struct, frozen=True):
    """`points/<wid>/<sid>`, signed by the writer.

    `certificate` are the stored bytes of the writer's certificate, so that the point can be believed should that be lost.
    """

    key: SealedKey
    sealed: bytes
    certificate: bytes


class NoteBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sealed inside a note. `kind` is one of tag, hold, release, verified, proof, lock-until, first-seen, revoked,
    kit, upkeep, damaged, repaired.
    """

    kind: str
    time: float
    data: dict[str, Any] = {}


class Note(msgspec.Struct, frozen=True):
    """`notes/<subject>/<seq>`, signed by the owner; `sealed` by HPKE to the owner's generation."""

    generation: int
    sealed: bytes


class Pin(msgspec.Struct, frozen=True):
    """`pins/<id>`, signed by the owner: something depends on the point `<wid>/<sid>`."""

    generation: int
    point: str
    sealed: bytes


class Forget(msgspec.Struct, frozen=True):
    """`forget/<sid>`, signed by the owner: the point `<wid>/<sid>` is about to be expired."""

    generation: int
    point: str


class LogPiece(msgspec.Struct, frozen=True):
    """`logs/<wid>/<stream>/<epoch>-<seq>`, signed by the writer: self-contained."""

    key: SealedKey
    sealed: bytes


class BaseRun(msgspec.Struct, frozen=True):
    """A base index run by name and BLAKE3 of its stored bytes."""

    name: str
    digest: bytes


class GcRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """`gc/<n>`, signed by the owner generation that was current before it.

    `previous` is the BLAKE3 of the stored bytes of record n-1 (empty for 0). `owner` are the public keys in force
    from here on; a rotation is a record whose `owner` is newer than its signer. Names are object names. `points` are
    those that the last prune which deleted something found in the end. `awaited` are the sessions that may
    rely on what is condemned; None while nobody listed them. `damaged` are packs that a verification found missing or bad: readers
    still try them, and nobody deduplicates against them.
    """

    number: int
    previous: bytes
    generation: int
    owner: OwnerPublic
    features: Features = Features()
    condemned: tuple[str, ...] = ()
    dead: tuple[str, ...] = ()
    base: tuple[BaseRun, ...] = ()
    absorbed: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    awaited: tuple[str, ...] | None = None
    damaged: tuple[str, ...] = ()
