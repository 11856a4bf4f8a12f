"""Threads that compress, encrypt and pack what one thread has read.

Reading small files is many short calls, and more than one thread of those only take turns at the interpreter's lock. What comes after is
few long calls that do not need it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from safehold.vault.names import Kind
from safehold.vault.session import Lane, Session

__all__ = ["BufferRing", "SealPool"]


class BufferRing:
    """A few buffers of one size that go round: their number bounds the memory."""

    def __init__(self, size: int, count: int) -> None:
        self._size, self._left = size, count
        self._free: list[bytearray] = []
        self._changed = threading.Condition()

    def take(self) -> bytearray:
        """A buffer, waiting for one."""
        with self._changed:
            while not self._free:
                if self._left:
                    self._left -= 1
                    return bytearray(self._size)
                self._changed.wait()
            return self._free.pop()

    def give(self, buffer: bytearray) -> None:
        """The buffer is no longer looked at."""
        with self._changed:
            self._free.append(buffer)
            self._changed.notify()


class SealPool:
    """Use as a context manager: leaving it waits for what was handed in, without raising what went wrong; `drain` raises."""

    def __init__(self, session: Session, threads: int) -> None:
        self._session = session
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="seal")
        self._local = threading.local()
        self._under_way: deque[Future[None]] = deque()

    def __enter__(self) -> SealPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self._executor.shutdown(wait=True)

    def put(
        self, identities: Sequence[bytes], pieces: Sequence[memoryview], buffer: bytearray, ring: BufferRing
    ) -> None:
        """Store data chunks that lie in `buffer`, which goes back to its ring when that is done. Raises what an earlier one failed with."""
        while self._under_way and self._under_way[0].done():
            self._under_way.popleft().result()
        self._under_way.append(self._executor.submit(self._put, identities, pieces, buffer, ring))

    def _put(
        self, identities: Sequence[bytes], pieces: Sequence[memoryview], buffer: bytearray, ring: BufferRing
    ) -> None:
        lane: Lane | None = getattr(self._local, "lane", None)
        if lane is None:
            lane = self._local.lane = self._session.lane()
        try:
            lane.put_known(Kind.PACK, identities, pieces)
        finally:
            ring.give(buffer)

    def drain(self) -> None:
        """Return when everything that was handed in is stored; raises what one failed with."""
        while self._under_way:
            self._under_way.popleft().result()
