"""Fills a live volume in from its point: what a client waits for first, then what lies behind it, then the rest."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable

from safehold.blocks.layers import PRESENT
from safehold.blocks.volume import LiveVolume
from safehold.model.context import Context
from safehold.vault.disk import StoredDisk
from safehold.vault.fetch import Lost

__all__ = ["Hydrator"]

_BATCH = 16
"""Blocks asked for at once behind: enough to share a pack, few enough that a client's wish comes next soon."""

_PATIENCE = (1.0, 2.0, 5.0, 15.0, 60.0)
"""Seconds until blocks that could not be had are tried again, the last one for ever."""

_CHECKPOINT = 2048
"""Blocks filled in between checkpoints: what a power loss makes this fetch again."""


class Hydrator:
    """One thread that works behind, and `fetch` for whoever cannot wait. `problem` says why something is not here yet, or nothing."""

    def __init__(
        self, volume: LiveVolume, open_disk: Callable[[], StoredDisk], done: Callable[[], None], ctx: Context
    ) -> None:
        """`open_disk` opens the point's disk anew, whenever the last one failed; `done` is called once when nothing is missing."""
        self._volume = volume
        self._open_disk = open_disk
        self._done = done
        self._ctx = ctx
        self._disk: StoredDisk | None = None
        self._opening = threading.Lock()
        self._fetching: dict[int, threading.Lock] = {}
        self._table = threading.Lock()
        self._wish: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="hydration", daemon=True)
        self.problem = ""

    def start(self) -> None:
        """Begin to fill in."""
        self._volume.fetch = self.fetch
        self._thread.start()

    def stop(self) -> None:
        """Return when the thread has ended; what is missing stays missing."""
        self._stop.set()
        self._thread.join()

    def fetch(self, block: int) -> None:
        """Have one block present now. OSError EIO where it cannot be had; `problem` says why then."""
        with self._table:
            lock = self._fetching.setdefault(block, threading.Lock())
        try:
            with lock:
                if self._volume.maps.states.cells[block] != PRESENT:
                    self._fill(block, 1)
        finally:
            with self._table:
                self._fetching.pop(block, None)
        # Who reads here will most likely go on behind it.
        self._wish = block + 1
        if self._volume.maps.states.cells[block] != PRESENT:
            raise OSError(errno.EIO, self.problem or "the block cannot be had")

    def _disk_now(self) -> StoredDisk:
        with self._opening:
            if self._disk is None:
                self._disk = self._open_disk()
            return self._disk

    def _fill(self, first: int, count: int) -> bool:
        """Fetch blocks of the volume; true where all of them came."""
        size = self._volume.block
        try:
            disk = self._disk_now()
            step = size // disk.block_size
            end = min((first + count) * step, -(-disk.size // disk.block_size))
            whole = True
            if step == 1:
                for piece in disk.pieces(first, end - first):
                    if isinstance(piece, Lost):
                        self._failed(f"block {piece.position} of the point cannot be read: {piece.reason}")
                        whole = False
                    else:
                        offset, data = piece
                        length = min(size, disk.size - offset)
                        self._volume.fill(
                            offset // size, memoryview(bytes(length)) if data is None else memoryview(data)
                        )
            else:
                for block in range(first, -(-end // step)):
                    content = memoryview(bytearray(min(size, disk.size - block * size)))
                    disk.read_into(block * size, content)
                    self._volume.fill(block, content)
        except Exception as error:  # the last line of defence: a thread that died would never fill the volume in
            self._failed(str(error))
            return False
        return whole

    def _failed(self, why: str) -> None:
        self.problem = why
        # The next attempt opens the vault anew: a prune may have moved what this one knows.
        with self._opening:
            self._disk = None

    def _work(self) -> None:
        failures, filled = 0, 0
        while not self._stop.is_set():
            missing = self._next()
            if missing is None:
                self._finish()
                return
            first, count = missing
            if self._fill(first, count):
                failures, self.problem = 0, ""
                filled += count
                if filled >= _CHECKPOINT:
                    filled = 0
                    with contextlib.suppress(OSError):
                        self._volume.flush()
                continue
            self._ctx.progress.warn(f"hydration waits: {self.problem}")
            # Past what is damaged: the rest is wanted all the same.
            self._wish = first + count
            self._stop.wait(_PATIENCE[min(failures, len(_PATIENCE) - 1)])
            failures += 1

    def _finish(self) -> None:
        try:
            self._volume.flush()
        except OSError as error:
            # The volume is read-only and says so; the point stays pinned.
            self.problem = str(error)
            return
        self.problem = ""
        self._done()

    def _next(self) -> tuple[int, int] | None:
        """The next run of blocks that are not present, from the last wish on and around; None where there is none."""
        states = self._volume.maps.states
        wish, self._wish = self._wish, None
        at = min(self._at if wish is None else wish, states.length)
        cells = states.cells
        for low, high in ((at, states.length), (0, at)):
            for start in range(low, high, _SCAN):
                part = cells[start : min(start + _SCAN, high)].translate(_PRESENCE)
                found = part.find(1)
                if found >= 0:
                    stop = part.find(0, found)
                    stop = len(part) if stop < 0 else stop
                    first = start + found
                    count = min(stop - found, _BATCH)
                    self._at = first + count
                    return first, count
        return None

    _at = 0


_SCAN = 1 << 16
_PRESENCE = bytes(0 if value == PRESENT else 1 for value in range(256))
