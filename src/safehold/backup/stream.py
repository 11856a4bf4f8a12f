"""Stores bytes that come once, such as the output of another program."""

from __future__ import annotations

from safehold.backup.cutter import ContentCutter
from safehold.backup.disk import LANES
from safehold.backup.sealers import SealPool
from safehold.backup.stored import StoredContent
from safehold.model.context import Context
from safehold.ports.tree import ByteStream
from safehold.vault.content import Part, write_parts
from safehold.vault.names import ZERO_ID
from safehold.vault.session import Session

__all__ = ["store_stream"]


def store_stream(session: Session, stream: ByteStream, dedup_key: bytes, ctx: Context) -> StoredContent:
    """Store the stream to its end. An empty one has the zero id as its root."""
    parts: list[Part] = []
    with SealPool(session, LANES) as sealers:
        cutter = ContentCutter(sealers, dedup_key)
        filled = 0
        while True:
            ctx.cancel.check()
            room = cutter.room
            got = stream.read_some(room[filled:])
            ctx.progress.advance(got)
            filled += got
            if not got or filled == len(room):
                filled = cutter.feed(filled, parts, last=not got)
            if not got:
                break
        sealers.drain()
    lane = session.lane()
    size = sum(length for _, length in parts)
    root = write_parts(parts, lambda node: session.put_node(lane, node)) if parts else ZERO_ID
    return StoredContent(root, 1, size, size)
