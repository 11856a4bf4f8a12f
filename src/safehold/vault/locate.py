"""Where the chunks of one dedup domain lie: from index runs whose signatures count, and where those are lost, from
the packs themselves.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from safehold.model.context import Context
from safehold.model.errors import DamageError, FormatError, ObjectNotFound, ShortRead, VaultKeyError
from safehold.model.units import format_count
from safehold.ports.store import Stamp, Store
from safehold.vault.bounds import check_size
from safehold.vault.envelope import open_object
from safehold.vault.fetch import Fetcher, SecretCache
from safehold.vault.index.cache import IndexCache
from safehold.vault.index.rows import Location
from safehold.vault.index.view import ChunkIndex
from safehold.vault.names import Kind, kind_of
from safehold.vault.pack import PackHeader, PackRow, open_table, table_span
from safehold.vault.records import Certificate, RunObject
from safehold.vault.run import open_run_rows, read_run
from safehold.vault.trust import Chain, OwnerTrust

__all__ = ["DedupView", "DomainFinder", "Locator"]


_LARGEST_TABLE = 64 * 1024 * 1024
"""Bytes; a table of 16 KiB describes a full pack of ours."""


@dataclass(frozen=True)
class DedupView:
    """What a session may deduplicate against, and the names of the runs that say so."""

    index: ChunkIndex
    runs: frozenset[str]


class Locator:
    """Builds indexes of one dedup domain from the runs in the vault."""

    def __init__(
        self,
        store: Store,
        vault: bytes,
        trust: OwnerTrust,
        writers: dict[bytes, Certificate],
        domain: bytes,
        index_key: bytes,
        chain: Chain,
        cache: Path,
        ctx: Context,
    ) -> None:
        """`chain` vouches for base runs; `cache` is a directory of this domain's own."""
        self.store, self.vault, self.domain = store, vault, domain
        self.writers = writers
        self._trust, self._index_key, self._cache, self._ctx = trust, index_key, cache, ctx
        self._vouched = chain.base_runs
        self._listed: dict[str, Stamp] = {}

    def dedup_view(self, chain: Chain) -> DedupView:
        """W2: what a writer may rely on: verified runs of sessions that are not fenced, without packs that are condemned, dead, damaged, or
        simply not there; of these a warning tells.

        `chain` has been read before this call, and both after the session was announced.
        """
        self._vouched = chain.base_runs
        fenced = {stamp.name.removeprefix("points/") for stamp in self.store.list("points/") if stamp.size == 0}
        names = [name for name in self._dedup_runs(chain) if name.split("/", 1)[1].rsplit("-", 1)[0] not in fenced]
        index = self._load(names)
        gone = self._gone(index, chain.unusable_packs)
        index.exclude(chain.unusable_packs | gone)
        return DedupView(index, frozenset(names))

    def _gone(self, index: ChunkIndex, unusable: frozenset[str]) -> frozenset[str]:
        """Packs that the index tells of, that nothing else keeps from being relied on, and that are not in the store.

        They are listed after the runs were: a pack is there before the run that tells of it, and a prune deletes only what this session's
        chain calls condemned or dead. The names of millions of packs would take half a gigabyte, so only hashes of them are kept.
        """
        there = {hash(stamp.name) for kind in (Kind.META, Kind.PACK) for stamp in self.store.list(kind.prefix + "/")}
        gone = frozenset(name for name in index.pack_names() if hash(name) not in there and name not in unusable)
        if gone:
            those = f"{format_count(len(gone), 'pack')} that the index tells of {'is' if len(gone) == 1 else 'are'}"
            self._ctx.progress.warn(
                f"{those} gone from the vault, such as {min(gone)}: what this backup needs of them "
                "is stored again; safehold verify tells which points lack them"
            )
        return gone

    def _dedup_runs(self, chain: Chain) -> Iterator[str]:
        """The base runs that the chain lists, and runs that were not made into one."""
        base = chain.base_runs
        absorbed = set(chain.record.absorbed) if chain.record else set()
        for name in self.run_names():
            if name in base or (name not in absorbed and name.split("/")[1] != self.domain.hex()):
                yield name

    def reader_view(self) -> ChunkIndex:
        """Everything that any run of the domain says, for reading."""
        return self._load(list(self.run_names()))

    def run_names(self) -> Iterator[str]:
        """Names of runs of the domain's writers, and all base runs (whose writer id is the domain's id)."""
        mine = {wid.hex() for wid, c in self.writers.items() if c.domain == self.domain} | {self.domain.hex()}
        for stamp in self.store.list("index/"):
            if kind_of(stamp.name) is Kind.INDEX and stamp.name.split("/")[1] in mine:
                self._listed[stamp.name] = stamp
                yield stamp.name

    def _load(self, names: Sequence[str]) -> ChunkIndex:
        with IndexCache(self._cache, self._ctx) as cache:
            cache.keep_only(names)
            for name in names:
                if name not in cache:
                    self._take_in(name, cache)
            return cache.index()

    def _take_in(self, name: str, cache: IndexCache) -> None:
        # On its own, so that a large run is out of memory before the next is read.
        try:
            record = self.record(name)
            rows = self.rows(name, record)
        except (DamageError, ObjectNotFound) as error:
            self._ctx.progress.warn(f"an index run is left out: {error}")
        else:
            cache.absorb(name, record.packs, rows)

    def record(self, name: str) -> RunObject:
        """What a run says without its rows; DamageError unless a writer of this domain, or for a base run the owner, signed
        it. Of a base run in the gc chain only the version counts that is listed there.
        """
        check_size(self._listed.get(name) or self.store.head(name))
        opened = open_object(name, self.store.get(name))
        if self._vouched.get(name, opened.digest) != opened.digest:
            raise DamageError("base run is not the one that the gc chain lists", on=name)
        record = read_run(opened)
        if record.domain != self.domain:
            raise DamageError("index run is of another dedup domain", on=name)
        if record.base:
            self._trust.check(self.vault, opened, record.generation)
        else:
            certificate = self.writers.get(bytes.fromhex(name.split("/")[1]))
            if certificate is None or certificate.domain != self.domain:
                raise DamageError("index run is of a writer outside of its domain", on=name)
            opened.check(self.vault, certificate.verify)
        return record

    def rows(self, name: str, record: RunObject) -> bytearray:
        """The rows in the record of a run; DamageError."""
        return open_run_rows(self.vault, name, self._index_key, record)


class DomainFinder:
    """Finds chunks by the index, and rebuilds what the index lacks from tables of contents, once and only when
    needed. Thread-safe.
    """

    def __init__(self, locator: Locator, fetcher: Fetcher, secrets: SecretCache) -> None:
        self._locator, self._fetcher, self._secrets = locator, fetcher, secrets
        self._runs: frozenset[str] = frozenset()
        self._index = self._read_runs()
        self._lock = threading.Lock()
        self._recovered: dict[bytes, list[Location]] | None = None
        self._look = 0

    def renew(self, seen: int) -> int:
        """Read the runs again where there are others by now: a prune may have moved what they told of. A long restore meets many prunes. See
        `vault.fetch.Finder`.
        """
        with self._lock:
            if self._look == seen and frozenset(self._locator.run_names()) != self._runs:
                self._index = self._read_runs()
                self._recovered = None
                self._look += 1
            return self._look

    def _read_runs(self) -> ChunkIndex:
        # Listed before they are read: one that is put in between is read again, none is missed.
        self._runs = frozenset(self._locator.run_names())
        return self._locator.reader_view()

    def find_many(self, identities: Sequence[bytes]) -> list[Location | None]:
        """One location of each chunk, by the index alone."""
        return self._index.find_many(identities)

    def rows(self) -> Iterator[tuple[bytes, Location]]:
        """Every location that any run tells, ascending by id."""
        return self._index.rows()

    def packs(self) -> set[str]:
        """Names of the packs that a readable run of this domain speaks of; runs of other domains prove nothing here."""
        listed = self._index.packs()
        for name in frozenset(self._locator.run_names()) - self._runs:
            with contextlib.suppress(DamageError, ObjectNotFound):
                listed.update(pack.name for pack in self._locator.record(name).packs)
        return listed

    def locations(self, identity: bytes) -> list[Location]:
        """Every location: by the index, then by the tables of contents of packs that no run lists."""
        known = self._index.locations(identity)
        with self._lock:
            if self._recovered is None:
                self._recovered = self._read_tables()
        seen = {(location.pack, location.offset) for location in known}
        more = self._recovered.get(identity, [])
        return known + [location for location in more if (location.pack, location.offset) not in seen]

    def _read_tables(self) -> dict[bytes, list[Location]]:
        """Chunks of the packs outside of every readable index run, but for those of writers of other domains alone."""
        store = self._locator.store
        listed = self.packs()
        strangers = {wid for wid, one in self._locator.writers.items() if one.domain != self._locator.domain}
        out: dict[bytes, list[Location]] = {}
        for prefix in (Kind.META.prefix, Kind.PACK.prefix):
            for stamp in store.list(prefix + "/"):
                if stamp.name in listed or kind_of(stamp.name) is None:
                    continue
                try:
                    header = self._fetcher.read_header(stamp.name)
                    if all(key.wid in strangers for key in header.sessions):
                        continue
                    rows = self.read_table(stamp.name, stamp.size, header)
                except (DamageError, ObjectNotFound, ShortRead, FormatError, VaultKeyError):
                    continue
                for row in rows:
                    out.setdefault(row.identity, []).append(
                        Location(stamp.name, row.offset, row.stored, row.plain, row.codec)
                    )
        return out

    def read_table(self, name: str, size: int, header: PackHeader) -> list[PackRow]:
        """A pack's own table of contents."""
        store = self._locator.store
        tail = bytearray(4)
        store.read_into(name, size - 4, memoryview(tail))
        start, length = table_span(size, bytes(tail), name)
        if length > _LARGEST_TABLE:
            raise DamageError("pack's table of contents is larger than any can be", on=name)
        sealed = bytearray(length)
        store.read_into(name, start, memoryview(sealed))
        if not header.sessions:
            raise DamageError("pack lists no session", on=name)
        secret = self._secrets.open(header.sessions[0], on=name)
        return open_table(bytes(sealed), self._locator.vault, header, secret, name)
