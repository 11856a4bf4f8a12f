"""Cuts larger content into chunks."""

from __future__ import annotations

from pyfastcdc import FastCDC

from safehold.model.extents import ExtentKind
from safehold.ports.tree import OpenFile
from safehold.vault.content import Part
from safehold.vault.names import ZERO_ID, Kind
from safehold.vault.sealing import chunk_id
from safehold.vault.session import Lane

__all__ = ["ContentCutter"]

_WINDOW = 16 * 1024 * 1024
_FEWEST, _AVERAGE, _MOST = 256 * 1024, 1024 * 1024, 4 * 1024 * 1024
"""Chunk sizes: small enough that a change costs little, large enough that the index stays small."""


class ContentCutter:
    """Cuts larger content into chunks where its own bytes say so, and stores them. Not thread-safe."""

    def __init__(self, lane: Lane, dedup_key: bytes) -> None:
        self._lane, self._dedup_key = lane, dedup_key
        self._buffer = bytearray(_WINDOW)
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
        view = memoryview(self._buffer)
        filled = 0
        while True:
            want = min(_WINDOW - filled, end - start)
            got = opened.read_into(start, view[filled : filled + want])
            start, filled = start + got, filled + got
            last = got < want or start == end
            filled = self.feed(filled, parts, last=last)
            if last:
                return got == want

    @property
    def room(self) -> memoryview:
        """The buffer that `feed` takes from."""
        return memoryview(self._buffer)

    def feed(self, filled: int, parts: list[Part], *, last: bool) -> int:
        """Store the chunks in the first `filled` bytes of the buffer; returns how many bytes of it are kept at its front, as their chunk
        may go on. With `last` nothing is kept.
        """
        if not filled:
            return 0
        view = memoryview(self._buffer)[:filled]
        cuts = [(c.offset, c.length) for c in self._cdc.cut_buf(view)]
        kept = 0 if last else cuts.pop()[1]
        pieces = [view[offset : offset + length] for offset, length in cuts]
        ids = [ZERO_ID if _zero(piece) else chunk_id(self._dedup_key, piece) for piece in pieces]
        full = [n for n, identity in enumerate(ids) if identity != ZERO_ID]
        self._lane.put_known(Kind.PACK, [ids[n] for n in full], [pieces[n] for n in full])
        parts += [(identity, len(piece)) for identity, piece in zip(ids, pieces, strict=True)]
        view[:kept] = bytes(view[filled - kept :])
        return kept


def _zero(piece: memoryview) -> bool:
    return not bytes(piece[:4096]).strip(b"\0") and not bytes(piece).strip(b"\0")
