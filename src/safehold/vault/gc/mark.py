"""Which chunks the points need, and where each of them is to survive. Memory does not grow with the number of chunks."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from safehold.model.context import Context
from safehold.model.errors import DamageError
from safehold.vault.catalogue import Point
from safehold.vault.fetch import ChunkReader, Found
from safehold.vault.index.rows import Location
from safehold.vault.names import ZERO_ID
from safehold.vault.node import decode_node, split_ids
from safehold.vault.pack import TABLE_ROW

__all__ = ["Chosen", "IdSorter", "choose", "reaches", "walk"]

_SPILL = 500_000
"""Ids held in memory, about 50 MB."""
_BATCH = 256
_ID = 32
_BLOCK = 2048 * _ID
"""Bytes of a spilled file that are read at once: 100 million ids lie in 200 files, and a block of each is in memory while they are merged."""


class IdSorter:
    """Takes ids in any order, as often as they come; gives each once, ascending. Use as a context manager."""

    def __init__(self, directory: Path) -> None:
        """`directory` takes files without a name that vanish with the process."""
        self._directory = directory
        self._ids: set[bytes] = set()
        self._files: list[IO[bytes]] = []

    def __enter__(self) -> IdSorter:
        return self

    def __exit__(self, *exc: object) -> None:
        for file in self._files:
            file.close()

    def add(self, ids: Iterable[bytes]) -> None:
        """More ids; the zero id refers to nothing and is left out."""
        self._ids.update(ids)
        self._ids.discard(ZERO_ID)
        if len(self._ids) >= _SPILL:
            file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 - closed by __exit__
            self._files.append(file)
            file.writelines(sorted(self._ids))
            self._ids.clear()

    def __iter__(self) -> Iterator[bytes]:
        last = b""
        for identity in heapq.merge(sorted(self._ids), *map(_read, self._files)):
            if identity != last:
                yield identity
                last = identity


def _read(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    while block := file.read(_BLOCK):
        for at in range(0, len(block), _ID):
            yield block[at : at + _ID]


def walk(
    points: Iterable[Point], reader: Callable[[Point], ChunkReader], live: IdSorter, ctx: Context
) -> list[DamageError]:
    """Every id that the points refer to, at any depth, without knowing what kinds of nodes there are. Returns the nodes that cannot be read:
    what lies below them is unknown.
    """
    lost: list[DamageError] = []
    seen: set[bytes] = {ZERO_ID}
    for point in points:
        chunks = reader(point)
        frontier = [identity for identity in dict.fromkeys(point.body.nodes) if identity not in seen]
        seen.update(frontier)
        while frontier:
            ctx.cancel.check()
            # From the end: depth first keeps the frontier short, and takes nothing twice from a list that may be long.
            batch = frontier[-_BATCH:]
            del frontier[-_BATCH:]
            live.add(batch)
            for result in chunks.many(batch):
                chunk = f"metadata chunk {batch[result.position].hex()[:16]}"
                try:
                    if not isinstance(result, Found):
                        raise DamageError(result.reason, on=chunk)
                    node = decode_node(bytes(result.data), chunk)
                except DamageError as error:
                    lost.append(
                        DamageError(
                            f"{chunk} cannot be read: {error.what}",
                            on=f"point {point.id[:8]} of {', '.join(point.resources)}",
                            remedy="repair the vault, or expire that point; nothing is pruned before",
                        )
                    )
                    continue
                live.add(split_ids(node.chunks))
                fresh = [identity for identity in dict.fromkeys(split_ids(node.nodes)) if identity not in seen]
                seen.update(fresh)
                frontier += fresh
    return lost


@dataclass
class Chosen:
    """Bytes of live chunks by the pack that is to keep them, and live chunks that no pack is known to hold."""

    packs: dict[str, int] = field(default_factory=dict)
    missing: list[bytes] = field(default_factory=list)

    def keep(self, at: Location) -> None:
        """A live chunk stays where it is, with its row in the pack's table of contents."""
        self.packs[at.pack] = self.packs.get(at.pack, 0) + at.stored + TABLE_ROW


def reaches(present: dict[str, int], at: Location) -> bool:
    """True where a pack is there and as long as the chunk's place needs; `present` are sizes by name."""
    return present.get(at.pack, -1) >= at.offset + at.stored


def choose(
    live: Iterable[bytes],
    rows: Iterable[tuple[bytes, Location]],
    present: dict[str, int],
    avoid: frozenset[str],
    suspect: frozenset[str],
    good: Callable[[bytes, Location], bool],
    into: Chosen,
) -> None:
    """For each live chunk choose one place among `rows`, which ascend by id: in a pack that is there, and outside of `avoid` where there is
    such a one, and outside of `suspect` where there is. Packs that are used already are used on.

    Where there are several places, or only one in a `suspect` pack, nothing but one that `good` has read and found right lets the others go: a
    row may lie, and a copy may have rotted. Without such a one all are kept, and the chunk counts as missing too: a better copy may lie where no
    row tells.
    """
    source = iter(rows)
    row = next(source, None)
    for identity in live:
        while row is not None and row[0] < identity:
            row = next(source, None)
        places = []
        while row is not None and row[0] == identity:
            location = row[1]
            if reaches(present, location):
                places.append(location)
            row = next(source, None)
        if not places:
            into.missing.append(identity)
            continue
        places.sort(key=lambda at: (at.pack in avoid, at.pack in suspect, at.pack not in into.packs, at.pack))
        if len(places) == 1 and places[0].pack not in suspect:
            into.keep(places[0])
            continue
        first = next((at for at in places if good(identity, at)), None)
        for kept in places if first is None else [first]:
            into.keep(kept)
        if first is None:
            into.missing.append(identity)
