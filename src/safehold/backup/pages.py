"""Stores one page of a tree: its files' content, in bundles, chunks and lists of chunks, and then its entries."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from functools import cached_property

import msgspec

from safehold.backup.cutter import ContentCutter
from safehold.backup.entries import References, make_entry, references, same_file, split_ids, unmoved
from safehold.backup.sealers import BufferRing, SealPool
from safehold.backup.tree_cache import CachedGroup, CachedPage
from safehold.model.context import Context
from safehold.model.files import Entry, Form
from safehold.ports.tree import Listing, Tree, Unreadable
from safehold.vault.content import write_parts
from safehold.vault.names import ZERO_ID
from safehold.vault.node import Node
from safehold.vault.sealing import chunk_id
from safehold.vault.session import Session
from safehold.vault.tree_builder import RawGroup, encode_leaf

__all__ = ["PageStore", "Segment"]

_SMALL = 128 * 1024
"""Files up to this size share chunks with their neighbours."""
_BUNDLE = 1024 * 1024
"""A bundle is stored once it has this much: large enough to compress well, small enough to read for one file."""
_BUNDLES = 8
_INLINE_PARTS = 64
"""Longer lists of chunks go into nodes of their own."""
_TRIES = 3
_TELL = 1024 * 1024
_TOO_LARGE_TO_REPEAT = 256 * 1024 * 1024
_LARGEST_PAGE = 8 * 1024 * 1024
_RACY_NS = 1_000_000_000
_DIGEST = 16


@dataclass
class Segment:
    """A directory, or a part of a large one: names `low` to `high` of a listing, the digest of what the scan said, the cached group that
    says the same (None where none does), and all cached groups of the directory.
    """

    listing: Listing
    low: int
    high: int
    signature: bytes
    same: tuple[CachedPage, CachedGroup] | None
    cached: list[tuple[CachedPage, CachedGroup]]

    @cached_property
    def previous(self) -> dict[bytes, tuple[Entry, CachedPage, int]]:
        """What the last backup stored under each name, and when the directory had been scanned."""
        groups = [self.same] if self.same else self.cached
        return {
            entry.name: (entry, page, group.scanned)
            for page, group in groups
            for entry in msgspec.msgpack.decode(group.entries, type=list[Entry])
        }


class PageStore:
    """Stores pages one after another. Not thread-safe."""

    def __init__(
        self,
        session: Session,
        sealers: SealPool,
        tree: Tree,
        dedup_key: bytes,
        sparse: frozenset[bytes],
        ctx: Context,
    ) -> None:
        """`sparse` are chunks whose files are to be stored anew."""
        self._sealers = sealers
        self._twins: dict[tuple[int, int], tuple[Entry, CachedPage]] = {}
        self._session, self._tree, self._dedup_key = session, tree, dedup_key
        self._sparse, self._ctx = sparse, ctx
        self._lane = session.lane()
        self._ring = BufferRing(_BUNDLE + _SMALL + 1, _BUNDLES)
        self._bundle = self._ring.take()
        self._cutter: ContentCutter | None = None
        self.read = 0

    def store(self, segments: list[Segment]) -> list[CachedPage]:
        """Store the page; its files may fill more than one where they have very much beside their content."""
        self._refs = References()
        self._filled, self._position = 0, -1
        self._usable: dict[bytes, frozenset[bytes]] = {}
        self._links: dict[tuple[int, int], Entry] = {}
        groups: list[tuple[Segment, list[Entry]]] = []
        total = 0
        for segment in segments:
            entries = []
            told = total
            for n in range(segment.low, segment.high):
                self._ctx.cancel.check()
                entry = self._entry(segment, n)
                if entry is not None:
                    entries.append(entry)
                    total += entry.size
                    if total - told > _TELL:
                        self._ctx.progress.advance(total - told)
                        told = total
            self._ctx.progress.advance(total - told)
            if entries:
                groups.append((segment, entries))
        self._flush()
        return self._encode(groups, total) if groups else []

    # -- entries -----------------------------------------------------------------------------------------------------

    def _entry(self, segment: Segment, n: int) -> Entry | None:
        listing = segment.listing
        status, name = listing.stats[n], listing.names[n]
        previous = segment.previous.get(name)
        if previous is not None:
            taken = self._take_over(previous, status, listing.fs)
            if taken is not None:
                return taken
        try:
            if stat.S_ISREG(status.st_mode):
                return self._file(listing, n)
            attributes = listing.attributes(n)
        except Unreadable as error:
            path = listing.parent + b"/" + name if listing.parent else name
            self._tree.report(path, error.reason)
            return None
        return make_entry(name, status, listing.fs, attributes.xattrs, target=attributes.target)

    def _take_over(self, previous: tuple[Entry, CachedPage, int], status: os.stat_result, fs: int) -> Entry | None:
        """The entry as the last backup stored it, where the file is the same and its content is in the vault."""
        entry, page, scanned = previous
        if not same_file(entry, status, fs) or entry.ctime >= scanned - _RACY_NS:
            return None
        if entry.form == Form.NONE:
            return entry
        usable = self._usable.get(page.identity)
        if usable is None:
            usable = self._usable[page.identity] = self._known(page)
        return self._carry(entry, page) if usable.issuperset(references(entry, page)) else None

    def _carry(self, entry: Entry, page: CachedPage) -> Entry:
        """An entry of another page, with its content referred to from this one."""
        refs = self._refs
        ids = references(entry, page)
        if entry.form == Form.NODE:
            refs.deep += split_ids(page.deep)
            content: tuple[int, ...] = (refs.node(ids[0]),)
        else:
            if entry.form == Form.PIECE:
                position = refs.chunk(ids[0])
                refs.live[position] += entry.size
                content = (position, entry.content[1])
            else:
                lengths = entry.content[1::2]
                content = tuple(x for i, length in zip(ids, lengths, strict=True) for x in (refs.chunk(i), length))
        return entry if content == entry.content else msgspec.structs.replace(entry, content=content)

    def _known(self, page: CachedPage) -> frozenset[bytes]:
        """Ids of the page's chunks and nodes that this session may rely on."""
        chunks, nodes, deep = split_ids(page.chunks), split_ids(page.nodes), split_ids(page.deep)
        whole = not deep or min(self._session.known(deep)) >= 0
        ids = chunks + (nodes if whole else [])
        found = zip(ids, self._session.known(ids), strict=True)
        good = {identity for identity, plain in found if plain >= 0 and identity not in self._sparse}
        return frozenset(good | {ZERO_ID})

    # -- content -----------------------------------------------------------------------------------------------------

    def _file(self, listing: Listing, n: int) -> Entry:
        status, name = listing.stats[n], listing.names[n]
        if status.st_nlink > 1:
            twin = self._links.get((listing.fs, status.st_ino))
            if twin is not None and same_file(twin, status, listing.fs):
                if twin.form == Form.PIECE:
                    self._refs.live[twin.content[0]] += twin.size
                return msgspec.structs.replace(twin, name=name)
            other = self._twins.get((listing.fs, status.st_ino))
            if other is not None and same_file(other[0], status, listing.fs):
                return msgspec.structs.replace(self._carry(*other), name=name)
        entry = self._small(listing, n) if status.st_size <= _SMALL else None
        if entry is None:
            entry = self._large(listing, n)
        if status.st_nlink > 1:
            self._links[listing.fs, status.st_ino] = entry
        return entry

    def _small(self, listing: Listing, n: int) -> Entry | None:
        """A file that shares a chunk; None where it has grown too large for that."""
        if self._filled >= _BUNDLE:
            self._flush()
        room = memoryview(self._bundle)[self._filled : self._filled + _SMALL + 1]
        before = listing.stats[n]
        for _ in range(_TRIES):
            found = listing.read_small(n, room)
            if found.length > _SMALL:
                return None
            if not stat.S_ISREG(found.status.st_mode):
                raise Unreadable("is no file any more")
            if unmoved(before, found.status):
                break
            before = found.status
        else:
            self._changed(listing, n)
        self.read += found.length
        if not found.length:
            return make_entry(listing.names[n], found.status, listing.fs, found.xattrs)
        if self._position < 0:
            self._position = self._refs.reserve()
        offset = self._filled
        self._filled += found.length
        self._refs.live[self._position] += found.length
        digest = chunk_id(self._dedup_key, room[: found.length])[:_DIGEST]
        return make_entry(
            listing.names[n],
            found.status,
            listing.fs,
            found.xattrs,
            size=found.length,
            form=Form.PIECE,
            content=(self._position, offset),
            digest=digest,
        )

    def _flush(self) -> None:
        """Store the bundle that is being filled."""
        if self._position < 0:
            return
        view = memoryview(self._bundle)[: self._filled]
        identity = chunk_id(self._dedup_key, view)
        self._refs.fill(self._position, identity)
        used, self._bundle = self._bundle, self._ring.take()
        self._sealers.put([identity], [view], used, self._ring)
        self._filled, self._position = 0, -1

    def _large(self, listing: Listing, n: int) -> Entry:
        """A file in chunks of its own."""
        if self._cutter is None:
            self._cutter = ContentCutter(self._sealers, self._dedup_key)
        for _ in range(_TRIES):
            with listing.open(n) as opened:
                parts = self._cutter.file(opened)
                found = opened.finish()
            self.read += sum(length for identity, length in parts if identity != ZERO_ID)
            if unmoved(opened.status, found.status):
                break
            if found.status.st_size > _TOO_LARGE_TO_REPEAT:
                self._changed(listing, n)
                break
        else:
            self._changed(listing, n)
        size = sum(length for _, length in parts)
        name, refs = listing.names[n], self._refs
        form = Form.NONE
        content: tuple[int, ...] = ()
        if len(parts) > _INLINE_PARTS:
            put: list[bytes] = []
            root = write_parts(parts, lambda node: self._put_node(node, put))
            refs.deep += [identity for identity, _ in parts if identity != ZERO_ID] + put
            form, content = Form.NODE, (refs.node(root),)
        elif parts:
            form = Form.PARTS
            content = tuple(x for identity, length in parts for x in (refs.chunk(identity), length))
        return make_entry(name, found.status, listing.fs, found.xattrs, size=size, form=form, content=content)

    def _put_node(self, node: Node, put: list[bytes]) -> bytes:
        put.append(self._session.put_node(self._lane, node))
        return put[-1]

    def _changed(self, listing: Listing, n: int) -> None:
        path = listing.parent + b"/" + listing.names[n] if listing.parent else listing.names[n]
        self._tree.report(path, "changed while it was read: what is stored may be of no single moment")

    # -- the page ----------------------------------------------------------------------------------------------------

    def _encode(self, groups: list[tuple[Segment, list[Entry]]], total: int) -> list[CachedPage]:
        refs = self._refs
        chunks, nodes = b"".join(refs.chunks), b"".join(refs.nodes)
        cached = [
            CachedGroup(
                segment.listing.parent,
                entries[0].name,
                segment.signature if len(entries) == segment.high - segment.low else b"",
                int(segment.listing.scanned * 1e9),
                msgspec.Raw(msgspec.msgpack.encode(entries)),
            )
            for segment, entries in groups
        ]
        node = encode_leaf([RawGroup(group.parent, group.entries) for group in cached], chunks, nodes)
        count = sum(len(entries) for _, entries in groups)
        if len(node.body) > _LARGEST_PAGE and count > 1:
            first, second = _halves(groups, count // 2)
            size = sum(entry.size for _, entries in first for entry in entries)
            return self._encode(first, size) + self._encode(second, total - size)
        identity = self._session.put_node(self._lane, node)
        page = CachedPage(identity, chunks, nodes, refs.live, b"".join(dict.fromkeys(refs.deep)), count, total, cached)
        self._twins.update((key, (entry, page)) for key, entry in self._links.items())
        return [page]


def _halves(
    groups: list[tuple[Segment, list[Entry]]], middle: int
) -> tuple[list[tuple[Segment, list[Entry]]], list[tuple[Segment, list[Entry]]]]:
    """The groups in two, with about as many entries in each; a group may be cut."""
    first: list[tuple[Segment, list[Entry]]] = []
    second: list[tuple[Segment, list[Entry]]] = []
    for segment, entries in groups:
        room = max(0, middle - sum(len(taken) for _, taken in first))
        if entries[:room]:
            first.append((segment, entries[:room]))
        if entries[room:]:
            second.append((segment, entries[room:]))
    return first, second
