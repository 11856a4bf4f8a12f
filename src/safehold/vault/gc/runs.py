"""Makes index runs of ended sessions into base runs, so that no run names a dead pack and their number stays small.

A base run tells of all the chunks in some packs, as a session's run does, and not of a range of ids over all packs: neighbours by id lie
anywhere, so each range would name every pack of the vault, and one dead pack would make a prune write every run again.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from blake3 import blake3

from safehold.model.errors import DamageError, ObjectNotFound, StoreError, StoreFull
from safehold.vault.index.rows import ID_SIZE, PLAIN_BITS, ROW, Location, pack_row
from safehold.vault.index.table import SortedTable, combine, merge_tables, table_of
from safehold.vault.keys import OwnerKey
from safehold.vault.locate import Locator
from safehold.vault.names import run_name
from safehold.vault.records import BaseRun, RunPack
from safehold.vault.run import store_run

__all__ = ["Absorbed", "absorb", "write_base"]

MOST_RUNS = 128
"""Small runs that are left as they are before all of them are made into few: each costs a request in a cold cache."""
_SHARD_ROWS = 650_000
"""Rows in a base run: about 32 MiB. One with less than half of that is small."""
_MOST_TABLES = 64
"""Sorted files that are merged at once: each costs a descriptor."""
_MOST_GROUPS = 256
"""Groups of packs whose rows are gathered at once: each costs a descriptor and a buffer."""
_BUFFER = 1024 * ROW.size


@dataclass(frozen=True)
class Absorbed:
    """New base runs, and the runs whose rows they hold."""

    base: tuple[BaseRun, ...]
    runs: tuple[str, ...]


def absorb(
    locator: Locator,
    ended: Sequence[str],
    unlisted: frozenset[str],
    alive: frozenset[str],
    owner: OwnerKey,
    index_key: bytes,
    directory: Path,
) -> Absorbed:
    """Write base runs, signed by the owner, in place of some of the domain's `ended` runs: those that name a pack which is not `alive`, base
    runs that an interrupted prune left `unlisted`, and the small ones where they have become many. Rows in packs that are not alive are left
    out. Runs that cannot be read stay as they are.

    Rows wait in files without a name in `directory`; memory does not grow with their number.
    """
    chosen: list[str] = []
    tables: list[SortedTable] = []
    sizes: dict[str, int] = {}
    for name in _worth_absorbing(locator, ended, unlisted, alive):
        table = _table(locator, name, alive, sizes, directory)
        if table is None:
            continue
        chosen.append(name)
        tables.append(table)
        if len(tables) == _MOST_TABLES:
            tables = [merge_tables(directory, tables, None)]
    names, merged = combine(tables)
    return Absorbed(write_base(locator, _located(names, merged), sizes, owner, index_key, directory), tuple(chosen))


def _worth_absorbing(
    locator: Locator, ended: Sequence[str], unlisted: frozenset[str], alive: frozenset[str]
) -> list[str]:
    chosen: list[str] = []
    small: list[str] = []
    for name in ended:
        try:
            record = locator.record(name)
        except (DamageError, ObjectNotFound):
            continue
        if name in unlisted or not alive.issuperset(pack.name for pack in record.packs):
            chosen.append(name)
        elif record.rows * 2 < _SHARD_ROWS:
            small.append(name)
    return chosen + small if len(small) > MOST_RUNS else chosen


def _table(
    locator: Locator, name: str, alive: frozenset[str], sizes: dict[str, int], directory: Path
) -> SortedTable | None:
    """The rows of a run in packs that are alive; their sizes go into `sizes`. None where it cannot be read."""
    try:
        record = locator.record(name)
        rows = locator.rows(name, record)
    except (DamageError, ObjectNotFound):
        return None
    packs = [pack.name for pack in record.packs]
    sizes.update((pack.name, pack.size) for pack in record.packs if pack.name in alive)
    return table_of(directory, (), packs, rows, [pack in alive for pack in packs], None)


def _located(packs: Sequence[str], rows: Iterable[bytes]) -> Iterator[tuple[bytes, Location]]:
    for row in rows:
        identity, number, offset, stored, mixed = ROW.unpack(row)
        yield identity, Location(packs[number], offset, stored, mixed & (1 << PLAIN_BITS) - 1, mixed >> PLAIN_BITS)


def write_base(
    locator: Locator,
    rows: Iterable[tuple[bytes, Location]],
    sizes: Mapping[str, int],
    owner: OwnerKey,
    index_key: bytes,
    directory: Path,
) -> tuple[BaseRun, ...]:
    """Put base runs with these rows, which ascend by id; `sizes` are the packs', and those that follow each other there get into one run. Rows
    wait as in `absorb`.
    """
    run = os.urandom(16)
    made: list[BaseRun] = []
    try:
        for number, (packs, shard) in enumerate(_shards(rows, sizes, directory)):
            name = run_name(locator.domain, run, number)
            made.append(_put(locator, name, [RunPack(pack, sizes[pack]) for pack in packs], shard, owner, index_key))
    except StoreFull:
        # Nothing tells of them yet, and the record that goes on without them needs the room.
        for one in made:
            with contextlib.suppress(StoreError):
                # One that stays is absorbed by the next prune.
                locator.store.delete(one.name)
        raise
    return tuple(made)


def _put(
    locator: Locator, name: str, packs: Sequence[RunPack], shard: bytearray, owner: OwnerKey, index_key: bytes
) -> BaseRun:
    stored = store_run(
        locator.vault,
        name,
        locator.domain,
        index_key,
        packs,
        shard,
        owner.sign,
        base_generation=owner.generation,
    )
    locator.store.put(name, [stored])
    return BaseRun(name, blake3(stored).digest())


# -- rows by their packs -------------------------------------------------------------------------------------------------


class _Group:
    """Rows of some packs in the order in which they come: in memory as long as they are few, in a file without a name beyond."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: IO[bytes] | None = None
        self._rows = bytearray()
        self.count = 0

    def add(self, row: bytes) -> None:
        self._rows += row
        self.count += 1
        if len(self._rows) >= _BUFFER:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 - closed by `close`
            self._file.write(self._rows)
            self._rows.clear()

    def __iter__(self) -> Iterator[bytes]:
        if self._file is not None:
            self._file.seek(0)
            while block := self._file.read(_BUFFER):
                yield from _each(block)
        yield from _each(self._rows)

    def close(self) -> None:
        self._rows.clear()
        if self._file is not None:
            self._file.close()


def _each(rows: bytes | bytearray) -> Iterator[bytes]:
    for at in range(0, len(rows), ROW.size):
        yield bytes(rows[at : at + ROW.size])


def _shards(
    rows: Iterable[tuple[bytes, Location]], sizes: Mapping[str, int], directory: Path
) -> Iterator[tuple[list[str], bytearray]]:
    """Rows as they stand in a run, with the packs that they number."""
    packs = list(sizes)
    numbers = {pack: number for number, pack in enumerate(packs)}
    width = -(-len(packs) // _MOST_GROUPS) or 1
    groups = [_Group(directory) for _ in range(0, len(packs), width)]
    try:
        for identity, at in rows:
            number = numbers[at.pack]
            groups[number // width].add(pack_row(identity, number, at.offset, at.stored, at.plain, at.codec))
        together: list[_Group] = []
        for group in groups:
            if sum(one.count for one in (*together, group)) > _SHARD_ROWS:
                yield from _cut(together, packs)
                together = []
            together.append(group)
        yield from _cut(together, packs)
    finally:
        for group in groups:
            group.close()


def _cut(groups: Sequence[_Group], packs: Sequence[str]) -> Iterator[tuple[list[str], bytearray]]:
    """The rows of several groups by id; more than one shard only where a group is larger than one."""
    numbers: dict[int, int] = {}
    shard = bytearray()
    for row in heapq.merge(*groups):
        known = numbers.setdefault(int.from_bytes(row[ID_SIZE : ID_SIZE + 4], "little"), len(numbers))
        shard += row[:ID_SIZE]
        shard += known.to_bytes(4, "little")
        shard += row[ID_SIZE + 4 :]
        if len(shard) >= _SHARD_ROWS * ROW.size:
            yield [packs[number] for number in numbers], shard
            numbers, shard = {}, bytearray()
    if shard:
        yield [packs[number] for number in numbers], shard
