"""Writes files of a stored tree below a directory: all of them, or only what differs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from safehold.model.context import Context
from safehold.model.errors import DamageError
from safehold.model.files import Entry, Form, path_key
from safehold.model.shown import printable
from safehold.model.spread import spread
from safehold.ports.tree import Piece, TreeTarget
from safehold.recovery.comparing import content_is_right
from safehold.recovery.disk import THREADS_LOCAL, THREADS_REMOTE
from safehold.recovery.selection import Selection, selected_pages
from safehold.vault.content import LostParts, Part, parts_or_lost
from safehold.vault.fetch import ChunkReader, Lost
from safehold.vault.names import ZERO_ID
from safehold.vault.records import Member
from safehold.vault.tree import EntryAt, Gap, StoredTree

__all__ = [
    "FileLosses",
    "TreeWritten",
    "file_data",
    "stream_data",
    "write_in_order",
    "write_one",
    "write_tree",
]

_PARTS_AT_ONCE = 8
_COMPARE = 1024 * 1024
_LIKELY = 16
_SHARE = 32 * 1024 * 1024
"""Bytes of larger files that a thread takes at once."""


@dataclass
class FileLosses:
    """Collects files that could not be read whole, and parts of a tree; `salvage` false makes the first one end the restore. Thread-safe."""

    salvage: bool
    found: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, path: bytes, reason: str) -> None:
        """Note a file. DamageError, naming it and the objects, unless this is a salvage."""
        with self._lock:
            self.found.append(f"{printable(path)}: {reason}")
        if not self.salvage:
            raise DamageError(
                f"cannot be read whole: {reason}",
                on=printable(path),
                remedy="restore another point, or go on without it: --salvage, with --delta for what is there already",
            )

    def add_gap(self, gap: Gap) -> None:
        """Note what a page that cannot be read would have held. DamageError as above."""
        with self._lock:
            self.found.append(f"{gap.told}: {gap.reason}")
        if not self.salvage:
            raise DamageError(
                f"cannot be read: {gap.reason}",
                on=gap.told,
                remedy="restore another point, or go on without them: --salvage, with --delta for what is there already",
            )


@dataclass
class TreeWritten:
    """Entries that were written, files among them whose content was right already, and bytes of content written. Thread-safe."""

    entries: int = 0
    kept: int = 0
    data: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, entries: int, kept: int, data: int) -> None:
        """Add to the totals."""
        with self._lock:
            self.entries += entries
            self.kept += kept
            self.data += data


def file_data(
    found: EntryAt, chunks: ChunkReader, lost: Callable[[str], None]
) -> Iterator[tuple[int, memoryview | bytes]]:
    """The content of a file as (offset, bytes), holes left out; each valid until the next. `lost` is told what cannot be read."""
    entry = found.entry
    if entry.form == Form.PIECE:
        identity, offset = found.piece
        for result in chunks.many([identity]):
            data = None if isinstance(result, Lost) else _slice(result.data, offset, entry)
            if data is not None:
                yield 0, data
            else:
                lost(result.reason if isinstance(result, Lost) else "its bytes are not what was backed up")
        return
    at = 0
    batch: list[tuple[int, Part]] = []
    for part in found.parts_or_lost(chunks.one):
        if isinstance(part, LostParts):
            lost(_lost_parts(at, part))
            at += part.length
            continue
        if part[0] != ZERO_ID:
            batch.append((at, part))
        at += part[1]
        if len(batch) == _PARTS_AT_ONCE:
            yield from _parts(batch, chunks, lost)
            batch = []
    yield from _parts(batch, chunks, lost)


def _lost_parts(at: int, part: LostParts) -> str:
    return f"bytes {at}-{at + part.length - 1}: {part.error}"


def _slice(plain: bytes | memoryview, offset: int, entry: Entry) -> memoryview | None:
    data = memoryview(plain)[offset : offset + entry.size]
    return data if len(data) == entry.size else None


def _parts(
    batch: list[tuple[int, Part]], chunks: ChunkReader, lost: Callable[[str], None]
) -> Iterator[tuple[int, memoryview | bytes]]:
    if not batch:
        return
    for result in chunks.many([identity for _, (identity, _) in batch]):
        at, (_, length) = batch[result.position]
        if isinstance(result, Lost):
            lost(f"bytes {at}-{at + length - 1}: {result.reason}")
        elif len(result.data) != length:
            lost(f"bytes {at}-{at + length - 1}: the chunk has the wrong length")
        else:
            yield at, result.data


def stream_data(
    member: Member, chunks: ChunkReader, lost: Callable[[str], None]
) -> Iterator[tuple[int, memoryview | bytes]]:
    """The content of a stream as (offset, bytes) in order, zeros left out; each valid until the next."""
    at = 0
    if not member.size:
        return
    for part in parts_or_lost(member.root, member.size, chunks.one):
        if isinstance(part, LostParts):
            lost(_lost_parts(at, part))
            at += part.length
            continue
        identity, length = part
        if identity != ZERO_ID:
            yield from _parts([(at, (identity, length))], chunks, lost)
        at += length


def write_in_order(parts: Iterator[Part], chunks: ChunkReader, write: Callable[[memoryview], None]) -> None:
    """Write content from front to back, holes as zeros. DamageError where a chunk cannot be read."""
    zeros = memoryview(bytes(_COMPARE))
    for identity, length in parts:
        if identity != ZERO_ID:
            data = chunks.one(identity)
            if len(data) != length:
                raise DamageError("chunk has the wrong length", on=identity.hex()[:16])
            write(memoryview(data))
            continue
        while length:
            write(zeros[: min(length, _COMPARE)])
            length -= min(length, _COMPARE)


def write_one(found: EntryAt, path: bytes, target: TreeTarget, chunks: ChunkReader, losses: FileLosses) -> None:
    """Write a single entry that is no directory. The target's problems say whether it is there."""
    if not found.entry.is_file:
        target.make(path, found.entry)
        return
    target.write_file(path, found.entry, file_data(found, chunks, lambda reason: losses.add(path, reason)))


def write_tree(
    tree: StoredTree,
    chunks: ChunkReader,
    selection: Selection,
    target: TreeTarget,
    losses: FileLosses,
    ctx: Context,
    *,
    compare: bool,
) -> TreeWritten:
    """Write what is selected. With `compare` files that are right already keep their content. The selection's base, where it is a
    directory, gives its attributes to the target itself.
    """
    restore = _TreeRestore(tree, chunks, selection, target, losses, ctx, compare=compare)
    spread(restore.pages(), restore.work, THREADS_REMOTE if chunks.remote else THREADS_LOCAL)
    restore.finish()
    return restore.written


def _shares(page: list[tuple[bytes, EntryAt]]) -> Iterator[list[tuple[bytes, EntryAt]]]:
    """A page in parts for one thread each: a few hundred files can be most of a tree. Files that share chunks stay together."""
    large = [pair for pair in page if pair[1].entry.form in (Form.PARTS, Form.NODE)]
    rest = [pair for pair in page if pair[1].entry.form not in (Form.PARTS, Form.NODE)]
    if rest:
        yield rest
    share: list[tuple[bytes, EntryAt]] = []
    size = 0
    for pair in large:
        share.append(pair)
        size += pair[1].entry.size
        if size >= _SHARE:
            yield share
            share, size = [], 0
    if share:
        yield share


class _TreeRestore:
    def __init__(
        self,
        tree: StoredTree,
        chunks: ChunkReader,
        selection: Selection,
        target: TreeTarget,
        losses: FileLosses,
        ctx: Context,
        *,
        compare: bool,
    ) -> None:
        self._tree, self._chunks, self._selection = tree, chunks, selection
        self._target, self._losses, self._ctx, self._compare = target, losses, ctx, compare
        self._lock = threading.Lock()
        self._directories: list[tuple[bytes, Entry]] = []
        self._first: dict[tuple[int, int], bytes] = {}
        self._links: list[tuple[bytes, bytes, Entry]] = []
        self.written = TreeWritten()

    def pages(self) -> Iterator[list[tuple[bytes, EntryAt]]]:
        """The selected entries with their paths from the base, in pages, or parts of pages that hold much."""
        for page in selected_pages(self._tree, self._selection):
            if isinstance(page, Gap):
                self._losses.add_gap(page)
                continue
            self._directories += [(path, found.entry) for path, found in page if not path]
            yield from _shares([(path, found) for path, found in page if path])

    def work(self, share: Iterator[list[tuple[bytes, EntryAt]]]) -> None:
        """One thread's pages."""
        for page in share:
            files: list[tuple[bytes, EntryAt]] = []
            for path, found in page:
                entry = found.entry
                if entry.is_directory:
                    self._target.directory(path)
                    with self._lock:
                        self._directories.append((path, entry))
                elif self._is_first(path, entry):
                    if entry.is_file:
                        files.append((path, found))
                    else:
                        self._target.make(path, entry)
            self.written.count(len(page), 0, 0)
            self._files(files)

    def _is_first(self, path: bytes, entry: Entry) -> bool:
        """True for the name that makes the file; further names are linked at the end."""
        if entry.links < 2:
            return True
        with self._lock:
            first = self._first.setdefault((entry.fs, entry.ino), path)
            if first != path:
                self._links.append((path, first, entry))
            return first == path

    def _files(self, files: list[tuple[bytes, EntryAt]]) -> None:
        pieces: dict[bytes, list[Piece]] = {}
        for path, found in files:
            self._ctx.cancel.check()
            if self._compare and content_is_right(found, path, self._target, self._chunks):
                self._target.set_attributes(path, found.entry)
                self.written.count(0, 1, 0)
                self._ctx.progress.advance(found.entry.size)
            elif found.entry.form == Form.PIECE:
                identity, offset = found.piece
                pieces.setdefault(identity, []).append(Piece(path, found.entry, offset))
            else:
                self._whole(path, found)
        ids = list(pieces)
        for at in range(0, len(ids), _LIKELY):
            some = ids[at : at + _LIKELY]
            for result in self._chunks.many(some):
                self._ctx.cancel.check()
                sharing = pieces[some[result.position]]
                if isinstance(result, Lost):
                    for piece in sharing:
                        self._losses.add(piece.path, result.reason)
                else:
                    self._pieces(memoryview(result.data), sharing)

    def _pieces(self, data: memoryview, sharing: list[Piece]) -> None:
        """Write the files that lie in one chunk."""
        whole = []
        for piece in sharing:
            if piece.offset + piece.entry.size <= len(data):
                whole.append(piece)
            else:
                self._losses.add(piece.path, "it lies beyond the end of its chunk")
        self._target.write_pieces(data, whole)
        written = sum(piece.entry.size for piece in whole)
        self.written.count(0, 0, written)
        self._ctx.progress.advance(written)

    def _whole(self, path: bytes, found: EntryAt) -> None:
        entry = found.entry
        wrote = 0

        def lost(reason: str) -> None:
            self._losses.add(path, reason)

        def counted() -> Iterator[tuple[int, memoryview | bytes]]:
            nonlocal wrote
            for at, piece in file_data(found, self._chunks, lost):
                self._ctx.cancel.check()
                yield at, piece
                wrote += len(piece)
                self._ctx.progress.advance(len(piece))

        try:
            if self._target.write_file(path, entry, counted()):
                self.written.count(0, 0, wrote)
        except DamageError as error:
            if not self._losses.salvage:
                raise
            lost(str(error))

    def finish(self) -> None:
        """Further names of files, and then what directories say of themselves: making files in them changes their times."""
        self._target.settle()
        for path, first, entry in self._links:
            self._ctx.cancel.check()
            self._target.link(path, first)
            if not entry.is_file:
                self._target.set_attributes(path, entry)
        for path, entry in sorted(self._directories, key=lambda pair: path_key(pair[0]), reverse=True):
            self._target.set_attributes(path, entry)
        # Only what arrived counts; a thing may have failed under several heads, and is one thing all the same.
        problems = self._target.problems
        absent = len({problem.path for problem in problems if problem.absent})
        self.written.count(-absent, 0, -sum(problem.unwritten for problem in problems))
