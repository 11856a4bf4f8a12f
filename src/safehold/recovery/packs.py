"""Which packs are there while a verification goes on, and prunes beside it."""

from __future__ import annotations

from collections.abc import Sequence

from safehold.model.errors import ObjectNotFound
from safehold.ports.store import Store
from safehold.vault.fetch import ChunkReader
from safehold.vault.index.rows import Location
from safehold.vault.names import Kind

__all__ = ["Packs"]


class Packs:
    """The packs of a vault: listed once, and asked for one by one where an index run tells of one that is younger. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.sizes = {s.name: s.size for kind in (Kind.PACK, Kind.META) for s in store.list(kind.prefix + "/")}
        """Bytes by the pack's name."""
        self._gone: set[str] = set()

    def hold(self, at: Location) -> bool:
        """True where a pack is there and reaches as far as the chunk's place."""
        size = self.sizes.get(at.pack)
        if size is None and at.pack not in self._gone:
            try:
                size = self.sizes[at.pack] = self._store.head(at.pack).size
            except ObjectNotFound:
                self._gone.add(at.pack)
        return size is not None and size >= at.offset + at.stored

    def places(self, chunks: ChunkReader, ids: Sequence[bytes]) -> list[tuple[Location | None, list[Location]]]:
        """For each chunk a place that is held; where there is none, those that were looked at."""
        out: list[tuple[Location | None, list[Location]]] = []
        for identity, location in zip(ids, chunks.finder.find_many(ids), strict=True):
            if location is not None and self.hold(location):
                out.append((location, []))
            else:
                others = chunks.finder.locations(identity)
                out.append((next((at for at in others if self.hold(at)), None), others))
        return out

    def renew(self, chunks: ChunkReader) -> None:
        """Before anything is called gone: a prune may have moved it, so the runs are read again, and what was not there is asked for again."""
        # Told of a look that never was, it says which was the last.
        last = chunks.finder.renew(-1)
        chunks.finder.renew(last)
        self._gone.clear()
