"""Reads chunks back: finds them, fetches neighbours in one request, and believes nothing that does not hash to its
id.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from safehold.model.errors import DamageError, FormatError, ObjectNotFound, ShortRead, VaultKeyError
from safehold.ports.store import Store
from safehold.vault.index.rows import Location
from safehold.vault.keys import Keyring
from safehold.vault.names import Kind
from safehold.vault.pack import HEADER_GUESS, LARGEST_HEADER, PackHeader, parse_header
from safehold.vault.records import SealedKey
from safehold.vault.sealing import MAX_PLAIN, RECORD_OVERHEAD, ChunkOpener, SessionSecret, open_secret

__all__ = ["NOT_THERE", "ChunkReader", "Fetcher", "Finder", "Found", "Lost", "SecretCache"]

_GAP = 64 * 1024
"""Bytes read for nothing when two wanted records lie this close: a second request costs more."""

_SPAN = 8 * 1024 * 1024
"""At most this much in one request, so that a thread's scratch buffer stays small."""


_LOCAL_PARALLEL = 4
"""Stores that ask for more requests at once than this are across a network."""

NOT_THERE = (ValueError, DamageError, ObjectNotFound, ShortRead, FormatError, VaultKeyError)
"""What says that an object, or a chunk at one place, cannot be had: others may still have it. It may be another writer's, who may be hostile and
name keys that nobody has or suites that do not exist.
"""


class Finder(Protocol):
    """Where chunks may lie."""

    def find_many(self, identities: Sequence[bytes]) -> list[Location | None]:
        """One location of each chunk."""
        ...

    def locations(self, identity: bytes) -> list[Location]:
        """Every location, from the index and, for a chunk that it lacks, from the packs' own tables of contents."""
        ...

    def renew(self, seen: int) -> int:
        """Look at the store again where nobody did since look number `seen` and other runs are there; the number of the look in force."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """A chunk's plaintext, valid until the next one is asked for, or as long as the place that was given for it; `position` is its place in
    the request.
    """

    position: int
    data: memoryview | bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """A chunk that could not be read; `reason` says which objects were tried and what was wrong with each."""

    position: int
    identity: bytes
    reason: str


class SecretCache:
    """Session secrets opened so far, by their sealed bytes. Thread-safe."""

    def __init__(self, vault: bytes, keyring: Keyring) -> None:
        self._vault = vault
        self._keyring = keyring
        self._opened: dict[bytes, SessionSecret] = {}

    def open(self, key: SealedKey, *, on: str) -> SessionSecret:
        """The secret in `key`; `on` names the object that carries it."""
        cache_key = key.sealed + key.wid + key.sid
        secret = self._opened.get(cache_key)
        if secret is None:
            secret = self._opened[cache_key] = open_secret(self._vault, self._keyring, key, on=on)
        return secret


class Fetcher:
    """Reads chunks of any domain. Thread-safe: scratch buffers belong to threads."""

    def __init__(self, store: Store, vault: bytes, secrets: SecretCache) -> None:
        self._store = store
        self._vault = vault
        self._secrets = secrets
        self._headers: dict[str, PackHeader] = {}
        self.failed: set[str] = set()
        """Packs that did not give a chunk that they were said to hold."""
        self._local = threading.local()

    @property
    def remote(self) -> bool:
        """True where the store wants many requests under way at once."""
        return self._store.caps.parallel > _LOCAL_PARALLEL

    def one(self, finder: Finder, identity: bytes, dedup_key: bytes) -> bytes:
        """A single chunk's plaintext; DamageError where no location gives it."""
        for result in self.many(finder, [identity], dedup_key):
            if isinstance(result, Found):
                return bytes(result.data)
            raise DamageError(f"chunk {identity.hex()[:16]} cannot be read: {result.reason}", on=self._store.url)
        raise AssertionError("a request for one chunk has one result")

    def many(
        self, finder: Finder, identities: Sequence[bytes], dedup_key: bytes, places: Sequence[memoryview] = ()
    ) -> Iterator[Found | Lost]:
        """Each chunk asked for, in the order that suits the packs; a chunk that cannot be read comes as Lost.

        With `places`, one for each, plaintexts are put there; each has to be of its chunk's length, and holds anything where that is Lost.
        Store failures other than a missing or short object are raised: they say nothing about the chunk.
        """
        located = [location if location and _sane(location) else None for location in finder.find_many(identities)]
        rest = [position for position, location in enumerate(located) if location is None]
        known = [(location, position) for position, location in enumerate(located) if location is not None]
        known.sort(key=lambda pair: (pair[0].pack, pair[0].offset))
        for group in _spans(known):
            yield from self._span(finder, identities, dedup_key, places, group)
        for position in rest:
            yield self._alone(finder, position, identities[position], dedup_key, places, None)

    def holds(self, identity: bytes, location: Location, dedup_key: bytes) -> bool:
        """True where the chunk can be read from that place, and is right."""
        if not _sane(location):
            return False
        try:
            header = self._header(location.pack, None)
            record = self._scratch(location.stored)
            self._store.read_into(location.pack, location.offset, record)
            self._open(header, record, location, identity, dedup_key, None)
        except NOT_THERE:
            return False
        return True

    def _span(
        self,
        finder: Finder,
        identities: Sequence[bytes],
        dedup_key: bytes,
        places: Sequence[memoryview],
        group: list[tuple[Location, int]],
    ) -> Iterator[Found | Lost]:
        first = group[0][0]
        start = first.offset if first.offset > HEADER_GUESS else 0
        end = max(location.offset + location.stored for location, _ in group)
        try:
            span = self._scratch(end - start)
            self._store.read_into(first.pack, start, span)
            header = self._header(first.pack, span if start == 0 else None)
        except NOT_THERE as error:
            for location, position in group:
                failed = location, str(error)
                yield self._alone(finder, position, identities[position], dedup_key, places, failed)
            return
        for location, position in group:
            record = span[location.offset - start : location.offset - start + location.stored]
            try:
                out = places[position] if places else None
                data = self._open(header, record, location, identities[position], dedup_key, out)
            except NOT_THERE as error:
                failed = location, f"{location.pack}: {error}"
                yield self._alone(finder, position, identities[position], dedup_key, places, failed)
                # The detour reused the scratch buffer; the span's other records have to be read again.
                try:
                    self._store.read_into(first.pack, start, span)
                except NOT_THERE:
                    span[:] = bytes(len(span))
            else:
                yield Found(position, data)

    def _alone(
        self,
        finder: Finder,
        position: int,
        identity: bytes,
        dedup_key: bytes,
        places: Sequence[memoryview],
        failed: tuple[Location, str] | None,
    ) -> Found | Lost:
        """Try every location but the one that failed already; where none works, look for others until there are no more."""
        out = places[position] if places else None
        reasons = [failed[1]] if failed else []
        tried = {(failed[0].pack, failed[0].offset)} if failed else set()
        look = 0
        while True:
            for location in finder.locations(identity):
                if (location.pack, location.offset) in tried:
                    continue
                tried.add((location.pack, location.offset))
                if not _sane(location):
                    reasons.append(f"{location.pack}: impossible length")
                    continue
                try:
                    header = self._header(location.pack, None)
                    record = self._scratch(location.stored)
                    self._store.read_into(location.pack, location.offset, record)
                    found = Found(position, self._open(header, record, location, identity, dedup_key, out))
                    self.failed.update(pack for pack, _ in tried if pack != location.pack)
                    return found
                except NOT_THERE as error:
                    reasons.append(f"{location.pack}: {error}" if location.pack not in str(error) else str(error))
            before, look = look, finder.renew(look)
            if look == before:
                break
        self.failed.update(pack for pack, _ in tried)
        return Lost(position, identity, "; ".join(reasons) or "no index run and no pack names it")

    def _open(
        self,
        header: PackHeader,
        record: memoryview,
        location: Location,
        identity: bytes,
        dedup_key: bytes,
        out: memoryview | None,
    ) -> memoryview | bytes:
        slot = int.from_bytes(record[:2], "little")
        if slot >= len(header.sessions):
            raise ValueError("record names a session that the pack does not list")
        secret = self._secrets.open(header.sessions[slot], on=location.pack)
        opener: ChunkOpener | None = getattr(self._local, "opener", None)
        if opener is None:
            opener = self._local.opener = ChunkOpener(self._vault)
        return opener.open(record, header.kind, identity, location.codec, location.plain, secret, dedup_key, out)

    def _header(self, pack: str, start: memoryview | None) -> PackHeader:
        header = self._headers.get(pack)
        if header is None:
            header = parse_header(start, self._vault, pack) if start is not None else None
            header = header or self.read_header(pack)
            if len(self._headers) > 65536:
                self._headers.clear()
            self._headers[pack] = header
        return header

    def read_header(self, pack: str) -> PackHeader:
        """A pack's header, from the store. DamageError, ObjectNotFound."""
        length = HEADER_GUESS
        while True:
            size = self._store.head(pack).size
            data = bytearray(min(length, size))
            self._store.read_into(pack, 0, memoryview(data))
            header = parse_header(memoryview(data), self._vault, pack)
            if header is not None:
                if Kind.META.prefix == pack.split("/", 1)[0] and header.kind is not Kind.META:
                    raise DamageError("pack is of another kind than its name says", on=pack)
                return header
            if length >= size:
                raise DamageError("pack is shorter than its header", on=pack)
            length = min(length * 16, LARGEST_HEADER)

    def _scratch(self, length: int) -> memoryview:
        buffer: bytearray | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < length:
            buffer = self._local.buffer = bytearray(max(length, 1024 * 1024))
        return memoryview(buffer)[:length]


@dataclass(frozen=True, slots=True)
class ChunkReader:
    """Reads the chunks of one point. Thread-safe."""

    fetcher: Fetcher
    finder: Finder
    dedup_key: bytes

    @property
    def remote(self) -> bool:
        """True where reading waits for a network rather than for the processor."""
        return self.fetcher.remote

    def one(self, identity: bytes) -> bytes:
        """A single chunk's plaintext; DamageError where it cannot be read."""
        return self.fetcher.one(self.finder, identity, self.dedup_key)

    def holds(self, identity: bytes, location: Location) -> bool:
        """True where the chunk can be read from just there, and is right."""
        return self.fetcher.holds(identity, location, self.dedup_key)

    def many(self, identities: Sequence[bytes]) -> Iterator[Found | Lost]:
        """See `Fetcher.many`."""
        return self.fetcher.many(self.finder, identities, self.dedup_key)


def _sane(location: Location) -> bool:
    """False for lengths that no chunk has, which only a forged index row gives."""
    return RECORD_OVERHEAD <= location.stored <= MAX_PLAIN + RECORD_OVERHEAD


def _spans(known: list[tuple[Location, int]]) -> Iterator[list[tuple[Location, int]]]:
    """Neighbours in one pack, cut where the gap or the whole gets too large."""
    group: list[tuple[Location, int]] = []
    for location, position in known:
        if group:
            last, first = group[-1][0], group[0][0]
            gap = location.offset - (last.offset + last.stored)
            if location.pack != last.pack or gap > _GAP or location.offset + location.stored - first.offset > _SPAN:
                yield group
                group = []
        group.append((location, position))
    if group:
        yield group
