"""Stores a tree of files: compares it with what the last backup found, reads what differs, and hands in pages of entries.

Walking and reading run in the calling thread, compression and what follows in others (`backup.sealers`). Directories are cut into pages
by their paths alone, and each page is compared with the memory of the last backup: one that is the same is taken over by its id, without
opening a file. Small files of a page share chunks ("bundles"), because a chunk for each would cost more than the files.
"""

from __future__ import annotations

import marshal
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from blake3 import blake3

from safehold.backup.disk import LANES
from safehold.backup.pages import PageStore, Segment
from safehold.backup.sealers import SealPool
from safehold.backup.stored import StoredContent
from safehold.backup.tree_cache import CachedGroup, CachedPage, TreeCache
from safehold.model.context import Context
from safehold.model.files import path_key
from safehold.ports.tree import Listing, Tree
from safehold.vault.session import Session
from safehold.vault.tree import LeafRef
from safehold.vault.tree_builder import FEWEST_ENTRIES, MOST_ENTRIES, Boundaries, InnerBuilder

__all__ = ["store_tree"]

RACY_NS = 1_000_000_000
"""A file changed less than this before it was looked at may change again without its times moving."""


def _signature(listing: Listing, low: int, high: int) -> bytes:
    """A digest of what the scan said of a part of a directory; empty where a file may still be changing."""
    rows = [
        (name, s.st_mode, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
        for name, s in zip(listing.names[low:high], listing.stats[low:high], strict=True)
    ]
    if rows and max(row[5] for row in rows) >= listing.scanned * 1e9 - RACY_NS:
        return b""
    return blake3(marshal.dumps((listing.fs, rows))).digest()


def _cut(listing: Listing, boundaries: Boundaries) -> Iterator[tuple[int, int]]:
    """Parts of a directory that go into one page each; all of it unless it is very large."""
    count = len(listing.names)
    if count <= MOST_ENTRIES:
        yield 0, count
        return
    low = 0
    for at in range(FEWEST_ENTRIES, count):
        size = at - low
        if size >= MOST_ENTRIES or (
            size >= FEWEST_ENTRIES and boundaries.begins_part(listing.parent, listing.names[at])
        ):
            yield low, at
            low = at
    yield low, count


@dataclass
class _Known:
    """The cached groups of the directory that the walk has come to."""

    cache: TreeCache
    _ahead: deque[tuple[CachedPage, CachedGroup]] = field(default_factory=deque)

    def of(self, parent: bytes) -> list[tuple[CachedPage, CachedGroup]]:
        """To be asked with directories in order."""
        for page in self.cache.upto(parent):
            self._ahead.extend((page, group) for group in page.groups)
        key = path_key(parent)
        found = []
        while self._ahead and path_key(self._ahead[0][1].parent) <= key:
            pair = self._ahead.popleft()
            if pair[1].parent == parent:
                found.append(pair)
        return found


def _pages(tree: Tree, cache: TreeCache, boundaries: Boundaries) -> Iterator[list[Segment]]:
    """The tree in pages."""
    known = _Known(cache)
    page: list[Segment] = []
    count = 0
    for listing in tree.listings():
        cached = known.of(listing.parent)
        by_first = {group.first: (owner, group) for owner, group in cached}
        for low, high in _cut(listing, boundaries):
            if low == high:
                continue
            size, first = high - low, listing.names[low]
            begins = count >= FEWEST_ENTRIES and boundaries.begins_page(listing.parent, first)
            if page and (begins or count + size > MOST_ENTRIES):
                yield page
                page, count = [], 0
            signature = _signature(listing, low, high)
            same = by_first.get(first)
            if same is not None and (not signature or same[1].signature != signature):
                same = None
            page.append(Segment(listing, low, high, signature, same, cached))
            count += size
    if page:
        yield page


def _same_page(page: list[Segment]) -> CachedPage | None:
    """The stored page that holds just these segments, all of them unchanged."""
    if page[0].same is None:
        return None
    owner = page[0].same[0]
    if len(owner.groups) != len(page) or any(s.same is None or s.same[0] is not owner for s in page):
        return None
    return owner


def store_tree(session: Session, tree: Tree, dedup_key: bytes, cache: TreeCache, ctx: Context) -> StoredContent:
    """Store the tree in the session. What cannot be read is reported to the tree, and left out.

    Raises what the walk, the session or a sealing thread raised.
    """
    boundaries = Boundaries(dedup_key)
    lane = session.lane()
    inner = InnerBuilder(boundaries, lambda node: session.put_node(lane, node))
    live: dict[bytes, int] = {}
    size = 0
    with cache.writer() as writer, SealPool(session, LANES) as sealers:
        store = PageStore(session, sealers, tree, dedup_key, cache.sparse, ctx)
        for segments in _pages(tree, cache, boundaries):
            ctx.cancel.check()
            same = _same_page(segments)
            if same is not None and _relied_on(session, same, cache.sparse):
                stored = [same]
                ctx.progress.advance(same.size)
            else:
                stored = store.store(segments)
            for page in stored:
                first = page.groups[0]
                inner.add(LeafRef(page.identity, first.parent, first.first, page.entries))
                writer.add(page)
                size += page.size
                for n, used in enumerate(page.live):
                    if used:
                        identity = page.chunks[n * 32 : n * 32 + 32]
                        live[identity] = live.get(identity, 0) + used
        sealers.drain()
        root, levels, entries = inner.finish()
        writer.commit(_sparse(session, live))
    return StoredContent(root, levels, size, store.read, entries)


def _relied_on(session: Session, page: CachedPage, sparse: frozenset[bytes]) -> bool:
    """True where everything that the page needs is in the vault, and worth leaving as it is."""
    ids = [page.identity]
    for some in (page.chunks, page.nodes, page.deep):
        ids += [some[at : at + 32] for at in range(0, len(some), 32)]
    return min(session.known(ids)) >= 0 and not (sparse and not sparse.isdisjoint(ids))


def _sparse(session: Session, live: dict[bytes, int]) -> list[bytes]:
    """Chunks of which this point uses less than half: the next backup stores what is left in them anew."""
    ids = list(live)
    return [identity for identity, plain in zip(ids, session.known(ids), strict=True) if live[identity] * 2 < plain]
