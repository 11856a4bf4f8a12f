"""Whose signature counts: the owner's, by generation along the gc chain, and the writers' it certified."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from blake3 import blake3

from safehold.model.errors import DamageError, FormatError, ObjectNotFound, RollbackError
from safehold.ports.store import Store
from safehold.vault.bounds import check_size
from safehold.vault.envelope import Opened, decode, open_object
from safehold.vault.keys import Keyring
from safehold.vault.names import Kind, gc_name, gc_number, kind_of
from safehold.vault.records import Certificate, Features, GcRecord, OwnerPublic
from safehold.vault.writers import read_certificate

__all__ = ["Chain", "OwnerTrust", "Writers", "read_chain", "read_writers"]

KNOWN_FEATURES: frozenset[str] = frozenset()
"""Names of optional features that this program implements. Version 1 of the format has none."""

_NONE = Features()
_BATCH = 64
_AT_ONCE = 8
"""Records read at once by a machine that has to follow a long chain from its start."""


class OwnerTrust:
    """The owner's public signing keys that are believed, by generation; grows along rotations that are signed by a
    believed one.
    """

    def __init__(self, keyring: Keyring | None, pinned: OwnerPublic | None) -> None:
        known = [keyring.get(g.number).public for g in keyring.generations] if keyring else []
        self.held = known[-1].generation if known else 0
        """The newest generation of which the private keys are at hand; 0, where every vault begins, for a writer."""
        if pinned:
            known.append(pinned)
        self._known = {public.generation: public for public in known}

    def __contains__(self, generation: int) -> bool:
        return generation in self._known

    @property
    def believed(self) -> tuple[OwnerPublic, ...]:
        """Every owner key that is believed, the oldest first."""
        return tuple(self._known[generation] for generation in sorted(self._known))

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
    is gone, or (`broken`) where it cannot be followed to its newest record. `owner` are the keys in force as far as it was followed.

    `behind` says that the owner holds newer keys than those: records are missing. `beginning` are the feature lists of the vault's document.
    """

    record: GcRecord | None = None
    digest: bytes = b""
    problems: list[DamageError] = field(default_factory=list)
    broken: bool = False
    owner: OwnerPublic | None = None
    behind: RollbackError | None = None
    beginning: Features = _NONE

    @property
    def head(self) -> tuple[int, bytes] | None:
        """Number and digest of the newest record, from which the chain can be followed later: see `read_chain`."""
        return (self.record.number, self.digest) if self.record else None

    @property
    def features(self) -> Features:
        """The feature lists in force; where no record tells them, those that the vault began with."""
        return self.record.features if self.record else self.beginning

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
        where the newest record cannot be believed, or is not the newest.
        """
        if self.broken and kind != "read":
            raise self.problems[0]
        if self.behind and kind != "read":
            raise self.behind
        unknown = set(getattr(self.features, kind)) - KNOWN_FEATURES
        if unknown:
            raise FormatError(
                f"the vault uses {', '.join(sorted(unknown))}, which this program lacks, so it must not {kind}",
                remedy="use a newer safehold",
            )


def read_chain(
    store: Store, vault: bytes, trust: OwnerTrust, seen: tuple[int, bytes] | None = None, beginning: Features = _NONE
) -> Chain:
    """The newest gc record, reached link by link from where trust starts; `trust` learns the owner keys on the way.

    `seen` is the number and digest of the newest record that was followed to before: the walk starts there, and otherwise at the first
    record. A chain that ends before it, or holds another record under that number, is a RollbackError. `beginning` are the feature lists in
    the vault's document.
    """
    chain = replace(_follow(store, vault, trust, seen), beginning=beginning)
    reached = chain.owner.generation if chain.owner else 0
    if chain.broken or trust.held <= reached:
        return chain
    behind = RollbackError(
        f"owner key {trust.held} is at hand, and the vault's records end with {reached} in force: newer ones are hidden or lost, or a rotation "
        "was killed",
        on="gc/",
        remedy='backups and prunes are refused; restores work; see the runbook, "Damaged vault"',
    )
    return replace(chain, behind=behind, problems=[*chain.problems, behind])


def _follow(store: Store, vault: bytes, trust: OwnerTrust, seen: tuple[int, bytes] | None) -> Chain:
    listed = [stamp for stamp in store.list(Kind.GC.prefix + "/") if kind_of(stamp.name) is Kind.GC]
    numbers = sorted(gc_number(stamp.name) for stamp in listed)
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
    if seen and numbers[-1] < seen[0]:
        raise RollbackError(
            f"the vault shows gc record {numbers[-1]}, this machine has seen {seen[0]}: it was rolled back",
            on=store.url,
            remedy="find out who replaced the vault's objects; restores from a mirror are safe",
        )
    if seen and seen[0] not in numbers:
        raise RollbackError(f"gc record {seen[0]}, which this machine has seen, is gone", on=store.url)
    walk = _Walk(store, vault, trust, seen)
    try:
        for stamp in listed:
            check_size(stamp)
        for number, stored in _stored(store, [number for number in numbers if not seen or number >= seen[0]]):
            walk.take(number, stored)
        return walk.end()
    except RollbackError:
        raise
    except DamageError as error:
        told = DamageError(error.what, on=error.on, remedy="pruning and backups are refused; restores work")
        return Chain(problems=[*walk.problems, told], broken=True, owner=walk.owner)


def _stored(store: Store, numbers: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """The stored bytes of records in order; no bytes of one that is gone."""

    def get(number: int) -> bytes:
        try:
            return store.get(gc_name(number))
        except ObjectNotFound:
            return b""

    if len(numbers) <= _AT_ONCE:
        yield from ((number, get(number)) for number in numbers)
        return
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="chain") as pool:
        for at in range(0, len(numbers), _BATCH):
            batch = numbers[at : at + _BATCH]
            yield from zip(batch, pool.map(get, batch), strict=True)


class _Walk:
    """Follows the chain record by record. A record counts only if the owner key in force before it signed it: a key that was rotated away
    commands nothing from then on, whatever it signs.
    """

    def __init__(self, store: Store, vault: bytes, trust: OwnerTrust, seen: tuple[int, bytes] | None) -> None:
        self._store, self._vault, self._trust, self._seen = store, vault, trust, seen
        self._newest: tuple[GcRecord, bytes] | None = None
        self._next = seen[0] if seen else 0
        self._gap: DamageError | None = None
        self.owner: OwnerPublic | None = None
        self.problems: list[DamageError] = []

    def take(self, number: int, stored: bytes) -> None:
        """The next record. DamageError where it does not continue the chain; one that cannot be read is passed over."""
        name = gc_name(number)
        if number != self._next:
            self._gap = DamageError("a gc record is missing", on=gc_name(self._next))
        self._next = number + 1
        digest = blake3(stored).digest()
        seen = self._seen is not None and number == self._seen[0]
        if self._seen and seen and digest != self._seen[1]:
            raise RollbackError(
                f"gc record {number} is not the one this machine has seen",
                on=self._store.url,
                remedy=f"it is damaged, or the vault was rolled back: bring {name} back from a copy. A machine that never opened the vault reads it "
                "all the same: with SAFEHOLD_HOME at an empty directory",
            )
        try:
            opened = open_object(name, stored)
            record = decode(opened.payload, GcRecord, name)
            if gc_name(record.number) != name:
                raise DamageError("gc record is of another number than its name says", on=name)
        except DamageError as error:
            self._gap = error
            return
        if not seen:
            self._check(record, opened)
        if seen or self.owner or record.generation in self._trust or record.owner in self._trust.believed:
            self._trust.learn(record.owner)
            self.owner = record.owner
        if self._gap:
            self.problems.append(self._gap)
        self._newest, self._gap = (record, digest), None

    def _check(self, record: GcRecord, opened: Opened) -> None:
        if self._newest is not None and self._gap is None and record.previous != self._newest[1]:
            raise DamageError("gc record does not follow the one before it", on=opened.name)
        if self.owner is None:
            if record.generation not in self._trust:
                # Older than the key that a writer's credential pins: what follows vouches for it by its hash.
                return
        elif record.generation != self.owner.generation and not (
            # What cannot be read may have put the next key in force; only who holds that one can have signed.
            self._gap and record.generation > self.owner.generation
        ):
            raise DamageError(
                f"gc record is signed by owner key {record.generation} while {self.owner.generation} is in force: "
                "whoever made it holds an old key",
                on=opened.name,
            )
        self._trust.check(self._vault, opened, record.generation)
        if record.owner.generation not in (record.generation, record.generation + 1):
            raise DamageError("gc record skips an owner key", on=opened.name)

    def end(self) -> Chain:
        """The newest record; DamageError where it cannot be read or nothing vouches for it."""
        if self._gap:
            raise self._gap
        assert self._newest is not None
        record, digest = self._newest
        if self.owner is None:
            raise DamageError(
                f"object is signed by an unknown owner key (generation {record.generation})", on=gc_name(record.number)
            )
        return Chain(record, digest, self.problems, owner=self.owner)


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
            check_size(stamp)
            writers.learn(stamp.name, store.get(stamp.name))
        except DamageError as error:
            writers.problems.append(error)
        except ObjectNotFound:
            continue
    return writers
