"""A stored tree of files: pages of entries in order of their paths, and above them pages that say where which path lies.

    tree.leaf    body: groups [parent, [entry, …]], parents ascending by components, names ascending; chunks, nodes: what the entries
                 refer to by position
    tree.inner   nodes: pages one level below in order; body: for each [parent, name, entries]: its first entry and how many it has

A page ends where a keyed hash of a directory's path says so, or where it would get too large. Neither depends on what is in the files or
when they changed, so a change touches one page and the pages above it.
"""

from __future__ import annotations

import itertools
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from safehold.model.errors import DamageError
from safehold.model.files import Entry, Form, path_key
from safehold.model.shown import printable
from safehold.vault.content import LostParts, Part, parts_or_lost
from safehold.vault.names import ZERO_ID
from safehold.vault.node import decode_node, read_ids

__all__ = [
    "Child",
    "EntryAt",
    "Gap",
    "Group",
    "LeafRef",
    "StoredTree",
    "changed_entries",
]

LEAF, INNER = "tree.leaf", "tree.inner"
_DEEPEST = 16
_LONGEST_PATH = 1 << 20


class Group(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Entries of one directory that lie in one page."""

    parent: bytes
    entries: list[Entry]


class Child(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What an inner page says of a page below it: its first entry, and how many entries there are below."""

    parent: bytes
    name: bytes
    entries: int


_groups = msgspec.msgpack.Decoder(list[Group])
_children = msgspec.msgpack.Decoder(list[Child])


@dataclass(frozen=True, slots=True)
class LeafRef:
    """A leaf page: its id, where it begins, and how many entries it has."""

    identity: bytes
    parent: bytes
    name: bytes
    entries: int

    @property
    def key(self) -> tuple[bytes, bytes]:
        """What leaves are ordered by."""
        return path_key(self.parent), self.name


@dataclass(frozen=True, slots=True)
class Gap:
    """Entries that nobody can tell, since a page cannot be read for that `reason`: those from `first` on, in the order of the tree, and
    before `end` (to the last, where that is None).
    """

    first: LeafRef
    end: LeafRef | None
    reason: str

    @property
    def told(self) -> str:
        """Which they are, for people."""
        count = f"{self.first.entries} entries" if self.first.entries else "entries"
        since, until = (_path(ref) if ref is not None else "the end" for ref in (self.first, self.end))
        return f"{count} from {since} to {until}"


class _Leaf(NamedTuple):
    """A leaf page, and the page behind it."""

    first: LeafRef
    end: LeafRef | None


def _path(ref: LeafRef) -> str:
    return "/" + printable(b"/".join(part for part in (ref.parent, ref.name) if part))


class EntryAt(NamedTuple):
    """An entry with the directory it lies in, and the lists of the page that its content refers to."""

    parent: bytes
    entry: Entry
    chunks: bytes
    nodes: bytes

    @property
    def path(self) -> bytes:
        """From the top of the tree, without a leading slash."""
        if not self.parent:
            return self.entry.name
        return self.parent + b"/" + self.entry.name

    @property
    def key(self) -> tuple[bytes, bytes]:
        """What entries are ordered by."""
        return path_key(self.parent), self.entry.name

    def parts(self, load: Callable[[bytes], bytes]) -> Iterator[Part]:
        """The content of a file as parts; a piece of a shared chunk is none (see `piece`). DamageError."""
        for part in self.parts_or_lost(load):
            if isinstance(part, LostParts):
                raise part.error
            yield part

    def parts_or_lost(self, load: Callable[[bytes], bytes]) -> Iterator[Part | LostParts]:
        """As `parts`, going on past lists of parts that cannot be read."""
        entry = self.entry
        if entry.form == Form.NODE:
            yield from parts_or_lost(self._at(self.nodes, entry.content[0]), entry.size, load)
            return
        for at in range(0, len(entry.content), 2):
            position, length = entry.content[at], entry.content[at + 1]
            yield (ZERO_ID if position < 0 else self._at(self.chunks, position)), length

    @property
    def piece(self) -> tuple[bytes, int]:
        """The chunk that holds the file among others, and where in it the file begins."""
        position, offset = self.entry.content
        return self._at(self.chunks, position), offset

    def _at(self, ids: bytes, position: int) -> bytes:
        return ids[position * 32 : position * 32 + 32]

    @property
    def references(self) -> tuple[bytes, ...]:
        """Ids that the entry itself refers to: two entries of one domain with the same ones have the same content."""
        entry = self.entry
        if entry.form == Form.NONE:
            return ()
        if entry.form == Form.NODE:
            return (self._at(self.nodes, entry.content[0]),)
        if entry.form == Form.PIECE:
            return (entry.digest,)
        return tuple(ZERO_ID if p < 0 else self._at(self.chunks, p) for p in entry.content[::2])


def _check(entry: Entry, chunks: int, nodes: int, on: str) -> None:
    """DamageError unless the entry can be. Points may come from a hostile writer: nothing in them is believed."""
    content, size = entry.content, entry.size
    if entry.form == Form.NONE:
        sound = not content and not size
    elif entry.form == Form.PIECE:
        sound = len(content) == 2 and 0 <= content[0] < chunks and content[1] >= 0 and size > 0
    elif entry.form == Form.PARTS:
        lengths = content[1::2]
        sound = len(content) % 2 == 0 and all(-1 <= p < chunks for p in content[::2]) and all(n > 0 for n in lengths)
        sound = sound and sum(lengths) == size
    else:
        sound = entry.form == Form.NODE and len(content) == 1 and 0 <= content[0] < nodes and size > 0
    sane = (
        0 <= entry.mode <= 0xFFFF
        and 0 <= entry.uid <= 0xFFFFFFFF
        and 0 <= entry.gid <= 0xFFFFFFFF
        and 0 <= entry.rdev < 1 << 64
        and 0 <= size < 1 << 63
        and abs(entry.mtime) < 1 << 63
        and not any(b"\0" in key or not key for key in entry.xattrs)
    )
    name = entry.name
    named = name not in (b".", b"..") and b"/" not in name and b"\0" not in name and len(name) <= 255
    if not (sound and sane and named) or (entry.form and not stat.S_ISREG(entry.mode)) or b"\0" in entry.target:
        raise DamageError("a file is described that cannot be", on=on)


class StoredTree:
    """Reads a stored tree page by page. Thread-safe."""

    def __init__(self, root: bytes, levels: int, name: str, load: Callable[[bytes], bytes]) -> None:
        """`load` gives a metadata chunk's plaintext; `name` is the resource's, for messages."""
        if not 1 <= levels <= _DEEPEST or len(root) != 32:
            raise DamageError("point describes a tree of files that cannot be", on=name)
        self.root, self.levels, self.name = root, levels, name
        self.load = load

    def leaves(self, start: tuple[bytes, bytes] = (b"", b"")) -> Iterator[LeafRef]:
        """Leaf pages in order, from the one on that holds the first entry not before `start`. DamageError."""
        for found in self._ordered(start):
            if isinstance(found, Gap):
                raise self._unreadable(found)
            yield found.first

    def pages(self, start: tuple[bytes, bytes] = (b"", b"")) -> Iterator[list[EntryAt] | Gap]:
        """The entries of leaf pages in order, from the one on that holds the first entry not before `start`, and in their place what pages
        that cannot be read would have held.
        """
        for found in self._ordered(start):
            if isinstance(found, Gap):
                yield found
                continue
            try:
                page = self.page(found.first)
            except DamageError as error:
                yield Gap(*found, str(error))
            else:
                yield page

    def _unreadable(self, gap: Gap) -> DamageError:
        return DamageError(f"{gap.told} cannot be read: {gap.reason}", on=self.name)

    def _ordered(self, start: tuple[bytes, bytes]) -> Iterator[_Leaf | Gap]:
        last: tuple[bytes, bytes] | None = None
        for found in self._walk(LeafRef(self.root, b"", b"", 0), None, self.levels, start):
            # A page met twice would come out of order, so no hostile tree is larger than what is stored of it.
            if last is not None and found.first.key <= last:
                raise DamageError("pages of the tree are out of order", on=self.name)
            last = found.first.key
            yield found

    def _walk(self, ref: LeafRef, end: LeafRef | None, level: int, start: tuple[bytes, bytes]) -> Iterator[_Leaf | Gap]:
        if level == 1:
            yield _Leaf(ref, end)
            return
        try:
            refs = self._below(ref)
        except DamageError as error:
            yield Gap(ref, end, str(error))
            return
        for child, behind in zip(refs, [*refs[1:], None], strict=True):
            if behind is None or behind.key > start:
                yield from self._walk(child, behind or end, level - 1, start)

    def _below(self, ref: LeafRef) -> list[LeafRef]:
        """The pages below an inner one. DamageError."""
        on = f"metadata chunk {ref.identity.hex()[:16]}"
        node = decode_node(self.load(ref.identity), on)
        try:
            children = _children.decode(node.body)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise DamageError("page of the tree does not decode", on=on) from error
        ids = list(read_ids(node.nodes))
        if node.kind != INNER or len(ids) != len(children) or not ids:
            raise DamageError("page of the tree does not add up", on=on)
        refs = [LeafRef(i, c.parent, c.name, c.entries) for i, c in zip(ids, children, strict=True)]
        if any(a.key >= b.key for a, b in itertools.pairwise(refs)):
            raise DamageError("pages of the tree are out of order", on=on)
        return refs

    def page(self, leaf: LeafRef) -> list[EntryAt]:
        """The entries of a leaf page, in order. DamageError where they are not what a tree can hold."""
        on = f"metadata chunk {leaf.identity.hex()[:16]}"
        node = decode_node(self.load(leaf.identity), on)
        try:
            groups = _groups.decode(node.body)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise DamageError("page of the tree does not decode", on=on) from error
        if node.kind != LEAF:
            raise DamageError(f"tree holds a {node.kind} node among its pages", on=on)
        chunks, nodes = len(node.chunks) // 32, len(node.nodes) // 32
        out = []
        last: tuple[bytes, bytes] | None = None
        for group in groups:
            parts = group.parent.split(b"/") if group.parent else []
            directory = path_key(group.parent)
            if any(part in (b"", b".", b"..") or b"\0" in part for part in parts) or len(group.parent) > _LONGEST_PATH:
                raise DamageError("a file is described that cannot be", on=on)
            for entry in group.entries:
                _check(entry, chunks, nodes, on)
                if not entry.name and group.parent:
                    raise DamageError("a file is described that cannot be", on=on)
                key = (directory, entry.name)
                if last is not None and key <= last:
                    raise DamageError("entries of the tree are out of order", on=on)
                last = key
                out.append(EntryAt(group.parent, entry, node.chunks, node.nodes))
        return out

    def entries(self, start: tuple[bytes, bytes] = (b"", b"")) -> Iterator[EntryAt]:
        """Entries in order, those before `start` left out."""
        last: tuple[bytes, bytes] | None = None
        for page in self.pages(start):
            if isinstance(page, Gap):
                raise self._unreadable(page)
            for found in page:
                if last is not None and found.key <= last:
                    raise DamageError("entries of the tree are out of order", on=self.name)
                last = found.key
                if found.key >= start:
                    yield found

    def find(self, path: bytes) -> EntryAt | None:
        """The entry at `path`; None where there is none."""
        parent, _, name = path.rpartition(b"/")
        wanted = (path_key(parent), name)
        for found in self.entries(wanted):
            return found if found.key == wanted else None
        return None

    def listing(self, path: bytes) -> Iterator[EntryAt]:
        """The entries of one directory."""
        key = path_key(path)
        for found in self.entries((key, b"")):
            if found.key[0] != key:
                return
            yield found

    def below(self, path: bytes) -> Iterator[EntryAt]:
        """Everything below a directory, at any depth; all of the tree for the empty path."""
        key = path_key(path)
        for found in self.entries((key, b"")):
            if path and found.parent != path and not found.parent.startswith(path + b"/"):
                return
            yield found


def changed_entries(old: StoredTree, new: StoredTree) -> Iterator[tuple[EntryAt | None, EntryAt | None]]:
    """Entries that differ, in order, as (old, new); None where a tree has none at that path. Pages that both have are not read.

    Both must be of one dedup domain: contents are compared by their ids.
    """
    before, after = list(old.leaves()), list(new.leaves())
    shared = {leaf.identity for leaf in before} & {leaf.identity for leaf in after}
    left, right = _entries(old, before, shared), _entries(new, after, shared)
    a, b = next(left, None), next(right, None)
    while a is not None or b is not None:
        if b is None or (a is not None and a.key < b.key):
            yield a, None
            a = next(left, None)
        elif a is None or b.key < a.key:
            yield None, b
            b = next(right, None)
        else:
            if _told(a) != _told(b):
                yield a, b
            a, b = next(left, None), next(right, None)


def _entries(tree: StoredTree, leaves: list[LeafRef], without: set[bytes]) -> Iterator[EntryAt]:
    for leaf in leaves:
        if leaf.identity not in without:
            try:
                page = tree.page(leaf)
            except DamageError as error:
                raise DamageError(f"entries from {_path(leaf)} on cannot be read: {error}", on=tree.name) from error
            yield from page


def _told(found: EntryAt) -> tuple[object, ...]:
    """What makes two entries the same to a user; where they lie in a page, and when they were looked at, does not."""
    e = found.entry
    return e.mode, e.uid, e.gid, e.size, e.mtime, e.rdev, e.target, e.xattrs, found.references
