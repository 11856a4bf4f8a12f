"""Fills a live volume in from its point: what a client waits for first, then what lies behind it, then the rest."""

from __future__ import annotations

import bisect
import contextlib
import enum
import errno
import itertools
import mmap
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from safehold.blocks.layers import PRESENT, REGION
from safehold.blocks.volume import LiveVolume
from safehold.model.background import background_thread
from safehold.model.context import Context
from safehold.recovery.disk import THREADS_LOCAL
from safehold.vault.disk import StoredDisk

__all__ = ["Hydrator"]

_BATCH = REGION
"""Bytes asked for at once behind, at least a block: enough to share a pack, few enough that a client's wish comes next soon."""

_PATIENCE = (1.0, 2.0, 5.0, 15.0, 60.0)
"""Seconds until blocks that could not be had, or those that are damaged when all others are here, are tried again, the last one for ever."""

_THREADS = 2 * THREADS_LOCAL
"""While one writes what it has fetched, another fetches."""

_RECENT = 0.1
"""Seconds for which a client that had to wait for a block is thought to want another one."""

_SPARE = 4
"""Blocks' worth of memory kept for the next that clients wait for."""

_CHECKPOINT = 2048
"""Blocks filled in between checkpoints: what a power loss makes this fetch again."""


class _Filled(enum.Enum):
    """How filling blocks in went: all are here; some cannot be read; or there was no way to ask for them."""

    WHOLE = enum.auto()
    DAMAGED = enum.auto()
    FAILED = enum.auto()


class Hydrator:
    """A few threads that work behind, and `fetch` for whoever cannot wait. `problem` says why something is not here yet, or nothing."""

    def __init__(
        self,
        volume: LiveVolume,
        disk: StoredDisk | None,
        open_disk: Callable[[], StoredDisk],
        done: Callable[[], bool],
        ctx: Context,
    ) -> None:
        """`disk` is the point's where it has just been opened. `open_disk` opens it anew, where there is none and whenever the last one failed;
        `done` is called when nothing is missing and all of it is durable, again and again until it has let go of the point and says so.
        """
        self._volume = volume
        self._open_disk = open_disk
        self._done = done
        self._ctx = ctx
        self._disk = disk
        self._opening = threading.Lock()
        self._fetching: dict[int, threading.Lock] = {}
        self._table = threading.Lock()
        self._spare: deque[memoryview] = deque()
        self._wish: int | None = None
        self._stop = threading.Event()
        self._claims: list[range] = []
        self._damaged: list[range] = []
        self._damage = ""
        self._rounds = 0
        self._given_up = threading.Condition()
        self._at = self._filled = 0
        self._batch = max(1, _BATCH // volume.block)
        self._finished = False
        self._served = -_RECENT
        self._threads = [background_thread(self._work, "hydration") for _ in range(_THREADS)]
        self.problem = ""

    def start(self) -> None:
        """Begin to fill in."""
        self._volume.fetch = self.fetch
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Return when the threads have ended; what is missing stays missing."""
        self._stop.set()
        with self._given_up:
            self._given_up.notify_all()
        for thread in self._threads:
            thread.join()
        self._volume.fetch = None

    def fetch(self, block: int) -> None:
        """Have one block present now. OSError EIO where it cannot be had; `problem` says why then."""
        # Those behind rest from now on, not only once this is here.
        self._served = self._ctx.clock.monotonic()
        with self._table:
            lock = self._fetching.setdefault(block, threading.Lock())
        try:
            with lock:
                if self._volume.maps.states.cells[block] != PRESENT:
                    with self._room() as buffer:
                        filled = self._fill(block, 1, buffer)
                    if filled is _Filled.DAMAGED:
                        self._reopen()
        finally:
            with self._table:
                self._fetching.pop(block, None)
        self._served = self._ctx.clock.monotonic()
        # Who reads here will most likely go on behind it.
        self._wish = block + 1
        if self._volume.maps.states.cells[block] != PRESENT:
            raise OSError(errno.EIO, self.problem or "the block cannot be had")

    @contextlib.contextmanager
    def _room(self) -> Iterator[memoryview]:
        """Room for a block. To have the kernel give pages for each would take as long as to open what comes into them."""
        try:
            buffer = self._spare.pop()
        except IndexError:
            buffer = _pages(self._volume.block)
        try:
            yield buffer
        finally:
            if len(self._spare) < _SPARE:
                self._spare.append(buffer)

    def _disk_now(self) -> StoredDisk:
        with self._opening:
            if self._disk is None:
                if self._stop.is_set():
                    raise OSError(errno.EIO, "the volume is being put away")
                self._disk = self._open_disk()
            return self._disk

    def _fill(self, first: int, count: int, buffer: memoryview) -> _Filled:
        """Fetch blocks of the volume, by way of a buffer that has room for them."""
        size = self._volume.block
        try:
            disk = self._disk_now()
            step = size // disk.block_size
            start = first * size
            view = buffer[: min(count * size, disk.size - start)]
            missed = disk.read_whole(first * step, -(-len(view) // disk.block_size), view)
            for one in missed:
                self.problem = f"block {one.position} of the point cannot be read: {one.reason}"
            lost = {one.position // step for one in missed}
            at = first
            for end in (*sorted(lost), first + count):
                if at < end:
                    self._volume.fill_run(at, view[(at - first) * size : (end - first) * size])
                at = end + 1
            return _Filled.DAMAGED if lost else _Filled.WHOLE
        except Exception as error:  # the last line of defence: a thread that died would never fill the volume in
            self.problem = str(error)
            self._reopen()
            return _Filled.FAILED

    def _reopen(self) -> None:
        """The next attempt opens the vault anew: a prune may have moved what this one knows."""
        with self._opening:
            self._disk = None

    def _work(self) -> None:
        failures = 0
        buffer = _pages(self._batch * self._volume.block)
        while (claim := self._next_claim()) is not None:
            try:
                filled = self._fill(claim.start, len(claim), buffer)
                if filled is _Filled.DAMAGED:
                    self._put_off(claim)
            finally:
                self._give_up(claim)
            if filled is not _Filled.FAILED:
                failures = 0
                if filled is _Filled.WHOLE:
                    self._count(len(claim))
                continue
            self._ctx.progress.warn(f"hydration waits: {self.problem}")
            self._stop.wait(_PATIENCE[min(failures, len(_PATIENCE) - 1)])
            failures += 1
        if not self._stop.is_set():
            self._finish()

    def _next_claim(self) -> range | None:
        """While clients are served the first thread takes its time, so that it goes on whatever they do, and the others rest."""
        while self._ctx.clock.monotonic() - self._served < _RECENT and not self._stop.wait(_RECENT):
            if threading.current_thread() is self._threads[0]:
                break
        return self._claim()

    def _count(self, filled: int) -> None:
        with self._table:
            self.problem = ""
            self._filled += filled
            due = self._filled >= _CHECKPOINT
            if due:
                self._filled = 0
        if due:
            with contextlib.suppress(OSError):
                self._volume.flush()

    def _finish(self) -> None:
        with self._table:
            first, self._finished = not self._finished, True
        if not first:
            return
        for patience in itertools.chain(_PATIENCE, itertools.repeat(_PATIENCE[-1])):
            try:
                self._volume.flush()
                if self._done():
                    self.problem = ""
                    return
                self.problem = "all is here, and that its point is let go of cannot be said in the vault now"
            except OSError as error:
                self.problem = str(error)
                if self._volume.read_only:
                    # It says so; the point stays pinned.
                    return
            if self._stop.wait(patience):
                return

    # -- who fills what ----------------------------------------------------------------------------------------------

    def _claim(self) -> range | None:
        """Blocks that this thread alone is to fill in, from the last wish on and around; None once nothing is missing, or at the end."""
        with self._given_up:
            while not self._stop.is_set():
                claim = self._unclaimed()
                if claim is not None:
                    self._claims.append(claim)
                    self._at = claim.stop
                    return claim
                if self._claims:
                    # What is missing is another thread's. It may fail.
                    self._given_up.wait(1)
                elif self._damaged:
                    self._wait_for_repair()
                else:
                    return None
            return None

    def _put_off(self, claim: range) -> None:
        """What is damaged is tried again when all the rest is here."""
        with self._given_up:
            if not self._damaged:
                self._ctx.progress.warn(f"hydration goes on past damage: {self.problem}")
            self._damage = self.problem
            at = bisect.bisect(self._damaged, claim.start, key=lambda one: one.start)
            if at and self._damaged[at - 1].stop == claim.start:
                self._damaged[at - 1] = range(self._damaged[at - 1].start, claim.stop)
            else:
                self._damaged.insert(at, claim)

    def _wait_for_repair(self) -> None:
        """With nothing missing but what is damaged: let some time pass, or see another thread do so, and try it again."""
        self.problem = self._damage
        patience, rounds = _PATIENCE[min(self._rounds, len(_PATIENCE) - 1)], self._rounds
        if not self._given_up.wait_for(lambda: self._stop.is_set() or self._rounds != rounds, patience):
            self._rounds += 1
            self._damaged = []
            self._reopen()
            self._given_up.notify_all()

    def _give_up(self, claim: range) -> None:
        with self._given_up:
            self._claims.remove(claim)
            self._given_up.notify_all()

    def _unclaimed(self) -> range | None:
        states = self._volume.maps.states
        wish, self._wish = self._wish, None
        at = min(self._at if wish is None else wish, states.length)
        for low, high in _missing(states.cells, ((at, states.length), (0, at))):
            for claim in sorted((*self._claims, *self._damaged), key=lambda claim: claim.start):
                if claim.start <= low < claim.stop:
                    low = claim.stop
                elif low < claim.start:
                    high = min(high, claim.start)
            if low < high:
                return range(low, min((low // self._batch + 1) * self._batch, high))
        return None


def _pages(length: int) -> memoryview:
    """Memory that starts on a page."""
    return memoryview(mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def _missing(cells: mmap.mmap, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Runs of blocks that are not present within the spans, in pieces of bounded length."""
    for low, high in spans:
        for start in range(low, high, _SCAN):
            part = cells[start : min(start + _SCAN, high)].translate(_PRESENCE)
            found = part.find(1)
            while found >= 0:
                stop = part.find(0, found)
                stop = len(part) if stop < 0 else stop
                yield start + found, start + stop
                found = part.find(1, stop)


_SCAN = 1 << 16
_PRESENCE = bytes(0 if value == PRESENT else 1 for value in range(256))
