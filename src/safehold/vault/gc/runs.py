"""Makes index runs of ended sessions into base runs, so that no run names a dead pack and their number stays small."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from blake3 import blake3

from safehold.model.errors import DamageError, ObjectNotFound
from safehold.vault.index.rows import ROW
from safehold.vault.keys import OwnerKey
from safehold.vault.locate import Locator
from safehold.vault.names import run_name
from safehold.vault.pack import PackRow
from safehold.vault.records import BaseRun, RunPack
from safehold.vault.run import encode_rows, store_run

__all__ = ["Absorbed", "absorb", "write_base"]

MOST_RUNS = 128
"""Runs that are left as they are before all of them are made into one: each costs a request in a cold cache."""
_SHARD_ROWS = 1_300_000
"""Rows in a base run: 64 MiB."""


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
) -> Absorbed:
    """Write base runs, signed by the owner, in place of some of the domain's `ended` runs: those that name a pack which is not `alive`, base
    runs that an interrupted prune left `unlisted`, or all of them where they have become many. Rows in packs that are not alive are left
    out. Runs that cannot be read stay as they are.
    """
    chosen: list[str] = []
    rows: list[tuple[str, PackRow]] = []
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
        sizes.update((pack.name, pack.size) for pack in record.packs)
        names = [pack.name for pack in record.packs]
        for at in range(0, len(data), ROW.size):
            identity, number, offset, stored, mixed = ROW.unpack_from(data, at)
            if number < len(names) and names[number] in alive:
                rows.append((names[number], PackRow(identity, offset, stored, mixed & 0x0FFFFFFF, mixed >> 28)))
    return Absorbed(write_base(locator, rows, sizes, owner, index_key), tuple(chosen))


def write_base(
    locator: Locator, rows: list[tuple[str, PackRow]], sizes: dict[str, int], owner: OwnerKey, index_key: bytes
) -> tuple[BaseRun, ...]:
    """Put base runs with these rows of packs; `sizes` are the packs'."""
    rows.sort(key=lambda pair: (pair[1].identity, pair[0], pair[1].offset))
    run = os.urandom(16)
    base = []
    for number, shard in enumerate(_shards(rows)):
        packs = list(dict.fromkeys(pack for pack, _ in shard))
        at_position = {pack: n for n, pack in enumerate(packs)}
        name = run_name(locator.domain, run, number)
        stored_run = store_run(
            locator.vault,
            name,
            locator.domain,
            index_key,
            [RunPack(pack, sizes[pack]) for pack in packs],
            encode_rows((at_position[pack], row) for pack, row in shard),
            owner.sign,
            base_generation=owner.generation,
        )
        locator.store.put(name, [stored_run])
        base.append(BaseRun(name, blake3(stored_run).digest()))
    return tuple(base)


def _shards(rows: list[tuple[str, PackRow]]) -> Iterator[list[tuple[str, PackRow]]]:
    for at in range(0, len(rows), _SHARD_ROWS):
        yield rows[at : at + _SHARD_ROWS]
