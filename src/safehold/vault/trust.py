"""Whose signature counts: the owner's, by generation along the gc chain, and the writers' it certified."""

from __future__ import annotations

from dataclasses import dataclass, field

from blake3 import blake3

from safehold.model.errors import DamageError, FormatError, ObjectNotFound, RollbackError
from safehold.ports.store import Store
from safehold.vault.envelope import Opened, decode, open_object
from safehold.vault.keys import Keyring
from safehold.vault.names import Kind, gc_name, gc_number, kind_of
from safehold.vault.records import Certificate, Features, GcRecord, OwnerPublic
from safehold.vault.writers import read_certificate

__all__ = ["Chain", "OwnerTrust", "Writers", "read_chain", "read_writers"]

KNOWN_FEATURES: frozenset[str] = frozenset()
"""Names of optional features that this program implements. Version 1 of the format has none."""


class OwnerTrust:
    """The owner's public signing keys that are believed, by generation; grows along rotations that are signed by a
    believed one.
    """

    def __init__(self, keyring: Keyring | None, pinned: OwnerPublic | None) -> None:
        known = [keyring.get(g.number).public for g in keyring.generations] if keyring else []
        if pinned:
            known.append(pinned)
        self._known = {public.generation: public for public in known}

    def __contains__(self, generation: int) -> bool:
        return generation in self._known

    def check(self, vault: bytes, opened: Opened, generation: int) -> None:
        """DamageError unless the object is signed by that generation of the owner and that generation is believed."""
        public = self._known.get(generation)
        if public is None:
            raise DamageError(f"object is signed by an unknown owner key (generation {generation})", on=opened.name)
        opened.check(vault, public.sign)

    def learn(self, public: OwnerPublic) -> None:
        """Believe a newer generation; a different key for a known generation is refused."""
        known = self._known.setdefault(public.generation, public)
        if known != public:
            raise DamageError(f"two different owner keys claim generation {public.generation}", on="gc")


@dataclass(frozen=True)
class Chain:
    """The newest record of the gc chain and the BLAKE3 of its stored bytes; `record` is None where the whole chain
    is gone, or (`broken`) its newest record is damaged.
    """

    record: GcRecord | None = None
    digest: bytes = b""
    problems: list[DamageError] = field(default_factory=list)
    broken: bool = False

    @property
    def features(self) -> Features:
        """The feature lists in force."""
        return self.record.features if self.record else Features()

    @property
    def unusable_packs(self) -> frozenset[str]:
        """Names of packs that nothing may be deduplicated against."""
        if self.record is None:
            return frozenset()
        return frozenset((*self.record.condemned, *self.record.dead, *self.record.damaged))

    @property
    def base_runs(self) -> dict[str, bytes]:
        """The base runs in force by name, with the BLAKE3 of each one's stored bytes."""
        return {run.name: run.digest for run in self.record.base} if self.record else {}

    def require(self, kind: str) -> None:
        """FormatError unless this program knows every feature on the `read` (`write`, `delete`) list; DamageError for anything but reading
        where the newest record cannot be believed.
        """
        if self.broken and kind != "read":
            raise self.problems[0]
        unknown = set(getattr(self.features, kind)) - KNOWN_FEATURES
        if unknown:
            raise FormatError(
                f"the vault uses {', '.join(sorted(unknown))}, which this program lacks, so it must not {kind}",
                remedy="use a newer safehold",
            )


def _read(store: Store, name: str) -> tuple[GcRecord, bytes, Opened]:
    stored = store.get(name)
    opened = open_object(name, stored)
    record = decode(opened.payload, GcRecord, name)
    if gc_name(record.number) != name:
        raise DamageError("gc record is of another number than its name says", on=name)
    return record, blake3(stored).digest(), opened


def read_chain(store: Store, vault: bytes, trust: OwnerTrust, seen: tuple[int, bytes] | None = None) -> Chain:
    """The newest gc record, checked back to where trust starts.

    `seen` is the number and digest of the newest record this machine has met: a chain that ends before it, or holds
    another record under that number, is a RollbackError.
    """
    numbers = [gc_number(s.name) for s in store.list(Kind.GC.prefix + "/") if kind_of(s.name) is Kind.GC]
    if not numbers:
        if seen:
            raise RollbackError(
                "the vault's gc chain is gone, and this machine has seen one",
                on=store.url,
                remedy="see runbook: damaged vault",
            )
        return Chain(
            problems=[DamageError("the gc chain is missing", on="gc/", remedy="pruning is refused; restores work")]
        )
    newest = max(numbers)
    if seen and newest < seen[0]:
        raise RollbackError(
            f"the vault shows gc record {newest}, this machine has seen {seen[0]}: it was rolled back",
            on=store.url,
            remedy="find out who replaced the vault's objects; restores from a mirror are safe",
        )
    if seen:
        try:
            digest = blake3(store.get(gc_name(seen[0]))).digest()
        except ObjectNotFound:
            digest = b""
        if digest != seen[1]:
            raise RollbackError(f"gc record {seen[0]} is not the one this machine has seen", on=store.url)
    try:
        return _newest(store, vault, trust, numbers)
    except DamageError as error:
        return Chain(
            problems=[DamageError(error.what, on=error.on, remedy="pruning and backups are refused; restores work")],
            broken=True,
        )


def _newest(store: Store, vault: bytes, trust: OwnerTrust, numbers: list[int]) -> Chain:
    record, digest, opened = _read(store, gc_name(max(numbers)))
    if record.generation not in trust:
        _learn_rotations(store, vault, trust, numbers)
    trust.check(vault, opened, record.generation)
    trust.learn(record.owner)
    return Chain(record, digest)


def _learn_rotations(store: Store, vault: bytes, trust: OwnerTrust, numbers: list[int]) -> None:
    """Walk the chain in order, believing each new owner key that a believed one signed in."""
    for number in sorted(numbers):
        record, _, opened = _read(store, gc_name(number))
        if record.generation in trust:
            trust.check(vault, opened, record.generation)
            trust.learn(record.owner)


class Writers:
    """The certified writers of a vault by their ids; `stored` are the stored bytes of each certificate."""

    def __init__(self, vault: bytes, trust: OwnerTrust) -> None:
        self._vault, self._trust = vault, trust
        self.certificates: dict[bytes, Certificate] = {}
        self.stored: dict[bytes, bytes] = {}
        self.problems: list[DamageError] = []

    def learn(self, name: str, stored: bytes) -> Certificate:
        """Add a writer by the stored bytes of its certificate. DamageError unless the owner signed it under that name."""
        opened = open_object(name, stored)
        record = read_certificate(opened)
        self._trust.check(self._vault, opened, record.generation)
        self.certificates[record.wid] = record
        self.stored[record.wid] = stored
        return record


def read_writers(store: Store, vault: bytes, trust: OwnerTrust) -> Writers:
    """Every writer whose certificate is in its place; what is wrong with the others is in `problems`."""
    writers = Writers(vault, trust)
    for stamp in store.list(Kind.WRITER.prefix + "/"):
        if kind_of(stamp.name) is not Kind.WRITER:
            continue
        try:
            writers.learn(stamp.name, store.get(stamp.name))
        except DamageError as error:
            writers.problems.append(error)
        except ObjectNotFound:
            continue
    return writers
