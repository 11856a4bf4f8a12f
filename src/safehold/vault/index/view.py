"""What a session or a reader asks: tables, and on top of them what was added since."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from safehold.vault.index.rows import Location, pack_row
from safehold.vault.index.table import SortedTable, write_table

__all__ = ["ChunkIndex"]

_RECENT = 128 * 1024
"""Rows kept in a dict, about 60 MB; more are written to a table of their own."""


class _Pack(Protocol):
    @property
    def name(self) -> str: ...


class _Row(Protocol):
    @property
    def identity(self) -> bytes: ...
    @property
    def offset(self) -> int: ...
    @property
    def stored(self) -> int: ...
    @property
    def plain(self) -> int: ...
    @property
    def codec(self) -> int: ...


class ChunkIndex:
    """Locations of chunks. Thread-safe."""

    def __init__(self, tables: Sequence[SortedTable], directory: Path) -> None:
        """`directory` takes the tables that recent rows spill into; they have no names there and vanish with the
        process.
        """
        self._tables = list(tables)
        self._directory = directory
        self._recent: dict[bytes, Location] = {}
        self._more: dict[bytes, list[Location]] = {}
        self._rows = 0
        self._spill_at = _RECENT
        self._excluded: frozenset[str] = frozenset()
        self._lock = threading.Lock()

    def exclude(self, packs: Iterable[str]) -> None:
        """Locations in these packs are no longer given."""
        self._excluded = frozenset(packs)

    def find_many(self, identities: Sequence[bytes]) -> list[Location | None]:
        """For each chunk one location, or None."""
        # What was added is looked at before the list of tables: a spill puts rows into a table first, then takes them from here.
        found: list[Location | None] = [None] * len(identities)
        if self._recent:
            found = [self._recently(identity) for identity in identities]
        for table in reversed(self._tables):
            table.fill(identities, found, self._excluded)
        return found

    def _recently(self, identity: bytes) -> Location | None:
        return next((at for at in self._added(identity) if at.pack not in self._excluded), None)

    def _added(self, identity: bytes) -> list[Location]:
        # One look at the dict: a spill puts another in its place at any moment, after the table has the rows.
        first = self._recent.get(identity)
        return [] if first is None else [first, *self._more.get(identity, [])]

    def locations(self, identity: bytes) -> list[Location]:
        """Every location that is not excluded."""
        recent = self._added(identity)
        stored = [location for table in self._tables for location in table.find(identity)]
        return [location for location in dict.fromkeys(recent + stored) if location.pack not in self._excluded]

    def pack_names(self) -> Iterator[str]:
        """Names of the packs that the tables speak of, each once for every table that does; recent ones are not among them."""
        for table in self._tables:
            yield from table.pack_names()

    def packs(self) -> set[str]:
        """Names of all packs that the tables speak of; recent ones are not among them."""
        return set(self.pack_names())

    def rows(self) -> Iterator[tuple[bytes, Location]]:
        """Every row of the tables, ascending by id; recent rows are not among them."""
        return heapq.merge(*(table.locations() for table in self._tables))

    def add(self, pack: _Pack, rows: Iterable[_Row]) -> None:
        """Chunks of a pack that is durable."""
        with self._lock:
            for row in rows:
                location = Location(pack.name, row.offset, row.stored, row.plain, row.codec)
                if self._recent.setdefault(row.identity, location) != location:
                    self._more.setdefault(row.identity, []).append(location)
                self._rows += 1
            if self._rows >= self._spill_at:
                try:
                    self._spill()
                except OSError:
                    # No room for a table: memory has to do for a while.
                    self._spill_at += _RECENT

    def _spill(self) -> None:
        """Readers see a row in the dict until it is in a table: the table is added first."""
        packs: dict[str, int] = {}
        rows = []
        more = [(identity, location) for identity, found in self._more.items() for location in found]
        for identity, location in [*self._recent.items(), *more]:
            number = packs.setdefault(location.pack, len(packs))
            rows.append(pack_row(identity, number, location.offset, location.stored, location.plain, location.codec))
        rows.sort()
        self._tables.append(write_table(self._directory, (), packs, rows, len(rows), None))
        self._recent, self._more, self._rows = {}, {}, 0
