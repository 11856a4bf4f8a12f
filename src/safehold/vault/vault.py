"""An open vault: the one object through which everything above reads and writes points."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
from blake3 import blake3

from safehold.model.context import Context
from safehold.model.errors import DamageError, ObjectNotFound, VaultKeyError
from safehold.ports.store import Store
from safehold.vault.access import Unlocked, put_document_back
from safehold.vault.catalogue import CachedPoint, Catalogue, Point, Rejected
from safehold.vault.disk import StoredDisk
from safehold.vault.disk_tree import DiskTree
from safehold.vault.fetch import ChunkReader, Fetcher, SecretCache
from safehold.vault.forget import Expiry, forgotten_points, is_forgotten, unaccounted
from safehold.vault.heads import Head, Heads
from safehold.vault.keys import Keyring, OwnerKey
from safehold.vault.locate import DomainFinder, Locator
from safehold.vault.lost import LOST, lost_points
from safehold.vault.names import Kind, run_name, writer_name
from safehold.vault.notes import FoundNote, Notes, noted
from safehold.vault.places import Places
from safehold.vault.records import Certificate, Member, OwnerPublic, Parameters, SealedKey, SessionInfo, VaultDocument
from safehold.vault.sealed_cache import SealedCache
from safehold.vault.sealing import SessionSecret
from safehold.vault.session import Session
from safehold.vault.tree import StoredTree
from safehold.vault.trust import Chain, OwnerTrust, read_chain, read_writers
from safehold.vault.writers import WriterKey, new_writer, open_certificate, store_certificate, writer_from_secret

__all__ = ["Vault"]


_T = TypeVar("_T")


class Vault:
    """One vault, opened by its owner (who reads and writes) or by a writer (who only adds points)."""

    def __init__(
        self,
        store: Store,
        direct: Store,
        document: VaultDocument,
        keyring: Keyring | None,
        writer: WriterKey | None,
        places: Places,
        ctx: Context,
    ) -> None:
        """`direct` is the same store without retries. Use `for_owner` or `for_writer`."""
        self.store, self.direct = store, direct
        self.document = document
        self.id = bytes.fromhex(document.id)
        self.keyring = keyring
        self.ctx = ctx
        self.places = places.of(self.id)
        self._heads = Heads(places.state / "heads")
        head = self._heads.load(self.id)
        self.trust = OwnerTrust(keyring, writer.owner if writer else None)
        for public in head.owners:
            self.trust.learn(public)
        seen = (head.gc, bytes.fromhex(head.digest)) if head.gc >= 0 else None
        self.chain: Chain = read_chain(store, self.id, self.trust, seen, document.features)
        self.chain.require("read")
        self._writers = read_writers(store, self.id, self.trust)
        self.lost = unaccounted(store, self.id, self.trust, (*head.missing, head.point))
        self.problems = [*self.chain.problems, *self._writers.problems]
        told = [DamageError(LOST, on=name, remedy='see the runbook, "Damaged vault"') for name in self.lost]
        for problem in (*self.problems, *told):
            ctx.progress.warn(f"{problem}" + (f" ({problem.remedy})" if problem.remedy else ""))
        self._heads.change(self.id, lambda now: self._seen(now, head))
        self._writer = writer
        self._lost_document = b""
        self._secrets = SecretCache(self.id, keyring) if keyring else None
        self._fetcher = Fetcher(store, self.id, self._secrets) if self._secrets else None
        self._finders: dict[bytes, DomainFinder] = {}

    @classmethod
    def for_owner(cls, store: Store, direct: Store, unlocked: Unlocked, places: Places, ctx: Context) -> Vault:
        """Opened with an owner key; warnings of the unlocking are passed on."""
        for warning in unlocked.warnings:
            ctx.progress.warn(warning)
        vault = cls(store, direct, unlocked.document, unlocked.keyring, None, places, ctx)
        vault._lost_document = unlocked.payload.document if unlocked.document_lost else b""
        return vault

    @classmethod
    def for_writer(
        cls, store: Store, direct: Store, document: VaultDocument, writer: WriterKey, places: Places, ctx: Context
    ) -> Vault:
        """Opened with a writer credential; VaultKeyError where the credential is of another vault."""
        if bytes.fromhex(document.id) != writer.vault:
            raise VaultKeyError("the writer credential is of another vault", on=store.url)
        return cls(store, direct, document, None, writer, places, ctx)

    def _seen(self, now: Head, before: Head) -> Head:
        """What is remembered, with what this opening saw; `before` was remembered when it began."""
        later = {name: of for name, of in now.missing.items() if name not in before.missing}
        now = msgspec.structs.replace(now, missing={name: before.resources(name) for name in self.lost} | later)
        record = self.chain.record
        if record is None or self.chain.behind or record.number < now.gc:
            return now
        return msgspec.structs.replace(
            now, gc=record.number, digest=self.chain.digest.hex(), owners=self.trust.believed
        )

    @property
    def writers(self) -> dict[bytes, Certificate]:
        """The certified writers by their ids."""
        return self._writers.certificates

    # -- who we are --------------------------------------------------------------------------------------------------

    @property
    def parameters(self) -> Parameters:
        """Block and pack sizes and the rest that is fixed for the vault's life."""
        return self.document.parameters

    def newest_chain(self) -> Chain:
        """The gc chain as it is by now."""
        return read_chain(self.store, self.id, self.trust, self.chain.head, self.document.features)

    @property
    def owner(self) -> OwnerPublic:
        """The owner's public keys in force: from the gc chain as far as it can be followed, else the newest that are believed without it."""
        return self.chain.owner or self.trust.believed[-1]

    @property
    def owner_key(self) -> OwnerKey:
        """The owner's private keys in force; VaultKeyError for a mere writer, or where the key at hand was rotated
        away.
        """
        return self._require_keyring().get(self.owner.generation)

    def _require_keyring(self) -> Keyring:
        if self.keyring is None:
            raise VaultKeyError(
                "a writer credential can add points and nothing else",
                on=self.store.url,
                remedy="open the vault with the owner's passphrase",
            )
        return self.keyring

    def writer(self) -> WriterKey:
        """The writer that backups of this process go by: the credential at hand, or the owner's own."""
        if self._writer is not None:
            return self._writer
        keyring = self._require_keyring()
        keyring.get(self.owner.generation)
        for certificate in self.writers.values():
            if not certificate.exported:
                secret = open_certificate(self.id, keyring, certificate)
                return writer_from_secret(self.id, self.owner, certificate, secret)
        self.chain.require("write")
        self.ctx.progress.warn(
            "the owner's own writer certificate is missing or damaged: a new one is made, and the next backups are full"
        )
        fresh = new_writer(self.id, self.owner, "owner", ("*",))
        self.store.put(writer_name(fresh.wid), [store_certificate(fresh, self.owner_key, exported=False)])
        self._writers = read_writers(self.store, self.id, self.trust)
        return fresh

    def demand_standing(self) -> None:
        """VaultKeyError where the credential at hand was revoked. A writer cannot read notes, but about writers nothing else is ever noted."""
        if self._writer is not None and noted(self.store, self.id, self.trust, self._writer.wid):
            raise VaultKeyError(
                "this credential was revoked: what it adds does not count",
                on=self._writer.label,
                remedy="have the owner make a new one: safehold key writer",
            )

    def notes(self) -> Notes:
        """The owner's notes in this vault."""
        cache = self._sealed(self.places.cache / "notes", FoundNote)
        return Notes(self.store, self.id, self.trust, self._require_keyring(), self.owner_key, cache, self.ctx)

    def expiry(self) -> Expiry:
        """Lets points go; for the owner only. FormatError where the vault uses a feature that this program lacks."""
        self.chain.require("delete")
        return Expiry(self.store, self.id, self.trust, self._require_keyring(), self.owner_key, self.parameters.recycle)

    # -- reading -----------------------------------------------------------------------------------------------------

    def catalogue(self, *, expired_before: float = float("inf")) -> Catalogue:
        """The points; for the owner only."""
        keyring, secrets = self._require_keyring(), self._secrets
        assert secrets is not None
        return Catalogue(
            self.store,
            self.id,
            secrets,
            self._writers,
            lambda certificate: open_certificate(self.id, keyring, certificate).resources,
            self.notes().revocations(),
            forgotten_points(self.store, self.id, self.trust, expired_before),
            self._sealed(self.places.points(self.store.url), CachedPoint),
        )

    def _sealed(self, path: Path, type_: type[_T]) -> SealedCache[_T]:
        oldest = self._require_keyring().generations[0]
        key = blake3(oldest.seed, derive_key_context="safehold 1 point cache").digest()
        return SealedCache(path, self.id, key, type_)

    def points(
        self, *, fresh: bool = False, expired_before: float = float("inf"), chain: Chain | None = None
    ) -> tuple[list[Point], list[Rejected]]:
        """Every point, oldest first, and what claims to be one and is not, or is known to have been one and is gone; `fresh` reads the content of
        all of them from the store itself. Those that were expired by the store's time `expired_before` are left out. `chain` is a newer one
        than that of the opening. A point's time is the store's of when this machine saw it first.
        """
        catalogue = self.catalogue(expired_before=expired_before)
        listing = catalogue.read(fresh=fresh)
        head = self._heads.load(self.id)
        lost = lost_points(self.store, listing, head, chain or self.chain, catalogue.patterns, self._expired)
        return listing.points, [*listing.rejected, *lost]

    def _expired(self, names: Iterable[str]) -> set[str]:
        """Those of these points, which are gone, that the owner said were to be expired. Each is looked at once: intents stay as they are."""
        cache = self._sealed(self.places.cache / "intents", bool)
        known = cache.load()
        found = {name for name in names if name in known or is_forgotten(self.store, self.id, self.trust, name)}
        if not known.keys() >= found:
            cache.store(dict.fromkeys(found, True))
        return found

    @property
    def fetcher(self) -> Fetcher:
        """Reads chunks; for the owner only."""
        self._require_keyring()
        assert self._fetcher is not None
        return self._fetcher

    def finder(self, wid: bytes) -> DomainFinder:
        """Where the chunks of that writer's dedup domain lie."""
        certificate = self.writers.get(wid)
        if certificate is None:
            raise DamageError("point is of a writer whose certificate is missing", on=f"writers/{wid.hex()}")
        finder = self._finders.get(certificate.domain)
        if finder is None:
            secret = open_certificate(self.id, self._require_keyring(), certificate)
            locator = self._locator(certificate.domain, secret.index_key)
            assert self._secrets is not None
            finder = self._finders[certificate.domain] = DomainFinder(locator, self.fetcher, self._secrets)
        return finder

    def fresh_finder(self, wid: bytes) -> DomainFinder:
        """Like `finder`, with the index as it is now."""
        certificate = self.writers.get(wid)
        if certificate is not None:
            self._finders.pop(certificate.domain, None)
        return self.finder(wid)

    def domain(self, domain: bytes) -> tuple[Locator, bytes, list[str]]:
        """A dedup domain's locator, its index key, and the names of its runs; for the owner only."""
        certificate = next(c for c in self.writers.values() if c.domain == domain)
        index_key = open_certificate(self.id, self._require_keyring(), certificate).index_key
        locator = self._locator(domain, index_key)
        return locator, index_key, list(locator.run_names())

    def session_secret(self, key: SealedKey, *, on: str) -> SessionSecret:
        """The secrets of a session; for the owner only."""
        self._require_keyring()
        assert self._secrets is not None
        return self._secrets.open(key, on=on)

    def _locator(self, domain: bytes, index_key: bytes) -> Locator:
        return Locator(
            self.store,
            self.id,
            self.trust,
            self.writers,
            domain,
            index_key,
            self.chain,
            self.places.cache / f"index-{domain.hex()}",
            self.ctx,
        )

    def disk(self, point: Point, member: Member) -> StoredDisk:
        """The stored disk of one member of a point."""
        finder = self.finder(point.wid)
        tree = DiskTree(member, member.page_refs, lambda identity: self.fetcher.one(finder, identity, point.dedup_key))
        return StoredDisk(member, tree, self.fetcher, finder, point.dedup_key)

    def tree(self, point: Point, member: Member) -> StoredTree:
        """The stored tree of files of one member of a point."""
        finder = self.finder(point.wid)

        def load(identity: bytes) -> bytes:
            return self.fetcher.one(finder, identity, point.dedup_key)

        return StoredTree(member.root, member.levels, member.name, load)

    def chunks(self, point: Point) -> ChunkReader:
        """Reads the chunks that a point refers to."""
        return ChunkReader(self.fetcher, self.finder(point.wid), point.dedup_key)

    def store_time(self) -> float:
        """The store's clock, to the moment: the time that it gives to a note, which then goes again."""
        name = self.notes().add(self.id, "upkeep", {})
        try:
            return self.store.head(name).time
        finally:
            self.store.delete(name)

    def listed_time(self) -> float:
        """The store's clock as far as it can be told without writing: the time of the newest object that a backup or an owner makes. Long ago
        where nobody did anything for long.
        """
        kinds = (Kind.GC, Kind.SESSION, Kind.POINT, Kind.NOTE, Kind.FORGET)
        return max((stamp.time for kind in kinds for stamp in self.store.list(kind.prefix + "/")), default=0.0)

    # -- writing -----------------------------------------------------------------------------------------------------

    def mend(self) -> None:
        """Put `vault.json` back where it is missing and the key slot that opened the vault holds it: no writer opens the vault without."""
        document, self._lost_document = self._lost_document, b""
        if document and put_document_back(self.store, self.id, document):
            self.ctx.progress.warn("vault.json was missing, and is put back as the key slot holds it")

    @contextlib.contextmanager
    def session(self, info: SessionInfo, lanes: int) -> Iterator[Session]:
        """W1 and W2 of a backup: an announced session that deduplicates against everything this writer may rely on."""
        self.chain.require("write")
        self.mend()
        writer = self.writer()
        locator = self._locator(writer.domain, writer.index_key)
        certificate = self._writers.stored.get(writer.wid)
        if certificate is None:
            raise VaultKeyError(
                "the credential's certificate is not in the vault",
                on=writer.label,
                remedy="have the owner make a new one",
            )
        session = Session(
            self.store, self.direct, self.id, writer, self.owner, certificate, self.parameters, info, self.ctx, lanes
        )
        with session:
            session.announce()
            # The view is taken after the session is visible: whoever condemns a pack later than that waits for this session.
            chain = self.newest_chain()
            chain.require("write")
            view = locator.dedup_view(chain)
            session.use(view.index, view.runs)
            yield session

    def stored_twice(self, session: Session) -> int:
        """Bytes of this session's records that other sessions of the domain stored as well, in runs that came after
        its view.
        """
        writer = self.writer()
        locator = self._locator(writer.domain, writer.index_key)
        mine = run_name(writer.wid, session.sid, 0).rpartition("-")[0]
        total = 0
        for name in locator.run_names():
            if name not in session.view_runs and not name.startswith(mine):
                # A run that a prune took away meanwhile tells nothing; this is a figure for people.
                with contextlib.suppress(ObjectNotFound, DamageError):
                    total += session.overlap(locator.rows(name, locator.record(name)))
        return total

    def committed(self, name: str, resources: Iterable[str]) -> None:
        """Remember the newest point this machine made, so that its disappearance is noticed, and that it is of these resources."""
        made = dict.fromkeys(resources, name)
        self._heads.change(self.id, lambda now: msgspec.structs.replace(now, point=name, latest=now.latest | made))

    def last_made(self, resource: str) -> str:
        """The object name of the last point that this machine made of a resource; empty where it remembers none."""
        return self._heads.load(self.id).latest.get(resource, "")

    def certificate(self, wid: bytes) -> Certificate | None:
        """A writer's certificate."""
        return self.writers.get(wid)
