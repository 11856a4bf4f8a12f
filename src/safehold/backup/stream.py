"""Stores bytes that come once, such as the output of another program."""

from __future__ import annotations

from safehold.backup.cutter import ContentCutter
from safehold.backup.stored import StoredContent
from safehold.model.context import Context
from safehold.ports.tree import ByteStream
from safehold.vault.content import Part, write_parts
from safehold.vault.names import ZERO_ID
from safehold.vault.session import Session

__all__ = ["store_stream"]


def store_stream(session: Session, stream: ByteStream, dedup_key: bytes, ctx: Context) -> StoredContent:
    """Store the stream to its end. An empty one has the zero id as its root."""
    lane = session.lane()
    cutter = ContentCutter(lane, dedup_key)
    parts: list[Part] = []
    filled = 0
    while True:
        ctx.cancel.check()
        got = stream.read_some(cutter.room[filled:])
        ctx.progress.advance(got)
        filled += got
        if not got or filled == len(cutter.room):
            filled = cutter.feed(filled, parts, last=not got)
        if not got:
            break
    size = sum(length for _, length in parts)
    root = write_parts(parts, lambda node: session.put_node(lane, node)) if parts else ZERO_ID
    return StoredContent(root, 1, size, size)
