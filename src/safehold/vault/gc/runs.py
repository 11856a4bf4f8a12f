"""Makes index runs of ended sessions into base runs, so that no run names a dead pack and their number stays small."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from safehold.model.errors import DamageError, ObjectNotFound
from safehold.vault.index.rows import PLAIN_BITS, ROW, Location, pack_row
from safehold.vault.index.table import SortedTable, combine, merge_tables, table_of
from safehold.vault.keys import OwnerKey
from safehold.vault.locate import Locator
from safehold.vault.names import run_name
from safehold.vault.records import BaseRun, RunPack
from safehold.vault.run import store_run

__all__ = ["Absorbed", "absorb", "write_base"]

MOST_RUNS = 128
"""Runs that are left as they are before all of them are made into one: each costs a request in a cold cache."""
_SHARD_ROWS = 1_300_000
"""Rows in a base run: 64 MiB."""
_MOST_TABLES = 64
"""Sorted files that are merged at once: each costs a descriptor."""


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
    runs that an interrupted prune left `unlisted`, or all of them where they have become many. Rows in packs that are not alive are left
    out. Runs that cannot be read stay as they are.

    Rows wait in files without a name in `directory`; memory does not grow with their number.
    """
    chosen: list[str] = []
    tables: list[SortedTable] = []
    sizes: dict[str, int] = {}
    all_of_them = len(ended) > MOST_RUNS
    for name in ended:
        try:
            record, data = locator.read(name)
        except (DamageError, ObjectNotFound):
            continue
        if not all_of_them and name not in unlisted and alive.issuperset(pack.name for pack in record.packs):
            continue
        chosen.append(name)
        packs = [pack.name for pack in record.packs]
        sizes.update((pack.name, pack.size) for pack in record.packs)
        tables.append(table_of(directory, (), packs, data, [pack in alive for pack in packs], None))
        if len(tables) == _MOST_TABLES:
            tables = [merge_tables(directory, tables, None)]
    names, merged = combine(tables)
    return Absorbed(write_base(locator, _located(names, merged), sizes, owner, index_key), tuple(chosen))


def _located(packs: Sequence[str], rows: Iterable[bytes]) -> Iterator[tuple[bytes, Location]]:
    for row in rows:
        identity, number, offset, stored, mixed = ROW.unpack(row)
        yield identity, Location(packs[number], offset, stored, mixed & (1 << PLAIN_BITS) - 1, mixed >> PLAIN_BITS)


def write_base(
    locator: Locator, rows: Iterable[tuple[bytes, Location]], sizes: dict[str, int], owner: OwnerKey, index_key: bytes
) -> tuple[BaseRun, ...]:
    """Put base runs with these rows, which ascend by id; `sizes` are the packs'."""
    run = os.urandom(16)
    base = []
    for number, (packs, shard) in enumerate(_shards(rows)):
        name = run_name(locator.domain, run, number)
        stored_run = store_run(
            locator.vault,
            name,
            locator.domain,
            index_key,
            [RunPack(pack, sizes[pack]) for pack in packs],
            shard,
            owner.sign,
            base_generation=owner.generation,
        )
        locator.store.put(name, [stored_run])
        base.append(BaseRun(name, blake3(stored_run).digest()))
    return tuple(base)


def _shards(rows: Iterable[tuple[bytes, Location]]) -> Iterator[tuple[list[str], bytearray]]:
    """Rows as they stand in a run, with the packs that they number."""
    numbers: dict[str, int] = {}
    shard = bytearray()
    for identity, at in rows:
        number = numbers.setdefault(at.pack, len(numbers))
        shard += pack_row(identity, number, at.offset, at.stored, at.plain, at.codec)
        if len(shard) >= _SHARD_ROWS * ROW.size:
            yield list(numbers), shard
            numbers, shard = {}, bytearray()
    if shard:
        yield list(numbers), shard
