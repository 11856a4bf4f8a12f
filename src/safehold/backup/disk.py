"""Stores one disk: read, hash, and hand in what the vault lacks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from safehold.backup.stored import StoredContent
from safehold.model.context import Context
from safehold.model.errors import SourceError
from safehold.model.extents import ExtentKind
from safehold.model.spread import spread
from safehold.ports.blocks import Blocks, IncrementalBlocks, Lineage
from safehold.vault.disk_builder import DiskTreeBuilder
from safehold.vault.names import ZERO_ID, Kind
from safehold.vault.records import Parameters
from safehold.vault.sealing import chunk_id
from safehold.vault.session import Session

__all__ = ["LANES", "BaseGone", "Window", "store_disk", "windows"]

LANES = 2
"""Threads that read and seal. All the heavy calls release the interpreter's lock, so two keep two cores busy."""

WINDOW = 8 * 1024 * 1024
"""Bytes read at once by a thread: long enough for the disk, short enough for the memory."""


_SAME_WINDOW = 4096
"""Blocks looked up at once where nothing is read."""

_LAST = Lineage("last point")


class BaseGone(SourceError):
    """The vault lacks blocks of the point that an incremental disk counts on."""


@dataclass(frozen=True, slots=True)
class Window:
    """`count` whole blocks from number `first`: to be read, known to be zero, or the same as in the disk's last point."""

    first: int
    count: int
    kind: ExtentKind


def windows(blocks: Blocks, block_size: int) -> Iterator[Window]:
    """The disk in windows. A block counts as data where any byte of it may be; SAME extents have to be of whole blocks."""
    step = max(1, WINDOW // block_size)
    done = 0
    for extent in blocks.extents(_LAST if isinstance(blocks, IncrementalBlocks) else None):
        if extent.kind is ExtentKind.ZERO or extent.end <= done * block_size:
            continue
        first, last = max(extent.offset // block_size, done), (extent.end - 1) // block_size
        if first > done:
            yield Window(done, first - done, ExtentKind.ZERO)
        size = _SAME_WINDOW if extent.kind is ExtentKind.SAME else step
        for at in range(first, last + 1, size):
            yield Window(at, min(size, last + 1 - at), extent.kind)
        done = last + 1
    total = -(-blocks.size // block_size)
    if total > done:
        yield Window(done, total - done, ExtentKind.ZERO)


def store_disk(
    session: Session, blocks: Blocks, dedup_key: bytes, parameters: Parameters, ctx: Context
) -> StoredContent:
    """Store the whole disk in the session; only blocks that the vault lacks are compressed, encrypted and uploaded, and of an incremental
    disk only what changed is read. BaseGone where the vault lacks what did not change.
    """
    size, block_size = blocks.size, parameters.block_size
    nodes = session.lane()
    tree = DiskTreeBuilder(-(-size // block_size), parameters.page_refs, lambda node: session.put_node(nodes, node))
    zero_block = chunk_id(dedup_key, bytes(block_size))
    tail = size % block_size
    zero_tail = chunk_id(dedup_key, bytes(tail))
    read = []

    def work(share: Iterator[Window]) -> None:
        lane = session.lane()
        buffer = bytearray(max(WINDOW, block_size))
        total = 0
        for window in share:
            ctx.cancel.check()
            start = window.first * block_size
            length = min(window.count * block_size, size - start)
            if window.kind is ExtentKind.SAME:
                tree.set(window.first, _unchanged(session, blocks, window))
                ctx.progress.advance(length)
                continue
            if window.kind is ExtentKind.ZERO:
                tree.set_zero(window.first, window.count)
                if isinstance(blocks, IncrementalBlocks):
                    blocks.remember_zeros(window.first, window.count)
                ctx.progress.advance(length)
                continue
            view = memoryview(buffer)[:length]
            blocks.read_into(start, view)
            pieces = [view[at : at + block_size] for at in range(0, length, block_size)]
            identities = [chunk_id(dedup_key, piece) for piece in pieces]
            for n, identity in enumerate(identities):
                # Hashing tells zeros from data without a second pass over the block.
                if identity == (zero_block if len(pieces[n]) == block_size else zero_tail):
                    identities[n] = ZERO_ID
            fresh = [n for n, identity in enumerate(identities) if identity != ZERO_ID]
            lane.put_known(Kind.PACK, [identities[n] for n in fresh], [pieces[n] for n in fresh])
            tree.set(window.first, identities)
            if isinstance(blocks, IncrementalBlocks):
                blocks.remember_ids(window.first, identities)
            total += length
            ctx.progress.advance(length)
        read.append(total)

    spread(windows(blocks, block_size), work, LANES)
    root, levels = tree.finish()
    return StoredContent(root, levels, size, sum(read))


def _unchanged(session: Session, blocks: Blocks, window: Window) -> list[bytes]:
    if not isinstance(blocks, IncrementalBlocks):
        raise TypeError("only an incremental disk has blocks that are the same")
    identities = blocks.known_ids(window.first, window.count)
    counted = [identity for identity in identities if identity != ZERO_ID]
    if -1 in session.known(counted):
        raise BaseGone(
            "the vault lacks blocks of the volume's last point",
            remedy="take another snapshot: it compares everything and stores them again",
        )
    return identities
