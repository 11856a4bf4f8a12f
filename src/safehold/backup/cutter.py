"""Cuts larger content into chunks."""

from __future__ import annotations

from pyfastcdc import FastCDC

from safehold.backup.sealers import BufferRing, SealPool
from safehold.model.extents import ExtentKind
from safehold.ports.tree import OpenFile
from safehold.vault.content import Part
from safehold.vault.names import ZERO_ID
from safehold.vault.sealing import chunk_id
from safehold.vault.session import LARGEST_CUT

__all__ = ["ContentCutter"]

_WINDOW = 16 * 1024 * 1024
_WINDOWS = 4
"""One being filled, the others being compressed."""
_FEWEST, _AVERAGE, _MOST = 256 * 1024, 1024 * 1024, LARGEST_CUT
"""Chunk sizes: small enough that a change costs little, large enough that the index stays small."""


class ContentCutter:
    """Cuts larger content into chunks where its own bytes say so, and hands them in. Not thread-safe."""

    def __init__(self, sealers: SealPool, dedup_key: bytes) -> None:
        self._sealers, self._dedup_key = sealers, dedup_key
        self._ring = BufferRing(_WINDOW, _WINDOWS)
        self._buffer = self._ring.take()
        # One bit less than a word: the library shifts it.
        seed = int.from_bytes(chunk_id(dedup_key, b"chunk boundaries")[:8], "big") >> 1
        self._cdc = FastCDC(_AVERAGE, min_size=_FEWEST, max_size=_MOST, seed=seed)

    def file(self, opened: OpenFile) -> list[Part]:
        """All of a file. Unreadable."""
        parts: list[Part] = []
        for extent in opened.extents():
            if extent.kind is ExtentKind.ZERO:
                parts.append((ZERO_ID, extent.length))
            elif not self._range(opened, extent.offset, extent.end, parts):
                break
        return parts

    def _range(self, opened: OpenFile, start: int, end: int, parts: list[Part]) -> bool:
        """Bytes `start` to `end`; False where the file ended before."""
        filled = 0
        while True:
            want = min(_WINDOW - filled, end - start)
            got = opened.read_into(start, self.room[filled : filled + want])
            start, filled = start + got, filled + got
            last = got < want or start == end
            filled = self.feed(filled, parts, last=last)
            if last:
                return got == want

    @property
    def room(self) -> memoryview:
        """The buffer that `feed` takes from; another one after each call of it."""
        return memoryview(self._buffer)

    def feed(self, filled: int, parts: list[Part], *, last: bool) -> int:
        """Hand in the chunks in the first `filled` bytes of the buffer; returns how many bytes are kept, at the front of the next buffer, as
        their chunk may go on. With `last` nothing is kept.
        """
        if not filled:
            return 0
        view = memoryview(self._buffer)[:filled]
        cuts = [(c.offset, c.length) for c in self._cdc.cut_buf(view)]
        kept = 0 if last else cuts.pop()[1]
        pieces = [view[offset : offset + length] for offset, length in cuts]
        ids = [ZERO_ID if _zero(piece) else chunk_id(self._dedup_key, piece) for piece in pieces]
        parts += [(identity, len(piece)) for identity, piece in zip(ids, pieces, strict=True)]
        full = [n for n, identity in enumerate(ids) if identity != ZERO_ID]
        used, self._buffer = self._buffer, self._ring.take()
        self._buffer[:kept] = view[filled - kept :]
        self._sealers.put([ids[n] for n in full], [pieces[n] for n in full], used, self._ring)
        return kept


def _zero(piece: memoryview) -> bool:
    return not bytes(piece[:4096]).strip(b"\0") and not bytes(piece).strip(b"\0")
